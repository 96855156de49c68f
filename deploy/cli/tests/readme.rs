//! The README's match by hand, run as it is written.
#![cfg(test)]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// With what pip downloads.
const DEADLINE: Duration = Duration::from_secs(120);

/// The first shell block after the mark.
fn by_hand(readme: &str) -> Option<&str> {
    let (_, rest) = readme.split_once("<!-- by-hand -->\n```sh\n")?;
    rest.split_once("```").map(|(block, _)| block)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `garage up`, and what it printed to be exported in another shell.
struct Up {
    process: Child,
    exports: Vec<(String, String)>,
}

impl Up {
    async fn start(root: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_garage"));
        command.arg("up").current_dir(workspace()).env("GARAGE_ROOT", root).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn()?;
        let mut said = BufReader::new(process.stdout.take().context("it was piped")?).lines();
        let mut exports = Vec::new();
        let up = async {
            while let Some(line) = said.next_line().await? {
                if let Some(export) = line.strip_prefix("export ") {
                    let (name, value) = export.split_once('=').context("an export has a value")?;
                    exports.push((name.to_owned(), value.to_owned()));
                }
                if line.starts_with("Ctrl-C") {
                    return Ok(());
                }
            }
            anyhow::bail!("garage up has ended")
        };
        timeout(DEADLINE, up).await.context("it comes up")??;
        Ok(Self { process, exports })
    }

    /// Runs a script in a shell with its exports, and tells what it printed.
    async fn shell(&self, script: &str) -> anyhow::Result<String> {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).current_dir(workspace()).envs(self.exports.iter().cloned());
        let output = timeout(DEADLINE, shell.stdin(Stdio::null()).kill_on_drop(true).output());
        let output = output.await.context("the script ends")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// Ends it as Ctrl-C does.
    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("it runs")?;
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGINT)?;
        let status = timeout(DEADLINE, self.process.wait()).await.context("it ends")??;
        anyhow::ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// What the block must print: the session that it is about comes back.
fn check(text: &str) -> anyhow::Result<String> {
    // The certificate's fingerprint, as openssl sees it, and below it the one that was announced.
    let lines: Vec<_> = text.lines().collect();
    let seen = lines.windows(2).any(|pair| pair[0].len() == 67 && pair[0].trim_end_matches("  -") == pair[1]);
    anyhow::ensure!(seen, "the game server shows the announced key:\n{text}");
    for word in
        ["\"status\":\"waiting\"", "\"type\":\"PlayerMatched\"", "\"status\":\"open\"", "\"token\":", "PodReady"]
    {
        anyhow::ensure!(text.contains(word), "no {word} in:\n{text}");
    }
    let (_, matched) = text.split_once("\"session\":\"").context("a frame names the session")?;
    Ok(matched.chars().take_while(|c| *c != '"').collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_match_by_hand_goes_as_the_readme_says_and_a_second_one_too() -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(workspace().join("README.md"))?;
    let block = by_hand(&readme).context("the README has a block marked by-hand")?;
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path()).await?;
    let first = check(&up.shell(block).await?)?;
    let over = format!(
        "me() {{ curl -sS \"$GATEWAY/v1/players/me\" -H \"Authorization: Bearer $({} token $1)\"; }}
         for player in anna bert; do until me $player | grep -q '\"status\":\"idle\"'; do sleep 0.2; done; done",
        env!("CARGO_BIN_EXE_garage")
    );
    up.shell(&over).await?;
    let second = check(&up.shell(block).await?)?;
    assert_ne!(first, second);
    up.stop().await
}
