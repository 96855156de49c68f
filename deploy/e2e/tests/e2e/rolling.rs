//! Workers that are restarted in order, one after another, while players keep coming.

use std::{env, pin::pin, time::Duration};

use garage_stack::{
    bot::{Bot, Played},
    workers::Worker,
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use crate::support::{
    Garage, Setup,
    history::{self, assert_notified, paid},
    until,
};

/// New players a second.
const RATE: usize = 50;

/// Players of a match. A match costs a process and an RSA key (100 ms of a core), a player his sockets and requests:
/// two cores carry 50 new players a second in matches of 16, three a second, and do not in matches of two, 25 a second.
const PLAYERS: usize = 16;

const QUEUES: &str =
    "[queues.ranked]\nplayers = 16\nrank_band = 200\ntimeout_s = 600\n[queues.ranked.regions]\neu = 120\n";

/// How long a player waits for anything. This test is about what is lost, not about how fast the machine is.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// How long all restarts may take, beyond what is asked for.
const BOUND: Duration = Duration::from_secs(300);

/// How long players come and workers are restarted: `GARAGE_ROLLING_S` seconds, by default 25, a few rounds of restarts.
fn at_least() -> Duration {
    let seconds = env::var("GARAGE_ROLLING_S").ok().map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(25))
}

/// Restarts every instance of every worker, one after another, each when the one before is ready again.
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

/// Restarts all again and again until that time is over, from the first match's end on; tells how long it took.
async fn restart_for(garage: &mut Garage, at_least: Duration) -> Duration {
    garage.until_event("Closed", 1).await;
    let began = Instant::now();
    loop {
        restart_all(garage).await;
        if began.elapsed() >= at_least {
            return began.elapsed();
        }
    }
}

/// Lets players come at [`RATE`] and play, until the restarts are done and the last match is full.
async fn play_through<T>(bots: &[Bot], restarts: impl Future<Output = T>) -> (Vec<(String, Played)>, T) {
    let mut restarts = pin!(restarts);
    let mut restarted = None;
    let mut arrivals = interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
    let (mut arrived, mut playing, mut played) = (0, JoinSet::new(), Vec::new());
    loop {
        tokio::select! {
            done = &mut restarts, if restarted.is_none() => restarted = Some(done),
            _ = arrivals.tick(), if restarted.is_none() || arrived % PLAYERS > 0 => {
                let bot = bots[arrived].clone();
                playing.spawn(async move { (bot.player.clone(), bot.play("ranked").await) });
                arrived += 1;
            }
            Some(done) = playing.join_next() => {
                let (player, result) = done.unwrap();
                played.push((player, result.unwrap_or_else(|error| panic!("{error}"))));
            }
            else => break,
        }
    }
    assert_eq!(played.len(), arrived);
    (played, restarted.unwrap())
}

#[tokio::test]
async fn nobody_notices_that_every_worker_is_restarted_at_50_new_players_a_second() {
    // A machine that is busy besides must not cost an attempt.
    let setup = Setup::short().instances(2).queues(QUEUES).env("GARAGE_READY_S", "60");
    let mut garage = setup.start().await;
    let gateways = garage.stack.gateways();
    let bot = |number: usize| {
        let his = [&gateways[number % 2], &gateways[(number + 1) % 2]];
        garage.bot(&format!("player-{number}")).with_gateways(&his).with_max_wait(MAX_WAIT)
    };
    let seconds = usize::try_from((at_least() + BOUND).as_secs()).unwrap();
    let bots: Vec<_> = (0..RATE * seconds).map(bot).collect();

    let (played, restarted) = play_through(&bots, restart_for(&mut garage, at_least())).await;

    let arrived = played.len();
    let breaks: u32 = played.iter().map(|(_, played)| played.breaks).sum();
    eprintln!("{arrived} players; workers restarted for {restarted:?}; {breaks} sockets broken");
    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), arrived / PLAYERS);
    assert_eq!(history::count(&events, "PodRequested"), arrived / PLAYERS, "no second attempt");
    assert_eq!(history::count(&events, "PodFailed"), 0);
    assert!(breaks > 0, "no socket was open when its gateway went");
    for (player, played) in &played {
        let received: Vec<_> = played.frames.iter().map(|frame| &*frame.type_name).collect();
        assert_eq!(received, ["Queued", "Matched", "PlayerMatched", "Released"], "{player}");
        assert_notified(&events, player, &played.frames);
        assert_eq!(paid(&events, player).len(), 1, "{player}");
    }
}
