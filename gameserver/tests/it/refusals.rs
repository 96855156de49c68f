//! Tests that the server refuses invalid tokens, frames and connections, and that players are not affected.

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

/// Reads until the connection closes. Returns the close code.
async fn close_code(connection: &mut Connection) -> Option<u16> {
    loop {
        match soon(connection.next()).await {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// Asserts that Anna can still join and finish the race.
async fn assert_still_works(game: &Game) {
    let results = soon(client::drive(&game.server, &game.token("anna"), Driving::default())).await.unwrap();
    assert_eq!(results.len(), 1);
    assert!(results[0].time_ms.is_some());
}

#[tokio::test]
async fn the_client_refuses_a_server_with_another_key() {
    let game = Game::start(&["anna"], options()).await;
    let other = Server { fingerprint: rsa_key().1, ..game.server.clone() };
    let refused = soon(client::drive(&other, &game.token("anna"), Driving::default())).await;
    assert!(matches!(refused, Err(RaceError::WrongKey)), "{refused:?}");
    assert_still_works(&game).await;
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
    assert_still_works(&game).await;
}

/// An unsigned token, with the algorithm `none`.
fn unsigned(claims: &ConnectClaims) -> String {
    let header = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    format!("{header}.{}.", BASE64.encode(serde_json::to_vec(claims).unwrap()))
}

#[tokio::test]
async fn invalid_tokens_are_refused() {
    let game = Game::start(&["anna"], options()).await;
    let good = game.claims("anna");
    let sign = |claims: ConnectClaims| game.signer.sign(&claims);
    let public = EncodingKey::from_secret(game.signer.public_pem().as_bytes());
    let mut cut = game.token("anna");
    cut.pop();
    let bad = [
        ("empty", String::new()),
        ("malformed", "x.y.z".to_owned()),
        ("for another session", sign(ConnectClaims { session: session(), ..good.clone() })),
        ("for another player", sign(ConnectClaims { sub: player("mallory"), ..good.clone() })),
        ("for another audience", sign(ConnectClaims { aud: "garage".to_owned(), ..good.clone() })),
        ("expired", sign(ConnectClaims { exp: in_seconds(-60).unix_timestamp().try_into().unwrap(), ..good.clone() })),
        ("signed with an unknown key", Signer::new().sign(&good)),
        ("unsigned", unsigned(&good)),
        (
            "signed with the public key as a shared secret",
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good, &public).unwrap(),
        ),
        ("cut", cut),
    ];
    for (what, token) in bad {
        let answer = game.try_token(&token).await;
        assert!(matches!(answer, Ok(FromServer::Refused { .. })), "{what}: {answer:?}");
    }
    assert_still_works(&game).await;
}

#[tokio::test]
async fn during_a_key_rotation_tokens_of_both_keys_are_accepted() {
    let next = Signer::new();
    let add_key = |config: &mut Config| drop(config.token_keys.insert(next.kid(), next.public_pem()));
    let game = Game::start_with(&["anna"], long(), 0, add_key).await;
    let claims = game.claims("anna");
    for valid in [game.signer.sign(&claims), next.sign(&claims), game.signer.sign_as(None, &claims)] {
        let answer = game.try_token(&valid).await;
        assert!(matches!(answer, Ok(FromServer::Welcome(_))), "{answer:?}");
    }
    let third = Signer::new();
    let bad = [
        ("signed with an unknown key", third.sign(&claims)),
        ("signed with an unknown key, with a known kid", third.sign_as(Some(next.kid()), &claims)),
        ("signed with one key, with the kid of the other", game.signer.sign_as(Some(next.kid()), &claims)),
    ];
    for (what, token) in bad {
        let answer = game.try_token(&token).await;
        assert!(matches!(answer, Ok(FromServer::Refused { .. })), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn a_configuration_with_only_token_key_is_accepted() {
    let game = Game::start_with(&["anna"], options(), 0, |config| config.token_keys.clear()).await;
    assert_still_works(&game).await;
}

#[tokio::test]
async fn a_refusal_closes_the_connection_with_4401() {
    let game = Game::start(&["anna"], options()).await;
    for first in [r#"{"type":"join"}"#, r#"{"type":"join","token":"x"}"#, r#"{"type":"input","throttle":1.0}"#] {
        let mut connection = soon(client::connect(&game.server)).await.unwrap();
        connection.send(Message::text(first)).await.unwrap();
        assert_eq!(close_code(&mut connection).await, Some(close::REFUSED), "{first}");
    }
    assert_still_works(&game).await;
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_refused() {
    let game = Game::start(&["anna"], options()).await;
    let mut connection = soon(client::connect(&game.server)).await.unwrap();
    let refused = soon(client::receive(&mut connection)).await;
    assert!(matches!(refused, Ok(FromServer::Refused { .. })), "{refused:?}");
    assert_eq!(close_code(&mut connection).await, Some(close::REFUSED));
}

#[tokio::test]
async fn a_malformed_frame_closes_only_its_own_connection() {
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
    // Anna has joined, so the race starts. Bert's connection is still open and receives the start.
    loop {
        match soon(client::receive(&mut bert)).await.unwrap() {
            FromServer::Start | FromServer::Snapshot(_) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn data_that_is_not_tls_affects_no_player() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let game = Game::start(&["anna"], options()).await;
    let mut stream = TcpStream::connect(game.server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server answers with a TLS alert and closes.
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() < 16, "{answer:?}");
    assert_still_works(&game).await;
}

/// Opens connections from a local address that send nothing.
async fn silent_connections(game: &Game, from: &str, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        connections.push(soon(socket.connect(game.server.address)).await.unwrap());
    }
    connections
}

/// Asserts that the server closes a connection.
async fn assert_closed(mut connection: TcpStream) {
    use tokio::io::AsyncReadExt;
    let read = soon(connection.read(&mut [0])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn silent_connections_do_not_keep_players_out() {
    let game = Game::start(&["anna"], options()).await;
    let _silent = silent_connections(&game, "127.0.0.1", 64).await;
    assert_still_works(&game).await;
}

#[tokio::test]
async fn many_silent_connections_displace_neither_joined_players_nor_clients_from_other_addresses() {
    let game = Game::start(&["anna", "bert"], long()).await;
    let (mut bert, _) = game.join("bert").await;
    // Anna has connected but not joined yet. Hers is the oldest pending connection.
    let mut anna = soon(client::connect(&game.server)).await.unwrap();
    let mut silent = silent_connections(&game, "127.0.0.2", 80).await;
    for connection in silent.drain(..17) {
        assert_closed(connection).await;
    }
    let join = FromClient::Join { token: Secret::new(game.token("anna")) };
    client::send(&mut anna, &join).await.unwrap();
    let welcome = soon(client::receive(&mut anna)).await;
    assert!(matches!(welcome, Ok(FromServer::Welcome(_))), "{welcome:?}");
    while !matches!(soon(client::receive(&mut bert)).await.unwrap(), FromServer::Start) {}
}
