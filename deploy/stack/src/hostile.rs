//! A hostile game server: it has a real NATS user, and floods NATS with everything that it can send.
//!
//! It does not use a client library. A library respects the limits that the server announces; a hostile process does
//! not.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::{
    game::Secret,
    id::SessionId,
    subject::{Report, ReportKind},
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{Result, servers::Nats};

/// How long the server may take to accept a connection, or the next part of the flood. Then the flood begins again with
/// a new connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes are written at once, at least. Small writes would limit the flood.
const CHUNK: usize = 256 << 10;

/// The game server of one attempt, which floods NATS.
#[derive(Debug, Clone)]
pub struct HostileServer {
    session: SessionId,
    attempt: u32,
    credentials: Secret,
    servers: Vec<SocketAddr>,
}

/// What a flood consists of. It is sent again and again, on one connection after another.
#[derive(Debug, Clone, Default)]
pub struct Flood(Vec<u8>);

/// What was sent, and what the server answered.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    pub bytes: u64,
    pub connections: u64,
    /// The number of errors, by the first two words of their texts, in lower case.
    pub errors: BTreeMap<String, u64>,
}

impl Flood {
    /// Adds a message of this size.
    #[must_use]
    pub fn publish(mut self, subject: &str, size: usize) -> Self {
        self.0.extend(format!("PUB {subject} {size}\r\n").bytes());
        self.0.resize(self.0.len() + size, b'x');
        self.0.extend(b"\r\n");
        self
    }

    /// Adds a subscription.
    #[must_use]
    pub fn subscribe(mut self, subject: &str, id: u32) -> Self {
        self.0.extend(format!("SUB {subject} {id}\r\n").bytes());
        self
    }
}

impl HostileServer {
    /// The server of one attempt, with the credentials that the session worker creates for it.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn new(nats: &Nats, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Result<Self> {
        let credentials = nats.game(session, attempt, ends_at)?;
        Ok(Self { session, attempt, credentials, servers: nats.addresses() })
    }

    /// The subject of one of its reports.
    #[must_use]
    pub fn report(&self, kind: ReportKind) -> String {
        Report { session: self.session, attempt: self.attempt, kind }.to_string()
    }

    /// Messages of this size on both subjects to which it may publish.
    #[must_use]
    pub fn reports(&self, size: usize) -> Flood {
        let subjects = [ReportKind::Ready, ReportKind::Finished].map(|kind| self.report(kind));
        let mut flood = Flood::default();
        while flood.0.len() < CHUNK {
            for subject in &subjects {
                flood = flood.publish(subject, size);
            }
        }
        flood
    }

    /// Floods NATS until it is stopped.
    pub async fn run(&self, flood: &Flood, stop: CancellationToken) -> Sent {
        let mut sent = Sent::default();
        let flooding = async {
            // Each connection goes to the next node.
            for server in self.servers.iter().cycle() {
                sent.connections += 1;
                // However a connection ends, the next one follows.
                if let Err(error) = self.flood(*server, flood, &mut sent).await {
                    tracing::debug!(%server, %error, "the server closed the connection of a hostile game server");
                }
            }
        };
        stop.run_until_cancelled(flooding).await;
        sent
    }

    async fn flood(&self, server: SocketAddr, flood: &Flood, sent: &mut Sent) -> std::io::Result<()> {
        let (read, mut write) = timeout(TIMEOUT, self.connect(server)).await??;
        let mut errors = BTreeMap::new();
        let writing = async {
            loop {
                timeout(TIMEOUT, write.write_all(&flood.0)).await??;
                sent.bytes += flood.0.len() as u64;
            }
        };
        let ended: std::io::Result<()> = {
            let mut reading = std::pin::pin!(count_errors(read, &mut errors));
            tokio::select! {
                ended = writing => {
                    // The last error says why the server has closed the connection.
                    let _ = timeout(TIMEOUT, reading).await;
                    ended
                }
                ended = &mut reading => ended,
            }
        };
        for (error, count) in errors {
            *sent.errors.entry(error).or_default() += count;
        }
        ended
    }

    async fn connect(&self, server: SocketAddr) -> std::io::Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf)> {
        let invalid = |what: &str| std::io::Error::other(what.to_owned());
        let (read, mut write) = TcpStream::connect(server).await?.into_split();
        let mut read = BufReader::new(read);
        let mut line = String::new();
        read.read_line(&mut line).await?;
        let info: Value = serde_json::from_str(line.trim_start_matches("INFO "))?;
        let nonce = info.get("nonce").and_then(Value::as_str).ok_or_else(|| invalid("the server sent no nonce"))?;
        let mut lines = self.credentials.expose().lines().filter(|line| !line.is_empty() && !line.starts_with('-'));
        let (jwt, seed) = lines.next().zip(lines.next()).ok_or_else(|| invalid("incomplete credentials"))?;
        let signed = KeyPair::from_seed(seed).and_then(|key| key.sign(nonce.as_bytes()));
        let signature = URL_SAFE_NO_PAD.encode(signed.map_err(std::io::Error::other)?);
        let options = json!({
            "verbose": false, "pedantic": false, "lang": "hostile", "version": "0", "protocol": 1, "headers": true,
            "no_responders": true, "jwt": jwt, "sig": signature,
        });
        write.write_all(format!("CONNECT {options}\r\n").as_bytes()).await?;
        Ok((read, write))
    }
}

/// Counts the server's errors until it closes the connection.
async fn count_errors(mut read: BufReader<OwnedReadHalf>, errors: &mut BTreeMap<String, u64>) -> std::io::Result<()> {
    let mut line = String::new();
    while read.read_line(&mut line).await? > 0 {
        if let Some(error) = line.strip_prefix("-ERR '") {
            let words: Vec<_> = error.split([' ', '\'']).take(2).collect();
            *errors.entry(words.join(" ").to_lowercase()).or_default() += 1;
        }
        line.clear();
    }
    Ok(())
}

impl Sent {
    /// The number of errors that begin with these two words.
    #[must_use]
    pub fn errors(&self, words: &str) -> u64 {
        self.errors.get(words).copied().unwrap_or_default()
    }
}
