//! What the provider can do wrong, with a server that answers as a test says.

use std::sync::atomic::{AtomicUsize, Ordering};

use garage_events::env::{Env, System};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, jwk::CommonParameters};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::token::{Keys, Refused, Rules, tests::pairs};

const LONG: Duration = Duration::from_secs(60);

/// How the server answers.
#[derive(Debug, Clone)]
enum Answer {
    /// With this status line and body.
    With(&'static str, String),
    /// Not at all.
    Never,
    /// By closing the connection.
    Gone,
}

/// A provider, and a gateway's keys that read from it.
struct Stage {
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    keys: Arc<Keys>,
    health: Health,
    shutdown: Shutdown,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Stage {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Secret::new(format!("http://{}/jwks", listener.local_addr().unwrap()));
        let (answer, requests) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(serve(listener, Arc::clone(&answer), Arc::clone(&requests)));
        let jwks = Jwks::new(&url).unwrap();
        let (health, shutdown) = (Health::default(), Shutdown::new());
        not_read(&health);
        tokio::spawn(jwks.clone().run(health.clone(), shutdown.clone()));
        let keys = Arc::new(Keys { files: Vec::new(), jwks: Some(jwks), rules: Rules::default() });
        Self { answer, requests, keys, health, shutdown }
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    async fn verify(&self, token: &str) -> Result<String, Refused> {
        self.keys.verify(token).await.map(|identity| identity.sub)
    }

    /// Waits until /readyz contains this text.
    async fn reports(&self, text: &str) -> bool {
        until(|| self.health.report().1.contains(text)).await;
        self.health.report().0
    }
}

async fn until(condition: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let met = async {
        while !condition() {
            ticks.tick().await;
        }
    };
    timeout(LONG, met).await.unwrap();
}

async fn serve(listener: TcpListener, answer: Arc<Mutex<Answer>>, requests: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            requests.fetch_add(1, Ordering::SeqCst);
            let answer = answer.lock().unwrap().clone();
            match answer {
                Answer::With(status, body) => {
                    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(body.as_bytes()).await?;
                }
                Answer::Never => std::future::pending().await,
                Answer::Gone => {}
            }
            std::io::Result::Ok(())
        });
    }
}

/// A provider's key: as JWK, and to sign with.
pub(super) struct Signer {
    algorithm: Algorithm,
    pub(super) jwk: Value,
    private: EncodingKey,
}

impl Signer {
    /// One key of each type. The key ids are 0, 1 and 2.
    pub(super) fn each() -> Vec<Self> {
        let signer = |(kid, (algorithm, pem, private)): (usize, (Algorithm, String, EncodingKey))| {
            let pem = pem.as_bytes();
            let key = DecodingKey::from_rsa_pem(pem).or_else(|_| DecodingKey::from_ec_pem(pem));
            let key = key.or_else(|_| DecodingKey::from_ed_pem(pem)).unwrap();
            let common = CommonParameters { key_id: Some(kid.to_string()), ..CommonParameters::default() };
            let jwk = Jwk { common, ..Jwk::from_decoding_key(&key, None).unwrap() };
            Self { algorithm, jwk: serde_json::to_value(jwk).unwrap(), private }
        };
        pairs().into_iter().enumerate().map(signer).collect()
    }

    /// The key with these fields set, or removed if null.
    fn with(&self, fields: Value) -> Value {
        let mut jwk = self.jwk.clone();
        for (name, value) in fields.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        jwk
    }

    fn token(&self, kid: Option<&str>) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        let claims = json!({"sub": "ann", "exp": (System.now() + LONG).unix_timestamp()});
        jsonwebtoken::encode(&header, &claims, &self.private).unwrap()
    }
}

fn jwks(keys: impl IntoIterator<Item = Value>) -> Answer {
    Answer::With("200 OK", json!({"keys": keys.into_iter().collect::<Vec<_>>()}).to_string())
}

