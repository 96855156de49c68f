//! Answers requests of other workers.

use std::sync::Arc;

use garage_events::{
    env::{Env, System},
    id::SessionId,
    jetstream::JetStreamLog,
    log::ReadError,
    session::{Limits, Open, Phase, State},
    subject::Aggregate,
    svc::{ConnectToken, GetSession, SignedToken},
};
use garage_worker::{
    Runtime,
    service::{Refusal, Service},
};

use crate::{
    recent::{Recent, Sessions},
    token::Signer,
};

/// How many requests of one kind are answered at the same time.
const CONCURRENCY: usize = 64;

/// Starts the NATS service with its endpoints.
///
/// # Errors
/// If the service or an endpoint cannot be started.
pub async fn serve(runtime: &mut Runtime, log: &JetStreamLog, signer: Signer, limits: Limits) -> anyhow::Result<()> {
    let service = Service::start(&runtime.client, "session", "state and connection tokens of sessions").await?;
    let stop = &runtime.shutdown.clone();

    let reader = Reader { log: log.clone(), sessions: Sessions::default() };
    let reading = reader.clone();
    let get = service.serve::<GetSession, _, _>(CONCURRENCY, stop.clone(), move |GetSession { session }| {
        let reader = reading.clone();
        async move {
            let view = reader.session(session).await?.and_then(|recent| recent.view.clone());
            view.ok_or_else(|| Refusal::new(404, format!("there is no session {session}")))
        }
    });
    runtime.spawn("svc.session.get", get.await?);

    let token = service.serve::<ConnectToken, _, _>(CONCURRENCY, stop.clone(), move |request: ConnectToken| {
        let (reader, signer) = (reader.clone(), signer.clone());
        async move {
            let recent = reader.session(request.session).await?;
            connect_token(&request, recent.as_ref().map_or(&State::New, |recent| &recent.state), &signer, &limits)
        }
    });
    runtime.spawn("svc.session.connect-token", token.await?);
    Ok(())
}

/// Reads sessions. Clones share the sessions that were read last.
#[derive(Clone)]
struct Reader {
    log: JetStreamLog,
    sessions: Sessions,
}

impl Reader {
    async fn session(&self, id: SessionId) -> Result<Option<Arc<Recent>>, ReadError> {
        let last = self.log.last_sequence(&Aggregate::Session(id).filter()).await?;
        self.sessions.read(&self.log, id, last).await
    }
}

fn connect_token(
    request: &ConnectToken,
    session: &State,
    signer: &Signer,
    limits: &Limits,
) -> Result<SignedToken, Refusal> {
    let ConnectToken { session: id, player } = request;
    let is_in_session = session.matched().is_some_and(|matched| matched.players().any(|one| one == player));
    if !is_in_session {
        // The same answer as for a session that does not exist, so that other players do not learn that this session
        // exists.
        return Err(Refusal::new(404, format!("player {player} has no session {id}")));
    }
    let State::Open(open @ Open { phase: Phase::Running(_), .. }) = session else {
        return Err(Refusal::new(
            409,
            format!("session {id} has no running game server; a token is available while the session is open"),
        ));
    };
    let signed = signer.sign(player, *id, System.now(), open.hard_end(limits));
    signed.map_err(|error| Refusal::new(500, format!("{error:#}")))
}
