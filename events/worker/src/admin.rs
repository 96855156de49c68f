//! The admin port: /livez, /readyz, /metrics, and any pages that the worker adds.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, body::Bytes, body::Incoming, header::HOST, http::uri::Authority,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::Semaphore};

/// The content of /readyz: the state of each dependency, and notes for operators. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    dependencies: BTreeMap<&'static str, Option<String>>,
    /// What to say about an available dependency instead of "ok".
    remarks: BTreeMap<&'static str, String>,
    notes: BTreeMap<String, String>,
}

impl Health {
    /// Reports that a dependency is available.
    pub fn up(&self, dependency: &'static str) {
        self.entries().dependencies.insert(dependency, None);
    }

    /// Reports that a dependency is unavailable, and why. The worker is not ready until [`up`](Self::up) follows.
    pub fn down(&self, dependency: &'static str, reason: impl Into<String>) {
        self.entries().dependencies.insert(dependency, Some(reason.into()));
    }

    /// Sets what the line of a dependency says instead of "ok" while the dependency is available. It does not affect
    /// readiness.
    pub fn remark(&self, dependency: &'static str, text: Option<String>) {
        let mut entries = self.entries();
        match text {
            Some(text) => entries.remarks.insert(dependency, text),
            None => entries.remarks.remove(dependency),
        };
    }

    /// Sets a line of information that does not affect readiness.
    pub fn note(&self, about: impl Into<String>, text: impl Into<String>) {
        self.entries().notes.insert(about.into(), text.into());
    }

    /// Whether all dependencies are available, and the text: one line per dependency and per note.
    pub fn report(&self) -> (bool, String) {
        let entries = self.entries();
        let dependencies = entries.dependencies.iter().map(|(name, down)| match down {
            None => format!("{name}: {}\n", entries.remarks.get(name).map_or("ok", String::as_str)),
            Some(reason) => format!("{name}: {reason}\n"),
        });
        let notes = entries.notes.iter().map(|(about, text)| format!("{about}: {text}\n"));
        (entries.dependencies.values().all(Option::is_none), dependencies.chain(notes).collect())
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // Each change is a single insert or removal, so a panic while the lock is held cannot leave inconsistent data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that one worker adds to the admin port. They are served from the start, also while the worker still waits for
/// its dependencies: operators need them most during an outage.
pub trait Pages: Send + Sync {
    /// Answers a GET request. `None` if there is no page at this path.
    fn get(&self, path: String) -> BoxFuture<'_, Option<Response<Full<Bytes>>>>;
}

/// The maximum number of simultaneous connections. Probes, a metrics scraper and a few operators need far fewer.
const MAX_CONNECTIONS: usize = 32;

pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (--admin)"))?;
    tracing::info!(address = %listener.local_addr()?, "admin port open");
    Ok(listener)
}

pub(crate) async fn serve(
    listener: TcpListener,
    name: &'static str,
    health: Health,
    metrics: PrometheusHandle,
    pages: Option<Arc<dyn Pages>>,
    hosts: Vec<String>,
) -> anyhow::Result<()> {
    let (permits, hosts) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(hosts));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A lack of file descriptors is temporary, and the port must survive it.
                tracing::warn!(%error, "admin port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (health, metrics, pages, hosts) = (health.clone(), metrics.clone(), pages.clone(), Arc::clone(&hosts));
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let own = pages.clone().filter(|_| request.method() == Method::GET);
                let path = request.uri().path().to_owned();
                let refused = (!is_allowed(request.headers(), &hosts)).then(misdirected);
                let response = refused.or_else(|| respond(&path, name, &health, &metrics));
                async move {
                    let own = match (own, &response) {
                        (Some(pages), None) => pages.get(path).await,
                        _ => None,
                    };
                    Ok::<_, Infallible>(response.or(own).unwrap_or_else(not_found))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), answer);
            // Clients that disconnect early are normal, so errors are ignored.
            let _ = tokio::time::timeout(Duration::from_secs(60), connection).await;
            drop(permit);
        });
    }
}

fn respond(
    path: &str,
    name: &'static str,
    health: &Health,
    metrics: &PrometheusHandle,
) -> Option<Response<Full<Bytes>>> {
    let (status, body) = match path {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match health.report() {
            (true, report) => (StatusCode::OK, report),
            (false, report) => (StatusCode::SERVICE_UNAVAILABLE, report),
        },
        "/metrics" => {
            let ready = f64::from(u8::from(health.report().0));
            metrics::gauge!("garage_worker_ready", "worker" => name).set(ready);
            (StatusCode::OK, metrics.render())
        }
        _ => return None,
    };
    Some(text(status, body))
}

