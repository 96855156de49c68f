use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use garage_nats::private;
use nix::unistd::Uid;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::binary;
use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// A MariaDB server with one database, `garage`. The user `garage` has rights on this database only.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    port: u16,
    admin_password: String,
    password_file: PathBuf,
}

impl MariaDb {
    /// Starts the server in `<root>/mariadb`, with the existing data or a new data folder, and waits until it answers.
    ///
    /// # Errors
    /// When MariaDB is not installed or does not answer in time.
    pub async fn start(root: &Path) -> Result<Self> {
        let mut left = ports::STARTS;
        loop {
            left -= 1;
            match Self::try_start(root).await {
                Err(Error::PortTaken { .. }) if left > 0 => {}
                result => return result,
            }
        }
    }

    async fn try_start(root: &Path) -> Result<Self> {
        let program = binary::system("mariadbd")?;
        let folder = root.join("mariadb");
        let data = folder.join("data");
        let password_file = root.join("secrets/mariadb-garage.password");
        let password = secret::load_or_create(&password_file)?;
        let admin_password = secret::load_or_create(&root.join("secrets/mariadb-admin.password"))?;
        private::folder(&folder.join(TMP)).map_err(Error::io(format!("create {}", folder.display())))?;
        install(&folder, &data).await?;
        let init = folder.join("init.sql");
        secret::write_private(&init, &init_sql(&password, &admin_password))?;
        let [port] = ports::reserve()?;
        let process = Launch::new("mariadb", program, folder.join("log"))
            .args(common(&folder, &data))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--port={port}"))
            .args(SETTINGS)
            .spawn()?;
        let mut mariadb = Self { process, port, admin_password, password_file };
        mariadb.wait().await?;
        Ok(mariadb)
    }

    async fn wait(&mut self) -> Result<()> {
        let address = self.address();
        self.process.wait_until("answer", async || greets(address).await.unwrap_or(false)).await
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `mysql://garage@127.0.0.1:<port>/garage`, without the password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mysql://garage@{}/garage", self.address())
    }

    /// The file with the password of the user `garage`.
    #[must_use]
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// The URL, with password, of a user with all rights, so that each test can create a database. It ends with `/`;
    /// append the name of a database.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("mysql://admin:{}@{}/", self.admin_password, self.address())
    }

    /// Kills the server, and starts it with the same port and data.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait().await
    }

    /// Shuts the server down cleanly.
    pub async fn stop(&mut self) {
        self.process.stop().await;
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Pauses the server until [`resume`](Self::resume); see [`Process::pause`].
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Resumes the server.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Settings for a server that runs beside others on a laptop. It is as durable as in production, because tests kill it.
const SETTINGS: [&str; 11] = [
    "--bind-address=127.0.0.1",
    // Relative to the data folder: a full path may exceed the limit of 107 bytes.
    "--socket=mariadb.sock",
    "--pid-file=mariadb.pid",
    // The users are defined for 127.0.0.1, which name resolution would turn into localhost.
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--performance-schema=OFF",
    "--max-connections=300",
];

/// Folder for temporary tables. On startup a server removes temporary tables that it takes for its own leftovers. In
/// the system's temporary folder it would remove the tables of other servers. (This made one in six parallel
/// installations fail because of a missing table.)
const TMP: &str = "tmp";

/// Arguments of both mariadbd and mariadb-install-db. `--no-defaults` must be the first.
fn common(folder: &Path, data: &Path) -> Vec<String> {
    let tmp = folder.join(TMP);
    let mut args = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", data.display()),
        format!("--tmpdir={}", tmp.display()),
    ];
    if Uid::effective().is_root() {
        // As root, mariadbd runs only with this option. The user mysql has no access to the stack's folder.
        args.push("--user=root".to_owned());
    }
    args
}

/// Creates the data folder. This takes 1.2 s; a cached copy is not worth the effort.
async fn install(folder: &Path, data: &Path) -> Result<()> {
    // This file is written last, and marks a complete installation.
    let done = data.join("garage-installed");
    if done.exists() {
        return Ok(());
    }
    if data.exists() {
        std::fs::remove_dir_all(data).map_err(Error::io(format!("remove {}", data.display())))?;
    }
    private::folder(data).map_err(Error::io(format!("create {}", data.display())))?;
    // With the method `socket`, no account accepts an empty password over TCP.
    let args = [
        "--skip-test-db",
        "--skip-name-resolve",
        "--auth-root-authentication-method=socket",
        "--innodb-log-file-size=32M",
    ];
    let program = binary::system("mariadb-install-db")?;
    let log = folder.join("install.log");
    Launch::new("mariadb-install-db", program, log)
        .args(common(folder, data))
        .args(args)
        .spawn()?
        .wait_success()
        .await?;
    std::fs::write(&done, "").map_err(Error::io(format!("write {}", done.display())))
}

/// The server runs these statements at each start before it accepts connections. Each statement must be on one line.
fn init_sql(password: &str, admin_password: &str) -> String {
    format!(
        "CREATE DATABASE IF NOT EXISTS garage CHARACTER SET utf8mb4;\n\
         CREATE OR REPLACE USER 'garage'@'127.0.0.1' IDENTIFIED BY '{password}';\n\
         GRANT ALL PRIVILEGES ON garage.* TO 'garage'@'127.0.0.1';\n\
         CREATE OR REPLACE USER 'admin'@'127.0.0.1' IDENTIFIED BY '{admin_password}';\n\
         GRANT ALL PRIVILEGES ON *.* TO 'admin'@'127.0.0.1' WITH GRANT OPTION;\n"
    )
}

/// Whether the server sends its greeting: a packet header of four bytes, then the protocol version 10.
async fn greets(address: SocketAddr) -> std::io::Result<bool> {
    let mut greeting = [0; 5];
    TcpStream::connect(address).await?.read_exact(&mut greeting).await?;
    Ok(greeting.last() == Some(&10))
}
