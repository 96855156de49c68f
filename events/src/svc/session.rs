//! The requests that the session worker answers.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Call, request};
use crate::{
    id::{PlayerId, SessionId},
    session::NotAccepted,
};

/// Requests a session, as it is in the log. Refused with 404 if it does not exist.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetSession {
    pub session: SessionId,
}
request!(GetSession => crate::session::View, "svc.session.get");

/// Requests a token with which a player connects to the game server of their session. Refused with 404 if the player is
/// not in the session, with 409 if the session is not open, and with 400 if `sub` is not the player's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectToken {
    pub session: SessionId,
    pub player: PlayerId,
    /// The `sub` of the player's own token, with 1 to 255 characters. The id of `player` is derived from it. `None` if
    /// a gateway of an older version asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
}
request!(ConnectToken => SignedToken, "svc.session.connect-token");

/// Accepts a proposed match for a player. A repeated request gets the same answer. Refused with 404 if the player is not
/// in the match, or there is none, and with 409 if the proposal has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accept {
    pub session: SessionId,
    pub player: PlayerId,
}
request!(Accept => (), "svc.session.accept");

/// Declines a proposed match for a player. A repeated request gets the same answer. Refused with 404 if the player is
/// not in the match, or there is none, and with 409 if the proposal has ended, or if a player who disconnected has
/// accepted before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decline {
    pub session: SessionId,
    pub player: PlayerId,
    pub why: NotAccepted,
}
request!(Decline => (), "svc.session.decline");

/// A connection token.
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedToken {
    /// A JWT with the claims [`crate::game::ConnectClaims`].
    pub token: crate::game::Secret,
    /// When the token expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}
