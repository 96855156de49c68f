//! The operators' page, as an operator's browser shows it.

use std::{fs, path::Path};

use futures::future::join;
use garage_events::id::SessionId;

use crate::support::{
    Garage, Setup,
    browser::Browser,
    history::{self, of_session},
    play, until,
};

/// What a studio's identity provider may well let somebody call himself.
const NASTY: &str = "<img src=x onerror=\"document.title='owned'\">";

async fn page(garage: &Garage) -> Browser {
    let browser = Browser::start().await;
    browser.open(&garage.stack.ops()).await;
    browser.until("#mark", |text| text.starts_with("live")).await;
    browser
}

/// The rows of a section's table, cell by cell.
async fn rows(browser: &Browser, section: &str) -> Vec<Vec<String>> {
    let script = format!(
        "return [...document.querySelectorAll('#{section} tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    );
    serde_json::from_value(browser.run(&script).await).unwrap()
}

async fn until_row(browser: &Browser, section: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let what = format!("the right row in #{section}");
    until(&what, async || rows(browser, section).await.into_iter().find(|row| wanted(row))).await
}

/// A session's timeline, as the log has it: type, attempt, sequence.
async fn story(garage: &Garage, session: SessionId) -> Vec<(String, String, String)> {
    let events = garage.events().await;
    let story = of_session(&events, session);
    let row = |event: &&history::Event| {
        let attempt = event.data["attempt"].as_u64().map_or("–".into(), |attempt| attempt.to_string());
        (event.type_name.clone(), attempt, event.seq.to_string())
    };
    story.iter().map(row).collect()
}

async fn shown_story(browser: &Browser) -> Vec<(String, String, String)> {
    let row = |row: Vec<String>| {
        assert!(row[0].starts_with('+') && row[0].ends_with(" ms"), "{row:?}");
        // Below the type may stand what went wrong.
        (row[1].lines().next().unwrap().to_owned(), row[2].clone(), row[3].replace(',', ""))
    };
    rows(browser, "timeline").await.into_iter().map(row).collect()
}

#[tokio::test]
async fn operators_see_what_goes_on_whatever_of_it_is_down() {
    let script = "while [ ! -e $root/go ]; do sleep 0.1; done";
    let mut garage = Setup::short().env("GARAGE_READY_S", "60").game_server(script).start().await;
    let browser = page(&garage).await;
    assert_eq!(browser.text("#live .empty").await, "No session is live.");
    assert_eq!(browser.text("#letters .empty").await, "No message was given up.");

    let alone = garage.ranked("alone", 20_000);
    alone.queue("ranked").await.unwrap();
    let waits = until_row(&browser, "queues", |row| row[0] == "ranked" && row[1] == "1").await;
    assert!(waits[2].ends_with('s') || waits[2] == "now", "{waits:?}");
    assert_ne!(waits[3], "0", "queued a minute");

    let players = [NASTY, "bert"].map(|name| garage.bot(name));
    let watched = async {
        let starts = until_row(&browser, "live", |row| row[4] == "starting, scheduled").await;
        assert!(starts[3].contains(NASTY) && starts[3].contains("bert"), "{starts:?}");
        assert_eq!(browser.text("#server-scheduled").await, "1");
        browser.click("#live button").await;
        let id: SessionId = browser.until("#timeline .about .id", |text| !text.is_empty()).await.parse().unwrap();
        assert_eq!(shown_story(&browser).await.last().unwrap().0, "PodScheduled");
        fs::write(garage.stack.root().join("go"), "").unwrap();
        until("it is open", async || Some(browser.text("#server-running").await).filter(|text| text == "1")).await;
        browser.until("#timeline tbody", |text| text.contains("Closed")).await;
        id
    };
    let (_, id) = join(play(&players), watched).await;
    let expected = story(&garage, id).await;
    assert_eq!(shown_story(&browser).await, expected);
    let closed = until_row(&browser, "closed", |row| row[3] == "finished").await;
    assert!(closed[2].contains(NASTY), "{closed:?}");
    let funnel = until("all is closed", async || {
        let funnel = rows(&browser, "funnel").await;
        (funnel.last()?[3] == "1").then_some(funnel)
    })
    .await;
    let counts: Vec<_> = funnel.iter().map(|row| (row[0].as_str(), row[2].as_str())).collect();
    assert_eq!(counts[..3], [("queued", "3"), ("matched", "2"), ("pod-requested", "2")]);
    assert!(funnel[1..].iter().all(|row| row[3] == "1" && row[4].ends_with('s')), "{funnel:?}");
    assert_eq!(browser.run("return document.title").await, "Garage · operations");

    // Players do not need what the page is made of.
    garage.stack.redis.kill();
    browser.until("#banner", |text| text.contains("Redis does not answer")).await;
    let ready = reqwest::get(garage.stack.ops().replace("/ops", "/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200);
    let other = garage.ranked("other", 40_000);
    let ticket = other.queue("ranked").await.unwrap();
    other.cancel(&ticket).await.unwrap();
    // What is made anew is the same, what happened meanwhile included.
    garage.stack.redis.restart_empty().await.unwrap();
    browser.until("#mark", |text| text.starts_with("live")).await;
    until("the funnel is made anew", async || {
        let anew = rows(&browser, "funnel").await;
        (anew[0][2] == "4" && anew[1..] == funnel[1..]).then_some(())
    })
    .await;
    until("the timeline is made anew", async || (shown_story(&browser).await == expected).then_some(())).await;

    let events = garage.events().await;
    let last = events.iter().rfind(|event| !event.subject.starts_with("garage.inventory.")).unwrap().seq;
    let mark = format!("sequence {last}");
    browser.until("#mark", |text| text.contains(&mark)).await;
    garage.stack.nats.kill();
    browser.until("#banner", |text| text.contains("Projections stand still since")).await;
    // Who comes only now sees it too.
    browser.open("about:blank").await;
    browser.open(&garage.stack.ops()).await;
    let seen = browser.until("#mark", |text| text.contains(&mark)).await;
    assert!(seen.starts_with("standing still") && seen.ends_with("old"), "{seen}");
    until_row(&browser, "closed", |row| row[3] == "finished").await;
    until_row(&browser, "queues", |row| row[0] == "ranked" && row[1] == "1").await;
}

#[tokio::test]
async fn what_failed_is_told_by_reason_and_what_was_given_up_without_its_body() {
    let garage = Setup::short().game_server("echo no engine; exit 7").start().await;
    let browser = page(&garage).await;
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
    let dead_letter = until_row(&browser, "letters", |row| row[1] == "session-reports").await;
    assert!(dead_letter[2].contains("report.x.1.ready") && !dead_letter[3].is_empty(), "{dead_letter:?}");
    assert_eq!(browser.text("#tile-letters").await, "1");
    assert!(!browser.run("return document.documentElement.outerHTML").await.to_string().contains("not to be shown"));

    // On a phone nothing stands out at the side.
    browser.resize(390, 844).await;
    let wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]").await;
    assert_eq!(wide[0], wide[1], "{wide}");
    assert_eq!(wide[1], 390);
}

/// Makes the picture in the README anew:
/// `cargo build --workspace && cargo test --workspace --test e2e -- --ignored picture`
#[tokio::test]
#[ignore = "makes deploy/dashboards/ops.png anew"]
async fn a_picture_of_the_page_in_the_midst_of_a_hundred_players() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    // One server of eight does not start at its first attempt.
    let script = "case $config in *[07]-1/config.json) echo no engine; exit 7;; esac";
    let garage = Setup::short().game_server(script).start().await;
    let browser = page(&garage).await;
    browser.resize(1280, 900).await;
    garage.jetstream().publish("report.x.1.ready", "{}".into()).await.unwrap().await.unwrap();
    for number in 0..3 {
        let bot = garage.ranked(&format!("waiting-{number}"), 50_000 + number * 1_000);
        bot.queue("ranked").await.unwrap();
    }
    let bots = garage.bots("bot", 100);
    let seen = async {
        until("the midst", async || {
            let running: u32 = browser.text("#server-running").await.parse().ok()?;
            (running >= 6 && rows(&browser, "closed").await.len() >= 6).then_some(())
        })
        .await;
        browser.run("document.querySelector('#live tbody tr:last-child button').click()").await;
        browser.until("#timeline tbody", |text| text.contains("Opened")).await;
        browser.run("document.activeElement.blur(); scrollTo(0, 0)").await;
        // The rest of the page would be more of the same, and the picture too large for a README.
        browser.resize(1280, 1200).await;
        STANDARD.decode(browser.picture().await).unwrap()
    };
    let (_, picture) = join(play(&bots), seen).await;
    assert!(picture.len() < 300_000, "{} bytes", picture.len());
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dashboards"));
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("ops.png"), picture).unwrap();
    assert_ne!(rows(&browser, "closed").await, Vec::<Vec<String>>::new());
}
