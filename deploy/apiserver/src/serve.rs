//! Requests and answers.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::HeaderValue,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    Answer, Asked, Shared, State, rights, rules,
    store::{Change, Key, Selector},
};

/// Between two bookmarks of a watch in which nothing happens. A real server takes a minute.
const BOOKMARK: Duration = Duration::from_secs(1);

/// How long a watch is when its client does not say.
const WATCH: Duration = Duration::from_secs(1_800);

type Body = UnsyncBoxBody<Bytes, Cut>;

/// The connection is cut.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

/// Serves whoever comes, until the task is aborted.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        connections.spawn(serve(connection, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(connection: TcpStream, shared: Arc<Shared>) {
    // Answers are small, and a client waits for each.
    let _ = connection.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { answer(request, &shared).await }
    });
    // A client that goes away is no matter.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
}

/// A request, taken apart.
#[derive(Debug)]
struct Call {
    verb: &'static str,
    namespace: String,
    resource: String,
    name: String,
    /// `binding`, `status`, or empty.
    part: String,
    query: HashMap<String, String>,
    /// Whether a patch is merged as strategic ones are.
    strategic: bool,
    body: Value,
}

impl Call {
    fn key(&self) -> Key {
        (self.resource.clone(), self.namespace.clone(), self.name.clone())
    }

    fn asked(&self, status: u16) -> Asked {
        let resource = match self.part.as_str() {
            "" => self.resource.clone(),
            part => format!("{}/{part}", self.resource),
        };
        Asked { verb: self.verb, resource, name: self.name.clone(), status }
    }

    fn asks(&self, parameter: &str) -> &str {
        self.query.get(parameter).map_or("", String::as_str)
    }
}

async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Result<Response<Body>, Cut> {
    let path = request.uri().path().to_owned();
    if path == "/version" {
        return Ok(json_of(
            200,
            &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}),
        ));
    }
    if path == rights::REVIEWS {
        let Ok(body) = request.into_body().collect().await else { return Err(Cut) };
        let (code, body) = shared.denied.review(serde_json::from_slice(&body.to_bytes()).unwrap_or_default());
        return Ok(json_of(code, &body));
    }
    let Some(call) = read(request).await else {
        return Ok(json_of(
            404,
            &rules::refusal(404, "NotFound", "the server could not find the requested resource", json!({})).1,
        ));
    };
    let fault = take_fault(&call, &mut shared.state());
    let (code, body) = match fault {
        Some(Answer::Lost) => {
            act(&call, shared);
            return Err(Cut);
        }
        Some(answer) => refused(&call, answer),
        None if shared.denied.has(call.verb, &call.resource) => {
            rights::forbidden(call.verb, &call.resource, &call.namespace)
        }
        None if call.verb == "watch" => match watch(&call, shared) {
            Ok(stream) => {
                shared.state().asked.push(call.asked(200));
                return Ok(stream);
            }
            Err(refusal) => refusal,
        },
        None => act(&call, shared),
    };
    shared.state().asked.push(call.asked(code));
    Ok(json_of(code, &body))
}

/// What goes wrong with this call, if it is one of those.
fn take_fault(call: &Call, state: &mut State) -> Option<Answer> {
    let resource = call.asked(0).resource;
    let fault = state
        .faults
        .iter_mut()
        .find(|fault| fault.times > 0 && fault.verb == call.verb && fault.resource == resource)?;
    fault.times -= 1;
    Some(fault.answer)
}

fn refused(call: &Call, answer: Answer) -> (u16, Value) {
    let Call { verb, resource, namespace, .. } = call;
    match answer {
        Answer::Unauthorized => rules::refusal(401, "Unauthorized", "Unauthorized", Value::Null),
        Answer::Forbidden => rights::forbidden(verb, resource, namespace),
        Answer::TooMany => {
            let message = "the server has received too many requests and has asked us to try again later";
            rules::refusal(429, "TooManyRequests", message, json!({"retryAfterSeconds": 1}))
        }
        Answer::Gone => gone("The provided continue parameter is too old".into()),
        Answer::Internal | Answer::Lost => {
            rules::refusal(500, "InternalError", "Internal error occurred: etcdserver: request timed out", Value::Null)
        }
    }
}

fn gone(message: String) -> (u16, Value) {
    rules::refusal(410, "Expired", &message, Value::Null)
}

