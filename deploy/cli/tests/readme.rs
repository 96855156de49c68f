//! Runs the commands of "Your first match by hand" from the README exactly as they are written.
#![cfg(test)]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use garage_events::deadline::exit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// Time limit of each step. The script also installs a Python package, which pip may have to download.
const DEADLINE: Duration = Duration::from_secs(120);

/// The shell block after the mark `<!-- by-hand -->`.
fn by_hand(readme: &str) -> Option<&str> {
    let (_, rest) = readme.split_once("<!-- by-hand -->\n```sh\n")?;
    rest.split_once("```").map(|(block, _)| block)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A running `garage up`, and the variables that it tells the user to export in another shell.
struct Up {
    process: Child,
    exports: Vec<(String, String)>,
}

impl Up {
    async fn start(root: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_garage"));
        command.arg("up").current_dir(workspace()).env("GARAGE_ROOT", root).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn()?;
        let mut printed = BufReader::new(process.stdout.take().context("stdout is piped")?).lines();
        let mut exports = Vec::new();
        let up = async {
            while let Some(line) = printed.next_line().await? {
                if let Some(export) = line.strip_prefix("export ") {
                    let (name, value) = export.split_once('=').context("an export has a value")?;
                    exports.push((name.to_owned(), value.to_owned()));
                }
                if line.contains("Ctrl-C") {
                    return Ok(());
                }
            }
            anyhow::bail!("garage up ended before it was ready")
        };
        timeout(DEADLINE, up).await.context("garage up is not ready in time")??;
        Ok(Self { process, exports })
    }

    /// Runs a script in a shell with the exported variables, and returns what it printed.
    async fn shell(&self, script: &str) -> anyhow::Result<String> {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).current_dir(workspace()).envs(self.exports.iter().cloned());
        let output = timeout(DEADLINE, shell.stdin(Stdio::null()).kill_on_drop(true).output());
        let output = output.await.context("the script does not end in time")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// Stops it as Ctrl-C does.
    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("garage up has already ended")?;
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGINT)?;
        let status = exit(&mut self.process, DEADLINE).await.context("garage up does not end in time")?;
        anyhow::ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Checks what the block printed, and returns the id of its session.
fn check(text: &str) -> anyhow::Result<String> {
    // sha256sum's line for the certificate's key, and right below it the fingerprint from PlayerMatched.
    let lines: Vec<_> = text.lines().collect();
    let equal = lines.windows(2).any(|pair| pair[0].len() == 67 && pair[0].trim_end_matches("  -") == pair[1]);
    anyhow::ensure!(equal, "the game server's key is not the one that PlayerMatched announced:\n{text}");
    for word in
        ["\"status\":\"waiting\"", "\"type\":\"PlayerMatched\"", "\"status\":\"open\"", "\"token\":", "PodReady"]
    {
        anyhow::ensure!(text.contains(word), "no {word} in:\n{text}");
    }
    let (_, matched) = text.split_once("\"session\":\"").context("no frame names the session")?;
    Ok(matched.chars().take_while(|c| *c != '"').collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_match_by_hand_works_as_the_readme_says_and_works_again() -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(workspace().join("README.md"))?;
    let block = by_hand(&readme).context("README.md has no shell block after <!-- by-hand -->")?;
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path()).await?;
    let first = check(&up.shell(block).await?)?;
    let both_idle = format!(
        "me() {{ curl -sS \"$GATEWAY/v1/players/me\" -H \"Authorization: Bearer $({} token $1)\"; }}
         for player in anna bert; do until me $player | grep -q '\"status\":\"idle\"'; do sleep 0.2; done; done",
        env!("CARGO_BIN_EXE_garage")
    );
    up.shell(&both_idle).await?;
    let second = check(&up.shell(block).await?)?;
    assert_ne!(first, second);
    up.stop().await
}
