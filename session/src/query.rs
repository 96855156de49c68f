//! Answers requests of other workers.

use garage_events::{
    env::{Env, System},
    jetstream::JetStreamLog,
    log::{Load, Session},
    session::{Limits, Open, Phase, State, View},
    svc::{ConnectToken, GetSession, SignedToken},
};
use garage_worker::{
    Runtime,
    service::{Refusal, Service},
};

use crate::token::Signer;

/// How many requests of one kind are answered at the same time.
const CONCURRENCY: usize = 64;

/// Starts the NATS service with its endpoints.
///
/// # Errors
/// If the service or an endpoint cannot be started.
pub async fn serve(runtime: &mut Runtime, log: &JetStreamLog, signer: Signer, limits: Limits) -> anyhow::Result<()> {
    let service = Service::start(&runtime.client, "session", "state and connection tokens of sessions").await?;
    let stop = &runtime.shutdown.clone();

    let reader = log.clone();
    let get = service.serve::<GetSession, _, _>(CONCURRENCY, stop.clone(), move |GetSession { session }| {
        let log = reader.clone();
        async move {
            let found = log.session(session).await?;
            View::of(session, &found.history).ok_or_else(|| Refusal::new(404, format!("there is no session {session}")))
        }
    });
    runtime.spawn("svc.session.get", get.await?);

    let reader = log.clone();
    let token = service.serve::<ConnectToken, _, _>(CONCURRENCY, stop.clone(), move |request: ConnectToken| {
        let (log, signer) = (reader.clone(), signer.clone());
        async move { connect_token(&request, &log.session(request.session).await?, &signer, &limits) }
    });
    runtime.spawn("svc.session.connect-token", token.await?);
    Ok(())
}

fn connect_token(
    request: &ConnectToken,
    session: &Session,
    signer: &Signer,
    limits: &Limits,
) -> Result<SignedToken, Refusal> {
    let ConnectToken { session: id, player } = request;
    let is_in_session = session.state.matched().is_some_and(|matched| matched.players().any(|one| one == player));
    if !is_in_session {
        // The same answer as for a session that does not exist, so that other players do not learn that this session
        // exists.
        return Err(Refusal::new(404, format!("player {player} has no session {id}")));
    }
    let State::Open(open @ Open { phase: Phase::Running(_), .. }) = &session.state else {
        return Err(Refusal::new(
            409,
            format!("session {id} has no running game server; a token is available while the session is open"),
        ));
    };
    let signed = signer.sign(player, *id, System.now(), open.hard_end(limits));
    signed.map_err(|error| Refusal::new(500, format!("{error:#}")))
}
