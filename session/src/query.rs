//! Answers to requests of other workers.

use garage_events::{
    env::{Env, System},
    jetstream::JetStreamLog,
    log::{Load, Session},
    session::{Limits, Open, Phase, State, View},
    svc::{ConnectToken, GetSession, ListSessions, SignedToken},
};
use garage_worker::{
    Runtime,
    service::{Refusal, Service},
};

use crate::{redis::Redis, token::Signer};

/// Requests of one kind that are answered at a time.
const CONCURRENCY: usize = 64;

/// Opens the endpoints.
///
/// # Errors
/// When one cannot be opened.
pub async fn serve(
    runtime: &mut Runtime,
    log: &JetStreamLog,
    redis: &Redis,
    signer: Signer,
    limits: Limits,
) -> anyhow::Result<()> {
    let service = Service::start(&runtime.client, "session", "sessions of the log").await?;
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

    let redis = redis.clone();
    let list = service.serve::<ListSessions, _, _>(CONCURRENCY, stop.clone(), move |ListSessions {}| {
        let redis = redis.clone();
        async move { redis.live().await.map_err(|error| Refusal::new(503, format!("{error:#}"))) }
    });
    runtime.spawn("svc.session.list", list.await?);

    let reader = log.clone();
    let token = service.serve::<ConnectToken, _, _>(CONCURRENCY, stop.clone(), move |asked: ConnectToken| {
        let (log, signer) = (reader.clone(), signer.clone());
        async move { connect_token(&asked, &log.session(asked.session).await?, &signer, &limits) }
    });
    runtime.spawn("svc.session.connect-token", token.await?);
    Ok(())
}

fn connect_token(
    asked: &ConnectToken,
    session: &Session,
    signer: &Signer,
    limits: &Limits,
) -> Result<SignedToken, Refusal> {
    let ConnectToken { session: id, player } = asked;
    let theirs = session.state.matched().is_some_and(|matched| matched.players().any(|one| one == player));
    if !theirs {
        // One answer for both: who is not in it need not know that it exists.
        return Err(Refusal::new(404, format!("{player} is in no session {id}")));
    }
    let State::Open(Open { phase: Phase::Running(_), began, .. }) = &session.state else {
        return Err(Refusal::new(409, format!("session {id} has no running game server")));
    };
    let signed = signer.sign(player, *id, System.now(), *began + limits.session);
    signed.map_err(|error| Refusal::new(500, format!("{error:#}")))
}
