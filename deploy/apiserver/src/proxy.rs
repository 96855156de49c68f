//! A proxy between a client and an API server. It logs the requests, and makes some of them fail when a test asks for
//! it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyDataStream, BodyExt, Collected, StreamBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
};
use kube::Client;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

use crate::{
    call::Call,
    kubeconfig, rights, rules,
    serve::{self, Body, Cut},
};

/// A running proxy in front of an API server. Dropping it stops the proxy and closes all connections.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// A request that the proxy has handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// `get`, `list`, `watch`, `create`, `patch` or `delete`.
    pub verb: &'static str,
    /// The resource as roles name it: `pods`, `pods/status`.
    pub resource: String,
    /// Whether the request is a dry run, which changes nothing.
    pub dry_run: bool,
    /// The answer's status code. `None` for a watch that was forwarded, and for a request without an answer.
    pub status: Option<u16>,
}

/// Makes requests with this verb and resource fail.
#[derive(Debug, Clone)]
struct Fault {
    /// The verb as roles name it.
    verb: &'static str,
    /// The resource as roles name it: `pods`, `pods/status`.
    resource: &'static str,
    which: Which,
    /// What the client gets.
    answer: Answer,
}

/// The requests that fail.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// The next one, not counting dry runs.
    Next,
    /// The next dry run.
    NextDryRun,
    /// All that name this object.
    Named(String),
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Status 401.
    Unauthorized,
    /// Status 403: the client does not have the right.
    Forbidden,
    /// Status 403: the namespace is new, and its controller has not created the default service account yet.
    NoServiceAccount,
    /// Status 429, with `Retry-After`.
    TooMany,
    /// Status 500.
    Internal,
    /// Status 410: the requested revision is too old. A watch gets this as an event.
    Gone,
    /// The connection closes without an answer, but the server has executed the request.
    Lost,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Ends the watches that are open.
    cut: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<LoggedRequest>,
    faults: Vec<Fault>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics halfway through a change, so the state is consistent even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts a proxy on a free port of this machine. It forwards requests through `server`, with that client's
    /// credentials.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(server: Client) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), cut: Arc::default() });
        let state = Arc::clone(&shared);
        let serving =
            tokio::spawn(serve::run(listener, move |request| answer(request, server.clone(), Arc::clone(&state))));
        Ok(Self { shared, address, serving })
    }

    /// The proxy's base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for this proxy, in JSON.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// The requests so far, in the order of their answers.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.state().requests.clone()
    }

    /// Makes the next request with this verb and resource fail. Each further call makes one further request fail, in
    /// order.
    pub fn fail(&self, verb: &'static str, resource: &'static str, answer: Answer) {
        self.add(Fault { verb, resource, which: Which::Next, answer });
    }

    /// Makes the next dry run of a creation fail.
    pub fn fail_dry_run(&self, resource: &'static str, answer: Answer) {
        self.add(Fault { verb: "create", resource, which: Which::NextDryRun, answer });
    }

    /// Makes every request with this verb for this object fail.
    pub fn fail_always(&self, verb: &'static str, resource: &'static str, name: &str, answer: Answer) {
        self.add(Fault { verb, resource, which: Which::Named(name.into()), answer });
    }

    fn add(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Interrupts every watch.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
        self.cut();
    }
}

async fn answer(request: Request<Incoming>, server: Client, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    let call = Call::parse(request.method(), request.uri(), request.headers());
    let fault = call.as_ref().and_then(|call| take_fault(&mut shared.state().faults, call));
    let log = |status: Option<u16>| {
        if let Some(call) = &call {
            let (resource, dry_run) = (call.resource(), is_dry_run(call));
            shared.state().requests.push(LoggedRequest { verb: call.verb, resource, dry_run, status });
        }
    };
    match (&call, fault) {
        (Some(call), Some(answer)) if answer != Answer::Lost => {
            let (code, status) = refusal(call, answer);
            log(Some(code));
            if call.verb == "watch" && answer == Answer::Gone {
                let line = Bytes::from(serve::line("ERROR", &status));
                return Ok(serve::respond(
                    200,
                    StreamBody::new(futures::stream::iter([Ok(Frame::data(line))])).boxed_unsync(),
                ));
            }
            return Ok(serve::json_of(code, &status));
        }
        _ => {}
    }
    let forwarded = forward(request, &server).await?;
    if fault.is_some() {
        drop(forwarded.into_body().collect().await);
        log(None);
        return Err(Cut);
    }
    let (head, body) = forwarded.into_parts();
    let data = BodyDataStream::new(body).map(|data| data.map(Frame::data).map_err(Cut::by));
    if call.as_ref().is_some_and(|call| call.verb == "watch") {
        log(None);
        let lines = data.take_until(Arc::clone(&shared.cut).notified_owned()).chain(futures::stream::iter([Err(Cut)]));
        return Ok(Response::from_parts(head, StreamBody::new(lines).boxed_unsync()));
    }
    log(Some(head.status.as_u16()));
    Ok(Response::from_parts(head, StreamBody::new(data).boxed_unsync()))
}

/// Sends the same request to the server. If the server cannot be reached, the client's connection closes.
async fn forward(request: Request<Incoming>, server: &Client) -> Result<Response<kube::client::Body>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).map_err(Cut::by)?;
    let mut forwarded = Request::builder().method(head.method).uri(head.uri);
    for name in ["accept", "content-type"] {
        if let Some(value) = head.headers.get(name) {
            forwarded = forwarded.header(name, value);
        }
    }
    let forwarded = forwarded.body(kube::client::Body::from(body.to_vec())).map_err(Cut::by)?;
    server.send(forwarded).await.map_err(Cut::by)
}

fn is_dry_run(call: &Call) -> bool {
    !call.parameter("dryRun").is_empty()
}

/// Returns the first fault for this call, if any. Removes it if it is for one request.
fn take_fault(faults: &mut Vec<Fault>, call: &Call) -> Option<Answer> {
    let resource = call.resource();
    let applies = |fault: &Fault| match &fault.which {
        Which::Next => !is_dry_run(call),
        Which::NextDryRun => is_dry_run(call),
        Which::Named(name) => call.name == *name,
    };
    let matches = |fault: &Fault| fault.verb == call.verb && fault.resource == resource && applies(fault);
    let at = faults.iter().position(matches)?;
    let fault = faults.get(at)?;
    let answer = fault.answer;
    if !matches!(fault.which, Which::Named(_)) {
        faults.remove(at);
    }
    Some(answer)
}

fn refusal(call: &Call, answer: Answer) -> (u16, Value) {
    let Call { verb, resource, namespace, .. } = call;
    match answer {
        Answer::Unauthorized => rules::refusal(401, "Unauthorized", "Unauthorized", Value::Null),
        Answer::Forbidden => rights::forbidden(verb, resource, namespace),
        Answer::NoServiceAccount => {
            let message = format!(
                "{resource} \"game\" is forbidden: error looking up service account {namespace}/default: serviceaccount \
                 \"default\" not found"
            );
            rules::refusal(403, "Forbidden", &message, json!({"name": "game", "kind": resource}))
        }
        Answer::TooMany => {
            let message = "the server has received too many requests and has asked us to try again later";
            rules::refusal(429, "TooManyRequests", message, json!({"retryAfterSeconds": 1}))
        }
        Answer::Gone => rules::refusal(410, "Expired", "too old resource version: 1 (2)", Value::Null),
        Answer::Internal | Answer::Lost => {
            rules::refusal(500, "InternalError", "Internal error occurred: etcdserver: request timed out", Value::Null)
        }
    }
}
