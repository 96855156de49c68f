//! Verifies connection tokens.

use std::collections::BTreeMap;

use garage_events::{
    game::{CONNECT_AUDIENCE, Config, ConnectClaims, Secret},
    id::{PlayerId, SessionId},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

/// Allowed difference between the clocks of signer and game server, in seconds. Nodes of a cluster run NTP.
const LEEWAY_S: u64 = 5;

/// A configured key is not an Ed25519 SubjectPublicKeyInfo in PEM.
#[derive(Debug, thiserror::Error)]
#[error("parsing a key that verifies connection tokens")]
pub struct BadKey(#[source] jsonwebtoken::errors::Error);

/// Why a token is refused. The client receives the message, so it must not reveal anything about other players.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid")]
    Invalid,
    #[error("the token is for another session")]
    WrongSession,
    #[error("the token is for a player who is not in this session")]
    UnknownPlayer,
}

/// Verifies the tokens for one session.
pub(crate) struct Verifier {
    /// Keys by `kid`.
    keys: BTreeMap<String, DecodingKey>,
    /// Key for tokens without a `kid`, or with one that is not in `keys`.
    key: DecodingKey,
    validation: Validation,
    session: SessionId,
    players: Vec<PlayerId>,
}

impl Verifier {
    /// A verifier for a game's session and players.
    pub(crate) fn new(config: &Config) -> Result<Self, BadKey> {
        let read = |pem: &String| DecodingKey::from_ed_pem(pem.as_bytes()).map_err(BadKey);
        let keys =
            config.token_keys.iter().map(|(kid, pem)| Ok((kid.clone(), read(pem)?))).collect::<Result<_, _>>()?;
        let key = read(&config.token_key)?;
        let players = config.players.iter().map(|loadout| loadout.player.clone()).collect();
        // The only accepted algorithm, whatever the token's header says.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[CONNECT_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        Ok(Self { keys, key, validation, session: config.session, players })
    }

    /// Verifies a token. Returns the index of its player.
    pub(crate) fn admit(&self, token: &Secret) -> Result<usize, Refusal> {
        // The header is not verified yet. Its `kid` only selects one of the configured keys.
        let kid = jsonwebtoken::decode_header(token.expose()).ok().and_then(|header| header.kid);
        let key = kid.and_then(|kid| self.keys.get(&kid)).unwrap_or(&self.key);
        let claims = match jsonwebtoken::decode::<ConnectClaims>(token.expose(), key, &self.validation) {
            Ok(token) => token.claims,
            Err(error) if matches!(error.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature) => {
                return Err(Refusal::Expired);
            }
            Err(_) => return Err(Refusal::Invalid),
        };
        if claims.session != self.session {
            return Err(Refusal::WrongSession);
        }
        self.players.iter().position(|player| *player == claims.sub).ok_or(Refusal::UnknownPlayer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_events::game::{Car, Loadout, Nats, Stats};
    use jsonwebtoken::{EncodingKey, Header};
    use rcgen::{KeyPair, PKCS_ED25519};
    use time::macros::datetime;

    use super::*;

    const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

    fn verifier(token_key: String) -> Verifier {
        let stats = Stats { power_kw: 250.0, mass_kg: 1400.0, grip: 1.0, drag_m2: 0.6 };
        let car = Car { id: "coupe".parse().unwrap(), model: "m".into(), texture: "t".into(), stats };
        let loadout =
            |player: &str| Loadout { player: player.parse().unwrap(), car: car.clone(), items: BTreeMap::new() };
        let config = Config {
            session: SESSION.parse().unwrap(),
            attempt: 1,
            players: vec![loadout("ann"), loadout("bob")],
            teams: Vec::new(),
            private_key: Secret::new(""),
            token_keys: [("k".to_owned(), token_key.clone())].into(),
            token_key,
            nats: Nats { url: String::new(), credentials: Secret::new(""), inbox: String::new() },
            ready: String::new(),
            finished: String::new(),
            ends_at: datetime!(2026-01-05 12:00 UTC),
        };
        Verifier::new(&config).unwrap()
    }

    #[test]
    fn any_bytes_are_no_token_except_one_that_the_session_worker_has_signed() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (verifier, key) = (verifier(pair.public_key_pem()), pair.serialize_pem());
        let key = EncodingKey::from_ed_pem(key.as_bytes()).unwrap();
        let sign = |player: &str, kid: Option<&str>| {
            let claims = ConnectClaims {
                sub: player.parse().unwrap(),
                provider_sub: None,
                session: SESSION.parse().unwrap(),
                aud: CONNECT_AUDIENCE.into(),
                // In the year 9999.
                exp: 253_402_300_799,
            };
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
            jsonwebtoken::encode(&header, &claims, &key).unwrap()
        };
        let valid = [sign("ann", None), sign("bob", Some("k")), sign("bob", Some("other"))];
        let message = |token: &str| token.rsplit_once('.').map(|(message, _)| message.to_owned());
        garage_fuzz::feed(&valid, |bytes| {
            let token = String::from_utf8_lossy(bytes);
            let admitted = verifier.admit(&Secret::new(&*token));
            if let Ok(player) = admitted {
                let signed = valid.iter().position(|valid| message(valid) == message(&token));
                assert_eq!(signed.map(|index| index.min(1)), Some(player), "{token}");
            }
            admitted.is_ok()
        });
    }
}
