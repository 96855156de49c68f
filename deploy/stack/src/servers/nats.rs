//! nats-server: one node, or a cluster with routes that can be cut.
//!
//! It runs in operator mode. The account GARAGE contains the log and all users; [`Role`] defines the users' rights.

mod config;
mod monitor;
mod routes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::{Client, ConnectOptions};
use garage_events::{game::Secret, id::SessionId};
use garage_nats::{Operator, Role};
use garage_worker::operator::Mint;
use time::OffsetDateTime;

use self::routes::Routes;
use super::binary;
use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// A single nats-server or a cluster, with JetStream.
#[derive(Debug)]
pub struct Nats {
    nodes: Vec<Node>,
    routes: Option<Routes>,
    operator: Operator,
}

/// One nats-server.
#[derive(Debug)]
pub struct Node {
    process: Process,
    /// The loopback address for clients. The node may listen on further addresses.
    client: SocketAddr,
    monitor: SocketAddr,
    /// The folder of its streams.
    store: PathBuf,
}

/// What each node stores at most, in bytes: enough for the default sizes of Garage's streams.
const MAX_FILE_STORE: u64 = 16 << 30;

/// How the nodes of a cluster reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wiring {
    Direct,
    Proxied,
}

impl Nats {
    /// Starts `nodes` nats-servers in `<root>/nats-1`, `<root>/nats-2` …, with the data that exists there, and waits
    /// until all of them are healthy.
    ///
    /// # Errors
    /// When nats-server is not installed or does not answer in time.
    pub async fn start(root: &Path, nodes: usize) -> Result<Self> {
        Self::start_limited(root, nodes, MAX_FILE_STORE).await
    }

    /// Like [`start`](Self::start), with another limit for what each node stores, in bytes.
    ///
    /// # Errors
    /// When nats-server is not installed or does not answer in time.
    pub async fn start_limited(root: &Path, nodes: usize, max_file_store: u64) -> Result<Self> {
        Self::start_wired(root, nodes, Wiring::Direct, Ipv4Addr::LOCALHOST.into(), max_file_store).await
    }

