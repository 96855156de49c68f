//! The REST routes, as warp filters. A filter matches only the path, and its handler checks the method. So a known path
//! with a wrong method gets a 405 that names the allowed methods, and an unknown path gets a 404.

mod inventory;
mod parties;

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::future::try_join_all;
use garage_events::{
    env::Env,
    game,
    id::{PlayerId, SessionId, TicketId},
    log::Load,
    player::{CancelReason, Queued},
    session::View,
    svc::{self, ConnectToken, CountCandidates, GetProfile, GetSession},
};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION},
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Serialize;
use serde_json::{Map, json};
use warp::{
    Filter,
    filters::{BoxedFilter, path::FullPath},
    path,
    reply::Response,
};

use crate::{
    admission::{Bucket, Keyed},
    answers,
    app::App,
    commands,
    problem::Problem,
    regions::RegionList,
    request::{self, GroupRequest, TicketRequest},
    ticket::{GroupTicket, Me, Status, Ticket},
    token::{self, Identity, Refused},
};

/// The route of a response, as a metric label. The paths themselves would be an unbounded number of labels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route(pub(crate) &'static str);

/// A request, as a route's handler receives it.
struct Call {
    app: Arc<App>,
    method: Method,
    path: String,
    headers: HeaderMap,
    /// The identity in the token, or why there is none. Not every route needs one.
    identity: Result<Identity, Refused>,
    body: Bytes,
}

/// A response with a body that can be cloned, for the commands that share an answer.
pub(crate) type Answer = Result<hyper::Response<Bytes>, Problem>;

/// All routes. Every request gets a response; no filter rejects one.
pub(crate) fn all(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let call = warp::method().and(path::full()).and(warp::header::headers_cloned()).and(warp::ext::get());
    let call = call.and(warp::body::bytes()).map(move |method, path: FullPath, headers, identity, body| {
        let (app, path) = (Arc::clone(&app), path.as_str().to_owned());
        Call { app, method, path, headers, identity, body }
    });
    let call = call.boxed();

    let description = path!("openapi.json").and(call.clone()).then(|call| answer("/openapi.json", description(call)));
    let tickets = path!("v1" / "matchmaking" / "tickets")
        .and(call.clone())
        .then(|call| answer("/v1/matchmaking/tickets", tickets(call)));
    let ticket = path!("v1" / "matchmaking" / "tickets" / TicketId)
        .and(call.clone())
        .then(|id, call| answer("/v1/matchmaking/tickets/{id}", ticket(id, call)));
    let regions = path!("v1" / "regions").and(call.clone()).then(|call| answer("/v1/regions", regions(call)));
    let ping = path!("v1" / "ping").and(call.clone()).then(|call| answer("/v1/ping", ping(call)));
    let me = path!("v1" / "players" / "me").and(call.clone()).then(|call| answer("/v1/players/me", me(call)));
    let session = path!("v1" / "sessions" / SessionId)
        .and(call.clone())
        .then(|id, call| answer("/v1/sessions/{id}", session(id, call)));
    let public_key = path!("v1" / "sessions" / SessionId / "public-key")
        .and(call.clone())
        .then(|id, call| answer("/v1/sessions/{id}/public-key", public_key(id, call)));
    let connect_token = path!("v1" / "sessions" / SessionId / "connect-token")
        .and(call.clone())
        .then(|id, call| answer("/v1/sessions/{id}/connect-token", connect_token(id, call)));
    let accept = path!("v1" / "sessions" / SessionId / "accept")
        .and(call.clone())
        .then(|id, call| answer("/v1/sessions/{id}/accept", give_answer(id, answers::Answer::Accept, call)));
    let decline = path!("v1" / "sessions" / SessionId / "decline")
        .and(call.clone())
        .then(|id, call| answer("/v1/sessions/{id}/decline", give_answer(id, answers::Answer::Decline, call)));
    let none = warp::any()
        .then(|| answer("none", async { Err(Problem::not_found("there is no such path; see GET /openapi.json")) }));

    let groups = path!("v1" / "matchmaking" / "groups")
        .and(call.clone())
        .then(|call| answer("/v1/matchmaking/groups", groups(call)));
    let matchmaking =
        tickets.or(groups).unify().or(ticket).unify().or(regions).unify().or(ping).unify().or(me).unify().boxed();
    let answered = accept.or(decline).unify();
    let sessions = session.or(public_key).unify().or(connect_token).unify().or(answered).unify().boxed();
    let all = matchmaking.or(sessions).unify().or(inventory::all(&call)).unify().or(description).unify();
    let all = all.or(parties::all(&call)).unify();
    all.or(none).unify().boxed()
}

