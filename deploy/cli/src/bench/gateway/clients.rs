//! The clients of the benchmark. They run in a separate process, so that they do not add to the memory of the gateway
//! or of the benchmark.
//!
//! The process reads one player's token per line from standard input, up to an empty line, and opens a socket for each.
//! To standard output it writes the address of its echo server, a line when all sockets are open, and then a line for
//! each frame: the event's sequence, and the time of arrival in Unix nanoseconds. It ends when its standard input is
//! closed.

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

/// Sockets that are opened at the same time. For each, the gateway writes an entry to NATS.
const CONCURRENCY: usize = 128;

/// Time-out for opening one socket, and for waiting for one frame.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Capacity of the channel of reports that are not printed yet.
const QUEUE: usize = 65_536;

/// One line on standard output, in JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    /// The address of the echo server.
    Echo(SocketAddr),
    /// All sockets are open: their number.
    Open(usize),
    /// A frame: the event's sequence, and the time of arrival in Unix nanoseconds.
    Frame(u64, i128),
    /// A socket has closed: the reason.
    Closed(String),
}

/// Runs the clients for `bench gateway`, which starts them as a separate process.
#[derive(Debug, clap::Args)]
pub(crate) struct Clients {
    /// The URL of the gateway.
    gateway: String,
}

impl Clients {
    pub(in super::super) async fn run(self) -> anyhow::Result<()> {
        let (reports, received) = mpsc::channel(QUEUE);
        spawn_blocking(move || print_reports(received));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        reports.send(Report::Echo(listener.local_addr()?)).await?;
        tokio::spawn(echo(listener));

        let tokens = spawn_blocking(|| {
            let lines = std::io::stdin().lines().take_while(|line| line.as_ref().is_ok_and(|token| !token.is_empty()));
            lines.collect::<std::io::Result<Vec<_>>>()
        });
        let tokens = tokens.await??;
        let open = stream::iter(&tokens).map(|token| open(&self.gateway, token)).buffer_unordered(CONCURRENCY);
        let sockets: Vec<Socket> = open.try_collect().await?;
        let count = sockets.len();
        for socket in sockets {
            tokio::spawn(listen(socket, reports.clone()));
        }
        reports.send(Report::Open(count)).await?;
        spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
        Ok(())
    }
}

fn print_reports(mut reports: mpsc::Receiver<Report>) -> anyhow::Result<()> {
    let (mut output, mut batch) = (std::io::stdout(), Vec::new());
    while reports.blocking_recv_many(&mut batch, 1_000) > 0 {
        let mut text = Vec::new();
        for report in batch.drain(..) {
            serde_json::to_writer(&mut text, &report)?;
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
    // The default buffers are 128 KiB each.
    let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
    let opening = connect_async_with_config(request, Some(config), true);
    Ok(timeout(MAX_WAIT, opening).await.context("the gateway does not answer")?.context("cannot open a socket")?.0)
}

#[derive(Deserialize)]
struct SequenceOnly {
    seq: u64,
}

async fn listen(mut socket: Socket, reports: mpsc::Sender<Report>) {
    let reason = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let now = System.now().unix_timestamp_nanos();
                let report = match serde_json::from_str::<SequenceOnly>(&text) {
                    Ok(SequenceOnly { seq }) => Report::Frame(seq, now),
                    Err(error) => break format!("cannot read a frame: {error}"),
                };
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            Some(Ok(Message::Close(close))) => break format!("closed: {close:?}"),
            // tungstenite answers pings.
            Some(Ok(_)) => {}
            Some(Err(error)) => break error.to_string(),
            None => break "the connection ended".into(),
        }
    };
    let _ = reports.send(Report::Closed(reason)).await;
}

/// An HTTP server that does as little as possible: it answers every request with the same body.
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

/// The benchmark's handle of a client process.
#[derive(Debug)]
pub(super) struct Remote {
    reports: Lines<BufReader<ChildStdout>>,
    echo: SocketAddr,
    _input: ChildStdin,
    /// Killed when the handle is dropped.
    _process: Child,
}

/// Starts a client process, and waits until all its sockets are open.
///
/// # Errors
/// If a socket cannot be opened.
pub(super) async fn start(gateway: &str, tokens: &[String]) -> anyhow::Result<Remote> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "gateway-clients", gateway]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.kill_on_drop(true).spawn().context("cannot start the clients")?;
    let mut input = process.stdin.take().context("the clients have no standard input")?;
    let output = process.stdout.take().context("the clients have no standard output")?;
    let mut reports = BufReader::new(output).lines();
    let Report::Echo(echo) = next(&mut reports).await? else { anyhow::bail!("unexpected report of the clients") };
    for token in tokens {
        input.write_all(format!("{token}\n").as_bytes()).await?;
    }
    input.write_all(b"\n").await?;
    input.flush().await?;
    match next(&mut reports).await? {
        Report::Open(count) if count == tokens.len() => {}
        other => anyhow::bail!("not all sockets are open: {other:?}"),
    }
    Ok(Remote { reports, echo, _input: input, _process: process })
}

async fn next(reports: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Report> {
    let line = reports.next_line().await?.context("the clients have ended")?;
    match serde_json::from_str(&line)? {
        Report::Closed(reason) => anyhow::bail!("a socket closed: {reason}"),
        report => Ok(report),
    }
}

impl Remote {
    /// The address of the echo server.
    pub(super) fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// The next frame at any of the sockets: the event's sequence, and the time of arrival in Unix nanoseconds.
    ///
    /// # Errors
    /// If no frame arrives in time, or a socket closes.
    pub(super) async fn frame(&mut self) -> anyhow::Result<(u64, i128)> {
        match timeout(MAX_WAIT, next(&mut self.reports)).await.context("no frame arrived in time")?? {
            Report::Frame(seq, at) => Ok((seq, at)),
            other => anyhow::bail!("unexpected report of the clients: {other:?}"),
        }
    }
}
