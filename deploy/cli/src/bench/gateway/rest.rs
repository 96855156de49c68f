//! Requests at a fixed rate, whatever their answers take: each latency counts from when its request was due, so that a
//! server that falls behind cannot hide it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::length;
use crate::bench::sample::Latencies;

/// Players who send the requests. One who queues has ten seconds until it is his turn again.
pub(super) const PLAYERS: usize = 1_000;

/// From queueing to cancelling.
const WAIT: Duration = Duration::from_secs(1);

/// For one answer.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Of ten requests eight ask where a player stands, one queues and one cancels.
const TEN: u32 = 10;

/// How many requests, for how long.
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

/// Asks as all kinds do, once.
///
/// # Errors
/// When the gateway does not answer.
pub(super) async fn warm_up(gateway: &str, token: &str) -> anyhow::Result<()> {
    let client = client()?;
    let player = Player { client: &client, gateway, token };
    player.me().await?;
    let ticket = player.queue().await?;
    player.cancel(&ticket).await
}

impl Load {
    /// The limit: as many requests to a server that does nothing.
    pub(super) async fn echo(self, address: SocketAddr) -> anyhow::Result<Latencies> {
        let (client, url, mut asking) = (client()?, format!("http://{address}/v1/players/me"), JoinSet::new());
        let began = Instant::now();
        for due in length(self.rate, self.seconds) {
            let due = began + due;
            sleep_until(due).await;
            let request = client.get(&url);
            asking.spawn(async move {
                answered(request).await?;
                anyhow::Ok(due.elapsed())
            });
        }
        asking.join_all().await.into_iter().collect()
    }

    /// The mix, to a gateway.
    pub(super) async fn gateway(
        self,
        gateway: &str,
        tokens: &[String],
    ) -> anyhow::Result<Vec<(&'static str, Latencies)>> {
        let (client, mut asking) = (client()?, JoinSet::new());
        let began = Instant::now();
        for (number, due) in (0_u32..).zip(length(self.rate, self.seconds)) {
            if number % TEN == TEN / 2 {
                // This one is that of a player who has queued: he cancels.
                continue;
            }
            let due = began + due;
            sleep_until(due).await;
            let at = if number % TEN == 0 { number / TEN } else { number };
            let token = tokens.get(usize::try_from(at)? % tokens.len()).context("there are no players")?.clone();
            let (client, gateway) = (client.clone(), gateway.to_owned());
            asking.spawn(async move {
                let player = Player { client: &client, gateway: &gateway, token: &token };
                if number % TEN > 0 {
                    player.me().await?;
                    return anyhow::Ok(vec![(Kind::Me, due.elapsed())]);
                }
                let ticket = player.queue().await?;
                let queued = due.elapsed();
                let due = due + WAIT;
                sleep_until(due).await;
                player.cancel(&ticket).await?;
                Ok(vec![(Kind::Queue, queued), (Kind::Cancel, due.elapsed())])
            });
        }
        let took: Vec<_> = asking.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        let of = |kind| took.iter().filter(|(of, _)| *of == kind).map(|(_, took)| *took).collect::<Latencies>();
        Ok(vec![
            ("REST, all", took.iter().map(|(_, took)| *took).collect()),
            ("GET /v1/players/me", of(Kind::Me)),
            ("POST /v1/matchmaking/tickets", of(Kind::Queue)),
            ("DELETE /v1/matchmaking/tickets/{id}", of(Kind::Cancel)),
        ])
    }
}

/// A player who asks the gateway.
struct Player<'a> {
    client: &'a Client,
    gateway: &'a str,
    token: &'a str,
}

impl Player<'_> {
    async fn me(&self) -> anyhow::Result<()> {
        answered(self.client.get(format!("{}/v1/players/me", self.gateway)).bearer_auth(self.token)).await.map(drop)
    }

    async fn queue(&self) -> anyhow::Result<String> {
        let ticket_request = json!({"queue": "ranked", "latencies": {"eu": 20, "us": 90}});
        let request = self.client.post(format!("{}/v1/matchmaking/tickets", self.gateway)).json(&ticket_request);
        let ticket: Ticket = serde_json::from_slice(&answered(request.bearer_auth(self.token)).await?)?;
        Ok(ticket.ticket)
    }

    async fn cancel(&self, ticket: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1/matchmaking/tickets/{ticket}", self.gateway);
        answered(self.client.delete(url).bearer_auth(self.token)).await.map(drop)
    }
}

async fn answered(request: RequestBuilder) -> anyhow::Result<Vec<u8>> {
    let response = request.send().await?.error_for_status()?;
    Ok(response.bytes().await?.into())
}
