//! Which claims of a signed token are valid, and what they say about the player. Pure.

use std::time::Duration;

use garage_events::{
    id::{FOREIGN_MAX, PlayerId},
    player::RANKS,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Identity, Refused};

/// The latest time that a claim can mean, in seconds since 1970: the end of the year 9999.
const LAST: f64 = 253_402_300_799.0;

/// What the claims of a token must be.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The value that `iss` must have; `None` accepts a token of any issuer.
    pub(crate) issuer: Option<String>,
    /// The values of which `aud` must contain at least one. If there is none, any `aud` is accepted.
    pub(crate) audiences: Vec<String>,
    /// The tolerated difference between the clocks of the gateway and the issuer.
    pub(crate) leeway: Duration,
    /// The claim that names the player; see [`find`].
    pub(crate) player_claim: String,
    /// The claim with the player's rank; see [`find`].
    pub(crate) rank_claim: String,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            issuer: None,
            audiences: Vec::new(),
            leeway: Duration::from_secs(5),
            player_claim: "sub".into(),
            rank_claim: "rank".into(),
        }
    }
}

impl Rules {
    /// Checks the claims of a token whose signature is verified.
    ///
    /// # Errors
    /// [`Refused`], with the first claim that is wrong.
    pub(super) fn check(&self, claims: Map<String, Value>, now: OffsetDateTime) -> Result<Identity, Refused> {
        let expires_at = claims.get("exp").and_then(time).ok_or(Refused::Expiry)?;
        if now - self.leeway > expires_at {
            return Err(Refused::Expired);
        }
        if let Some(begins) = claims.get("nbf").filter(|begins| !begins.is_null()) {
            let begins_at = time(begins).ok_or(Refused::NotYet)?;
            if begins_at > now + self.leeway {
                return Err(Refused::NotYet);
            }
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(Refused::Issuer);
        }
        if !self.audiences.is_empty() && !self.is_audience(claims.get("aud")) {
            return Err(Refused::Audience);
        }
        let sub = find(&claims, &self.player_claim).and_then(Value::as_str);
        let sub = sub.ok_or_else(|| self.no_player("must be a text"))?.to_owned();
        let wrong = if sub.is_empty() { "is empty".into() } else { format!("is longer than {FOREIGN_MAX} characters") };
        let player = PlayerId::from_foreign(&sub).ok().ok_or_else(|| self.no_player(&wrong))?;
        let rank = find(&claims, &self.rank_claim).filter(|rank| !rank.is_null()).map(i32::deserialize).transpose();
        let rank = rank.ok().filter(|rank| rank.is_none_or(|rank| RANKS.contains(&rank)));
        let rank = rank.ok_or_else(|| {
            let (min, max) = (RANKS.start(), RANKS.end());
            Refused::Rank(format!("the claim {} must be a whole number between {min} and {max}", self.rank_claim))
        })?;
        Ok(Identity { player, sub, rank, expires_at, claims })
    }

    fn is_audience(&self, claim: Option<&Value>) -> bool {
        let ours = |value: &Value| value.as_str().is_some_and(|value| self.audiences.iter().any(|one| one == value));
        match claim {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }

    fn no_player(&self, why: &str) -> Refused {
        Refused::Player(format!("the claim {}, which names the player, {why}", self.player_claim))
    }
}

/// The claim with this name. If there is none, and the name begins with `/`, it is a JSON Pointer (RFC 6901) to a value
/// inside a claim: `/game/rank` is the field `rank` of the claim `game`.
pub(crate) fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let path = name.strip_prefix('/')?;
        let (first, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        claims.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
    })
}

