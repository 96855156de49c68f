//! Output for programs: JSON lines and completions.

use crate::support::{Fixture, seqs};

#[tokio::test]
async fn a_timeline_can_be_printed_as_json() -> anyhow::Result<()> {
    let (fixture, session) = Fixture::with_events().await?;
    let lines = fixture.json(&["session", "--json", &session.to_string()]).await?;
    assert_eq!(seqs(&lines), [3, 4]);
    assert_eq!(lines[0]["event"]["type"], "Matched");
    let lines = fixture.json(&["player", "--json", "anna"]).await?;
    assert_eq!(seqs(&lines), [1, 5]);
    // `garage replay` prints the same fields.
    assert_eq!(lines, fixture.json(&["replay", "--json", "--player", "anna"]).await?);
    Ok(())
}

#[tokio::test]
async fn completions_for_every_shell_contain_the_commands() -> anyhow::Result<()> {
    let fixture = Fixture::without_streams().await?;
    for shell in ["bash", "zsh", "fish"] {
        let ran = fixture.run(&["completions", shell]).await?;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for word in ["replay", "tail", "dead", "retry", "from-seq"] {
            assert!(ran.out.contains(word), "{shell} does not complete {word}");
        }
    }
    Ok(())
}
