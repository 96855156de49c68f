//! `GET /v1/ws?since=N`: turns a request into a socket. `warp::ws` is not used, because its sockets take 135 KiB each.

use std::sync::Arc;

use futures::FutureExt;
use garage_events::env::Env;
use garage_worker::Shutdown;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::Incoming,
    header::{
        AUTHORIZATION, CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tokio_util::task::TaskTracker;
use warp::reply::Response;

use crate::{
    admission::Pace,
    answers::SentAnswer,
    app::App,
    limits::{DEADLINE, MESSAGES_BURST, MESSAGES_PER_SECOND},
    problem::Problem,
    request,
    socket::{self, Socket, SocketToken, Timing},
    token::{Identity, Keys, Refused},
};

pub(crate) const PATH: &str = "/v1/ws";

/// The subprotocol. Clients that cannot set headers, such as browsers, offer it together with their token, which they
/// send as another subprotocol with the prefix [`BEARER`].
const PROTOCOL: &str = "garage.v1";
const BEARER: &str = "bearer.";

/// Answers the handshake of a client with this identity, and spawns the socket in `tasks`. The socket keeps the
/// `permit` until it ends.
pub(crate) async fn handle(
    app: &Arc<App>,
    mut request: Request<Incoming>,
    identity: Result<Identity, Refused>,
    permit: impl Send + 'static,
    tasks: &TaskTracker,
    shutdown: &Shutdown,
) -> Result<Response, Problem> {
    if request.method() != Method::GET {
        return Err(Problem::method_not_allowed("GET"));
    }
    let headers = request.headers();
    let identity = identity?;
    app.admission.sockets.take(&identity.player)?;
    let accept = accept(headers)?;
    let since = since(request.uri().query())?;
    let offered = protocols(headers).any(|name| name == PROTOCOL);

    if let Some(since) = since.filter(|since| *since > app.hub.position())
        && since > app.log.state().await?.last_sequence
    {
        // The sequence is from another log, or invented. If it were accepted, the client would miss all events until
        // the log reaches it.
        return Err(Problem::bad_request("since is beyond the end of the log; connect again with since=0"));
    }
    // Register before the client learns that it is connected, so that it receives every event from then on.
    let player = identity.player.clone();
    let registration = app.hub.register(&player);
    // After the registration: a block that is read later closes the registered socket.
    app.blocks.check(&player)?;
    let presence = app.presence.enter(player.clone(), registration.entry.clone()).await;
    app.parties.greet(&player);
    let upgrade = hyper::upgrade::on(&mut request);
    let (app, shutdown) = (Arc::clone(app), shutdown.clone());
    let verifier = Arc::clone(&app);
    let verify = Box::new(move |token: String| {
        let app = Arc::clone(&verifier);
        async move { app.keys.verify(&token).await }.boxed()
    });
    let token = SocketToken::new(&identity, app.keys.leeway(), verify, app.env.now(), Instant::now());
    let (app_of_answers, answering) = (Arc::clone(&app), player.clone());
    let answers = Box::new(move |sent: SentAnswer| {
        let (app, player) = (Arc::clone(&app_of_answers), answering.clone());
        async move { sent.give(&app.client, &app.admission.tickets, &player).await }.boxed()
    });
    tasks.spawn(async move {
        match timeout(DEADLINE, upgrade).await {
            Ok(Ok(upgraded)) => {
                let io = TokioIo::new(upgraded);
                let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(socket::config())).await;
                let (pace, timing) = (Pace::new(MESSAGES_BURST, MESSAGES_PER_SECOND), Timing::default());
                let socket = Socket { stream, registration, player, token, answers, pace, timing, shutdown };
                presence.ended(socket.run(&app.log, since).await);
            }
            Ok(Err(error)) => tracing::debug!(%error, "a connection broke during the WebSocket upgrade"),
            Err(_) => tracing::debug!("a WebSocket upgrade did not complete in time"),
        }
        drop(permit);
    });

    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if offered {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(response)
}

/// The identity in a handshake's token.
pub(crate) async fn identity(keys: &Keys, headers: &HeaderMap) -> Result<Identity, Refused> {
    if headers.contains_key(AUTHORIZATION) {
        return request::identity(keys, headers).await;
    }
    let token = protocols(headers).find_map(|name| name.strip_prefix(BEARER)).ok_or(Refused::Missing)?;
    keys.verify(token).await
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    tokens(headers, SEC_WEBSOCKET_PROTOCOL)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Checks the handshake, and computes the value of `Sec-WebSocket-Accept` (RFC 6455, section 4.2).
fn accept(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let has = |name, token: &str| tokens(headers, name).any(|value| value.eq_ignore_ascii_case(token));
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") || !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "this path serves WebSocket only; send a WebSocket handshake, version 13",
        )
        .header(UPGRADE, HeaderValue::from_static("websocket"))
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    // 16 bytes in base64 are 24 characters.
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
    accept.ok_or_else(|| Problem::bad_request("Sec-WebSocket-Key must be 16 bytes in base64"))
}

/// The last sequence that the client has seen; `None` if the client wants new events only.
fn since(query: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    // The parser of u64 accepts a leading plus sign.
    let digits = query.strip_prefix("since=").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(since) => Ok(Some(since)),
        None => Err(Problem::bad_request("the query must be since=N, where N is the last sequence seen, or be empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_sequence_or_is_absent() {
        assert_eq!(since(None).unwrap(), None);
        assert_eq!(since(Some("")).unwrap(), None);
        assert_eq!(since(Some("since=0")).unwrap(), Some(0));
        assert_eq!(since(Some("since=18446744073709551615")).unwrap(), Some(u64::MAX));
        for bad in [
            "since",
            "since=",
            "since=+1",
            "since=-1",
            "since=1.5",
            "since=18446744073709551616",
            "from=1",
            "since=1&since=2",
        ] {
            assert!(since(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_incomplete_handshake_is_refused() {
        let all = [
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "websocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |without: usize| {
            let some = all.iter().enumerate().filter(move |(index, _)| *index != without);
            some.map(|(_, (name, value))| (name.clone(), HeaderValue::from_static(value))).collect::<HeaderMap>()
        };
        // The example of RFC 6455, section 1.3.
        assert_eq!(accept(&headers(9)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (without, status) in [(0, 426), (1, 426), (2, 426), (3, 400)] {
            assert_eq!(accept(&headers(without)).unwrap_err().status(), status);
        }
    }

    #[test]
    fn any_bytes_are_a_sequence_or_a_short_problem() {
        garage_fuzz::feed(&["since=7", "since=18446744073709551615", ""], |bytes| {
            let query = String::from_utf8_lossy(bytes);
            match since(Some(&query)) {
                Ok(Some(since)) => {
                    let digits = query.strip_prefix("since=").unwrap();
                    assert_eq!(digits.trim_start_matches('0'), since.to_string().trim_start_matches('0'));
                    true
                }
                Ok(None) => query.is_empty(),
                Err(problem) => {
                    assert!(problem.status() == 400 && problem.detail().len() <= 200, "{problem:?}");
                    false
                }
            }
        });
    }

    #[test]
    fn any_bytes_in_a_header_of_a_handshake_are_accepted_or_a_short_problem() {
        let valid = ["keep-alive, Upgrade", "websocket", "13", "dGhlIHNhbXBsZSBub25jZQ==", "garage.v1, bearer.a.b.c"];
        let names = [CONNECTION, UPGRADE, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL];
        garage_fuzz::feed(&valid, |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            let good = names.iter().cloned().zip(valid.map(HeaderValue::from_static)).collect::<HeaderMap>();
            let accepts = names.iter().map(|name| {
                let mut headers = good.clone();
                headers.insert(name, value.clone());
                assert!(protocols(&headers).all(|protocol| protocol.len() <= bytes.len().max(30)));
                match accept(&headers) {
                    Ok(accept) => {
                        assert_eq!(accept.len(), 28, "20 bytes in base64");
                        true
                    }
                    Err(problem) => {
                        assert!(problem.status().is_client_error() && problem.detail().len() <= 200, "{problem:?}");
                        false
                    }
                }
            });
            let accepts: Vec<_> = accepts.collect();
            assert!(accepts.ends_with(&[true]), "the protocols do not matter");
            accepts.iter().filter(|accept| **accept).count() > 1 || value == valid[4]
        });
    }
}
