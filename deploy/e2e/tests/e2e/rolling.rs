//! A rolling restart: every instance of every worker restarts, one after another, while players keep arriving.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use garage_stack::{
    bot::{Bot, BotError, Played},
    workers::Worker,
};
use tokio::{task::JoinSet, time::Instant};

use crate::support::{
    Garage, Setup,
    history::{self, assert_notified, paid},
    players_runtime, until,
};

/// Players of a match. A match costs a process and an RSA key (50 to 100 ms of a core). A player costs only a socket
/// and some requests. So two cores can serve several times as many players in matches of 16 as in matches of two.
const PLAYERS: usize = 16;

/// Players at a time: six matches. When a player leaves, the next one arrives, so that the machine serves as many
/// players per second as it can.
const AT_ONCE: usize = 6 * PLAYERS;

/// More matches than two cores can play in a second.
const MAX_MATCHES_PER_S: usize = 6;

const QUEUES: &str =
    "[queues.ranked]\nplayers = 16\nrank_band = 200\ntimeout_s = 600\n[queues.ranked.regions]\neu = 120\n";

/// How long a player waits for anything. This test checks that nothing is lost. It does not check speed.
const MAX_WAIT: Duration = Duration::from_secs(240);

/// How long players arrive and workers restart: `GARAGE_ROLLING_S` seconds, by default 25, which is a few rounds of
/// restarts.
fn at_least() -> Duration {
    let seconds = env::var("GARAGE_ROLLING_S").ok().map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(25))
}

/// Restarts every instance of every worker, one after another. Each restart begins when the previous instance is ready.
async fn restart_all(garage: &mut Garage) {
    for worker in Worker::ALL {
        for instance in garage.stack.instances(worker) {
            let name = instance.process.name().to_owned();
            instance.process.terminate().unwrap();
            let ended = until(&format!("{name} ends"), async || instance.process.try_wait().unwrap()).await;
            assert!(ended.success(), "{name}: {ended}");
            instance.process.restart().unwrap();
            instance.wait_ready().await.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Restarts all workers for at least this time, from the end of the first match on. Returns the rounds and their time.
async fn restart_for(garage: &mut Garage, at_least: Duration) -> (usize, Duration) {
    garage.until_event("Closed", 1).await;
    let begin = Instant::now();
    let mut rounds = 0;
    loop {
        restart_all(garage).await;
        rounds += 1;
        if begin.elapsed() >= at_least {
            return (rounds, begin.elapsed());
        }
    }
}

/// Players that keep arriving, [`AT_ONCE`] at a time.
struct Arrivals {
    closed: Arc<AtomicBool>,
    tasks: JoinSet<Vec<(String, Result<Played, BotError>)>>,
}

impl Arrivals {
    /// Lets the bots arrive in their order; their number is a multiple of [`PLAYERS`].
    fn start(bots: Vec<Bot>) -> Self {
        let bots: Arc<[Bot]> = bots.into();
        let (closed, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (bots, closed, arrived) = (Arc::clone(&bots), Arc::clone(&closed), Arc::clone(&arrived));
            let play = async move {
                let mut played = Vec::new();
                while let Some(bot) = next(&closed, &arrived).and_then(|number| bots.get(number)) {
                    let result = bot.play("ranked").await;
                    if result.is_err() {
                        // The test fails. More players would only hide the cause.
                        closed.store(true, Ordering::SeqCst);
                    }
                    played.push((bot.player.clone(), result));
                }
                played
            };
            tasks.spawn_on(play, players_runtime());
        }
        Self { closed, tasks }
    }

    /// Starts only the players that complete the last match, and waits until all have played.
    async fn finish(self) -> Vec<(String, Played)> {
        self.closed.store(true, Ordering::SeqCst);
        let (mut played, mut errors) = (Vec::new(), Vec::new());
        for (player, result) in self.tasks.join_all().await.into_iter().flatten() {
            match result {
                Ok(result) => played.push((player, result)),
                Err(error) => errors.push(error.to_string()),
            }
        }
        assert!(errors.is_empty(), "{}", errors.join("\n"));
        played
    }
}

/// The number of the next player, or `None` if none is needed: arrivals are closed, and the last match is complete.
fn next(closed: &AtomicBool, arrived: &AtomicUsize) -> Option<usize> {
    let needed = |count: usize| !closed.load(Ordering::SeqCst) || !count.is_multiple_of(PLAYERS);
    arrived.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| needed(count).then_some(count + 1)).ok()
}

#[tokio::test]
async fn players_do_not_notice_that_every_worker_restarts() {
    let mut garage = Setup::short().instances(2).queues(QUEUES).start().await;
    let gateways = garage.stack.gateways();
    let bot = |number: usize| {
        let own = [&gateways[number % 2], &gateways[(number + 1) % 2]];
        garage.bot(&format!("player-{number}")).with_gateways(&own).with_max_wait(MAX_WAIT)
    };
    let matches = MAX_MATCHES_PER_S * usize::try_from((at_least() + MAX_WAIT).as_secs()).unwrap();
    let arrivals = Arrivals::start((0..matches * PLAYERS).map(bot).collect());

    let (rounds, time) = restart_for(&mut garage, at_least()).await;
    let played = arrivals.finish().await;

    let arrived = played.len();
    let breaks: u32 = played.iter().map(|(_, played)| played.breaks).sum();
    eprintln!("{arrived} players; {rounds} rounds of restarts in {time:?}; {breaks} sockets broken");
    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), arrived / PLAYERS);
    assert_eq!(history::count(&events, "PodRequested"), arrived / PLAYERS, "no second attempt");
    assert_eq!(history::count(&events, "PodFailed"), 0);
    assert!(breaks > 0, "no socket was open when its gateway stopped");
    for (player, played) in &played {
        let received: Vec<_> = played.frames.iter().map(|frame| &*frame.type_name).collect();
        assert_eq!(received, ["Queued", "Matched", "PlayerMatched", "Released"], "{player}");
        assert_notified(&events, player, &played.frames);
        assert_eq!(paid(&events, player).len(), 1, "{player}");
    }
}
