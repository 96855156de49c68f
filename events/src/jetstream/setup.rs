//! The streams and consumers that `garage init` creates. You can run it again at any time; it updates existing ones.

use std::{error::Error, fmt::Write, ops::RangeInclusive, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, Context, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::{CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind},
        stream::{
            Config, ConsumerCreateStrictErrorKind, ConsumerError, ConsumerErrorKind, DiscardPolicy, Info,
            PersistenceMode, Source, StorageType,
        },
    },
};
use tokio::time::{Instant, error::Elapsed, sleep};

mod size;

use super::OpenError;
use crate::{
    block,
    crash::Point,
    game::MAX_REPORT,
    lease, presence, queue_status, rules,
    subject::{
        self, ALL, ALL_DEAD, ALL_DUE, ALL_REPORTS, ALL_SNAPSHOTS, DEAD, HISTORY, REPORTS, SESSIONS, SNAPSHOTS,
        STORED_REPORTS, STREAM, TIMERS,
    },
};

/// The oldest version of nats-server that has all features that the log needs: major, minor.
pub const OLDEST_SERVER: (u32, u32) = (2, 15);

const HOUR: Duration = Duration::from_secs(3_600);

/// How long the log keeps events. A session lasts minutes, and nobody needs a player's last ticket on the next day.
/// Keeping more events would make commits slower: if a block of the stream is not cached, checking an expected sequence
/// in it takes milliseconds, and locks the stream meanwhile.
const LOG_AGE: Duration = Duration::from_secs(12 * 3_600);

/// How long dead letters are kept.
const DEAD_AGE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The maximum size of the log, in bytes, unless [`init_sized`] gets another one. The server reserves this much of its
/// disk. A full log refuses commands instead of dropping its oldest events.
const LOG_BYTES: i64 = 8 << 30;

/// The default size of the log, in bytes.
pub const DEFAULT_LOG_SIZE: u64 = LOG_BYTES.unsigned_abs();

/// The smallest and the largest size of the log, in bytes. The smallest leaves every bucket room for some entries.
pub const LOG_SIZES: RangeInclusive<u64> = (64 << 20)..=(1 << 50);

/// The maximum number of times that a request is sent if the server does not answer. Each try takes 5 s.
const MAX_TRIES: u32 = 6;

/// How long to retry if a cluster is not ready. After a start, the nodes learn of each other every few seconds.
pub const CLUSTER_TIMEOUT: Duration = Duration::from_secs(15);
/// The errors of a cluster that has just started, and of one that has not yet released the room that the check of the size
/// reserved for a moment.
const TEMPORARY: [ErrorCode; 3] =
    [ErrorCode::CLUSTER_NO_PEERS, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT, ErrorCode::STORAGE_RESOURCES_EXCEEDED];

/// The delay between these retries.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// How long a worker may take to acknowledge a delivery, or to report progress on it, before the server redelivers it.
///
/// After a worker is killed, its deliveries wait this long. It is half of the time that a game server has to become
/// ready (10 s), so that the crash of a director does not use up an attempt.
pub const ACK_WAIT: Duration = Duration::from_secs(5);

/// A durable consumer. The instances of a worker share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    pub stream: &'static str,
    /// The consumer's name. It is also the name in the subjects of its dead letters.
    pub name: &'static str,
    /// The session event types that it selects; empty for all of them. Only used if the stream is the log.
    tokens: &'static [&'static str],
    /// The crash point for acknowledging its messages.
    pub acknowledged: Point,
}

/// The session worker reacts to all session events.
pub const SESSION: Consumer =
    Consumer { stream: STREAM, name: "session", tokens: &[], acknowledged: Point::SessionAcknowledged };
/// The session worker processes the reports of game servers.
pub const SESSION_REPORTS: Consumer =
    Consumer { stream: REPORTS, name: "session-reports", tokens: &[], acknowledged: Point::ReportAcknowledged };
/// The session worker reacts to timers that are due.
pub const SESSION_TIMERS: Consumer =
    Consumer { stream: TIMERS, name: "session-timers", tokens: &[], acknowledged: Point::TimerAcknowledged };
/// The director starts and removes game servers. It removes the server of a failed attempt at once.
pub const DIRECTOR: Consumer = Consumer {
    stream: STREAM,
    name: "director",
    tokens: &["pod-requested", "pod-failed", "closed"],
    acknowledged: Point::DirectorAcknowledged,
};
/// The inventory worker grants rewards.
pub const INVENTORY: Consumer =
    Consumer { stream: STREAM, name: "inventory", tokens: &["closed"], acknowledged: Point::RewardAcknowledged };

