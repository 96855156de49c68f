//! Which matchmaker matches a queue, and whether it takes players at all.

use futures::future::join_all;
use garage_stack::workers::Worker;
use serde_json::{Value, json};

use crate::support::{
    Garage, Setup,
    history::{self, Event, of_player, types},
    play, until,
};

/// The place, among the matchmakers, of the one that says it leads the queue.
async fn leader(garage: &mut Garage) -> usize {
    let admins: Vec<_> = garage.stack.instances(Worker::Matchmaker).map(|instance| instance.admin.clone()).collect();
    until("one matchmaker leads, and the others say who", async || {
        let said = join_all(admins.iter().map(async |admin| {
            let response = reqwest::get(format!("http://{admin}/readyz")).await.ok()?;
            let text = response.text().await.ok()?;
            text.lines().find_map(|line| line.strip_prefix("lease matchmaker.ranked: held ").map(str::to_owned))
        }))
        .await;
        let said: Vec<_> = said.into_iter().collect::<Option<_>>()?;
        let leaders: Vec<_> = (0..).zip(&said).filter(|(_, said)| *said == "here").map(|(at, _)| at).collect();
        let others = said.iter().filter(|said| said.starts_with("by ") && said.split('/').count() == 3).count();
        let [leader] = leaders[..] else { return None };
        (others + 1 == said.len()).then_some(leader)
    })
    .await
}

#[tokio::test]
async fn a_matchmaker_that_is_killed_while_players_queue_is_replaced_and_matches_nobody_twice() {
    let mut garage = Setup::short().instances(2).start().await;
    let first = leader(&mut garage).await;
    let gateways = garage.stack.gateways();
    let bots: Vec<_> =
        (0..12).map(|number| garage.bot_at(&format!("player-{number}"), &gateways[number % 2])).collect();
    let fault = async {
        garage.until_event("Matched", 2).await;
        // Not started again: the other must do.
        garage.stack.instances(Worker::Matchmaker).nth(first).unwrap().process.kill();
        // Those who come now are matched by it.
        let late = [garage.bot("late-0"), garage.bot("late-1")];
        play(&late).await;
    };
    let (played, ()) = tokio::join!(play(&bots), fault);

    assert_eq!(played.len(), 12);
    let events = garage.settled().await;
    assert_eq!(history::sessions(&events).len(), 7);
    for name in bots.iter().map(|bot| &*bot.player).chain(["late-0", "late-1"]) {
        assert_eq!(types(&of_player(&events, name)), ["Queued", "Matched", "PlayerMatched", "Released"], "{name}");
    }

    // The other comes back as a second one, and takes over when its successor is stopped in good order.
    let instance = garage.stack.instances(Worker::Matchmaker).nth(first).unwrap();
    instance.process.restart().unwrap();
    instance.wait_ready().await.unwrap();
    assert_eq!(leader(&mut garage).await, 1 - first);
    garage.stack.instances(Worker::Matchmaker).nth(1 - first).unwrap().process.stop().await;
    play(&garage.bots("after", 2)).await;
    history::check(&garage.settled().await);
}

#[tokio::test]
async fn a_queue_that_an_operator_closes_takes_nobody_until_it_is_opened() {
    let mut garage = Setup::short().start().await;
    let waiting = garage.bot("anna");
    let ticket = waiting.queue("ranked").await.unwrap();

    let (success, text) = garage.cli(&["queue", "close", "ranked", "--reason", "season's end"]).await;
    assert!(success, "{text}");
    let ticket_request = json!({"queue": "ranked", "latencies": {"eu": 20}});
    let ask = async |name: &str| {
        let bot = garage.ranked(name, 5_000);
        bot.ask::<Value>(reqwest::Method::POST, "/v1/matchmaking/tickets", Some(ticket_request.clone())).await
    };
    let refused = until("the gateway has heard of it", async || match ask("bert").await {
        Err(problem) => Some(problem),
        Ok(ticket) => {
            let path = format!("/v1/matchmaking/tickets/{}", ticket["ticket"].as_str()?);
            let _ = garage.bot("bert").ask::<Value>(reqwest::Method::DELETE, &path, None).await;
            None
        }
    })
    .await;
    let said = (refused.status.as_u16(), refused.body["type"].as_str(), refused.body["reason"].as_str());
    assert_eq!(said, (503, Some("/problems/queue-closed"), Some("season's end")));
    let (_, text) = garage.cli(&["queue", "list", "--json"]).await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = lines.iter().map(|line| (&line["queue"], &line["state"])).collect();
    assert_eq!(states, [(&json!("casual"), &json!("open")), (&json!("ranked"), &json!("closed"))]);

    // It stays so, whoever starts again; and who waits there waits on.
    garage.stack.nats.node(0).unwrap().restart().await.unwrap();
    for worker in Worker::ALL {
        garage.kill_and_restart(worker);
    }
    garage.stack.wait_ready().await.unwrap();
    let refused =
        garage.bot("bert").ask::<Value>(reqwest::Method::POST, "/v1/matchmaking/tickets", Some(ticket_request)).await;
    assert_eq!(refused.unwrap_err().body["type"], "/problems/queue-closed");
    let path = format!("/v1/matchmaking/tickets/{}", ticket.ticket);
    let still: Value = waiting.insist(reqwest::Method::GET, &path, None).await.unwrap();
    assert_eq!(still["status"], "waiting");

    let (success, text) = garage.cli(&["queue", "open", "ranked"]).await;
    assert!(success, "{text}");
    // A bot asks again for as long as he is told to come back later.
    garage.bot("carl").queue("ranked").await.unwrap();
    for name in ["anna", "carl"] {
        let matched = |events: &[Event]| types(&of_player(events, name)).contains(&"Matched").then_some(());
        garage.until_log(&format!("{name} is matched"), matched).await;
    }
}
