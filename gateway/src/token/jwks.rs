//! The identity provider's public keys, from its JWKS (RFC 7517). One task reads them: at the start, then at a fixed
//! interval, and once more when a token names a key that is not known. Requests only look at the keys that were read
//! last, so neither a slow provider nor a flood of invalid tokens delays a player whose token is signed with a known
//! key.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use garage_events::game::Secret;
use garage_worker::{Health, Shutdown};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::jwk::Jwk;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use super::key::{Unusable, VerifyingKey};

/// The time between two reads. A provider that removes a key has to wait this long until the key is no longer accepted.
const INTERVAL: Duration = Duration::from_secs(600);

/// The time between two tries while the provider does not answer.
const RETRY: Duration = Duration::from_secs(10);

/// The shortest time between two reads for tokens that name an unknown key. Anybody can send such tokens.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(60);

/// How long one read may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long a request waits for a read: one read, and a moment for its result. The gateway answers within 10 s.
const WAIT: Duration = Duration::from_secs(6);

/// The maximum size of the document, in bytes. A provider with a few keys sends less than 10 KiB.
const MAX_DOCUMENT: usize = 256 << 10;

/// The maximum number of keys in the document. A token is verified only with the keys that its `kid` names,
/// but each key is parsed.
const MAX_KEYS: usize = 64;

/// How much of the document an error or a warning quotes, in characters.
const MAX_SHOWN: usize = 200;

/// The name of the provider in /readyz.
const PROVIDER: &str = "identity provider";

/// The provider's keys. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Jwks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    url: Uri,
    state: watch::Sender<State>,
    asks: Mutex<Asks>,
    /// Wakes the task that reads.
    wake: Notify,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// `None` until the keys were read once.
    keys: Option<Arc<[VerifyingKey]>>,
    /// The number of the latest requested read that has ended, successful or not.
    answered: u64,
}

/// The reads that were requested. Each has a number. Number 1 is the read at the start.
#[derive(Debug)]
struct Asks {
    latest: u64,
    /// When a read for an unknown key was last requested.
    at: Option<Instant>,
}

impl Jwks {
    /// Keys that are read from `url` once [`run`](Self::run) runs.
    ///
    /// # Errors
    /// If the URL is not `https`, or `http` on this machine.
    pub(super) fn new(url: &Secret) -> anyhow::Result<Self> {
        let asks = Mutex::new(Asks { latest: 1, at: None });
        let state = watch::Sender::new(State::default());
        Ok(Self(Arc::new(Shared { url: parse_url(url)?, state, asks, wake: Notify::new() })))
    }

    /// The keys that were read last; `None` if none could be read yet. Waits for the first read, at most [`WAIT`].
    pub(super) async fn keys(&self) -> Option<Arc<[VerifyingKey]>> {
        self.answer(1).await
    }

    /// The keys after another read, for a token that names an unknown key. Tokens that arrive during this read share
    /// it. `None` if the latest such read began less than [`UNKNOWN_INTERVAL`] ago, or did not end within [`WAIT`].
    pub(super) async fn read_again(&self) -> Option<Arc<[VerifyingKey]>> {
        let ask = {
            let mut asks = self.asks();
            let is_open = asks.latest > self.0.state.borrow().answered;
            if !is_open {
                if asks.at.is_some_and(|at| at.elapsed() < UNKNOWN_INTERVAL) {
                    return None;
                }
                (asks.latest, asks.at) = (asks.latest + 1, Some(Instant::now()));
                self.0.wake.notify_one();
            }
            asks.latest
        };
        self.answer(ask).await
    }

    async fn answer(&self, ask: u64) -> Option<Arc<[VerifyingKey]>> {
        let mut state = self.0.state.subscribe();
        let answered = timeout(WAIT, state.wait_for(|state| state.answered >= ask)).await.ok()?.ok()?;
        answered.keys.clone()
    }

    fn asks(&self) -> std::sync::MutexGuard<'_, Asks> {
        // The fields are set together, without a panic in between.
        self.0.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the keys until `shutdown`. The worker is not ready until they were read once. Later, when the provider
    /// does not answer, the last keys stay in use.
    pub(super) async fn run(self, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
        let client = client(&self.0.url)?;
        let reading = async {
            loop {
                let ask = self.asks().latest;
                let read = timeout(DEADLINE, read(&client, &self.0.url)).await;
                let read = read.unwrap_or_else(|_| bail!("it did not answer within {} s", DEADLINE.as_secs()));
                let next = Instant::now() + if read.is_ok() { INTERVAL } else { RETRY };
                self.store(read, ask, &health);
                self.pause(next).await;
            }
        };
        shutdown.run_until_cancelled(reading).await;
        Ok(())
    }

