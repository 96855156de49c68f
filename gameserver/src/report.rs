//! Sends reports to Garage, over NATS JetStream. A report is repeated until JetStream acknowledges it.

use std::{future::Future, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, ServerAddr,
    connection::State,
    jetstream::{self, Context},
};
use garage_events::{
    crash::{self, Point},
    game::Nats,
    jetstream::is_already_stored,
};
use tokio::{
    sync::OnceCell,
    time::{sleep, timeout},
};

/// Time limit of one attempt. An acknowledgement takes milliseconds; a leader election of the stream takes seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// The first and the longest pause between two attempts. The pause doubles each time. When NATS is down, all game
/// servers of a region retry: two seconds limit the load when it is back, and delay a match only a little.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Why a report was not acknowledged. The report may have arrived anyway.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The credentials are malformed.
    #[error("reading the credentials for nats")]
    Credentials(#[source] std::io::Error),
    /// The first connection failed.
    #[error("connecting to nats")]
    Connect(#[source] async_nats::ConnectError),
    /// The connection was lost. The client reconnects in the background.
    #[error("the connection to nats is down")]
    Disconnected,
    /// JetStream did not store the report.
    #[error("publishing the report")]
    Publish(#[source] jetstream::context::PublishError),
    /// JetStream did not answer in time.
    #[error("no acknowledgement within {0:?}")]
    TimedOut(Duration),
    /// An error of another [`Reporter`] than [`NatsReporter`].
    #[error("{0}")]
    Other(String),
}

/// Sends reports.
pub trait Reporter: Send + Sync + 'static {
    /// Publishes a report once. Returns `Ok` only if it is stored.
    fn publish(&self, subject: &str, payload: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Publishes reports to NATS JetStream. It connects when it publishes the first report.
pub struct NatsReporter {
    servers: Vec<ServerAddr>,
    user: Nats,
    context: OnceCell<(Client, Context)>,
}

/// The configured address of NATS cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("parsing the address of nats")]
pub struct BadAddress(#[source] std::io::Error);

impl NatsReporter {
    /// Creates a reporter for the given server and user. It does not connect yet.
    ///
    /// # Errors
    /// [`BadAddress`] if the URL cannot be parsed.
    pub fn new(nats: Nats) -> Result<Self, BadAddress> {
        let servers = nats.url.split(',').map(|url| url.trim().parse::<ServerAddr>());
        let servers = servers.collect::<Result<Vec<_>, _>>().map_err(BadAddress)?;
        Ok(Self { servers, user: nats, context: OnceCell::new() })
    }

    async fn connect(&self) -> Result<(Client, Context), Error> {
        let client = ConnectOptions::with_credentials(self.user.credentials.expose())
            .map_err(Error::Credentials)?
            .name("garage-gameserver")
            .custom_inbox_prefix(&self.user.inbox)
            .connection_timeout(ATTEMPT_TIMEOUT)
            .event_callback(|event| async move {
                match event {
                    // The server reports missing permissions here. The request itself only times out.
                    Event::ServerError(error) => tracing::warn!(%error, "nats server reported an error"),
                    Event::ClientError(error) => tracing::warn!(%error, "nats client reported an error"),
                    event => tracing::debug!(%event, "nats connection changed"),
                }
            })
            .connect(self.servers.clone())
            .await
            .map_err(Error::Connect)?;
        let context = jetstream::new(client.clone());
        Ok((client, context))
    }
}

impl Reporter for NatsReporter {
    async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), Error> {
        let (client, context) = self.context.get_or_try_init(|| self.connect()).await?;
        if client.connection_state() != State::Connected {
            // The client would buffer the messages of this attempt and of later attempts, and send all of them after it
            // has reconnected.
            return Err(Error::Disconnected);
        }
        let published = async {
            let acknowledgement = context.publish(subject.to_owned(), payload.into()).await?;
            acknowledgement.await
        };
        match timeout(ATTEMPT_TIMEOUT, published).await {
            Ok(Ok(_)) => Ok(()),
            // Earlier publications were stored, and their acknowledgements were lost.
            Ok(Err(error)) if is_already_stored(&error) => Ok(()),
            Ok(Err(error)) => Err(Error::Publish(error)),
            Err(_) => Err(Error::TimedOut(ATTEMPT_TIMEOUT)),
        }
    }
}

/// Publishes a report until it is acknowledged. It has no time limit: the caller drops the future at its deadline.
pub(crate) async fn until_acknowledged<R: Reporter>(reporter: &R, point: Point, subject: &str, payload: Vec<u8>) {
    let (mut pause, longest) = BACKOFF;
    loop {
        match crash::effect(point, reporter.publish(subject, payload.clone())).await {
            Ok(()) => {
                tracing::info!(report.subject = subject, "report acknowledged");
                return;
            }
            Err(error) => {
                // Include the sources of the error: the cause matters, and the JSON log does not contain them.
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(report.subject = subject, error, "report not acknowledged, retrying");
            }
        }
        // Jitter: all game servers of a region lose NATS at the same moment.
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(longest);
    }
}
