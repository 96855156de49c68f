//! What only real servers do: answers that are lost, servers that die, leaders that fall asleep. Whatever happens, an
//! append ends as stored, once, at the sequences returned; and none is told of a conflict with itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    TryStreamExt,
    future::{join_all, try_join_all},
};
use garage_events::{
    env::{Env, System},
    jetstream::{JetStreamLog, setup::CONSUMERS},
    log::{Append, AppendError, Head},
    subject::{ALL, STREAM},
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    ending::{soon, until, within},
    fixture::{Follow, Raw},
    samples::{Made, made, matched, new_player, new_session, of_player, pod_failed, pod_requested, queued},
    servers::{Own, leader},
};

/// Appends on their way, and what they will have stored where.
struct Flight(Vec<JoinHandle<Result<Places, AppendError>>>);

/// Event ids by the sequences that were returned for them.
type Places = Vec<(u64, Uuid)>;

impl Flight {
    /// Appends that know nothing of each other, all at once, of every shape.
    fn at_once(log: &JetStreamLog, count: usize) -> Self {
        let decisions = (0..count).map(|i| match i % 3 {
            0 => made(&new_player(), Head::default(), [queued()]),
            1 => made(new_session(), Head::default(), [matched(&[]), pod_requested(1), pod_failed(1)]),
            _ => Made::nothing().and(new_session(), Head::default(), [matched(&[]), pod_requested(1)]).and(
                &new_player(),
                Head::default(),
                [queued()],
            ),
        });
        let append = |log: JetStreamLog, made: Made| async move { append(&log, made).await };
        Self(decisions.map(|made| tokio::spawn(append(log.clone(), made))).collect())
    }

    /// Appends to one player each, one after the other, each on what the answer to the one before said.
    fn chains(log: &JetStreamLog, chains: usize, length: u64) -> Self {
        let chain = |log: JetStreamLog| async move {
            let (player, mut head, mut places) = (new_player(), Head::default(), Places::new());
            for n in 1..=length {
                places.extend(append(&log, made(&player, head, [queued()])).await?);
                head = Head { seq: places.last().unwrap().0, n };
            }
            Ok(places)
        };
        Self((0..chains).map(|_| tokio::spawn(chain(log.clone()))).collect())
    }

    /// Waits until all are stored.
    async fn land(self) -> Places {
        let outcomes = soon("every append has its outcome", try_join_all(self.0)).await.unwrap();
        let stored: Result<Vec<Places>, AppendError> = outcomes.into_iter().collect();
        stored.expect("every append is stored").concat()
    }
}

async fn append(log: &JetStreamLog, made: Made) -> Result<Places, AppendError> {
    let sequences = log.append(made.decision.clone()).await?;
    Ok(sequences.into_iter().zip(made.ids()).collect())
}

/// The log holds exactly these events, once each, where the answers said.
async fn holds(log: &JetStreamLog, mut places: Places) {
    places.sort_unstable();
    let end = log.end(ALL).await;
    let mut follow = log.follow(vec![ALL.into()], 1);
    let mut stored = Places::new();
    while stored.last().is_none_or(|(seq, _)| *seq < end) {
        let (seq, _, envelope) = soon("the log's next event", Follow::next(&mut follow)).await;
        stored.push((seq, envelope.id));
    }
    let mut times: HashMap<Uuid, usize> = HashMap::new();
    stored.iter().for_each(|(_, id)| *times.entry(*id).or_default() += 1);
    times.retain(|_, times| *times > 1);
    assert_eq!(times, HashMap::new(), "stored more than once");
    assert_eq!(stored, places);
}

