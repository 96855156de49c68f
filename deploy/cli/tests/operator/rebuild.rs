//! `garage rebuild`: who reads the projections sees old ones or new ones, never half of either.

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
    event::Envelope,
    jetstream::JetStreamLog,
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
use garage_worker::{Health, Shutdown, config};
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
    /// A log, a Redis, and a projector from one to the other.
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
        tokio::spawn(Projector::new(log.clone(), redis.clone(), Health::default()).run(shutdown.clone()));
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

    /// What `garage verify` says of the projections.
    async fn verified(&self) -> anyhow::Result<Vec<Value>> {
        let (url, password_file) = (self.server.url(), self.server.password_file().display().to_string());
        let args = ["verify", "--json", "--redis", "--redis-url", &url, "--redis-password-file", &password_file];
        let ran = self.fixture.run(&args).await?;
        let mut lines: Vec<Value> = ran.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        // The sessions of these tests have no players of their own, which is for others to judge.
        lines.retain(|line| line["rule"] == "projected");
        Ok(lines)
    }

    /// Waits until the projections hold what a fold of the whole log holds.
    async fn until_right(&self) -> anyhow::Result<()> {
        let history = History::read(&self.log).await?;
        until("the projections are right", async || {
            let live = self.redis.live().await?;
            Ok((live.seq >= history.last() && live == history.fold(live.seq)).then_some(()))
        })
        .await
    }

    /// All that the projections hold, and where they stand.
    async fn held(&self) -> anyhow::Result<BTreeMap<String, Value>> {
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
                // When a projector was here is not of the log.
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

/// The log, to be folded by a fold that owes nothing to the projector's.
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

    /// What the projections hold at a sequence.
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
                Aggregate::Inventory(_) => {}
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

/// Players come and go, sessions begin and end.
async fn round(log: &JetStreamLog, number: usize) -> anyhow::Result<()> {
    let names: Vec<_> = (0..40).map(|one| format!("p-{}", (number * 13 + one) % 60)).collect();
    try_join_all(names.iter().map(|name| queue(log, name))).await?;
    let session = open(log, &["anna", "bert"]).await?;
    try_join_all(names.iter().skip(20).map(|name| cancel(log, name))).await?;
    if number.is_multiple_of(2) {
        of_session(log, session, session::Closed { why: Ending::Failed, results: Vec::new() }.into()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_half_of_a_rebuild_while_events_come_in() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    for number in 0..10 {
        round(&projected.log, number).await?;
    }
    projected.until_right().await?;
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
        let mut notified = Vec::new();
        for _ in 0..5 {
            notified.push(projected.rebuild().await);
        }
        done.store(true, Ordering::SeqCst);
        notified.into_iter().collect::<anyhow::Result<Vec<_>>>()
    };
    let (played, seen, notified) = tokio::join!(playing, reading, rebuilding);
    played?;
    assert!(notified?.iter().all(|text| text.contains("the projections were replaced at ")));
    let (seen, history) = (seen?, History::read(&projected.log).await?);
    assert!(seen.len() > 1, "the readers saw the projections move");
    for live in &seen {
        assert_eq!(live, &history.fold(live.seq), "at {}", live.seq);
    }
    assert!(seen.is_sorted_by_key(|live| live.seq), "nobody saw them go back");
    // The projector goes on.
    round(&projected.log, 0).await?;
    projected.until_right().await
}

#[tokio::test]
async fn a_rebuild_mends_what_is_wrong_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 1).await?;
    projected.until_right().await?;
    let mut redis = projected.connection().await?;
    let () = redis.hset("garage:queues", "ranked", 999).await?;
    let () = redis.del("garage:sessions").await?;
    let wrong = projected.verified().await?;
    let said = |what: &str| wrong.iter().any(|line| line["what"].as_str().is_some_and(|said| said.starts_with(what)));
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(said("garage:queues ranked is 999 and the log makes it 20") && said("garage:sessions "), "{wrong:?}");
    // What somebody left who was killed.
    let () = redis.hset("garage:anew:queues", "ranked", 77).await?;
    let () = redis.hset_multiple("garage:anew:watermark", &[("log", "another"), ("seq", "5")]).await?;
    let notified = projected.rebuild().await?;
    assert!(notified.starts_with("61 events folded"), "{notified}");
    projected.until_right().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let left: Vec<String> = redis.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    // Again, to the same.
    projected.rebuild().await?;
    queue(&projected.log, "later").await?;
    projected.until_right().await
}

