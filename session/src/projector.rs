//! The projections in Redis: live sessions, players, queue depths.
//!
//! They hold only what the retained log determines, and are applied together with a watermark: the log's identity and
//! the last sequence applied. When it is missing or foreign (Redis was flushed, the log is another) they are made anew
//! from the log's beginning; an operator may have them made anew at any time ([`fn@rebuild`]). Several projectors may run: whoever comes second sees the watermark moved and goes on from there.

mod rebuild;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use garage_events::{
    event::{DecodeError, Envelope},
    id::{PlayerId, SessionId},
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    player,
    projection::{LIVE, LivePlayer, LiveSession},
    session::{self, Status},
    subject::{Aggregate, PLAYERS, SESSIONS, STREAM},
};
use garage_worker::{Health, Shutdown, patiently};
use serde::Serialize;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};

pub use self::rebuild::{Rebuilt, rebuild};
use crate::redis::{Applied, Redis};

/// Events applied in one script; Redis does nothing else meanwhile.
const BATCH: usize = 500;

/// How long a batch waits for a further event.
const LINGER: Duration = Duration::from_millis(5);

/// How often an idle projector looks whether its projections are still there.
const IDLE: Duration = Duration::from_secs(1);

/// Keeps the projections at the log's end.
#[derive(Debug)]
pub struct Projector {
    log: JetStreamLog,
    redis: Redis,
    health: Health,
}

impl Projector {
    /// A projector of a log into a Redis.
    pub fn new(log: JetStreamLog, redis: Redis, health: Health) -> Self {
        Self { log, redis, health }
    }

    /// Projects until `shutdown`.
    ///
    /// # Errors
    /// None; what does not answer is waited for.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("redis", "not asked yet");
        let project = async {
            let identity = patiently("the log's identity", || identity(self.log.context())).await;
            self.project(&identity).await;
        };
        shutdown.run_until_cancelled(project).await;
        Ok(())
    }

    async fn project(&self, identity: &str) {
        // Asking with an impossible `from` applies nothing, and tells where the projections stand.
        let mut at = self.apply(identity, u64::MAX >> 12, 0, &[]).await;
        let mut follow = self.follow(at);
        loop {
            let batch = gather(&mut follow).await;
            let to = batch.last().map_or(at, |message| message.seq);
            let operations: Vec<_> = batch.iter().filter_map(operation).collect();
            let stands = self.apply(identity, at, to, &operations).await;
            if stands != to {
                tracing::info!(from = stands, "the projections were moved by another, or are made anew");
                follow = self.follow(stands);
            }
            at = stands;
            metrics::gauge!("garage_projection_seq").set(f64::from(u32::try_from(at).unwrap_or(u32::MAX)));
        }
    }

    fn follow(&self, at: u64) -> Follow {
        Follow::new(self.log.context().clone(), STREAM, filters(), at + 1)
    }

    /// Applies operations, for as long as Redis takes, and tells where the projections stand then.
    async fn apply(&self, identity: &str, from: u64, to: u64, operations: &[Operation]) -> u64 {
        let operations = serde_json::to_string(operations).unwrap_or_else(|_| "[]".into());
        loop {
            let result = match self.redis.apply(LIVE, identity, from, to, &operations).await {
                Ok(Applied::Foreign) => self.redis.reset(LIVE, identity).await.map(|()| 0),
                Ok(Applied::At(seq)) => Ok(seq),
                Err(error) => Err(error),
            };
            match result {
                Ok(seq) => {
                    self.health.up("redis");
                    return seq;
                }
                Err(error) => {
                    tracing::warn!(%error, "projections wait for redis");
                    self.health.down("redis", error.to_string());
                    sleep(IDLE).await;
                }
            }
        }
    }
}

/// What tells this log from one that was made later under the same name.
async fn identity(context: &Context) -> anyhow::Result<String> {
    let mut stream = context.get_stream(STREAM).await.context("cannot read the log's identity")?;
    let created = stream.info().await.context("cannot read the log's identity")?.created;
    Ok(created.format(&Rfc3339)?)
}

/// What the projections are made of.
fn filters() -> Vec<String> {
    vec![PLAYERS.into(), SESSIONS.into()]
}

/// What is there, up to a bound; after a while without news, nothing.
async fn gather(follow: &mut Follow) -> Vec<Message> {
    let mut batch = Vec::new();
    let mut patience = IDLE;
    while batch.len() < BATCH {
        let Ok(message) = timeout(patience, follow.next()).await else { break };
        let more = message.pending > 0;
        batch.push(message);
        patience = LINGER;
        if !more {
            break;
        }
    }
    batch
}

/// A change of the projections.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Operation {
    Player {
        player: PlayerId,
        /// JSON of a [`LivePlayer`]; none takes him out.
        #[serde(skip_serializing_if = "Option::is_none")]
        state: Option<String>,
    },
    Session {
        session: SessionId,
        /// Fields of a [`LiveSession`] to set; none takes it out.
        #[serde(skip_serializing_if = "Option::is_none")]
        patch: Option<Value>,
    },
}

fn operation(message: &Message) -> Option<Operation> {
    let read = || -> Result<Option<Operation>, DecodeError> {
        let envelope = Envelope::from_slice(&message.body)?;
        Ok(match Aggregate::of(&message.subject) {
            Some(Aggregate::Player(player)) => Some(of_player(player, &envelope.event()?)),
            Some(Aggregate::Session(session)) => of_session(session, message, &envelope.event()?),
            Some(Aggregate::Inventory(_)) | None => None,
        })
    };
    read().unwrap_or_else(|error| {
        metrics::counter!("garage_projection_skipped_total").increment(1);
        tracing::warn!(event.seq = message.seq, %error, "event skipped by the projections");
        None
    })
}

fn of_player(player: PlayerId, event: &player::Event) -> Operation {
    let state = match player::State::evolve(event) {
        player::State::Waiting(queued) => Some(LivePlayer::Waiting { queue: queued.queue }),
        player::State::Matched(player::Matched { session, .. })
        | player::State::Playing(player::PlayerMatched { session, .. }) => Some(LivePlayer::InSession { session }),
        player::State::New | player::State::Idle { .. } => None,
    };
    Operation::Player { player, state: state.and_then(|state| serde_json::to_string(&state).ok()) }
}

fn of_session(session: SessionId, message: &Message, event: &session::Event) -> Option<Operation> {
    let patch = match event {
        session::Event::Matched(matched) => serde_json::to_value(LiveSession {
            status: Status::Matched,
            queue: matched.queue.clone(),
            region: matched.region.clone(),
            players: matched.players().cloned().collect(),
            attempt: 0,
            since: message.time,
        })
        .ok(),
        session::Event::PodRequested(requested) => {
            Some(json!({ "status": Status::Starting, "attempt": requested.attempt }))
        }
        session::Event::Opened(_) => Some(json!({ "status": Status::Open })),
        session::Event::Closed(_) => None,
        session::Event::PodScheduled(_)
        | session::Event::PodFailed(_)
        | session::Event::PodReady(_)
        | session::Event::Failed(_)
        | session::Event::Finished(_) => return None,
    };
    Some(Operation::Session { session, patch })
}
