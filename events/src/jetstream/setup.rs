//! What `garage init` makes: streams and consumers. It may be run again at any time, and upgrades what it finds.

use std::{error::Error, fmt::Write, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, Context, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::{CreateStreamError, CreateStreamErrorKind},
        stream::{
            Config, ConsumerCreateStrictErrorKind, ConsumerError, ConsumerErrorKind, DiscardPolicy, Info,
            PersistenceMode, Source, StorageType,
        },
    },
};
use tokio::time::{Instant, error::Elapsed, sleep};

use super::OpenError;
use crate::{
    crash::Point,
    lease, presence, queue_status,
    subject::{
        self, ALL, ALL_DEAD, ALL_DUE, ALL_REPORTS, ALL_SNAPSHOTS, DEAD, HISTORY, REPORTS, SESSIONS, SNAPSHOTS, STREAM,
        TIMERS,
    },
};

/// The oldest server that has all that the log needs.
pub const OLDEST_SERVER: (u32, u32) = (2, 15);

const HOUR: Duration = Duration::from_secs(3_600);

/// How long the log remembers. An expectation on a subject whose block is cold costs milliseconds under the stream's
/// lock; a session lives for minutes; who comes back tomorrow is new to the log.
const LOG_AGE: Duration = Duration::from_secs(12 * 3_600);

/// How long the log may become; the server sets so much of its disk aside. Full, it refuses commands instead of
/// forgetting its beginning.
const LOG_BYTES: i64 = 8 << 30;

/// How often the server is asked that does not answer, 5 s each time.
const TRIES: u32 = 6;

/// How long, and how often, a cluster is asked that has too few nodes: they hear of each other every few seconds.
pub const GATHERING: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(500);

/// How long a worker has to answer for a delivery, or to say that it is still at it. It is also how long everything
/// stands still that a worker held when it was killed: half of what a game server has to get ready (10 s), so that a
/// director's death costs its players no attempt.
pub const ACK_WAIT: Duration = Duration::from_secs(5);

/// A durable consumer that a worker's instances share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// The stream it reads.
    pub stream: &'static str,
    /// Its name; also that of its dead letters.
    pub name: &'static str,
    /// The event types of sessions that it selects; empty for all that the stream has for it.
    tokens: &'static [&'static str],
    /// Where a process that acknowledges its messages can be made to die.
    pub acknowledged: Point,
}

/// Session reacts to its own events.
pub const SESSION: Consumer =
    Consumer { stream: STREAM, name: "session", tokens: &[], acknowledged: Point::SessionAcknowledged };
/// Session judges reports.
pub const SESSION_REPORTS: Consumer =
    Consumer { stream: REPORTS, name: "session-reports", tokens: &[], acknowledged: Point::ReportAcknowledged };
/// Session reacts to deadlines.
pub const SESSION_TIMERS: Consumer =
    Consumer { stream: TIMERS, name: "session-timers", tokens: &[], acknowledged: Point::TimerAcknowledged };
/// Director starts and removes instances.
pub const DIRECTOR: Consumer = Consumer {
    stream: STREAM,
    name: "director",
    tokens: &["pod-requested", "closed"],
    acknowledged: Point::DirectorAcknowledged,
};
/// Inventory pays.
pub const INVENTORY: Consumer =
    Consumer { stream: STREAM, name: "inventory", tokens: &["closed"], acknowledged: Point::RewardAcknowledged };

/// Every durable consumer.
pub const CONSUMERS: [Consumer; 5] = [SESSION, SESSION_REPORTS, SESSION_TIMERS, DIRECTOR, INVENTORY];

impl Consumer {
    /// The subjects that it selects, which do not overlap.
    pub fn filters(&self) -> Vec<String> {
        match (self.stream, self.tokens) {
            (TIMERS, _) => vec![ALL_DUE.into()],
            (REPORTS, _) => vec![ALL_REPORTS.into()],
            (_, []) => vec![SESSIONS.into()],
            (_, tokens) => tokens.iter().map(|token| subject::sessions(token)).collect(),
        }
    }

    fn config(&self, deliver_policy: DeliverPolicy) -> pull::Config {
        pull::Config {
            durable_name: Some(self.name.into()),
            filter_subjects: self.filters(),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // Without max_deliver: a message past it would vanish without a word. The worker looks at the count.
            max_ack_pending: 1_000,
            ..Default::default()
        }
    }
}

/// Makes everything, or brings it up to date.
///
/// # Errors
/// What could not be made, and what the server said.
pub async fn init(client: Client, replicas: usize) -> Result<(), SetupError> {
    check_server(&client)?;
    let context = jetstream::new(client);
    for config in streams(replicas) {
        keep_trying(async || make_stream(&context, &config).await).await?;
    }
    for consumer in CONSUMERS {
        keep_trying(async || make(&context, consumer).await).await?;
    }
    Ok(())
}

