//! Reports: what the server tells Garage. A report counts once JetStream has acknowledged it; until then it is said again.

use std::{future::Future, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, ServerAddr,
    connection::State,
    jetstream::{self, Context},
};
use garage_events::{
    crash::{self, Point},
    game::Nats,
};
use tokio::{
    sync::OnceCell,
    time::{sleep, timeout},
};

/// How long an attempt may take. An acknowledgement takes milliseconds, a leader election of the stream some seconds.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Pauses between attempts grow from the first to the second. NATS being down is ordinary and shared by every game
/// server of a region; two seconds keep their return bearable and cost a match little.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A report was not acknowledged; it may have arrived all the same.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody can connect with these.
    #[error("reading the credentials for nats")]
    Credentials(#[source] std::io::Error),
    /// There is no connection.
    #[error("connecting to nats")]
    Connect(#[source] async_nats::ConnectError),
    /// There was one, and it is being made again.
    #[error("the connection to nats is down")]
    Down,
    /// JetStream did not take it.
    #[error("publishing the report")]
    Publish(#[source] jetstream::context::PublishError),
    /// Nothing came back in time.
    #[error("no acknowledgement within {0:?}")]
    Silent(Duration),
    /// Something else, of a reporter that is not on NATS.
    #[error("{0}")]
    Other(String),
}

/// Who carries reports.
pub trait Reporter: Send + Sync + 'static {
    /// Publishes once; `Ok` only when it was acknowledged.
    fn publish(&self, subject: &str, payload: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Reports over NATS JetStream. Connects when the first report is made.
pub struct OverNats {
    servers: Vec<ServerAddr>,
    user: Nats,
    context: OnceCell<(Client, Context)>,
}

/// The configured address of NATS is none.
#[derive(Debug, thiserror::Error)]
#[error("reading the address of nats")]
pub struct BadAddress(#[source] std::io::Error);

impl OverNats {
    /// Prepares to report to the given server.
    ///
    /// # Errors
    /// [`BadAddress`] when the URL cannot be read.
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
            .connection_timeout(ATTEMPT)
            .event_callback(|event| async move {
                match event {
                    // Permissions are refused this way, beside the request that then hears nothing.
                    Event::ServerError(error) => tracing::warn!(%error, "nats refused"),
                    Event::ClientError(error) => tracing::warn!(%error, "nats client failed"),
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

impl Reporter for OverNats {
    async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), Error> {
        let (client, context) = self.context.get_or_try_init(|| self.connect()).await?;
        if client.connection_state() != State::Connected {
            // The client would keep it, and every later attempt too, and send them all at once when it is back.
            return Err(Error::Down);
        }
        let published = async {
            let acknowledgement = context.publish(subject.to_owned(), payload.into()).await?;
            acknowledgement.await
        };
        match timeout(ATTEMPT, published).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Publish(error)),
            Err(_) => Err(Error::Silent(ATTEMPT)),
        }
    }
}

/// Publishes a report again and again until it is acknowledged. Whoever calls sets the deadline.
pub(crate) async fn until_acknowledged<R: Reporter>(reporter: &R, point: Point, subject: &str, payload: Vec<u8>) {
    let (mut pause, longest) = BACKOFF;
    loop {
        match crash::effect(point, reporter.publish(subject, payload.clone())).await {
            Ok(()) => {
                tracing::info!(report.subject = subject, "report acknowledged");
                return;
            }
            Err(error) => {
                // The cause is all that matters here, and JSON logs leave sources out.
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(report.subject = subject, error, "report not acknowledged, trying again");
            }
        }
        // Jitter, because all game servers of a region lose NATS in the same moment.
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(longest);
    }
}