    /// Like [`start`](Self::start), but clients can also connect through another address of this machine. The nodes
    /// then listen on all addresses, because nats-server supports only one or all.
    ///
    /// # Errors
    /// When nats-server is not installed or does not answer in time.
    pub async fn start_reachable(root: &Path, nodes: usize, by: IpAddr) -> Result<Self> {
        let listen = match by {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => by,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::start_wired(root, nodes, Wiring::Direct, listen, MAX_FILE_STORE).await
    }

    /// Like [`start`](Self::start), with a proxy in each route, for [`cut_routes`](Self::cut_routes). The proxies run
    /// on the tokio runtime of the caller.
    ///
    /// # Errors
    /// When nats-server is not installed or does not answer in time.
    pub async fn start_cuttable(root: &Path, nodes: usize) -> Result<Self> {
        Self::start_wired(root, nodes, Wiring::Proxied, Ipv4Addr::LOCALHOST.into(), MAX_FILE_STORE).await
    }

    async fn start_wired(
        root: &Path,
        nodes: usize,
        wiring: Wiring,
        listen: IpAddr,
        max_file_store: u64,
    ) -> Result<Self> {
        let mut left = ports::STARTS;
        loop {
            left -= 1;
            match Self::try_start(root, nodes, wiring, listen, max_file_store).await {
                Err(Error::PortTaken { .. }) if left > 0 => {}
                result => return result,
            }
        }
    }

    async fn try_start(root: &Path, count: usize, wiring: Wiring, on: IpAddr, max_file_store: u64) -> Result<Self> {
        let program = binary::nats_server()?;
        let operator = Operator::renew(&root.join("secrets"))?;

        let mut cluster_addresses = Vec::new();
        for _ in 0..count {
            let [port] = ports::reserve()?;
            cluster_addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        let routes = match wiring {
            Wiring::Direct => None,
            Wiring::Proxied => Some(
                Routes::start(&cluster_addresses).await.map_err(Error::io("start the proxies between the nodes"))?,
            ),
        };
        let route_password = secret::random();

        let mut nodes = Vec::new();
        for (index, listen) in cluster_addresses.iter().copied().enumerate() {
            let name = format!("nats-{}", index + 1);
            let folder = root.join(&name);
            let [client, monitor] = ports::reserve()?.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            let peers = match &routes {
                Some(routes) => routes.from(index),
                None => cluster_addresses.iter().copied().filter(|peer| *peer != listen).collect(),
            };
            let cluster = (count > 1).then_some(config::Cluster {
                listen,
                peers,
                password: &route_password,
                discoverable: wiring == Wiring::Direct,
            });
            let store = folder.join("jetstream");
            let text = config::server(&config::Server {
                name: &name,
                client: SocketAddr::new(on, client.port()),
                monitor,
                store: &store,
                max_file_store,
                operator: &operator,
                cluster,
            });
            let file = folder.join("nats.conf");
            secret::write_private(&file, &text)?;
            let process = Launch::new(name, &program, folder.join("log")).arg("-c").arg(file).spawn()?;
            nodes.push(Node { process, client, monitor, store });
        }
        // First wait for each node alone. Otherwise a node whose port is in use would look like a cluster that forms
        // slowly.
        for node in &mut nodes {
            node.wait_answers().await?;
        }
        let mut nats = Self { nodes, routes, operator };
        nats.wait_healthy().await?;
        Ok(nats)
    }

    /// Waits until every node is healthy, is connected to all others, and sees the same leader. Healthy means that
    /// JetStream is enabled, and that all streams and consumers of the node have caught up with their leaders.
    ///
    /// # Errors
    /// When a node has ended, or the state is not reached in time.
    pub async fn wait_healthy(&mut self) -> Result<()> {
        let monitors: Vec<SocketAddr> = self.nodes.iter().map(|node| node.monitor).collect();
        for node in &mut self.nodes {
            let monitor = node.monitor;
            // The health check alone is not enough: a leader that was just cut off reports for seconds that it is
            // healthy.
            let healthy = async || {
                monitor::healthy(monitor, "/healthz").await
                    && monitor::peers(monitor).await == Some(monitors.len() - 1)
                    && (monitors.len() == 1 || agreed_leader(&monitors).await)
            };
            node.process.wait_until("become healthy", healthy).await?;
        }
        Ok(())
    }

    /// The URLs of all nodes, `nats://127.0.0.1:<port>`, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// The loopback addresses of all nodes for clients.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.client).collect()
    }

    /// Like [`url`](Self::url), with another address of this machine.
    #[must_use]
    pub fn url_by(&self, address: IpAddr) -> String {
        let url = |node: &Node| format!("nats://{}", SocketAddr::new(address, node.client.port()));
        self.nodes.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// The file with the credentials of this role's user.
    #[must_use]
    pub fn credentials(&self, role: Role) -> PathBuf {
        self.operator.credentials(role)
    }

    /// The file with the seed of the key that signs the users of game servers.
    #[must_use]
    pub fn game_signing_key(&self) -> PathBuf {
        self.operator.game_signing_key()
    }

    /// Creates credentials for the game server of one attempt, like the session worker does.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn game(&self, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Result<Secret> {
        let read = |file: PathBuf| {
            fs::read_to_string(&file).map(Secret::new).map_err(Error::io(format!("read {}", file.display())))
        };
        let (key, own) = (read(self.game_signing_key())?, read(self.credentials(Role::Session))?);
        let made = Mint::new(&key, &own).and_then(|mint| mint.game(session, attempt, ends_at));
        made.map_err(Error::other("create the user of a game server"))
    }

    /// Options with the credentials of this role. Callers may add further options.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub fn options(&self, role: Role) -> Result<ConnectOptions> {
        let file = self.credentials(role);
        let reading = || format!("read {}", file.display());
        let text = fs::read_to_string(&file).map_err(Error::io(reading()))?;
        let options = ConnectOptions::with_credentials(&text).map_err(Error::io(reading()))?;
        Ok(options.name(role.name()))
    }

    /// Connects to any node with the credentials of this role.
    ///
    /// # Errors
    /// When no node accepts the connection.
    pub async fn connect(&self, role: Role) -> Result<Client> {
        let urls = self.nodes.iter().map(Node::url).collect::<Vec<_>>();
        self.options(role)?
            .connect(urls.as_slice())
            .await
            .map_err(|source| Error::Connect { user: role.name(), source })
    }

