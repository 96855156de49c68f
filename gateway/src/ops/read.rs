//! Reads the dashboard's data from the projections.

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

/// The maximum number of closed sessions in the list.
const MAX_CLOSED: isize = 12;

/// Everything that the dashboard shows, as of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The time of the read, by the clock of the Redis server.
    pub(super) now: OffsetDateTime,
    pub(super) watermark: Watermark,
    /// The number of waiting players in each queue.
    pub(super) queues: BTreeMap<QueueName, u64>,
    /// For each queue, when the player with the longest wait began to wait.
    pub(super) oldest: BTreeMap<QueueName, OffsetDateTime>,
    /// The sessions that are not closed.
    pub(super) sessions: BTreeMap<SessionId, LiveSession>,
    /// The statistics of the last hour before the newest event, by minute.
    pub(super) minutes: BTreeMap<i64, Minute>,
    /// The sessions that were closed last, newest first.
    pub(super) closed: Vec<(SessionId, Timeline)>,
    /// `None` until a session worker has written the summary.
    pub(super) dead_letters: Option<DeadLetters>,
}

/// The progress of the projections.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    /// The sequence of the last event applied; 0 if there was none.
    pub(super) seq: u64,
    /// The stream's timestamp of that event.
    pub(super) time: Option<OffsetDateTime>,
    /// How many messages the projector had not read yet when it last reported; `None` if that is unknown.
    pub(super) behind: Option<u64>,
    /// When the projector last reported, by the clock of the Redis server.
    pub(super) seen: Option<OffsetDateTime>,
}

type Fields = Vec<(String, String)>;

/// Reads everything that the dashboard shows.
///
/// # Errors
/// If Redis does not answer, or contains data that this build cannot read.
pub(super) async fn snapshot(redis: &Redis) -> anyhow::Result<Snapshot> {
    let mut connection = redis.connection().await.context("Redis does not answer")?;
    let mut first = redis::pipe();
    first.atomic().cmd("TIME").cmd("HMGET").arg(WATERMARK).arg(&["seq", "time", "behind", "seen"]);
    first.hgetall(QUEUES).hgetall(SESSIONS).hgetall(COUNTS).get(DEAD_LETTERS).zrevrange(CLOSED, 0, MAX_CLOSED - 1);
    let read = redis.checked(first.query_async(&mut connection).await).await.context("Redis does not answer")?;
    type Read = ((i128, i128), [Option<String>; 4], Fields, Fields, Fields, Option<String>, Vec<String>);
    let ((seconds, micros), watermark, queues, sessions, minutes, dead_letters, closed): Read = read;
    let queues: BTreeMap<QueueName, u64> = parse(queues)?;

    // This needs the results of the first request. Its data may be some milliseconds newer.
    let mut second = redis::pipe();
    for queue in queues.keys() {
        let [from, to] = waiters(queue);
        second.cmd("ZRANGEBYLEX").arg(WAITS).arg(from).arg(to).arg(&["LIMIT", "0", "1"]);
    }
    for id in &closed {
        second.hget(TIMELINES, id);
    }
    let (waits, timelines): (Vec<Vec<String>>, Vec<Option<String>>) = if second.is_empty() {
        Default::default()
    } else {
        let read = second.query_async::<Vec<redis::Value>>(&mut connection).await;
        let mut read = redis.checked(read).await.context("Redis does not answer")?;
        let timelines = read.split_off(queues.len());
        (redis::from_redis_value(redis::Value::Array(read))?, redis::from_redis_value(redis::Value::Array(timelines))?)
    };
    let oldest =
        queues.keys().zip(waits).filter_map(|(queue, waits)| Some((queue.clone(), waiting_since(waits.first()?)?)));
    let timelines = closed.iter().zip(timelines).filter_map(|(id, timeline)| Some((id, timeline?)));
    let timelines = timelines.map(|(id, timeline)| Ok((id.parse()?, serde_json::from_str(&timeline)?)));
    Ok(Snapshot {
        now: OffsetDateTime::from_unix_timestamp_nanos((seconds * 1_000_000 + micros) * 1_000)?,
        watermark: parse_watermark(watermark),
        oldest: oldest.collect(),
        queues,
        sessions: parse(sessions)?,
        minutes: parse(minutes)?,
        closed: timelines.collect::<anyhow::Result<_>>().context(UNREADABLE)?,
        dead_letters: dead_letters
            .map(|dead_letters| serde_json::from_str(&dead_letters))
            .transpose()
            .context(UNREADABLE)?,
    })
}

/// Reads the timeline of a session; `None` if the projections do not have it.
///
/// # Errors
/// If Redis does not answer, or contains data that this build cannot read.
pub(super) async fn timeline(redis: &Redis, id: SessionId) -> anyhow::Result<Option<Timeline>> {
    let mut connection = redis.connection().await.context("Redis does not answer")?;
    let read = redis::cmd("HGET").arg(TIMELINES).arg(id.to_string()).query_async(&mut connection).await;
    let found: Option<String> = redis.checked(read).await.context("Redis does not answer")?;
    found.map(|found| serde_json::from_str(&found)).transpose().context(UNREADABLE)
}

/// The projector may be another build, which writes another format.
const UNREADABLE: &str = "cannot read the projections; the gateway and the session worker may have different versions";

fn parse<K: std::str::FromStr + Ord, V: DeserializeOwned>(fields: Fields) -> anyhow::Result<BTreeMap<K, V>> {
    let read = |(field, value): (String, String)| Some((field.parse().ok()?, serde_json::from_str(&value).ok()?));
    fields.into_iter().map(|field| read(field).context(UNREADABLE)).collect()
}

fn parse_watermark([seq, time, behind, seen]: [Option<String>; 4]) -> Watermark {
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let millis = |millis: u64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
    Watermark {
        seq: number(seq).unwrap_or_default(),
        time: time.and_then(|time| OffsetDateTime::parse(&time, &Rfc3339).ok()),
        behind: number(behind),
        seen: number(seen).and_then(millis),
    }
}
