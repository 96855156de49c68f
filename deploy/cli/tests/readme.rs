//! The README's match by hand, run as it is written.
#![cfg(test)]

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use garage_stack::{
    servers::Role,
    workers::{Options, Stack},
};
use tokio::process::Command;

/// With what pip downloads.
const DEADLINE: Duration = Duration::from_secs(120);

/// The first shell block after the mark.
fn by_hand(readme: &str) -> Option<&str> {
    let (_, rest) = readme.split_once("<!-- by-hand -->\n```sh\n")?;
    rest.split_once("```").map(|(block, _)| block)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_match_by_hand_goes_as_the_readme_says() -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(workspace.join("README.md"))?;
    let block = by_hand(&readme).context("the README has a block marked by-hand")?;
    let folder = tempfile::tempdir()?;
    let mut stack = Stack::start(folder.path(), Options::default()).await?;
    let (user, password_file) = stack.nats.user(Role::Admin);
    let shell = Command::new("bash")
        .args(["-euo", "pipefail", "-c", block])
        .current_dir(&workspace)
        .env("GATEWAY", stack.gateway())
        .env("GARAGE_GATEWAY_JWT_KEY_FILE", folder.path().join("secrets/jwt.key"))
        .env("GARAGE_NATS_URL", stack.nats.url())
        .env("GARAGE_NATS_USER", user)
        .env("GARAGE_NATS_PASSWORD_FILE", password_file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, shell).await.context("the block ends")??;
    stack.stop().await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // The certificate's fingerprint, as openssl sees it, and below it the one that was announced.
    let lines: Vec<_> = text.lines().collect();
    let seen = lines.windows(2).any(|pair| pair[0].len() == 67 && pair[0].trim_end_matches("  -") == pair[1]);
    assert!(seen, "the game server shows the announced key:\n{text}");
    for word in
        ["\"status\":\"waiting\"", "\"type\":\"PlayerMatched\"", "\"status\":\"open\"", "\"token\":", "PodReady"]
    {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    Ok(())
}
