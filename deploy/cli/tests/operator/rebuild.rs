//! `garage rebuild`: a reader sees either the old or the new projections, never a mixture.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use anyhow::Context;
use futures::future::try_join_all;
use garage_events::{
    crash::Point,
    event::Envelope,
    jetstream::JetStreamLog,
    lease,
    player::{self, Ending},
    projection::{CLOSED, CLOSED_KEPT, LIVE, Live, LivePlayer, LiveSession, TIMELINES, WAITS, WATERMARK},
    session::{self, Status},
    subject::Aggregate,
};
use garage_session::{
    projector::{Projector, rebuild},
    redis::Redis,
};
use garage_stack::servers::{self, Role};
use garage_worker::{Health, Shutdown, config, lease::keep};
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::{process::Command, task::block_in_place, time::timeout};

use crate::support::{DEADLINE, Fixture, cancel, of_session, open, queue, until};

struct Projected {
    fixture: Fixture,
    log: JetStreamLog,
    server: servers::Redis,
    redis: Redis,
    shutdown: Shutdown,
}

impl Projected {
    /// Starts a log, a Redis, and a projector.
    async fn start() -> anyhow::Result<Self> {
        let fixture = Fixture::start().await?;
        let server = servers::Redis::start(fixture.folder.path()).await?;
        let config = config::Redis {
            redis_url: garage_events::game::Secret::new(server.url()),
            redis_password_file: Some(server.password_file().to_owned()),
        };
        let redis = Redis::new(garage_worker::redis::Redis::new(&config)?);
        let log = JetStreamLog::open(fixture.nats.connect(Role::Session).await?).await?;
        let shutdown = Shutdown::new();
        let (context, names) = (log.context().clone(), vec![lease::PROJECTOR.into()]);
        let (leases, keeping) = keep(context, names, Point::ProjectorLeaseKept, Health::default());
        tokio::spawn(keeping);
        tokio::spawn(Projector::new(log.clone(), redis.clone(), leases, Health::default()).run(shutdown.clone()));
        let log = fixture.log().await?;
        Ok(Self { fixture, log, server, redis, shutdown })
    }

    fn garage(&self) -> Command {
        let mut command = self.fixture.garage(&["rebuild"]);
        command
            .env("GARAGE_REDIS_URL", self.server.url())
            .env("GARAGE_REDIS_PASSWORD_FILE", self.server.password_file());
        command
    }

    async fn rebuild(&self) -> anyhow::Result<String> {
        let output = timeout(DEADLINE, self.garage().output()).await??;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The violations that `garage verify` finds in the projections.
    async fn verified(&self) -> anyhow::Result<Vec<Value>> {
        let (url, password_file) = (self.server.url(), self.server.password_file().display().to_string());
        let args = ["verify", "--json", "--redis", "--redis-url", &url, "--redis-password-file", &password_file];
        let ran = self.fixture.run(&args).await?;
        let mut lines: Vec<Value> = ran.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        // The sessions of these tests have no player events. Those violations do not matter here.
        lines.retain(|line| line["rule"] == "projected");
        Ok(lines)
    }

    /// Waits until the projections match a fold of the whole log.
    async fn until_up_to_date(&self) -> anyhow::Result<()> {
        let history = History::read(&self.log).await?;
        until("the projections are up to date", async || {
            let live = self.redis.live().await?;
            Ok((live.seq >= history.last() && live == history.fold(live.seq)).then_some(()))
        })
        .await
    }

    /// The content of the projections, and the sequence that they have reached.
    async fn contents(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut connection = self.connection().await?;
        let mut held = BTreeMap::new();
        for key in LIVE {
            if key == CLOSED {
                let closed: Vec<(String, u64)> = connection.zrange_withscores(key, 0, -1).await?;
                held.insert(key.into(), json!(closed));
            } else if key == WAITS {
                let waits: Vec<String> = connection.zrange(key, 0, -1).await?;
                held.insert(key.into(), json!(waits));
            } else {
                let mut fields: BTreeMap<String, String> = connection.hgetall(key).await?;
                // The heartbeat of the projector does not come from the log.
                fields.retain(|field, _| !["seen", "behind"].contains(&field.as_str()));
                let read = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
                held.insert(key.into(), fields.into_iter().map(|(field, text)| (field, read(text))).collect());
            }
        }
        Ok(held)
    }

    async fn connection(&self) -> anyhow::Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.server.url_with_password())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }
}