/// A cut finds the events stored and the answer on its way: it is lost for certain.
async fn an_append_whose_answer_is_lost_is_stored_once(nodes: usize) {
    let own = Own::start(nodes).await;
    let witness = own.access.log(0).await;
    let mut places = Places::new();
    for round in 0..6 {
        // Through the leader, and through others.
        let (proxy, client) = own.access.proxied(round % nodes).await;
        let log = JetStreamLog::open(client).await.unwrap();
        let before = witness.end(ALL).await;
        proxy.delay(Duration::from_millis(150));
        // One alone goes another way than many.
        let flight = Flight::at_once(&log, if round % 2 == 0 { 1 } else { 40 });
        until("something is stored", async || (witness.end(ALL).await > before).then_some(())).await;
        proxy.cut();
        proxy.delay(Duration::ZERO);
        proxy.mend();
        places.extend(flight.land().await);
    }
    holds(&witness, places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_an_append_whose_answer_is_lost_is_stored_once() {
    within(an_append_whose_answer_is_lost_is_stored_once(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_an_append_whose_answer_is_lost_is_stored_once() {
    within(an_append_whose_answer_is_lost_is_stored_once(3)).await;
}

/// The connection is cut at any moment, over and over.
async fn appends_are_stored_once_however_often_the_connection_is_cut(nodes: usize) {
    const CUTS: u32 = 25;
    let own = Own::start(nodes).await;
    let witness = own.access.log(0).await;
    let connected = join_all((0..3).map(async |i| {
        let (proxy, client) = own.access.proxied(i % nodes).await;
        let log = JetStreamLog::open(client).await.unwrap();
        let mut flights = Vec::new();
        for cut in 0..CUTS {
            flights.push(Flight::at_once(&log, 30));
            flights.push(Flight::chains(&log, 1, 3));
            // The moment is the fault: from before the first byte to after the last.
            tokio::time::sleep(Duration::from_micros(u64::from(cut) * 700)).await;
            proxy.cut();
            proxy.mend();
        }
        join_all(flights.into_iter().map(Flight::land)).await.concat()
    }));
    holds(&witness, connected.await.concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_appends_are_stored_once_however_often_the_connection_is_cut() {
    within(appends_are_stored_once_however_often_the_connection_is_cut(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_appends_are_stored_once_however_often_the_connection_is_cut() {
    within(appends_are_stored_once_however_often_the_connection_is_cut(3)).await;
}

/// 400 appends: half of them all at once, half in chains, from two processes.
fn many(logs: &[JetStreamLog; 2]) -> Vec<Flight> {
    logs.iter().flat_map(|log| [Flight::at_once(log, 100), Flight::chains(log, 10, 10)]).collect()
}

async fn land(flights: Vec<Flight>) -> Places {
    join_all(flights.into_iter().map(Flight::land)).await.concat()
}

async fn underway(witness: &JetStreamLog, before: u64) {
    until("something is stored", async || (witness.end(ALL).await > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_outlive_the_death_of_the_only_node() {
    within(async {
        let mut own = Own::start(1).await;
        let logs = [own.access.log(0).await, own.access.log(0).await];
        let mut places = Places::new();
        for _ in 0..3 {
            let before = logs[0].end(ALL).await;
            let flights = many(&logs);
            underway(&logs[0], before).await;
            own.nats.node(0).unwrap().kill();
            own.nats.node(0).unwrap().restart().await.unwrap();
            places.extend(land(flights).await);
        }
        holds(&logs[0], places).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_outlive_the_death_of_the_leader() {
    within(async {
        let mut own = Own::start(3).await;
        let leader = own.leader(&own.access.connect_to(0).await).await;
        // One process is connected to the node that dies, one to another.
        let logs = [own.access.log(leader).await, own.access.log(leader + 1).await];
        let flights = many(&logs);
        underway(&logs[1], 0).await;
        own.nats.node(leader).unwrap().kill();
        let places = land(flights).await;
        own.nats.node(leader).unwrap().restart().await.unwrap();
        own.nats.wait_healthy().await.unwrap();
        for node in 0..3 {
            holds(&own.access.log(node).await, places.clone()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_outlive_a_leader_that_falls_asleep() {
    within(async {
        let mut own = Own::start(3).await;
        let mut places = Places::new();
        // For a moment, and for so long that the others choose another: when it wakes, it takes itself for the leader.
        for long in [false, true] {
            let asked = own.access.connect_to(0).await;
            let sleeper = own.leader(&asked).await;
            let logs = [own.access.log(sleeper).await, own.access.log(sleeper + 1).await];
            let awake = own.access.connect_to(sleeper + 1).await;
            let before = logs[1].end(ALL).await;
            let flights = many(&logs);
            underway(&logs[1], before).await;
            own.nats.node(sleeper).unwrap().pause().unwrap();
            if long {
                let other = async || leader(&awake).await.filter(|leader| *leader != sleeper);
                until("another leads", other).await;
            } else {
                // How long it lasts is the fault: too short for another to lead.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            own.nats.node(sleeper).unwrap().resume().unwrap();
            places.extend(land(flights).await);
            own.nats.wait_healthy().await.unwrap();
        }
        for node in 0..3 {
            holds(&own.access.log(node).await, places.clone()).await;
        }
    })
    .await;
}

/// What is under way to a reader when its connection is cut has been sent, as far as the server knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_the_last_event_though_its_connection_was_cut_under_way() {
    within(async {
        let own = Own::start(1).await;
        let (proxy, client) = own.access.proxied(0).await;
        let reader = JetStreamLog::open(client).await.unwrap();
        let writer = own.access.log(0).await;
        let stream = writer.context().get_stream(STREAM).await.unwrap();
        let player = new_player();
        let mut follow = reader.follow(vec![of_player(&player)], 1);
        let mut head = Head::default();
        for n in 1..=5 {
            // Long enough for the cut to come first.
            proxy.delay(Duration::from_millis(if n == 1 { 0 } else { 300 }));
            let seq = writer.append(made(&player, head, [queued()]).decision).await.unwrap()[0];
            head = Head { seq, n };
            let next = Follow::next(&mut follow);
            let cut = async {
                if n > 1 {
                    let delivered = async || {
                        let consumers: Vec<_> = stream.consumers().try_collect().await.ok()?;
                        consumers.iter().any(|info| info.delivered.stream_sequence == seq).then_some(())
                    };
                    until("the event is under way", delivered).await;
                    proxy.cut();
                    proxy.delay(Duration::ZERO);
                    proxy.mend();
                }
            };
            let (seen, ()) = soon("the event", async { tokio::join!(next, cut) }).await;
            assert_eq!(seen.0, seq);
        }
    })
    .await;
}

/// A reader at each node, one of them through a proxy, while events are appended and things break.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_misses_nothing_and_repeats_nothing_when_routes_and_connections_are_cut() {
    within(async {
        let own = Own::start_cuttable(3).await;
        let (proxy, proxied) = own.access.proxied(1).await;
        let mut readers = vec![JetStreamLog::open(proxied).await.unwrap()];
        for node in 0..3 {
            readers.push(own.access.log(node).await);
        }
        let seen: Vec<Arc<Mutex<Places>>> = readers.iter().map(|_| Arc::default()).collect();
        let reading: Vec<JoinHandle<()>> = readers
            .iter()
            .zip(&seen)
            .map(|(log, seen)| {
                let (mut follow, seen) = (log.follow(vec![ALL.into()], 1), Arc::clone(seen));
                tokio::spawn(async move {
                    loop {
                        let (seq, _, envelope) = Follow::next(&mut follow).await;
                        seen.lock().unwrap().push((seq, envelope.id));
                    }
                })
            })
            .collect();

        let writer = own.access.log(0).await;
        let mut places = Places::new();
        for node in 0..3 {
            let flight = Flight::chains(&writer, 4, 20);
            own.nats.cut_routes(node).unwrap();
            proxy.cut();
            // How long it lasts is the fault.
            tokio::time::sleep(Duration::from_secs(1)).await;
            proxy.mend();
            own.nats.mend_routes(node).unwrap();
            places.extend(flight.land().await);
        }
        places.sort_unstable();
        for seen in &seen {
            let whole = async || (seen.lock().unwrap().len() >= places.len()).then_some(());
            until("the reader has seen all", whole).await;
            assert_eq!(*seen.lock().unwrap(), places);
        }
        reading.iter().for_each(JoinHandle::abort);
    })
    .await;
}

/// A consumer that is paused says that it is there, and brings nothing.
async fn a_reader_whose_consumer_has_silently_stopped_goes_on(nodes: usize) {
    let own = Own::start(nodes).await;
    let log = own.access.log(0).await;
    let (player, mut head) = (new_player(), Head::default());
    let mut follow = log.follow(vec![of_player(&player)], 1);
    for n in 1..=2 {
        let (seq, id) = append(&log, made(&player, head, [queued()])).await.unwrap()[0];
        let (seen, _, envelope) = soon("the event", Follow::next(&mut follow)).await;
        assert_eq!((seen, envelope.id), (seq, id));
        head = Head { seq, n };
        let stream = log.context().get_stream(STREAM).await.unwrap();
        for name in stream.consumer_names().try_collect::<Vec<_>>().await.unwrap() {
            if CONSUMERS.iter().all(|durable| durable.name != name) {
                stream.pause_consumer(&name, System.now() + time::Duration::HOUR).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_reader_whose_consumer_has_silently_stopped_goes_on() {
    within(a_reader_whose_consumer_has_silently_stopped_goes_on(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_reader_whose_consumer_has_silently_stopped_goes_on() {
    within(a_reader_whose_consumer_has_silently_stopped_goes_on(3)).await;
}
