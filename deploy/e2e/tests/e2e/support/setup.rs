//! The configuration of a test's Garage.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use garage_events::jetstream::JetStreamLog;
use garage_stack::{
    servers::Role,
    small_disk::SmallDisk,
    workers::{Games, Options, Pods, Stack, binary},
};
use tokio::sync::Mutex;

use super::{Garage, acquire_permit, hostile::Hostile, operations};

/// Races that take two or three seconds. If a session worker is paused, it may take a player more than 20 seconds to get
/// a connection token: the paused worker receives half of the requests.
const SHORT: &str = "--distance-m 20 --join-timeout-ms 60000 --race-timeout-ms 15000";

/// Races that last longer than a test, and that start when both players have joined.
const LONG: &str = "--distance-m 50000 --join-timeout-ms 30000 --race-timeout-ms 600000";

/// Configures a Garage. [`Setup::start`] starts it.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    options: Options,
    game_arg: &'static str,
    queues: Option<&'static str>,
    rule_sets: Vec<(&'static str, String)>,
    game_server: Option<&'static str>,
    backup: Option<PathBuf>,
    disk_mib: Option<u64>,
    kubeconfig: Option<String>,
}

impl Setup {
    /// One instance of each worker, and short races.
    pub(crate) fn short() -> Self {
        // A pool of 32 keys would keep a core busy for the first seconds of each test.
        let keys = ("GARAGE_KEY_POOL".into(), "4".into());
        // A machine that is busy with other work must not cost an attempt.
        let ready = ("GARAGE_READY_S".into(), "60".into());
        let env = vec![keys, ready];
        let options = Options { env, ..Options::default() };
        Self {
            options,
            game_arg: SHORT,
            queues: None,
            rule_sets: Vec::new(),
            game_server: None,
            backup: None,
            disk_mib: None,
            kubeconfig: None,
        }
    }

    /// Like [`Setup::short`], with races that do not end.
    pub(crate) fn long() -> Self {
        Self { game_arg: LONG, ..Self::short() }
    }

    /// Sets an environment variable of every worker.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.options.env.push((name.into(), value.into()));
        self
    }

    /// Sets the number of instances of each worker.
    pub(crate) fn instances(mut self, instances: usize) -> Self {
        self.options.instances = instances;
        self
    }

    /// Uses three NATS nodes whose routes can be cut.
    pub(crate) fn three_nodes(mut self) -> Self {
        (self.options.nats_nodes, self.options.cuttable) = (3, true);
        self
    }

    /// Uses other queues, in TOML.
    pub(crate) fn queues(mut self, queues: &'static str) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Adds the file of a rule set, which the queues can name.
    pub(crate) fn rule_set(mut self, file: &'static str, text: impl Into<String>) -> Self {
        self.rule_sets.push((file, text.into()));
        self
    }

    /// Starts each game server by a shell script. `$config` is the path of its configuration, which ends in
    /// `-<attempt>/config.json`. `real` runs the real game server, and `hang` runs for longer than any test, without
    /// output. A script that ends without `exit` also runs the real game server.
    pub(crate) fn game_server(mut self, script: &'static str) -> Self {
        self.game_server = Some(script);
        self
    }

    /// Runs the game servers as pods of the namespace `games`, in the cluster of this kubeconfig.
    pub(crate) fn on_cluster(mut self, kubeconfig: &str) -> Self {
        self.kubeconfig = Some(kubeconfig.into());
        self
    }

    /// Restores a backup to the servers before the workers start.
    pub(crate) fn restored(mut self, backup: &Path) -> Self {
        self.backup = Some(backup.to_owned());
        self
    }

    /// Gives each NATS node a disk of its own, of this size, which the test can fill: [`Garage::disk`].
    pub(crate) fn small_disks(mut self, mib: u64) -> Self {
        self.disk_mib = Some(mib);
        self
    }

    /// Starts the Garage as soon as one more may run.
    pub(crate) async fn start(mut self) -> Garage {
        let permit = acquire_permit().await;
        let folder = tempfile::Builder::new().prefix("garage-e2e-").tempdir().unwrap();
        let root = folder.path().join("root");
        let disk = self.disk_mib.map(|mib| {
            let stores: Vec<_> = (1..=self.options.nats_nodes).map(|node| format!("nats-{node}/jetstream")).collect();
            SmallDisk::mount(&root, &stores, mib).unwrap_or_else(|error| panic!("{error}"))
        });
        self.options.env.push(("GARAGE_GAME_ARG".into(), self.game_arg.into()));
        if let Some(queues) = self.queues {
            let file = folder.path().join("queues.toml");
            fs::write(&file, queues).unwrap();
            for (name, text) in self.rule_sets {
                fs::write(folder.path().join(name), text).unwrap();
            }
            self.options.queues = Some(file);
        }
        if let Some(script) = self.game_server {
            let file = folder.path().join("gameserver.sh");
            write_game_server(&file, script, &root);
            self.options.env.push(("GARAGE_GAMESERVER".into(), file.to_str().unwrap().into()));
        }
        if let Some(kubeconfig) = self.kubeconfig {
            let file = folder.path().join("kubeconfig");
            fs::write(&file, kubeconfig).unwrap();
            self.options.games = Games::Kube(Pods {
                kubeconfig: file,
                namespace: "games".into(),
                image: "gameserver:test".into(),
                pull_policy: "Never".into(),
                advertise: Ipv4Addr::LOCALHOST.into(),
            });
        }
        if let Some(backup) = &self.backup {
            operations::restore(&root, self.options.nats_nodes, backup).await;
        }
        let stack = Stack::start(&root, self.options).await.unwrap_or_else(|error| panic!("{error}"));
        let admin = stack.nats.connect(Role::Admin).await.unwrap();
        let log = JetStreamLog::open(admin.clone()).await.unwrap();
        let http = reqwest::Client::new();
        Garage {
            stack,
            admin,
            log,
            http,
            read: Mutex::default(),
            disk,
            hostile: Hostile::default(),
            folder: Some(folder),
            _permit: permit,
        }
    }
}

/// Writes a game server script.
fn write_game_server(file: &Path, script: &str, root: &Path) {
    let real = binary("garage-gameserver").unwrap();
    let text = format!(
        "#!/bin/sh\n\
         config=$2\n\
         root={root}\n\
         real() {{ exec {real} --config \"$config\" \"$@\"; }}\n\
         hang() {{ exec sleep 6000; }}\n\
         shift 2\n\
         {script}\n\
         real \"$@\"\n",
        real = real.display(),
        root = root.display(),
    );
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}
