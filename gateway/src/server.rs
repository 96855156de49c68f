//! The accept loop. Applies TLS, limits and time-outs to the routes.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use garage_worker::Shutdown;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, StatusCode,
    body::{Body, Incoming},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use warp::reply::Response;

use crate::{
    app::App,
    limits::{DEADLINE, GRACE, MAX_BODY, MAX_HEAD},
    problem::Problem,
    routes::{self, Route},
    upgrade,
    write_timeout::WriteTimeout,
};

/// The routes as a service. The type that warp returns has no name.
type Routes = Box<dyn Fn(Request<Full<Bytes>>) -> BoxFuture<'static, Response> + Send + Sync>;

/// The state that all connections share.
struct Server {
    app: Arc<App>,
    routes: Routes,
    /// The tasks of all connections and sockets.
    tasks: TaskTracker,
    shutdown: Shutdown,
}

/// Serves clients until `shutdown`, and then finishes the requests in progress.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
    limit: u32,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    // Further connections wait in the kernel's accept queue. This protects the gateway from a flood of connections.
    let permits = Arc::new(Semaphore::new(usize::try_from(limit)?.min(Semaphore::MAX_PERMITS)));
    let service = TowerToHyperService::new(warp::service(routes::all(Arc::clone(&app))));
    let routes: Routes = Box::new(move |request| {
        let response = service.call(request);
        Box::pin(async move { response.await.unwrap_or_else(|never: Infallible| match never {}) })
    });
    let server = Arc::new(Server { app, routes, tasks: TaskTracker::new(), shutdown: shutdown.clone() });
    while let Some(next) = shutdown.run_until_cancelled(accept(&listener, &permits)).await {
        let (stream, permit) = next?;
        server.tasks.spawn(connection(stream, tls.clone(), Arc::clone(&server), permit));
    }
    drop(listener);
    server.tasks.close();
    if timeout(GRACE, server.tasks.wait()).await.is_err() {
        tracing::warn!(connections = server.tasks.len(), "not all connections ended before the time-out");
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> anyhow::Result<(TcpStream, Arc<OwnedSemaphorePermit>)> {
    let permit = Arc::clone(permits).acquire_owned().await?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, Arc::new(permit))),
            Err(error) => {
                // An error such as too many open files is temporary.
                tracing::warn!(%error, "cannot accept a connection; retrying");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    server: Arc<Server>,
    permit: Arc<OwnedSemaphorePermit>,
) {
    // Frames are small and must be sent at once.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let stream = WriteTimeout::new(stream, DEADLINE);
    let Some(tls) = tls else { return http(stream, server, permit).await };
    match timeout(DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => http(stream, server, permit).await,
        Ok(Err(error)) => tracing::debug!(%error, "a client failed the TLS handshake"),
        Err(_) => tracing::debug!("a client did not finish the TLS handshake in time"),
    }
}

async fn http<S>(stream: S, server: Arc<Server>, permit: Arc<OwnedSemaphorePermit>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shutdown = server.shutdown.clone();
    let service = service_fn(move |request| {
        let (server, permit) = (Arc::clone(&server), Arc::clone(&permit));
        async move { Ok::<_, Infallible>(respond(&server, request, permit).await) }
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

async fn respond(server: &Server, request: Request<Incoming>, permit: Arc<OwnedSemaphorePermit>) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let response = if request.uri().path() == upgrade::PATH {
        let socket = upgrade::handle(&server.app, request, permit, &server.tasks, &server.shutdown);
        let mut response = in_time(socket).await.unwrap_or_else(Problem::into_response);
        response.extensions_mut().insert(Route(upgrade::PATH));
        response
    } else {
        rest(&server.routes, request).await.unwrap_or_else(Problem::into_response)
    };
    let route = response.extensions().get::<Route>().map_or("none", |route| route.0);
    let status = response.status();
    let label = status.as_str().to_owned();
    metrics::counter!("garage_gateway_requests_total", "route" => route, "status" => label).increment(1);
    let took = began.elapsed();
    metrics::histogram!("garage_gateway_request_seconds", "route" => route, "status" => class(status)).record(took);
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(%method, route, status = status.as_u16(), duration_ms, "request");
    response
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

async fn rest(routes: &Routes, request: Request<Incoming>) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let request = Request::from_parts(parts, Full::new(body));
    in_time(async { Ok(routes(request).await) }).await
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