impl Drop for Projected {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The log, with a fold that shares no code with the projector.
struct History(Vec<(u64, time::OffsetDateTime, Aggregate, Envelope)>);

impl History {
    async fn read(log: &JetStreamLog) -> anyhow::Result<Self> {
        let (mut events, mut from) = (Vec::new(), 1);
        while let Some(message) = log.next(">", from).await? {
            from = message.sequence + 1;
            let aggregate = Aggregate::of(&message.subject).context("an aggregate")?;
            events.push((message.sequence, message.time, aggregate, Envelope::from_slice(&message.payload)?));
        }
        Ok(Self(events))
    }

    fn last(&self) -> u64 {
        self.0.last().map_or(0, |event| event.0)
    }

    /// The projections at a sequence.
    fn fold(&self, seq: u64) -> Live {
        let mut live = Live { seq, sessions: BTreeMap::new(), players: BTreeMap::new(), queues: BTreeMap::new() };
        for (_, time, aggregate, envelope) in self.0.iter().take_while(|event| event.0 <= seq) {
            match aggregate {
                Aggregate::Player(id) => match envelope.event::<player::Event>().unwrap() {
                    player::Event::Queued(queued) => {
                        let (queue, since) = (queued.queue, queued.waiting_since);
                        live.players.insert(id.clone(), LivePlayer::Waiting { queue, since });
                    }
                    _ => drop(live.players.remove(id)),
                },
                Aggregate::Session(id) => match envelope.event::<session::Event>().unwrap() {
                    session::Event::Matched(matched) => {
                        let session = LiveSession {
                            status: Status::Matched,
                            server: None,
                            players: matched.players().cloned().collect(),
                            queue: matched.queue,
                            region: matched.region,
                            attempt: 0,
                            since: *time,
                        };
                        live.sessions.insert(*id, session);
                    }
                    _ => drop(live.sessions.remove(id)),
                },
                Aggregate::Inventory(_) | Aggregate::Party(_) => {}
            }
        }
        for player in live.players.values() {
            if let LivePlayer::Waiting { queue, .. } = player {
                *live.queues.entry(queue.clone()).or_default() += 1;
            }
        }
        live
    }
}

/// Appends events of players that queue and cancel, and of sessions that begin and end.
async fn round(log: &JetStreamLog, number: usize) -> anyhow::Result<()> {
    let names: Vec<_> = (0..40).map(|one| format!("p-{}", (number * 13 + one) % 60)).collect();
    try_join_all(names.iter().map(|name| queue(log, name))).await?;
    let session = open(log, &["anna", "bert"]).await?;
    try_join_all(names.iter().skip(20).map(|name| cancel(log, name))).await?;
    if number.is_multiple_of(2) {
        of_session(
            log,
            session,
            session::Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() }.into(),
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_sees_a_partial_rebuild_while_events_arrive() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    for number in 0..10 {
        round(&projected.log, number).await?;
    }
    projected.until_up_to_date().await?;
    let done = AtomicBool::new(false);
    let playing = async {
        let mut number = 10;
        while !done.load(Ordering::SeqCst) {
            round(&projected.log, number).await?;
            number += 1;
        }
        anyhow::Ok(())
    };
    let reading = async {
        let mut seen: Vec<Live> = Vec::new();
        while !done.load(Ordering::SeqCst) {
            let live = projected.redis.live().await?;
            if seen.last() != Some(&live) {
                seen.push(live);
            }
        }
        anyhow::Ok(seen)
    };
    let rebuilding = async {
        let mut outputs = Vec::new();
        for _ in 0..5 {
            outputs.push(projected.rebuild().await);
        }
        done.store(true, Ordering::SeqCst);
        outputs.into_iter().collect::<anyhow::Result<Vec<_>>>()
    };
    let (played, seen, outputs) = tokio::join!(playing, reading, rebuilding);
    played?;
    assert!(outputs?.iter().all(|text| text.contains("the projections were replaced at ")));
    let (seen, history) = (seen?, History::read(&projected.log).await?);
    assert!(seen.len() > 1, "the reader must see the projections change");
    for live in &seen {
        assert_eq!(live, &history.fold(live.seq), "at {}", live.seq);
    }
    assert!(seen.is_sorted_by_key(|live| live.seq), "the projections must not go back");
    // The projector continues.
    round(&projected.log, 0).await?;
    projected.until_up_to_date().await
}

#[tokio::test]
async fn a_rebuild_corrects_wrong_projections_and_leaves_no_temporary_keys() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 1).await?;
    projected.until_up_to_date().await?;
    let mut redis = projected.connection().await?;
    let () = redis.hset("garage:queues", "ranked", 999).await?;
    let () = redis.del("garage:sessions").await?;
    let wrong = projected.verified().await?;
    let reported =
        |text: &str| wrong.iter().any(|line| line["what"].as_str().is_some_and(|what| what.starts_with(text)));
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(reported("garage:queues ranked is 999, but should be 20") && reported("garage:sessions "), "{wrong:?}");
    // The temporary keys of a rebuild that was killed.
    let () = redis.hset("garage:anew:queues", "ranked", 77).await?;
    let () = redis.hset_multiple("garage:anew:watermark", &[("log", "another"), ("seq", "5")]).await?;
    let output = projected.rebuild().await?;
    assert!(output.starts_with("61 events read"), "{output}");
    projected.until_up_to_date().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let left: Vec<String> = redis.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    // A second rebuild has the same result.
    projected.rebuild().await?;
    queue(&projected.log, "later").await?;
    projected.until_up_to_date().await
}

