#![cfg(test)]
use clap::Parser as _;
use futures::StreamExt;
use tokio_tungstenite::{connect_async, tungstenite::client::IntoClientRequest};
#[tokio::test]
async fn measure() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let nats = garage_stack::servers::Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(garage_stack::servers::Role::Admin).await.unwrap();
    garage_events::jetstream::setup::init(client.clone(), 1).await.unwrap();
    let key = folder.path().join("k");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    let (u, p) = nats.user(garage_stack::servers::Role::Gateway);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_garage-gateway"))
        .args([format!("--nats-url={}", nats.url()), format!("--nats-user={u}"), format!("--nats-password-file={}", p.display()),
            format!("--listen=127.0.0.1:{port}"), format!("--queues={}/../deploy/local/queues.toml", env!("CARGO_MANIFEST_DIR")),
            format!("--jwt-key-file={}", key.display())]).spawn().unwrap();
    let rss = || { let s = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        s.lines().find(|l| l.starts_with("VmRSS")).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() };
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() { tokio::time::sleep(std::time::Duration::from_millis(50)).await; }
    let key = garage_gateway::token::Key::load(&key).unwrap();
    let before = rss();
    let mut sockets = Vec::new();
    for n in 0..4000 {
        let mut r = format!("ws://127.0.0.1:{port}/v1/ws?since=0").into_client_request().unwrap();
        let t = garage_gateway::sign_token(&key, &format!("p{n}"), std::time::Duration::from_secs(600)).unwrap();
        r.headers_mut().insert("Authorization", format!("Bearer {}", t.expose()).parse().unwrap());
        let c = tokio_tungstenite::tungstenite::protocol::WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
        let (s, _) = tokio_tungstenite::connect_async_with_config(r, Some(c), false).await.unwrap();
        sockets.push(s);
        if n % 1000 == 999 { println!("{} sockets: {} KiB, {:.1} KiB each", n + 1, rss(), (rss() - before) as f64 / (n + 1) as f64); }
    }
    let _ = (connect_async::<&str>, garage_gateway::Config::try_parse_from(["x"]).is_err());
    sockets[0].close(None).await.unwrap();
    while let Some(Ok(_)) = sockets[0].next().await {}
    let began = std::time::Instant::now();
    std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let readers = sockets.into_iter().skip(1).map(|mut s| async move { let mut code = 0; while let Some(Ok(m)) = s.next().await { if let tokio_tungstenite::tungstenite::Message::Close(Some(f)) = m { code = f.code.into(); } } code });
    let codes: Vec<u16> = futures::future::join_all(readers).await;
    println!("{} closed 1001, exit {:?} after {:?}", codes.iter().filter(|c| **c == 1001).count(), child.wait().unwrap(), began.elapsed());
}