/// Every durable consumer.
pub const CONSUMERS: [Consumer; 5] = [SESSION, SESSION_REPORTS, SESSION_TIMERS, DIRECTOR, INVENTORY];

/// All streams.
pub const STREAMS: [&str; 11] = [
    STREAM,
    HISTORY,
    TIMERS,
    REPORTS,
    presence::STREAM,
    lease::STREAM,
    queue_status::STREAM,
    block::STREAM,
    rules::STREAM,
    SNAPSHOTS,
    DEAD,
];

impl Consumer {
    /// The subject filters of the consumer. They do not overlap.
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
            // No max_deliver: the server would silently drop a message beyond it. The worker checks the delivery count.
            max_ack_pending: 1_000,
            ..Default::default()
        }
    }
}

/// Creates all streams and consumers, or updates them. The log and all other streams have their default sizes.
///
/// # Errors
/// [`SetupError`]
pub async fn init(client: Client, replicas: usize) -> Result<(), SetupError> {
    init_sized(client, replicas, DEFAULT_LOG_SIZE).await
}

/// Like [`init`], with another size of the log in bytes. The sizes of all other streams are proportional to it.
///
/// # Errors
/// [`SetupError`]. If the server has too little room for all streams, nothing is changed.
pub async fn init_sized(client: Client, replicas: usize, log_size: u64) -> Result<(), SetupError> {
    check_server(&client)?;
    let context = jetstream::new(client);
    let streams = sized(streams(replicas), log_size);
    keep_trying(async || size::check(&context, &streams, log_size).await).await?;
    for config in &streams {
        keep_trying(async || create_stream(&context, config).await).await?;
    }
    for consumer in CONSUMERS {
        keep_trying(async || create_or_update(&context, consumer).await).await?;
    }
    Ok(())
}

/// Retries a creation that times out, or that fails with an error of [`TEMPORARY`]. Both happen in a cluster that has just
/// started: no node answers for a stream until its leader is elected, each node considers the others absent until it has
/// heard from them, and a node that has heard of an account before it has enabled JetStream for it refuses.
///
/// It also retries if the server could not create the stream's folder. After the removal of the only stream, which the
/// check of the size causes, the server removes the folder of all streams, perhaps just when it creates the next one.
async fn keep_trying(mut create: impl AsyncFnMut() -> Result<(), SetupError>) -> Result<(), SetupError> {
    let mut tries_left = MAX_TRIES;
    let began = Instant::now();
    loop {
        match create().await {
            Err(SetupError::Create { source, .. }) if tries_left > 1 && is_timeout(&*source) => tries_left -= 1,
            Err(SetupError::Create { source, .. })
                if tries_left > 1 && is_refused(&*source, ErrorCode::STREAM_CREATE) =>
            {
                tries_left -= 1;
                sleep(RETRY_DELAY).await;
            }
            Err(SetupError::Create { source, .. })
                if began.elapsed() < CLUSTER_TIMEOUT && TEMPORARY.iter().any(|code| is_refused(&*source, *code)) =>
            {
                sleep(RETRY_DELAY).await;
            }
            result => return result,
        }
    }
}

/// Whether the request timed out.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let timed_out = |error: &(dyn Error + 'static)| {
        let of_stream = error.downcast_ref().map(CreateStreamError::kind);
        let of_consumer = error.downcast_ref().map(ConsumerError::kind);
        error.is::<Elapsed>()
            || of_stream == Some(CreateStreamErrorKind::TimedOut)
            || of_consumer == Some(ConsumerErrorKind::TimedOut)
    };
    std::iter::successors(Some(error), |&error| error.source()).any(timed_out)
}

