//! The accept loop. Applies TLS, limits and time-outs to the routes.

use std::{convert::Infallible, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use garage_worker::Shutdown;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body, Incoming},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use proxy_header::io::ProxiedStream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use warp::reply::Response;

use crate::{
    admission::Pace,
    app::App,
    connections::{self, Claim, Connections, Eviction, Refusal},
    cors::Cors,
    limits::{DEADLINE, GRACE, LIMITED_DELAY, MAX_BODY, MAX_HEAD, UNCOUNTED_BURST, UNCOUNTED_PER_SECOND},
    problem::Problem,
    proxy::{self, Peer, Proxies},
    request,
    routes::{self, Route},
    token::{Identity, Refused},
    upgrade,
    write_timeout::WriteTimeout,
};

/// The routes as a service. The type that warp returns has no name.
type Routes = Box<dyn Fn(Request<Full<Bytes>>) -> BoxFuture<'static, Response> + Send + Sync>;

/// The state that all connections share.
struct Server {
    app: Arc<App>,
    routes: Routes,
    access: Access,
    /// The tasks of all connections and sockets.
    tasks: TaskTracker,
    shutdown: Shutdown,
}

/// Which clients can connect.
pub(crate) struct Access {
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) connections: Connections,
    pub(crate) proxies: Proxies,
    pub(crate) cors: Cors,
}

/// A connection, as its requests see it.
struct Connection {
    /// The address of the client or of its proxy.
    address: IpAddr,
    peer: Peer,
    claim: Arc<Claim>,
    /// For requests that no other limit counts.
    pace: Pace,
}

/// Serves clients until `shutdown`, and then finishes the requests in progress.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    access: Access,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let service = TowerToHyperService::new(warp::service(routes::all(Arc::clone(&app))));
    let routes: Routes = Box::new(move |request| {
        let response = service.call(request);
        Box::pin(async move { response.await.unwrap_or_else(|never: Infallible| match never {}) })
    });
    let server = Arc::new(Server { app, routes, access, tasks: TaskTracker::new(), shutdown: shutdown.clone() });
    while let Some((stream, address)) = shutdown.run_until_cancelled(accept(&listener)).await {
        let peer = server.access.proxies.peer(address);
        let known = (peer == Peer::Client).then_some(address);
        match server.access.connections.open(known, Instant::now()) {
            Ok((claim, eviction)) => {
                let pace = Pace::new(UNCOUNTED_BURST, UNCOUNTED_PER_SECOND);
                let connection = Connection { address, peer, claim: Arc::new(claim), pace };
                server.tasks.spawn(serve_until_evicted(stream, connection, eviction, Arc::clone(&server)));
            }
            Err(refusal) => tracing::debug!(%address, ?refusal, "closing a new connection"),
        }
    }
    drop(listener);
    server.tasks.close();
    if timeout(GRACE, server.tasks.wait()).await.is_err() {
        tracing::warn!(connections = server.tasks.len(), "not all connections ended before the time-out");
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, address.ip()),
            Err(error) => {
                // An error such as too many open files is temporary.
                tracing::warn!(%error, "cannot accept a connection; retrying");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_until_evicted(stream: TcpStream, connection: Connection, eviction: Eviction, server: Arc<Server>) {
    let address = connection.address;
    tokio::select! {
        () = eviction.wait() => tracing::debug!(%address, "closing an unauthenticated connection for a newer one"),
        () = serve_connection(stream, connection, server) => {}
    }
}

async fn serve_connection(stream: TcpStream, connection: Connection, server: Arc<Server>) {
    // Frames are small and must be sent at once.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let Some(stream) = identify(stream, &connection).await else { return };
    let stream = WriteTimeout::new(stream, DEADLINE);
    let Some(tls) = &server.access.tls else { return http(stream, connection, server).await };
    match timeout(DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, connection, server).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client failed the TLS handshake"),
        Err(_) => tracing::debug!("a client did not finish the TLS handshake in time"),
    }
}

/// Finds out who has opened a connection. `None` if it must be closed.
async fn identify(stream: TcpStream, connection: &Connection) -> Option<ProxiedStream<TcpStream>> {
    let Connection { address, peer, claim, .. } = connection;
    match peer {
        Peer::Client => Some(ProxiedStream::unproxied(stream)),
        Peer::Forwarded => {
            // The connection is the proxy's, and carries the requests of many clients. Each request counts by itself.
            claim.keep();
            Some(ProxiedStream::unproxied(stream))
        }
        Peer::ProxyProtocol => match proxy::read_header(stream).await {
            Ok((stream, client)) => claim.locate(client.unwrap_or(*address)).is_ok().then_some(stream),
            Err(error) => {
                connections::refused("proxy");
                tracing::debug!(%address, %error, "closing a connection of a proxy that did not name its client");
                None
            }
        },
    }
}

