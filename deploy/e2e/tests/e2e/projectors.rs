//! Two session workers: one of them writes the projections, and the other one stands by.

use std::{fs, path::PathBuf};

use futures::future::join_all;
use garage_events::subject::Aggregate;
use garage_stack::workers::Worker;

use crate::support::{
    Garage, Setup,
    consumers::CreatedConsumers,
    history::{self, Event},
    play, until,
};

/// What a projector logs when it finds that another one has written the projections.
const INTERFERENCE: &str = "another projector or a rebuild changed the projections";

/// The index of the session worker that writes the projections. Waits until exactly one of these instances does.
async fn projector(garage: &mut Garage, among: &[usize]) -> usize {
    let all: Vec<_> = garage.stack.instances(Worker::Session).map(|instance| instance.admin.clone()).collect();
    until("one session worker holds the projector's lease", async || {
        let holders = join_all(among.iter().map(async |at| {
            let text = reqwest::get(format!("http://{}/readyz", all[*at])).await.ok()?.text().await.ok()?;
            let holds = text.lines().any(|line| line == "lease session.projector: held by this instance");
            Some((*at, holds))
        }))
        .await;
        let holders: Option<Vec<_>> = holders.into_iter().collect();
        let holders: Vec<_> = holders?.into_iter().filter(|(_, holds)| *holds).map(|(at, _)| at).collect();
        let [holder] = holders[..] else { return None };
        Some(holder)
    })
    .await
}

/// Waits until the projections include the last event that the log has now.
async fn until_up_to_date(garage: &Garage) {
    let events = garage.events().await;
    let projected = |event: &&Event| matches!(event.aggregate, Aggregate::Player(_) | Aggregate::Session(_));
    let last = events.iter().rfind(projected).unwrap().seq;
    until("the projections include the whole log", async || (garage.projections().await?.seq >= last).then_some(()))
        .await;
}

fn session_logs(garage: &Garage) -> impl Iterator<Item = PathBuf> {
    garage.stack.logs().into_iter().filter(|log| log.to_string_lossy().contains("session"))
}

/// How often the projectors found that the projections had been written by another process.
fn interference(garage: &Garage) -> usize {
    session_logs(garage).map(|log| fs::read_to_string(log).unwrap().matches(INTERFERENCE).count()).sum()
}

#[tokio::test]
async fn two_projectors_do_not_disturb_each_other_and_create_no_consumers_while_players_play() {
    let garage = Setup::short().instances(2).start().await;
    assert_eq!(session_logs(&garage).count(), 2);
    let bots = garage.bots("player", 40);
    let created = CreatedConsumers::count(&garage.admin).await;

    play(&bots).await;

    let by_stream = created.by_stream();
    // On a busy machine, a read that got no heartbeat in time may have started again.
    assert!(created.total() <= 4, "consumers created: {by_stream:?}");
    assert_eq!(interference(&garage), 0, "projectors that found the projections changed");
    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), 20);
    until_up_to_date(&garage).await;
}

#[tokio::test]
async fn a_paused_projector_is_replaced_and_does_not_disturb_its_successor_afterwards() {
    let mut garage = Setup::short().instances(2).start().await;
    let first = projector(&mut garage, &[0, 1]).await;
    let second = 1 - first;
    play(&garage.bots("before", 4)).await;

    // The process stops without a sign: its connection and its consumers stay open.
    garage.stack.instances(Worker::Session).nth(first).unwrap().process.pause().unwrap();
    assert_eq!(projector(&mut garage, &[second]).await, second);
    play(&garage.bots("during", 4)).await;
    until_up_to_date(&garage).await;

    // It resumes in the belief that it still holds the lease, and finds out before it writes.
    garage.stack.instances(Worker::Session).nth(first).unwrap().process.resume().unwrap();
    assert_eq!(projector(&mut garage, &[first, second]).await, second);
    play(&garage.bots("after", 4)).await;
    garage.settled().await;
    until_up_to_date(&garage).await;

    // The former projector takes over when its successor is killed.
    garage.stack.instances(Worker::Session).nth(second).unwrap().process.kill();
    assert_eq!(projector(&mut garage, &[first]).await, first);
    play(&garage.bots("last", 2)).await;
    until_up_to_date(&garage).await;
}
