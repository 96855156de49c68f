//! Sends requests at a fixed rate, no matter how long the answers take. A latency counts from the time when the request
//! was due, so a server that falls behind cannot hide it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::due_times;
use crate::bench::sample::Latencies;

/// Number of players that send the requests. At the default rate, each of them queues every ten seconds.
pub(super) const PLAYERS: usize = 1_000;

/// Pause between queueing and cancelling.
const CANCEL_AFTER: Duration = Duration::from_secs(1);

/// Time-out of one request.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// In a cycle of ten requests, eight get the player's status, one queues and one cancels.
const CYCLE: u32 = 10;

/// A load: requests per second, and the duration in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) rate: u32,
    pub(super) seconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Me,
    Queue,
    Cancel,
}

#[derive(Deserialize)]
struct Ticket {
    ticket: String,
}

fn client() -> anyhow::Result<Client> {
    Ok(Client::builder().timeout(MAX_WAIT).pool_max_idle_per_host(usize::MAX).tcp_nodelay(true).build()?)
}

/// Sends one request of each kind.
///
/// # Errors
/// If the gateway does not answer or refuses a request.
pub(super) async fn warm_up(gateway: &str, token: &str) -> anyhow::Result<()> {
    let client = client()?;
    let player = Player { client: &client, gateway, token };
    player.me().await?;
    let ticket = player.queue().await?;
    player.cancel(&ticket).await
}

impl Load {
    /// The limit: the same load on a server that does nothing.
    pub(super) async fn echo(self, address: SocketAddr) -> anyhow::Result<Latencies> {
        let (client, url, mut requests) = (client()?, format!("http://{address}/v1/players/me"), JoinSet::new());
        let began = Instant::now();
        for due in due_times(self.rate, self.seconds) {
            let due = began + due;
            sleep_until(due).await;
            let request = client.get(&url);
            requests.spawn(async move {
                send(request).await?;
                anyhow::Ok(due.elapsed())
            });
        }
        requests.join_all().await.into_iter().collect()
    }

    /// The mix of requests, on a gateway.
    pub(super) async fn gateway(
        self,
        gateway: &str,
        tokens: &[String],
    ) -> anyhow::Result<Vec<(&'static str, Latencies)>> {
        let (client, mut requests) = (client()?, JoinSet::new());
        let began = Instant::now();
        for (number, due) in (0_u32..).zip(due_times(self.rate, self.seconds)) {
            if number % CYCLE == CYCLE / 2 {
                // In place of this request, the player that queued in this cycle cancels their ticket.
                continue;
            }
            let due = began + due;
            sleep_until(due).await;
            let at = if number % CYCLE == 0 { number / CYCLE } else { number };
            let token = tokens.get(usize::try_from(at)? % tokens.len()).context("no players")?.clone();
            let (client, gateway) = (client.clone(), gateway.to_owned());
            requests.spawn(async move {
                let player = Player { client: &client, gateway: &gateway, token: &token };
                if number % CYCLE > 0 {
                    player.me().await?;
                    return anyhow::Ok(vec![(Kind::Me, due.elapsed())]);
                }
                let ticket = player.queue().await?;
                let queued = due.elapsed();
                let due = due + CANCEL_AFTER;
                sleep_until(due).await;
                player.cancel(&ticket).await?;
                Ok(vec![(Kind::Queue, queued), (Kind::Cancel, due.elapsed())])
            });
        }
        let took: Vec<_> = requests.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        let of = |kind| took.iter().filter(|(of, _)| *of == kind).map(|(_, took)| *took).collect::<Latencies>();
        Ok(vec![
            ("REST, all", took.iter().map(|(_, took)| *took).collect()),
            ("GET /v1/players/me", of(Kind::Me)),
            ("POST /v1/matchmaking/tickets", of(Kind::Queue)),
            ("DELETE /v1/matchmaking/tickets/{id}", of(Kind::Cancel)),
        ])
    }
}

/// A player's client.
struct Player<'a> {
    client: &'a Client,
    gateway: &'a str,
    token: &'a str,
}

impl Player<'_> {
    async fn me(&self) -> anyhow::Result<()> {
        send(self.client.get(format!("{}/v1/players/me", self.gateway)).bearer_auth(self.token)).await.map(drop)
    }

    async fn queue(&self) -> anyhow::Result<String> {
        let body = json!({"queue": "ranked", "latencies": {"eu": 20, "us": 90}});
        let request = self.client.post(format!("{}/v1/matchmaking/tickets", self.gateway)).json(&body);
        let ticket: Ticket = serde_json::from_slice(&send(request.bearer_auth(self.token)).await?)?;
        Ok(ticket.ticket)
    }

    async fn cancel(&self, ticket: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1/matchmaking/tickets/{ticket}", self.gateway);
        send(self.client.delete(url).bearer_auth(self.token)).await.map(drop)
    }
}

async fn send(request: RequestBuilder) -> anyhow::Result<Vec<u8>> {
    let response = request.send().await?.error_for_status()?;
    Ok(response.bytes().await?.into())
}
