//! Between a client and an API server: counts what is asked, and lets requests go wrong as they do on a bad day.

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
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    call::Call,
    kubeconfig, rights, rules,
    serve::{self, Body, Cut},
};

/// Stands in front of an API server. Dropping it cuts every connection.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// As roles name it: `get`, `list`, `watch`, `create`, `patch`, `delete`.
    pub verb: &'static str,
    /// As roles name it: `pods`, `pods/status`.
    pub resource: String,
    /// The answer's; none of a watch, and of what was not answered.
    pub status: Option<u16>,
}

/// Requests that are to go wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Of this verb.
    pub verb: &'static str,
    /// On this resource.
    pub resource: &'static str,
    /// How.
    pub answer: Answer,
}

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 401.
    Unauthorized,
    /// 403 for want of a right.
    Forbidden,
    /// 429, with `Retry-After`.
    TooMany,
    /// 500.
    Internal,
    /// 410: what it is to go on from is forgotten. A watch is told so by an event.
    Gone,
    /// The connection ends without an answer. What was asked for is done all the same.
    Lost,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// How often all watches were cut.
    cuts: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    faults: Vec<Fault>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts one on a free port of this machine, in front of the server that a client asks, and as whom that asks.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(server: Client) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { state: Mutex::default(), cuts: watch::Sender::new(0) });
        let behind = Arc::clone(&shared);
        let serving =
            tokio::spawn(serve::run(listener, move |request| answer(request, server.clone(), Arc::clone(&behind))));
        Ok(Self { shared, address, serving })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What clients find it by.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// What was asked so far, in order of the answers.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    /// Lets the next request of a kind go wrong.
    pub fn fail(&self, verb: &'static str, resource: &'static str, answer: Answer) {
        self.shared.state().faults.push(Fault { verb, resource, answer });
    }

    /// Cuts every watch.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
        self.cut();
    }
}

async fn answer(request: Request<Incoming>, server: Client, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    let call = Call::read(request.method(), request.uri(), request.headers());
    let fault = call.as_ref().and_then(|call| take(&mut shared.state().faults, call));
    let note = |status: Option<u16>| {
        if let Some(call) = &call {
            shared.state().asked.push(Asked { verb: call.verb, resource: call.resource(), status });
        }
    };
    match (&call, fault) {
        (Some(call), Some(answer)) if answer != Answer::Lost => {
            let (code, status) = refusal(call, answer);
            note(Some(code));
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
        note(None);
        return Err(Cut);
    }
    let (head, body) = forwarded.into_parts();
    let data = BodyDataStream::new(body).map(|data| data.map(Frame::data).map_err(Cut::by));
    if call.as_ref().is_some_and(|call| call.verb == "watch") {
        note(None);
        let mut cuts = shared.cuts.subscribe();
        let cut = async move { drop(cuts.changed().await) };
        let lines = data.take_until(cut).chain(futures::stream::iter([Err(Cut)]));
        return Ok(Response::from_parts(head, StreamBody::new(lines).boxed_unsync()));
    }
    note(Some(head.status.as_u16()));
    Ok(Response::from_parts(head, StreamBody::new(data).boxed_unsync()))
}

/// Asks the server the same. One that is not there is a connection that is cut.
async fn forward(request: Request<Incoming>, server: &Client) -> Result<Response<kube::client::Body>, Cut> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).map_err(Cut::by)?;
    let mut same = Request::builder().method(head.method).uri(head.uri);
    for name in ["accept", "content-type"] {
        if let Some(value) = head.headers.get(name) {
            same = same.header(name, value);
        }
    }
    let same = same.body(kube::client::Body::from(body.to_vec())).map_err(Cut::by)?;
    server.send(same).await.map_err(Cut::by)
}

/// What goes wrong with this call, if it is one of those.
fn take(faults: &mut Vec<Fault>, call: &Call) -> Option<Answer> {
    let resource = call.resource();
    let at = faults.iter().position(|fault| fault.verb == call.verb && fault.resource == resource)?;
    Some(faults.remove(at).answer)
}

fn refusal(call: &Call, answer: Answer) -> (u16, Value) {
    let Call { verb, resource, namespace, .. } = call;
    match answer {
        Answer::Unauthorized => rules::refusal(401, "Unauthorized", "Unauthorized", Value::Null),
        Answer::Forbidden => rights::forbidden(verb, resource, namespace),
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
