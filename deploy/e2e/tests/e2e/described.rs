//! Checks the gateway against its `/openapi.json`: schemathesis generates valid and invalid requests from the
//! description, and validates the answers against it.
//!
//! `SCHEMATHESIS_EXAMPLES` sets the minimum number of requests, and `SCHEMATHESIS_SEED` the seed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Setup, play};

/// The WebSocket. After a successful request it is not HTTP any more, so it is left out.
const SOCKET: &str = "/v1/ws";

/// The minimum number of generated requests, by default.
const EXAMPLES: usize = 2_000;

/// The time-out of the installation, including pip's downloads.
const INSTALLING: Duration = Duration::from_secs(120);

/// The time-out of a run with [`EXAMPLES`] requests. On two busy cores, a run takes a third of it.
const RUNNING: Duration = Duration::from_secs(300);

fn setting(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Runs a program to its end. Returns whether it succeeded, and its output.
async fn run(program: &Path, args: &[&str], folder: &Path, within: Duration) -> (bool, String) {
    let mut command = Command::new(program);
    let running = command.args(args).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(within, running).await.expect("the program ends in time").unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Installs schemathesis into the build folder, where later runs find it. Returns its path.
async fn install() -> PathBuf {
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

/// The number of operations with parameters or a body, without the WebSocket. Schemathesis generates several requests
/// only for these.
fn operation_count(description: &Value) -> usize {
    let paths = description["paths"].as_object().unwrap().iter().filter(|(path, _)| *path != SOCKET);
    let operations = paths.flat_map(|(_, item)| {
        let all = item["parameters"].is_array();
        let operations = item.as_object().unwrap().values().filter(|operation| operation.is_object());
        operations.filter(move |one| all || one["parameters"].is_array() || one["requestBody"].is_object())
    });
    operations.count()
}

#[tokio::test]
async fn generated_requests_find_no_deviation_from_the_description() {
    let schemathesis = install().await;
    // One player and one backend send all requests.
    let limits = ["TICKETS", "GARAGE", "READS", "CONNECT_TOKENS", "GROUPS", "PARTIES", "PARTY_JOINS"];
    let off = |setup: Setup, limit: &&str| setup.env(&format!("GARAGE_GATEWAY_LIMIT_{limit}"), "off");
    let garage = limits.iter().fold(Setup::short(), off).start().await;
    let bots = garage.bots("player", 2);
    // So that there is a match to query.
    let session = play(&bots).await.swap_remove(0).session;
    let description: Value = bots[0].ask(Method::GET, "/openapi.json", None).await.unwrap();
    let ids = async |path: &str, list: &str| {
        let things: Value = bots[0].ask(Method::GET, path, None).await.unwrap();
        let ids = things[list].as_array().unwrap().iter().map(|thing| thing["id"].clone());
        ids.collect::<Value>()
    };
    let (cars, items) = (ids("/v1/store/cars", "cars").await, ids("/v1/store/items", "items").await);
    let (examples, seed) = (setting("SCHEMATHESIS_EXAMPLES", EXAMPLES), setting("SCHEMATHESIS_SEED", 1));
    let each = examples.div_ceil(operation_count(&description));
    let token = garage.stack.token("player-0", None).unwrap();
    let backend = garage.stack.token_with("backend", json!({"scope": "matchmaking:groups"})).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"
seed = {seed}
continue-on-failure = true
# With more workers, Python 3.11 sometimes fails: its parser counts its recursion depth for all threads together.
workers = 1
# These checks measure how quickly requests are generated.
suppress-health-check = ["all"]
cache = {{ enabled = false }}

[generation]
max-examples = {each}
database = "none"

[auth.openapi.player]
bearer = "{token}"

[auth.openapi.backend]
bearer = "{backend}"

[phases.stateful]
enabled = false

# A valid request may still name an unknown queue, or repeat the key of another command.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422"]

[[operations]]
include-path = "{SOCKET}"
enabled = false

[dictionaries]
cars = {{ values = {cars} }}
items = {{ values = {items} }}
ids = {{ values = ["{session}"] }}
queues = {{ values = ["casual", "ranked", "teams"] }}
slots = {{ values = ["engine", "tyres", "paint"] }}

# Half of the names in requests exist.
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