#[tokio::test]
async fn a_rebuild_works_on_an_empty_redis_and_on_an_empty_log() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    assert!(projected.rebuild().await?.starts_with("0 events read"));
    round(&projected.log, 1).await?;
    projected.until_up_to_date().await?;
    let mut redis = projected.connection().await?;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await?;
    projected.rebuild().await?;
    projected.until_up_to_date().await
}

#[tokio::test]
async fn a_killed_rebuild_does_not_change_the_live_projections() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    for number in 0..10 {
        round(&projected.log, number).await?;
    }
    projected.until_up_to_date().await?;
    let mut redis = projected.connection().await?;
    for _ in 0..5 {
        let mut killed = projected.garage().spawn()?;
        // Kills it after its first write, or later.
        let begins = async {
            while !redis.exists::<_, bool>("garage:anew:watermark").await? && killed.try_wait()?.is_none() {}
            anyhow::Ok(())
        };
        timeout(DEADLINE, begins).await??;
        killed.kill().await?;
        projected.until_up_to_date().await?;
    }
    projected.rebuild().await?;
    projected.until_up_to_date().await?;
    let left: Vec<String> = redis.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_concurrent_rebuilds_the_later_one_completes() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 1).await?;
    projected.until_up_to_date().await?;

    let (client, redis) = (projected.fixture.nats.connect(Role::Admin).await?, projected.redis.clone());
    let (folds, folding) = mpsc::channel();
    let (go_on, pause) = mpsc::channel::<()>();
    let earlier = tokio::spawn(async move {
        let progress = move |_, _, _| {
            folds.send(()).unwrap();
            // Pauses until the test drops the sender.
            let _ = block_in_place(|| pause.recv_timeout(DEADLINE));
        };
        rebuild(client, &redis, progress).await
    });
    block_in_place(|| folding.recv_timeout(DEADLINE))?;
    projected.rebuild().await?;
    drop(go_on);
    let error = timeout(DEADLINE, earlier).await??.unwrap_err();
    assert!(error.to_string().contains("another rebuild has begun"), "{error}");

    projected.until_up_to_date().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let left: Vec<String> = projected.connection().await?.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_beyond_the_end_of_the_log_is_corrected() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 0).await?;
    projected.until_up_to_date().await?;
    // This happens when the log has lost its end.
    let mut connection = projected.connection().await?;
    redis::cmd("HSET").arg(WATERMARK).arg(&["seq", "999999"]).exec_async(&mut connection).await?;
    let wrong = projected.verified().await?;
    assert!(wrong[0]["what"].as_str().is_some_and(|what| what.contains("beyond the log's end")), "{wrong:?}");
    projected.rebuild().await?;
    round(&projected.log, 1).await?;
    projected.until_up_to_date().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_restores_all_projections_with_a_limited_number_of_closed_sessions() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    for number in 0..3 {
        round(&projected.log, number).await?;
    }
    let closed =
        || session::Event::from(session::Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() });
    let close = async |_| {
        let id = open(&projected.log, &["anna", "bert"]).await?;
        of_session(&projected.log, id, closed()).await
    };
    try_join_all((0..CLOSED_KEPT).map(close)).await?;
    projected.until_up_to_date().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let held = projected.contents().await?;
    // Of the three sessions of the rounds, two were closed before all others, and one is live.
    assert_eq!(held[CLOSED].as_array().map(Vec::len), Some(CLOSED_KEPT));
    assert_eq!(held[TIMELINES].as_object().map(serde_json::Map::len), Some(CLOSED_KEPT + 1));
    assert!(held.values().all(|of_key| !of_key.as_object().is_some_and(serde_json::Map::is_empty)), "{held:?}");
    projected.rebuild().await?;
    assert_eq!(projected.contents().await?, held);
    projected.rebuild().await?;
    assert_eq!(projected.contents().await?, held);
    Ok(())
}
