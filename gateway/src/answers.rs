//! Answers to proposed matches. The session worker decides; see [`garage_events::svc::Accept`].

use std::borrow::Cow;

use async_nats::Client;
use garage_events::{
    env::Env,
    id::{PlayerId, SessionId, TicketId},
    log::Log,
    player::{CancelReason, State},
    session::NotAccepted,
    svc::{self, Accept, CallError, Decline},
};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::{admission::Bucket, commands, problem::Problem};

/// How often [`withdraw`] decides again. It does so only if the proposal ends, or the match is proposed, at the same time.
const MAX_TRIES: u32 = 5;

/// A player's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Accept,
    Decline,
}

/// An answer that a client sent on its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentAnswer {
    pub(crate) answer: Answer,
    pub(crate) session: SessionId,
}

impl SentAnswer {
    /// The answer in a client's frame `{"type": "accept", "data": {"session": …}}`, or the same with `decline`. `None` for
    /// every other frame.
    pub(crate) fn of(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Sent<'a> {
            #[serde(rename = "type", borrow)]
            type_name: Cow<'a, str>,
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            session: SessionId,
        }
        let Sent { type_name, data } = serde_json::from_str(text).ok()?;
        let answer = match &*type_name {
            "accept" => Answer::Accept,
            "decline" => Answer::Decline,
            _ => return None,
        };
        Some(Self { answer, session: data.session })
    }

    /// Sends the answer to the session worker. Returns the frame with the outcome for the client.
    /// Answers count in `bucket`, as those of requests do.
    pub(crate) async fn give(self, client: &Client, bucket: &Bucket, player: &PlayerId) -> Utf8Bytes {
        let Self { answer, session } = self;
        let given = async {
            bucket.take(player)?;
            give(client, answer, session, player).await
        };
        let outcome = match given.await {
            Ok(()) => "recorded",
            Err(problem) if problem.status() == StatusCode::NOT_FOUND => "unknown",
            Err(problem) if problem.status() == StatusCode::CONFLICT => "too-late",
            Err(_) => "unavailable",
        };
        let answer = match answer {
            Answer::Accept => "accept",
            Answer::Decline => "decline",
        };
        let data = json!({ "session": session, "answer": answer, "outcome": outcome });
        json!({ "type": "match-answer", "data": data }).to_string().into()
    }
}

/// Accepts or declines a proposed match.
///
/// # Errors
/// [`Problem`]: a 404 if the player is not in the match, a 409 if its proposal has ended, a 503 if the session worker or
/// the log does not answer.
pub(crate) async fn give(
    client: &Client,
    answer: Answer,
    session: SessionId,
    player: &PlayerId,
) -> Result<(), Problem> {
    match answer {
        Answer::Accept => checked(svc::call(client, &Accept { session, player: player.clone() }).await),
        Answer::Decline => decline(client, session, player, NotAccepted::Declined).await,
    }
}

async fn decline(client: &Client, session: SessionId, player: &PlayerId, why: NotAccepted) -> Result<(), Problem> {
    checked(svc::call(client, &Decline { session, player: player.clone(), why }).await)
}

fn checked(outcome: Result<(), CallError>) -> Result<(), Problem> {
    outcome.map_err(|error| match error {
        CallError::Refused { code: 404, .. } => Problem::not_found("the player has no session with this id"),
        CallError::Refused { code: 409, message, .. } => Problem::proposal_over(&message),
        error => error.into(),
    })
}

/// Cancels a player's ticket. If its match is proposed, declines the match, which ends the ticket.
///
/// # Errors
/// The same as [`commands::cancel`]. Also a 409 if the reason is `Disconnected` and the player has accepted.
pub(crate) async fn withdraw(
    log: &impl Log,
    env: &impl Env,
    client: &Client,
    player: &PlayerId,
    ticket: TicketId,
    reason: CancelReason,
) -> Result<(), Problem> {
    let why = match reason {
        CancelReason::Player | CancelReason::Party => NotAccepted::Declined,
        CancelReason::Disconnected => NotAccepted::Disconnected,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let before = proposal(log, player, ticket).await?;
        let outcome = match before {
            Some(session) => decline(client, session, player, why).await,
            None => commands::cancel(log, env, player, ticket, reason).await,
        };
        match outcome {
            // The proposal has ended or begun since it was read, so the ticket may wait again or be in a proposed match.
            Err(problem)
                if problem.status() == StatusCode::CONFLICT
                    && tries < MAX_TRIES
                    && proposal(log, player, ticket).await? != before => {}
            outcome => return outcome,
        }
    }
}

/// The proposed match of a ticket.
async fn proposal(log: &impl Log, player: &PlayerId, ticket: TicketId) -> Result<Option<SessionId>, Problem> {
    Ok(match log.player(player).await?.state {
        State::Proposed(proposed) if proposed.queued.ticket == ticket => Some(proposed.session),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

    #[test]
    fn only_a_frame_of_the_type_accept_or_decline_with_a_session_is_an_answer() {
        for (text, answer) in [
            (format!(r#"{{"type":"accept","data":{{"session":"{SESSION}"}}}}"#), Some(Answer::Accept)),
            (format!(r#"{{"data":{{"session":"{SESSION}","new":1}},"type":"decline"}}"#), Some(Answer::Decline)),
            (format!(r#"{{"type":"Accept","data":{{"session":"{SESSION}"}}}}"#), None),
            (format!(r#"{{"type":"accept","session":"{SESSION}"}}"#), None),
            (r#"{"type":"accept","data":{"session":"x"}}"#.into(), None),
            (r#"{"type":"accept"}"#.into(), None),
            ("7".into(), None),
        ] {
            let session = SESSION.parse().unwrap();
            assert_eq!(SentAnswer::of(&text), answer.map(|answer| SentAnswer { answer, session }), "{text}");
        }
    }

    #[test]
    fn any_bytes_are_a_frame_with_an_answer_or_mean_nothing() {
        let valid = format!(r#"{{"type":"accept","data":{{"session":"{SESSION}"}}}}"#);
        garage_fuzz::feed(&[&valid, &valid.replace("accept", "decline")], |bytes| {
            SentAnswer::of(&String::from_utf8_lossy(bytes)).is_some()
        });
    }
}
