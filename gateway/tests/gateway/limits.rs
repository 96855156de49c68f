//! Limits and time-outs for connections.

use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{App, DEADLINE, read, token};

#[tokio::test]
async fn a_connection_without_a_complete_request_is_closed() {
    let app = App::start().await;
    let head = format!("GET /v1/regions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n", token("ann"));
    let whole = format!("{head}\r\n");
    let body = format!("{}Content-Length: 9\r\n\r\n{{", head.replace("GET", "POST"));
    let answers = ["", head.as_str(), whole.as_str(), body.as_str()].map(async |bytes: &str| {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer.chars().take(12).collect::<String>()
    });
    let answers = futures::future::join_all(answers).await;
    assert_eq!(answers[2..], ["HTTP/1.1 200", "HTTP/1.1 408"]);
    assert!(answers[..2].iter().all(|answer| !answer.contains("200")), "{answers:?}");
}

#[tokio::test]
async fn a_too_large_head_is_refused() {
    let app = App::start().await;
    let request = app.anonymous(Method::GET, "/v1/regions").header("X", "x".repeat(32 << 10));
    assert_eq!(request.send().await.unwrap().status().as_u16(), 431);
}

#[tokio::test]
async fn a_client_that_sends_requests_but_reads_no_answers_is_disconnected() {
    let app = App::start_with(|_| ["--max-connections=1", "--limit-reads=off"].map(String::from).into()).await;
    let socket = TcpSocket::new_v4().unwrap();
    // A small buffer fills up quickly.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stream = socket.connect(app.address).await.unwrap();
    let request = format!("GET /v1/regions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", token("ann"));
    // A write fails after the gateway has closed the connection.
    let requests = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    timeout(DEADLINE, requests).await.unwrap();
    // Until then, the gateway is full and closes new connections.
    let answered = async {
        loop {
            if let Ok(response) = app.request("ann", Method::GET, "/v1/regions").send().await {
                return read(response).await.0;
            }
        }
    };
    assert_eq!(timeout(DEADLINE, answered).await.unwrap(), 200);
}
