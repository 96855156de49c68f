//! Finds the programs of the servers.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The version that deploy/local/install.sh installs. Change both together.
const NATS_VERSION: &str = "2.15.1";

/// nats-server in the required version, from the folder of deploy/local/install.sh. A nats-server on the PATH may be
/// too old to provide the guarantees of the log.
pub(crate) fn nats_server() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache"))).unwrap_or_default();
    let path = cache.join(format!("garage/bin/nats-server-{NATS_VERSION}/nats-server"));
    if path.is_file() { Ok(path) } else { Err(missing(&format!("nats-server {NATS_VERSION}"), &path)) }
}

/// A program from the system's packages.
pub(crate) fn system(program: &str) -> Result<PathBuf> {
    on_path(program).ok_or_else(|| missing(program, Path::new("PATH, /usr/sbin")))
}

fn missing(program: &str, looked: &Path) -> Error {
    Error::Missing { program: program.to_owned(), looked: looked.display().to_string() }
}

/// Finds a program on the PATH, or in the sbin folders. Debian installs servers there, but only root has them on the
/// PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let servers = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(servers).map(|folder| folder.join(program)).find(|file| file.is_file())
}
