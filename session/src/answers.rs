//! Answers of players to proposed matches.
//!
//! An answer is one decision on the session. Two instances may decide on answers for the same session at the same time:
//! one of them has a conflict, and decides again with the other's answer. So two last acceptances at the same moment
//! make one match, not two.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use garage_events::{
    env::Env,
    id::SessionId,
    log::Log,
    session::{Command, Rejection},
    svc::{Accept, Decline},
};
use garage_worker::{
    Runtime,
    service::{Refusal, Service},
};

use crate::reaction::{App, Effects};

/// How many requests are answered at the same time. All players of the largest match may answer at once, and wait for
/// each other.
const CONCURRENCY: usize = 256;

/// Decides on the answers for one session one after the other. Otherwise most of them would end with a conflict, and the
/// tries of [`App::decide`] would be used up. Clones share it.
#[derive(Debug, Clone, Default)]
struct Turns(Arc<Mutex<HashMap<SessionId, Weak<tokio::sync::Mutex<()>>>>>);

impl Turns {
    /// The lock of a session, which exists as long as an answer holds it or waits for it. The service limits the wait.
    fn of(&self, session: SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&session).and_then(Weak::upgrade) {
            return turn;
        }
        // There are as many locks as requests in progress, at most.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(session, Arc::downgrade(&turn));
        turn
    }
}

/// Starts the endpoints.
///
/// # Errors
/// If an endpoint cannot be started.
pub async fn serve<L: Log, W: Env, E: Effects>(
    runtime: &mut Runtime,
    service: &Service,
    app: App<L, W, E>,
) -> anyhow::Result<()> {
    let turns = Turns::default();
    let (accepting, waiting, stop) = (app.clone(), turns.clone(), runtime.shutdown.clone());
    let accept = service.serve::<Accept, _, _>(CONCURRENCY, stop.clone(), move |Accept { session, player }| {
        let (app, turn) = (accepting.clone(), waiting.of(session));
        async move {
            let _turn = turn.lock().await;
            let command = Command::Accept { player, now: app.env.now() };
            counted("accept", app.answer(session, command).await)
        }
    });
    runtime.spawn("svc.session.accept", accept.await?);
    let decline = service.serve::<Decline, _, _>(CONCURRENCY, stop, move |Decline { session, player, why }| {
        let (app, turn) = (app.clone(), turns.of(session));
        async move {
            let _turn = turn.lock().await;
            counted("decline", app.answer(session, Command::Decline { player, why }).await)
        }
    });
    runtime.spawn("svc.session.decline", decline.await?);
    Ok(())
}

impl<L: Log, W: Env, E: Effects> App<L, W, E> {
    /// Decides on a player's answer. A repeated answer succeeds.
    ///
    /// # Errors
    /// A refusal with 404 if the session or its player is unknown, with 409 if the proposal has ended, and with 503 if the
    /// log does not answer.
    pub async fn answer(&self, session: SessionId, command: Command) -> Result<(), Refusal> {
        match self.decide(session, command).await {
            Ok(Ok(_) | Err(Rejection::Repeated)) => Ok(()),
            Ok(Err(Rejection::Unknown | Rejection::NotAPlayer)) => {
                // The same answer in both cases, so that other players do not learn that this session exists.
                Err(Refusal::new(404, format!("the player has no session {session}")))
            }
            Ok(Err(rejection)) => Err(Refusal::new(409, rejection.to_string())),
            Err(error) => Err(Refusal::new(503, error.to_string())),
        }
    }
}

/// Counts an answer.
fn counted(answer: &'static str, outcome: Result<(), Refusal>) -> Result<(), Refusal> {
    let label = match &outcome {
        Ok(()) => "ok",
        Err(Refusal { code: 404, .. }) => "unknown",
        Err(Refusal { code: 409, .. }) => "late",
        Err(_) => "failed",
    };
    metrics::counter!("garage_proposal_answers_total", "answer" => answer, "outcome" => label).increment(1);
    outcome
}