#[tokio::test]
async fn a_rebuild_makes_the_projections_of_an_empty_redis_and_of_an_empty_log() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    assert!(projected.rebuild().await?.starts_with("0 events folded"));
    round(&projected.log, 1).await?;
    projected.until_right().await?;
    let mut redis = projected.connection().await?;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await?;
    projected.rebuild().await?;
    projected.until_right().await
}

#[tokio::test]
async fn a_rebuild_that_is_killed_does_no_harm() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    for number in 0..10 {
        round(&projected.log, number).await?;
    }
    projected.until_right().await?;
    let mut redis = projected.connection().await?;
    for _ in 0..5 {
        let mut killed = projected.garage().spawn()?;
        // At its beginning, or somewhere behind.
        let begins = async {
            while !redis.exists::<_, bool>("garage:anew:watermark").await? && killed.try_wait()?.is_none() {}
            anyhow::Ok(())
        };
        timeout(DEADLINE, begins).await??;
        killed.kill().await?;
        projected.until_right().await?;
    }
    projected.rebuild().await?;
    projected.until_right().await?;
    let left: Vec<String> = redis.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rebuilds_at_a_time_the_one_that_began_later_comes_to_its_end() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 1).await?;
    projected.until_right().await?;

    let (client, redis) = (projected.fixture.nats.connect(Role::Admin).await?, projected.redis.clone());
    let (folds, folding) = mpsc::channel();
    let (go_on, pause) = mpsc::channel::<()>();
    let earlier = tokio::spawn(async move {
        let progress = move |_, _, _| {
            folds.send(()).unwrap();
            // Until it may go on.
            let _ = block_in_place(|| pause.recv_timeout(DEADLINE));
        };
        rebuild(client, &redis, progress).await
    });
    block_in_place(|| folding.recv_timeout(DEADLINE))?;
    projected.rebuild().await?;
    drop(go_on);
    let gone = timeout(DEADLINE, earlier).await??.unwrap_err();
    assert!(gone.to_string().contains("another rebuild has begun"), "{gone}");

    projected.until_right().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let left: Vec<String> = projected.connection().await?.keys("garage:anew:*").await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_beyond_the_logs_end_is_mended() -> anyhow::Result<()> {
    let projected = Projected::start().await?;
    round(&projected.log, 0).await?;
    projected.until_right().await?;
    // As after a log that lost its end.
    let mut connection = projected.connection().await?;
    redis::cmd("HSET").arg(WATERMARK).arg(&["seq", "999999"]).exec_async(&mut connection).await?;
    let wrong = projected.verified().await?;
    assert!(wrong[0]["what"].as_str().is_some_and(|what| what.contains("beyond the log's end")), "{wrong:?}");
    projected.rebuild().await?;
    round(&projected.log, 1).await?;
    projected.until_right().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_comes_to_all_that_was_there_and_no_more_than_so_many_closed_sessions_are_kept() -> anyhow::Result<()>
{
    let projected = Projected::start().await?;
    for number in 0..3 {
        round(&projected.log, number).await?;
    }
    let closed = || session::Event::from(session::Closed { why: Ending::Failed, results: Vec::new() });
    let close = async |_| {
        let id = open(&projected.log, &["anna", "bert"]).await?;
        of_session(&projected.log, id, closed()).await
    };
    try_join_all((0..CLOSED_KEPT).map(close)).await?;
    projected.until_right().await?;
    assert_eq!(projected.verified().await?, [] as [Value; 0]);
    let held = projected.held().await?;
    // Of the rounds' three sessions two were closed, before all others; the third lives.
    assert_eq!(held[CLOSED].as_array().map(Vec::len), Some(CLOSED_KEPT));
    assert_eq!(held[TIMELINES].as_object().map(serde_json::Map::len), Some(CLOSED_KEPT + 1));
    assert!(held.values().all(|of_key| !of_key.as_object().is_some_and(serde_json::Map::is_empty)), "{held:?}");
    projected.rebuild().await?;
    assert_eq!(projected.held().await?, held);
    projected.rebuild().await?;
    assert_eq!(projected.held().await?, held);
    Ok(())
}