async fn answer(route: &'static str, handler: impl Future<Output = Answer>) -> Response {
    let mut response = handler.await.map_or_else(Problem::into_response, |response| response.map(Into::into));
    response.extensions_mut().insert(Route(route));
    response
}

impl Call {
    /// The identity in the token. Counts the request in `bucket`, and refuses a blocked player. Handlers check the
    /// method before this, so that a 405 needs no token, and everything else after it.
    fn identity(&self, bucket: &Bucket) -> Result<Identity, Problem> {
        let identity = self.identity.clone()?;
        bucket.take(&identity.player)?;
        self.app.blocks.check(&identity.player)?;
        Ok(identity)
    }

    /// The player who reads something.
    fn reader(&self) -> Result<PlayerId, Problem> {
        Ok(self.identity(&self.app.admission.reads)?.player)
    }

    /// Identifies the repetitions of a command; `None` without an `Idempotency-Key`.
    fn keyed(&self, sender: &PlayerId) -> Result<Option<Keyed>, Problem> {
        let key = request::idempotency_key(&self.headers)?;
        let (sender, method, path, body) = (sender.clone(), self.method.clone(), self.path.clone(), self.body.clone());
        Ok(key.map(|key| Keyed { key, sender, method, path, body }))
    }

    fn only(&self, method: &Method, allow: &'static str) -> Result<(), Problem> {
        if self.method == *method { Ok(()) } else { Err(Problem::method_not_allowed(allow)) }
    }
}

