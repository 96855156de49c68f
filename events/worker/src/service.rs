//! Answering requests, on the NATS service API, so that `nats service ls` lists the workers.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::{
    Client,
    service::{self, ServiceExt},
};
use futures::StreamExt;
use garage_events::svc::Call;
use tokio::{sync::Semaphore, time::timeout};

use crate::Shutdown;

/// Requests of one kind that may wait for a place, for each place there is. What is beyond is refused at once: it would
/// only be answered when nobody waits for it any more.
const WAITING: usize = 8;

/// How much sooner than its caller gives up a request is refused, so that he hears why and nothing is carried out for
/// nobody.
const SOONER: Duration = Duration::from_millis(500);

/// A request that will not be granted; the code has HTTP's meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// HTTP's status.
    pub code: u16,
    /// For the person who asked.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<garage_events::log::ReadError> for Refusal {
    fn from(error: garage_events::log::ReadError) -> Self {
        Self::new(503, error.to_string())
    }
}

/// A named service of one or more endpoints; its instances share the requests.
pub struct Service {
    service: Arc<service::Service>,
    client: Client,
    name: String,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Service {
    /// Announces a service.
    ///
    /// # Errors
    /// What the client said.
    pub async fn start(client: &Client, name: &str, description: &str) -> anyhow::Result<Self> {
        let builder = client.service_builder().description(description);
        let service = builder.start(name, env!("CARGO_PKG_VERSION")).await.map_err(anyhow::Error::from_boxed)?;
        Ok(Self { service: Arc::new(service), client: client.clone(), name: name.into() })
    }

    /// Answers one kind of request until `shutdown`, at most `concurrency` at a time. A request that cannot be answered
    /// while its caller waits, or for which there is no room, is refused with 503. To be spawned as a long task.
    ///
    /// # Errors
    /// When the endpoint cannot be opened, or is closed by the server.
    pub async fn serve<C, F, R>(
        &self,
        concurrency: usize,
        shutdown: Shutdown,
        handler: F,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<C, F, R>>
    where
        C: Call,
        F: Fn(C) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<C::Reply, Refusal>> + Send,
    {
        self.serve_at(C::SUBJECT.into(), concurrency, shutdown, handler).await
    }

    /// The same on a subject that the request's own is a part of.
    ///
    /// # Errors
    /// When the endpoint cannot be opened, or is closed by the server.
    pub async fn serve_at<C, F, R>(
        &self,
        subject: String,
        concurrency: usize,
        shutdown: Shutdown,
        handler: F,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<C, F, R>>
    where
        C: Call,
        F: Fn(C) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<C::Reply, Refusal>> + Send,
    {
        let name = C::SUBJECT.rsplit('.').next().unwrap_or(C::SUBJECT);
        let builder = self.service.endpoint_builder().name(name);
        let mut endpoint = builder.add(subject).await.map_err(anyhow::Error::from_boxed)?;
        // The service stops answering `nats service ls` when its last endpoint has ended.
        let (service, client) = (Arc::clone(&self.service), self.client.clone());
        Ok(async move {
            let _service = service;
            let most = concurrency * (1 + WAITING);
            let (admitted, places) = (Arc::new(Semaphore::new(most)), Arc::new(Semaphore::new(concurrency)));
            let mut stopping = false;
            loop {
                let request = tokio::select! {
                    () = shutdown.cancelled(), if !stopping => {
                        // No further ones; what has come already is answered.
                        stopping = true;
                        endpoint.stop().await?;
                        continue;
                    }
                    request = endpoint.next() => request,
                };
                let Some(request) = request else {
                    anyhow::ensure!(stopping, "endpoint {} was closed", C::SUBJECT);
                    break;
                };
                let admission = Arc::clone(&admitted).try_acquire_owned();
                let (handler, client, places) = (handler.clone(), client.clone(), Arc::clone(&places));
                tokio::spawn(async move {
                    let late = || Refusal::new(503, "not done in time");
                    let answer = async {
                        if admission.is_err() {
                            return Err(Refusal::new(503, "too many requests wait already"));
                        }
                        let call = serde_json::from_slice(&request.message.payload);
                        let call =
                            call.map_err(|error| Refusal::new(400, format!("request cannot be read: {error}")))?;
                        // One whose turn comes in its last moment is not begun.
                        let turn = timeout(C::TIMEOUT.saturating_sub(2 * SOONER), places.acquire()).await;
                        let Ok(_place) = turn else { return Err(late()) };
                        handler(call).await
                    };
                    let answer = timeout(C::TIMEOUT.saturating_sub(SOONER), answer).await;
                    let answer = answer.unwrap_or_else(|_| Err(late()));
                    let answer = answer.and_then(|reply| {
                        let reply = serde_json::to_vec(&reply).map_err(|error| Refusal::new(500, error.to_string()))?;
                        let (size, most) = (reply.len(), client.server_info().max_payload);
                        // The server would take none of it, and the caller wait in vain.
                        let too_large = || Refusal::new(413, format!("a reply of {size} bytes; NATS carries {most}"));
                        if size <= most { Ok(reply) } else { Err(too_large()) }
                    });
                    let answer = answer.map(Into::into).map_err(|refusal| service::error::Error {
                        code: refusal.code.into(),
                        status: refusal.message,
                    });
                    if let Err(error) = request.respond(answer).await {
                        tracing::warn!(%error, endpoint = C::SUBJECT, "reply cannot be sent");
                    }
                    drop(admission);
                });
            }
            // What is being answered still gets its answer.
            let all = u32::try_from(most).unwrap_or(u32::MAX);
            let _ = admitted.acquire_many(all).await;
            Ok(())
        })
    }
}