async fn read(request: Request<Incoming>) -> Option<Call> {
    let path = request.uri().path().strip_prefix("/api/v1/")?.to_owned();
    let parts: Vec<_> = path.split('/').collect();
    let (namespace, rest) = match parts.as_slice() {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, name, part) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, part] => (*resource, *name, *part),
        _ => return None,
    };
    if !["pods", "secrets", "nodes", "namespaces", "resourcequotas"].contains(&resource) {
        return None;
    }
    let query: HashMap<_, _> = request.uri().query().unwrap_or_default().split('&').filter_map(parameter).collect();
    let watched = matches!(query.get("watch").map(String::as_str), Some("true" | "1"));
    let verb = match *request.method() {
        Method::GET if watched => "watch",
        Method::GET if name.is_empty() => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    };
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let strategic = kind.starts_with("application/strategic-merge-patch");
    let (namespace, resource) = (namespace.to_owned(), resource.to_owned());
    let (name, part) = (name.to_owned(), part.to_owned());
    let body = request.into_body().collect().await.ok()?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Call { verb, namespace, resource, name, part, query, strategic, body })
}

fn parameter(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut decoded = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    Some((name.to_owned(), String::from_utf8(decoded).ok()?))
}

fn act(call: &Call, shared: &Shared) -> (u16, Value) {
    let mut state = shared.state();
    let answer = match (call.verb, call.part.as_str()) {
        ("get", "") => match state.store.get(&call.key()) {
            Some(object) => (200, object.clone()),
            None => rules::not_found(&call.resource, &call.name),
        },
        ("list", "") => list(call, &state),
        ("create", "binding") => bind(call, &mut state),
        ("create", "") => create(call, &mut state),
        ("patch", "" | "status") => patch(call, &mut state),
        ("delete", "") => delete(call, &mut state),
        _ => rules::refusal(405, "MethodNotAllowed", "the server does not allow this method", json!({})),
    };
    let revision = state.store.revision();
    drop(state);
    shared.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    answer
}

