//! Matches that their players must accept, with all workers.

use garage_stack::{bot::Bot, workers::Worker};
use serde_json::Value;

use crate::support::{
    Garage, Setup,
    history::{self, of_player, types},
    play_in, until,
};

const QUEUES: &str = "[queues.ranked]\nplayers = 2\nrank_band = 5000\ntimeout_s = 120\nacceptance_s = 30\n\
    regions = { eu = 120 }";

fn setup() -> Setup {
    Setup::short().queues(QUEUES)
}

/// Queues the bots, and waits until a match is proposed to each. Returns its session.
async fn proposed(bots: &[Bot]) -> String {
    for bot in bots {
        bot.queue("ranked").await.unwrap();
    }
    let mut session = String::new();
    for bot in bots {
        let me: Value = until("a match is proposed", async || {
            let me = bot.me().await.unwrap();
            (me["status"] == "proposed").then_some(me)
        })
        .await;
        session = me["session"].as_str().unwrap().to_owned();
    }
    session
}

async fn status(bot: &Bot) -> String {
    bot.me().await.unwrap()["status"].as_str().unwrap().to_owned()
}

/// Checks the log, and that `garage verify` finds nothing.
async fn verified(garage: &Garage) -> Vec<history::Event> {
    let events = garage.settled().await;
    let (success, text) = garage.cli(&["verify"]).await;
    assert!(success, "{text}");
    events
}

#[tokio::test]
async fn players_who_all_accept_play_their_match() {
    let garage = setup().start().await;
    let bots = garage.bots("player", 2);
    play_in("ranked", &bots).await;
    let events = verified(&garage).await;
    for bot in &bots {
        let expected = ["Queued", "MatchProposed", "Matched", "PlayerMatched", "Released"];
        assert_eq!(types(&of_player(&events, &bot.player)), expected);
    }
    assert_eq!((history::count(&events, "Accepted"), history::count(&events, "Proposed")), (2, 1));
}

#[tokio::test]
async fn after_one_player_declines_the_other_is_matched_with_somebody_else() {
    let garage = setup().start().await;
    let [anna, bert] = [garage.bot("anna"), garage.bot("bert")];
    let session = proposed(&[anna.clone(), bert.clone()]).await;
    anna.accept(&session).await.unwrap();
    bert.decline(&session).await.unwrap();
    assert_eq!((status(&anna).await, status(&bert).await), ("waiting".into(), "idle".into()));
    let refused = bert.ask::<Value>(
        reqwest::Method::POST,
        "/v1/matchmaking/tickets",
        Some(serde_json::json!({"queue": "ranked", "latencies": {"eu": 20}})),
    );
    assert_eq!(refused.await.unwrap_err().body["type"], "/problems/matches-missed");
    let cleo = garage.bot("cleo");
    let second = proposed(std::slice::from_ref(&cleo)).await;
    assert_ne!(session, second);
    // anna declines this one, so that no match starts.
    anna.decline(&second).await.unwrap();
    let me: Value = cleo.me().await.unwrap();
    let path = format!("/v1/matchmaking/tickets/{}", me["ticket"].as_str().unwrap());
    let _: Option<Value> = cleo.ask_with_retry(reqwest::Method::DELETE, &path, None).await.unwrap();
    let events = verified(&garage).await;
    let expected = ["Queued", "MatchProposed", "Requeued", "MatchProposed", "MatchDeclined"];
    assert_eq!(types(&of_player(&events, "anna")), expected);
    assert_eq!(types(&of_player(&events, "bert")), ["Queued", "MatchProposed", "MatchDeclined"]);
    assert_eq!(history::count(&events, "PodRequested"), 0);
}

#[tokio::test]
async fn an_answer_and_the_deadline_survive_the_death_of_the_matchmaker_and_the_session_worker() {
    let mut garage = Setup::short().queues(SHORT_PROPOSALS).start().await;
    let bots = garage.bots("player", 2);
    let session = proposed(&bots).await;
    bots[0].accept(&session).await.unwrap();
    for worker in [Worker::Matchmaker, Worker::Session] {
        garage.kill_and_restart(worker);
    }
    garage.stack.wait_ready().await.unwrap();
    // The other player never answers.
    let idle = async || (status(&bots[1]).await == "idle").then_some(());
    until("the proposal ends at its deadline", idle).await;
    let me = bots[0].me().await.unwrap();
    assert_eq!(me["status"], "waiting", "{me}");
    let path = format!("/v1/matchmaking/tickets/{}", me["ticket"].as_str().unwrap());
    let _: Option<Value> = bots[0].ask_with_retry(reqwest::Method::DELETE, &path, None).await.unwrap();
    let events = verified(&garage).await;
    assert_eq!(types(&of_player(&events, &bots[0].player)), ["Queued", "MatchProposed", "Requeued", "Cancelled"]);
    assert_eq!(types(&of_player(&events, &bots[1].player)), ["Queued", "MatchProposed", "MatchDeclined"]);
    assert_eq!((history::count(&events, "Accepted"), history::count(&events, "ProposalEnded")), (1, 1));
}

const SHORT_PROPOSALS: &str = "[queues.ranked]\nplayers = 2\nrank_band = 5000\ntimeout_s = 120\nacceptance_s = 10\n\
    regions = { eu = 120 }";
