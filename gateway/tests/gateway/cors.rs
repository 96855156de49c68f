//! Web pages of configured origins can call the gateway from a browser.

use reqwest::{Client, Method, Response};
use tokio_tungstenite::tungstenite::Error;

use crate::support::{App, TICKETS, token};

const PAGE: &str = "https://game.example";
const OTHER: &str = "https://evil.example";

async fn app() -> App {
    App::start_with(|_| vec![format!("--cors-origins=http://localhost:3000,{PAGE}")]).await
}

/// A request as a browser sends it for a page. The support's requests are not used, because OpenAPI does not describe
/// preflight requests.
async fn request(app: &App, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Client::new().request(method, format!("http://{}{path}", app.address));
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

async fn preflight(app: &App, path: &str, origin: &str) -> Response {
    request(app, Method::OPTIONS, path, &[("Origin", origin), ("Access-Control-Request-Method", "GET")]).await
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_preflight_request_gets_the_methods_of_the_path() {
    let app = app().await;
    for (path, methods) in [
        (TICKETS, "POST"),
        ("/v1/matchmaking/tickets/0198c5a0-7b1e-7c3d-8000-0123456789ab", "GET, DELETE"),
        ("/v1/garage/cars/gt/slots/spoiler", "PUT, DELETE"),
        ("/v1/ping", "GET"),
    ] {
        let response = preflight(&app, path, PAGE).await;
        assert_eq!(response.status(), 204, "{path}");
        for (name, value) in [
            ("access-control-allow-origin", PAGE),
            ("access-control-allow-methods", methods),
            ("access-control-allow-headers", "Authorization, Content-Type, Idempotency-Key"),
            ("access-control-max-age", "7200"),
            ("vary", "Origin"),
        ] {
            assert_eq!(header(&response, name), Some(value), "{path} {name}");
        }
        assert_eq!(header(&response, "content-type"), None);
        assert_eq!(response.text().await.unwrap(), "");
    }
    assert_eq!(preflight(&app, "/v1/nowhere", PAGE).await.status(), 404);
    assert_eq!(request(&app, Method::OPTIONS, TICKETS, &[("Origin", PAGE)]).await.status(), 405, "not a preflight");
}

#[tokio::test]
async fn a_configured_page_can_read_every_answer_also_errors() {
    let app =
        App::start_with(|_| vec![format!("--cors-origins={PAGE}"), "--max-connections-per-player=1".into()]).await;
    let _socket = app.socket("full", None).await;
    let [ann, bob, full] = ["ann", "bob", "full"].map(|player| format!("Bearer {}", token(player)));
    let large = "x".repeat(17 << 10);
    let url = |path: &str| format!("http://{}{path}", app.address);
    let from_page = |method, path: &str| Client::new().request(method, url(path)).header("Origin", PAGE);
    for (request, status) in [
        (from_page(Method::GET, "/v1/regions").header("Authorization", &ann), 200),
        (from_page(Method::GET, "/v1/regions"), 401),
        (from_page(Method::GET, "/v1/nowhere"), 404),
        (from_page(Method::PATCH, "/v1/regions"), 405),
        (from_page(Method::POST, TICKETS).header("Authorization", &bob).body(large), 413),
        (from_page(Method::GET, "/v1/regions").header("Authorization", &full), 429),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(header(&response, "access-control-allow-origin"), Some(PAGE), "{status}");
        assert_eq!(header(&response, "access-control-expose-headers"), Some("Retry-After, Location"), "{status}");
        assert_eq!(header(&response, "vary"), Some("Origin"), "{status}");
        assert_eq!(header(&response, "access-control-allow-credentials"), None, "{status}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_gets_no_cors_headers() {
    let app = app().await;
    for origin in
        [OTHER, "null", "https://game.example.evil.example", "http://game.example", "https://game.example:8443"]
    {
        let response = preflight(&app, TICKETS, origin).await;
        assert_eq!((response.status().as_u16(), header(&response, "allow")), (405, Some("POST")), "{origin}");
        let response = request(&app, Method::GET, "/v1/ping", &[("Origin", origin)]).await;
        assert_eq!(response.status(), 204, "{origin}");
        assert_eq!(header(&response, "access-control-allow-origin"), None, "{origin}");
        assert_eq!(header(&response, "vary"), Some("Origin"), "a cache must not give this answer to {PAGE}");
    }
    let response = request(&app, Method::GET, "/v1/ping", &[]).await;
    assert_eq!((header(&response, "access-control-allow-origin"), header(&response, "vary")), (None, Some("Origin")));
}

#[tokio::test]
async fn without_configured_origins_nothing_changes() {
    let app = App::start().await;
    assert_eq!(preflight(&app, TICKETS, PAGE).await.status(), 405);
    let response = request(&app, Method::GET, "/v1/ping", &[("Origin", PAGE)]).await;
    assert_eq!((header(&response, "access-control-allow-origin"), header(&response, "vary")), (None, None));
    let authorization = format!("Bearer {}", token("ann"));
    assert!(app.try_socket("", &[("Authorization", &authorization), ("Origin", OTHER)]).await.is_ok());
}

#[tokio::test]
async fn only_configured_pages_and_other_programs_can_open_sockets() {
    let app = app().await;
    let authorization = format!("Bearer {}", token("ann"));
    let open = async |origin: Option<&str>| {
        let origin = origin.map(|origin| ("Origin", origin));
        let headers: Vec<_> = [("Authorization", authorization.as_str())].into_iter().chain(origin).collect();
        match app.try_socket("", &headers).await {
            Ok((_, response)) => response.status().as_u16(),
            Err(Error::Http(response)) => response.status().as_u16(),
            Err(error) => panic!("{error}"),
        }
    };
    for (origin, status) in [(Some(PAGE), 101), (None, 101), (Some(OTHER), 403), (Some("null"), 403)] {
        assert_eq!(open(origin).await, status, "{origin:?}");
    }
}
