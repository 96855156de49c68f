//! The dashboard, as an operator's browser shows it.

use std::{fs, path::Path};

use futures::future::join;
use garage_events::id::SessionId;

use crate::support::{
    Garage, NO_REQUEUE, Setup,
    browser::Browser,
    history::{self, of_session},
    play, until,
};

/// A player id that contains HTML, as an identity provider may allow.
const HTML_NAME: &str = "<img src=x onerror=\"document.title='owned'\">";

async fn open_dashboard(garage: &Garage) -> Browser {
    let browser = Browser::start().await;
    browser.open(&garage.stack.ops()).await;
    browser.until("#mark", |text| text.starts_with("live")).await;
    browser
}

/// The rows of a section's table, as cells.
async fn rows(browser: &Browser, section: &str) -> Vec<Vec<String>> {
    let script = format!(
        "return [...document.querySelectorAll('#{section} tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    );
    serde_json::from_value(browser.run(&script).await).unwrap()
}

async fn until_row(browser: &Browser, section: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let what = format!("the expected row in #{section}");
    until(&what, async || rows(browser, section).await.into_iter().find(|row| wanted(row))).await
}

/// A session's timeline from the log: type, attempt, sequence.
async fn timeline(garage: &Garage, session: SessionId) -> Vec<(String, String, String)> {
    let events = garage.events().await;
    let timeline = of_session(&events, session);
    let row = |event: &&history::Event| {
        let attempt = event.data["attempt"].as_u64().map_or("–".into(), |attempt| attempt.to_string());
        (event.type_name.clone(), attempt, event.seq.to_string())
    };
    timeline.iter().map(row).collect()
}

async fn shown_timeline(browser: &Browser) -> Vec<(String, String, String)> {
    let row = |row: Vec<String>| {
        assert!(row[0].starts_with('+') && row[0].ends_with(" ms"), "{row:?}");
        // A second line below the type is an error.
        (row[1].lines().next().unwrap().to_owned(), row[2].clone(), row[3].replace(',', ""))
    };
    rows(browser, "timeline").await.into_iter().map(row).collect()
}

#[tokio::test]
async fn the_dashboard_shows_the_current_state_and_survives_outages() {
    let script = "while [ ! -e $root/go ]; do sleep 0.1; done";
    let mut garage = Setup::short().game_server(script).start().await;
    let browser = open_dashboard(&garage).await;
    assert_eq!(browser.text("#live .empty").await, "No session is live.");
    assert_eq!(browser.text("#dead-letters .empty").await, "There are no dead letters.");

    let unmatched = garage.ranked("alone", 20_000);
    unmatched.queue("ranked").await.unwrap();
    let waits = until_row(&browser, "queues", |row| row[0] == "ranked" && row[1] == "1").await;
    assert!(waits[2].ends_with('s') || waits[2] == "now", "{waits:?}");
    assert_ne!(waits[3], "0", "players queued per minute");

    let players = [HTML_NAME, "bert"].map(|name| garage.bot(name));
    let observed = async {
        let starts = until_row(&browser, "live", |row| row[4] == "starting, scheduled").await;
        assert!(starts[3].contains(HTML_NAME) && starts[3].contains("bert"), "{starts:?}");
        assert_eq!(browser.text("#server-scheduled").await, "1");
        browser.click("#live button").await;
        let id: SessionId = browser.until("#timeline .about .id", |text| !text.is_empty()).await.parse().unwrap();
        assert_eq!(shown_timeline(&browser).await.last().unwrap().0, "PodScheduled");
        fs::write(garage.stack.root().join("go"), "").unwrap();
        until("the session is open", async || Some(browser.text("#server-running").await).filter(|text| text == "1"))
            .await;
        browser.until("#timeline tbody", |text| text.contains("Closed")).await;
        id
    };
    let (_, id) = join(play(&players), observed).await;
    let expected = timeline(&garage, id).await;
    assert_eq!(shown_timeline(&browser).await, expected);
    let closed = until_row(&browser, "closed", |row| row[3] == "finished").await;
    assert!(closed[2].contains(HTML_NAME), "{closed:?}");
    let funnel = until("the session is closed", async || {
        let funnel = rows(&browser, "funnel").await;
        (funnel.last()?[3] == "1").then_some(funnel)
    })
    .await;
    let counts: Vec<_> = funnel.iter().map(|row| (row[0].as_str(), row[2].as_str())).collect();
    assert_eq!(counts[..3], [("queued", "3"), ("matched", "2"), ("pod-requested", "2")]);
    assert!(funnel[1..].iter().all(|row| row[3] == "1" && row[4].ends_with('s')), "{funnel:?}");
    assert_eq!(browser.run("return document.title").await, "Garage · operations");

    // Without Redis, the dashboard is not updated, but players can still queue and cancel.
    garage.stack.redis.kill();
    browser.until("#banner", |text| text.contains("Redis does not answer")).await;
    let ready = reqwest::get(garage.stack.ops().replace("/ops", "/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200);
    let other = garage.ranked("other", 40_000);
    let ticket = other.queue("ranked").await.unwrap();
    other.cancel(&ticket).await.unwrap();
    // The rebuilt projections show the same data as before, plus the new events.
    garage.stack.redis.restart_empty().await.unwrap();
    browser.until("#mark", |text| text.starts_with("live")).await;
    until("the funnel is rebuilt", async || {
        let rebuilt = rows(&browser, "funnel").await;
        (rebuilt[0][2] == "4" && rebuilt[1..] == funnel[1..]).then_some(())
    })
    .await;
    until("the timeline is rebuilt", async || (shown_timeline(&browser).await == expected).then_some(())).await;

    let events = garage.events().await;
    let last = events.iter().rfind(|event| !event.subject.starts_with("garage.inventory.")).unwrap().seq;
    let mark = format!("sequence {last}");
    browser.until("#mark", |text| text.contains(&mark)).await;
    garage.stack.nats.kill();
    browser.until("#banner", |text| text.contains("The projections have not been updated since")).await;
    // A newly opened dashboard shows the same.
    browser.open("about:blank").await;
    browser.open(&garage.stack.ops()).await;
    let text = browser.until("#mark", |text| text.contains(&mark)).await;
    assert!(text.starts_with("stale") && text.ends_with("old"), "{text}");
    until_row(&browser, "closed", |row| row[3] == "finished").await;
    until_row(&browser, "queues", |row| row[0] == "ranked" && row[1] == "1").await;
}

#[tokio::test]
async fn the_dashboard_shows_failures_by_reason_and_dead_letters_without_their_body() {
    let garage = Setup::short().queues(NO_REQUEUE).game_server("echo no engine; exit 7").start().await;
    let browser = open_dashboard(&garage).await;
    for bot in garage.bots("player", 2) {
        bot.queue("ranked").await.unwrap();
    }
    until_row(&browser, "failures", |row| row[..] == ["session", "exited", "1"]).await;
    until_row(&browser, "failures", |row| row[..] == ["game server", "exited", "3"]).await;
    until_row(&browser, "closed", |row| row[3] == "failed" && row[4] == "3").await;
    browser.click("#closed button").await;
    browser.until("#timeline tbody", |text| text.contains("exited: exit code 7: no engine")).await;

    let body = r#"{"a": "not to be shown"}"#;
    garage.jetstream().publish("report.x.1.ready", body.into()).await.unwrap().await.unwrap();
    let dead_letter = until_row(&browser, "dead-letters", |row| row[1] == "session-reports").await;
    assert!(dead_letter[2].contains("report.x.1.ready") && !dead_letter[3].is_empty(), "{dead_letter:?}");
    assert_eq!(browser.text("#tile-dead-letters").await, "1");
    assert!(!browser.run("return document.documentElement.outerHTML").await.to_string().contains("not to be shown"));

    // On a phone, the dashboard does not scroll sideways.
    browser.resize(390, 844).await;
    let wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]").await;
    assert_eq!(wide[0], wide[1], "{wide}");
    assert_eq!(wide[1], 390);
}

/// Updates the picture of the dashboard in the documentation:
/// `cargo build --workspace && cargo test --workspace --test e2e -- --ignored picture`
#[tokio::test]
#[ignore = "writes deploy/dashboards/ops.png"]
async fn a_picture_of_the_dashboard_with_a_hundred_players() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    // About one server in eight fails at its first attempt.
    let script = "case $config in *[07]-1/config.json) echo no engine; exit 7;; esac";
    let garage = Setup::short().game_server(script).start().await;
    let browser = open_dashboard(&garage).await;
    browser.resize(1280, 900).await;
    garage.jetstream().publish("report.x.1.ready", "{}".into()).await.unwrap().await.unwrap();
    for number in 0..3 {
        let bot = garage.ranked(&format!("waiting-{number}"), 50_000 + number * 1_000);
        bot.queue("ranked").await.unwrap();
    }
    let bots = garage.bots("bot", 100);
    let screenshot = async {
        until("six sessions run and six are closed", async || {
            let running: u32 = browser.text("#server-running").await.parse().ok()?;
            (running >= 6 && rows(&browser, "closed").await.len() >= 6).then_some(())
        })
        .await;
        browser.run("document.querySelector('#live tbody tr:last-child button').click()").await;
        browser.until("#timeline tbody", |text| text.contains("Opened")).await;
        browser.run("document.activeElement.blur(); scrollTo(0, 0)").await;
        // Without the rest of the dashboard: the picture would be too large for the documentation.
        browser.resize(1280, 1200).await;
        STANDARD.decode(browser.picture().await).unwrap()
    };
    let (_, picture) = join(play(&bots), screenshot).await;
    assert!(picture.len() < 350_000, "{} bytes", picture.len());
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dashboards"));
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("ops.png"), picture).unwrap();
    assert_ne!(rows(&browser, "closed").await, Vec::<Vec<String>>::new());
}
