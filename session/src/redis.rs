//! The session worker's operations on Redis: the projections, and the game servers' secrets.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use garage_events::{
    crash::Point,
    id::{PlayerId, QueueName, SessionId},
    projection::{self, CLOSED_KEPT, DEAD_LETTERS, DeadLetters, Keys, LIVE, Live, LivePlayer, LiveSession, REBUILD},
};
use garage_worker::redis::Redis as Connection;
use redis::{AsyncCommands, RedisError, Script};
use serde::{Serialize, de::DeserializeOwned};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::fold::{Changes, CurrentState, ProjectedState, Touched};

/// The Redis client of the session worker. Clones share a connection.
#[derive(Debug, Clone)]
pub struct Redis(Connection);

impl Redis {
    /// Uses this connection.
    pub fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Stores the encrypted secrets of a game server for the director, for the time `keep`.
    ///
    /// # Errors
    /// If Redis does not confirm the write.
    pub async fn park(&self, fingerprint: &str, sealed: &[u8], keep: Duration) -> Result<(), RedisError> {
        let (key, keep) = (projection::parked_key(fingerprint), keep.as_secs().max(1));
        self.0.change(Point::KeyParked, async |connection| connection.set_ex(key, sealed, keep).await).await
    }

    /// Reads the parts of a set of projections that events touch. If another process changes the projections before
    /// [`apply`](Self::apply), then `apply` writes nothing.
    ///
    /// # Errors
    /// If Redis does not answer, or contains data that cannot be read.
    pub async fn read_touched(&self, keys: &Keys, touched: &Touched) -> anyhow::Result<CurrentState> {
        let [_, _, players, queues, _, minutes, timelines, _] = keys;
        let mut connection = self.0.connection().await.context("Redis does not answer")?;
        let mut pipe = redis::pipe();
        pipe.hgetall(queues).hkeys(minutes);
        get_fields(&mut pipe, players, &touched.players);
        get_fields(&mut pipe, timelines, &touched.sessions);
        get_fields(&mut pipe, minutes, &touched.minutes);
        let read = self.0.checked(pipe.query_async(&mut connection).await).await.context("Redis does not answer")?;
        let (depths, kept, found_players, found_timelines, found_minutes): (Vec<(String, u64)>, _, _, _, _) = read;
        Ok(CurrentState {
            players: parse_fields(&touched.players, found_players)?,
            timelines: parse_fields(&touched.sessions, found_timelines)?,
            minutes: parse_fields(&touched.minutes, found_minutes)?,
            kept,
            queues: depths
                .into_iter()
                .map(|(name, depth)| Ok((name.parse()?, depth)))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// The sequence of the live projections. `None` if there are none, or if they belong to another log.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn watermark(&self, log: &str) -> anyhow::Result<Option<u64>> {
        let mut connection = self.0.connection().await.context("Redis does not answer")?;
        let read = connection.hmget(projection::WATERMARK, &["log", "seq"]).await;
        let (found, seq): (Option<String>, Option<u64>) =
            self.0.checked(read).await.context("Redis does not answer")?;
        Ok(seq.filter(|_| found.as_deref() == Some(log)))
    }

    /// Writes changes to a set of projections if it is at the sequence `from`, and sets its sequence to `to`.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn apply(&self, point: Point, keys: &Keys, log: &str, advance: &Advance) -> anyhow::Result<Applied> {
        let Advance { from, to, time, behind, changes } = advance;
        let script = Script::new(include_str!("projector/apply.lua"));
        let mut script = script.prepare_invoke();
        script
            .key(keys)
            .arg(log)
            .arg(from)
            .arg(to)
            .arg(time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default())
            .arg(behind.map(|behind| behind.to_string()).unwrap_or_default())
            .arg(commands(changes)?)
            .arg(changes.horizon.map(|minute| (minute * 60_000).to_string()).unwrap_or_default())
            .arg(CLOSED_KEPT);
        let applied = self.0.change(point, async |connection| script.invoke_async(connection).await).await;
        let at: i64 = applied.context("Redis does not answer")?;
        Ok(u64::try_from(at).map_or(Applied::Foreign, Applied::At))
    }

    /// Writes the summary of the dead letters.
    ///
    /// # Errors
    /// If Redis does not confirm the write.
    pub async fn write_dead_letters(&self, dead_letters: &DeadLetters) -> anyhow::Result<()> {
        let dead_letters = serde_json::to_string(dead_letters)?;
        Ok(self
            .0
            .change(Point::DeadLettersNoted, async |connection| connection.set(DEAD_LETTERS, dead_letters).await)
            .await?)
    }

    /// Empties a set of projections and sets it to the beginning of a log, unless it already belongs to that log.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn reset(&self, point: Point, keys: &Keys, log: &str) -> Result<(), RedisError> {
        let script = Script::new(include_str!("projector/reset.lua"));
        let mut script = script.key(keys);
        script.arg(log);
        self.0.change(point, async |connection| script.invoke_async(connection).await).await
    }

