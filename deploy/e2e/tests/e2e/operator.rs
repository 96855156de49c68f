//! The commands and queries of operators.

use garage_events::svc::{self, CallError, GetSession};
use garage_stack::workers::{Options, Stack};

use crate::support::{
    Setup,
    history::{self, Event, of_belongings, of_player, of_session},
    play,
};

/// The rows of a timeline: sequence, type, subject.
fn rows(text: &str) -> Vec<(u64, String, String)> {
    let row = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [since, type_name, seq, subject] if since.starts_with('+') => {
            Some((seq.parse().unwrap(), type_name.to_owned(), subject.to_owned()))
        }
        _ => None,
    };
    text.lines().filter_map(row).collect()
}

fn rows_of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<(u64, String, String)> {
    let mut rows: Vec<_> =
        events.into_iter().map(|event| (event.seq, event.type_name.clone(), event.subject.clone())).collect();
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn a_folder_cannot_have_two_garages_at_a_time() {
    let garage = Setup::short().start().await;
    let second = Stack::start(garage.stack.root(), Options::default()).await;
    let message = second.err().map(|error| error.to_string()).unwrap();
    assert!(message.contains("already running in"), "{message}");
}

#[tokio::test]
async fn the_player_and_session_commands_show_the_events_of_the_log() {
    let garage = Setup::short().start().await;
    let names = ["anna@example.com", "bert"];
    // Two rounds, so that each command must leave out the other round's events.
    for _ in 0..2 {
        play(&names.map(|name| garage.bot(name))).await;
    }
    let events = garage.settled().await;
    let sessions = history::sessions(&events);

    let (success, text) = garage.cli(&["player", names[0]]).await;
    assert!(success, "{text}");
    let expected = of_player(&events, names[0]).into_iter().chain(of_belongings(&events, names[0]));
    assert_eq!(rows(&text), rows_of(expected));

    for session in &sessions {
        let (success, text) = garage.cli(&["session", &session.to_string()]).await;
        assert!(success, "{text}");
        let round = sessions.iter().position(|one| one == session).unwrap();
        let mut expected: Vec<&Event> = of_session(&events, *session);
        for name in names {
            expected.extend(&of_player(&events, name)[4 * round..4 * round + 4]);
            expected.extend(of_belongings(&events, name).filter(|event| event.text("session") == session.to_string()));
        }
        assert_eq!(rows(&text), rows_of(expected), "{text}");
    }

    for unknown in [["player", "nobody"], ["session", "0198c5a0-7b1e-7c3d-8000-0123456789ab"]] {
        let (success, text) = garage.cli(&unknown).await;
        assert!(!success && text.contains("the log holds no") && text.contains(unknown[1]), "{text}");
    }
}

#[tokio::test]
async fn an_open_session_is_listed_and_a_closed_one_can_still_be_queried() {
    let script = "while [ ! -e $root/go ]; do sleep 0.1; done";
    let garage = Setup::short().game_server(script).start().await;
    let bots = garage.bots("player", 2);
    let observe = async {
        garage.until_event("PodScheduled", 1).await;
        let id = history::sessions(&garage.events().await)[0];
        let live = crate::support::until("the session is listed", async || {
            let live = garage.projections().await?;
            live.sessions.get(&id).filter(|session| session.attempt == 1).cloned()
        })
        .await;
        assert_eq!(live.players.iter().map(ToString::to_string).collect::<Vec<_>>().len(), 2);
        let view = svc::call(&garage.admin, &GetSession { session: id }).await.unwrap();
        assert_eq!((view.status, live.status), (garage_events::session::Status::Starting, view.status));
        std::fs::write(garage.stack.root().join("go"), "").unwrap();
        id
    };
    let (_, id) = tokio::join!(play(&bots), observe);

    garage.settled().await;
    crate::support::until("the session is no longer listed", async || {
        let live = garage.projections().await?;
        (live.sessions.is_empty() && live.players.is_empty() && live.queues.is_empty()).then_some(())
    })
    .await;
    let view = svc::call(&garage.admin, &GetSession { session: id }).await.unwrap();
    assert_eq!(view.closed.unwrap().results.len(), 2);
    let unknown = GetSession { session: "0198c5a0-7b1e-7c3d-8000-0123456789ab".parse().unwrap() };
    let refused = svc::call(&garage.admin, &unknown).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: 404, .. }), "{refused}");
}