/// Whether this port answers a request: its `Host` is an IP address, `localhost`, or one of these names. Otherwise a
/// web page could read the port in the browser of an operator, by letting the page's own name resolve to the port's
/// address (DNS rebinding). Every browser sends `Host`, so a request without it, as in HTTP/1.0, is from another
/// program.
fn is_allowed(headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut values = headers.get_all(HOST).iter();
    let Some(value) = values.next() else { return true };
    let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    let Some(authority) = authority.filter(|_| values.next().is_none()) else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
}

fn misdirected() -> Response<Full<Bytes>> {
    let body = "this port does not serve this host name; use its IP address, or add the name to --admin-hosts\n";
    text(StatusCode::MISDIRECTED_REQUEST, body.to_owned())
}

fn not_found() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n".to_owned())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_ip_addresses_localhost_and_configured_names_are_served() {
        let allowed = |hosts: &[&str]| {
            let headers = hosts.iter().map(|host| (HOST, HeaderValue::from_str(host).unwrap()));
            is_allowed(&headers.collect(), &["metrics.internal".into()])
        };
        for host in [
            "127.0.0.1:9000",
            "10.1.2.3",
            "[::1]:9000",
            "[2001:db8::1]",
            "localhost",
            "LocalHost:9000",
            "metrics.internal:9000",
            "Metrics.Internal",
        ] {
            assert!(allowed(&[host]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "other.metrics.internal",
            "localhost.",
            "",
            "127.0.0.1@evil.example",
        ] {
            assert!(!allowed(&[host]), "{host}");
        }
        assert!(!allowed(&["localhost", "evil.example"]), "two");
        assert!(allowed(&[]), "HTTP/1.0");
    }

    #[tokio::test]
    async fn a_request_for_another_host_gets_421_on_every_path() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, recorder) = (Health::default(), crate::metrics::recorder().unwrap());
        tokio::spawn(serve(listener, "test", health, recorder, None, vec!["metrics.internal".into()]));
        for (request, status) in [
            (format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n"), 200),
            ("GET /metrics HTTP/1.1\r\nHost: metrics.internal\r\n".into(), 200),
            ("GET /livez HTTP/1.0\r\n".into(), 200),
            ("GET /livez HTTP/1.1\r\nHost: evil.example\r\n".into(), 421),
            ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n".into(), 421),
            ("GET /ops HTTP/1.1\r\nHost: evil.example\r\n".into(), 421),
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            tokio::time::timeout(Duration::from_secs(60), read).await.unwrap().unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{request}");
        }
    }

    #[test]
    fn a_remark_replaces_ok_and_keeps_the_worker_ready() {
        let health = Health::default();
        health.up("log");
        health.remark("log", Some("full since noon".into()));
        assert_eq!(health.report(), (true, "log: full since noon\n".into()));
        health.down("log", "no answer");
        assert_eq!(health.report(), (false, "log: no answer\n".into()));
        health.up("log");
        health.remark("log", None);
        assert_eq!(health.report(), (true, "log: ok\n".into()));
    }

    #[test]
    fn any_bytes_in_host_are_refused_unless_they_name_this_port() {
        let hosts = ["metrics.internal".to_owned()];
        garage_fuzz::feed(&["127.0.0.1:9000", "[::1]:9000", "localhost", "Metrics.Internal:80"], |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            let allowed = is_allowed(&HeaderMap::from_iter([(HOST, value.clone())]), &hosts);
            if allowed {
                let text = value.to_str().unwrap().to_lowercase();
                let host = text.rsplit('@').next().unwrap();
                let address = host.strip_prefix('[').and_then(|v6| v6.split(']').next());
                let name = address.unwrap_or_else(|| host.split(':').next().unwrap());
                assert!(["localhost", "metrics.internal"].contains(&name) || name.parse::<IpAddr>().is_ok(), "{text}");
            }
            let mut twice = HeaderMap::from_iter([(HOST, value.clone())]);
            twice.append(HOST, value);
            assert!(!is_allowed(&twice, &hosts), "two");
            allowed
        });
    }
}