    /// Waits until the next read is due, or a request asks for one.
    async fn pause(&self, next: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(next) => return,
                () = self.0.wake.notified() => {}
            }
            // The read that has just ended may have been the requested one.
            if self.asks().latest > self.0.state.borrow().answered {
                return;
            }
        }
    }

    fn store(&self, read: anyhow::Result<Vec<VerifyingKey>>, ask: u64, health: &Health) {
        let outcome = if read.is_ok() { "ok" } else { "failed" };
        metrics::counter!("garage_gateway_jwks_reads_total", "outcome" => outcome).increment(1);
        match read {
            Ok(keys) => {
                metrics::gauge!("garage_gateway_jwks_keys").set(keys.len() as f64);
                health.up(PROVIDER);
                health.remark(PROVIDER, None);
                self.0.state.send_modify(|state| *state = State { keys: Some(keys.into()), answered: ask });
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the keys of the identity provider; retrying");
                if self.0.state.borrow().keys.is_some() {
                    health.remark(PROVIDER, Some(format!("{error:#}; the keys that were read last stay in use")));
                } else {
                    health.down(PROVIDER, format!("{error:#}; no key could be read yet"));
                }
                self.0.state.send_modify(|state| state.answered = ask);
            }
        }
    }
}

/// Reports in /readyz that no key was read yet.
pub(super) fn not_read(health: &Health) {
    health.down(PROVIDER, "its keys were not read yet");
}

/// Parses the URL of a JWKS. Keys that come over an open network must be protected by TLS.
fn parse_url(url: &Secret) -> anyhow::Result<Uri> {
    let uri: Uri =
        url.expose().parse().context("the URL of --jwks-url is not valid; use one like https://HOST/jwks")?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    ensure!(!authority.contains('@'), "the URL of --jwks-url contains a user or a password, which it does not need");
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(uri),
        Some("http") if is_local => Ok(uri),
        _ => bail!("the URL of --jwks-url must begin with https://; http:// is accepted only for this machine"),
    }
}

type JwksClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client that trusts the certificate authorities of the system, or of the file in `SSL_CERT_FILE`.
fn client(url: &Uri) -> anyhow::Result<JwksClient> {
    let provider = ring::default_provider();
    let builder = HttpsConnectorBuilder::new();
    let builder = if url.scheme_str() == Some("https") {
        let trusted = builder.with_provider_and_native_roots(provider);
        trusted.context("no certificate authority of this system can be read; set SSL_CERT_FILE")?.https_only()
    } else {
        let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        builder.with_tls_config(config).https_or_http()
    };
    // A connection does not live until the next read.
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(builder.enable_http1().build()))
}

async fn read(client: &JwksClient, url: &Uri) -> anyhow::Result<Vec<VerifyingKey>> {
    let response = client.get(url.clone()).await.context("it cannot be reached")?;
    let status = response.status();
    ensure!(!status.is_redirection(), "it answers with a redirect ({status}); set --jwks-url to the final URL");
    ensure!(status == StatusCode::OK, "it answers with the status {status}");
    match Limited::new(response.into_body(), MAX_DOCUMENT).collect().await {
        Ok(body) => parse(&body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => bail!("its JWKS is longer than {MAX_DOCUMENT} bytes"),
        Err(error) => bail!("its answer ended early: {error}"),
    }
}

/// The usable keys of a JWKS.
fn parse(document: &[u8]) -> anyhow::Result<Vec<VerifyingKey>> {
    #[derive(Deserialize)]
    struct Document {
        keys: Vec<Value>,
    }
    // An error of the parser can quote the document, which may be long.
    let shown = |error: serde_json::Error| error.to_string().chars().take(MAX_SHOWN).collect::<String>();
    let document =
        serde_json::from_slice(document).map_err(|error| anyhow!("its answer is not a JWKS: {}", shown(error)));
    let Document { keys } = document?;
    ensure!(keys.len() <= MAX_KEYS, "its JWKS has {} keys; the limit is {MAX_KEYS}", keys.len());
    let usable = keys.into_iter().filter_map(|key| {
        let kid: String = key.get("kid").map(Value::to_string).unwrap_or_default().chars().take(MAX_SHOWN).collect();
        let parsed = serde_json::from_value::<Jwk>(key).ok().ok_or(Unusable::Malformed);
        match parsed.and_then(|jwk| VerifyingKey::public(&jwk)) {
            Ok(key) => return Some(key),
            Err(Unusable::Other) => tracing::debug!(kid, "ignored a key of the identity provider: {}", Unusable::Other),
            Err(why) => tracing::warn!(kid, "ignored a key of the identity provider: {why}"),
        }
        None
    });
    let usable: Vec<_> = usable.collect();
    // An empty set would refuse every player. It is most likely a mistake.
    ensure!(!usable.is_empty(), "its JWKS has no key for RS256, ES256 or EdDSA");
    Ok(usable)
}

#[cfg(test)]
mod any_bytes;
#[cfg(test)]
mod tests;
