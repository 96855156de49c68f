//! The gateway as `/openapi.json` describes it, and the description as the gateway behaves: schemathesis makes requests up
//! from the one, valid and not, and holds the other's answers to it.
//!
//! `SCHEMATHESIS_EXAMPLES` and `SCHEMATHESIS_SEED` ask for more, and for others.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use reqwest::Method;
use serde_json::Value;
use tokio::process::Command;

use crate::support::{Setup, play};

/// The path that is no request once it succeeds.
const SOCKET: &str = "/v1/ws";

/// Requests made up by default, at least.
const EXAMPLES: usize = 2_000;

/// For the installation, with what pip downloads.
const INSTALLING: Duration = Duration::from_secs(120);

/// For so many requests as are made by default; they take a third of it on two busy cores.
const RUNNING: Duration = Duration::from_secs(300);

fn asked(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Runs a program to its end: its exit code's meaning, and what it printed.
async fn run(program: &Path, args: &[&str], folder: &Path, within: Duration) -> (bool, String) {
    let mut command = Command::new(program);
    let running = command.args(args).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(within, running).await.expect("it ends in time").unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Installs schemathesis into the build's folder, where a later run finds it.
async fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let bin = folder.join("schemathesis/bin");
    let versions = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis.txt");
    let steps: [(&Path, &[&str]); 2] = [
        (Path::new("python3"), &["-m", "venv", "schemathesis"]),
        (&bin.join("pip"), &["install", "-q", "--no-deps", "-r", versions.to_str().unwrap()]),
    ];
    for (program, args) in steps {
        let (done, text) = run(program, args, folder, INSTALLING).await;
        assert!(done, "{} {args:?}:\n{text}", program.display());
    }
    bin.join("schemathesis")
}

/// How many operations there is something to make up for, besides who asks; the socket's is left out.
fn variable(description: &Value) -> usize {
    let paths = description["paths"].as_object().unwrap().iter().filter(|(path, _)| *path != SOCKET);
    let operations = paths.flat_map(|(_, item)| {
        let all = item["parameters"].is_array();
        let operations = item.as_object().unwrap().values().filter(|operation| operation.is_object());
        operations.filter(move |one| all || one["parameters"].is_array() || one["requestBody"].is_object())
    });
    operations.count()
}

#[tokio::test]
async fn requests_that_are_made_up_find_nothing_that_the_description_does_not_say() {
    let schemathesis = installed().await;
    let garage = Setup::short().start().await;
    let bots = garage.bots("player", 2);
    // So that the player has a match to ask for.
    let session = play(&bots).await.swap_remove(0).session;
    let description: Value = bots[0].ask(Method::GET, "/openapi.json", None).await.unwrap();
    let ids = async |path: &str, list: &str| {
        let things: Value = bots[0].ask(Method::GET, path, None).await.unwrap();
        let ids = things[list].as_array().unwrap().iter().map(|thing| thing["id"].clone());
        ids.collect::<Value>()
    };
    let (cars, items) = (ids("/v1/store/cars", "cars").await, ids("/v1/store/items", "items").await);
    let (examples, seed) = (asked("SCHEMATHESIS_EXAMPLES", EXAMPLES), asked("SCHEMATHESIS_SEED", 1));
    let each = examples.div_ceil(variable(&description));
    let token = garage.stack.token("player-0", None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"
seed = {seed}
continue-on-failure = true
# With more, Python 3.11 fails now and then: its parser of code counts its depth for all threads together.
workers = 1
# They are about how quickly requests are made up.
suppress-health-check = ["all"]
cache = {{ enabled = false }}

[generation]
max-examples = {each}
database = "none"

[auth.openapi.player]
bearer = "{token}"

[phases.stateful]
enabled = false

# What is valid may still name a queue that there is not, or a key that another command was sent with.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422"]

[[operations]]
include-path = "{SOCKET}"
enabled = false

[dictionaries]
cars = {{ values = {cars} }}
items = {{ values = {items} }}
ids = {{ values = ["{session}"] }}
queues = {{ values = ["casual", "ranked"] }}
slots = {{ values = ["engine", "tyres", "paint"] }}

# Half of what is named is there.
[parameters]
"path.car" = {{ dictionary = "cars", probability = 0.5 }}
"path.id" = {{ dictionary = "ids", probability = 0.5 }}
"path.item" = {{ dictionary = "items", probability = 0.5 }}
"path.slot" = {{ dictionary = "slots", probability = 0.5 }}
"body.car" = {{ dictionary = "cars", probability = 0.5 }}
"body.item" = {{ dictionary = "items", probability = 0.5 }}
"body.queue" = {{ dictionary = "queues", probability = 0.5 }}
"#
    );
    fs::write(folder.path().join("schemathesis.toml"), config).unwrap();
    let location = format!("{}/openapi.json", garage.stack.gateway());
    let within = RUNNING.mul_f64(examples.max(EXAMPLES) as f64 / EXAMPLES as f64);
    let (nothing_found, text) = run(&schemathesis, &["run", &location], folder.path(), within).await;
    assert!(nothing_found, "{text}");
    let words: Vec<_> = text.split_whitespace().collect();
    let made = words.windows(2).find(|pair| pair[1] == "generated,").map(|pair| pair[0].parse().unwrap());
    assert!(made.is_some_and(|made: usize| made >= examples), "{text}");
}
