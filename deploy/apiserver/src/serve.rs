//! Requests and answers.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
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
    call::Call,
    rights, rules,
    store::{Change, Key, Selector, Store},
};

/// What there is of.
const RESOURCES: [&str; 5] = ["pods", "secrets", "nodes", "namespaces", "resourcequotas"];

/// Between two bookmarks of a watch in which nothing happens. A real server takes a minute.
const BOOKMARK: Duration = Duration::from_secs(1);

/// How long a watch is when its client does not say.
const WATCH: Duration = Duration::from_secs(1_800);

/// What is answered with.
pub(crate) type Body = UnsyncBoxBody<Bytes, Cut>;

/// The connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
pub(crate) struct Cut;

impl Cut {
    /// Whatever it was that went wrong: a client is told no more of it.
    pub(crate) fn by<E>(_: E) -> Self {
        Self
    }
}

/// Serves whoever comes, until the task is aborted.
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
    // Answers are small, and a client waits for each.
    let _ = connection.set_nodelay(true);
    // A client that goes away is no matter.
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
    let call = Call::read(request.method(), request.uri(), request.headers());
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
    let (code, mut body) = act(&call, &read(request).await, &shared);
    if call.partial {
        rules::only_metadata(&mut body);
    }
    Ok(json_of(code, &body))
}

