//! What programs read: JSON lines and completions.

use crate::support::{Fixture, seqs};

#[tokio::test]
async fn a_timeline_comes_as_json_too() -> anyhow::Result<()> {
    let (fixture, session) = Fixture::with_events().await?;
    let lines = fixture.json(&["session", "--json", &session.to_string()]).await?;
    assert_eq!(seqs(&lines), [3, 4]);
    assert_eq!(lines[0]["event"]["type"], "Matched");
    let lines = fixture.json(&["player", "--json", "anna"]).await?;
    assert_eq!(seqs(&lines), [1, 5]);
    // The same fields as everywhere.
    assert_eq!(lines, fixture.json(&["replay", "--json", "--player", "anna"]).await?);
    Ok(())
}

#[tokio::test]
async fn every_shell_completes_every_verb() -> anyhow::Result<()> {
    let fixture = Fixture::without_workers().await?;
    for shell in ["bash", "zsh", "fish"] {
        let ran = fixture.run(&["completions", shell]).await?;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for word in ["replay", "tail", "dead", "retry", "from-seq"] {
            assert!(ran.out.contains(word), "{shell} does not complete {word}");
        }
    }
    Ok(())
}
