//! The token of a socket. A socket ends when its token expires, unless the client sends a newer one in time.

use std::time::Duration;

use futures::future::BoxFuture;
use garage_events::id::PlayerId;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::token::{Identity, Refused};

/// Verifies a token.
pub(crate) type Verify = Box<dyn Fn(String) -> BoxFuture<'static, Result<Identity, Refused>> + Send + Sync>;

/// How many tokens a client can send at once. A client needs one before its token expires, and another one if the first
/// one is refused.
const BURST: u32 = 5;

/// How often a client can send another token after that. An asymmetric signature takes about 0.1 ms to verify.
const INTERVAL: Duration = Duration::from_secs(10);

/// The longest time that a socket stays open with one token. Timers cannot be set to an arbitrarily late time.
const MAX_LIFE: Duration = Duration::from_secs(365 * 24 * 3_600);

/// The token with which a socket was opened, or the newest one that the client has sent since.
pub(crate) struct SocketToken {
    player: PlayerId,
    expires_at: OffsetDateTime,
    /// When the socket ends.
    pub(super) end: Instant,
    /// When the client can send [`BURST`] tokens again; in the past if it can now.
    full_at: Instant,
    /// How long a token is valid after it has expired.
    leeway: Duration,
    verify: Verify,
}

impl SocketToken {
    /// `now` and `instant` are the same moment.
    pub(crate) fn new(
        identity: &Identity,
        leeway: Duration,
        verify: Verify,
        now: OffsetDateTime,
        instant: Instant,
    ) -> Self {
        let Identity { player, expires_at, .. } = identity;
        let end = end(*expires_at, leeway, now, instant);
        Self { player: player.clone(), expires_at: *expires_at, end, full_at: instant, leeway, verify }
    }

    /// Replaces the token by one of the same player that expires later. Returns when it expires.
    ///
    /// # Errors
    /// The reason if the token changes nothing, as clients see it.
    pub(super) async fn renew(
        &mut self,
        token: String,
        now: OffsetDateTime,
        instant: Instant,
    ) -> Result<OffsetDateTime, &'static str> {
        let full_at = self.full_at.max(instant) + INTERVAL;
        if full_at > instant + BURST * INTERVAL {
            return Err("too-many");
        }
        self.full_at = full_at;
        let identity = (self.verify)(token).await.map_err(|refused| match refused {
            Refused::Expired => "expired",
            _ => "not-valid",
        })?;
        if identity.player != self.player {
            return Err("other-player");
        }
        if identity.expires_at <= self.expires_at {
            return Err("not-later");
        }
        self.expires_at = identity.expires_at;
        self.end = end(identity.expires_at, self.leeway, now, instant);
        Ok(identity.expires_at)
    }
}

/// When a token is no longer valid for any request. `now` and `instant` are the same moment.
fn end(expires_at: OffsetDateTime, leeway: Duration, now: OffsetDateTime, instant: Instant) -> Instant {
    // Negative if the leeway has begun.
    let left = (expires_at - now).saturating_add(leeway.try_into().unwrap_or(time::Duration::MAX));
    instant + Duration::try_from(left).unwrap_or(Duration::ZERO).min(MAX_LIFE)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::Map;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    const LEEWAY: Duration = Duration::from_secs(5);

    /// The text of a token is its player and when it expires, in seconds after [`NOW`].
    fn verify(token: &str) -> Result<Identity, Refused> {
        let (player, expires_at) = token.split_once(' ').ok_or(Refused::Signature)?;
        let expires_at = NOW + time::Duration::seconds(expires_at.parse().unwrap());
        if expires_at < NOW {
            return Err(Refused::Expired);
        }
        Ok(Identity { player: player.parse().unwrap(), sub: player.into(), rank: None, expires_at, claims: Map::new() })
    }

    fn socket(token: &str, instant: Instant) -> SocketToken {
        let verifier = |token: String| async move { verify(&token) }.boxed();
        SocketToken::new(&verify(token).unwrap(), LEEWAY, Box::new(verifier), NOW, instant)
    }

    fn renew(socket: &mut SocketToken, token: &str, instant: Instant) -> Result<OffsetDateTime, &'static str> {
        socket.renew(token.into(), NOW, instant).now_or_never().unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_socket_ends_with_its_token_and_the_leeway() {
        let instant = Instant::now();
        assert_eq!(socket("ann 60", instant).end, instant + seconds(65));
        assert_eq!(end(NOW - seconds(3), LEEWAY, NOW, instant), instant + seconds(2));
        assert_eq!(end(NOW - seconds(9), LEEWAY, NOW, instant), instant);
        assert_eq!(end(time::PrimitiveDateTime::MAX.assume_utc(), LEEWAY, NOW, instant), instant + MAX_LIFE);
    }

    #[test]
    fn a_newer_token_of_the_same_player_keeps_the_socket_open() {
        let instant = Instant::now();
        let mut socket = socket("ann 60", instant);
        assert_eq!(renew(&mut socket, "ann 600", instant), Ok(NOW + seconds(600)));
        assert_eq!(socket.end, instant + seconds(605));
    }

    #[test]
    fn a_token_that_is_refused_changes_nothing() {
        for (token, reason) in [
            ("ann -1", "expired"),
            ("", "not-valid"),
            ("bob 600", "other-player"),
            ("ann 60", "not-later"),
            ("ann 59", "not-later"),
        ] {
            let instant = Instant::now();
            let mut socket = socket("ann 60", instant);
            assert_eq!(renew(&mut socket, token, instant), Err(reason), "{token}");
            assert_eq!(socket.end, instant + seconds(65), "{token}");
            assert_eq!(renew(&mut socket, "ann 61", instant), Ok(NOW + seconds(61)), "after {token}");
        }
    }

    #[test]
    fn a_client_can_send_five_tokens_at_once_and_then_one_every_ten_seconds() {
        let instant = Instant::now();
        let mut socket = socket("ann 60", instant);
        for _ in 0..BURST {
            assert_eq!(renew(&mut socket, "", instant), Err("not-valid"));
        }
        assert_eq!(renew(&mut socket, "ann 600", instant + seconds(9)), Err("too-many"));
        assert_eq!(renew(&mut socket, "", instant + seconds(10)), Err("not-valid"));
        assert_eq!(renew(&mut socket, "ann 600", instant + seconds(10)), Err("too-many"));
        assert!(renew(&mut socket, "ann 600", instant + seconds(20)).is_ok());
    }
}