/// A time in seconds since 1970, which may have a fraction (RFC 7519, section 2).
fn time(claim: &Value) -> Option<OffsetDateTime> {
    let seconds = claim.as_f64()?.clamp(0.0, LAST);
    OffsetDateTime::from_unix_timestamp(seconds as i64).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(NOW).unwrap()
    }

    fn check(rules: &Rules, claims: Value) -> Result<Identity, Refused> {
        let Value::Object(claims) = claims else { panic!("{claims}") };
        rules.check(claims, now())
    }

    fn with(more: Value) -> Value {
        let mut claims = json!({"sub": "ann", "exp": NOW + 60});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    }

    #[test]
    fn the_claims_identify_the_player() {
        let identity = check(&Rules::default(), with(json!({"sub": "ann@example.org", "rank": 7, "elo": 3}))).unwrap();
        assert_eq!((identity.player.as_str(), &*identity.sub), ("ann=40example=2Eorg", "ann@example.org"));
        assert_eq!((identity.rank, identity.claims["elo"].clone()), (Some(7), json!(3)));
        assert_eq!(identity.expires_at.unix_timestamp(), NOW + 60);
        for rank in [json!({}), json!({"rank": null})] {
            assert_eq!(check(&Rules::default(), with(rank)).unwrap().rank, None);
        }
    }

    #[test]
    fn a_wrong_claim_is_named_in_the_refusal() {
        let rules = Rules::default();
        let player = |why: &str| Refused::Player(format!("the claim sub, which names the player, {why}"));
        let rank = Refused::Rank("the claim rank must be a whole number between -100000 and 100000".into());
        let (text, empty, long) =
            (player("must be a text"), player("is empty"), player("is longer than 255 characters"));
        for (wrong, why) in [
            (json!({"exp": null}), &Refused::Expiry),
            (json!({"exp": "soon"}), &Refused::Expiry),
            (json!({"exp": NOW - 6}), &Refused::Expired),
            (json!({"exp": -1e300}), &Refused::Expired),
            (json!({"nbf": NOW + 6}), &Refused::NotYet),
            (json!({"nbf": 1e300}), &Refused::NotYet),
            (json!({"nbf": "soon"}), &Refused::NotYet),
            (json!({"sub": null}), &text),
            (json!({"sub": 7}), &text),
            (json!({"sub": ""}), &empty),
            (json!({"sub": "é".repeat(256)}), &long),
            (json!({"rank": 100_001}), &rank),
            (json!({"rank": -100_001}), &rank),
            (json!({"rank": 1.5}), &rank),
            (json!({"rank": "1200"}), &rank),
            // The first wrong claim counts: an expired token is renewed, whatever else is wrong with it.
            (json!({"exp": NOW - 6, "rank": "1200"}), &Refused::Expired),
        ] {
            assert_eq!(check(&rules, with(wrong.clone())).as_ref(), Err(why), "{wrong}");
        }
        for right in [
            json!({"exp": NOW - 5}),
            json!({"exp": NOW as f64 + 0.5}),
            json!({"exp": 1e300}),
            json!({"nbf": NOW + 5}),
            json!({"nbf": null}),
            json!({"sub": "é".repeat(255)}),
            json!({"rank": -100_000}),
            json!({"iss": "anyone", "aud": "anybody"}),
        ] {
            assert!(check(&rules, with(right.clone())).is_ok(), "{right}");
        }
    }

    #[test]
    fn a_configured_issuer_and_audience_are_required() {
        let rules = Rules {
            issuer: Some("https://id.example".into()),
            audiences: vec!["game".into(), "beta".into()],
            ..Rules::default()
        };
        let iss = "https://id.example";
        for (claims, expected) in [
            (json!({"iss": iss, "aud": "game"}), None),
            (json!({"iss": iss, "aud": ["shop", "beta"]}), None),
            (json!({"aud": "game"}), Some(Refused::Issuer)),
            (json!({"iss": "https://id.example/", "aud": "game"}), Some(Refused::Issuer)),
            (json!({"iss": [iss], "aud": "game"}), Some(Refused::Issuer)),
            (json!({"iss": iss}), Some(Refused::Audience)),
            (json!({"iss": iss, "aud": "shop"}), Some(Refused::Audience)),
            (json!({"iss": iss, "aud": ["shop", 7]}), Some(Refused::Audience)),
            (json!({"iss": iss, "aud": []}), Some(Refused::Audience)),
            (json!({"iss": iss, "aud": {"game": true}}), Some(Refused::Audience)),
        ] {
            assert_eq!(check(&rules, with(claims.clone())).err(), expected, "{claims}");
        }
    }

    #[test]
    fn the_leeway_can_be_configured() {
        let rules = Rules { leeway: Duration::from_secs(300), ..Rules::default() };
        assert!(check(&rules, with(json!({"exp": NOW - 300, "nbf": NOW + 300}))).is_ok());
        assert_eq!(check(&rules, with(json!({"exp": NOW - 301}))), Err(Refused::Expired));
    }

    #[test]
    fn the_player_and_the_rank_can_be_other_claims_and_lie_inside_a_claim() {
        let rules = |player: &str, rank: &str| Rules {
            player_claim: player.into(),
            rank_claim: rank.into(),
            ..Rules::default()
        };
        let claims = json!({"account": "bob", "https://game.example/rank": 5, "game": {"rank": 6, "a/b": {"~": 7}}});
        for (rank, expected) in [
            ("https://game.example/rank", Some(5)),
            ("/game/rank", Some(6)),
            ("/game/a~1b/~0", Some(7)),
            ("/game/elo", None),
            ("/none/rank", None),
            ("rank", None),
        ] {
            let identity = check(&rules("account", rank), with(claims.clone())).unwrap();
            assert_eq!((&*identity.sub, identity.rank), ("bob", expected), "{rank}");
        }
        assert!(check(&rules("/account", "rank"), with(claims.clone())).is_ok());
        // A name that begins with a slash is a name first.
        assert_eq!(check(&rules("sub", "/game/rank"), with(json!({"/game/rank": 8}))).unwrap().rank, Some(8));
    }
}