    /// Begins a rebuild with an empty set of projections beside the live ones. `name` identifies the rebuild. If an
    /// earlier rebuild still runs, it fails, because its set is deleted.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn begin_rebuild(&self, name: &str) -> Result<(), RedisError> {
        let () = self.0.change(Point::ProjectionsBegun, async |connection| connection.unlink(&REBUILD).await).await?;
        self.reset(Point::ProjectionsBegun, &REBUILD, name).await
    }

    /// Replaces the live projections with those of the rebuild `name`, unless the live ones have a higher sequence. A
    /// live sequence that is higher than `end`, the end of the log, is wrong and is ignored. Returns the sequence of
    /// the live projections afterwards.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn switch(&self, log: &str, name: &str, end: u64) -> Result<Applied, RedisError> {
        let script = Script::new(include_str!("projector/switch.lua"));
        let mut script = script.key(&LIVE);
        script.key(&REBUILD).arg(log).arg(name).arg(end);
        let switched = async |connection: &mut _| script.invoke_async(connection).await;
        let at: i64 = self.0.change(Point::ProjectionsSwitched, switched).await?;
        Ok(u64::try_from(at).map_or(Applied::Foreign, Applied::At))
    }

    /// Reads the current state of Garage from the live projections, as of one moment.
    ///
    /// # Errors
    /// If Redis does not answer, or contains data that cannot be read.
    pub async fn live(&self) -> anyhow::Result<Live> {
        type Fields = Vec<(String, String)>;
        let mut connection = self.0.connection().await.context("Redis does not answer")?;
        let read = redis::pipe()
            .atomic()
            .hget(projection::WATERMARK, "seq")
            .hgetall(projection::SESSIONS)
            .hgetall(projection::PLAYERS)
            .hgetall(projection::QUEUES)
            .query_async(&mut connection)
            .await;
        let (seq, sessions, players, queues): (Option<u64>, Fields, Fields, Vec<(String, u64)>) =
            self.0.checked(read).await.context("Redis does not answer")?;
        let mut live = Live { seq: seq.unwrap_or(0), sessions: [].into(), players: [].into(), queues: [].into() };
        for (id, session) in sessions {
            live.sessions.insert(id.parse::<SessionId>()?, serde_json::from_str::<LiveSession>(&session)?);
        }
        for (id, player) in players {
            live.players.insert(id.parse::<PlayerId>()?, serde_json::from_str::<LivePlayer>(&player)?);
        }
        for (name, depth) in queues {
            live.queues.insert(name.parse::<QueueName>()?, depth);
        }
        Ok(live)
    }

    /// Copies the live projections, as of one moment.
    ///
    /// # Errors
    /// If Redis does not answer.
    pub async fn copy(&self) -> anyhow::Result<ProjectionsCopy> {
        let [mark, hashes @ ..] = [
            projection::WATERMARK,
            projection::SESSIONS,
            projection::PLAYERS,
            projection::QUEUES,
            projection::COUNTS,
            projection::TIMELINES,
        ];
        let sets = [projection::WAITS, projection::CLOSED];
        let mut pipe = redis::pipe();
        pipe.atomic().hget(mark, "log").hget(mark, "seq");
        for key in hashes {
            pipe.hgetall(key);
        }
        for key in sets {
            pipe.zrange_withscores(key, 0, -1);
        }
        let mut connection = self.0.connection().await.context("Redis does not answer")?;
        type Hash = BTreeMap<String, String>;
        type Set = BTreeMap<String, u64>;
        let read = self.0.checked(pipe.query_async(&mut connection).await).await.context("Redis does not answer")?;
        let (log, seq, sessions, players, queues, counts, timelines, waits, closed): (
            _,
            Option<u64>,
            Hash,
            Hash,
            Hash,
            Hash,
            Hash,
            Set,
            Set,
        ) = read;
        let mut contents = ProjectedState::new();
        for (key, fields) in hashes.into_iter().zip([sessions, players, queues, counts, timelines]) {
            // A value that is not JSON is wrong. It is returned as a text, so that a comparison finds it.
            let read = |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
            contents.insert(key, fields.into_iter().map(|(field, text)| (field, read(text))).collect());
        }
        for (key, members) in sets.into_iter().zip([waits, closed]) {
            contents.insert(key, members.into_iter().map(|(member, score)| (member, score.into())).collect());
        }
        Ok(ProjectionsCopy { log, seq: seq.unwrap_or(0), contents })
    }
}

