//! The outages of the table: a server, and what is wrong with it.

use std::{fmt, time::Duration};

use async_nats::jetstream::stream;
use garage_apiserver::ApiServer;
use garage_events::subject::STREAM;
use garage_nats::Operator;
use garage_stack::{proxy::Proxy, workers::Worker};
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use sqlx::{Connection, MySqlConnection};

use crate::support::{Garage, Setup};

/// A server that Garage depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Nats,
    Redis,
    MySql,
    /// The Kubernetes API server.
    Kubernetes,
}

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its process has ended.
    Stopped,
    /// Its process does not run, but its connections stay open.
    Paused,
    /// It closes each connection at once. The API server: it denies the permission.
    Refusing,
    /// Each answer takes a second longer.
    Slow,
    /// It stores nothing more.
    Full,
    /// It does not accept the workers' credentials.
    WrongCredentials,
}

/// An outage: one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell(pub(super) Server, pub(super) Fault);

impl Cell {
    /// All outages in the order of the table. A fault that a server cannot have, or that looks like another one, is
    /// left out.
    pub(super) const ALL: [Self; 18] = {
        use Fault::{Full, Paused, Refusing, Slow, Stopped, WrongCredentials};
        use Server::{Kubernetes, MySql, Nats, Redis};
        [
            Self(Nats, Stopped),
            Self(Nats, Paused),
            Self(Nats, Refusing),
            Self(Nats, Slow),
            Self(Nats, Full),
            Self(Nats, WrongCredentials),
            Self(Redis, Stopped),
            Self(Redis, Paused),
            Self(Redis, Slow),
            Self(Redis, Full),
            Self(Redis, WrongCredentials),
            Self(MySql, Stopped),
            Self(MySql, Paused),
            Self(MySql, Slow),
            Self(MySql, WrongCredentials),
            Self(Kubernetes, Stopped),
            Self(Kubernetes, Refusing),
            Self(Kubernetes, Slow),
        ]
    };
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Server::Nats => "NATS",
            Server::Redis => "Redis",
            Server::MySql => "MySQL",
            Server::Kubernetes => "API server",
        })?;
        f.write_str(match self.1 {
            Fault::Stopped => " stopped",
            Fault::Paused => " paused",
            Fault::Refusing => " refusing",
            Fault::Slow => " slow",
            Fault::Full => " full",
            Fault::WrongCredentials => " with wrong credentials",
        })
    }
}

/// A running Garage whose servers can be made to fail.
pub(super) struct Target {
    pub(super) garage: Garage,
    nats: Proxy,
    redis: Proxy,
    mysql: Proxy,
    cluster: Option<(ApiServer, Proxy)>,
    /// The size limit of the log, while [`Fault::Full`] has replaced it.
    max_bytes: Option<i64>,
}

/// How much longer an answer of a slow server takes, in each direction.
const DELAY: Duration = Duration::from_millis(500);

impl Target {
    /// Starts a Garage. Its workers reach NATS, Redis and the database through proxies.
    pub(super) async fn start() -> Self {
        Self::insert_proxies(Setup::long().start().await, None).await
    }

