//! Runs `garage catalogue` as operators do, on a real MariaDB.
#![cfg(test)]

use std::{fs, path::Path, process::Output};

use garage_events::game::Secret;
use garage_inventory::config::MySql;
use garage_stack::servers::Database;
use tokio::process::Command;

async fn garage(database: &Database, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_garage"))
        .arg("catalogue")
        .args(args)
        .env("GARAGE_MYSQL_URL", database.url())
        .env("GARAGE_MYSQL_PASSWORD_FILE", database.password_file())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

async fn succeeds(database: &Database, args: &[&str]) -> String {
    let output = garage(database, args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn fails(database: &Database, args: &[&str]) -> String {
    let output = garage(database, args).await;
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_is_exported_edited_checked_with_a_dry_run_and_applied() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::start(folder.path()).await.unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../local/catalogue.toml");
    let shipped = shipped.to_str().unwrap();
    let error = fails(&database, &["apply", shipped]).await;
    assert!(error.contains("garage init"), "{error}");

    let pool = MySql {
        mysql_url: Secret::new(database.url()),
        mysql_password_file: Some(database.password_file().to_owned()),
        mysql_pool_size: 4,
        mysql_acquire_timeout_ms: 30_000,
    };
    garage_inventory::migrate(&pool.pool().unwrap()).await.unwrap();
    let text = succeeds(&database, &["apply", shipped]).await;
    assert_eq!(text.lines().next(), Some("no difference"), "{text}");

    let exported = succeeds(&database, &["export"]).await;
    let changed =
        exported.replace("resale_percent = 50", "resale_percent = 40").replace("price = 500\n", "price = 550\n");
    assert_ne!(changed, exported);
    let file = folder.path().join("next.toml");
    let name = file.to_str().unwrap();
    fs::write(&file, &changed).unwrap();
    let difference =
        "~ resale_percent: 50 → 40\n~ car pebble price: 500 → 550\n~ item chassis-stripped price: 500 → 550\n";
    for _ in 0..2 {
        let checked = succeeds(&database, &["apply", name, "--dry-run"]).await;
        assert!(checked.starts_with(difference) && checked.contains("dry run"), "{checked}");
    }
    let applied = succeeds(&database, &["apply", name]).await;
    assert!(applied.starts_with(difference) && !applied.contains("dry run"), "{applied}");
    assert_eq!(succeeds(&database, &["export"]).await, changed);

    fs::write(&file, changed.replace("price = 550\n", "price = -1\n")).unwrap();
    for args in [vec!["apply", name], vec!["apply", name, "--dry-run"]] {
        let error = fails(&database, &args).await;
        for reason in [name, "car pebble: price is -1", "item chassis-stripped: price is -1"] {
            assert!(error.contains(reason), "no {reason} in: {error}");
        }
    }
    assert_eq!(succeeds(&database, &["export"]).await, changed);
    let error = fails(&database, &["apply", "no-such-file.toml"]).await;
    assert!(error.contains("no-such-file.toml"), "{error}");
}