/// What is sent along; nothing when it is no JSON.
async fn read(request: Request<Incoming>) -> Value {
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

fn key(call: &Call) -> Key {
    (call.resource.clone(), call.namespace.clone(), call.name.clone())
}

fn act(call: &Call, body: &Value, shared: &Shared) -> (u16, Value) {
    let mut state = shared.store();
    let answer = match (call.verb, call.part.as_str()) {
        ("get", "") => match state.get(&key(call)) {
            Some(object) => (200, object.clone()),
            None => rules::not_found(&call.resource, &call.name),
        },
        ("list", "") => list(call, &state),
        ("create", "binding") => bind(call, body, &mut state),
        ("create", "") => create(call, body, &mut state),
        ("patch", "" | "status") => patch(call, body, &mut state),
        ("delete", "") => delete(call, body, &mut state),
        _ => rules::refusal(405, "MethodNotAllowed", "the server does not allow this method", json!({})),
    };
    let revision = state.revision();
    drop(state);
    shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    answer
}

fn list(call: &Call, state: &Store) -> (u16, Value) {
    let found = state.list(&call.resource, &call.namespace, &Selector::parse(call.asks("labelSelector")));
    let revision = state.revision();
    // Where to go on, and the revision of the page before, as which the whole list counts.
    let (revision, after) = match call.asks("continue").split_once('/') {
        Some((revision, after)) => (revision.parse().unwrap_or(0), after),
        None => (revision, ""),
    };
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut items: Vec<_> = found.into_iter().filter(|object| name(object).as_str() > after).cloned().collect();
    let limit = call.asks("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if items.len() > limit {
        metadata["remainingItemCount"] = (items.len() - limit).into();
        items.truncate(limit);
        metadata["continue"] = format!("{revision}/{}", items.last().map(name).unwrap_or_default()).into();
    }
    for item in &mut items {
        // Of the items of a list the kind is said once, by the list.
        if let Some(item) = item.as_object_mut() {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    let kind = format!("{}List", rules::kind_of(&call.resource));
    (200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn create(call: &Call, body: &Value, state: &mut Store) -> (u16, Value) {
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
    if state.get(&key).is_some() {
        return rules::exists(resource, &name);
    }
    if let Some(refusal) = over_quota(call, &name, state) {
        return refusal;
    }
    rules::complete(resource, namespace, &mut object);
    if !call.asks("dryRun").is_empty() {
        return (201, object);
    }
    (201, state.put(key, object))
}

/// As the admission of quotas refuses it.
fn over_quota(call: &Call, name: &str, state: &Store) -> Option<(u16, Value)> {
    let Call { resource, namespace, .. } = call;
    let all = Selector::default();
    let used = state.list(resource, namespace, &all).iter().filter(|object| !rules::is_over(object)).count();
    for quota in state.list("resourcequotas", namespace, &all) {
        let Some(hard) = quota["spec"]["hard"][resource].as_str().and_then(|hard| hard.parse::<usize>().ok()) else {
            continue;
        };
        if used >= hard {
            let quota = quota["metadata"]["name"].as_str().unwrap_or_default();
            let message = format!(
                "{resource} \"{name}\" is forbidden: exceeded quota: {quota}, requested: {resource}=1, used: \
                 {resource}={used}, limited: {resource}={hard}"
            );
            return Some(rules::refusal(403, "Forbidden", &message, json!({"name": name, "kind": resource})));
        }
    }
    None
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
    match call.part.as_str() {
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
    // A pod that a kubelet has lives on until that says it is over, unless its grace is none.
    let spec = &object["spec"];
    let bound = spec["nodeName"].is_string() && !rules::is_over(&object);
    let own = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    let grace = body["gracePeriodSeconds"].as_u64().unwrap_or(own);
    let grace = if bound { grace } else { 0 };
    object["metadata"]["deletionTimestamp"] = rules::now().into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    object["metadata"]["generation"] = 2.into();
    let notified = state.put(key(call), object);
    if grace > 0 {
        return (200, notified);
    }
    (200, state.remove(&key(call)).unwrap_or(notified))
}

/// One watch, from a revision on.
struct Watching {
    shared: Arc<Shared>,
    resource: String,
    namespace: String,
    selector: Selector,
    revision: u64,
    bookmarks: bool,
    until: tokio::time::Instant,
    partial: bool,
}

fn watch(call: &Call, shared: &Arc<Shared>) -> Result<Response<Body>, (u16, Value)> {
    let from = call.asks("resourceVersion");
    let Ok(revision) = (if from.is_empty() { Ok(0) } else { from.parse() }) else {
        let message = format!(
            "resourceVersion: Invalid value: \"{from}\": strconv.ParseUint: parsing \"{from}\": invalid syntax"
        );
        return Err(rules::refusal(500, "", &message, Value::Null));
    };
    let selector = Selector::parse(call.asks("labelSelector"));
    let mut first = Vec::new();
    let mut begin = revision;
    if revision == 0 {
        // From nowhere: what there is now, and then what happens.
        let state = shared.store();
        let now = state.list(&call.resource, &call.namespace, &selector);
        first.extend(now.into_iter().cloned());
        begin = state.revision();
    }
    let seconds = call.asks("timeoutSeconds").parse().map_or(WATCH, Duration::from_secs);
    let watching = Watching {
        shared: Arc::clone(shared),
        resource: call.resource.clone(),
        namespace: call.namespace.clone(),
        selector,
        revision: begin,
        bookmarks: call.asks("allowWatchBookmarks") == "true",
        until: tokio::time::Instant::now() + seconds,
        partial: call.partial,
    };
    let first: Vec<_> = first.iter().map(|object| Bytes::from(watching.line("ADDED", object))).collect();
    let rest = stream::unfold(watching, async |mut watching| Some((watching.next().await?, watching)));
    let lines = stream::iter(first).chain(rest).map(|lines| Ok(Frame::data(lines)));
    Ok(respond(200, StreamBody::new(lines).boxed_unsync()))
}

impl Watching {
    /// The next lines; none at the watch's end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut seen = self.shared.revision.subscribe();
        loop {
            seen.mark_unchanged();
            let lines = self.news();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.until) => return None,
                _ = seen.changed() => {}
                () = tokio::time::sleep(BOOKMARK) => {
                    if self.bookmarks {
                        return Some(self.bookmark().into());
                    }
                }
            }
        }
    }

    /// What has happened since, as far as it is watched.
    fn news(&mut self) -> Vec<u8> {
        let store = self.shared.store();
        let watched = |change: &&Change| {
            let (resource, namespace, _) = &change.key;
            *resource == self.resource
                && (self.namespace.is_empty() || *namespace == self.namespace)
                && self.selector.fits(&change.object)
        };
        let news = store.since(self.revision).iter().filter(watched);
        let lines = news.flat_map(|change| self.line(change.what, &change.object)).collect();
        self.revision = store.revision();
        lines
    }

    fn line(&self, what: &str, object: &Value) -> Vec<u8> {
        let mut object = object.clone();
        if self.partial {
            rules::only_metadata(&mut object);
        }
        line(what, &object)
    }

    fn bookmark(&self) -> Vec<u8> {
        let metadata = json!({"resourceVersion": self.revision.to_string()});
        let kind = rules::kind_of(&self.resource);
        line("BOOKMARK", &json!({"kind": kind, "apiVersion": "v1", "metadata": metadata}))
    }
}

pub(crate) fn line(what: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": what, "object": object}).to_string().into_bytes();
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