fn ok(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).map_err(|error| {
        tracing::error!(%error, "cannot write a response as JSON");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the cause is in the gateway's log")
    })?;
    let mut response = hyper::Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The body is for one player, and can change at any time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn no_content() -> hyper::Response<Bytes> {
    let mut response = hyper::Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The OpenAPI document. It needs no token. The tests check the gateway's responses against it.
async fn description(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let mut response = hyper::Response::new(Bytes::from_static(include_bytes!("../openapi.json")));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The document changes only with a new version of the gateway.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    Ok(response)
}

async fn tickets(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let identity = call.identity(&call.app.admission.tickets)?;
    let request = TicketRequest::read(&call.headers, &call.body, &call.app.queues)?;
    call.app.admission.queue(&request.queue, &identity.player)?;
    let (app, player) = (Arc::clone(&call.app), identity.player.clone());
    let ticket = request::keyed_ticket(&player, &call.headers)?.unwrap_or_else(|| TicketId::new(app.env.id()));
    let keyed = call.keyed(&player)?;
    let queued = queue(Arc::clone(&app), identity, request, ticket);
    app.admission.ticket_turns.run(&player, keyed, queued).await?
}

/// Queues a player, or the party that they lead.
async fn queue(app: Arc<App>, identity: Identity, request: TicketRequest, ticket: TicketId) -> Answer {
    let now = app.env.now();
    let queueing = parties::Queueing { app, identity, request, ticket, now };
    let (app, name, player) = (&queueing.app, &queueing.request.queue, &queueing.identity.player);
    let queued = async {
        let (queue, queued) = queueing.own().await?;
        let tried = queue.rules().ticket([(player, &queued)]);
        tried.map_err(|hopeless| Problem::hopeless(name, &hopeless))?;
        Ok(queued)
    };
    let open = (&app.queue_statuses, app.log.storage(), &app.absence_wait);
    let alone = commands::queue(&app.log, &app.env, open, player, (name, ticket), queued).await?;
    let mut ticket = match alone {
        Some(ticket) => ticket,
        None => commands::party::queue(&app.log, &app.env, open, player, (name, ticket), &queueing).await?,
    };
    ticket.ignored_regions.clone_from(&queueing.request.player.ignored_regions);
    let mut response = ok(StatusCode::CREATED, &ticket)?;
    // This never fails: a UUID is always a valid header value.
    if let Ok(location) = HeaderValue::try_from(format!("/v1/matchmaking/tickets/{}", ticket.ticket)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

fn no_queue() -> Problem {
    Problem::unprocessable("the queue no longer exists")
}

/// The rank of a player: the one that came with the request, or else their rating.
async fn rank(app: &App, player: &PlayerId, known: Option<i32>) -> Result<i32, Problem> {
    match known {
        Some(rank) => Ok(rank),
        None => Ok(svc::call(&app.client, &GetProfile { player: player.clone() }).await?.rank),
    }
}

/// Queues a group of players, for the studio's own backend.
async fn groups(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let identity = call.identity(&call.app.admission.groups)?;
    if !identity.has_scope(token::GROUPS) {
        let detail = format!("only a token with the scope `{}` can queue a group", token::GROUPS);
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let app = Arc::clone(&call.app);
    let request = GroupRequest::read(&call.headers, &call.body, &app.queues)?;
    let players: Vec<PlayerId> = request.players.iter().map(|(player, _)| player.clone()).collect();
    let ticket = request::keyed_group(&identity.player, &call.headers, &players)?;
    for (player, sub) in players.iter().zip(&request.subs) {
        app.blocks.check(player).map_err(|problem| problem.about(player).naming([(player, sub.as_str())]))?;
    }
    let ticket = ticket.unwrap_or_else(|| TicketId::new(app.env.id()));
    let keyed = call.keyed(&identity.player)?;
    // The command waits for the turn of one player of the group. This is enough for a repeated request to share the run
    // of the first one. If it waited for the turn of the backend, all groups would wait for each other.
    let first = players.first().cloned().unwrap_or(identity.player);
    let name = request.subs.first().cloned().unwrap_or_default();
    let queued = queue_group(Arc::clone(&app), request, players, ticket);
    let queued = app.admission.ticket_turns.run(&first, keyed, queued).await;
    queued.map_err(|problem| problem.about(&first).naming([(&first, name.as_str())]))?
}

async fn queue_group(app: Arc<App>, request: GroupRequest, players: Vec<PlayerId>, ticket: TicketId) -> Answer {
    let GroupRequest { queue: name, players: asked, subs } = request;
    let now = app.env.now();
    let queued = async {
        let queue = app.queues.get(&name).ok_or_else(no_queue)?;
        let group = if players.len() > 1 { players.clone() } else { Vec::new() };
        let queued = asked.iter().map(async |(player, asked)| {
            let rank = rank(&app, player, asked.rank).await?;
            let queued = asked.queued((&name, queue), ticket, rank, &Map::new(), now);
            Ok::<_, Problem>(Queued { group: group.clone(), ..queued.map_err(|problem| problem.about(player))? })
        });
        let queued = try_join_all(queued).await?;
        let tried = queue.rules().ticket(players.iter().zip(&queued));
        tried.map_err(|hopeless| Problem::hopeless(&name, &hopeless))?;
        Ok(queued)
    };
    let open = (&app.queue_statuses, app.log.storage(), &app.absence_wait);
    let ticket = commands::queue_group(&app.log, &app.env, open, (&name, ticket), &players, queued).await;
    let ticket = ticket.map_err(|problem| problem.naming(players.iter().zip(subs.iter().map(String::as_str))))?;
    ok(StatusCode::CREATED, &GroupTicket::of(&ticket, subs))
}

async fn ticket(id: TicketId, call: Call) -> Answer {
    match call.method {
        Method::GET => {
            let id_of_player = call.reader()?;
            let player = call.app.log.player(&id_of_player).await?;
            let ticket = Ticket::latest(&player).filter(|ticket| ticket.ticket == id);
            let ticket = ticket.ok_or_else(commands::unknown)?;
            let mut ticket = ticket.estimated(|queue| call.app.wait_estimates.estimate(queue));
            if ticket.status == Status::Waiting {
                // The ticket is worth an answer without this, for example while no matchmaker runs.
                let asked = svc::call(&call.app.client, &CountCandidates { player: id_of_player }).await;
                ticket.candidates = asked.unwrap_or_else(|error| {
                    tracing::debug!(%error, "cannot count the candidates of a ticket");
                    None
                });
            }
            ok(StatusCode::OK, &ticket)
        }
        Method::DELETE => {
            let player = call.identity(&call.app.admission.tickets)?.player;
            let (app, canceller) = (Arc::clone(&call.app), player.clone());
            let cancelled = async move {
                let reason = CancelReason::Player;
                answers::withdraw(&app.log, &app.env, &app.client, &canceller, id, reason).await?;
                Ok(no_content())
            };
            // Without a key: a second request changes nothing.
            call.app.admission.ticket_turns.run(&player, None, cancelled).await?
        }
        _ => Err(Problem::method_not_allowed("GET, DELETE")),
    }
}

async fn regions(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    call.reader()?;
    ok(StatusCode::OK, &RegionList::of(&call.app.queues))
}

/// A measurement of the latency to this gateway. It needs no token and asks nobody, so that a client measures little
/// else than the network.
async fn ping(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let mut response = no_content();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn me(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let id = call.reader()?;
    let player = call.app.log.player(&id).await?;
    ok(StatusCode::OK, &Me::of(id, &player))
}

/// Reads a session for one of its players. Other players get the same 404 as if the session did not exist.
async fn visible(call: &Call, session: SessionId) -> Result<View, Problem> {
    let player = call.reader()?;
    let view = svc::call(&call.app.client, &GetSession { session }).await;
    let view = match view {
        Err(svc::CallError::Refused { code: 404, .. }) => None,
        other => Some(other?),
    };
    let plays = |view: &View| view.teams.iter().flat_map(|team| &team.players).any(|member| member.player == player);
    view.filter(plays).ok_or_else(no_session)
}

fn no_session() -> Problem {
    Problem::not_found("the player has no session with this id")
}

async fn session(id: SessionId, call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    ok(StatusCode::OK, &visible(&call, id).await?)
}

async fn public_key(id: SessionId, call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let view = visible(&call, id).await?;
    let key = view
        .public_key
        .ok_or_else(|| Problem::not_found("no game server is requested yet, so there is no key; try again"))?;
    let der = SubjectPublicKeyInfoDer::from_pem_slice(key.as_bytes()).map_err(|error| {
        tracing::error!(%error, session.id = %id, "the public key of a session is not PEM");
        Problem::new(StatusCode::BAD_GATEWAY, "a service behind the gateway failed; the cause is in the gateway's log")
    })?;
    ok(StatusCode::OK, &json!({ "public_key": key, "fingerprint": game::fingerprint(&der) }))
}

/// Accepts or declines a proposed match. A repeated answer gets the same response, so it needs no key.
async fn give_answer(session: SessionId, answer: answers::Answer, call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let player = call.identity(&call.app.admission.tickets)?.player;
    answers::give(&call.app.client, answer, session, &player).await?;
    Ok(no_content())
}

async fn connect_token(session: SessionId, call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let Identity { player, sub, .. } = call.identity(&call.app.admission.connect_tokens)?;
    match svc::call(&call.app.client, &ConnectToken { session, player, sub: Some(sub) }).await {
        Err(svc::CallError::Refused { code: 404, .. }) => Err(no_session()),
        other => ok(StatusCode::OK, &other?),
    }
}
