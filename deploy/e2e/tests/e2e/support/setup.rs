//! How a test's Garage is to be.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use garage_events::jetstream::JetStreamLog;
use garage_stack::{
    servers::Role,
    workers::{Options, Stack, binary},
};
use tokio::sync::Mutex;

use super::{Garage, operations, place};

/// Races of two or three seconds.
const SHORT: &str = "--distance-m 20 --join-timeout-ms 20000 --race-timeout-ms 15000";

/// Races that nobody finishes while a test runs, and that begin when both are there.
const LONG: &str = "--distance-m 50000 --join-timeout-ms 30000 --race-timeout-ms 600000";

/// How a Garage is to be; then [`Setup::start`].
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    options: Options,
    game_arg: &'static str,
    queues: Option<&'static str>,
    game_server: Option<&'static str>,
    backup: Option<PathBuf>,
}

impl Setup {
    /// One of everything, and short races.
    pub(crate) fn short() -> Self {
        // A pool of 32 keys would keep a core busy for the first seconds of each test.
        let env = vec![("GARAGE_KEY_POOL".into(), "4".into())];
        let options = Options { env, ..Options::default() };
        Self { options, game_arg: SHORT, queues: None, game_server: None, backup: None }
    }

    /// The same with races that do not end.
    pub(crate) fn long() -> Self {
        Self { game_arg: LONG, ..Self::short() }
    }

    /// A variable for every worker.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.options.env.push((name.into(), value.into()));
        self
    }

    /// So many instances of each worker.
    pub(crate) fn instances(mut self, instances: usize) -> Self {
        self.options.instances = instances;
        self
    }

    /// Three nodes of NATS whose routes can be cut.
    pub(crate) fn three_nodes(mut self) -> Self {
        (self.options.nats_nodes, self.options.cuttable) = (3, true);
        self
    }

    /// Other queues, in TOML.
    pub(crate) fn queues(mut self, queues: &'static str) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Another game server: a piece of shell. `$config` is the path of its configuration, which ends in
    /// `-<attempt>/config.json`; `real` is the real one, and `hang` says nothing for ever. Where it says nothing else it
    /// is the real one.
    pub(crate) fn game_server(mut self, script: &'static str) -> Self {
        self.game_server = Some(script);
        self
    }

    /// On servers to which a backup is restored first.
    pub(crate) fn restored(mut self, backup: &Path) -> Self {
        self.backup = Some(backup.to_owned());
        self
    }

    /// Starts it, as soon as there is a place.
    pub(crate) async fn start(mut self) -> Garage {
        let place = place().await;
        let folder = tempfile::Builder::new().prefix("garage-e2e-").tempdir().unwrap();
        let root = folder.path().join("root");
        self.options.env.push(("GARAGE_GAME_ARG".into(), self.game_arg.into()));
        if let Some(queues) = self.queues {
            let file = folder.path().join("queues.toml");
            fs::write(&file, queues).unwrap();
            self.options.queues = Some(file);
        }
        if let Some(script) = self.game_server {
            let file = folder.path().join("gameserver.sh");
            write_game_server(&file, script, &root);
            self.options.env.push(("GARAGE_GAMESERVER".into(), file.to_str().unwrap().into()));
        }
        if let Some(backup) = &self.backup {
            operations::restore(&root, self.options.nats_nodes, backup).await;
        }
        let stack = Stack::start(&root, self.options).await.unwrap_or_else(|error| panic!("{error}"));
        let admin = stack.nats.connect(Role::Admin).await.unwrap();
        let log = JetStreamLog::open(admin.clone()).await.unwrap();
        let http = reqwest::Client::new();
        Garage { stack, admin, log, http, read: Mutex::default(), folder: Some(folder), _place: place }
    }
}

/// Everything that a script does is done by the process whose command line names the configuration: that is how it is
/// found again. `exec` of something that is no game server would hide it.
fn write_game_server(file: &Path, script: &str, root: &Path) {
    let real = binary("garage-gameserver").unwrap();
    let text = format!(
        "#!/bin/sh\n\
         config=$2\n\
         root={root}\n\
         real() {{ exec {real} --config \"$config\" \"$@\"; }}\n\
         hang() {{ while :; do sleep 1; done; }}\n\
         shift 2\n\
         {script}\n\
         real \"$@\"\n",
        real = real.display(),
        root = root.display(),
    );
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}