    /// The number of nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The node with this index. Node 0 is the server `nats-1`.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`]
    pub fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).ok_or(Error::NoSuchNode(index))
    }

    /// All nodes.
    pub(crate) fn all_nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// The log files of the nodes.
    pub(crate) fn logs(&self) -> impl Iterator<Item = PathBuf> {
        self.nodes.iter().map(|node| node.process.log().to_owned())
    }

    /// The index of the meta leader, which assigns streams to nodes. It must be the leader in the view of a majority of
    /// all nodes. `None` if there is no such leader or no cluster.
    pub async fn meta_leader(&self) -> Option<usize> {
        let mut votes = BTreeMap::<String, usize>::new();
        for node in &self.nodes {
            if let Some(leader) = monitor::leader(node.monitor).await {
                *votes.entry(leader).or_default() += 1;
            }
        }
        let (leader, _) = votes.into_iter().find(|(_, votes)| *votes * 2 > self.nodes.len())?;
        self.nodes.iter().position(|node| node.process.name() == leader)
    }

    /// Cuts the node off from the other nodes, in both directions. Its clients stay connected.
    ///
    /// # Errors
    /// When there is no such node, or the routes are direct.
    pub fn cut_routes(&self, index: usize) -> Result<()> {
        self.routes_of(index)?.of(index).for_each(|proxy| proxy.cut());
        Ok(())
    }

    /// Ends [`cut_routes`](Self::cut_routes). The nodes reconnect after about a second.
    ///
    /// # Errors
    /// When there is no such node, or the routes are direct.
    pub fn mend_routes(&self, index: usize) -> Result<()> {
        self.routes_of(index)?.of(index).for_each(|proxy| proxy.mend());
        Ok(())
    }

    /// Delays all traffic between the node and the others by this time, in both directions. Zero ends the delay.
    ///
    /// # Errors
    /// When there is no such node, or the routes are direct.
    pub fn delay_routes(&self, index: usize, delay: Duration) -> Result<()> {
        self.routes_of(index)?.of(index).for_each(|proxy| proxy.delay(delay));
        Ok(())
    }

    fn routes_of(&self, index: usize) -> Result<&Routes> {
        if index >= self.nodes.len() {
            return Err(Error::NoSuchNode(index));
        }
        self.routes.as_ref().ok_or(Error::NotCuttable)
    }

    /// Shuts all nodes down cleanly.
    pub async fn stop(&mut self) {
        self.terminate();
        for node in &mut self.nodes {
            node.process.stop().await;
        }
    }

    /// Kills all nodes.
    pub fn kill(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Sends SIGTERM to all nodes before the caller waits for them, so that they stop in parallel.
    fn terminate(&mut self) {
        for node in &mut self.nodes {
            // An error means that the node is not running.
            let _ = node.process.terminate();
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.terminate();
    }
}

impl Node {
    /// `nats://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.client)
    }

    /// `http://127.0.0.1:<port>` of the monitoring pages: `/varz`, `/jsz`, `/healthz` and so on.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor)
    }

    /// The number of other nodes that it is connected to. `None` when it does not answer.
    pub async fn peers(&self) -> Option<usize> {
        monitor::peers(self.monitor).await
    }

    /// Why the node no longer stores messages, in the words of its health check. `None` if it stores them, or if it does
    /// not answer. After a write error, such as a full disk, a node stores nothing until it is restarted.
    pub async fn store_fault(&self) -> Option<String> {
        monitor::store_fault(self.monitor).await
    }

    /// The folder of its streams.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Kills the node, and starts it with the same ports and data. Returns when JetStream is enabled. In a cluster the
    /// node may still have to catch up; see [`Nats::wait_healthy`].
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait_answers().await
    }

    async fn wait_answers(&mut self) -> Result<()> {
        let monitor = self.monitor;
        let answers = async || monitor::healthy(monitor, "/healthz?js-enabled-only=true").await;
        self.process.wait_until("answer", answers).await
    }

    /// Shuts the node down cleanly.
    pub async fn stop(&mut self) {
        self.process.stop().await;
    }

    /// Kills the node.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Pauses the node until [`resume`](Self::resume); see [`Process::pause`].
    ///
    /// # Errors
    /// When the node is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Resumes the node.
    ///
    /// # Errors
    /// When the node is not running.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// The node's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

async fn agreed_leader(monitors: &[SocketAddr]) -> bool {
    let mut seen = BTreeSet::new();
    for monitor in monitors {
        seen.insert(monitor::leader(*monitor).await);
    }
    seen.len() == 1 && !seen.contains(&None)
}
