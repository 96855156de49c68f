use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use garage_events::projection::{DEAD_LETTERS, LIVE};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::binary;
use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// A Redis server without persistence: it loses its data when its process ends, and Garage must tolerate that.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    folder: PathBuf,
    port: u16,
    password: String,
    password_file: PathBuf,
    reader_file: PathBuf,
}

/// The file that the server writes when a client sends `SAVE`. This is the default name.
const DUMP: &str = "dump.rdb";

/// The user that may only read the projections. It has no access to game servers' secrets.
const READER: &str = "gateway";

impl Redis {
    /// Starts the server in `<root>/redis`, and waits until it answers.
    ///
    /// # Errors
    /// When redis-server is not installed or does not answer in time.
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
        let program = binary::system("redis-server")?;
        let folder = root.join("redis");
        let password_file = root.join("secrets/redis.password");
        let password = secret::load_or_create(&password_file)?;
        let reader_file = root.join("secrets/redis.gateway.password");
        let reader = secret::load_or_create(&reader_file)?;
        let [port] = ports::reserve()?;
        let config = folder.join("redis.conf");
        secret::write_private(&config, &configuration(port, &password, &reader))?;
        // The option --dir avoids a path in the configuration, which might need quotes.
        let process =
            Launch::new("redis", program, folder.join("log")).arg(&config).arg("--dir").arg(&folder).spawn()?;
        let mut redis = Self { process, folder, port, password, password_file, reader_file };
        redis.wait().await?;
        Ok(redis)
    }

    async fn wait(&mut self) -> Result<()> {
        let (address, password) = (self.address(), &self.password);
        self.process.wait_until("answer", async || ping(address, password).await.unwrap_or(false)).await
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `redis://127.0.0.1:<port>`, without the password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// The URL with the password, for tests.
    #[must_use]
    pub fn url_with_password(&self) -> String {
        format!("redis://:{}@{}", self.password, self.address())
    }

    /// The file with the password of the default user.
    #[must_use]
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// The URL of the user that may only read the projections, without the password.
    #[must_use]
    pub fn reader_url(&self) -> String {
        format!("redis://{READER}@{}", self.address())
    }

    /// The file with the password of that user.
    #[must_use]
    pub fn reader_password_file(&self) -> &Path {
        &self.reader_file
    }

    /// The rights of that user in the ACL syntax of Redis.
    #[must_use]
    pub fn reader_rights() -> String {
        let keys = LIVE.iter().chain([&DEAD_LETTERS]).map(|key| format!("~{key} ")).collect::<String>();
        keys + "-@all +@read +@connection +@transaction +time -@dangerous"
    }

    /// Kills the server, and starts it on the same port without data.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.kill();
        match fs::remove_file(self.folder.join(DUMP)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove the dump of Redis")(error)),
            _ => self.restart().await,
        }
    }

    /// Kills the server, and starts it on the same port with the data of the last `SAVE` of a client.
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

fn configuration(port: u16, password: &str, reader: &str) -> String {
    let rights = Redis::reader_rights();
    format!(
        "bind 127.0.0.1\n\
         port {port}\n\
         requirepass {password}\n\
         user {READER} on >{reader} {rights}\n\
         daemonize no\n\
         save \"\"\n\
         appendonly no\n"
    )
}

/// Sends `PING` with inline commands, without a client library.
async fn ping(address: SocketAddr, password: &str) -> std::io::Result<bool> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(format!("AUTH {password}\r\nPING\r\nQUIT\r\n").as_bytes()).await?;
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await?;
    Ok(reply.contains("+PONG"))
}
