//! A network that is cut.

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

/// How long a route is cut: a node notices at once, and the others elect a new leader in its place in this time or
/// somewhat more. It is the fault itself; nothing is waited for by it.
const CUT: Duration = Duration::from_secs(1);

/// Between two commands of a player, who is no quicker than that.
const REST: Duration = Duration::from_millis(20);

// The proxies that can be cut run here: they must not wait for a thread that is busy with the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_route_cut_for_a_second_loses_no_frame() {
    let mut garage = Setup::short().three_nodes().start().await;
    // Each alone in his band of ranks.
    let bots: Vec<_> = (0..4).map(|number| garage.ranked(&format!("player-{number}"), number * 200)).collect();
    let mut event_streams = join_all(bots.iter().map(async |bot| bot.event_stream().await.unwrap())).await;

    let stop = AtomicBool::new(false);
    let restless = bots.iter().map(async |bot| {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            let ticket = bot.queue("ranked").await.unwrap();
            tokio::time::sleep(REST).await;
            bot.cancel(&ticket).await.unwrap();
            tokio::time::sleep(REST).await;
            rounds += 1;
        }
        rounds
    });
    let listening = event_streams.iter_mut().map(async |event_stream| -> Infallible {
        loop {
            event_stream.next().await.unwrap();
        }
    });
    let (restless, listening) = (join_all(restless), join_all(listening));
    let faults = async {
        // Each node in turn: the one that the gateway is connected to, and the log's leader, are among them.
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
        (rounds, ()) = async { tokio::join!(restless, faults) } => rounds,
        _ = listening => unreachable!(),
    };

    let events = garage.settled().await;
    for ((bot, rounds), event_stream) in bots.iter().zip(rounds).zip(&mut event_streams) {
        // The last of it may still be under way.
        let said = of_player(&events, &bot.player).len();
        assert_eq!(said, 2 * rounds, "each command of {} once", bot.player);
        while event_stream.frames().len() < said {
            event_stream.next().await.unwrap();
        }
        assert_notified(&events, &bot.player, event_stream.frames());
        assert_eq!(event_stream.breaks(), 0, "the gateway never hung up");
    }
}
