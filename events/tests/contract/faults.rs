//! Faults of real servers: lost answers, crashed nodes, paused leaders. Each append still ends as stored, exactly once,
//! at the sequences that it returns. No append fails with a conflict with its own earlier try.

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
    samples::{Prepared, matched, new_player, new_session, of_player, pod_failed, pod_requested, prepare, queued},
    servers::{Cluster, leader},
};

/// Appends in progress. Each returns the positions of its events.
struct Appends(Vec<JoinHandle<Result<Positions, AppendError>>>);

/// Sequences, each with the id of the event there.
type Positions = Vec<(u64, Uuid)>;

impl Appends {
    /// Independent appends of all kinds of decisions, all at the same time.
    fn at_once(log: &JetStreamLog, count: usize) -> Self {
        let decisions = (0..count).map(|i| match i % 3 {
            0 => prepare(&new_player(), Head::default(), [queued()]),
            1 => prepare(new_session(), Head::default(), [matched(&[]), pod_requested(1), pod_failed(1)]),
            _ => Prepared::empty().and(new_session(), Head::default(), [matched(&[]), pod_requested(1)]).and(
                &new_player(),
                Head::default(),
                [queued()],
            ),
        });
        let append = |log: JetStreamLog, prepared: Prepared| async move { append(&log, prepared).await };
        Self(decisions.map(|prepared| tokio::spawn(append(log.clone(), prepared))).collect())
    }

    /// Chains of appends. Each chain is about one player, and each append is based on the answer to the previous
    /// append.
    fn chains(log: &JetStreamLog, chains: usize, length: u64) -> Self {
        let chain = |log: JetStreamLog| async move {
            let (player, mut head, mut positions) = (new_player(), Head::default(), Positions::new());
            for n in 1..=length {
                positions.extend(append(&log, prepare(&player, head, [queued()])).await?);
                head = Head { seq: positions.last().unwrap().0, n };
            }
            Ok(positions)
        };
        Self((0..chains).map(|_| tokio::spawn(chain(log.clone()))).collect())
    }

    /// Waits until all appends are stored.
    async fn finish(self) -> Positions {
        let outcomes = soon("every append returns", try_join_all(self.0)).await.unwrap();
        let stored: Result<Vec<Positions>, AppendError> = outcomes.into_iter().collect();
        stored.expect("every append is stored").concat()
    }
}

async fn append(log: &JetStreamLog, prepared: Prepared) -> Result<Positions, AppendError> {
    let sequences = log.append(prepared.decision.clone()).await?;
    Ok(sequences.into_iter().zip(prepared.ids()).collect())
}

/// Checks that the log holds exactly these events, once each, at these sequences.
async fn assert_log_holds(log: &JetStreamLog, mut positions: Positions) {
    positions.sort_unstable();
    let end = log.end(ALL).await;
    let mut follow = log.follow(vec![ALL.into()], 1);
    let mut stored = Positions::new();
    while stored.last().is_none_or(|(seq, _)| *seq < end) {
        let (seq, _, envelope) = soon("the log's next event", Follow::next(&mut follow)).await;
        stored.push((seq, envelope.id));
    }
    let mut times: HashMap<Uuid, usize> = HashMap::new();
    stored.iter().for_each(|(_, id)| *times.entry(*id).or_default() += 1);
    times.retain(|_, times| *times > 1);
    assert_eq!(times, HashMap::new(), "stored more than once");
    assert_eq!(stored, positions);
}

