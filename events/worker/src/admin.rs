//! The admin port: /livez, /readyz, /metrics, and pages of the worker's own.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::Semaphore};

/// What the worker depends on, and whether each is there; and what else its operators are told.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    dependencies: BTreeMap<&'static str, Option<String>>,
    notes: BTreeMap<String, String>,
}

impl Health {
    /// Notes that a dependency is there.
    pub fn up(&self, dependency: &'static str) {
        self.entries().dependencies.insert(dependency, None);
    }

    /// Notes that a dependency is not there, and why.
    pub fn down(&self, dependency: &'static str, reason: impl Into<String>) {
        self.entries().dependencies.insert(dependency, Some(reason.into()));
    }

    /// Says something that the worker is ready with or without.
    pub fn note(&self, about: impl Into<String>, text: impl Into<String>) {
        self.entries().notes.insert(about.into(), text.into());
    }

    /// Whether all is there, and a line for each of it.
    pub fn report(&self) -> (bool, String) {
        let entries = self.entries();
        let dependencies = entries.dependencies.iter().map(|(name, down)| match down {
            None => format!("{name}: ok\n"),
            Some(reason) => format!("{name}: {reason}\n"),
        });
        let notes = entries.notes.iter().map(|(about, text)| format!("{about}: {text}\n"));
        (entries.dependencies.values().all(Option::is_none), dependencies.chain(notes).collect())
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // Each change is one insert: a panic of another holder leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages of a worker's own, beside those that every worker has. They are there before the worker is: while it waits for
/// what it needs, they are what people look at.
pub trait Pages: Send + Sync {
    /// The answer to a GET of a path; none where there is no such page.
    fn get(&self, path: String) -> BoxFuture<'_, Option<Response<Full<Bytes>>>>;
}

/// Connections at a time; probes, one scraper and some people need few.
const CONNECTIONS: usize = 32;

pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (--admin)"))?;
    tracing::info!(address = %listener.local_addr()?, "admin port open");
    Ok(listener)
}

pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: PrometheusHandle,
    pages: Option<Arc<dyn Pages>>,
) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files passes; the port must outlive it.
                tracing::warn!(%error, "admin port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (health, metrics, pages) = (health.clone(), metrics.clone(), pages.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let own = pages.clone().filter(|_| request.method() == Method::GET);
                let path = request.uri().path().to_owned();
                let response = respond(&path, &health, &metrics);
                async move {
                    let own = match (own, &response) {
                        (Some(pages), None) => pages.get(path).await,
                        _ => None,
                    };
                    Ok::<_, Infallible>(response.or(own).unwrap_or_else(none_such))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), answer);
            // A prober that hangs up is no news.
            let _ = tokio::time::timeout(Duration::from_secs(60), connection).await;
            drop(place);
        });
    }
}

fn respond(path: &str, health: &Health, metrics: &PrometheusHandle) -> Option<Response<Full<Bytes>>> {
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match health.report() {
            (true, report) => (StatusCode::OK, report),
            (false, report) => (StatusCode::SERVICE_UNAVAILABLE, report),
        },
        "/metrics" => (StatusCode::OK, metrics.render()),
        _ => return None,
    };
    Some(text(status, body))
}

fn none_such() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n".to_owned())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