#[tokio::test]
async fn keys_of_each_type_verify_the_tokens_that_name_them() {
    let signers = Signer::each();
    let stage = Stage::start(jwks(signers.iter().map(|signer| signer.jwk.clone()))).await;
    for (kid, signer) in ["0", "1", "2"].into_iter().zip(&signers) {
        assert_eq!(stage.verify(&signer.token(Some(kid))).await.unwrap(), "ann");
        // Without a name, only one key can be meant, because there is one of each type.
        assert_eq!(stage.verify(&signer.token(None)).await.unwrap(), "ann");
        for other in ["0", "1", "2"].into_iter().filter(|other| *other != kid) {
            assert_eq!(stage.verify(&signer.token(Some(other))).await, Err(Refused::Signature));
        }
    }
    assert!(stage.reports("identity provider: ok").await);
    assert_eq!(stage.requests(), 1);
}

#[tokio::test]
async fn a_key_of_another_use_or_algorithm_is_ignored() {
    let signers = Signer::each();
    let [rsa, ec, ed] = &signers[..] else { panic!() };
    let weak = DecodingKey::from_rsa_pem(include_bytes!("../testdata/rsa-1024.pub.pem")).unwrap();
    let weak = serde_json::to_value(Jwk::from_decoding_key(&weak, None).unwrap()).unwrap();
    for (signer, key) in [
        (rsa, rsa.with(json!({"use": "enc"}))),
        (rsa, rsa.with(json!({"alg": "RS512"}))),
        (rsa, rsa.with(json!({"alg": "PS256"}))),
        (rsa, rsa.with(json!({"alg": "RSA-OAEP"}))),
        (rsa, rsa.with(json!({"alg": "HS256"}))),
        (rsa, rsa.with(json!({"key_ops": ["encrypt"]}))),
        (rsa, rsa.with(json!({"e": "AAAA"}))),
        (rsa, rsa.with(json!({"e": "AQAAAAAB"}))),
        (rsa, rsa.with(json!({"n": "!"}))),
        (rsa, weak),
        (ec, ec.with(json!({"alg": "RS256"}))),
        (ec, ec.with(json!({"crv": "P-384"}))),
        (ec, ec.with(json!({"x": "AAAA"}))),
        (ed, ed.with(json!({"crv": "X25519"}))),
        (ed, ed.with(json!({"x": "AAAA"}))),
        (ed, json!({"kty": "oct", "k": "c2VjcmV0", "kid": "2"})),
        (ed, json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "2"})),
        (ed, json!("text")),
    ] {
        // Another key is usable, and has the same name: the ignored key must not be tried.
        let usable = if std::ptr::eq(signer, ed) { ec } else { ed };
        let kid = signer.jwk["kid"].as_str().unwrap();
        let stage = Stage::start(jwks([key.clone(), usable.with(json!({"kid": kid}))])).await;
        assert_eq!(stage.verify(&signer.token(Some(kid))).await, Err(Refused::Signature), "{key}");
        assert!(stage.verify(&usable.token(Some(kid))).await.is_ok(), "{key}");
    }
    for right in [json!({"use": "sig", "alg": "RS256"}), json!({"key_ops": ["verify"]}), json!({"x5c": ["MII"]})] {
        let stage = Stage::start(jwks([rsa.with(right.clone())])).await;
        assert!(stage.verify(&rsa.token(Some("0"))).await.is_ok(), "{right}");
    }
}

#[tokio::test]
async fn a_name_that_several_keys_have_selects_all_of_them() {
    let (one, other) = (Signer::each(), Signer::each());
    let stage = Stage::start(jwks([one[1].jwk.clone(), other[1].jwk.clone(), one[1].jwk.clone()])).await;
    for signer in [&one[1], &other[1]] {
        assert_eq!(stage.verify(&signer.token(Some("1"))).await.unwrap(), "ann");
        // Without a name, it is not clear which key is meant.
        assert_eq!(stage.verify(&signer.token(None)).await, Err(Refused::Signature));
    }
}

