//! nats-server: one node, or a cluster whose routes can be cut.
//!
//! It runs in operator mode. One account, GARAGE, holds everything; its users and their rights are in [`Role`].

mod config;
mod monitor;
mod operator;
mod role;
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
use garage_worker::operator::Mint;
use time::OffsetDateTime;

use self::routes::Routes;
pub use self::{operator::Operator, role::Role};
use super::binary;
use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
};

/// One nats-server or a cluster of them, with JetStream.
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
    /// By loopback, on which it listens whatever else it does.
    client: SocketAddr,
    monitor: SocketAddr,
}

/// How the nodes of a cluster reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wiring {
    Direct,
    Proxied,
}

impl Nats {
    /// Starts `nodes` nats-servers in `<root>/nats-1`, `<root>/nats-2` …, on the data that is there, and waits until
    /// JetStream works on each; a cluster is named `garage`.
    ///
    /// # Errors
    /// When nats-server is missing or does not answer in time.
    pub async fn start(root: &Path, nodes: usize) -> Result<Self> {
        Self::start_wired(root, nodes, Wiring::Direct, Ipv4Addr::LOCALHOST.into()).await
    }

    /// The same for clients that come by another address of this machine too. The nodes then listen on every address:
    /// nats-server knows one, or all.
    ///
    /// # Errors
    /// When nats-server is missing or does not answer in time.
    pub async fn start_reachable(root: &Path, nodes: usize, by: IpAddr) -> Result<Self> {
        let listen = match by {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => by,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::start_wired(root, nodes, Wiring::Direct, listen).await
    }

    /// The same with every route through a proxy of its own, for [`cut_routes`](Self::cut_routes). The proxies run on
    /// the tokio runtime of this call.
    ///
    /// # Errors
    /// When nats-server is missing or does not answer in time.
    pub async fn start_cuttable(root: &Path, nodes: usize) -> Result<Self> {
        Self::start_wired(root, nodes, Wiring::Proxied, Ipv4Addr::LOCALHOST.into()).await
    }

    async fn start_wired(root: &Path, nodes: usize, wiring: Wiring, listen: IpAddr) -> Result<Self> {
        let mut left = ports::STARTS;
        loop {
            left -= 1;
            match Self::try_start(root, nodes, wiring, listen).await {
                Err(Error::PortTaken { .. }) if left > 0 => {}
                result => return result,
            }
        }
    }

    async fn try_start(root: &Path, count: usize, wiring: Wiring, on: IpAddr) -> Result<Self> {
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
            let text = config::server(&config::Server {
                name: &name,
                client: SocketAddr::new(on, client.port()),
                monitor,
                store: &folder.join("jetstream"),
                operator: &operator,
                cluster,
            });
            let file = folder.join("nats.conf");
            secret::write_private(&file, &text)?;
            let process = Launch::new(name, &program, folder.join("log")).arg("-c").arg(file).spawn()?;
            nodes.push(Node { process, client, monitor });
        }
        // Each by itself first: one that found its port taken would otherwise look like a cluster that is slow to form.
        for node in &mut nodes {
            node.wait_answers().await?;
        }
        let mut nats = Self { nodes, routes, operator };
        nats.wait_healthy().await?;
        Ok(nats)
    }

    /// Waits until every node says that it is healthy (JetStream is on, and it is as far as the leader in every stream
    /// and consumer that it holds), is connected to all others, and sees the same leader as they.
    ///
    /// # Errors
    /// When a node has ended or is not there in time.
    pub async fn wait_healthy(&mut self) -> Result<()> {
        let monitors: Vec<SocketAddr> = self.nodes.iter().map(|node| node.monitor).collect();
        for node in &mut self.nodes {
            let monitor = node.monitor;
            // Health alone is not enough: a leader that was just cut off believes for seconds that all is well.
            let healthy = async || {
                monitor::healthy(monitor, "/healthz").await
                    && monitor::peers(monitor).await == Some(monitors.len() - 1)
                    && (monitors.len() == 1 || agreed_leader(&monitors).await)
            };
            node.process.wait_until("become healthy", healthy).await?;
        }
        Ok(())
    }

    /// The addresses of all nodes, `nats://127.0.0.1:<port>`, comma separated.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// The same by another address of this machine.
    #[must_use]
    pub fn url_by(&self, address: IpAddr) -> String {
        let url = |node: &Node| format!("nats://{}", SocketAddr::new(address, node.client.port()));
        self.nodes.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// The file with the credentials of the role's user.
    #[must_use]
    pub fn credentials(&self, role: Role) -> PathBuf {
        self.operator.credentials(role)
    }

    /// The file with the seed of the key that games' users are signed with.
    #[must_use]
    pub fn game_signing_key(&self) -> PathBuf {
        self.operator.game_signing_key()
    }

    /// The credentials of a game server, as session makes them.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn game(&self, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Result<Secret> {
        let read = |file: PathBuf| {
            fs::read_to_string(&file).map(Secret::new).map_err(Error::io(format!("read {}", file.display())))
        };
        let (key, own) = (read(self.game_signing_key())?, read(self.credentials(Role::Session))?);
        let made = Mint::new(&key, &own).and_then(|mint| mint.game(session, attempt, ends_at));
        made.map_err(Error::other("make a game's user"))
    }

    /// What a client of the role needs to connect, to which callers may add.
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

    /// Connects as the role, to whichever node.
    ///
    /// # Errors
    /// When no node takes the connection.
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

    /// A node, counted from 0: node 0 is the server `nats-1`.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).ok_or(Error::NoSuchNode(index))
    }

    /// The files that hold what the nodes printed.
    pub(crate) fn logs(&self) -> impl Iterator<Item = PathBuf> {
        self.nodes.iter().map(|node| node.process.log().to_owned())
    }

    /// The index of the node that leads the cluster's assignments, in the eyes of most nodes that answer. `None` while
    /// there is none, and without a cluster.
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

    /// Cuts the node off from the other nodes, in both directions; its clients keep it.
    ///
    /// # Errors
    /// When there is no such node, or the routes are direct.
    pub fn cut_routes(&self, index: usize) -> Result<()> {
        self.routes_of(index)?.of(index).for_each(|proxy| proxy.cut());
        Ok(())
    }

    /// Undoes [`cut_routes`](Self::cut_routes). The nodes find each other again after about a second.
    ///
    /// # Errors
    /// When there is no such node, or the routes are direct.
    pub fn mend_routes(&self, index: usize) -> Result<()> {
        self.routes_of(index)?.of(index).for_each(|proxy| proxy.mend());
        Ok(())
    }

    /// Makes what goes between the node and the others arrive this much later, in each direction; zero undoes it.
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

    /// Ends all nodes in order.
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

    /// All are told before any is waited for, so that it takes the time of one.
    fn terminate(&mut self) {
        for node in &mut self.nodes {
            // One that does not run needs no telling.
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

    /// `http://127.0.0.1:<port>`: `/varz`, `/jsz`, `/healthz` and so on.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor)
    }

    /// How many other nodes it is connected to. `None` when it does not answer.
    pub async fn peers(&self) -> Option<usize> {
        monitor::peers(self.monitor).await
    }

    /// Kills it and starts it on the same ports and data. It is back when JetStream is on; in a cluster it may still
    /// have to catch up ([`Nats::wait_healthy`]).
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

async fn agreed_leader(monitors: &[SocketAddr]) -> bool {
    let mut seen = BTreeSet::new();
    for monitor in monitors {
        seen.insert(monitor::leader(*monitor).await);
    }
    seen.len() == 1 && !seen.contains(&None)
}
