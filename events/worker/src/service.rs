//! Answers requests. It uses the NATS service API, so that `nats service ls` lists the workers.

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::{
    Client,
    service::{self, ServiceExt},
};
use futures::StreamExt;
use garage_events::svc::Call;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    Shutdown,
    turns::{TooMany, Turns},
};

/// The maximum number of waiting requests per handler slot. Further requests are refused at once: their callers would
/// time out before their turn.
const WAITING_PER_SLOT: usize = 8;

/// How long before the caller's time-out a request is refused. The caller then learns the reason, and no work is done
/// for a caller that no longer waits.
const MARGIN: Duration = Duration::from_millis(500);

/// A refused request. The code has the meaning of the HTTP status code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// HTTP status code, 400 to 599.
    pub code: u16,
    /// Shown to the caller.
    pub message: String,
}

impl Refusal {
    /// A refusal with an HTTP status code and a message for the caller.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<garage_events::log::ReadError> for Refusal {
    fn from(error: garage_events::log::ReadError) -> Self {
        Self::new(503, error.to_string())
    }
}

/// A named service with one or more endpoints. The instances of a worker share the requests.
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
    /// Registers the service with NATS.
    ///
    /// # Errors
    /// When the name is invalid or NATS is unreachable.
    pub async fn start(client: &Client, name: &str, description: &str) -> anyhow::Result<Self> {
        let builder = client.service_builder().description(description);
        let service = builder.start(name, env!("CARGO_PKG_VERSION")).await.map_err(anyhow::Error::from_boxed)?;
        Ok(Self { service: Arc::new(service), client: client.clone(), name: name.into() })
    }

    /// Answers one kind of request until `shutdown`, at most `concurrency` at a time. A request is refused with 503 if
    /// too many are waiting, if too many of the same player are waiting ([`Call::in_turn`]), or if it cannot be
    /// answered before its caller times out. Spawn the returned future as a long-running task.
    ///
    /// # Errors
    /// When the endpoint cannot be opened, or the server closes it.
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

    /// Like [`serve`](Self::serve), on another subject than [`Call::SUBJECT`].
    ///
    /// # Errors
    /// When the endpoint cannot be opened, or the server closes it.
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
        // Keep the service until the endpoint ends: dropping it removes the worker from `nats service ls`.
        let (service, client) = (Arc::clone(&self.service), self.client.clone());
        Ok(async move {
            let _service = service;
            let capacity = concurrency * (1 + WAITING_PER_SLOT);
            let (admitted, slots) = (Arc::new(Semaphore::new(capacity)), Arc::new(Semaphore::new(concurrency)));
            let turns = Turns::default();
            let mut stopping = false;
            loop {
                let request = tokio::select! {
                    () = shutdown.cancelled(), if !stopping => {
                        // Accept no further requests, but answer those that have already arrived.
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
                let (handler, client, slots, turns) =
                    (handler.clone(), client.clone(), Arc::clone(&slots), turns.clone());
                tokio::spawn(async move {
                    let timed_out = || refused("late", Refusal::new(503, "not completed in time"));
                    let answer = async {
                        if admission.is_err() {
                            return Err(refused("full", Refusal::new(503, "too many requests are waiting")));
                        }
                        let call = serde_json::from_slice::<C>(&request.message.payload);
                        let call =
                            call.map_err(|error| Refusal::new(400, format!("the request cannot be read: {error}")))?;
                        // A request takes a slot only when its turn has come. While it waits, the requests of other
                        // players can use the slot.
                        let player = call.in_turn().cloned();
                        let starting = async {
                            let turn = match &player {
                                Some(player) => Some(turns.enter(player)?.turn().await),
                                None => None,
                            };
                            Ok((turn, slots.acquire().await))
                        };
                        // Do not start a request so late that too little time is left for it.
                        let started = timeout(C::TIMEOUT.saturating_sub(2 * MARGIN), starting).await;
                        let Ok(started) = started else { return Err(timed_out()) };
                        let _turn_and_slot = started.map_err(|TooMany| {
                            refused("player", Refusal::new(503, "too many requests of this player are waiting"))
                        })?;
                        handler(call).await
                    };
                    let answer = timeout(C::TIMEOUT.saturating_sub(MARGIN), answer).await;
                    let answer = answer.unwrap_or_else(|_| Err(timed_out()));
                    let answer = answer.and_then(|reply| {
                        let reply = serde_json::to_vec(&reply).map_err(|error| Refusal::new(500, error.to_string()))?;
                        let (size, limit) = (reply.len(), client.server_info().max_payload);
                        // The server would reject the reply, and the caller would time out without knowing why.
                        let too_large =
                            || Refusal::new(413, format!("the reply has {size} bytes; NATS allows at most {limit}"));
                        if size <= limit { Ok(reply) } else { Err(too_large()) }
                    });
                    let answer = answer.map(Into::into).map_err(|refusal| service::error::Error {
                        code: refusal.code.into(),
                        status: refusal.message,
                    });
                    if let Err(error) = request.respond(answer).await {
                        tracing::warn!(%error, endpoint = C::SUBJECT, "cannot send the reply");
                    }
                    drop(admission);
                });
            }
            // Wait for the requests in progress: all permits are free when they are done.
            let all = u32::try_from(capacity).unwrap_or(u32::MAX);
            let _ = admitted.acquire_many(all).await;
            Ok(())
        })
    }
}

/// Counts a request that is refused because of load.
fn refused(reason: &'static str, refusal: Refusal) -> Refusal {
    metrics::counter!("garage_requests_refused_total", "reason" => reason).increment(1);
    refusal
}
