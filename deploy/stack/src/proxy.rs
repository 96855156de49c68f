//! A TCP proxy on loopback that can cut and delay its connections.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use garage_events::deadline::receive;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A proxy between clients and a target. It runs on the tokio runtime that started it, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: DropGuard,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cut: bool,
    delay: Duration,
    /// The token of the current connections. A cut cancels and replaces it.
    live: CancellationToken,
}

impl Proxy {
    /// Starts to accept on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, state: Mutex::default() });
        let accepting = CancellationToken::new();
        tokio::spawn(accepting.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared))));
        Ok(Self { address, shared, _accepting: accepting.drop_guard() })
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and, until [`mend`](Self::mend), each new one at once. The port remains bound.
    pub fn cut(&self) {
        self.shared.with(|state| {
            state.cut = true;
            std::mem::take(&mut state.live).cancel();
        });
    }

    /// Ends a cut: new connections work again.
    pub fn mend(&self) {
        self.shared.with(|state| state.cut = false);
    }

    /// Delays every byte by this time, in both directions, also on existing connections. It does not reduce throughput.
    pub fn delay(&self, delay: Duration) {
        self.shared.with(|state| state.delay = delay);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                // Read both under one lock: a later cut then cancels this token.
                let live = shared.with(|state| (!state.cut).then(|| state.live.clone()));
                if let Some(live) = live {
                    let relay = relay(client, Arc::clone(&shared), live.clone());
                    tokio::spawn(live.run_until_cancelled_owned(relay));
                }
            }
            // Probably a lack of file descriptors. The pause avoids a busy loop.
            Err(error) => {
                tracing::warn!(%error, "proxy cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn relay(client: TcpStream, shared: Arc<Shared>, live: CancellationToken) {
    let Ok(server) = TcpStream::connect(shared.target).await else { return };
    // Otherwise Nagle's algorithm would delay small writes.
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // An error on one side closes both sides.
    let up = one_way(from_client, to_server, &shared, &live);
    let _ = tokio::try_join!(up, one_way(from_server, to_client, &shared, &live));
}

/// Copies one direction. Reading and writing are separate, so that a delay applies to each chunk and does not add up.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    live: &CancellationToken,
) -> io::Result<()> {
    // The queue holds at most 16 MiB (chunks of 64 KiB). Further data waits in the sender's socket.
    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(256);
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from.read(&mut buffer).await?;
            let due = Instant::now() + shared.with(|state| state.delay);
            let chunk = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if length == 0 || queue.send((due, chunk)).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Ok((due, chunk)) = receive(&mut queued, live).await {
            tokio::time::sleep_until(due).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}
