//! Any bytes as a token, as its header and as its claims.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::executor::block_on;
use jsonwebtoken::crypto;
use serde_json::json;

use super::{
    tests::{key, load, pairs},
    *,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// Checks what a valid token says, or why it is refused.
fn check(verified: &Result<Identity, Refused>) {
    match verified {
        Ok(identity) => {
            assert!((1..=255).contains(&identity.sub.chars().count()), "{identity:?}");
            assert_eq!(PlayerId::from_foreign(&identity.sub).as_ref(), Ok(&identity.player));
            assert!(identity.rank.is_none_or(|rank| garage_events::player::RANKS.contains(&rank)), "{identity:?}");
            assert!(identity.expires_at > System.now() - HOUR);
            identity.has_scope(GROUPS);
        }
        Err(refused) => {
            assert!(refused.to_string().len() <= 300, "{refused}");
            assert!(Refused::REASONS.contains(&refused.reason()));
        }
    }
}

fn part(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with this header and these claims, with a valid HS256 signature.
fn signed(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = crypto::sign(message.as_bytes(), &key("a").signing, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn shared() -> Keys {
    Keys { files: vec![key("a").verifying], jwks: None, rules: Rules::default() }
}

fn claims() -> Value {
    json!({"sub": "ann@example.org", "exp": (System.now() + HOUR).unix_timestamp(), "rank": 1_200, "scope": GROUPS})
}

#[test]
fn any_bytes_are_no_token_except_one_that_a_key_has_signed() {
    let pairs = pairs();
    let mut keys = load(&pairs.iter().map(|(_, public, _)| public.as_str()).collect::<String>()).unwrap();
    keys.files.push(key("a").verifying);
    let sign = |algorithm, key: &EncodingKey| jsonwebtoken::encode(&Header::new(algorithm), &claims(), key).unwrap();
    let mut valid: Vec<String> = pairs.iter().map(|(algorithm, _, private)| sign(*algorithm, private)).collect();
    valid.push(sign(Algorithm::HS256, &key("a").signing));
    // The signature itself may have several forms, such as (r, s) and (r, -s) of ES256.
    let message = |token: &str| token.rsplit_once('.').map(|(message, _)| message.to_owned());
    let messages: Vec<_> = valid.iter().map(|token| message(token)).collect();
    garage_fuzz::feed(&valid, |bytes| {
        let token = String::from_utf8_lossy(bytes);
        let verified = block_on(keys.verify(&token));
        check(&verified);
        assert!(verified.is_err() || messages.contains(&message(&token)), "forged: {token}");
        assert!(token.len() <= MAX_TOKEN || verified == Err(Refused::Long));
        verified.is_ok()
    });
}

#[test]
fn any_bytes_as_signed_claims_identify_a_player_or_are_refused() {
    let rules = [
        Rules::default(),
        Rules { player_claim: "/game/id".into(), rank_claim: "/game/rank".into(), ..Rules::default() },
        Rules { issuer: Some("https://id.example".into()), audiences: vec!["game".into()], ..Rules::default() },
    ];
    let mut nested = claims();
    nested["game"] = json!({"id": "bob", "rank": -100_000, "list": [1, 2]});
    let mut full = claims();
    full["iss"] = json!("https://id.example");
    full["aud"] = json!(["shop", "game"]);
    full["nbf"] = json!(0.5);
    garage_fuzz::feed(&[claims().to_string(), nested.to_string(), full.to_string()], |bytes| {
        let token = signed(b"{\"alg\":\"HS256\"}", bytes);
        let verified = rules.clone().map(|rules| block_on(Keys { rules, ..shared() }.verify(&token)));
        verified.iter().for_each(check);
        verified.iter().any(Result::is_ok)
    });
}

#[test]
fn any_bytes_as_a_signed_header_cannot_choose_another_algorithm() {
    let claims = claims().to_string();
    let kid = key("a").verifying.kid.unwrap();
    let named = format!("{{\"alg\":\"HS256\",\"typ\":\"JWT\",\"kid\":\"{kid}\"}}");
    garage_fuzz::feed(&["{\"alg\":\"HS256\"}", &named], |bytes| {
        let verified = block_on(shared().verify(&signed(bytes, claims.as_bytes())));
        check(&verified);
        // The decoder skips a field that it does not need, even if it is not UTF-8 or is nested too deeply for this parser.
        let header = serde_json::from_str::<Map<String, Value>>(&String::from_utf8_lossy(bytes));
        if let (true, Ok(header)) = (verified.is_ok(), header) {
            assert!(header["alg"] == "HS256" && header.get("crit").is_none_or(Value::is_null), "{header:?}");
        }
        verified.is_ok()
    });
}
