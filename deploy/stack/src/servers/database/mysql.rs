use std::path::PathBuf;

use crate::{Result, process::Launch, servers::binary};

pub(super) const SETTINGS: [&str; 5] = [
    // No Unix socket, so that root, who has no password and exists for localhost only, cannot log in. It also avoids
    // the socket's lock file, which is left behind when the server is killed.
    "--socket=",
    "--pid-file=mysql.pid",
    "--mysqlx=OFF",
    // The default names a folder that only the package's installation creates.
    "--secure-file-priv=NULL",
    "--innodb-redo-log-capacity=32M",
];

pub(super) fn program() -> Result<PathBuf> {
    binary::mysqld()
}

/// The program that creates the data folder. `common` are the arguments that the server has too.
pub(super) fn install(log: PathBuf, common: Vec<String>) -> Result<Launch> {
    let args = ["--initialize-insecure", "--innodb-redo-log-capacity=32M"];
    Ok(Launch::new("mysqld --initialize", program()?, log).args(common).args(args))
}
