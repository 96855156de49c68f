//! Invalid requests get a 4xx and append nothing to the log.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::game::Secret;
use garage_gateway::{sign_token, token::Key};
use reqwest::Method;
use serde_json::json;

use crate::support::{App, TICKETS, read, ticket_request, token};

const ID: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

/// The operations with a request body. The first one requests a ticket.
const BODIES: [(Method, &str); 9] = [
    (Method::POST, TICKETS),
    (Method::POST, "/v1/parties/join"),
    (Method::POST, "/v1/party/invitations"),
    (Method::PUT, "/v1/party/leader"),
    (Method::PUT, "/v1/party/ready"),
    (Method::PUT, "/v1/garage/active-car"),
    (Method::POST, "/v1/garage/cars"),
    (Method::POST, "/v1/garage/items"),
    (Method::PUT, "/v1/garage/cars/gt/slots/spoiler"),
];

fn endpoints() -> Vec<(Method, String)> {
    let all = [
        (Method::POST, TICKETS.to_owned()),
        (Method::GET, format!("{TICKETS}/{ID}")),
        (Method::DELETE, format!("{TICKETS}/{ID}")),
        (Method::POST, "/v1/matchmaking/groups".into()),
        (Method::GET, "/v1/regions".into()),
        (Method::GET, "/v1/players/me".into()),
        (Method::POST, "/v1/parties".into()),
        (Method::POST, "/v1/parties/join".into()),
        (Method::POST, format!("/v1/parties/{ID}/join")),
        (Method::GET, "/v1/party".into()),
        (Method::DELETE, "/v1/party".into()),
        (Method::POST, "/v1/party/invitations".into()),
        (Method::POST, "/v1/party/code".into()),
        (Method::POST, "/v1/party/leave".into()),
        (Method::DELETE, "/v1/party/members/bob".into()),
        (Method::PUT, "/v1/party/leader".into()),
        (Method::PUT, "/v1/party/ready".into()),
        (Method::DELETE, "/v1/party/ready".into()),
        (Method::GET, format!("/v1/sessions/{ID}")),
        (Method::GET, format!("/v1/sessions/{ID}/public-key")),
        (Method::POST, format!("/v1/sessions/{ID}/connect-token")),
        (Method::GET, "/v1/store/cars".into()),
        (Method::GET, "/v1/garage".into()),
        (Method::PUT, "/v1/garage/active-car".into()),
        (Method::GET, "/v1/store/items".into()),
        (Method::POST, "/v1/garage/cars".into()),
        (Method::DELETE, "/v1/garage/cars/gt".into()),
        (Method::POST, "/v1/garage/items".into()),
        (Method::DELETE, "/v1/garage/items/wing".into()),
        (Method::PUT, "/v1/garage/cars/gt/slots/spoiler".into()),
        (Method::DELETE, "/v1/garage/cars/gt/slots/spoiler".into()),
        (Method::GET, "/v1/wallet".into()),
        (Method::GET, "/v1/wallet/ledger".into()),
        (Method::GET, "/v1/profile".into()),
    ];
    all.into()
}

