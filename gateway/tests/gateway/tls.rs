//! TLS with a certificate from files.

use std::{fs, sync::Arc};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{App, token};

async fn app() -> App {
    App::start_with(|folder| {
        let generated = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let certificate = file("tls.crt", generated.cert.pem());
        let key = file("tls.key", generated.signing_key.serialize_pem());
        vec![format!("--tls-cert={certificate}"), format!("--tls-key={key}")]
    })
    .await
}

async fn connect(app: &App) -> TlsStream<TcpStream> {
    let certificate = CertificateDer::from_pem_file(app.folder.path().join("tls.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(app.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn requests_and_sockets_work_over_tls() {
    let app = app().await;
    let mut stream = connect(&app).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    let request = format!(
        "GET /v1/regions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        token("ann")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#"{"regions":["eu","us"],"#), "{answer}");

    let mut request = "ws://localhost/v1/ws?since=0".into_client_request().unwrap();
    request.headers_mut().insert("Authorization", format!("Bearer {}", token("ann")).parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, connect(&app).await).await.unwrap();
    let seqs = app.history("ann").await;
    for seq in seqs {
        let message = futures::StreamExt::next(&mut socket).await.unwrap().unwrap();
        assert!(message.to_text().unwrap().starts_with(&format!("{{\"seq\":{seq},")), "{message}");
    }
}

#[tokio::test]
async fn a_client_without_tls_does_not_block_other_clients() {
    let app = app().await;
    let mut plain = TcpStream::connect(app.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut silent = TcpStream::connect(app.address).await.unwrap();
    connect(&app).await;
    let mut answer = Vec::new();
    // The answer is a TLS alert or nothing, but not HTTP.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
    silent.shutdown().await.unwrap();
}
