//! The projections, as the page needs them.

use std::collections::BTreeMap;

use anyhow::Context;
use garage_events::{
    id::{QueueName, SessionId},
    projection::{
        CLOSED, COUNTS, DEAD_LETTERS, DeadLetters, LiveSession, Minute, QUEUES, SESSIONS, TIMELINES, Timeline, WAITS,
        WATERMARK, waiters, waiting_since,
    },
};
use garage_worker::redis::Redis;
use serde::de::DeserializeOwned;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Closed sessions that are listed.
const LISTED: isize = 12;

/// All that the page shows, as of one moment.
#[derive(Debug)]
pub(super) struct Shot {
    /// The moment, by the clock of the Redis server.
    pub(super) now: OffsetDateTime,
    /// How far the projections are.
    pub(super) mark: Mark,
    /// Players waiting.
    pub(super) queues: BTreeMap<QueueName, u64>,
    /// Who waits longest, since when.
    pub(super) oldest: BTreeMap<QueueName, OffsetDateTime>,
    /// The living sessions.
    pub(super) sessions: BTreeMap<SessionId, LiveSession>,
    /// The last hour, of the log's time.
    pub(super) minutes: BTreeMap<i64, Minute>,
    /// The sessions that were closed last, the newest first.
    pub(super) closed: Vec<(SessionId, Timeline)>,
    /// The dead letters; none when nobody has looked yet.
    pub(super) dead_letters: Option<DeadLetters>,
}

/// How far the projections are.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// The last event applied.
    pub(super) seq: u64,
    /// Its time.
    pub(super) time: Option<OffsetDateTime>,
    /// Messages to come, when the projector was here last.
    pub(super) behind: Option<u64>,
    /// When that was.
    pub(super) seen: Option<OffsetDateTime>,
}

type Fields = Vec<(String, String)>;

/// Reads all that the page shows.
///
/// # Errors
/// When Redis does not answer, or holds what this build cannot read.
pub(super) async fn shot(redis: &Redis) -> anyhow::Result<Shot> {
    let mut connection = redis.connection().await.context("Redis does not answer")?;
    let mut first = redis::pipe();
    first.atomic().cmd("TIME").cmd("HMGET").arg(WATERMARK).arg(&["seq", "time", "behind", "seen"]);
    first.hgetall(QUEUES).hgetall(SESSIONS).hgetall(COUNTS).get(DEAD_LETTERS).zrevrange(CLOSED, 0, LISTED - 1);
    let read = redis.checked(first.query_async(&mut connection).await).await.context("Redis does not answer")?;
    type Read = ((i128, i128), [Option<String>; 4], Fields, Fields, Fields, Option<String>, Vec<String>);
    let ((seconds, micros), mark, queues, sessions, minutes, dead_letters, closed): Read = read;
    let queues: BTreeMap<QueueName, u64> = parsed(queues)?;

    // What is to be asked for is only known now; it may be some milliseconds newer.
    let mut second = redis::pipe();
    for queue in queues.keys() {
        let [from, to] = waiters(queue);
        second.cmd("ZRANGEBYLEX").arg(WAITS).arg(from).arg(to).arg(&["LIMIT", "0", "1"]);
    }
    for id in &closed {
        second.hget(TIMELINES, id);
    }
    let (waits, stories): (Vec<Vec<String>>, Vec<Option<String>>) = if second.is_empty() {
        Default::default()
    } else {
        let read = second.query_async::<Vec<redis::Value>>(&mut connection).await;
        let mut read = redis.checked(read).await.context("Redis does not answer")?;
        let stories = read.split_off(queues.len());
        (redis::from_redis_value(redis::Value::Array(read))?, redis::from_redis_value(redis::Value::Array(stories))?)
    };
    let oldest =
        queues.keys().zip(waits).filter_map(|(queue, waits)| Some((queue.clone(), waiting_since(waits.first()?)?)));
    let stories = closed.iter().zip(stories).filter_map(|(id, story)| Some((id, story?)));
    let stories = stories.map(|(id, story)| Ok((id.parse()?, serde_json::from_str(&story)?)));
    Ok(Shot {
        now: OffsetDateTime::from_unix_timestamp_nanos((seconds * 1_000_000 + micros) * 1_000)?,
        mark: marked(mark),
        oldest: oldest.collect(),
        queues,
        sessions: parsed(sessions)?,
        minutes: parsed(minutes)?,
        closed: stories.collect::<anyhow::Result<_>>().context(UNREADABLE)?,
        dead_letters: dead_letters
            .map(|dead_letters| serde_json::from_str(&dead_letters))
            .transpose()
            .context(UNREADABLE)?,
    })
}

/// Reads what happened to a session.
///
/// # Errors
/// When Redis does not answer, or holds what this build cannot read.
pub(super) async fn timeline(redis: &Redis, id: SessionId) -> anyhow::Result<Option<Timeline>> {
    let mut connection = redis.connection().await.context("Redis does not answer")?;
    let read = redis::cmd("HGET").arg(TIMELINES).arg(id.to_string()).query_async(&mut connection).await;
    let found: Option<String> = redis.checked(read).await.context("Redis does not answer")?;
    found.map(|found| serde_json::from_str(&found)).transpose().context(UNREADABLE)
}

/// Another build's projector may be at work.
const UNREADABLE: &str = "the projections cannot be read; are gateway and session of one version?";

fn parsed<K: std::str::FromStr + Ord, V: DeserializeOwned>(fields: Fields) -> anyhow::Result<BTreeMap<K, V>> {
    let read = |(field, value): (String, String)| Some((field.parse().ok()?, serde_json::from_str(&value).ok()?));
    fields.into_iter().map(|field| read(field).context(UNREADABLE)).collect()
}

fn marked([seq, time, behind, seen]: [Option<String>; 4]) -> Mark {
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let millis = |millis: u64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
    Mark {
        seq: number(seq).unwrap_or_default(),
        time: time.and_then(|time| OffsetDateTime::parse(&time, &Rfc3339).ok()),
        behind: number(behind),
        seen: number(seen).and_then(millis),
    }
}