fn list(call: &Call, state: &State) -> (u16, Value) {
    let found = state.store.list(&call.resource, &call.namespace, &Selector::parse(call.asks("labelSelector")));
    let revision = state.store.revision();
    // Where to go on, and the revision of the page before, as which the whole list counts.
    let (revision, after) = match call.asks("continue").split_once('/') {
        Some((revision, after)) => (revision.parse().unwrap_or(0), after),
        None => (revision, ""),
    };
    if !after.is_empty() && revision < state.store.forgotten() {
        return gone("The provided continue parameter is too old".into());
    }
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

fn create(call: &Call, state: &mut State) -> (u16, Value) {
    let mut object = call.body.clone();
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Call { resource, namespace, .. } = call;
    if let Some(refusal) = rules::invalid(resource, &object) {
        return refusal;
    }
    let in_namespace = !namespace.is_empty();
    if in_namespace && state.store.get(&("namespaces".into(), String::new(), namespace.clone())).is_none() {
        return rules::not_found("namespaces", namespace);
    }
    let key = (resource.clone(), namespace.clone(), name.clone());
    if state.store.get(&key).is_some() {
        return rules::exists(resource, &name);
    }
    if let Some(refusal) = over_quota(call, &name, state) {
        return refusal;
    }
    rules::complete(resource, namespace, &mut object);
    (201, state.store.put(key, object))
}

/// As the admission of quotas refuses it.
fn over_quota(call: &Call, name: &str, state: &State) -> Option<(u16, Value)> {
    let Call { resource, namespace, .. } = call;
    let all = Selector::default();
    let used = state.store.list(resource, namespace, &all).iter().filter(|object| !rules::is_over(object)).count();
    for quota in state.store.list("resourcequotas", namespace, &all) {
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

fn bind(call: &Call, state: &mut State) -> (u16, Value) {
    let Some(mut pod) = state.store.get(&call.key()).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    if let Some(node) = pod["spec"]["nodeName"].as_str() {
        let name = &call.name;
        let message = format!(
            "Operation cannot be fulfilled on pods/binding \"{name}\": pod {name} is already assigned to node \"{node}\""
        );
        return rules::refusal(409, "Conflict", &message, json!({"name": name, "kind": "pods/binding"}));
    }
    rules::bind(&mut pod, call.body["target"]["name"].as_str().unwrap_or_default());
    state.store.put(call.key(), pod);
    (201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

fn patch(call: &Call, state: &mut State) -> (u16, Value) {
    let Some(mut object) = state.store.get(&call.key()).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    match call.part.as_str() {
        "status" if call.resource == "pods" && call.strategic => rules::merge_status(&mut object, &call.body),
        "status" => rules::merge(&mut object["status"], &call.body["status"]),
        _ => rules::merge(&mut object, &call.body),
    }
    (200, state.store.put(call.key(), object))
}

fn delete(call: &Call, state: &mut State) -> (u16, Value) {
    let Some(mut object) = state.store.get(&call.key()).cloned() else {
        return rules::not_found(&call.resource, &call.name);
    };
    let (name, resource) = (&call.name, &call.resource);
    if let Some(wanted) = call.body.pointer("/preconditions/uid").and_then(Value::as_str)
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
        state.store.remove(&call.key());
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
    let grace = call.body["gracePeriodSeconds"].as_u64().unwrap_or(own);
    let grace = if bound { grace } else { 0 };
    object["metadata"]["deletionTimestamp"] = rules::now().into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    object["metadata"]["generation"] = 2.into();
    let told = state.store.put(call.key(), object);
    if grace > 0 {
        return (200, told);
    }
    (200, state.store.remove(&call.key()).unwrap_or(told))
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
    cuts: tokio::sync::watch::Receiver<u64>,
    ended: bool,
}

fn watch(call: &Call, shared: &Arc<Shared>) -> Result<Response<Body>, (u16, Value)> {
    let from = call.asks("resourceVersion");
    let revision = match from {
        "" => 0,
        text => text.parse().map_err(|_: std::num::ParseIntError| {
            let message = format!(
                "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
            );
            rules::refusal(500, "", &message, Value::Null)
        })?,
    };
    let selector = Selector::parse(call.asks("labelSelector"));
    let mut first = Vec::new();
    let mut begin = revision;
    if revision == 0 {
        // From nowhere: what there is now, and then what happens.
        let state = shared.state();
        let now = state.store.list(&call.resource, &call.namespace, &selector);
        first.extend(now.into_iter().flat_map(|object| line("ADDED", object)));
        begin = state.store.revision();
    }
    let seconds = call.asks("timeoutSeconds").parse().map_or(WATCH, Duration::from_secs);
    let mut cuts = shared.cuts.subscribe();
    cuts.mark_unchanged();
    let watching = Watching {
        shared: Arc::clone(shared),
        resource: call.resource.clone(),
        namespace: call.namespace.clone(),
        selector,
        revision: begin,
        bookmarks: call.asks("allowWatchBookmarks") == "true",
        until: tokio::time::Instant::now() + seconds,
        cuts,
        ended: false,
    };
    let first = (!first.is_empty()).then(|| Ok(Frame::data(Bytes::from(first))));
    let rest = stream::unfold(watching, async |mut watching| Some((watching.next().await?, watching)));
    Ok(respond(200, StreamBody::new(stream::iter(first).chain(rest)).boxed_unsync()))
}

impl Watching {
    /// The next lines; none at the watch's end.
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Cut>> {
        if self.ended {
            return None;
        }
        let mut seen = self.shared.revision.subscribe();
        loop {
            seen.mark_unchanged();
            match self.news() {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return Some(Ok(Frame::data(lines.into()))),
                Err((_, status)) => {
                    self.ended = true;
                    return Some(Ok(Frame::data(line("ERROR", &status).into())));
                }
            }
            tokio::select! {
                _ = self.cuts.changed() => {
                    self.ended = true;
                    return Some(Err(Cut));
                }
                () = tokio::time::sleep_until(self.until) => return None,
                _ = seen.changed() => {}
                () = tokio::time::sleep(BOOKMARK) => {
                    if self.bookmarks {
                        return Some(Ok(Frame::data(self.bookmark().into())));
                    }
                }
            }
        }
    }

    /// What has happened since, as far as it is watched.
    fn news(&mut self) -> Result<Vec<u8>, (u16, Value)> {
        let state = self.shared.state();
        let Some(changes) = state.store.since(self.revision) else {
            let (from, now) = (self.revision, state.store.forgotten());
            return Err(gone(format!("too old resource version: {from} ({now})")));
        };
        let watched = |change: &&Change| {
            let (resource, namespace, _) = &change.key;
            *resource == self.resource
                && (self.namespace.is_empty() || *namespace == self.namespace)
                && self.selector.fits(&change.object)
        };
        let lines = changes.iter().filter(watched).flat_map(|change| line(change.what, &change.object)).collect();
        self.revision = state.store.revision();
        Ok(lines)
    }

    fn bookmark(&self) -> Vec<u8> {
        let metadata = json!({"resourceVersion": self.revision.to_string()});
        let kind = rules::kind_of(&self.resource);
        line("BOOKMARK", &json!({"kind": kind, "apiVersion": "v1", "metadata": metadata}))
    }
}

fn line(what: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({"type": what, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn json_of(code: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never: Infallible| match never {});
    respond(code, body.boxed_unsync())
}

fn respond(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if code == 429 {
        headers.insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}
