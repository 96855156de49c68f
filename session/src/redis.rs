//! Redis: parked keys and projections.

use std::time::Duration;

use anyhow::Context;
use garage_events::{
    id::{PlayerId, QueueName, SessionId},
    projection::{self, ANEW, Keys, LIVE, Live, LivePlayer, LiveSession},
};
use garage_worker::redis::Redis as Connection;
use redis::{AsyncCommands, RedisError, Script};

/// What session asks of Redis. Clones share a connection.
#[derive(Debug, Clone)]
pub struct Redis(Connection);

impl Redis {
    /// Over this connection.
    pub fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Parks a sealed key for its director.
    ///
    /// # Errors
    /// When Redis does not confirm it.
    pub async fn park(&self, fingerprint: &str, sealed: &[u8], keep: Duration) -> Result<(), RedisError> {
        let mut connection = self.0.connection().await?;
        let parked = connection.set_ex(projection::parked_key(fingerprint), sealed, keep.as_secs().max(1)).await;
        self.0.checked(parked).await
    }

    /// Applies operations to projections if they stand at `from`, and moves them to `to`.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn apply(
        &self,
        keys: Keys,
        log: &str,
        from: u64,
        to: u64,
        operations: &str,
    ) -> Result<Applied, RedisError> {
        let mut connection = self.0.connection().await?;
        let applied = Script::new(include_str!("projector/apply.lua"))
            .key(&keys)
            .arg(log)
            .arg(from)
            .arg(to)
            .arg(operations)
            .invoke_async(&mut connection)
            .await;
        let at: i64 = self.0.checked(applied).await?;
        Ok(u64::try_from(at).map_or(Applied::Foreign, Applied::At))
    }

    /// Empties projections and sets them to the beginning of a log, unless they are of that log already.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn reset(&self, keys: Keys, log: &str) -> Result<(), RedisError> {
        let mut connection = self.0.connection().await?;
        let script = Script::new(include_str!("projector/reset.lua"));
        self.0.checked(script.key(&keys).arg(log).invoke_async(&mut connection).await).await
    }

    /// Begins to make projections anew, beside the live ones.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn begin_anew(&self, log: &str) -> Result<(), RedisError> {
        let mut connection = self.0.connection().await?;
        let () = self.0.checked(connection.unlink(&ANEW).await).await?;
        self.reset(ANEW, log).await
    }

    /// Puts the projections that were made anew in the place of the live ones, unless these are further; but not
    /// than the log's `end`, which no projection can be. Tells where the live ones stand then.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn switch(&self, log: &str, end: u64) -> Result<Applied, RedisError> {
        let mut connection = self.0.connection().await?;
        let script = Script::new(include_str!("projector/switch.lua"));
        let switched = script.key(&LIVE).key(&ANEW).arg(log).arg(end).invoke_async(&mut connection).await;
        let at: i64 = self.0.checked(switched).await?;
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
}

/// Where the projections stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// At this sequence; the operations were applied if it is the one they lead to.
    At(u64),
    /// They are of another log, or of none.
    Foreign,
}
