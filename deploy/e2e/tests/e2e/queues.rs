//! The matchmaker that leads a queue, and closed queues.

use futures::future::join_all;
use garage_stack::workers::Worker;
use serde_json::{Value, json};

use crate::support::{
    Garage, Setup,
    history::{self, Event, of_player, types},
    play, until,
};

/// The index of the matchmaker that leads the queue. Waits until exactly one does, and the others name it.
async fn leader(garage: &mut Garage) -> usize {
    let admins: Vec<_> = garage.stack.instances(Worker::Matchmaker).map(|instance| instance.admin.clone()).collect();
    until("one matchmaker leads, and the others name it", async || {
        let holders = join_all(admins.iter().map(async |admin| {
            let response = reqwest::get(format!("http://{admin}/readyz")).await.ok()?;
            let text = response.text().await.ok()?;
            text.lines().find_map(|line| line.strip_prefix("lease matchmaker.ranked: held by ").map(str::to_owned))
        }))
        .await;
        let holders: Vec<_> = holders.into_iter().collect::<Option<_>>()?;
        let leaders: Vec<_> =
            (0..).zip(&holders).filter(|(_, holder)| *holder == "this instance").map(|(at, _)| at).collect();
        let others = holders.iter().filter(|holder| holder.split('/').count() == 3).count();
        let [leader] = leaders[..] else { return None };
        (others + 1 == holders.len()).then_some(leader)
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
        // It is not restarted: the other instance must take over.
        garage.stack.instances(Worker::Matchmaker).nth(first).unwrap().process.kill();
        // The other instance matches these players.
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

    // The killed instance comes back as a follower, and takes over when the current leader is stopped.
    let instance = garage.stack.instances(Worker::Matchmaker).nth(first).unwrap();
    instance.process.restart().unwrap();
    instance.wait_ready().await.unwrap();
    assert_eq!(leader(&mut garage).await, 1 - first);
    garage.stack.instances(Worker::Matchmaker).nth(1 - first).unwrap().process.stop().await;
    play(&garage.bots("after", 2)).await;
    garage.settled().await;
}

#[tokio::test]
async fn a_closed_queue_accepts_no_ticket_until_an_operator_opens_it() {
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
    let refused = until("the gateway knows that the queue is closed", async || match ask("bert").await {
        Err(problem) => Some(problem),
        Ok(ticket) => {
            let path = format!("/v1/matchmaking/tickets/{}", ticket["ticket"].as_str()?);
            let _ = garage.bot("bert").ask::<Value>(reqwest::Method::DELETE, &path, None).await;
            None
        }
    })
    .await;
    let answer = (refused.status.as_u16(), refused.body["type"].as_str(), refused.body["reason"].as_str());
    assert_eq!(answer, (503, Some("/problems/queue-closed"), Some("season's end")));
    let (_, text) = garage.cli(&["queue", "list", "--json"]).await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = lines.iter().map(|line| (line["queue"].as_str(), line["state"].as_str())).collect();
    let expected = [("casual", "open"), ("ranked", "closed"), ("teams", "open")];
    assert_eq!(states, expected.map(|(queue, state)| (Some(queue), Some(state))));

    // The queue stays closed when NATS and the workers restart. A queued player stays queued.
    garage.stack.nats.node(0).unwrap().restart().await.unwrap();
    for worker in Worker::ALL {
        garage.kill_and_restart(worker);
    }
    garage.stack.wait_ready().await.unwrap();
    let refused =
        garage.bot("bert").ask::<Value>(reqwest::Method::POST, "/v1/matchmaking/tickets", Some(ticket_request)).await;
    assert_eq!(refused.unwrap_err().body["type"], "/problems/queue-closed");
    let path = format!("/v1/matchmaking/tickets/{}", ticket.ticket);
    let unchanged: Value = waiting.ask_with_retry(reqwest::Method::GET, &path, None).await.unwrap();
    assert_eq!(unchanged["status"], "waiting");

    let (success, text) = garage.cli(&["queue", "open", "ranked"]).await;
    assert!(success, "{text}");
    // A bot retries as long as the gateway answers that the queue is closed.
    garage.bot("carl").queue("ranked").await.unwrap();
    for name in ["anna", "carl"] {
        let matched = |events: &[Event]| types(&of_player(events, name)).contains(&"Matched").then_some(());
        garage.until_log(&format!("{name} is matched"), matched).await;
    }
}