/// The connection is cut while the events are stored and the answer is in transit, so that the answer is lost.
async fn an_append_whose_answer_is_lost_is_stored_once(nodes: usize) {
    let cluster = Cluster::start(nodes).await;
    let witness = cluster.access.log(0).await;
    let mut positions = Positions::new();
    for round in 0..6 {
        // Connect to the leader in some rounds, and to another node in others.
        let (proxy, client) = cluster.access.proxied(round % nodes).await;
        let log = JetStreamLog::open(client).await.unwrap();
        let before = witness.end(ALL).await;
        proxy.delay(Duration::from_millis(150));
        // A single message and a batch use different code.
        let appends = Appends::at_once(&log, if round % 2 == 0 { 1 } else { 40 });
        until("something is stored", async || (witness.end(ALL).await > before).then_some(())).await;
        proxy.cut();
        proxy.delay(Duration::ZERO);
        proxy.mend();
        positions.extend(appends.finish().await);
    }
    assert_log_holds(&witness, positions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_an_append_whose_answer_is_lost_is_stored_once() {
    within(an_append_whose_answer_is_lost_is_stored_once(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_an_append_whose_answer_is_lost_is_stored_once() {
    within(an_append_whose_answer_is_lost_is_stored_once(3)).await;
}

/// The connection is cut repeatedly, at many different moments.
async fn appends_are_stored_once_however_often_the_connection_is_cut(nodes: usize) {
    const CUTS: u32 = 25;
    let cluster = Cluster::start(nodes).await;
    let witness = cluster.access.log(0).await;
    let connected = join_all((0..3).map(async |i| {
        let (proxy, client) = cluster.access.proxied(i % nodes).await;
        let log = JetStreamLog::open(client).await.unwrap();
        let mut appends = Vec::new();
        for cut in 0..CUTS {
            appends.push(Appends::at_once(&log, 30));
            appends.push(Appends::chains(&log, 1, 3));
            // Vary the moment of the cut, from before the first byte to after the last one.
            tokio::time::sleep(Duration::from_micros(u64::from(cut) * 700)).await;
            proxy.cut();
            proxy.mend();
        }
        join_all(appends.into_iter().map(Appends::finish)).await.concat()
    }));
    assert_log_holds(&witness, connected.await.concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_appends_are_stored_once_however_often_the_connection_is_cut() {
    within(appends_are_stored_once_however_often_the_connection_is_cut(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_appends_are_stored_once_however_often_the_connection_is_cut() {
    within(appends_are_stored_once_however_often_the_connection_is_cut(3)).await;
}

/// 400 appends from two processes: half of them at the same time, half in chains.
fn many(logs: &[JetStreamLog; 2]) -> Vec<Appends> {
    logs.iter().flat_map(|log| [Appends::at_once(log, 100), Appends::chains(log, 10, 10)]).collect()
}

async fn finish(appends: Vec<Appends>) -> Positions {
    join_all(appends.into_iter().map(Appends::finish)).await.concat()
}

/// Waits until something is stored after the sequence `before`.
async fn wait_until_stored(witness: &JetStreamLog, before: u64) {
    until("something is stored", async || (witness.end(ALL).await > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_survive_a_crash_of_the_only_node() {
    within(async {
        let mut cluster = Cluster::start(1).await;
        let logs = [cluster.access.log(0).await, cluster.access.log(0).await];
        let mut positions = Positions::new();
        for _ in 0..3 {
            let before = logs[0].end(ALL).await;
            let appends = many(&logs);
            wait_until_stored(&logs[0], before).await;
            cluster.nats.node(0).unwrap().kill();
            cluster.nats.node(0).unwrap().restart().await.unwrap();
            positions.extend(finish(appends).await);
        }
        assert_log_holds(&logs[0], positions).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_survive_a_crash_of_the_leader() {
    within(async {
        let mut cluster = Cluster::start(3).await;
        let leader = cluster.leader(&cluster.access.connect_to(0).await).await;
        // One process is connected to the node that crashes, the other one to another node.
        let logs = [cluster.access.log(leader).await, cluster.access.log(leader + 1).await];
        let appends = many(&logs);
        wait_until_stored(&logs[1], 0).await;
        cluster.nats.node(leader).unwrap().kill();
        let positions = finish(appends).await;
        cluster.nats.node(leader).unwrap().restart().await.unwrap();
        cluster.nats.wait_healthy().await.unwrap();
        for node in 0..3 {
            assert_log_holds(&cluster.access.log(node).await, positions.clone()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_survive_a_paused_leader() {
    within(async {
        let mut cluster = Cluster::start(3).await;
        let mut positions = Positions::new();
        // First a short pause, then a pause that is long enough for the others to elect a new leader. When the paused
        // node resumes, it still considers itself the leader.
        for long in [false, true] {
            let asked = cluster.access.connect_to(0).await;
            let paused = cluster.leader(&asked).await;
            let logs = [cluster.access.log(paused).await, cluster.access.log(paused + 1).await];
            let awake = cluster.access.connect_to(paused + 1).await;
            let before = logs[1].end(ALL).await;
            let appends = many(&logs);
            wait_until_stored(&logs[1], before).await;
            cluster.nats.node(paused).unwrap().pause().unwrap();
            if long {
                let other = async || leader(&awake).await.filter(|leader| *leader != paused);
                until("another node leads", other).await;
            } else {
                // This pause is part of the fault. It is too short for an election.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            cluster.nats.node(paused).unwrap().resume().unwrap();
            positions.extend(finish(appends).await);
            cluster.nats.wait_healthy().await.unwrap();
        }
        for node in 0..3 {
            assert_log_holds(&cluster.access.log(node).await, positions.clone()).await;
        }
    })
    .await;
}

/// The connection is cut while the event is in transit to the reader. For the server, the event is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_the_last_event_although_its_connection_was_cut_in_transit() {
    within(async {
        let cluster = Cluster::start(1).await;
        let (proxy, client) = cluster.access.proxied(0).await;
        let reader = JetStreamLog::open(client).await.unwrap();
        let writer = cluster.access.log(0).await;
        let stream = writer.context().get_stream(STREAM).await.unwrap();
        let player = new_player();
        let mut follow = reader.follow(vec![of_player(&player)], 1);
        let mut head = Head::default();
        for n in 1..=5 {
            // Long enough that the cut comes before the event arrives.
            proxy.delay(Duration::from_millis(if n == 1 { 0 } else { 300 }));
            let seq = writer.append(prepare(&player, head, [queued()]).decision).await.unwrap()[0];
            head = Head { seq, n };
            let next = Follow::next(&mut follow);
            let cut = async {
                if n > 1 {
                    let delivered = async || {
                        let consumers: Vec<_> = stream.consumers().try_collect().await.ok()?;
                        consumers.iter().any(|info| info.delivered.stream_sequence == seq).then_some(())
                    };
                    until("the event is in transit", delivered).await;
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

#[tokio::test]
async fn a_range_that_is_extended_misses_nothing_and_keeps_its_consumer() {
    within(async {
        let cluster = Cluster::start(1).await;
        let log = cluster.access.log(0).await;
        let (player, mut head, mut sequences) = (new_player(), Head::default(), Vec::new());
        for n in 1..=4 {
            let seq = log.append(prepare(&player, head, [queued()]).decision).await.unwrap()[0];
            head = Head { seq, n };
            sequences.push(seq);
        }
        let mut range = log.reader().range(vec![of_player(&player)], 1, sequences[0]);
        let mut seen = Vec::new();
        // The last step extends the range by two events.
        for end in [0, 1, 3] {
            range.extend(sequences[end]);
            while let Some(message) = soon("the event", range.next()).await.unwrap() {
                seen.push(message.seq);
            }
            assert_eq!(seen, sequences[..=end]);
        }
        let stream = log.context().get_stream(STREAM).await.unwrap();
        let readers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        let readers = readers.iter().filter(|info| info.config.durable_name.is_none());
        assert_eq!(readers.count(), 1);
    })
    .await;
}

/// There is a reader at each node, and one more through a proxy. Routes and connections are cut during the appends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_misses_nothing_and_repeats_nothing_when_routes_and_connections_are_cut() {
    within(async {
        let cluster = Cluster::start_cuttable(3).await;
        let (proxy, proxied) = cluster.access.proxied(1).await;
        let mut readers = vec![JetStreamLog::open(proxied).await.unwrap()];
        for node in 0..3 {
            readers.push(cluster.access.log(node).await);
        }
        let seen: Vec<Arc<Mutex<Positions>>> = readers.iter().map(|_| Arc::default()).collect();
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

        let writer = cluster.access.log(0).await;
        let mut positions = Positions::new();
        for node in 0..3 {
            let appends = Appends::chains(&writer, 4, 20);
            cluster.nats.cut_routes(node).unwrap();
            proxy.cut();
            // The cut lasts this long.
            tokio::time::sleep(Duration::from_secs(1)).await;
            proxy.mend();
            cluster.nats.mend_routes(node).unwrap();
            positions.extend(appends.finish().await);
        }
        positions.sort_unstable();
        for seen in &seen {
            let complete = async || (seen.lock().unwrap().len() >= positions.len()).then_some(());
            until("the reader has seen all events", complete).await;
            assert_eq!(*seen.lock().unwrap(), positions);
        }
        reading.iter().for_each(JoinHandle::abort);
    })
    .await;
}

/// Simulates a stalled consumer by pausing it: a paused consumer sends heartbeats, but delivers nothing.
async fn a_reader_continues_if_its_consumer_has_silently_stopped(nodes: usize) {
    let cluster = Cluster::start(nodes).await;
    let log = cluster.access.log(0).await;
    let (player, mut head) = (new_player(), Head::default());
    let mut follow = log.follow(vec![of_player(&player)], 1);
    for n in 1..=2 {
        let (seq, id) = append(&log, prepare(&player, head, [queued()])).await.unwrap()[0];
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
async fn on_one_node_a_reader_continues_if_its_consumer_has_silently_stopped() {
    within(a_reader_continues_if_its_consumer_has_silently_stopped(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_reader_continues_if_its_consumer_has_silently_stopped() {
    within(a_reader_continues_if_its_consumer_has_silently_stopped(3)).await;
}
