//! Everything that can fail fails, again and again, while players come and go. Then it must all have come right.

mod faults;

use std::{env, str::FromStr, time::Duration};

use garage_stack::proxy::Proxy;
use tokio::time::{Instant, timeout};

use self::faults::Faults;
use crate::{
    support::{Garage, Setup, crowd::Crowd},
    verify,
};

/// Matches of four: a match costs a process and a key, a player next to nothing. Whoever finds no opponents gives up.
const QUEUES: &str =
    "[queues.ranked]\nplayers = 4\nrank_band = 200\ntimeout_s = 20\n[queues.ranked.regions]\neu = 120\n";

/// Players who are there at a time.
const AT_ONCE: usize = 80;

/// How long it may take until all is in order when the last player has gone.
const SETTLING: Duration = Duration::from_secs(60);

/// What a run is asked for: `FOR` seconds of faults, drawn from `SEED`, on `NODES` nodes of NATS.
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
    Some(value.parse().unwrap_or_else(|_| panic!("GARAGE_CHAOS_{name}={value} is no number")))
}

/// Puts proxies between each worker and NATS, which can cut it off.
async fn put_between(garage: &mut Garage) -> Vec<Vec<Proxy>> {
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

// The proxies run here: they must not wait for a thread that is busy with the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_whatever_fails() {
    let Run { time, seed, nodes } = Run::from_env();
    eprintln!("seed {seed}, {nodes} node(s) of NATS, {} s of faults", time.as_secs());
    let setup = Setup::short().instances(2).queues(QUEUES).env("GARAGE_GATEWAY_GRACE_S", "3");
    let mut garage = if nodes == 1 { setup.start().await } else { setup.three_nodes().start().await };
    let proxies = put_between(&mut garage).await;

    let crowd = Crowd::come(&garage, seed, time, AT_ONCE);
    let mut faults = Faults::new(proxies, seed);
    faults.strike(&mut garage, time).await;
    eprint!("{faults}");
    // Who is there plays on to his end, and has his own deadlines.
    let mended = Instant::now();
    let players = crowd.leave().await;
    eprintln!("{players}all gone {:.1} s after the last fault", mended.elapsed().as_secs_f64());
    let gone = Instant::now();
    let settled = timeout(SETTLING, garage.settled()).await;
    let events = settled.unwrap_or_else(|_| panic!("seed {seed}: not settled within {SETTLING:?}"));
    eprintln!("settled after {:.1} s more; {} events", gone.elapsed().as_secs_f64(), events.len());
    eprint!("{}", verify::holds(&garage).await);

    players.assert_served(seed, &events);
}
