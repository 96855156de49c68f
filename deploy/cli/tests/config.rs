//! Runs `garage config` as operators do.
#![cfg(test)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

/// Runs `garage config` with exactly these environment variables.
fn config(args: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_garage"))
        .arg("config")
        .args(args)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A setting of the printed JSON, by its flag or its variable.
fn setting(output: &Output, name: &str) -> Value {
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut settings = shown["settings"].as_array().unwrap().iter();
    let found = settings.find(|setting| setting["flag"] == name || setting["variable"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {shown}")).clone()
}

/// Writes valid files for a gateway: the queues file and the key.
fn files(folder: &Path) -> (String, String) {
    let (queues, key) = (garage_stack::workers::write_default_queues(folder).unwrap(), folder.join("jwt.key"));
    fs::write(&key, "hunter2-hunter2-hunter2-hunter2-hunter2").unwrap();
    (queues.to_str().unwrap().into(), key.to_str().unwrap().into())
}

#[test]
fn each_setting_is_shown_with_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, key) = files(folder.path());
    let variables = [
        ("GARAGE_QUEUES", "/nowhere"),
        ("GARAGE_GATEWAY_JWT_KEY_FILE", key.as_str()),
        ("GARAGE_NATS_URL", "nats://10.0.0.7:4222"),
    ];
    let shown = config(&["gateway", "--json", "--", "--queues", &queues], &variables);
    assert!(shown.status.success(), "{}", text(&shown));
    for (flag, variable, value, source) in [
        ("--queues", "GARAGE_QUEUES", json!(queues), "flag"),
        ("--nats-url", "GARAGE_NATS_URL", json!("nats://10.0.0.7:4222"), "environment"),
        ("--grace", "GARAGE_GATEWAY_GRACE_S", json!("15"), "default"),
        ("--tls-cert", "GARAGE_GATEWAY_TLS_CERT", Value::Null, "unset"),
    ] {
        let expected = json!({"flag": flag, "variable": variable, "value": value, "source": source});
        assert_eq!(setting(&shown, flag), expected);
    }
    let expected = json!({"flag": "--jwt-key-file", "variable": "GARAGE_GATEWAY_JWT_KEY_FILE", "value": key,
        "source": "environment", "file": "readable"});
    assert_eq!(setting(&shown, "--jwt-key-file"), expected);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["worker"], &shown["error"]), (&json!("gateway"), &Value::Null));

    let shown = text(&config(&["gateway", "--", "--queues", &queues], &variables));
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{shown}"));
    assert!(line("--queues ").ends_with("  flag"), "{shown}");
    assert!(line("--jwt-key-file ").contains("(readable)"), "{shown}");
    assert!(line("--nats-url ").ends_with("  GARAGE_NATS_URL"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_setting_that_the_worker_would_refuse_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let (queues, key) = files(folder.path());
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (bad_queues, short) = (file("bad.toml", "[queues]\n"), file("short.key", "hunter2"));
    let good = [("GARAGE_QUEUES", queues.as_str()), ("GARAGE_GATEWAY_JWT_KEY_FILE", key.as_str())];
    assert!(config(&["gateway"], &good).status.success());
    for (more, why) in [
        (("GARAGE_QUEUES", bad_queues.as_str()), "no queue"),
        (("GARAGE_QUEUES", "/nowhere/queues.toml"), "/nowhere/queues.toml"),
        (("GARAGE_GATEWAY_JWT_KEY_FILE", short.as_str()), "at least 32"),
        (("GARAGE_GATEWAY_JWT_KEY_FILE", "/nowhere/jwt.key"), "/nowhere/jwt.key"),
        (("GARAGE_GATEWAY_GRACE_S", "soon"), "--grace"),
        (("GARAGE_GATEWAY_TLS_CERT", "tls.crt"), "--tls-key"),
        (("GARAGE_NATS_URL", "nats://ann:hunter2@one"), "--nats-credentials"),
        (("GARAGE_NATS_CREDENTIALS", short.as_str()), "--nats-credentials"),
    ] {
        let variables: Vec<_> = good.into_iter().filter(|(name, _)| *name != more.0).chain([more]).collect();
        let shown = config(&["gateway", "--json"], &variables);
        assert_eq!(shown.status.code(), Some(1), "{more:?}: {}", text(&shown));
        let error = serde_json::from_slice::<Value>(&shown.stdout).unwrap()["error"].to_string();
        assert!(error.contains(why), "{more:?}: {error}");
        assert!(String::from_utf8_lossy(&shown.stderr).contains(why), "{}", text(&shown));
        assert!(!text(&shown).contains("hunter2"), "{}", text(&shown));
        // All settings are shown nevertheless, including the settings after the wrong one.
        assert_eq!(setting(&shown, "--max-connections")["value"], "20000", "{more:?}");
        assert_eq!(setting(&shown, more.0)["source"], "environment", "{more:?}");
    }
    let shown = config(&["gateway", "--json", "--", "--quues", "x"], &good);
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown).contains("--quues"), "{}", text(&shown));
    let shown = config(&["gateway", "--json"], &[]);
    assert!(shown.status.code() == Some(1) && text(&shown).contains("--queues"), "{}", text(&shown));
}

