//! Who and what is not let in.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use futures::{SinkExt, StreamExt};
use garage_events::game::{Config, ConnectClaims, Secret};
use garage_gameserver::{
    client::{self, Connection, Driving, Pin, RaceError, Server},
    wire::{FromClient, FromServer, close},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::{ClientConfig, crypto::ring, pki_types::ServerName, version::TLS12};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;

use crate::game::{DEADLINE, Game, Signer, in_seconds, long, options, player, rsa_key, session, soon};

/// The close code that a connection ends with, whatever is said before.
async fn close_code(connection: &mut Connection) -> Option<u16> {
    loop {
        match soon(connection.next()).await {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// That the game goes on as if nothing had been.
async fn still_races(game: &Game) {
    let results = soon(client::drive(&game.server, &game.token("anna"), Driving::default())).await.unwrap();
    assert_eq!(results.len(), 1);
    assert!(results[0].time_ms.is_some());
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_by_the_client() {
    let game = Game::start(&["anna"], options()).await;
    let other = Server { fingerprint: rsa_key().1, ..game.server.clone() };
    let refused = soon(client::drive(&other, &game.token("anna"), Driving::default())).await;
    assert!(matches!(refused, Err(RaceError::WrongKey)), "{refused:?}");
    still_races(&game).await;
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let game = Game::start(&["anna"], options()).await;
    let provider = Arc::new(ring::default_provider());
    let pin = Pin::new(game.server.fingerprint.clone(), &provider);
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth();
    let stream = TcpStream::connect(game.server.address).await.unwrap();
    let name = ServerName::from(game.server.address.ip());
    let error = soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    still_races(&game).await;
}

/// A token whose header says what an attacker likes.
fn unsigned(claims: &ConnectClaims) -> String {
    let header = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    format!("{header}.{}.", BASE64.encode(serde_json::to_vec(claims).unwrap()))
}

#[tokio::test]
async fn bad_tokens_admit_nobody() {
    let game = Game::start(&["anna"], options()).await;
    let good = game.claims("anna");
    let sign = |claims: ConnectClaims| game.signer.sign(&claims);
    let public = EncodingKey::from_secret(game.signer.public_pem().as_bytes());
    let mut cut = game.token("anna");
    cut.pop();
    let bad = [
        ("none", String::new()),
        ("no token", "x.y.z".to_owned()),
        ("of another session", sign(ConnectClaims { session: session(), ..good.clone() })),
        ("of another player", sign(ConnectClaims { sub: player("mallory"), ..good.clone() })),
        ("for another audience", sign(ConnectClaims { aud: "garage".to_owned(), ..good.clone() })),
        ("expired", sign(ConnectClaims { exp: in_seconds(-60).unix_timestamp().try_into().unwrap(), ..good.clone() })),
        ("signed by somebody else", Signer::new().sign(&good)),
        ("unsigned", unsigned(&good)),
        (
            "signed with the public key as a shared secret",
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good, &public).unwrap(),
        ),
        ("cut", cut),
    ];
    for (what, token) in bad {
        let answer = game.knock(&token).await;
        assert!(matches!(answer, Ok(FromServer::Refused { .. })), "{what}: {answer:?}");
    }
    still_races(&game).await;
}

#[tokio::test]
async fn while_keys_are_rotated_a_token_of_either_admits() {
    let next = Signer::new();
    let tell = |config: &mut Config| drop(config.token_keys.insert(next.kid(), next.public_pem()));
    let game = Game::start_with(&["anna"], long(), 0, tell).await;
    let claims = game.claims("anna");
    for good in [game.signer.sign(&claims), next.sign(&claims), game.signer.sign_as(None, &claims)] {
        let answer = game.knock(&good).await;
        assert!(matches!(answer, Ok(FromServer::Welcome(_))), "{answer:?}");
    }
    let third = Signer::new();
    let bad = [
        ("of a third key", third.sign(&claims)),
        ("of a third key, under the name of one", third.sign_as(Some(next.kid()), &claims)),
        ("of one key, under the other's name", game.signer.sign_as(Some(next.kid()), &claims)),
    ];
    for (what, token) in bad {
        let answer = game.knock(&token).await;
        assert!(matches!(answer, Ok(FromServer::Refused { .. })), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn a_director_that_names_one_key_alone_is_understood() {
    let game = Game::start_with(&["anna"], options(), 0, |config| config.token_keys.clear()).await;
    still_races(&game).await;
}

#[tokio::test]
async fn a_refusal_closes_with_its_code() {
    let game = Game::start(&["anna"], options()).await;
    for first in [r#"{"type":"join"}"#, r#"{"type":"join","token":"x"}"#, r#"{"type":"input","throttle":1.0}"#] {
        let mut connection = soon(client::connect(&game.server)).await.unwrap();
        connection.send(Message::text(first)).await.unwrap();
        assert_eq!(close_code(&mut connection).await, Some(close::REFUSED), "{first}");
    }
    still_races(&game).await;
}

#[tokio::test]
async fn who_says_nothing_is_refused() {
    let game = Game::start(&["anna"], options()).await;
    let mut connection = soon(client::connect(&game.server)).await.unwrap();
    let refused = soon(client::receive(&mut connection)).await;
    assert!(matches!(refused, Ok(FromServer::Refused { .. })), "{refused:?}");
    assert_eq!(close_code(&mut connection).await, Some(close::REFUSED));
}

#[tokio::test]
async fn a_malformed_frame_closes_its_connection_alone() {
    let game = Game::start(&["anna", "bert"], long()).await;
    let (mut bert, _) = game.join("bert").await;
    let bad = [
        Message::text("{"),
        Message::text(r#"{"type":"fly"}"#),
        Message::text(r#"{"type":"input","throttle":"full"}"#),
        Message::text(r#"{"type":"input","throttle":1e999}"#),
        Message::text(r#"{"type":"join","token":"again"}"#),
        Message::binary(vec![0; 8]),
        Message::text("x".repeat(17 * 1024)),
    ];
    for frame in bad {
        let what = format!("{:.60}", format!("{frame:?}"));
        let (mut anna, _) = game.join("anna").await;
        anna.send(frame).await.unwrap();
        assert_eq!(close_code(&mut anna).await, Some(close::MALFORMED), "{what}");
    }
    let mut unknown = soon(client::connect(&game.server)).await.unwrap();
    unknown.send(Message::text("hello")).await.unwrap();
    assert_eq!(close_code(&mut unknown).await, Some(close::MALFORMED));
    // Bert has heard nothing of it, and is there when Anna finally is.
    loop {
        match soon(client::receive(&mut bert)).await.unwrap() {
            FromServer::Start | FromServer::Snapshot(_) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let game = Game::start(&["anna"], options()).await;
    let mut stream = TcpStream::connect(game.server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // TLS says what is wrong in an alert, and ends.
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() < 16, "{answer:?}");
    still_races(&game).await;
}

/// Connections from this host that say nothing.
async fn strangers(game: &Game, from: &str, count: usize) -> Vec<TcpStream> {
    let mut strangers = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        strangers.push(soon(socket.connect(game.server.address)).await.unwrap());
    }
    strangers
}

/// That the server has let go of a connection.
async fn cut(mut stranger: TcpStream) {
    use tokio::io::AsyncReadExt;
    let said = soon(stranger.read(&mut [0])).await;
    assert!(matches!(said, Ok(0) | Err(_)), "{said:?}");
}

#[tokio::test]
async fn strangers_who_say_nothing_keep_no_player_out() {
    let game = Game::start(&["anna"], options()).await;
    let _silent = strangers(&game, "127.0.0.1", 64).await;
    still_races(&game).await;
}

#[tokio::test]
async fn a_crowd_of_strangers_drives_out_neither_who_plays_nor_who_comes_from_elsewhere() {
    let game = Game::start(&["anna", "bert"], long()).await;
    let (mut bert, _) = game.join("bert").await;
    // She has connected and not joined yet, and is the oldest of those.
    let mut anna = soon(client::connect(&game.server)).await.unwrap();
    let mut crowd = strangers(&game, "127.0.0.2", 80).await;
    for stranger in crowd.drain(..17) {
        cut(stranger).await;
    }
    let join = FromClient::Join { token: Secret::new(game.token("anna")) };
    client::send(&mut anna, &join).await.unwrap();
    let welcome = soon(client::receive(&mut anna)).await;
    assert!(matches!(welcome, Ok(FromServer::Welcome(_))), "{welcome:?}");
    while !matches!(soon(client::receive(&mut bert)).await.unwrap(), FromServer::Start) {}
}
