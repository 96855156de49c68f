//! The clients, in a process of their own: so that what they take is not the gateway's, nor the measuring's.
//!
//! On its standard input it gets a player's token a line, and an empty line at the end; it opens a socket for each. On
//! its standard output it says where its echo server is, that all sockets are open, and then each frame: the event's
//! sequence, and when it came, in nanoseconds of the machine's clock. It ends with its standard input.

use std::{io::Write, net::SocketAddr, process::Stdio, time::Duration};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use garage_events::env::{Env, System};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::spawn_blocking,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};

/// Sockets opened at a time; each is a write to the log of who is where.
const AT_ONCE: usize = 128;

/// For one socket to be opened, and for one frame to come.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Frames that may wait to be told of.
const QUEUE: usize = 65_536;

/// What a process of clients says, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Echo(SocketAddr),
    Open(usize),
    Frame(u64, i128),
    Closed(String),
}

/// The other side of `gateway`: clients in a process of their own.
#[derive(Debug, clap::Args)]
pub(crate) struct Clients {
    /// The gateway's URL.
    gateway: String,
}

impl Clients {
    pub(in super::super) async fn run(self) -> anyhow::Result<()> {
        let (say, said) = mpsc::channel(QUEUE);
        spawn_blocking(move || tell(said));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say.send(Report::Echo(listener.local_addr()?)).await?;
        tokio::spawn(echo(listener));

        let tokens = spawn_blocking(|| {
            let lines = std::io::stdin().lines().take_while(|line| line.as_ref().is_ok_and(|token| !token.is_empty()));
            lines.collect::<std::io::Result<Vec<_>>>()
        });
        let tokens = tokens.await??;
        let open = stream::iter(&tokens).map(|token| open(&self.gateway, token)).buffer_unordered(AT_ONCE);
        let sockets: Vec<Socket> = open.try_collect().await?;
        let count = sockets.len();
        for socket in sockets {
            tokio::spawn(listen(socket, say.clone()));
        }
        say.send(Report::Open(count)).await?;
        spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
        Ok(())
    }
}

fn tell(mut said: mpsc::Receiver<Report>) -> anyhow::Result<()> {
    let (mut output, mut batch) = (std::io::stdout(), Vec::new());
    while said.blocking_recv_many(&mut batch, 1_000) > 0 {
        let mut text = Vec::new();
        for said in batch.drain(..) {
            serde_json::to_writer(&mut text, &said)?;
            text.push(b'\n');
        }
        output.write_all(&text)?;
        output.flush()?;
    }
    Ok(())
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn open(gateway: &str, token: &str) -> anyhow::Result<Socket> {
    let mut request = format!("{}/v1/ws", gateway.replacen("http", "ws", 1)).into_client_request()?;
    request.headers_mut().insert("authorization", HeaderValue::from_str(&format!("Bearer {token}"))?);
    // By default 128 KiB each way are taken at once.
    let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
    let opening = connect_async_with_config(request, Some(config), true);
    Ok(timeout(MAX_WAIT, opening).await.context("the gateway does not answer")?.context("cannot open a socket")?.0)
}

#[derive(Deserialize)]
struct SequenceOnly {
    seq: u64,
}

async fn listen(mut socket: Socket, say: mpsc::Sender<Report>) {
    let why = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let now = System.now().unix_timestamp_nanos();
                let said = match serde_json::from_str::<SequenceOnly>(&text) {
                    Ok(SequenceOnly { seq }) => Report::Frame(seq, now),
                    Err(error) => break format!("a frame that cannot be read: {error}"),
                };
                if say.send(said).await.is_err() {
                    return;
                }
            }
            Some(Ok(Message::Close(close))) => break format!("closed: {close:?}"),
            // Pings are answered by tungstenite.
            Some(Ok(_)) => {}
            Some(Err(error)) => break error.to_string(),
            None => break "ended".into(),
        }
    };
    let _ = say.send(Report::Closed(why)).await;
}

/// Answers every request with the same, as little as HTTP lets it do.
async fn echo(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut request = Vec::with_capacity(1_024);
            while stream.read_buf(&mut request).await? > 0 {
                if request.ends_with(b"\r\n\r\n") {
                    request.clear();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await?;
                }
            }
            std::io::Result::Ok(())
        });
    }
}

/// A process of clients, as it is seen from here.
#[derive(Debug)]
pub(super) struct Remote {
    said: Lines<BufReader<ChildStdout>>,
    echo: SocketAddr,
    _input: ChildStdin,
    /// Killed when this is dropped.
    _process: Child,
}

/// Starts one, and waits until all its sockets are open.
///
/// # Errors
/// When one cannot be opened.
pub(super) async fn start(gateway: &str, tokens: &[String]) -> anyhow::Result<Remote> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "gateway-clients", gateway]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.kill_on_drop(true).spawn().context("cannot start the clients")?;
    let mut input = process.stdin.take().context("no way to the clients")?;
    let output = process.stdout.take().context("no way from the clients")?;
    let mut said = BufReader::new(output).lines();
    let Report::Echo(echo) = next(&mut said).await? else { anyhow::bail!("the clients said something else") };
    for token in tokens {
        input.write_all(format!("{token}\n").as_bytes()).await?;
    }
    input.write_all(b"\n").await?;
    input.flush().await?;
    match next(&mut said).await? {
        Report::Open(count) if count == tokens.len() => {}
        other => anyhow::bail!("not all sockets are open: {other:?}"),
    }
    Ok(Remote { said, echo, _input: input, _process: process })
}

async fn next(said: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Report> {
    let line = said.next_line().await?.context("the clients have ended")?;
    match serde_json::from_str(&line)? {
        Report::Closed(why) => anyhow::bail!("a socket went: {why}"),
        said => Ok(said),
    }
}

impl Remote {
    /// Where its echo server is.
    pub(super) fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// The next frame that came to any of its sockets: the event's sequence, and when, in nanoseconds.
    ///
    /// # Errors
    /// When none comes, or a socket went.
    pub(super) async fn frame(&mut self) -> anyhow::Result<(u64, i128)> {
        match timeout(MAX_WAIT, next(&mut self.said)).await.context("a frame did not come")?? {
            Report::Frame(seq, at) => Ok((seq, at)),
            other => anyhow::bail!("the clients said {other:?}"),
        }
    }
}
