//! A game server and a client in Python, written only from the documentation.

use std::process::Stdio;

use tokio::{process::Command, time::timeout};

use crate::support::{DEADLINE, Setup, history};

macro_rules! root {
    ($path:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $path)
    };
}

const PYTHON: &str = root!("target/venv-foreign/bin/python");

/// Creates the virtual environment that the examples need, or uses an existing one.
async fn python() {
    let ready = Command::new(PYTHON).args(["-c", "import nats, nkeys, jwt, cryptography, websockets"]).output().await;
    if ready.is_ok_and(|output| output.status.success()) {
        return;
    }
    let venv = root!("target/venv-foreign");
    let made = Command::new("python3").args(["-m", "venv", "--clear", venv]).output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let packages = ["nats-py[nkeys]==2.16.0", "websockets==17.4", "PyJWT==2.15.1", "cryptography==50.0.2"];
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let installed = Command::new(PYTHON).args(install).args(packages).output().await.unwrap();
    assert!(installed.status.success(), "{installed:?}");
}

#[tokio::test]
async fn a_python_server_and_python_clients_play_a_match() {
    python().await;
    let script = concat!(
        "exec ",
        root!("target/venv-foreign/bin/python"),
        " ",
        root!("gameserver/examples/python/server.py"),
        " --config $config"
    );
    let garage = Setup::short().game_server(script).start().await;
    let play = ["anna", "bert"].map(async |player| {
        let mut client = Command::new(PYTHON);
        client.arg(root!("gameserver/examples/python/client.py"));
        client.args([garage.stack.gateway(), garage.stack.token(player, None).unwrap()]).stdin(Stdio::null());
        let output = timeout(DEADLINE, client.kill_on_drop(true).output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    let outputs = futures::future::join_all(play).await;
    for output in &outputs {
        assert!(output.ends_with("Released\nfinished\n"), "{output}");
    }
    assert_ne!(outputs[0].contains("place 1"), outputs[1].contains("place 1"), "{outputs:?}");
    let events = garage.settled().await;
    assert_eq!((history::count(&events, "Finished"), history::count(&events, "PodRequested")), (1, 1));
    assert_eq!(history::count(&events, "RewardGranted"), 2);
    // The server reports `time_ms`; without it, both players would count as not finished, and no rating would change.
    assert_eq!(history::count(&events, "RatingChanged"), 2);
}