/// Asks again where there is no answer, and where there are too few nodes: in a cluster that has just started nobody
/// answers for a stream until its leader is elected, and each node takes the others for absent until it has heard of them.
async fn keep_trying(mut make: impl AsyncFnMut() -> Result<(), SetupError>) -> Result<(), SetupError> {
    let mut left = TRIES;
    let began = Instant::now();
    loop {
        match make().await {
            Err(SetupError::Make { source, .. }) if left > 1 && is_silence(&*source) => left -= 1,
            Err(SetupError::Make { source, .. }) if began.elapsed() < GATHERING && is_short(&*source) => {
                sleep(PAUSE).await;
            }
            made => return made,
        }
    }
}

fn is_silence(error: &(dyn Error + 'static)) -> bool {
    let silent = |error: &(dyn Error + 'static)| {
        let of_stream = error.downcast_ref().map(CreateStreamError::kind);
        let of_consumer = error.downcast_ref().map(ConsumerError::kind);
        error.is::<Elapsed>()
            || of_stream == Some(CreateStreamErrorKind::TimedOut)
            || of_consumer == Some(ConsumerErrorKind::TimedOut)
    };
    std::iter::successors(Some(error), |&error| error.source()).any(silent)
}

/// Whether the cluster has too few nodes for a stream.
fn is_short(error: &(dyn Error + 'static)) -> bool {
    let short = |error: &(dyn Error + 'static)| match error.downcast_ref().map(CreateStreamError::kind) {
        Some(CreateStreamErrorKind::JetStream(error)) => error.error_code() == ErrorCode::CLUSTER_NO_PEERS,
        _ => false,
    };
    std::iter::successors(Some(error), |&error| error.source()).any(short)
}

async fn make_stream(context: &Context, config: &Config) -> Result<(), SetupError> {
    let name = &config.name;
    let mut what = format!("stream {name}");
    if config.max_bytes > 0 {
        // Too little disk is the likeliest reason, and the server does not say how much it wants.
        let _ = write!(what, " (the server's disk must have {} MiB to set aside)", config.max_bytes >> 20);
    }
    let failed = |source: async_nats::Error| SetupError::Make { what: what.clone(), source };
    match context.get_stream(name).await {
        Ok(found) => {
            // How a stream is written cannot be changed once it is there.
            let persist_mode = found.cached_info().config.persist_mode;
            if persist_mode == Some(PersistenceMode::Async) && config.num_replicas > 1 {
                return Err(SetupError::OneNode { stream: name.clone() });
            }
            let config = Config { persist_mode, ..config.clone() };
            context.update_stream(&config).await.map(drop).map_err(|error| failed(error.into()))
        }
        Err(error) if is_missing(&error) => {
            context.create_stream(config.clone()).await.map(drop).map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error.into())),
    }
}

/// Makes one consumer, which begins at its stream's beginning, or brings it up to date.
///
/// # Errors
/// [`SetupError::Make`]
pub async fn make(context: &Context, consumer: Consumer) -> Result<(), SetupError> {
    let making = async {
        let stream = context.get_stream_no_info(consumer.stream).await?;
        let Err(error) = stream.create_consumer(consumer.config(DeliverPolicy::All)).await else { return Ok(()) };
        // Where it begins cannot be changed; one that its worker made again begins in the middle.
        match stream.consumer_info(consumer.name).await {
            Ok(found) if found.config.deliver_policy != DeliverPolicy::All => {
                stream.create_consumer(consumer.config(found.config.deliver_policy)).await?;
                Ok(())
            }
            _ => Err(error.into()),
        }
    };
    making.await.map_err(|source| failed(consumer, source))
}

/// Makes one consumer that is gone; it goes on after a sequence of its stream. One that is there is left as it is:
/// another instance was quicker, perhaps with another sequence.
///
/// # Errors
/// [`SetupError::Make`]
pub async fn make_after(context: &Context, consumer: Consumer, after: u64) -> Result<(), SetupError> {
    let begin = match after {
        0 => DeliverPolicy::All,
        after => DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
    };
    let making = async {
        let stream = context.get_stream_no_info(consumer.stream).await?;
        match stream.create_consumer_strict(consumer.config(begin)).await {
            Err(error) if error.kind() != ConsumerCreateStrictErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    };
    making.await.map_err(|source| failed(consumer, source))
}

fn failed(consumer: Consumer, source: async_nats::Error) -> SetupError {
    SetupError::Make { what: format!("consumer {}", consumer.name), source }
}

/// The names of all streams that [`init`] makes.
pub fn names() -> impl Iterator<Item = String> {
    streams(1).into_iter().map(|config| config.name)
}

/// Whether the answer was that there is no such stream.
pub fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), jetstream::context::GetStreamErrorKind::JetStream(api)
        if api.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn streams(replicas: usize) -> [Config; 9] {
    let base = |name: &str, subjects: &[&str]| Config {
        name: name.into(),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        storage: StorageType::File,
        num_replicas: replicas,
        ..Default::default()
    };
    // The shape that NATS's KV clients expect of a bucket.
    let bucket = |name: &str, subjects: &str| Config {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        deny_delete: true,
        allow_direct: true,
        allow_rollup: true,
        ..base(name, &[subjects])
    };
    [
        Config {
            max_age: LOG_AGE,
            max_bytes: LOG_BYTES,
            discard: DiscardPolicy::New,
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            allow_atomic_publish: true,
            ..base(STREAM, &[ALL])
        },
        Config {
            max_age: HOUR * 72,
            allow_direct: true,
            mirror: Some(Source { name: STREAM.into(), ..Default::default() }),
            persist_mode: (replicas == 1).then_some(PersistenceMode::Async),
            ..base(HISTORY, &[])
        },
        Config {
            // A schedule beyond max_age never fires.
            max_age: HOUR * 24,
            max_bytes: 1 << 30,
            allow_message_schedules: true,
            allow_rollup: true,
            ..base(TIMERS, &["timer.>"])
        },
        Config {
            max_age: HOUR,
            max_bytes: 1 << 30,
            // Two say all; a server that repeats itself displaces its own words only.
            max_messages_per_subject: 2,
            max_message_size: 64 << 10,
            ..base(REPORTS, &[ALL_REPORTS])
        },
        Config {
            // Longer than a socket lives.
            max_age: HOUR * 24 * 7,
            max_bytes: 256 << 20,
            ..bucket(presence::STREAM, presence::ALL)
        },
        // What nobody has renewed for so long belongs to a queue that there is no more.
        Config { max_age: HOUR, max_bytes: 16 << 20, ..bucket(lease::STREAM, lease::ALL) },
        Config { max_bytes: 16 << 20, ..bucket(queue_status::STREAM, queue_status::ALL) },
        Config {
            // A snapshot older than the log's beginning is of no use; nor are the pieces that a writer left who was
            // killed, and which must not keep out what comes after them.
            max_age: LOG_AGE,
            max_bytes: 1 << 30,
            allow_rollup: true,
            allow_direct: true,
            ..base(SNAPSHOTS, &ALL_SNAPSHOTS)
        },
        Config { max_age: HOUR * 24 * 7, max_bytes: 1 << 30, allow_direct: true, ..base(DEAD, &[ALL_DEAD]) },
    ]
}

fn check_server(client: &Client) -> Result<(), SetupError> {
    let info = client.server_info();
    let mut numbers = info.version.split(['.', '-']).map_while(|number| number.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_SERVER {
        return Err(SetupError::Server { version: info.version });
    }
    Ok(())
}

/// Refuses a log with a setting under which its guarantees do not hold.
pub(super) fn check(info: &Info) -> Result<(), OpenError> {
    let config = &info.config;
    let wrong = |what| Err(OpenError::Unfit(what));
    if !config.allow_atomic_publish {
        return wrong("does not take atomic batches");
    }
    if config.allow_message_schedules || config.allow_rollup || config.republish.is_some() {
        // With any of these, who may publish one subject can erase the log or write another's event.
        return wrong("allows schedules, roll-ups or republishing");
    }
    if config.max_messages_per_subject > 0 {
        return wrong("keeps only the last events of a subject");
    }
    if config.discard != DiscardPolicy::New {
        return wrong("forgets its beginning when it is full");
    }
    Ok(())
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server is too old.
    #[error("nats-server {version} is too old; Garage needs {}.{} or newer", OLDEST_SERVER.0, OLDEST_SERVER.1)]
    Server {
        /// What the server says it is.
        version: String,
    },
    /// A stream can't become one of several nodes.
    #[error(
        "stream {stream} was made for one node, which cannot be changed; remove it with `nats stream rm {stream}` and \
         run this again (it mirrors the log: what the log still holds comes back, what is older does not)"
    )]
    OneNode {
        /// Which.
        stream: String,
    },
    /// The server would not.
    #[error("{what} cannot be made: {source}")]
    Make {
        /// What.
        what: String,
        /// What the server said.
        source: async_nats::Error,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn silence_is_told_from_a_refusal() {
        let silent: [async_nats::Error; 2] = [
            CreateStreamError::new(CreateStreamErrorKind::TimedOut).into(),
            ConsumerError::new(ConsumerErrorKind::TimedOut).into(),
        ];
        assert!(silent.iter().all(|error| is_silence(&**error)));
        let refused: async_nats::Error = CreateStreamError::new(CreateStreamErrorKind::JetStreamUnavailable).into();
        assert!(!is_silence(&*refused) && !is_short(&*refused));
    }

    #[test]
    fn too_few_nodes_are_told_from_too_little_room() {
        let refused = |code: u64| -> async_nats::Error {
            let error = json!({"code": 400, "err_code": code, "description": "no"});
            CreateStreamError::new(CreateStreamErrorKind::JetStream(serde_json::from_value(error).unwrap())).into()
        };
        assert!(is_short(&*refused(10_005)) && !is_silence(&*refused(10_005)));
        assert!(!is_short(&*refused(10_023)));
    }
}
