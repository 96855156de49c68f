//! `garage up` restarts what has ended, and a nats-server that stores nothing because its disk was full.

use std::{cell::RefCell, time::Duration};

use futures::future::join_all;
use garage_stack::{supervisor::supervise, workers::Worker};
use garage_worker::Shutdown;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Garage, Setup, play, until};

/// Supervises the stack of a Garage until `done`. The lines that `garage up` would print are in `said`.
async fn supervised<T>(garage: &mut Garage, said: &RefCell<Vec<String>>, done: impl Future<Output = T>) -> T {
    let shutdown = Shutdown::new();
    tokio::select! {
        done = done => done,
        () = supervise(&mut garage.stack, &shutdown, |line| said.borrow_mut().push(line)) => unreachable!("no shutdown"),
    }
}

fn has(said: &RefCell<Vec<String>>, parts: &[&str]) -> bool {
    said.borrow().iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

async fn readyz(client: &reqwest::Client, admin: &str) -> Option<(bool, String)> {
    let answer = client.get(format!("http://{admin}/readyz")).timeout(Duration::from_secs(1)).send().await.ok()?;
    Some((answer.status().is_success(), answer.text().await.ok()?))
}

#[tokio::test]
async fn a_process_that_ends_is_named_and_restarted() {
    let mut garage = Setup::short().start().await;
    let session = garage.stack.instances(Worker::Session).next().unwrap();
    let (admin, log) = (session.admin.clone(), session.process.log().display().to_string());
    let victims = [session.process.pid(), garage.stack.redis.process().pid(), garage.stack.database.process().pid()];
    let nats = garage.stack.nats.node(0).unwrap().process().pid();
    for pid in victims.into_iter().chain([nats]) {
        kill(Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    }
    let (said, client) = (RefCell::default(), reqwest::Client::new());
    supervised(&mut garage, &said, async {
        for name in ["session-0", "redis", "mariadb", "nats-1"] {
            until(&format!("{name} is restarted"), async || has(&said, &[name, "was restarted"]).then_some(())).await;
        }
        until("session is ready", async || readyz(&client, &admin).await.filter(|(ready, _)| *ready)).await;
    })
    .await;
    assert!(has(&said, &["session-0 ended (signal: 9 (SIGKILL)", &log, "restarting it in 1 s"]), "{said:?}");
    play(&garage.bots("player", 2)).await;
}

#[tokio::test]
async fn a_nats_server_whose_disk_was_full_is_named_everywhere_and_restarted() {
    let mut garage = Setup::short().small_disks(64).start().await;
    play(&garage.bots("before", 2)).await;
    let admins: Vec<_> = garage.stack.all_instances().map(|instance| instance.admin.clone()).collect();
    let dashboard = format!("{}/data.json", garage.stack.ops());
    let client = reqwest::Client::new();
    garage.disk.as_ref().unwrap().fill(0).unwrap();
    // The gateway notices it when players queue, and tells the other workers. The first tickets may still fit the end of
    // a block of the file. A bot repeats its request until it gets a ticket. These players are matched in another queue.
    let bots: Vec<_> = (0..20).map(|number| garage.bot(&format!("late-{number}"))).collect();
    let queueing = join_all(bots.iter().map(|bot| bot.queue("casual")));
    let named = until("every worker says that nothing is stored", async || {
        for admin in &admins {
            let (ready, text) = readyz(&client, admin).await?;
            let named = ["log: not storing since ", "restart this nats-server"].iter().all(|part| text.contains(part));
            (ready && named).then_some(())?;
        }
        let shown = client.get(&dashboard).send().await.ok()?.json::<serde_json::Value>().await.ok()?;
        shown["log"].as_str()?.starts_with("not storing since ").then_some(())
    });
    tokio::select! {
        () = named => {}
        queued = queueing => panic!("all tickets were stored, or no bot waits: {queued:?}"),
    }
    let metrics = client.get(format!("http://{}/metrics", admins[0])).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("garage_log_trouble{kind=\"not-storing\"} 1"), "{metrics}");

    let said = RefCell::default();
    let stores = async || garage_is_well(&client, &admins).await;
    let disk = garage.disk.take().unwrap();
    supervised(&mut garage, &said, async {
        until("the full disk is named", async || has(&said, &["nats-1", "disk is full", "make room"]).then_some(()))
            .await;
        assert!(!has(&said, &["restarting"]), "{said:?}");
        disk.make_room(0).unwrap();
        until("nats-server is restarted", async || has(&said, &["nats-1", "restarting it"]).then_some(())).await;
        until("every worker says that the log stores events", stores).await;
    })
    .await;
    garage.disk = Some(disk);
    // The durable consumers deliver, and their acknowledgements are stored.
    play(&garage.bots("after", 2)).await;
    garage.drained().await;
}

async fn garage_is_well(client: &reqwest::Client, admins: &[String]) -> Option<()> {
    for admin in admins {
        let (ready, text) = readyz(client, admin).await?;
        (ready && text.contains("log: ok")).then_some(())?;
    }
    Some(())
}