#[tokio::test]
async fn an_unknown_key_is_read_at_once_and_a_removed_one_is_no_longer_accepted() {
    let (old, new) = (Signer::each(), Signer::each());
    let stage = Stage::start(jwks([old[1].jwk.clone()])).await;
    assert!(stage.verify(&old[1].token(Some("1"))).await.is_ok());
    stage.answers(jwks([new[1].with(json!({"kid": "new"}))]));
    let token = new[1].token(Some("new"));
    let all = futures::future::join_all((0..20).map(|_| stage.verify(&token))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(stage.requests(), 2, "the tokens share one read");
    assert_eq!(stage.verify(&old[1].token(Some("1"))).await, Err(Refused::Signature));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_read_and_does_not_delay_valid_tokens() {
    let signers = Signer::each();
    let stage = Stage::start(jwks([signers[1].jwk.clone()])).await;
    assert!(stage.verify(&signers[1].token(Some("1"))).await.is_ok());
    stage.answers(Answer::Never);
    let forged: Vec<_> = (0..500).map(|kid| signers[2].token(Some(&format!("forged {kid}")))).collect();
    let keys = Arc::clone(&stage.keys);
    let flood =
        tokio::spawn(async move { futures::future::join_all(forged.iter().map(|token| keys.verify(token))).await });
    until(|| stage.requests() == 2).await;
    // The provider does not answer, but the known key needs no answer.
    assert!(stage.verify(&signers[1].token(Some("1"))).await.is_ok());
    assert!(!flood.is_finished(), "the read still waits");
    let refused = timeout(LONG, flood).await.unwrap().unwrap();
    assert!(refused.iter().all(|result| *result == Err(Refused::Signature)));
    // The next ones are refused without a read.
    assert_eq!(stage.verify(&signers[2].token(Some("another"))).await, Err(Refused::Signature));
    assert_eq!(stage.requests(), 2);
}

#[tokio::test]
async fn a_provider_that_answers_wrong_makes_the_gateway_unready_and_says_why() {
    let signers = Signer::each();
    let ok = |text: String| Answer::With("200 OK", text);
    let cases = [
        (Answer::Gone, "cannot be reached"),
        (Answer::With("503 Service Unavailable", String::new()), "status 503"),
        (Answer::With("302 Found", String::new()), "set --jwks-url to the final URL"),
        (ok("<html>".into()), "not a JWKS"),
        (ok("{}".into()), "not a JWKS"),
        (ok(r#"{"keys": []}"#.into()), "no key for RS256"),
        (ok(format!(r#"{{"keys": [], "x": "{}"}}"#, "x".repeat(MAX_DOCUMENT))), "longer than 262144 bytes"),
        (jwks(vec![signers[1].jwk.clone(); 65]), "65 keys; the limit is 64"),
        (Answer::Never, "did not answer within 5 s"),
    ];
    let cases = cases.map(async |(answer, why)| {
        let stage = Stage::start(answer).await;
        assert!(!stage.reports(why).await, "{why}");
        // The token may be valid, so it is not refused for ever.
        assert_eq!(stage.verify(&signers[1].token(Some("1"))).await, Err(Refused::NoKeys), "{why}");
        // The next try succeeds.
        stage.answers(jwks([signers[1].jwk.clone()]));
        assert!(stage.reports("identity provider: ok").await, "{why}");
        assert!(stage.verify(&signers[1].token(Some("1"))).await.is_ok(), "{why}");
    });
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn known_keys_stay_in_use_while_the_provider_fails() {
    let signers = Signer::each();
    for (answer, why) in [
        (Answer::Gone, "cannot be reached"),
        (Answer::With("200 OK", r#"{"keys": []}"#.into()), "no key for RS256"),
        (Answer::With("200 OK", "x".repeat(MAX_DOCUMENT + 1)), "longer than"),
    ] {
        let stage = Stage::start(jwks([signers[1].jwk.clone()])).await;
        assert!(stage.verify(&signers[1].token(Some("1"))).await.is_ok());
        stage.answers(answer);
        assert_eq!(stage.verify(&signers[2].token(Some("2"))).await, Err(Refused::Signature));
        assert!(stage.reports(why).await, "the gateway stays ready");
        assert!(stage.verify(&signers[1].token(Some("1"))).await.is_ok(), "{why}");
    }
}

#[test]
fn an_answer_that_is_not_a_jwks_is_not_quoted_at_full_length() {
    let error = format!("{:#}", parse(json!({"keys": "k".repeat(100_000)}).to_string().as_bytes()).unwrap_err());
    assert!(error.starts_with("its answer is not a JWKS: invalid type") && error.len() < 300, "{error}");
}
