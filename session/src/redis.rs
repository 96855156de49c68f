//! Redis: parked secrets and projections.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use garage_events::{
    crash::Point,
    id::{PlayerId, QueueName, SessionId},
    projection::{self, ANEW, CLOSED_KEPT, DEAD_LETTERS, DeadLetters, Keys, LIVE, Live, LivePlayer, LiveSession},
};
use garage_worker::redis::Redis as Connection;
use redis::{AsyncCommands, RedisError, Script};
use serde::{Serialize, de::DeserializeOwned};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::projector::{
    ProjectedState,
    fold::{Changes, CurrentState, Touched},
};

/// What session asks of Redis. Clones share a connection.
#[derive(Debug, Clone)]
pub struct Redis(Connection);

impl Redis {
    /// Over this connection.
    pub fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Parks the sealed secrets of a game for its director.
    ///
    /// # Errors
    /// When Redis does not confirm it.
    pub async fn park(&self, fingerprint: &str, sealed: &[u8], keep: Duration) -> Result<(), RedisError> {
        let (key, keep) = (projection::parked_key(fingerprint), keep.as_secs().max(1));
        self.0.change(Point::KeyParked, async |connection| connection.set_ex(key, sealed, keep).await).await
    }

    /// Reads what events touch of a set of projections. It is of where [`apply`](Self::apply) finds them, or is not
    /// written upon.
    ///
    /// # Errors
    /// When Redis does not answer, or holds what cannot be read.
    pub async fn present(&self, keys: &Keys, touched: &Touched) -> anyhow::Result<CurrentState> {
        let [_, _, players, queues, _, minutes, timelines, _] = keys;
        let mut connection = self.0.connection().await.context("redis does not answer")?;
        let mut pipe = redis::pipe();
        pipe.hgetall(queues).hkeys(minutes);
        many(&mut pipe, players, &touched.players);
        many(&mut pipe, timelines, &touched.sessions);
        many(&mut pipe, minutes, &touched.minutes);
        let read = self.0.checked(pipe.query_async(&mut connection).await).await.context("redis does not answer")?;
        let (depths, kept, found_players, found_timelines, found_minutes): (Vec<(String, u64)>, _, _, _, _) = read;
        Ok(CurrentState {
            players: found(&touched.players, found_players)?,
            timelines: found(&touched.sessions, found_timelines)?,
            minutes: found(&touched.minutes, found_minutes)?,
            kept,
            queues: depths
                .into_iter()
                .map(|(name, depth)| Ok((name.parse()?, depth)))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// Writes changes to a set of projections if it stands at `from`, and moves it to `to`.
    ///
    /// # Errors
    /// When Redis does not answer.
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
        let at: i64 = applied.context("redis does not answer")?;
        Ok(u64::try_from(at).map_or(Applied::Foreign, Applied::At))
    }

    /// Notes what the stream of dead letters holds.
    ///
    /// # Errors
    /// When Redis does not confirm it.
    pub async fn note_dead_letters(&self, dead_letters: &DeadLetters) -> anyhow::Result<()> {
        let dead_letters = serde_json::to_string(dead_letters)?;
        Ok(self
            .0
            .change(Point::DeadLettersNoted, async |connection| connection.set(DEAD_LETTERS, dead_letters).await)
            .await?)
    }

    /// Empties projections and sets them to the beginning of a log, unless they are of that log already.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn reset(&self, point: Point, keys: &Keys, log: &str) -> Result<(), RedisError> {
        let script = Script::new(include_str!("projector/reset.lua"));
        let mut script = script.key(keys);
        script.arg(log);
        self.0.change(point, async |connection| script.invoke_async(connection).await).await
    }

    /// Begins to make projections anew, beside the live ones, under a name of their own: whoever made some before finds
    /// them gone.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn begin_anew(&self, name: &str) -> Result<(), RedisError> {
        let () = self.0.change(Point::ProjectionsBegun, async |connection| connection.unlink(&ANEW).await).await?;
        self.reset(Point::ProjectionsBegun, &ANEW, name).await
    }

