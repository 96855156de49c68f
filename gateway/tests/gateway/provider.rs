//! A real identity provider: the npm package oidc-provider, started with node.

use std::{process::Stdio, time::Duration};

use garage_stack::servers::openid_provider;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::support::DEADLINE;

/// The audience of the tokens that the provider issues.
pub(crate) const AUDIENCE: &str = "https://game.example/api";

/// A running provider. It has one RSA key, `first`.
pub(crate) struct Provider {
    pub(crate) issuer: String,
    process: Child,
    http: reqwest::Client,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let packages = openid_provider().unwrap_or_else(|error| panic!("{error}"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc/provider.mjs");
        let mut command = Command::new("node");
        command.arg(script).arg(packages).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("node is not installed; run deploy/local/install.sh --tests");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let issuer = timeout(DEADLINE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the identity provider ended");
                if line.starts_with("http://") {
                    return line;
                }
            }
        });
        let issuer = issuer.await.unwrap();
        // Its output would block it once the pipe is full.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { issuer, process, http }
    }

    /// The flags of a gateway that trusts the provider's tokens for this game.
    pub(crate) fn flags(&self) -> Vec<String> {
        let issuer = &self.issuer;
        vec![
            format!("--jwks-url={issuer}/jwks"),
            format!("--jwt-issuer={issuer}"),
            format!("--jwt-audience=https://other.example,{AUDIENCE}"),
        ]
    }

    /// Makes the provider use these keys: pairs of an algorithm and a key id. A known id keeps its key.
    pub(crate) async fn keys(&self, keys: &[(&str, &str)]) {
        let keys: Vec<_> = keys.iter().map(|(alg, kid)| json!({"alg": alg, "kid": kid})).collect();
        self.ask("/test/keys", &json!(keys)).await;
    }

    /// A player's access token, signed with the provider's first key for `alg`.
    pub(crate) async fn token(&self, alg: &str, sub: &str, claims: Value) -> String {
        self.ask("/test/token", &json!({"alg": alg, "sub": sub, "claims": claims})).await
    }

    /// A player's token for another service.
    pub(crate) async fn token_for(&self, audience: &str, sub: &str) -> String {
        self.ask("/test/token", &json!({"sub": sub, "audience": audience})).await
    }

    /// The token of the studio's backend, from the provider's token endpoint.
    pub(crate) async fn backend(&self) -> String {
        let request = self.http.post(format!("{}/token", self.issuer)).basic_auth("backend", Some("backend-secret"));
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let request = request.body("grant_type=client_credentials&scope=matchmaking:groups");
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn ask(&self, path: &str, body: &Value) -> String {
        let answer = self.http.post(format!("{}{path}", self.issuer)).json(body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        text
    }

    pub(crate) async fn stop(mut self) {
        timeout(DEADLINE, self.process.kill()).await.unwrap().unwrap();
    }
}
