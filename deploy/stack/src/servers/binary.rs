//! Finds the programs of the servers.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The version that deploy/local/install.sh installs. Change both together.
const NATS_VERSION: &str = "2.15.1";

/// The version in gateway/tests/oidc/package.json. Change both together.
const OIDC_PROVIDER_VERSION: &str = "9.13.3";

const INSTALL: &str = "deploy/local/install.sh";

/// nats-server in the required version, from the folder of deploy/local/install.sh. A nats-server on the PATH may be
/// too old to provide the guarantees of the log.
pub(crate) fn nats_server() -> Result<PathBuf> {
    let path = cache().join(format!("bin/nats-server-{NATS_VERSION}/nats-server"));
    installed(path, &format!("nats-server {NATS_VERSION}"), INSTALL)
}

/// MySQL's server, from the folder of deploy/local/install.sh. On the PATH, `mysqld` may be MariaDB under an old name.
pub(crate) fn mysqld() -> Result<PathBuf> {
    installed(cache().join("mysql/mysqld"), "MySQL's server", "deploy/local/install.sh --mysql")
}

/// The folder with the packages of an OpenID provider, from deploy/local/install.sh. It needs node, which the tests of
/// the gateway start it with.
///
/// # Errors
/// When it is not installed.
pub fn openid_provider() -> Result<PathBuf> {
    let folder = cache().join(format!("oidc-provider-{OIDC_PROVIDER_VERSION}"));
    let (program, install) = (format!("oidc-provider {OIDC_PROVIDER_VERSION}"), "deploy/local/install.sh --tests");
    installed(folder.join("node_modules/oidc-provider/package.json"), &program, install)?;
    Ok(folder)
}

/// A program from the system's packages.
pub(crate) fn system(program: &str) -> Result<PathBuf> {
    on_path(program).ok_or_else(|| missing(program, Path::new("PATH, /usr/sbin"), INSTALL))
}

/// The folder in which deploy/local/install.sh installs what is not a package of the system.
fn cache() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_default().join("garage")
}

fn installed(path: PathBuf, program: &str, install: &'static str) -> Result<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(missing(program, &path, install)) }
}

fn missing(program: &str, looked: &Path, install: &'static str) -> Error {
    Error::Missing { program: program.to_owned(), looked: looked.display().to_string(), install }
}

/// Finds a program on the PATH, or in the sbin folders. Debian installs servers there, but only root has them on the
/// PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let servers = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(servers).map(|folder| folder.join(program)).find(|file| file.is_file())
}
