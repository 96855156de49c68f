//! The dashboard for operators, on the admin port. It reads only the projections in Redis, so it works without the log
//! and without other workers. It shows how old the projections are, and whether the log stores events. It is read-only.

mod read;
mod view;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use garage_events::{
    id::{QueueName, SessionId},
    jetstream::storage::Storage,
};
use garage_worker::{Pages, redis::Redis};
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

/// The time-out of a read from Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(4);

/// How long an answer is reused. No matter how many dashboards are open, Redis is read at most once in this time.
const CACHE_TIME: Duration = Duration::from_millis(700);

const PAGE: &str = include_str!("ops/page.html");
const STYLE: &str = include_str!("ops/page.css");
const SCRIPT: &str = include_str!("ops/page.js");

/// The dashboard's page and its data.
pub(crate) struct Ops {
    redis: Redis,
    queues: Vec<QueueName>,
    storage: LogStorage,
    page: String,
    /// The value of `Content-Security-Policy`.
    policy: HeaderValue,
    cached: Mutex<Option<(Instant, Answer)>>,
}

/// Whether the log stores events; empty until the log is open.
pub(crate) type LogStorage = Arc<OnceLock<Storage>>;

/// A status and a JSON body.
type Answer = (StatusCode, Bytes);

impl Ops {
    /// Prepares the page. `queues` are shown even if nobody has ever waited there.
    pub(crate) fn new(
        redis: Redis,
        queues: impl Iterator<Item = QueueName>,
        storage: LogStorage,
    ) -> anyhow::Result<Self> {
        // The page inserts players' names as text. If that ever fails, this policy still allows no script except the
        // page's own.
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        let page = PAGE.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
        Ok(Self { redis, queues: queues.collect(), storage, page, policy: policy.parse()?, cached: Mutex::default() })
    }

    async fn data(&self) -> Answer {
        let mut cached = self.cached.lock().await;
        if let Some((at, answer)) = cached.as_ref().filter(|(at, _)| at.elapsed() < CACHE_TIME) {
            tracing::trace!(age = ?at.elapsed(), "answering from the cache");
            return answer.clone();
        }
        let read = timeout(REDIS_TIMEOUT, read::snapshot(&self.redis)).await;
        let answer = match read {
            Ok(Ok(snapshot)) => {
                let log = self.storage.get().and_then(Storage::remark);
                json(&view::View::of(&snapshot, &self.queues, log))
            }
            Ok(Err(error)) => unavailable(&error),
            Err(_) => unavailable(&anyhow::anyhow!("Redis does not answer in time")),
        };
        *cached = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn session(&self, id: SessionId) -> Answer {
        match timeout(REDIS_TIMEOUT, read::timeline(&self.redis, id)).await {
            Ok(Ok(Some(timeline))) => json(&view::TimelineView::of(id, &timeline)),
            Ok(Ok(None)) => error(
                StatusCode::NOT_FOUND,
                &format!("not in the projections; `garage session {id}` reads the session from the log"),
            ),
            Ok(Err(error)) => unavailable(&error),
            Err(_) => unavailable(&anyhow::anyhow!("Redis does not answer in time")),
        }
    }
}

impl Pages for Ops {
    fn get(&self, path: String) -> BoxFuture<'_, Option<Response<Full<Bytes>>>> {
        async move {
            let answer = match path.as_str() {
                "/ops" => {
                    let mut response =
                        response(StatusCode::OK, "text/html; charset=utf-8", Bytes::from(self.page.clone()));
                    response.headers_mut().insert(CONTENT_SECURITY_POLICY, self.policy.clone());
                    return Some(response);
                }
                "/ops/data.json" => self.data().await,
                path => {
                    let id = path.strip_prefix("/ops/sessions/")?.strip_suffix(".json")?.parse().ok()?;
                    self.session(id).await
                }
            };
            Some(response(answer.0, "application/json", answer.1))
        }
        .boxed()
    }
}

fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => (StatusCode::OK, body.into()),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

fn unavailable(cause: &anyhow::Error) -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, &format!("{cause:#}"))
}

fn error(status: StatusCode, error: &str) -> Answer {
    (status, json!({ "error": error }).to_string().into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, crate::problem::RETRY_AFTER);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_redis_has_a_retry_after() {
        let (status, body) = unavailable(&anyhow::anyhow!("Redis does not answer"));
        let answer = response(status, "application/json", body);
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[RETRY_AFTER], "2");
        let (status, body) = json(&1);
        assert!(!response(status, "application/json", body).headers().contains_key(RETRY_AFTER));
    }
}
