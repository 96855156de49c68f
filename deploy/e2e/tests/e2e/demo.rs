//! `garage demo`, as a user starts it.

use std::{fs, path::Path};

use garage_stack::{
    process::{Launch, Process},
    workers::binary,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::support::{acquire_permit, until};

/// A demo of four players. Everything that it starts has its temporary folder here, and is found by this folder.
pub(crate) struct Demo {
    pub(crate) process: Process,
    folder: TempDir,
}

impl Demo {
    fn start(env: &[(&str, &str)]) -> Self {
        Self::start_with(&[], env)
    }

    /// Starts a demo with more arguments.
    pub(crate) fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("garage-e2e-demo-").tempdir().unwrap();
        let mut launch = Launch::new("garage demo", binary("garage").unwrap(), folder.path().join("printed"))
            .args(["demo", "--players", "4"])
            .args(args)
            .env("TMPDIR", folder.path())
            .env("GARAGE_KEY_POOL", "4")
            .env("GARAGE_GAME_ARG", "--distance-m 20 --join-timeout-ms 4000 --race-timeout-ms 15000");
        for (name, value) in env {
            launch = launch.env(name, value);
        }
        Self { process: launch.spawn().unwrap(), folder }
    }

    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap()
    }

    pub(crate) async fn until_printed(&self, text: &str) {
        until(text, async || self.printed().contains(text).then_some(())).await;
    }

    /// Waits for its end. Returns its exit code.
    pub(crate) async fn code(&mut self) -> Option<i32> {
        until("the demo ends", async || self.process.try_wait().unwrap()).await.code()
    }

    /// The demo's descendant processes that still run.
    fn running_processes(&self) -> Vec<(Pid, String)> {
        let ours = |entry: fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let folder = self.folder.path().to_str()?;
            // redis-server overwrites its arguments. A game server does not inherit its parent's environment or folder.
            let names_folder = command.contains(folder) || String::from_utf8_lossy(&read("environ")).contains(folder);
            let within = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.folder.path()));
            let zombie = command.is_empty();
            ((names_folder || within) && !zombie && pid != i32::try_from(std::process::id()).ok()?)
                .then_some((Pid::from_raw(pid), command))
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(ours).collect()
    }

    /// Asserts that all four players have raced and were paid, and that the demo left nothing on this machine.
    pub(crate) async fn assert_succeeds(&mut self) {
        assert_eq!(self.code().await, Some(0));
        let printed = self.printed();
        for row in ["Queued", "Matched", "PlayerMatched", "Finished", "RewardGranted", "paid (seen by the players)"] {
            assert!(printed_counts(&printed).contains(&(row, "4")), "{row} in {:?}", printed_counts(&printed));
        }
        assert!(!printed.contains("did not end within"), "a process had to be killed");
        self.assert_nothing_left().await;
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 1, "files besides its output are left");
    }

    pub(crate) async fn assert_nothing_left(&self) {
        until("every process of the demo has ended", async || self.running_processes().is_empty().then_some(())).await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "\n==== the demo printed\n{}\n==== still running: {:?}",
                self.printed(),
                self.running_processes()
            );
        }
        self.process.kill();
        for (pid, _) in self.running_processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn printed_counts(text: &str) -> Vec<(&str, &str)> {
    let counts = text.lines().skip_while(|line| !line.trim_start().starts_with("players ")).skip(1);
    counts.map_while(|line| line.trim().rsplit_once("  ")).map(|(name, count)| (name.trim(), count.trim())).collect()
}

#[tokio::test]
async fn a_demo_succeeds_on_one_and_on_three_nats_nodes_and_prints_its_counts() {
    let _permit = acquire_permit().await;
    for nodes in ["1", "3"] {
        let mut demo = Demo::start_with(&["--nats-nodes", nodes], &[]);
        demo.assert_succeeds().await;
    }
}

#[tokio::test]
async fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let _permit = acquire_permit().await;
    // While it starts, before any match, and during the races.
    for moment in ["starting NATS", "players queue", "game servers run"] {
        let mut demo = Demo::start(&[("GARAGE_GAME_ARG", "--distance-m 50000")]);
        if moment == "game servers run" {
            let game = |(_, command): &(Pid, String)| command.contains("garage-gameserver --config");
            until(moment, async || {
                (demo.running_processes().iter().filter(|one| game(one)).count() == 2).then_some(())
            })
            .await;
        } else {
            demo.until_printed(moment).await;
        }
        demo.process.signal(Signal::SIGINT).unwrap();
        assert_eq!(demo.code().await, Some(1), "{moment}");
        assert!(demo.printed().contains("error: interrupted"), "{moment}");
        demo.assert_nothing_left().await;
        assert_eq!(fs::read_dir(demo.folder.path()).unwrap().count(), 1, "{moment}: files besides its output are left");
    }
}

#[tokio::test]
async fn a_demo_whose_game_servers_break_names_a_player_and_the_last_event() {
    let _permit = acquire_permit().await;
    assert!(Path::new("/bin/false").exists());
    let mut demo = Demo::start(&[("GARAGE_GAMESERVER", "/bin/false"), ("GARAGE_ATTEMPTS", "1")]);
    assert_eq!(demo.code().await, Some(1));
    let printed = demo.printed();
    let error = printed.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("player bot-") && error.contains("after Released"), "{error}");
    assert!(error.contains("waiting for PlayerMatched") && error.contains("failed"), "{error}");
    // It prints the player's events, and where the workers' logs are.
    for word in ["PodFailed", "Released", "logs are kept in"] {
        assert!(printed.contains(word), "{word}");
    }
    demo.assert_nothing_left().await;
}