/// Whether the server refused to create or to find the stream with this error.
fn is_refused(error: &(dyn Error + 'static), code: ErrorCode) -> bool {
    let refused = |error: &(dyn Error + 'static)| {
        let of_create = error.downcast_ref().map(CreateStreamError::kind);
        let of_get = error.downcast_ref().map(GetStreamError::kind);
        matches!(of_create, Some(CreateStreamErrorKind::JetStream(api)) if api.error_code() == code)
            || matches!(of_get, Some(GetStreamErrorKind::JetStream(api)) if api.error_code() == code)
    };
    std::iter::successors(Some(error), |&error| error.source()).any(refused)
}

async fn create_stream(context: &Context, config: &Config) -> Result<(), SetupError> {
    let name = &config.name;
    let mut what = format!("stream {name}");
    if config.max_bytes > 0 {
        // The most likely reason is too little disk space, and the server does not say how much it needs.
        let _ = write!(what, " (the server needs {} MiB of free disk space for it)", config.max_bytes >> 20);
    }
    let failed = |source: async_nats::Error| SetupError::Create { what: what.clone(), source };
    match context.get_stream(name).await {
        Ok(found) => {
            // The persist mode of an existing stream cannot be changed.
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

/// Creates a consumer that starts at the beginning of its stream, or updates an existing one.
///
/// # Errors
/// [`SetupError::Create`]
pub async fn create_or_update(context: &Context, consumer: Consumer) -> Result<(), SetupError> {
    let creating = async {
        let stream = context.get_stream_no_info(consumer.stream).await?;
        let Err(error) = stream.create_consumer(consumer.config(DeliverPolicy::All)).await else { return Ok(()) };
        // The start of an existing consumer cannot be changed. If its worker recreated it, it does not start at the
        // beginning of the stream, so keep its start.
        match stream.consumer_info(consumer.name).await {
            Ok(found) if found.config.deliver_policy != DeliverPolicy::All => {
                stream.create_consumer(consumer.config(found.config.deliver_policy)).await?;
                Ok(())
            }
            _ => Err(error.into()),
        }
    };
    creating.await.map_err(|source| failed(consumer, source))
}

/// Creates a missing consumer that starts after the sequence `after`. If the consumer already exists, it does not
/// change: another instance was faster, perhaps with another sequence.
///
/// # Errors
/// [`SetupError::Create`]
pub async fn create_after(context: &Context, consumer: Consumer, after: u64) -> Result<(), SetupError> {
    let start = match after {
        0 => DeliverPolicy::All,
        after => DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
    };
    let creating = async {
        let stream = context.get_stream_no_info(consumer.stream).await?;
        match stream.create_consumer_strict(consumer.config(start)).await {
            Err(error) if error.kind() != ConsumerCreateStrictErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    };
    creating.await.map_err(|source| failed(consumer, source))
}

fn failed(consumer: Consumer, source: async_nats::Error) -> SetupError {
    SetupError::Create { what: format!("consumer {}", consumer.name), source }
}

/// The names of all streams that [`init`] creates.
pub fn names() -> impl Iterator<Item = String> {
    streams(1).into_iter().map(|config| config.name)
}

/// Whether the error means that the stream does not exist.
pub fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(api)
        if api.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The streams. Their sizes are those for a log of the default size.
fn streams(replicas: usize) -> [Config; 11] {
    let base = |name: &str, subjects: &[&str]| Config {
        name: name.into(),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        storage: StorageType::File,
        num_replicas: replicas,
        ..Default::default()
    };
    // The settings that NATS clients expect of a key-value bucket.
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
            // Unlike the log, it drops its oldest events when it is full. Without a limit, it would take the room that
            // the log needs.
            max_bytes: 7 << 29,
            allow_direct: true,
            mirror: Some(Source { name: STREAM.into(), ..Default::default() }),
            persist_mode: (replicas == 1).then_some(PersistenceMode::Async),
            ..base(HISTORY, &[])
        },
        Config {
            // A message that is scheduled beyond max_age never fires.
            max_age: HOUR * 24,
            max_bytes: 1 << 30,
            allow_message_schedules: true,
            allow_rollup: true,
            ..base(TIMERS, &["timer.>"])
        },
        Config {
            max_age: HOUR,
            max_bytes: 1 << 30,
            // Nothing else bounds a hostile game server: NATS does not limit how fast a user publishes. A game server
            // repeats a report until it is acknowledged. The first message may be one whose acknowledgement was lost.
            // Later ones are refused, which tells the server that its report is stored (`is_already_stored`). No message
            // is replaced or dropped before it is handled. A handled one stays, or else a flood would never end.
            max_messages_per_subject: 2,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            max_message_size: i32::try_from(MAX_REPORT).unwrap_or(i32::MAX),
            ..base(REPORTS, &STORED_REPORTS)
        },
        Config {
            // Longer than any socket stays open.
            max_age: HOUR * 24 * 7,
            max_bytes: 256 << 20,
            // A full bucket drops its oldest entries. If it refused new ones, the end of a socket could not be recorded.
            discard: DiscardPolicy::Old,
            ..bucket(presence::STREAM, presence::ALL)
        },
        // A lease that nobody has renewed for this long belongs to a queue that no longer exists.
        Config { max_age: HOUR, max_bytes: 16 << 20, ..bucket(lease::STREAM, lease::ALL) },
        Config { max_bytes: 16 << 20, ..bucket(queue_status::STREAM, queue_status::ALL) },
        // Room for fifteen thousand blocks with the longest reason. An entry is removed when its block ends.
        Config { max_bytes: 16 << 20, allow_message_ttl: true, ..bucket(block::STREAM, block::ALL) },
        // Room for a thousand rule sets of the greatest size. The earlier values of an entry are needed to roll back.
        Config { max_bytes: 64 << 20, max_messages_per_subject: 64, ..bucket(rules::STREAM, rules::ALL) },
        Config {
            // A snapshot that is older than the log is useless. The age limit also removes the chunks that a killed
            // writer left behind, which would otherwise fill the stream.
            max_age: LOG_AGE,
            max_bytes: 1 << 30,
            allow_rollup: true,
            allow_direct: true,
            ..base(SNAPSHOTS, &ALL_SNAPSHOTS)
        },
        Config {
            max_age: DEAD_AGE,
            max_bytes: 1 << 30,
            allow_direct: true,
            // Reports have one dead letter per attempt (`DeadLetter::message_id`).
            duplicate_window: DEAD_AGE,
            ..base(DEAD, &[ALL_DEAD])
        },
    ]
}

/// Makes the sizes of the streams proportional to the size of the log.
fn sized(mut streams: [Config; 11], log_size: u64) -> [Config; 11] {
    for config in &mut streams {
        let bytes = i128::from(config.max_bytes) * i128::from(log_size) / i128::from(LOG_BYTES);
        config.max_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    }
    streams
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

/// Refuses a stream with settings that break the log's guarantees.
pub(super) fn check(info: &Info) -> Result<(), OpenError> {
    let config = &info.config;
    let unfit = |what| Err(OpenError::Unfit(what));
    if !config.allow_atomic_publish {
        return unfit("does not accept atomic batches");
    }
    if config.allow_message_schedules || config.allow_rollup || config.republish.is_some() {
        // With any of these settings, a user with the right to publish on one subject could erase the log, or write
        // events to other subjects.
        return unfit("allows schedules, roll-ups or republishing");
    }
    if config.max_messages_per_subject > 0 {
        return unfit("keeps only the latest events of each subject");
    }
    if config.discard != DiscardPolicy::New {
        return unfit("drops its oldest events when it is full");
    }
    Ok(())
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("nats-server {version} is too old; Garage needs {}.{} or newer", OLDEST_SERVER.0, OLDEST_SERVER.1)]
    Server { version: String },
    /// The stream was created for one node, with a setting that does not allow replicas.
    #[error(
        "stream {stream} was created for one node, which cannot be changed; remove it with `nats stream rm {stream}` \
         and run this again (it mirrors the log: events that are still in the log come back, older ones do not)"
    )]
    OneNode { stream: String },
    /// The server has too little room for all streams.
    #[error(
        "NATS has too little room: a log of {} MiB and the streams beside it need {} MiB on each node, of which {} MiB \
         are not reserved yet, and the server refuses to reserve them ({refusal}); raise `max_file_store` in the \
         configuration of each nats-server to {} MiB or more, or run this again with a smaller --log-size",
        log_size >> 20, total >> 20, missing >> 20, total.div_ceil(1 << 20)
    )]
    NoRoom {
        /// The size of the log, in bytes.
        log_size: u64,
        /// The sum of the sizes of all streams, in bytes.
        total: u64,
        /// The part of `total` that is not reserved yet.
        missing: u64,
        /// The server's error.
        refusal: String,
    },
    #[error("cannot create {what}: {source}")]
    Create {
        /// The stream or consumer.
        what: String,
        source: async_nats::Error,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_of_streams_is_complete() {
        assert_eq!(streams(1).map(|config| config.name), STREAMS);
    }

    #[test]
    fn a_timeout_is_not_a_refusal() {
        let timeouts: [async_nats::Error; 2] = [
            CreateStreamError::new(CreateStreamErrorKind::TimedOut).into(),
            ConsumerError::new(ConsumerErrorKind::TimedOut).into(),
        ];
        assert!(timeouts.iter().all(|error| is_timeout(&**error)));
        let refused: async_nats::Error = CreateStreamError::new(CreateStreamErrorKind::JetStreamUnavailable).into();
        assert!(!is_timeout(&*refused) && !is_refused(&*refused, ErrorCode::CLUSTER_NO_PEERS));
    }

    #[test]
    fn too_few_nodes_are_distinguished_from_too_little_space() {
        let refused = |code: u64| -> async_nats::Error {
            let error = json!({"code": 400, "err_code": code, "description": "no"});
            CreateStreamError::new(CreateStreamErrorKind::JetStream(serde_json::from_value(error).unwrap())).into()
        };
        assert!(is_refused(&*refused(10_005), ErrorCode::CLUSTER_NO_PEERS) && !is_timeout(&*refused(10_005)));
        assert!(!is_refused(&*refused(10_023), ErrorCode::CLUSTER_NO_PEERS));
    }
}