    /// The same, with game servers as pods. Nothing runs the pods: they wait for a node.
    pub(super) async fn start_on_a_cluster() -> Self {
        let api = ApiServer::start().await.unwrap();
        let config = Kubeconfig::from_yaml(&api.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let namespaces: Api<Namespace> = Api::all(Client::try_from(config).unwrap());
        let games = Namespace {
            metadata: ObjectMeta { name: Some("games".into()), ..Default::default() },
            ..Default::default()
        };
        namespaces.create(&PostParams::default(), &games).await.unwrap();
        let proxy = Proxy::start(api.url().strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap();
        let kubeconfig = api.kubeconfig().replace(&api.url(), &format!("http://{}", proxy.address()));
        let garage = Setup::long().on_cluster(&kubeconfig).start().await;
        Self::insert_proxies(garage, Some((api, proxy))).await
    }

    async fn insert_proxies(mut garage: Garage, cluster: Option<(ApiServer, Proxy)>) -> Self {
        let server = |url: &str| url.split(['/', '@']).rfind(|part| part.contains(':')).unwrap().parse().unwrap();
        let stack = &mut garage.stack;
        let (nats_url, redis_url) = (stack.nats.url(), stack.redis.url());
        let mysql_url = stack.database.url();
        let mysql_address = mysql_url.strip_suffix("/garage").unwrap();
        let nats = Proxy::start(server(&nats_url)).await.unwrap();
        let redis = Proxy::start(server(&redis_url)).await.unwrap();
        let mysql = Proxy::start(server(mysql_address)).await.unwrap();
        let reader_url = stack.redis.reader_url();
        let through = |url: &str, at: &str, proxy: &Proxy| url.replace(at, &proxy.address().to_string()).into();
        let at = |url: &str| server(url).to_string();
        for instance in stack.all_instances() {
            let process = &mut instance.process;
            process.set_env("GARAGE_NATS_URL", Some(through(&nats_url, &at(&nats_url), &nats)));
            let redis_url = if instance.worker == Worker::Gateway { &reader_url } else { &redis_url };
            process.set_env("GARAGE_REDIS_URL", Some(through(redis_url, &at(redis_url), &redis)));
            process.set_env("GARAGE_MYSQL_URL", Some(through(&mysql_url, &at(mysql_address), &mysql)));
            process.restart().unwrap();
        }
        stack.wait_ready().await.unwrap();
        Self { garage, nats, redis, mysql, cluster, max_bytes: None }
    }

    /// Begins an outage.
    pub(super) async fn begin(&mut self, Cell(server, fault): Cell) {
        let stack = &mut self.garage.stack;
        match (server, fault) {
            (_, Fault::Slow) => self.proxy(server).delay(DELAY),
            (Server::Kubernetes, Fault::Refusing) => self.cluster.as_ref().unwrap().0.deny("create", "pods"),
            (Server::Kubernetes, _) | (_, Fault::Refusing) => self.proxy(server).cut(),
            (Server::Nats, Fault::Stopped) => stack.nats.node(0).unwrap().kill(),
            (Server::Nats, Fault::Paused) => stack.nats.node(0).unwrap().pause().unwrap(),
            (Server::Nats, Fault::Full) => {
                let used = self.log().await.cached_info().state.bytes;
                self.max_bytes = Some(self.limit_log(i64::try_from(used).unwrap()).await);
            }
            (Server::Nats, Fault::WrongCredentials) => {
                // Of another installation of Garage.
                let other = Operator::renew(&stack.root().join("other")).unwrap();
                for instance in stack.all_instances() {
                    let role = instance.worker.role();
                    instance.process.set_env("GARAGE_NATS_CREDENTIALS", Some(other.credentials(role).into()));
                    instance.process.restart().unwrap();
                }
            }
            (Server::Redis, Fault::Stopped) => stack.redis.kill(),
            (Server::Redis, Fault::Paused) => stack.redis.pause().unwrap(),
            (Server::Redis, Fault::Full) => self.redis(&["CONFIG SET maxmemory 1"]).await,
            (Server::Redis, Fault::WrongCredentials) => {
                self.redis(&[
                    "ACL SETUSER gateway resetpass >another",
                    "ACL SETUSER default resetpass >another",
                    "CLIENT KILL TYPE normal SKIPME yes",
                ])
                .await;
            }
            (Server::MySql, Fault::Stopped) => stack.database.kill(),
            (Server::MySql, Fault::Paused) => stack.database.pause().unwrap(),
            (Server::MySql, Fault::WrongCredentials) => {
                let mut connection = MySqlConnection::connect(&stack.database.admin_url()).await.unwrap();
                for statement in ["ALTER USER 'garage'@'127.0.0.1' IDENTIFIED BY 'another'", "KILL USER garage"] {
                    sqlx::query(statement).execute(&mut connection).await.unwrap();
                }
            }
            (Server::MySql, Fault::Full) => unreachable!("not in the table"),
        }
    }

    /// Ends an outage, and waits until each worker is ready again.
    pub(super) async fn end(&mut self, Cell(server, fault): Cell) {
        let stack = &mut self.garage.stack;
        match (server, fault) {
            (_, Fault::Slow) => self.proxy(server).delay(Duration::ZERO),
            (Server::Kubernetes, Fault::Refusing) => self.cluster.as_ref().unwrap().0.allow("create", "pods"),
            (Server::Kubernetes, _) | (_, Fault::Refusing) => self.proxy(server).mend(),
            (Server::Nats, Fault::Stopped) => stack.nats.node(0).unwrap().restart().await.unwrap(),
            (Server::Nats, Fault::Paused) => stack.nats.node(0).unwrap().resume().unwrap(),
            (Server::Nats, Fault::Full) => {
                let before = self.max_bytes.take().unwrap();
                self.limit_log(before).await;
            }
            (Server::Nats, Fault::WrongCredentials) => {
                for worker in Worker::ALL {
                    let credentials = stack.nats.credentials(worker.role());
                    for instance in stack.instances(worker) {
                        instance.process.set_env("GARAGE_NATS_CREDENTIALS", Some(credentials.clone().into()));
                        instance.process.restart().unwrap();
                    }
                }
            }
            (Server::Redis, Fault::Paused) => stack.redis.resume().unwrap(),
            // The configuration has the right passwords and no limit.
            (Server::Redis, _) => stack.redis.restart_empty().await.unwrap(),
            (Server::MySql, Fault::Paused) => stack.database.resume().unwrap(),
            // The server sets the right passwords when it starts.
            (Server::MySql, _) => stack.database.restart().await.unwrap(),
        }
        self.garage.stack.wait_ready().await.unwrap();
    }

    fn proxy(&self, server: Server) -> &Proxy {
        match server {
            Server::Nats => &self.nats,
            Server::Redis => &self.redis,
            Server::MySql => &self.mysql,
            Server::Kubernetes => &self.cluster.as_ref().unwrap().1,
        }
    }

    async fn log(&self) -> stream::Stream {
        self.garage.jetstream().get_stream(STREAM).await.unwrap()
    }

    /// Sets the size limit of the log. Returns the limit before.
    async fn limit_log(&self, max_bytes: i64) -> i64 {
        let before = self.log().await.cached_info().config.clone();
        let config = stream::Config { max_bytes, ..before.clone() };
        self.garage.jetstream().update_stream(config).await.unwrap();
        before.max_bytes
    }

    async fn redis(&self, commands: &[&str]) {
        let mut connection = self.garage.redis().await;
        for command in commands {
            let mut words = command.split(' ');
            let mut command = redis::cmd(words.next().unwrap());
            for word in words {
                command.arg(word);
            }
            command.exec_async(&mut connection).await.unwrap();
        }
    }
}
