use std::path::PathBuf;

use crate::{Result, process::Launch, servers::binary};

pub(super) const SETTINGS: [&str; 3] = [
    // Relative to the data folder: a full path may exceed the limit of 107 bytes.
    "--socket=mariadb.sock",
    "--pid-file=mariadb.pid",
    "--innodb-log-file-size=32M",
];

pub(super) fn program() -> Result<PathBuf> {
    binary::system("mariadbd")
}

/// The program that creates the data folder. `common` are the arguments that the server has too.
pub(super) fn install(log: PathBuf, common: Vec<String>) -> Result<Launch> {
    // With the method `socket`, no account accepts an empty password over TCP.
    let args = [
        "--skip-test-db",
        "--skip-name-resolve",
        "--auth-root-authentication-method=socket",
        "--innodb-log-file-size=32M",
    ];
    let program = binary::system("mariadb-install-db")?;
    Ok(Launch::new("mariadb-install-db", program, log).args(common).args(args))
}
