//! Output for programs: JSON lines and completions.

use garage_events::session::{Failed, PodFailed};

use crate::support::{Fixture, of_session, open, seqs};

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
async fn a_timeline_shows_what_failed_and_where_the_servers_output_is() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let log = fixture.log().await?;
    let session = open(&log, &["anna"]).await?;
    let failed = PodFailed::new(1, "exited", "exit code 7:\tno engine");
    of_session(&log, session, failed.into()).await?;
    of_session(&log, session, Failed { reason: "exited".into() }.into()).await?;
    let ran = fixture.run(&["session", &session.to_string()]).await?;
    for shown in [
        "attempt 1: exited: exit code 7: no engine",
        &format!("$GARAGE_INSTANCES/game-{session}-1/log"),
        &format!("kubectl logs game-{session}-1"),
    ] {
        assert!(ran.out.contains(shown), "{shown}: {ran:?}");
    }
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