/// Tokens of the player "ann" that are not valid.
fn bad_tokens() -> [String; 7] {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let exp = 4_000_000_000_u64;
    let other = Key::new(&Secret::new("x".repeat(32))).unwrap();
    let signed = |claims| {
        let key = jsonwebtoken::EncodingKey::from_secret(crate::support::KEY.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let expired = signed(json!({"sub": "ann", "exp": 1_000_000_000}));
    let wrong_rank = |rank| signed(json!({"sub": "ann", "exp": exp, "rank": rank}));
    let good = token("ann");
    let tampered = {
        let mut parts: Vec<_> = good.split('.').map(ToOwned::to_owned).collect();
        parts[1] = part(json!({"sub": "bob", "exp": exp}));
        parts.join(".")
    };
    [
        sign_token(&other, "ann", None, Duration::from_secs(600)).unwrap().expose().to_owned(),
        expired,
        format!("{}.{}.", part(json!({"alg": "none", "typ": "JWT"})), part(json!({"sub": "ann", "exp": exp}))),
        tampered,
        format!("{good}x"),
        wrong_rank(json!(100_001)),
        wrong_rank(json!("1200")),
    ]
}

#[tokio::test]
async fn a_request_without_a_valid_token_gets_a_401() {
    let app = App::start().await;
    let mut bad = vec!["Bearer".to_owned(), "Bearer ".to_owned(), "Basic YTpi".to_owned()];
    bad.extend(bad_tokens().map(|token| format!("Bearer {token}")));
    for (method, path) in endpoints() {
        let (status, _) =
            read(app.anonymous(method.clone(), &path).json(&ticket_request()).send().await.unwrap()).await;
        assert_eq!(status, 401, "{method} {path}");
        for header in &bad {
            let request = app.anonymous(method.clone(), &path).header("Authorization", header).json(&ticket_request());
            let (status, body) = read(request.send().await.unwrap()).await;
            assert_eq!(status, 401, "{method} {path} {header}: {body}");
        }
    }
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn an_unknown_path_gets_a_404_and_an_unknown_method_a_405() {
    let app = App::start().await;
    let long = format!("/v1/garage/cars/{}", "a".repeat(33));
    for path in [
        "/",
        "/v1",
        "/v2/regions",
        "/v1/ticket",
        "/v1/matchmaking/tickets/not-a-uuid",
        "/v1/sessions/x",
        "/v1/ws/x",
        "/v1/store",
        "/v1/garage/cars/GT",
        "/v1/garage/cars/g%20t",
        "/v1/garage/cars/gt/slots",
        "/v1/garage/cars/gt/slots/1st",
        "/v1/garage/cars/gt/slots/spoiler/x",
        "/v1/garage/items/-",
        "/v1/wallet/ledger/7",
        "/v1/parties/x/join",
        "/v1/party/members",
        &long,
    ] {
        let (status, _) = app.get("ann", path).await;
        assert_eq!(status, 404, "{path}");
    }
    for (method, path) in endpoints() {
        let response = app.request("ann", Method::PATCH, &path).send().await.unwrap();
        let allow = response.headers()["allow"].to_str().unwrap().to_owned();
        assert!(allow.split(", ").any(|allowed| allowed == method.as_str()), "{path}: {allow}");
        assert_eq!(read(response).await.0, 405, "{path}");
    }
    let (status, _) = read(app.request("ann", Method::POST, "/v1/ws").send().await.unwrap()).await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn an_invalid_body_query_or_idempotency_key_is_refused() {
    // One player sends them all, and each counts.
    let app =
        App::start_with(|_| ["garage", "parties", "party-joins"].map(|class| format!("--limit-{class}=off")).into())
            .await;
    for (method, path) in BODIES {
        let send = async |kind: &'static str, body: String| {
            let request = app.request("ann", method.clone(), path).header("Content-Type", kind).body(body);
            read(request.send().await.unwrap()).await.0
        };
        assert_eq!(send("application/json", "{\"".into()).await, 400, "{path}");
        assert_eq!(send("application/json", String::new()).await, 400, "{path}");
        assert_eq!(send("application/json", "[]".into()).await, 422, "{path}");
        assert_eq!(send("application/json", "[\"ranked\", 1, {\"eu\": 1}]".into()).await, 422, "{path}");
        assert_eq!(send("application/json", "[\"gt\"]".into()).await, 422, "{path}");
        assert_eq!(send("application/json", "\u{0}\u{1}".into()).await, 400, "{path}");
        assert_eq!(send("text/plain", ticket_request().to_string()).await, 415, "{path}");
        assert_eq!(send("application/x-www-form-urlencoded", "a=b".into()).await, 415, "{path}");
        assert_eq!(send("application/json", " ".repeat((16 << 10) + 1)).await, 413, "{path}");
        let (status, _) = read(app.request("ann", method.clone(), path).send().await.unwrap()).await;
        assert_eq!(status, 415, "{path}");
    }
    for invalid in [
        json!({"queue": "casual", "latencies": {"eu": 1}}),
        json!({"queue": "ranked", "rank": 1, "latencies": {"eu": 1}}),
        json!({"queue": "open", "rank": 100_001, "latencies": {"eu": 1}}),
        json!({"queue": "open", "rank": "1", "latencies": {"eu": 1}}),
        json!({"queue": "ranked", "latencies": {}}),
        json!({"queue": "ranked", "latencies": {"mars": 1}}),
        json!({"queue": "ranked", "latencies": {"eu": null}}),
        json!({"queue": "ranked", "latencies": {"eu": 121}}),
        json!({"queue": "ranked", "latencies": {"eu": 10_001}}),
        json!({"queue": "ranked", "latencies": {"eu": 1}, "player": "bob"}),
    ] {
        let (status, body) = read(app.request("ann", Method::POST, TICKETS).json(&invalid).send().await.unwrap()).await;
        assert_eq!(status, 422, "{invalid}: {body}");
    }
    let twice = "{\"queue\": \"ranked\", \"latencies\": {\"eu\": 900, \"eu\": 20}}";
    let request = app.request("ann", Method::POST, TICKETS).header("Content-Type", "application/json").body(twice);
    assert_eq!(read(request.send().await.unwrap()).await.0, 422);
    for invalid in [
        json!({}),
        json!({"car": "gt"}),
        json!({"car": "GT 40", "item": "Big Wing"}),
        json!({"car": 7, "item": 7}),
        json!({"car": "", "item": ""}),
        json!({"car": "a".repeat(33), "item": "a".repeat(33)}),
        json!({"car": "gt", "item": "wing"}),
        json!({"car": "gt", "item": "wing", "price": 0}),
    ] {
        for (method, path) in &BODIES[5..] {
            // Two operations accept the second body. They get a 503, because no inventory worker runs.
            let valid = invalid == json!({"car": "gt"}) && (path.ends_with("car") || path.ends_with("cars"));
            let request = app.request("ann", method.clone(), path).json(&invalid);
            let (status, body) = read(request.send().await.unwrap()).await;
            assert_eq!(status, if valid { 503 } else { 422 }, "{path} {invalid}: {body}");
        }
    }
    let commands = [
        (Method::POST, TICKETS, ticket_request()),
        (Method::PUT, "/v1/garage/active-car", json!({"car": "gt"})),
        (Method::POST, "/v1/garage/cars", json!({"car": "gt"})),
        (Method::DELETE, "/v1/garage/cars/gt", json!({})),
        (Method::POST, "/v1/garage/items", json!({"item": "wing"})),
        (Method::DELETE, "/v1/garage/items/wing", json!({})),
        (Method::PUT, "/v1/garage/cars/gt/slots/spoiler", json!({"item": "wing"})),
        (Method::DELETE, "/v1/garage/cars/gt/slots/spoiler", json!({})),
    ];
    for (method, path, body) in &commands {
        for key in ["", "a b", &"k".repeat(129)] {
            let request = app.request("ann", method.clone(), path).header("Idempotency-Key", key).json(body);
            assert_eq!(read(request.send().await.unwrap()).await.0, 400, "{method} {path} {key:?}");
        }
    }
    for query in ["limit=0", "limit=101", "limit=x", "limit=-1", "before=x", "before=1&before=2", "after=1"] {
        assert_eq!(app.get("ann", &format!("/v1/wallet/ledger?{query}")).await.0, 400, "{query}");
    }
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn a_too_large_body_is_refused_by_every_operation() {
    let app = App::start().await;
    for (method, path) in endpoints() {
        let request = app.request("ann", method.clone(), &path).body(" ".repeat((16 << 10) + 1));
        assert_eq!(read(request.send().await.unwrap()).await.0, 413, "{method} {path}");
    }
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn a_too_large_body_without_content_length_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let app = App::start().await;
    let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
    let head = format!(
        "POST {TICKETS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        token("ann")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    stream.write_all(chunk.repeat(2).as_bytes()).await.unwrap();
    stream.write_all(b"1\r\n \r\n").await.unwrap();
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).await.unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 413");
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn a_socket_needs_a_handshake_a_token_and_a_valid_since() {
    let app = App::start().await;
    let bearer = format!("Bearer {}", token("ann"));
    let status = |result: Result<_, tokio_tungstenite::tungstenite::Error>| match result {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => 101,
    };
    assert_eq!(status(app.try_socket("", &[]).await), 401);
    assert_eq!(status(app.try_socket("", &[("Authorization", "Bearer x")]).await), 401);
    assert_eq!(status(app.try_socket("", &[("Sec-WebSocket-Protocol", "garage.v1, bearer.x")]).await), 401);
    for token in bad_tokens() {
        let (header, offer) = (format!("Bearer {token}"), format!("garage.v1, bearer.{token}"));
        assert_eq!(status(app.try_socket("", &[("Authorization", &header)]).await), 401, "{token}");
        assert_eq!(status(app.try_socket("", &[("Sec-WebSocket-Protocol", &offer)]).await), 401, "{token}");
    }
    for query in ["?since=x", "?since=-1", "?since=", "?from=1", "?since=1&since=2", "?since=18446744073709551616"] {
        assert_eq!(status(app.try_socket(query, &[("Authorization", &bearer)]).await), 400, "{query}");
    }
    // Beyond the end of the log.
    assert_eq!(status(app.try_socket("?since=1", &[("Authorization", &bearer)]).await), 400);
    assert_eq!(status(app.try_socket("?since=0", &[("Authorization", &bearer)]).await), 101);
    assert_eq!(app.get("ann", "/v1/ws").await.0, 426);
}
