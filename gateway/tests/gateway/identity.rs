//! Players with the tokens of an identity provider.

use std::{fs, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::id::PlayerId;
use garage_stack::{ports, process::Launch, servers::Role};
use reqwest::Method;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{interval, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    provider::Provider,
    support::{App, DEADLINE, TICKETS, read, ticket_request, token},
};

async fn start(provider: &Provider) -> App {
    App::start_with(|_| provider.flags()).await
}

async fn me(app: &App, token: String) -> (u16, Value) {
    read(app.anonymous(Method::GET, "/v1/players/me").bearer_auth(token).send().await.unwrap()).await
}

#[tokio::test]
async fn a_player_plays_with_the_token_of_the_provider() {
    let provider = Provider::start().await;
    let app = start(&provider).await;
    provider.keys(&[("RS256", "first"), ("ES256", "second"), ("EdDSA", "third")]).await;
    for (alg, sub) in [("RS256", "ann@example.org"), ("ES256", "Zoë"), ("EdDSA", "auth0|5f7c8ec7c33c6c004bbafe82")] {
        let token = provider.token(alg, sub, json!({"rank": 1_200})).await;
        let request = app.anonymous(Method::POST, TICKETS).bearer_auth(token.clone()).json(&ticket_request());
        let (status, ticket) = read(request.send().await.unwrap()).await;
        assert_eq!(status, 201, "{alg}: {ticket}");
        let id = PlayerId::from_foreign(sub).unwrap();
        assert_eq!(me(&app, token).await.1["player"], id.as_str());
        let garage_events::player::State::Waiting(queued) = app.player(id.as_str()).await.state else { panic!() };
        assert_eq!(queued.rank, 1_200);
    }
    // The shared key is configured too.
    assert_eq!(me(&app, token("bob")).await.0, 401, "a token without the configured issuer");
}

#[tokio::test]
async fn the_backend_of_the_studio_queues_groups_with_client_credentials() {
    let provider = Provider::start().await;
    let app = start(&provider).await;
    let token = provider.backend().await;
    let long = "ä".repeat(255);
    let member = |sub: &str| json!({"player": sub, "rank": 900, "latencies": {"eu": 20}});
    let queue = async |players: &[&str]| {
        let players: Vec<_> = players.iter().copied().map(member).collect();
        let request = app.anonymous(Method::POST, "/v1/matchmaking/groups").bearer_auth(token.clone());
        read(request.json(&json!({"queue": "ranked", "players": players})).send().await.unwrap()).await
    };
    let (status, ticket) = queue(&[&long]).await;
    assert_eq!((status, &ticket["players"]), (201, &json!([long])), "the answer has the names of the request");
    let (status, problem) = queue(&[&long]).await;
    assert_eq!((status, &problem["player"]), (409, &json!(long)), "and so has a refusal");
}

#[tokio::test]
async fn a_rotation_at_the_provider_affects_no_player_and_a_removed_key_is_refused() {
    let provider = Provider::start().await;
    let app = start(&provider).await;
    let old = provider.token("RS256", "ann", json!({})).await;
    assert_eq!(me(&app, old.clone()).await.0, 200);
    provider.keys(&[("RS256", "second"), ("RS256", "first")]).await;
    let new = provider.token("RS256", "ann", json!({})).await;
    assert_eq!(me(&app, new.clone()).await.0, 200, "the first token of a new key");
    assert_eq!(me(&app, old.clone()).await.0, 200, "the old key is still published");

    // Another gateway, so that its next read is not a minute away.
    let app = start(&provider).await;
    assert_eq!(me(&app, old.clone()).await.0, 200);
    provider.keys(&[("RS256", "third"), ("RS256", "second")]).await;
    let newest = provider.token("RS256", "ann", json!({})).await;
    assert_eq!((me(&app, newest).await.0, me(&app, new).await.0), (200, 200));
    let (status, problem) = me(&app, old).await;
    assert_eq!((status, &problem["detail"]), (401, &json!("the token is not valid; check its signature")));
}

#[tokio::test]
async fn known_keys_work_while_the_provider_is_down() {
    let provider = Provider::start().await;
    let app = start(&provider).await;
    let token = provider.token("RS256", "ann", json!({})).await;
    assert_eq!(me(&app, token.clone()).await.0, 200);
    provider.keys(&[("RS256", "second")]).await;
    let unknown = provider.token("RS256", "ann", json!({})).await;
    provider.stop().await;
    assert_eq!(me(&app, unknown).await.0, 401);
    assert_eq!(me(&app, token).await.0, 200);
}

#[tokio::test]
async fn a_gateway_starts_without_its_provider_and_asks_clients_to_try_again() {
    let provider = Provider::start().await;
    let (flags, token) = (provider.flags(), provider.token("RS256", "ann", json!({})).await);
    provider.stop().await;
    let app = App::start_with(|_| flags).await;
    let response = app.anonymous(Method::GET, "/v1/players/me").bearer_auth(token).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    let (status, problem) = read(response).await;
    assert_eq!(status, 503, "{problem}");
}

#[tokio::test]
async fn a_signed_token_that_is_not_for_this_game_is_refused_with_the_reason() {
    let (provider, other) = (Provider::start().await, Provider::start().await);
    let app = start(&provider).await;
    let refused = async |token: String, why: &str| {
        let response = app.anonymous(Method::GET, "/v1/players/me").bearer_auth(token).send().await.unwrap();
        let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
        let (status, problem) = read(response).await;
        assert_eq!((status, &problem["detail"]), (401, &json!(why)));
        assert_eq!(challenge, format!("Bearer error=\"invalid_token\", error_description=\"{why}\""));
    };
    let ahead = 4_000_000_000_u64;
    refused(
        provider.token_for("https://shop.example", "ann").await,
        "the token is for another audience; check its claim aud",
    )
    .await;
    refused(
        provider.token("RS256", "ann", json!({"nbf": ahead})).await,
        "the token is not valid yet; check its claim nbf",
    )
    .await;
    refused(
        provider.token("RS256", "ann", json!({"rank": "gold"})).await,
        "the claim rank must be a whole number between -100000 and 100000",
    )
    .await;
    refused(
        provider.token("RS256", &"a".repeat(256), json!({})).await,
        "the claim sub, which names the player, is longer than 255 characters",
    )
    .await;
    // The other provider has a key of the same name.
    refused(other.token("RS256", "ann", json!({})).await, "the token is not valid; check its signature").await;
    let trusting = App::start_with(|_| {
        let [jwks, ..] = &other.flags()[..] else { panic!() };
        vec![jwks.clone(), format!("--jwt-issuer={}", provider.issuer)]
    });
    let response = trusting.await.anonymous(Method::GET, "/v1/players/me");
    let response = response.bearer_auth(other.token("RS256", "ann", json!({})).await).send().await.unwrap();
    assert_eq!(read(response).await.1["detail"], "the token is from another issuer; check its claim iss");
}

#[tokio::test]
async fn claims_can_have_other_names_and_lie_inside_a_claim() {
    let provider = Provider::start().await;
    let app = App::start_with(|_| {
        let names = ["--jwt-player-claim=/game/account", "--jwt-rank-claim=https://game.example/rank"];
        [provider.flags(), names.map(str::to_owned).to_vec()].concat()
    })
    .await;
    let claims = json!({"game": {"account": "Ann"}, "https://game.example/rank": 77});
    let token = provider.token("RS256", "an internal id", claims).await;
    let request = app.anonymous(Method::POST, TICKETS).bearer_auth(token).json(&ticket_request());
    assert_eq!(read(request.send().await.unwrap()).await.0, 201);
    let garage_events::player::State::Waiting(queued) = app.player("Ann").await.state else { panic!() };
    assert_eq!(queued.rank, 77);
}

/// Serves a JWKS with one key over TLS. Returns its URL and the certificate in PEM.
async fn serve_jwks_over_tls() -> (String, String) {
    let generated = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![generated.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let point = rcgen::KeyPair::generate().unwrap().public_key_raw().to_vec();
    let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = json!({"kty": "EC", "crv": "P-256", "x": coordinate(&point[1..33]), "y": coordinate(&point[33..])});
    let body = json!({ "keys": [key] }).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/jwks", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (url, generated.cert.pem())
}

#[tokio::test]
async fn the_provider_must_have_a_certificate_that_the_system_trusts() {
    let app = App::start().await;
    let (url, certificate) = serve_jwks_over_tls().await;
    let (_, stranger) = serve_jwks_over_tls().await;
    for (name, trusted, line) in [
        ("own", certificate, "identity provider: ok"),
        ("stranger", stranger, "identity provider: it cannot be reached"),
    ] {
        let file = app.folder.path().join(name);
        fs::write(&file, trusted).unwrap();
        let [admin] = ports::reserve().unwrap();
        let _gateway =
            Launch::new(name, env!("CARGO_BIN_EXE_garage-gateway"), app.folder.path().join("log").join(name))
                .arg(format!("--nats-url={}", app.nats.url()))
                .arg(format!("--nats-credentials={}", app.nats.credentials(Role::Gateway).display()))
                .arg(format!("--queues={}", app.folder.path().join("queues.toml").display()))
                .args([
                    "--listen=127.0.0.1:0".to_owned(),
                    format!("--admin=127.0.0.1:{admin}"),
                    format!("--jwks-url={url}"),
                ])
                .env("SSL_CERT_FILE", &file)
                .spawn()
                .unwrap();
        let reported = async {
            let mut ticks = interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                let Ok(answer) = reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await else { continue };
                if answer.text().await.unwrap().contains(line) {
                    break;
                }
            }
        };
        timeout(DEADLINE, reported).await.unwrap_or_else(|_| panic!("{line}"));
    }
}