/// The contents of the live projections at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProjectionsCopy {
    /// The identity of their log; `None` if there are no projections.
    pub log: Option<String>,
    /// The last sequence applied.
    pub seq: u64,
    pub contents: ProjectedState,
}

/// A step that moves a set of projections from one sequence to another.
#[derive(Debug, Default)]
pub struct Advance {
    /// The sequence that the set must have before the step.
    pub from: u64,
    /// The sequence that the set has after the step.
    pub to: u64,
    /// The stream's timestamp of the last event; `None` if the step has no event.
    pub time: Option<OffsetDateTime>,
    /// How many messages of the log are not read yet; `None` if that is unknown.
    pub behind: Option<u64>,
    pub changes: Changes,
}

/// The maximum number of arguments of one command in the script. It is even, so that pairs of arguments are not
/// separated, and below the number of values that Lua can unpack from a table at once (8,000).
const MAX_ARGUMENTS: usize = 2_000;

/// Requests several fields of a hash. Redis rejects a request for no fields, so an empty list becomes a request for a
/// field with an empty name, which does not exist.
fn get_fields(pipe: &mut redis::Pipeline, key: &str, fields: impl IntoIterator<Item = impl ToString>) {
    let fields: Vec<_> = fields.into_iter().map(|field| field.to_string()).collect();
    pipe.cmd("HMGET").arg(key).arg(if fields.is_empty() { vec![String::new()] } else { fields });
}

/// Parses the values of the requested fields. Leaves out fields that do not exist.
fn parse_fields<'a, K: Clone + Ord + 'a, V: DeserializeOwned>(
    requested: impl IntoIterator<Item = &'a K>,
    found: Vec<Option<String>>,
) -> anyhow::Result<BTreeMap<K, V>> {
    let pairs = requested.into_iter().zip(found).filter_map(|(field, value)| Some((field, value?)));
    let read = |(field, value): (&K, String)| Ok((field.clone(), serde_json::from_str(&value)?));
    pairs.map(read).collect::<anyhow::Result<_>>().context("cannot read the projections; run `garage rebuild`")
}

/// The commands that write changes, as `apply.lua` expects them: name, number of the key, and arguments.
fn commands(changes: &Changes) -> serde_json::Result<String> {
    let Changes { players, queues, waits, sessions, timelines, closed, minutes, horizon: _ } = changes;
    let (waiting, gone): (Vec<_>, Vec<_>) = waits.iter().partition(|(_, waits)| **waits);
    let waiting = waiting.into_iter().flat_map(|(waiter, _)| ["0".into(), waiter.clone()]);
    let closed = closed.iter().flat_map(|(id, time)| [time.to_string(), id.to_string()]);
    let mut commands: Vec<(&str, usize, Vec<String>)> = Vec::new();
    add_hash_commands(&mut commands, 2, sessions)?;
    add_hash_commands(&mut commands, 3, players)?;
    add_hash_commands(&mut commands, 4, queues)?;
    commands.push(("ZREM", 5, gone.into_iter().map(|(waiter, _)| waiter.clone()).collect()));
    commands.push(("ZADD", 5, waiting.collect()));
    add_hash_commands(&mut commands, 6, minutes)?;
    add_hash_commands(&mut commands, 7, timelines)?;
    commands.push(("ZADD", 8, closed.collect()));
    let parts = commands
        .iter()
        .flat_map(|(name, key, arguments)| arguments.chunks(MAX_ARGUMENTS).map(move |part| (name, key, part)));
    serde_json::to_string(&parts.collect::<Vec<_>>())
}

/// Adds the commands that set the fields that have a value, and delete the fields that have none.
fn add_hash_commands<'a, K: ToString + 'a, V: Serialize + 'a>(
    commands: &mut Vec<(&str, usize, Vec<String>)>,
    key: usize,
    fields: impl IntoIterator<Item = (&'a K, &'a Option<V>)>,
) -> serde_json::Result<()> {
    let (mut set, mut deleted) = (Vec::new(), Vec::new());
    for (field, value) in fields {
        match value {
            Some(value) => set.extend([field.to_string(), serde_json::to_string(value)?]),
            None => deleted.push(field.to_string()),
        }
    }
    commands.extend([("HSET", key, set), ("HDEL", key, deleted)]);
    Ok(())
}

/// The position of a set of projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The set has this sequence. If it is the sequence after the operation, the operation was applied.
    At(u64),
    /// The set belongs to another log, or does not exist.
    Foreign,
}
