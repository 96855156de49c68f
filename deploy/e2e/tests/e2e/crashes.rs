//! Workers that are killed and restarted.

use garage_stack::workers::Worker;

use crate::support::{
    Garage, NO_REQUEUE, Setup,
    history::{self, assert_notified, paid},
    play, until,
};

/// Kills a worker as soon as the log has `count` events of a type, and starts it again.
async fn kill_at(garage: &mut Garage, (type_name, count, worker): (&str, usize, Worker)) {
    garage.until_event(type_name, count).await;
    garage.kill_and_restart(worker);
}

#[tokio::test]
async fn a_restarted_director_finds_its_game_servers() {
    let script = "real --distance-m 300 --join-timeout-ms 20000 --race-timeout-ms 30000";
    let mut garage = Setup::short().game_server(script).start().await;
    let bots = garage.bots("player", 6);

    let faults = async {
        kill_at(&mut garage, ("PodRequested", 2, Worker::Director)).await;
        garage.until_event("Opened", 3).await;
        let before = garage.stack.game_servers();
        assert_eq!(before.len(), 3);
        garage.kill_and_restart(Worker::Director);
        garage.stack.wait_ready().await.unwrap();
        assert_eq!(garage.stack.game_servers(), before);
    };
    let (played, ()) = tokio::join!(play(&bots), faults);

    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), 3);
    for (bot, played) in bots.iter().zip(&played) {
        assert_notified(&events, &bot.player, &played.frames);
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
    // The restarted director continues unfinished requests in time. But the first one may have died between a server's
    // `started` marker and its start. Then the server never starts, and the attempt fails.
    let requested = history::count(&events, "PodRequested");
    assert!(requested <= 4, "{requested} requests");
}

#[tokio::test]
async fn every_match_finishes_whichever_worker_is_killed() {
    // A killed worker's messages are redelivered after five seconds. No attempt may time out by that.
    let mut garage = Setup::short().start().await;
    let bots = garage.bots("player", 6);
    // Two rounds of three matches. Each worker is killed at two moments at which it has the most work in progress.
    let rounds = [
        [
            ("Queued", 2, Worker::Matchmaker),
            ("Matched", 1, Worker::Session),
            ("PlayerMatched", 1, Worker::Gateway),
            ("Closed", 1, Worker::Inventory),
        ],
        [
            ("Queued", 8, Worker::Gateway),
            ("Matched", 4, Worker::Inventory),
            ("PodScheduled", 4, Worker::Session),
            ("Finished", 4, Worker::Matchmaker),
        ],
    ];
    let mut frames = vec![Vec::new(); bots.len()];
    for round in rounds {
        let faults = async {
            for fault in round {
                kill_at(&mut garage, fault).await;
            }
        };
        let (played, ()) = tokio::join!(play(&bots), faults);
        for (frames, played) in frames.iter_mut().zip(played) {
            frames.extend(played.frames);
        }
        garage.stack.wait_ready().await.unwrap();
    }

    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), 6);
    assert_eq!(history::count(&events, "PodRequested"), 6);
    for (bot, frames) in bots.iter().zip(&frames) {
        assert_notified(&events, &bot.player, frames);
        assert_eq!(paid(&events, &bot.player).len(), 2);
        let coins: u64 = paid(&events, &bot.player).iter().map(|event| event.number("amount")).sum();
        assert_eq!(bot.balance().await.unwrap(), 1_000 + coins);
    }
}

#[tokio::test]
async fn a_server_exit_without_a_running_director_is_noticed() {
    // The server exits while no director runs, so no director sees the exit.
    let script = "while [ ! -e $root/die ]; do sleep 0.1; done; exit 7";
    let mut garage = Setup::short().queues(NO_REQUEUE).env("GARAGE_ATTEMPTS", "1").game_server(script).start().await;
    let bots = garage.bots("player", 2);
    for bot in &bots {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("PodScheduled", 1).await;
    for director in garage.stack.instances(Worker::Director) {
        director.process.kill();
    }
    std::fs::write(garage.stack.root().join("die"), "").unwrap();
    until("the game server has ended", async || garage.stack.game_servers().is_empty().then_some(())).await;
    garage.kill_and_restart(Worker::Director);

    let events = garage.settled().await;
    let failed = events.iter().find(|event| event.type_name == "PodFailed").unwrap();
    assert_eq!((failed.text("reason"), history::count(&events, "Closed")), ("exited", 1));
}

#[tokio::test]
async fn workers_that_start_first_wait_for_nats_and_redis() {
    let mut garage = Setup::short().start().await;
    garage.stack.redis.kill();
    garage.stack.nats.kill();
    for worker in Worker::ALL {
        garage.kill_and_restart(worker);
    }
    until("every worker waits for NATS", async || {
        let waits = |worker: Worker| {
            let log = garage.stack.root().join(format!("logs/{}-0.log", worker.name()));
            std::fs::read_to_string(log).is_ok_and(|log| log.contains("waiting for NATS"))
        };
        Worker::ALL.into_iter().all(waits).then_some(())
    })
    .await;
    garage.stack.nats.node(0).unwrap().restart().await.unwrap();
    until("the session worker waits for Redis", async || {
        let log = garage.stack.root().join("logs/session-0.log");
        std::fs::read_to_string(log).is_ok_and(|log| log.contains("update the projections in Redis")).then_some(())
    })
    .await;
    garage.stack.redis.restart_empty().await.unwrap();
    garage.stack.wait_ready().await.unwrap();

    let bots = garage.bots("player", 2);
    play(&bots).await;
    assert_eq!(history::count(&garage.settled().await, "Finished"), 1);
}
