//! Parties: players who queue together, and stay together after the match.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use garage_events::{
    env::Env,
    id::{PartyId, PlayerId, TicketId},
    log::Load,
    party::{Command, Party, Proof},
    player::Queued,
    queue::Queue,
};
use serde_json::{Map, json};
use time::OffsetDateTime;
use warp::{Filter, filters::BoxedFilter, path, reply::Response};

use super::{Answer, Arc, Call, Method, StatusCode, answer, no_content, no_queue, ok, rank};
use crate::{
    app::App,
    commands::{
        self,
        party::{Done, Request, Target, no_party},
    },
    party::{View, code},
    problem::Problem,
    request::{self, PlayerRequest, TicketRequest},
    token::Identity,
};

pub(super) fn all(call: &BoxedFilter<(Call,)>) -> BoxedFilter<(Response,)> {
    let call = || call.clone();
    let create = path!("v1" / "parties").and(call()).then(|call| answer("/v1/parties", create(call)));
    let join_code =
        path!("v1" / "parties" / "join").and(call()).then(|call| answer("/v1/parties/join", join_with_code(call)));
    let join = path!("v1" / "parties" / PartyId / "join")
        .and(call())
        .then(|id, call| answer("/v1/parties/{id}/join", join(id, call)));
    let own = path!("v1" / "party").and(call()).then(|call| answer("/v1/party", own(call)));
    let invitations =
        path!("v1" / "party" / "invitations").and(call()).then(|call| answer("/v1/party/invitations", invite(call)));
    let new_code = path!("v1" / "party" / "code").and(call()).then(|call| answer("/v1/party/code", new_code(call)));
    let leave = path!("v1" / "party" / "leave").and(call()).then(|call| answer("/v1/party/leave", leave(call)));
    let member = path!("v1" / "party" / "members" / String)
        .and(call())
        .then(async |sub: String, call| answer("/v1/party/members/{sub}", kick(&sub, call)).await);
    let leader = path!("v1" / "party" / "leader").and(call()).then(|call| answer("/v1/party/leader", leader(call)));
    let ready = path!("v1" / "party" / "ready").and(call()).then(|call| answer("/v1/party/ready", ready(call)));

    let joins = create.or(join_code).unify().or(join).unify().boxed();
    let party = own.or(invitations).unify().or(new_code).unify().or(leave).unify().boxed();
    let members = member.or(leader).unify().or(ready).unify().boxed();
    joins.or(party).unify().or(members).unify().boxed()
}

async fn create(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let player = sender(&call)?.player;
    let id = request::keyed_party(&player, &call.headers)?.unwrap_or_else(|| PartyId::new(call.app.env.id()));
    run(&call, player.clone(), Target::Other(id), Command::Create { by: player }, shown(StatusCode::CREATED)).await
}

async fn own(call: Call) -> Answer {
    match call.method {
        Method::GET => {
            let player = call.reader()?;
            let (app, now) = (&call.app, call.app.env.now());
            let own = commands::party::of(&app.log, &app.log.player(&player).await?, now).await?;
            let (id, _, party) = own.ok_or_else(no_party)?;
            ok(StatusCode::OK, &View::of(id, &party, now))
        }
        Method::DELETE => {
            let player = sender(&call)?.player;
            run(&call, player.clone(), Target::Own, Command::Disband { by: player }, nothing).await
        }
        _ => Err(Problem::method_not_allowed("GET, DELETE")),
    }
}

async fn invite(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let by = sender(&call)?.player;
    let player = request::party::player(&call.headers, &call.body)?;
    run(&call, by.clone(), Target::Own, Command::Invite { by, player }, shown(StatusCode::OK)).await
}

async fn join(id: PartyId, call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let player = call.identity(&call.app.admission.party_joins)?.player;
    let command = Command::Join { player: player.clone(), proof: Proof::Invitation };
    run(&call, player, Target::Other(id), command, shown(StatusCode::OK)).await
}

async fn join_with_code(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let player = call.identity(&call.app.admission.party_joins)?.player;
    let sha256 = request::party::code(&call.headers, &call.body)?;
    let Some(id) = call.app.parties.of_code(&sha256).await? else {
        metrics::counter!("garage_gateway_party_codes_refused_total").increment(1);
        return Err(no_party());
    };
    let command = Command::Join { player: player.clone(), proof: Proof::Code(sha256) };
    run(&call, player, Target::Other(id), command, shown(StatusCode::OK)).await
}

async fn new_code(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let by = sender(&call)?.player;
    let code = random_code()?;
    let command = Command::ChangeCode { by: by.clone(), sha256: code::sha256(&code) };
    let answer = move |_: &App, done: &Done| {
        let expires_at = done.party.code.as_ref().map(|code| code.expires_at);
        let expires_at = expires_at.and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
        ok(StatusCode::CREATED, &json!({ "code": code, "expires_at": expires_at }))
    };
    run(&call, by, Target::Own, command, answer).await
}

async fn leave(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    let player = sender(&call)?.player;
    run(&call, player.clone(), Target::Own, Command::Leave { player }, nothing).await
}