async fn http<S>(stream: S, connection: Connection, server: Arc<Server>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shutdown = server.shutdown.clone();
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let (server, connection) = (Arc::clone(&server), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(respond(&server, request, &connection).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients disconnect all the time.
        tracing::debug!(%error, "a connection failed");
    }
}

async fn respond(server: &Server, request: Request<Incoming>, connection: &Connection) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let asked = server.access.cors.asked(&request);
    let is_handshake = request.uri().path() == upgrade::PATH;
    let answer = if is_handshake {
        handshake(server, request, connection).await
    } else {
        rest(server, request, connection).await
    };
    let mut response = answer.unwrap_or_else(Problem::into_response);
    if is_handshake {
        response.extensions_mut().insert(Route(upgrade::PATH));
    }
    server.access.cors.apply(asked, &mut response);
    let route = response.extensions().get::<Route>().map_or("none", |route| route.0);
    let status = response.status();
    let label = status.as_str().to_owned();
    metrics::counter!("garage_gateway_requests_total", "route" => route, "status" => label).increment(1);
    let took = began.elapsed();
    metrics::histogram!("garage_gateway_request_seconds", "route" => route, "status" => class(status)).record(took);
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(%method, route, status = status.as_u16(), duration_ms, "request");
    if status == StatusCode::TOO_MANY_REQUESTS {
        sleep(LIMITED_DELAY).await;
    } else if !is_counted(&method, route, status) && connection.peer != Peer::Forwarded {
        // The connection of a proxy carries the requests of many clients.
        connection.pace.wait().await;
    }
    response
}

/// Whether a request took a token from a bucket of its player. If not, it has no valid token, its method or path does not
/// exist, or it needs no token.
fn is_counted(method: &Method, route: &str, status: StatusCode) -> bool {
    let is_refused_early = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::METHOD_NOT_ALLOWED)
        // The origin of a handshake is checked before its token.
        || (status == StatusCode::FORBIDDEN && route == upgrade::PATH);
    !matches!(route, "none" | "/v1/ping" | "/openapi.json") && *method != Method::OPTIONS && !is_refused_early
}

/// The class of a status, as a label: a histogram for each single status would be many series.
fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// Counts a request with this identity: for its player if the token is valid, otherwise for the address of its client.
fn count(
    access: &Access,
    headers: &HeaderMap,
    connection: &Connection,
    identity: &Result<Identity, Refused>,
) -> Result<Arc<Claim>, Refusal> {
    let Access { connections, proxies, .. } = access;
    let claim = match connection.peer {
        Peer::Forwarded => Arc::new(connections.request()),
        Peer::Client | Peer::ProxyProtocol => Arc::clone(&connection.claim),
    };
    if !claim.is_authenticated() {
        match identity {
            Ok(identity) => claim.authenticate(identity)?,
            Err(_) if connection.peer == Peer::Forwarded => {
                claim.locate(proxies.client(headers).unwrap_or(connection.address))?;
            }
            // The connection counts for its address already.
            Err(_) => {}
        }
    }
    Ok(claim)
}

async fn handshake(server: &Server, request: Request<Incoming>, connection: &Connection) -> Result<Response, Problem> {
    let headers = request.headers();
    server.access.cors.check_handshake(headers)?;
    let identity = upgrade::identity(&server.app.keys, headers).await;
    let claim = count(&server.access, headers, connection, &identity)?;
    // The socket keeps the connection, and counts for its player until it ends.
    let permit = (Arc::clone(&connection.claim), claim);
    in_time(upgrade::handle(&server.app, request, identity, permit, &server.tasks, &server.shutdown)).await
}

async fn rest(server: &Server, request: Request<Incoming>, connection: &Connection) -> Result<Response, Problem> {
    let headers = request.headers();
    let identity = request::identity(&server.app.keys, headers).await;
    let _claim = count(&server.access, headers, connection, &identity)?;
    let (mut parts, body) = request.into_parts();
    let body = read(body).await?;
    // The routes read it.
    parts.extensions.insert(identity);
    let request = Request::from_parts(parts, Full::new(body));
    in_time(async { Ok((server.routes)(request).await) }).await
}

/// Reads a whole body, within the limits for its size and its duration.
async fn read(body: Incoming) -> Result<Bytes, Problem> {
    let too_large = || Problem::too_large(MAX_BODY);
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match timeout(DEADLINE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::bad_request("the request body could not be read to its end; send it again")),
        Err(_) => {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time; send it again")
                .header(CONNECTION, HeaderValue::from_static("close")))
        }
    }
}

/// Limits how long a client waits for an answer. After a time-out, the log may still store the command's event. The
/// client learns that when it asks again.
async fn in_time(answer: impl Future<Output = Result<Response, Problem>>) -> Result<Response, Problem> {
    match timeout(DEADLINE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::unavailable("the request was not answered in time; try again")),
    }
}