#[test]
fn the_settings_of_every_worker_are_checked_as_the_worker_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (queues, _) = files(folder.path());
    let seal = file("seal.key", "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnQ=");
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let (public, private) = (file("token.pub.pem", public), file("token.pem", private));
    let game = std::env::current_exe().unwrap();
    let instances = folder.path().join("games");
    let nats = folder.path().join("nats");
    assert!(config(&["nats", "--out", nats.to_str().unwrap()], &[]).status.success());
    let (own, signing) = (nats.join("nats-session.creds"), nats.join("nats-game.seed"));
    let session = [
        ("GARAGE_NATS_CREDENTIALS", own.to_str().unwrap()),
        ("GARAGE_GAME_SIGNING_KEY", signing.to_str().unwrap()),
        ("GARAGE_SEAL_KEY_FILE", seal.as_str()),
        ("GARAGE_TOKEN_KEY_FILE", private.as_str()),
    ];
    let director = [
        ("GARAGE_SEAL_KEY_FILE", seal.as_str()),
        ("GARAGE_TOKEN_PUBLIC_KEY_FILE", public.as_str()),
        ("GARAGE_GAMESERVER", game.to_str().unwrap()),
        ("GARAGE_INSTANCES", instances.to_str().unwrap()),
    ];
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let workers: [(&str, Variables<'_>, &str, &str); 5] = [
        ("matchmaker", &[("GARAGE_QUEUES", &queues)], "GARAGE_QUEUES", "queues"),
        ("session", &session, "GARAGE_TOKEN_KEY_FILE", "Ed25519"),
        ("session", &session, "GARAGE_GAME_SIGNING_KEY", "--game-signing-key"),
        ("director", &director, "GARAGE_GAMESERVER", "game server"),
        ("inventory", &[], "GARAGE_MYSQL_URL", "--mysql-url"),
    ];
    for (worker, variables, wrong, why) in workers {
        let shown = config(&[worker], variables);
        assert!(shown.status.success(), "{worker}: {}", text(&shown));
        // This value is not a queues file, a key, a program or a URL.
        let value = if wrong == "GARAGE_GAMESERVER" { "/nowhere" } else { seal.as_str() };
        let wrong: Vec<_> =
            variables.iter().copied().filter(|(name, _)| *name != wrong).chain([(wrong, value)]).collect();
        let shown = config(&[worker], &wrong);
        assert!(shown.status.code() == Some(1) && text(&shown).contains(why), "{worker}: {}", text(&shown));
    }
    assert!(!instances.exists(), "a check creates nothing");
}

#[test]
fn the_reference_is_printed() {
    let shown = config(&["reference"], &[]);
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md")).unwrap();
    assert_eq!(text(&shown), page);
}

/// The files in a folder, by name.
fn contents(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect()
}

#[test]
fn nats_files_are_created_for_their_owner_only_and_renewed_without_new_keys() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("secrets");
    let renew = || {
        let made = config(&["nats", "--out", out.to_str().unwrap()], &[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made = contents(&out);
        for name in made.keys() {
            assert_eq!(fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        made
    };
    let first = renew();
    let names: Vec<_> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "nats-account.seed",
            "nats-admin.creds",
            "nats-director.creds",
            "nats-game.seed",
            "nats-gateway.creds",
            "nats-inventory.creds",
            "nats-matchmaker.creds",
            "nats-operator.conf",
            "nats-operator.seed",
            "nats-session.creds",
            "nats-sys.creds",
            "nats-sys.seed",
        ]
    );
    let seeds = |files: &BTreeMap<String, String>| -> Vec<_> {
        files.iter().filter(|(name, _)| name.ends_with(".seed")).map(|(_, seed)| seed.clone()).collect()
    };
    for seed in seeds(&first) {
        assert!(!first["nats-operator.conf"].contains(&seed), "the servers' settings must contain no seed");
    }
    fs::remove_file(out.join("nats-session.creds")).unwrap();
    let second = renew();
    assert_eq!(seeds(&first), seeds(&second));
    assert_ne!(first["nats-session.creds"], second["nats-session.creds"]);

    // A damaged seed must not be replaced: with a new one, NATS would reject all existing credentials.
    fs::write(out.join("nats-account.seed"), "hunter2").unwrap();
    let refused = config(&["nats", "--out", out.to_str().unwrap()], &[]);
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("nats-account.seed") && !error.contains("hunter2"), "{error}");
}
