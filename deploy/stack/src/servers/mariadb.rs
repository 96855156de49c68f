use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::binary;
use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// A mariadbd with one database, `garage`, and a user of that name who has rights on it alone.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    port: u16,
    admin_password: String,
    password_file: PathBuf,
}

impl MariaDb {
    /// Starts one in `<root>/mariadb`, on the data that is there or on a new data folder, and waits until it answers.
    ///
    /// # Errors
    /// When MariaDB is missing or does not answer in time.
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
        secret::private_folder(&folder.join(TMP)).map_err(Error::io(format!("make {}", folder.display())))?;
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

    /// The file that holds the password of user `garage`.
    #[must_use]
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// The URL, password included, of a user who may do everything: tests make a database each. No database is named
    /// in it; append one.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("mysql://admin:{}@{}/", self.admin_password, self.address())
    }

    /// Kills it and starts it on the same port and data.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait().await
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        self.process.stop().await;
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops its time until [`resume`](Self::resume).
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// The process behind it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// For a server that a laptop or a test runs beside others; durable as in production all the same, since tests kill it.
const SETTINGS: [&str; 11] = [
    "--bind-address=127.0.0.1",
    // Below the data folder: a full path may be longer than a socket's 107 bytes.
    "--socket=mariadb.sock",
    "--pid-file=mariadb.pid",
    // The users are those of 127.0.0.1, which a resolver would call localhost.
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--performance-schema=OFF",
    "--max-connections=300",
];

/// A server's temporary tables. When one starts, it removes what it takes for leftovers of a former life, and in the
/// system's folder that would be the tables of every other server there (seen: installations that failed on a table that
/// was gone, one in six of those done side by side).
const TMP: &str = "tmp";

/// What mariadbd and mariadb-install-db both take. `--no-defaults` must be the first.
fn common(folder: &Path, data: &Path) -> Vec<String> {
    let tmp = folder.join(TMP);
    let mut args = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", data.display()),
        format!("--tmpdir={}", tmp.display()),
    ];
    if Uid::effective().is_root() {
        // It refuses to run as root unless told; user mysql could not enter our folder.
        args.push("--user=root".to_owned());
    }
    args
}

/// Makes the data folder; 1.2 s measured, not worth a cached copy.
async fn install(folder: &Path, data: &Path) -> Result<()> {
    // Written last by the installation below.
    let done = data.join("garage-installed");
    if done.exists() {
        return Ok(());
    }
    if data.exists() {
        std::fs::remove_dir_all(data).map_err(Error::io(format!("remove {}", data.display())))?;
    }
    secret::private_folder(data).map_err(Error::io(format!("make {}", data.display())))?;
    // With `socket` no account has an empty password over TCP.
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

/// Run by the server at each start, before it accepts connections; each statement one line, as the server wants them.
fn init_sql(password: &str, admin_password: &str) -> String {
    format!(
        "CREATE DATABASE IF NOT EXISTS garage CHARACTER SET utf8mb4;\n\
         CREATE OR REPLACE USER 'garage'@'127.0.0.1' IDENTIFIED BY '{password}';\n\
         GRANT ALL PRIVILEGES ON garage.* TO 'garage'@'127.0.0.1';\n\
         CREATE OR REPLACE USER 'admin'@'127.0.0.1' IDENTIFIED BY '{admin_password}';\n\
         GRANT ALL PRIVILEGES ON *.* TO 'admin'@'127.0.0.1' WITH GRANT OPTION;\n"
    )
}

/// Whether the server sends its greeting: a packet header of four bytes and the protocol's version, 10.
async fn greets(address: SocketAddr) -> std::io::Result<bool> {
    let mut greeting = [0; 5];
    TcpStream::connect(address).await?.read_exact(&mut greeting).await?;
    Ok(greeting.last() == Some(&10))
}