async fn kick(sub: &str, call: Call) -> Answer {
    call.only(&Method::DELETE, "DELETE")?;
    let by = sender(&call)?.player;
    let player = request::party::member(sub)?;
    if player == by {
        return Err(Problem::unprocessable("you cannot remove yourself; to leave, use POST /v1/party/leave"));
    }
    run(&call, by.clone(), Target::Own, Command::Kick { by, player }, shown(StatusCode::OK)).await
}

async fn leader(call: Call) -> Answer {
    call.only(&Method::PUT, "PUT")?;
    let by = sender(&call)?.player;
    let to = request::party::player(&call.headers, &call.body)?;
    run(&call, by.clone(), Target::Own, Command::HandOver { by, to }, shown(StatusCode::OK)).await
}

async fn ready(call: Call) -> Answer {
    let identity = match call.method {
        Method::PUT | Method::DELETE => sender(&call)?,
        _ => return Err(Problem::method_not_allowed("PUT, DELETE")),
    };
    let ready = match call.method {
        Method::PUT => Some(request::party::ready(&call.headers, &call.body, &identity, &call.app.queues)?),
        _ => None,
    };
    let player = identity.player;
    run(&call, player.clone(), Target::Own, Command::SetReady { player, ready }, shown(StatusCode::OK)).await
}

/// Who sends a command on a party that is not a join.
fn sender(call: &Call) -> Result<Identity, Problem> {
    call.identity(&call.app.admission.parties)
}

/// Carries out a command of a player, in the player's turn.
async fn run(
    call: &Call,
    player: PlayerId,
    target: Target,
    command: Command,
    answer: impl FnOnce(&App, &Done) -> Answer + Send + 'static,
) -> Answer {
    let (app, keyed) = (Arc::clone(&call.app), call.keyed(&player)?);
    // The room that is left is for tickets and matches that exist, and to leave a party that waits.
    let is_end = matches!(command, Command::Leave { .. } | Command::Kick { .. } | Command::Disband { .. });
    if !is_end && !app.log.storage().has_room_for_tickets() {
        return Err(Problem::log_full());
    }
    let sender = player.clone();
    let changed = async move {
        let done = commands::party::run(&app.log, &app.env, &sender, target, command).await?;
        answer(&app, &done)
    };
    call.app.admission.ticket_turns.run(&player, keyed, changed).await?
}

/// Answers with the party.
fn shown(status: StatusCode) -> impl FnOnce(&App, &Done) -> Answer + Send + 'static {
    move |app, done| ok(status, &View::of(done.id, &done.party, app.env.now()))
}

fn nothing(_: &App, _: &Done) -> Answer {
    Ok(no_content())
}

/// A new code, from the random numbers of the TLS library, which nobody can predict.
fn random_code() -> Result<String, Problem> {
    let mut bytes = [0; 8];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|error| {
        tracing::error!(?error, "cannot make a random code");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the cause is in the gateway's log")
    })?;
    Ok(code::encode(u64::from_le_bytes(bytes)))
}

/// A player's request for a ticket, for themselves or for the party that they lead.
pub(super) struct Queueing {
    pub(super) app: Arc<App>,
    pub(super) identity: Identity,
    pub(super) request: TicketRequest,
    pub(super) ticket: TicketId,
    pub(super) now: OffsetDateTime,
}

impl Queueing {
    /// The queue, and the event of the player who sends the request.
    pub(super) async fn own(&self) -> Result<(&Queue, Queued), Problem> {
        let Self { app, identity, request: TicketRequest { queue: name, player: asked }, ticket, now } = self;
        let queue = app.queues.get(name).ok_or_else(no_queue)?;
        let rank = rank(app, &identity.player, asked.rank.or(identity.rank)).await?;
        Ok((queue, asked.queued((name, queue), *ticket, rank, &identity.claims, *now)?))
    }
}

impl Request for Queueing {
    async fn queued(&self, party: &Party) -> Result<BTreeMap<PlayerId, Queued>, Problem> {
        let (app, name, leader) = (&self.app, &self.request.queue, &self.identity.player);
        let (queue, own) = self.own().await?;
        let ready = party.members.iter().filter(|member| member.player != *leader);
        let ready = ready.filter_map(|member| Some((&member.player, member.ready.as_ref()?)));
        let others = ready.map(async |(player, ready)| {
            let of_member = async {
                app.blocks.check(player)?;
                let asked = PlayerRequest::of_member(ready, (name, queue))?;
                let rank = rank(app, player, asked.rank).await?;
                asked.queued((name, queue), self.ticket, rank, &Map::new(), self.now)
            };
            let queued = of_member.await.map_err(|problem: Problem| problem.about(player))?;
            Ok::<_, Problem>((player.clone(), queued))
        });
        let mut all: BTreeMap<_, _> = try_join_all(others).await?.into_iter().collect();
        all.insert(leader.clone(), own);
        // If a member is not ready, the party is refused for this reason.
        if all.len() == party.members.len() {
            let tried = queue.rules().ticket(&all);
            tried.map_err(|hopeless| Problem::hopeless(name, &hopeless).members(party.players()))?;
        }
        Ok(all)
    }
}
