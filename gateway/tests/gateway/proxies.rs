//! The client's address behind a proxy. `127.0.0.2` is a configured proxy, `127.0.0.3` is not. An address can have one
//! connection without a valid token, so that the tests see for which address a connection counts.

use std::net::SocketAddr;

use proxy_header::{ProxiedAddress, ProxyHeader};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    connections::{Client, bearer},
    support::{App, DEADLINE},
};

const PROXY: u8 = 2;
const OTHER: u8 = 3;

async fn app(header: &str) -> App {
    let flags = ["--max-unauthenticated-per-address=1".into(), "--trusted-proxies=127.0.0.2".into()];
    App::start_with(|_| flags.into_iter().chain([format!("--proxy-header={header}")]).collect()).await
}

fn header(client: &str) -> ProxyHeader<'static> {
    let client: SocketAddr = client.parse().unwrap();
    let gateway = if client.is_ipv4() { "192.0.2.200:443" } else { "[2001:db8::200]:443" };
    ProxyHeader::with_address(ProxiedAddress::stream(client, gateway.parse().unwrap()))
}

fn v1(client: &str) -> Vec<u8> {
    let mut bytes = [0; 256];
    let length = header(client).encode_to_slice_v1(&mut bytes).unwrap();
    bytes[..length].to_vec()
}

fn v2(client: &str) -> Vec<u8> {
    let mut bytes = [0; 256];
    let length = header(client).encode_to_slice_v2(&mut bytes).unwrap();
    bytes[..length].to_vec()
}

/// A connection that begins with these bytes, and the status of its first request.
async fn opened(app: &App, from: u8, bytes: &[u8]) -> (Client, Option<u16>) {
    let mut client = Client::from(app, from).await;
    client.send(bytes).await;
    let status = client.get("").await;
    (client, status)
}

#[tokio::test]
async fn a_connection_counts_for_the_client_that_a_trusted_proxy_names_in_a_proxy_header() {
    let app = app("proxy-protocol").await;
    let mut open: Vec<Client> = Vec::new();
    // Each header, and the number of the earlier connection that ends because it is from the same client.
    for (bytes, ended) in [
        (v1("192.0.2.1:4001"), None),
        (v1("192.0.2.1:4002"), Some(0)),
        (v2("192.0.2.1:4003"), Some(1)),
        (v2("192.0.2.2:4001"), None),
        (v1("192.0.2.2:4002"), Some(3)),
        (v1("[2001:db8::1]:4001"), None),
        (v2("[2001:db8::2]:4001"), Some(5)),
        (v2("[2001:db8:0:1::2]:4001"), None),
        // The proxy itself.
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
    ] {
        let (client, status) = opened(&app, PROXY, &bytes).await;
        assert_eq!(status, Some(401), "{}", String::from_utf8_lossy(&bytes));
        open.push(client);
        if let Some(ended) = ended {
            assert_eq!(open[ended].closed().await, "");
        }
    }
    for still_open in [2, 4, 6, 7, 8] {
        assert_eq!(open[still_open].get("").await, Some(401));
    }
    // A header that arrives in parts, together with the beginning of the request.
    let mut slow = Client::from(&app, PROXY).await;
    for byte in v1("192.0.2.9:4001") {
        slow.0.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(slow.get(&bearer("ann")).await, Some(200));
}

#[tokio::test]
async fn a_connection_of_a_trusted_proxy_without_a_valid_proxy_header_is_closed() {
    let app = app("proxy-protocol").await;
    let request = format!("GET /v1/regions HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer("ann")).into_bytes();
    let too_long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
    // The last two are late: the gateway waits for more until its deadline.
    let broken = [
        request.clone(),
        b"PROXY TCP4 192.0.2.1 192.0.2.200 4001 99999\r\n".to_vec(),
        b"PROXY TCP5 192.0.2.1 192.0.2.200 4001 443\r\n".to_vec(),
        [&v2("192.0.2.1:4001")[..12], b"\x31\0\0\0"].concat(),
        too_long,
        v1("192.0.2.1:4001")[..20].to_vec(),
        Vec::new(),
    ];
    let answers = broken.map(async |bytes| {
        let mut client = Client::from(&app, PROXY).await;
        client.send(&bytes).await;
        (client.closed().await, bytes)
    });
    for (answer, bytes) in futures::future::join_all(answers).await {
        assert_eq!(answer, "", "{}", String::from_utf8_lossy(&bytes));
    }
    let mut truncated = Client::from(&app, PROXY).await;
    truncated.send(&v2("192.0.2.1:4001")[..20]).await;
    truncated.0.shutdown().await.unwrap();
    assert_eq!(truncated.closed().await, "");
}

#[tokio::test]
async fn a_proxy_header_from_another_address_is_a_bad_request() {
    let app = app("proxy-protocol").await;
    for bytes in [v1("192.0.2.1:4001"), v2("192.0.2.1:4001")] {
        let mut client = Client::from(&app, OTHER).await;
        client.send(&bytes).await;
        let answer = client.closed().await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let (mut client, status) = opened(&app, OTHER, b"").await;
    assert_eq!(status, Some(401), "without a header, the client is served");
    assert_eq!(client.get(&bearer("ann")).await, Some(200));
}

/// The status of a request with this value of `Forwarded`, while another request of 192.0.2.1 is probably in progress:
/// the body of that request does not arrive.
async fn during_another_request(app: &App, from: &str) -> Option<u16> {
    let head = "POST /v1/garage/cars HTTP/1.1\r\nHost: x\r\nForwarded: for=192.0.2.1\r\nContent-Length: 9\r\n\r\n";
    let (mut other, mut proxy) = (Client::from(app, PROXY).await, Client::from(app, PROXY).await);
    other.send(head).await;
    proxy.get(&format!("Forwarded: {from}\r\n")).await
}

#[tokio::test]
async fn a_request_counts_for_the_client_that_a_trusted_proxy_names_in_forwarded() {
    let app = app("forwarded").await;
    for from in ["for=192.0.2.1", "for=192.0.2.2, for=\"192.0.2.1:4001\"", "for=192.0.2.1, for=127.0.0.2"] {
        let refused = async { while during_another_request(&app, from).await != Some(429) {} };
        timeout(DEADLINE, refused).await.unwrap();
    }

    // One connection carries requests of several clients.
    let mut proxy = Client::from(&app, PROXY).await;
    for (from, expected) in [
        ("Forwarded: for=192.0.2.2\r\n", 401),
        ("Forwarded: for=192.0.2.1, for=192.0.2.2\r\n", 401),
        ("Forwarded: for=192.0.2.1\r\nForwarded: for=192.0.2.2\r\n", 401),
        ("Forwarded: for=unknown\r\n", 401),
        ("X-Forwarded-For: 192.0.2.1\r\n", 401),
        ("", 401),
    ] {
        assert_eq!(proxy.get(from).await, Some(expected), "{from}");
    }
    let with_token = format!("Forwarded: for=192.0.2.1\r\n{}", bearer("ann"));
    assert_eq!(proxy.get(&with_token).await, Some(200), "a valid token");
    let mut other = Client::from(&app, OTHER).await;
    assert_eq!(other.get("Forwarded: for=192.0.2.1\r\n").await, Some(401), "not a proxy, so the header is ignored");
    assert_eq!(Client::from(&app, OTHER).await.get("").await, Some(401));
    assert_eq!(other.closed().await, "", "its own address counts");
}
