//! `GET /v1/ws?since=N`: from a request to a socket. Not `warp::ws`, whose sockets take 135 KiB each.

use std::sync::Arc;

use garage_events::id::PlayerId;
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
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tokio_util::task::TaskTracker;
use warp::reply::Response;

use crate::{
    App,
    problem::Problem,
    request,
    server::DEADLINE,
    socket::{self, Pace, Socket},
    token::Refused,
};

/// Where it is.
pub(crate) const PATH: &str = "/v1/ws";

/// The subprotocol, for clients that cannot set headers (browsers) and bring their token in this one.
const PROTOCOL: &str = "garage.v1";
const BEARER: &str = "bearer.";

/// Answers the request, and serves the socket as one of `tasks`. `held` is what the connection holds; the socket holds
/// it from then on.
pub(crate) async fn handle(
    app: &Arc<App>,
    mut request: Request<Incoming>,
    held: impl Send + 'static,
    tasks: &TaskTracker,
    shutdown: &Shutdown,
) -> Result<Response, Problem> {
    if request.method() != Method::GET {
        return Err(Problem::method_not_allowed("GET"));
    }
    let headers = request.headers();
    let player = player(app, headers)?;
    let accept = accept(headers)?;
    let since = since(request.uri().query())?;
    let offered = protocols(headers).any(|name| name == PROTOCOL);

    if let Some(since) = since.filter(|since| *since > app.hub.position())
        && since > app.log.state().await?.last_sequence
    {
        // Of another log, or made up: waiting for the log to get there would swallow events without a sign.
        return Err(Problem::bad_request("since is ahead of the log; begin with 0"));
    }
    // Before the client hears that it is connected: what happens after that must reach it.
    let registration = app.hub.register(&player);
    let noted = app.presence.enter(player.clone(), registration.entry.clone()).await;
    let upgrade = hyper::upgrade::on(&mut request);
    let (app, shutdown) = (Arc::clone(app), shutdown.clone());
    tasks.spawn(async move {
        match timeout(DEADLINE, upgrade).await {
            Ok(Ok(upgraded)) => {
                let io = TokioIo::new(upgraded);
                let stream = WebSocketStream::from_raw_socket(io, Role::Server, Some(socket::config())).await;
                let socket = Socket { stream, registration, player, pace: Pace::default(), shutdown };
                noted.ended(socket.run(&app.log, since).await);
            }
            Ok(Err(error)) => tracing::debug!(%error, "a connection was lost before it became a socket"),
            Err(_) => tracing::debug!("a connection did not become a socket in time"),
        }
        drop(held);
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

fn player(app: &App, headers: &HeaderMap) -> Result<PlayerId, Refused> {
    if headers.contains_key(AUTHORIZATION) {
        return Ok(request::identity(&app.keys, headers)?.player);
    }
    let token = protocols(headers).find_map(|name| name.strip_prefix(BEARER)).ok_or(Refused::Missing)?;
    Ok(app.keys.verify(token)?.player)
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    tokens(headers, SEC_WEBSOCKET_PROTOCOL)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// What proves that we understood the handshake (RFC 6455, section 4.2).
fn accept(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let has = |name, token: &str| tokens(headers, name).any(|value| value.eq_ignore_ascii_case(token));
    if !has(CONNECTION, "upgrade") || !has(UPGRADE, "websocket") || !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket, version 13")
            .header(UPGRADE, HeaderValue::from_static("websocket"))
            .header(CONNECTION, HeaderValue::from_static("Upgrade"))
            .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
    }
    // 16 bytes in base64.
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
    accept.ok_or_else(|| Problem::bad_request("Sec-WebSocket-Key must be 16 bytes in base64"))
}

/// The last sequence that the client has seen; `None` when it asks for what comes.
fn since(query: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    // u64's own parser takes a sign too.
    let digits = query.strip_prefix("since=").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(since) => Ok(Some(since)),
        None => Err(Problem::bad_request("the query must be since=N, the last sequence seen, or be absent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_sequence_or_absent() {
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
    fn only_a_handshake_is_accepted() {
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
        // The sample of RFC 6455, section 1.3.
        assert_eq!(accept(&headers(9)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (without, status) in [(0, 426), (1, 426), (2, 426), (3, 400)] {
            assert_eq!(accept(&headers(without)).unwrap_err().status(), status);
        }
    }
}
