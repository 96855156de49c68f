//! The SQL server: MariaDB, or MySQL if `GARAGE_LOCAL_DATABASE` says so.

mod mariadb;
mod mysql;

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use garage_nats::private;
use nix::unistd::Uid;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// The environment variable that selects the [`Product`] of a local Garage.
const VARIABLE: &str = "GARAGE_LOCAL_DATABASE";

/// The server programs that Garage is tested with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Product {
    /// From the system's packages.
    #[default]
    MariaDb,
    /// From the folder of `deploy/local/install.sh --mysql`.
    MySql,
}

impl Product {
    /// The product that `GARAGE_LOCAL_DATABASE` names, or MariaDB.
    fn selected() -> Result<Self> {
        let named = env::var(VARIABLE).unwrap_or_default();
        if named.is_empty() { Ok(Self::default()) } else { named.parse() }
    }

    /// The name of its data folder and in messages.
    const fn name(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::MySql => "mysql",
        }
    }
}

impl FromStr for Product {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::MariaDb, Self::MySql]
            .into_iter()
            .find(|product| product.name() == name)
            .ok_or_else(|| Error::UnknownDatabase { variable: VARIABLE, value: name.to_owned() })
    }
}

/// A server with one database, `garage`. The user `garage` has rights on this database only.
#[derive(Debug)]
pub struct Database {
    process: Process,
    port: u16,
    admin_password: String,
    password_file: PathBuf,
}

impl Database {
    /// Starts the server in `<root>/mariadb` or `<root>/mysql`, with the existing data or a new data folder, and waits
    /// until it answers. `GARAGE_LOCAL_DATABASE` selects the server: `mariadb`, the default, or `mysql`.
    ///
    /// # Errors
    /// When the server is not installed or does not answer in time.
    pub async fn start(root: &Path) -> Result<Self> {
        Self::start_with(root, &[]).await
    }

    /// Like [`start`](Self::start), with options of the server that replace those of a local Garage.
    ///
    /// # Errors
    /// Like `start`, and when the server refuses an option.
    pub async fn start_with(root: &Path, options: &[&str]) -> Result<Self> {
        let product = Product::selected()?;
        let mut left = ports::STARTS;
        loop {
            left -= 1;
            match Self::try_start(product, root, options).await {
                Err(Error::PortTaken { .. }) if left > 0 => {}
                result => return result,
            }
        }
    }

    async fn try_start(product: Product, root: &Path, options: &[&str]) -> Result<Self> {
        let name = product.name();
        let program = match product {
            Product::MariaDb => mariadb::program(),
            Product::MySql => mysql::program(),
        }?;
        let folder = root.join(name);
        let data = folder.join("data");
        let password_file = root.join(format!("secrets/{name}-garage.password"));
        let password = secret::load_or_create(&password_file)?;
        let admin_password = secret::load_or_create(&root.join(format!("secrets/{name}-admin.password")))?;
        private::folder(&folder.join(TMP)).map_err(Error::io(format!("create {}", folder.display())))?;
        install(product, &folder, &data).await?;
        let init = folder.join("init.sql");
        secret::write_private(&init, &init_sql(&password, &admin_password))?;
        let [port] = ports::reserve()?;
        let own: &[&str] = match product {
            Product::MariaDb => &mariadb::SETTINGS,
            Product::MySql => &mysql::SETTINGS,
        };
        let process = Launch::new(name, program, folder.join("log"))
            .args(common(&folder, &data))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--port={port}"))
            .args(SETTINGS)
            .args(own)
            // The last one of two equal options applies.
            .args(options)
            .spawn()?;
        let mut database = Self { process, port, admin_password, password_file };
        database.wait().await?;
        Ok(database)
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
const SETTINGS: [&str; 8] = [
    "--bind-address=127.0.0.1",
    // The users are defined for 127.0.0.1, which name resolution would turn into localhost.
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=64M",
    "--performance-schema=OFF",
    "--max-connections=300",
];

/// Folder for temporary tables. On startup a server removes temporary tables that it takes for its own leftovers. In
/// the system's temporary folder it would remove the tables of other servers. (This made one in six parallel
/// installations fail because of a missing table.)
const TMP: &str = "tmp";

/// Arguments of a server and of its installation. `--no-defaults` must be the first.
fn common(folder: &Path, data: &Path) -> Vec<String> {
    let tmp = folder.join(TMP);
    let mut args = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", data.display()),
        format!("--tmpdir={}", tmp.display()),
    ];
    if Uid::effective().is_root() {
        // As root, both servers run only with this option. The user mysql has no access to the stack's folder.
        args.push("--user=root".to_owned());
    }
    args
}

/// Creates the data folder. This takes one to five seconds; a cached copy is not worth the effort.
async fn install(product: Product, folder: &Path, data: &Path) -> Result<()> {
    // This file is written last, and marks a complete installation.
    let done = data.join("garage-installed");
    if done.exists() {
        return Ok(());
    }
    if data.exists() {
        std::fs::remove_dir_all(data).map_err(Error::io(format!("remove {}", data.display())))?;
    }
    private::folder(data).map_err(Error::io(format!("create {}", data.display())))?;
    let log = folder.join("install.log");
    let install = match product {
        Product::MariaDb => mariadb::install(log, common(folder, data)),
        Product::MySql => mysql::install(log, common(folder, data)),
    };
    install?.spawn()?.wait_success().await?;
    std::fs::write(&done, "").map_err(Error::io(format!("write {}", done.display())))
}

/// The server runs these statements at each start before it accepts connections. Each statement must be on one line.
fn init_sql(password: &str, admin_password: &str) -> String {
    format!(
        "CREATE DATABASE IF NOT EXISTS garage CHARACTER SET utf8mb4;\n\
         CREATE USER IF NOT EXISTS 'garage'@'127.0.0.1';\n\
         ALTER USER 'garage'@'127.0.0.1' IDENTIFIED BY '{password}';\n\
         GRANT ALL PRIVILEGES ON garage.* TO 'garage'@'127.0.0.1';\n\
         CREATE USER IF NOT EXISTS 'admin'@'127.0.0.1';\n\
         ALTER USER 'admin'@'127.0.0.1' IDENTIFIED BY '{admin_password}';\n\
         GRANT ALL PRIVILEGES ON *.* TO 'admin'@'127.0.0.1' WITH GRANT OPTION;\n"
    )
}

/// Whether the server sends its greeting: a packet header of four bytes, then the protocol version 10.
async fn greets(address: SocketAddr) -> std::io::Result<bool> {
    let mut greeting = [0; 5];
    TcpStream::connect(address).await?.read_exact(&mut greeting).await?;
    Ok(greeting.last() == Some(&10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_product_is_refused_with_the_names_of_the_known_ones() {
        assert_eq!("mysql".parse::<Product>().unwrap(), Product::MySql);
        assert_eq!("mariadb".parse::<Product>().unwrap(), Product::MariaDb);
        let error = "oracle".parse::<Product>().unwrap_err().to_string();
        assert_eq!(error, "GARAGE_LOCAL_DATABASE is `oracle`; set it to mariadb or mysql");
    }
}
