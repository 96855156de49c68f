//! Network failures between the NATS nodes.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::future::join_all;

use crate::support::{
    Setup,
    history::{assert_notified, of_player},
};

/// How long a route is cut. A node notices at once, and the others elect a new leader in about this time. This sleep is
/// the fault itself, not a wait for a condition.
const CUT: Duration = Duration::from_secs(1);

/// The pause between two commands of a player.
const PAUSE: Duration = Duration::from_millis(20);

// The proxies run in this runtime: with several threads, they never wait for the test's own work.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_route_cut_for_a_second_loses_no_frame() {
    let mut garage = Setup::short().three_nodes().start().await;
    // Each player has a rank that matches no other player.
    let bots: Vec<_> = (0..4).map(|number| garage.ranked(&format!("player-{number}"), number * 10_000)).collect();
    let mut event_streams = join_all(bots.iter().map(async |bot| bot.event_stream().await.unwrap())).await;

    let stop = AtomicBool::new(false);
    let commands = bots.iter().map(async |bot| {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            let ticket = bot.queue("ranked").await.unwrap();
            tokio::time::sleep(PAUSE).await;
            bot.cancel(&ticket).await.unwrap();
            tokio::time::sleep(PAUSE).await;
            rounds += 1;
        }
        rounds
    });
    let listening = event_streams.iter_mut().map(async |event_stream| -> Infallible {
        loop {
            event_stream.next().await.unwrap();
        }
    });
    let (commands, listening) = (join_all(commands), join_all(listening));
    let faults = async {
        // Each node in turn, so that the gateway's node and the log's leader are among them.
        for node in 0..3 {
            garage.until_event("Cancelled", 20 * (node + 1)).await;
            garage.stack.nats.cut_routes(node).unwrap();
            tokio::time::sleep(CUT).await;
            garage.stack.nats.mend_routes(node).unwrap();
            garage.stack.nats.wait_healthy().await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    };
    let rounds = tokio::select! {
        (rounds, ()) = async { tokio::join!(commands, faults) } => rounds,
        _ = listening => unreachable!(),
    };

    let events = garage.settled().await;
    for ((bot, rounds), event_stream) in bots.iter().zip(rounds).zip(&mut event_streams) {
        // The last frames may still be in flight.
        let logged = of_player(&events, &bot.player).len();
        assert_eq!(logged, 2 * rounds, "each command of {} occurs once", bot.player);
        while event_stream.frames().len() < logged {
            event_stream.next().await.unwrap();
        }
        assert_notified(&events, &bot.player, event_stream.frames());
        assert_eq!(event_stream.breaks(), 0, "the gateway closed a socket");
    }
}