    /// Puts the projections that were made anew under a name in the place of the live ones, unless these are further; but
    /// not than the log's `end`, which no projection can be. Tells where the live ones stand then.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn switch(&self, log: &str, name: &str, end: u64) -> Result<Applied, RedisError> {
        let script = Script::new(include_str!("projector/switch.lua"));
        let mut script = script.key(&LIVE);
        script.key(&ANEW).arg(log).arg(name).arg(end);
        let switched = async |connection: &mut _| script.invoke_async(connection).await;
        let at: i64 = self.0.change(Point::ProjectionsSwitched, switched).await?;
        Ok(u64::try_from(at).map_or(Applied::Foreign, Applied::At))
    }

    /// Reads the projections, all as of one moment.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn live(&self) -> anyhow::Result<Live> {
        type Fields = Vec<(String, String)>;
        let mut connection = self.0.connection().await.context("redis does not answer")?;
        let read = redis::pipe()
            .atomic()
            .hget(projection::WATERMARK, "seq")
            .hgetall(projection::SESSIONS)
            .hgetall(projection::PLAYERS)
            .hgetall(projection::QUEUES)
            .query_async(&mut connection)
            .await;
        let (seq, sessions, players, queues): (Option<u64>, Fields, Fields, Vec<(String, u64)>) =
            self.0.checked(read).await.context("redis does not answer")?;
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

    /// Copies the live projections, all as of one moment.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn copy(&self) -> anyhow::Result<Copied> {
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
        let mut connection = self.0.connection().await.context("redis does not answer")?;
        type Hash = BTreeMap<String, String>;
        type Set = BTreeMap<String, u64>;
        let read = self.0.checked(pipe.query_async(&mut connection).await).await.context("redis does not answer")?;
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
        let mut held = ProjectedState::new();
        for (key, fields) in hashes.into_iter().zip([sessions, players, queues, counts, timelines]) {
            // What is no JSON is not what it should be, and comes out as the text that it is.
            let read = |text: String| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
            held.insert(key, fields.into_iter().map(|(field, text)| (field, read(text))).collect());
        }
        for (key, members) in sets.into_iter().zip([waits, closed]) {
            held.insert(key, members.into_iter().map(|(member, score)| (member, score.into())).collect());
        }
        Ok(Copied { log, seq: seq.unwrap_or(0), held })
    }
}

/// The live projections as they were at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Copied {
    /// The identity of the log that they are of; none when there are no projections.
    pub log: Option<String>,
    /// The last sequence applied.
    pub seq: u64,
    /// What they hold.
    pub held: ProjectedState,
}

/// A step of a set of projections from one sequence to another.
#[derive(Debug, Default)]
pub struct Advance {
    /// Where it must stand.
    pub from: u64,
    /// Where it will.
    pub to: u64,
    /// The stream's timestamp of the last event, if there was one.
    pub time: Option<OffsetDateTime>,
    /// Messages that are still to come, if that is known.
    pub behind: Option<u64>,
    /// What is to be written.
    pub changes: Changes,
}

/// Arguments of one command of the script: an even number, so that what belongs together stays so, and far fewer than
/// Lua can take from a table at once (8,000).
const ARGUMENTS: usize = 2_000;

/// Asks for many fields of a hash. Redis refuses to be asked for none; no field has an empty name.
fn many(pipe: &mut redis::Pipeline, key: &str, fields: impl IntoIterator<Item = impl ToString>) {
    let fields: Vec<_> = fields.into_iter().map(|field| field.to_string()).collect();
    pipe.cmd("HMGET").arg(key).arg(if fields.is_empty() { vec![String::new()] } else { fields });
}

/// What was there of the fields asked for.
fn found<'a, K: Clone + Ord + 'a, V: DeserializeOwned>(
    asked: impl IntoIterator<Item = &'a K>,
    found: Vec<Option<String>>,
) -> anyhow::Result<BTreeMap<K, V>> {
    let pairs = asked.into_iter().zip(found).filter_map(|(field, value)| Some((field, value?)));
    let read = |(field, value): (&K, String)| Ok((field.clone(), serde_json::from_str(&value)?));
    pairs.map(read).collect::<anyhow::Result<_>>().context("the projections cannot be read; run `garage rebuild`")
}

/// The commands that write changes, as the script takes them: each with the place of its key and its arguments.
fn commands(changes: &Changes) -> serde_json::Result<String> {
    let Changes { players, queues, waits, sessions, timelines, closed, minutes, horizon: _ } = changes;
    let (waiting, gone): (Vec<_>, Vec<_>) = waits.iter().partition(|(_, waits)| **waits);
    let waiting = waiting.into_iter().flat_map(|(waiter, _)| ["0".into(), waiter.clone()]);
    let closed = closed.iter().flat_map(|(id, time)| [time.to_string(), id.to_string()]);
    let mut commands: Vec<(&str, usize, Vec<String>)> = Vec::new();
    hash(&mut commands, 2, sessions)?;
    hash(&mut commands, 3, players)?;
    hash(&mut commands, 4, queues)?;
    commands.push(("ZREM", 5, gone.into_iter().map(|(waiter, _)| waiter.clone()).collect()));
    commands.push(("ZADD", 5, waiting.collect()));
    hash(&mut commands, 6, minutes)?;
    hash(&mut commands, 7, timelines)?;
    commands.push(("ZADD", 8, closed.collect()));
    let parts = commands
        .iter()
        .flat_map(|(name, key, arguments)| arguments.chunks(ARGUMENTS).map(move |part| (name, key, part)));
    serde_json::to_string(&parts.collect::<Vec<_>>())
}

/// The commands that set the fields of a hash that have a value, and delete those that have none.
fn hash<'a, K: ToString + 'a, V: Serialize + 'a>(
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

/// Where the projections stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// At this sequence; the operations were applied if it is the one they lead to.
    At(u64),
    /// They are of another log, or of none.
    Foreign,
}
