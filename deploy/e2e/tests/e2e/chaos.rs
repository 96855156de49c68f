//! Injects random faults while players come and go. Afterwards everything must be in order.

mod faults;

use std::{env, str::FromStr, time::Duration};

use garage_stack::proxy::Proxy;
use tokio::time::{Instant, timeout};

use self::faults::Faults;
use crate::{
    support::{
        Garage, Setup,
        consumers::CreatedConsumers,
        crowd::{Crowd, Groups},
    },
    verify,
};

/// Two teams of two: a match costs a process and a key, a player almost nothing. Players without opponents time out.
const QUEUES: &str = "[queues.ranked]\nrule_set = \"pairs.json\"\ntimeout_s = 20\nregions = { eu = 120 }\n";
const PAIRS: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "rank", "type": "number"}],
    "teams": [{"name": "red", "minPlayers": 2, "maxPlayers": 2}, {"name": "blue", "minPlayers": 2, "maxPlayers": 2}],
    "rules": [{"name": "Near", "type": "batchDistance", "batchAttribute": "rank", "maxDistance": 200}]
}"#;

/// Every launcher passes on a relative path only. When [`faults`] ask for it, one runs no game server at all: it ignores
/// its arguments, and writes the path of its folder to a file.
const LAUNCHER: &str = "
    if mv $root/drop-arguments $root/dropping 2>/dev/null; then
        echo ${config%/*} > $root/dropped
        exec sleep 6000
    fi
    config=config.json";

/// Players at a time.
const AT_ONCE: usize = 80;

/// The size of each NATS node's disk, in MiB: more than ten minutes of faults need.
const DISK_MIB: u64 = 512;

/// How long everything may take to settle after the last player has finished.
const SETTLING: Duration = Duration::from_secs(60);

/// The mean number of consumers that NATS may create per second. The ten instances have ten readers. A restart of NATS
/// ends all of them, a fault of one worker up to three, and there is about one fault per second. Readers that
/// interrupted each other would exceed this even without a fault. Measured: 1.2 per second.
const MAX_CONSUMERS_PER_SECOND: f64 = 4.0;

/// The parameters of a run: `FOR` seconds of faults, drawn from `SEED`, on `NODES` NATS nodes.
struct Run {
    time: Duration,
    seed: u64,
    nodes: usize,
}

impl Run {
    fn from_env() -> Self {
        let time = Duration::from_secs(variable("FOR").unwrap_or(60));
        Self { time, seed: variable("SEED").unwrap_or(1), nodes: variable("NODES").unwrap_or(1) }
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = env::var(format!("GARAGE_CHAOS_{name}")).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("GARAGE_CHAOS_{name}={value} is not a number")))
}

/// Puts proxies between each worker and NATS, which can cut or delay the connection.
async fn insert_proxies(garage: &mut Garage) -> Vec<Vec<Proxy>> {
    let nodes: Vec<_> =
        garage.stack.nats.url().split(',').map(|url| url.strip_prefix("nats://").unwrap().parse().unwrap()).collect();
    let mut all = Vec::new();
    for instance in garage.stack.all_instances() {
        let mut proxies = Vec::new();
        for node in &nodes {
            proxies.push(Proxy::start(*node).await.unwrap());
        }
        let urls: Vec<_> = proxies.iter().map(|proxy| format!("nats://{}", proxy.address())).collect();
        instance.process.set_env("GARAGE_NATS_URL", Some(urls.join(",").into()));
        instance.process.restart().unwrap();
        all.push(proxies);
    }
    garage.stack.wait_ready().await.unwrap();
    all
}

// The proxies run in this runtime: with several threads, they never wait for the test's own work.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_work_is_lost_under_random_faults() {
    let Run { time, seed, nodes } = Run::from_env();
    eprintln!("seed {seed}, {nodes} NATS node(s), {} s of faults", time.as_secs());
    let setup = Setup::short()
        .instances(2)
        .queues(QUEUES)
        .rule_set("pairs.json", PAIRS)
        .game_server(LAUNCHER)
        .small_disks(DISK_MIB);
    let setup = setup.env("GARAGE_GATEWAY_GRACE_S", "3").env("GARAGE_READY_S", "10");
    let mut garage = if nodes == 1 { setup.start().await } else { setup.three_nodes().start().await };
    let proxies = insert_proxies(&mut garage).await;

    let crowd = Crowd::start(&garage, seed, time, AT_ONCE, Groups::Some);
    let mut faults = Faults::new(proxies, seed);
    let created = CreatedConsumers::count(&garage.admin).await;
    let faults_began = Instant::now();
    faults.inject(&mut garage, time).await;
    eprint!("{faults}");
    let per_second = created.total() as f64 / faults_began.elapsed().as_secs_f64();
    eprintln!("consumers created: {per_second:.1} per second, by stream {:?}", created.by_stream());
    assert!(per_second < MAX_CONSUMERS_PER_SECOND, "seed {seed}: {per_second:.1} consumers created per second");
    drop(created);
    // Players that have started play to the end, with their own deadlines.
    let faults_ended = Instant::now();
    let players = crowd.finish().await;
    eprintln!("{players}all players finished {:.1} s after the last fault", faults_ended.elapsed().as_secs_f64());
    let players_finished = Instant::now();
    let settled = timeout(SETTLING, garage.settled()).await;
    let events = settled.unwrap_or_else(|_| panic!("seed {seed}: not settled within {SETTLING:?}"));
    eprintln!("settled after {:.1} s more; {} events", players_finished.elapsed().as_secs_f64(), events.len());
    eprint!("{}", verify::until_valid(&garage).await);

    players.assert_served(seed, &events);
}
