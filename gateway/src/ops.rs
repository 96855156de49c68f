//! The operators' page, on the admin port: what goes on, from the projections in Redis alone. It needs neither the log
//! nor any other worker, and shows how far the projections are. It changes nothing.

mod read;
mod view;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use garage_events::id::{QueueName, SessionId};
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

/// For Redis to answer.
const ANSWER: Duration = Duration::from_secs(4);

/// How long an answer serves others who ask the same: however many watch, Redis is read once in that time.
const FRESH: Duration = Duration::from_millis(700);

const PAGE: &str = include_str!("ops/page.html");
const STYLE: &str = include_str!("ops/page.css");
const SCRIPT: &str = include_str!("ops/page.js");

/// The page and what it asks for.
pub(crate) struct Ops {
    redis: Redis,
    queues: Vec<QueueName>,
    page: String,
    policy: HeaderValue,
    last: Mutex<Option<(Instant, Answer)>>,
}

/// A status and a body of JSON.
type Answer = (StatusCode, Bytes);

impl Ops {
    /// The page over this Redis. The queues are those that are shown also when nobody has ever waited there.
    pub(crate) fn new(redis: Redis, queues: impl Iterator<Item = QueueName>) -> anyhow::Result<Self> {
        // Foreign names come into the page as text; should that fail once, nothing but what was built in may run.
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        let page = PAGE.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
        Ok(Self { redis, queues: queues.collect(), page, policy: policy.parse()?, last: Mutex::default() })
    }

    async fn data(&self) -> Answer {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            tracing::trace!(age = ?at.elapsed(), "the same answer again");
            return answer.clone();
        }
        let read = timeout(ANSWER, read::shot(&self.redis)).await;
        let answer = match read {
            Ok(Ok(shot)) => json(&view::View::of(&shot, &self.queues)),
            Ok(Err(error)) => unavailable(&error),
            Err(_) => unavailable(&anyhow::anyhow!("Redis does not answer in time")),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn session(&self, id: SessionId) -> Answer {
        match timeout(ANSWER, read::timeline(&self.redis, id)).await {
            Ok(Ok(Some(timeline))) => json(&view::Story::of(id, &timeline)),
            Ok(Ok(None)) => {
                error(StatusCode::NOT_FOUND, &format!("not held (any more); `garage session {id}` asks the log"))
            }
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
    fn what_redis_cannot_tell_now_is_to_be_asked_for_again() {
        let (status, body) = unavailable(&anyhow::anyhow!("redis does not answer"));
        let answer = response(status, "application/json", body);
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[RETRY_AFTER], "2");
        let (status, body) = json(&1);
        assert!(!response(status, "application/json", body).headers().contains_key(RETRY_AFTER));
    }
}
