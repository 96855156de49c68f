//! Serves requests over HTTP.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use garage_events::deadline::{Ended, changed};
use http_body_util::{BodyExt, Collected, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::HeaderValue,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    Shared,
    admission::{self, Webhooks},
    call::Call,
    rights, rules,
    store::{Change, Key, Selector, Store},
};

/// The supported resources.
const RESOURCES: [&str; 6] = ["pods", "secrets", "nodes", "namespaces", "limitranges", "resourcequotas"];

/// Time between two bookmarks of a watch without changes. A real server sends one per minute.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(1);

/// The duration of a watch if the client does not set `timeoutSeconds`.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1_800);

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Cut>;

/// An error that closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed")]
pub(crate) struct Cut;

impl Cut {
    /// Drops the original error, because the client does not get it.
    pub(crate) fn by<E>(_: E) -> Self {
        Self
    }
}

/// Serves all clients until the task is aborted.
pub(crate) async fn run<S, F>(listener: TcpListener, answer: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Body>, Cut>> + Send + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        connections.spawn(serve(connection, answer.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<S, F>(connection: TcpStream, answer: S)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Body>, Cut>> + Send + 'static,
{
    // Answers are small and a client waits for each, so they must not be delayed.
    let _ = connection.set_nodelay(true);
    // A client may disconnect at any time; that is not an error.
    let _ =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service_fn(answer)).await;
}

pub(crate) async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    if request.uri().path() == "/version" {
        let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"});
        return Ok(json_of(200, &version));
    }
    if request.uri().path() == rights::REVIEWS {
        let (code, body) = shared.denied.review(read(request).await);
        return Ok(json_of(code, &body));
    }
    let call = Call::parse(request.method(), request.uri(), request.headers());
    let Some(call) = call.filter(|call| RESOURCES.contains(&call.resource.as_str())) else {
        let message = "the server could not find the requested resource";
        return Ok(json_of(404, &rules::refusal(404, "NotFound", message, json!({})).1));
    };
    if shared.denied.has(call.verb, &call.resource()) {
        let (code, body) = rights::forbidden(call.verb, &call.resource(), &call.namespace);
        return Ok(json_of(code, &body));
    }
    if call.verb == "watch" {
        return Ok(watch(&call, &shared).unwrap_or_else(|(code, body)| json_of(code, &body)));
    }
    let (code, mut body) = execute(&call, &read(request).await, &shared);
    if call.partial {
        rules::only_metadata(&mut body);
    }
    Ok(json_of(code, &body))
}

/// The body of the request. `null` if it is not JSON.
async fn read(request: Request<Incoming>) -> Value {
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

fn key(call: &Call) -> Key {
    (call.resource.clone(), call.namespace.clone(), call.name.clone())
}

fn execute(call: &Call, body: &Value, shared: &Shared) -> (u16, Value) {
    let mut state = shared.store();
    let answer = match (call.verb, call.subresource.as_str()) {
        ("get", "") => match state.get(&key(call)) {
            Some(object) => (200, object.clone()),
            None => rules::not_found(&call.resource, &call.name),
        },
        ("list", "") => list(call, &state),
        ("create", "binding") => bind(call, body, &mut state),
        ("create", "") => create(call, body, &mut state, &shared.webhooks),
        ("patch", "" | "status") => patch(call, body, &mut state),
        ("delete", "") => delete(call, body, &mut state),
        _ => rules::refusal(405, "MethodNotAllowed", "the server does not allow this method", json!({})),
    };
    let revision = state.revision();
    drop(state);
    shared.revision.send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
    answer
}

fn list(call: &Call, state: &Store) -> (u16, Value) {
    let found = state.list(&call.resource, &call.namespace, &Selector::parse(call.parameter("labelSelector")));
    let revision = state.revision();
    // A continue token is `<revision>/<last name>`. All pages report the revision of the first page.
    let (revision, after) = match call.parameter("continue").split_once('/') {
        Some((revision, after)) => (revision.parse().unwrap_or(0), after),
        None => (revision, ""),
    };
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut items: Vec<_> = found.into_iter().filter(|object| name(object).as_str() > after).cloned().collect();
    let limit = call.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if items.len() > limit {
        metadata["remainingItemCount"] = (items.len() - limit).into();
        items.truncate(limit);
        metadata["continue"] = format!("{revision}/{}", items.last().map(name).unwrap_or_default()).into();
    }
    for item in &mut items {
        // Items have no kind of their own; the list's kind implies it.
        if let Some(item) = item.as_object_mut() {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    let kind = format!("{}List", rules::kind_of(&call.resource));
    (200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn create(call: &Call, body: &Value, state: &mut Store, webhooks: &Webhooks) -> (u16, Value) {
    let mut object = body.clone();
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Call { resource, namespace, .. } = call;
    if let Some(refusal) = rules::invalid(resource, &object) {
        return refusal;
    }
    let in_namespace = !namespace.is_empty();
    if in_namespace && state.get(&("namespaces".into(), String::new(), namespace.clone())).is_none() {
        return rules::not_found("namespaces", namespace);
    }
    let key = (resource.clone(), namespace.clone(), name.clone());
    if let Some(refusal) = admission::refused(call, &object, state, webhooks) {
        return refusal;
    }
    if state.get(&key).is_some() {
        return rules::exists(resource, &name);
    }
    rules::complete(resource, namespace, &mut object);
    if !call.parameter("dryRun").is_empty() {
        return (201, object);
    }
    (201, state.put(key, object))
}

fn bind(call: &Call, body: &Value, state: &mut Store) -> (u16, Value) {
    let Some(mut pod) = state.get(&key(call)).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    if let Some(node) = pod["spec"]["nodeName"].as_str() {
        let name = &call.name;
        let message = format!(
            "Operation cannot be fulfilled on pods/binding \"{name}\": pod {name} is already assigned to node \"{node}\""
        );
        return rules::refusal(409, "Conflict", &message, json!({"name": name, "kind": "pods/binding"}));
    }
    rules::bind(&mut pod, body["target"]["name"].as_str().unwrap_or_default());
    state.put(key(call), pod);
    (201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

fn patch(call: &Call, body: &Value, state: &mut Store) -> (u16, Value) {
    let Some(mut object) = state.get(&key(call)).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    match call.subresource.as_str() {
        "status" if call.resource == "pods" && call.strategic => rules::merge_status(&mut object, body),
        "status" => rules::merge(&mut object["status"], &body["status"]),
        _ => rules::merge(&mut object, body),
    }
    (200, state.put(key(call), object))
}

fn delete(call: &Call, body: &Value, state: &mut Store) -> (u16, Value) {
    let Some(mut object) = state.get(&key(call)).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    let (name, resource) = (&call.name, &call.resource);
    if let Some(wanted) = body.pointer("/preconditions/uid").and_then(Value::as_str)
        && object["metadata"]["uid"] != wanted
    {
        let message = format!(
            "Operation cannot be fulfilled on {resource} \"{name}\": the UID in the precondition ({wanted}) does not match \
             the UID in record ({}). The object might have been deleted and then recreated",
            object["metadata"]["uid"].as_str().unwrap_or_default()
        );
        return rules::refusal(409, "Conflict", &message, json!({"name": name, "kind": resource}));
    }
    if resource != "pods" {
        let uid = object["metadata"]["uid"].clone();
        state.remove(&key(call));
        let details = json!({"name": name, "kind": resource, "uid": uid});
        return (
            200,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        );
    }
    // A pod on a node exists until the kubelet confirms its end, unless the grace period is 0.
    let spec = &object["spec"];
    let bound = spec["nodeName"].is_string() && !rules::is_over(&object);
    let default = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    let grace = body["gracePeriodSeconds"].as_u64().unwrap_or(default);
    let grace = if bound { grace } else { 0 };
    object["metadata"]["deletionTimestamp"] = rules::now().into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    object["metadata"]["generation"] = 2.into();
    let terminating = state.put(key(call), object);
    if grace > 0 {
        return (200, terminating);
    }
    (200, state.remove(&key(call)).unwrap_or(terminating))
}

/// An active watch.
struct Watching {
    shared: Arc<Shared>,
    resource: String,
    /// Empty for all namespaces.
    namespace: String,
    selector: Selector,
    /// The revision up to which changes are sent.
    revision: u64,
    /// Whether the client wants bookmarks.
    bookmarks: bool,
    deadline: tokio::time::Instant,
    /// Whether the client wants only the metadata of objects.
    partial: bool,
}

fn watch(call: &Call, shared: &Arc<Shared>) -> Result<Response<Body>, (u16, Value)> {
    let from = call.parameter("resourceVersion");
    let Ok(revision) = (if from.is_empty() { Ok(0) } else { from.parse() }) else {
        let message = format!(
            "resourceVersion: Invalid value: \"{from}\": strconv.ParseUint: parsing \"{from}\": invalid syntax"
        );
        return Err(rules::refusal(500, "", &message, Value::Null));
    };
    let selector = Selector::parse(call.parameter("labelSelector"));
    let mut existing = Vec::new();
    let mut start = revision;
    if revision == 0 {
        // Without a revision, a watch begins with the objects that exist now.
        let state = shared.store();
        let now = state.list(&call.resource, &call.namespace, &selector);
        existing.extend(now.into_iter().cloned());
        start = state.revision();
    }
    let seconds = call.parameter("timeoutSeconds").parse().map_or(WATCH_TIMEOUT, Duration::from_secs);
    let watching = Watching {
        shared: Arc::clone(shared),
        resource: call.resource.clone(),
        namespace: call.namespace.clone(),
        selector,
        revision: start,
        bookmarks: call.parameter("allowWatchBookmarks") == "true",
        deadline: tokio::time::Instant::now() + seconds,
        partial: call.partial,
    };
    let existing: Vec<_> = existing.iter().map(|object| Bytes::from(watching.line("ADDED", object))).collect();
    let rest = stream::unfold(watching, async |mut watching| Some((watching.next().await?, watching)));
    let lines = stream::iter(existing).chain(rest).map(|lines| Ok(Frame::data(lines)));
    Ok(respond(200, StreamBody::new(lines).boxed_unsync()))
}

impl Watching {
    /// The next lines. `None` at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        let mut latest = self.shared.revision.subscribe();
        loop {
            latest.mark_unchanged();
            let lines = self.new_changes();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.deadline) => return None,
                changed = changed(&mut latest, BOOKMARK_INTERVAL) => {
                    if changed == Err(Ended::TimedOut) && self.bookmarks {
                        return Some(self.bookmark().into());
                    }
                }
            }
        }
    }

    /// The lines for new changes of watched objects.
    fn new_changes(&mut self) -> Vec<u8> {
        let store = self.shared.store();
        let watched = |change: &&Change| {
            let (resource, namespace, _) = &change.key;
            *resource == self.resource
                && (self.namespace.is_empty() || *namespace == self.namespace)
                && self.selector.matches(&change.object)
        };
        let changes = store.since(self.revision).iter().filter(watched);
        let lines = changes.flat_map(|change| self.line(change.kind, &change.object)).collect();
        self.revision = store.revision();
        lines
    }

    fn line(&self, kind: &str, object: &Value) -> Vec<u8> {
        let mut object = object.clone();
        if self.partial {
            rules::only_metadata(&mut object);
        }
        line(kind, &object)
    }

    fn bookmark(&self) -> Vec<u8> {
        let metadata = json!({"resourceVersion": self.revision.to_string()});
        let kind = rules::kind_of(&self.resource);
        line("BOOKMARK", &json!({"kind": kind, "apiVersion": "v1", "metadata": metadata}))
    }
}

/// One event of a watch, as a line of JSON.
pub(crate) fn line(kind: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": kind, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    line
}

pub(crate) fn json_of(code: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never: Infallible| match never {});
    respond(code, body.boxed_unsync())
}

pub(crate) fn respond(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if code == 429 {
        headers.insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}
