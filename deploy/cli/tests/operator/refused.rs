//! Commands that refuse wrong input before they start or sign anything.

use std::process::Output;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::process::Command;

async fn garage(args: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_garage")).args(args).env_clear().kill_on_drop(true).output().await?)
}

#[tokio::test]
async fn up_names_the_users_queues_file_once_and_starts_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (root, missing, malformed, unusable) = (path("root"), path("none.toml"), path("bad.toml"), path("empty.toml"));
    std::fs::write(&malformed, "[queues.ranked]\nplayer = 2\n")?;
    std::fs::write(&unusable, "[queues]\n")?;
    for (file, error) in [
        (&missing, format!("error: cannot read the queues in {missing}: No such file or directory (os error 2)\n")),
        (&unusable, format!("error: the queues in {unusable}: there is no queue; configure at least one\n")),
    ] {
        let output = garage(&["up", "--root", &root, "--queues", file]).await?;
        assert_eq!((String::from_utf8(output.stderr)?, String::from_utf8(output.stdout)?), (error, String::new()));
        assert_eq!(output.status.code(), Some(1));
    }
    let output = garage(&["up", "--root", &root, "--queues", &malformed]).await?;
    let error = String::from_utf8(output.stderr)?;
    assert!(error.starts_with(&format!("error: the queues in {malformed} are malformed: ")), "{error}");
    assert_eq!((error.matches(&malformed).count(), error.matches("unknown field `player`").count()), (1, 1), "{error}");
    assert!(!std::fs::exists(&root)?, "no server was started");
    Ok(())
}

#[tokio::test]
async fn token_refuses_what_the_gateway_would_refuse() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, short) = (path("jwt.key"), path("short.key"));
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n")?;
    std::fs::write(&short, "0123456789abcdef\n")?;
    let long = "a".repeat(256);
    for (player, key, why) in [
        ("", &key, "player \"\" is not valid"),
        (&long, &key, "is not valid: 1 to 255 characters"),
        ("anna", &short, "use at least 32 random bytes"),
    ] {
        let output = garage(&["token", player, "--jwt-key-file", key]).await?;
        let error = String::from_utf8(output.stderr)?;
        assert!(!output.status.success() && error.contains(why), "{player}: {error}");
        assert_eq!(output.stdout, b"");
    }
    for player in ["anna", "ann@example.org", "Zoë", &"ë".repeat(255)] {
        let output = garage(&["token", player, "--jwt-key-file", &key, "--rank", "-5"]).await?;
        let token = String::from_utf8(output.stdout)?;
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap_or_default())?;
        let claims: serde_json::Value = serde_json::from_slice(&claims)?;
        assert_eq!((&claims["sub"], &claims["rank"]), (&player.into(), &(-5).into()));
    }
    Ok(())
}
