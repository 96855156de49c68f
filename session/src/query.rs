//! Answers requests of other workers.

use std::sync::Arc;

use garage_events::{
    env::{Env, System},
    id::{PlayerId, SessionId},
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
    answers,
    reaction::{App, Effects},
    recent::{Recent, Sessions},
    token::Signer,
};

/// How many requests of one kind are answered at the same time.
const CONCURRENCY: usize = 64;

/// Starts the NATS service with its endpoints.
///
/// # Errors
/// If the service or an endpoint cannot be started.
pub async fn serve<E: Effects>(
    runtime: &mut Runtime,
    log: &JetStreamLog,
    signer: Signer,
    app: App<JetStreamLog, System, E>,
) -> anyhow::Result<()> {
    let service = Service::start(&runtime.client, "session", "state and connection tokens of sessions").await?;
    let limits = app.limits;
    answers::serve(runtime, &service, app).await?;
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
    let ConnectToken { session: id, player, sub } = request;
    let is_player = |sub: &String| PlayerId::from_foreign(sub).is_ok_and(|of| of == *player);
    if !sub.as_ref().is_none_or(is_player) {
        return Err(Refusal::new(400, format!("the sub of the request is not that of player {player}")));
    }
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
    let sub = sub.clone().or_else(|| player.to_foreign());
    let signed = signer.sign(player, sub, *id, System.now(), open.hard_end(limits));
    signed.map_err(|error| Refusal::new(500, format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{
        SigningKey,
        pkcs8::{EncodePrivateKey, spki::der::pem::LineEnding},
    };
    use garage_events::game::Secret;

    use super::*;

    #[test]
    fn a_connection_token_is_only_for_the_player_of_the_request() {
        let pem = SigningKey::from_bytes(&[7; 32]).to_pkcs8_pem(LineEnding::LF).unwrap();
        let signer = Signer::from_pem(&Secret::new(pem.as_str())).unwrap();
        let long = "ä".repeat(255);
        let answer = |name: &str, sub: Option<&str>| {
            let (session, player) = (SessionId::new(System.id()), PlayerId::from_foreign(name).unwrap());
            let request = ConnectToken { session, player, sub: sub.map(str::to_owned) };
            connect_token(&request, &State::New, &signer, &Limits::default()).err().unwrap().code
        };
        for (name, sub, code) in [
            ("ann", Some("bob"), 400),
            (&*long, Some("ann"), 400),
            ("ann", Some(""), 400),
            // There is no such session. These get so far.
            ("ann", Some("ann"), 404),
            (&*long, Some(&*long), 404),
            ("ann", None, 404),
        ] {
            assert_eq!(answer(name, sub), code, "{name} {sub:?}");
        }
    }
}
