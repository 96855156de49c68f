//! Measures the latency from an append to the frame at the player's client.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use async_nats::{Client, Subscriber};
use futures::{StreamExt, future::try_join_all};
use garage_events::{
    env::{Env, System},
    id::PlayerId,
    jetstream::JetStreamLog,
    log::{Append, Decision, Head},
    subject::Aggregate,
};
use tokio::time::{Instant, sleep_until};

use super::{clients::Remote, due_times};
use crate::bench::{queued, sample::Latencies};

/// A subject that no stream stores.
const UNSTORED: &str = "bench.alone";

/// Latencies of one measurement.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// From the append to the frame at the client.
    pub(super) frame: Latencies,
    /// From the append until the log has stored the event.
    pub(super) stored: Latencies,
    /// From a publisher to a subscriber of NATS, without the log and the gateway.
    pub(super) limit: Latencies,
}

/// Appends events of connected players.
pub(super) struct Pushing<'a> {
    log: JetStreamLog,
    /// Used with `subscriber` to measure the limit.
    publisher: Client,
    subscriber: Subscriber,
    players: Vec<(PlayerId, Head)>,
    clients: &'a mut Remote,
}

impl<'a> Pushing<'a> {
    pub(super) async fn new(nats: &[Client; 2], players: &[String], clients: &'a mut Remote) -> anyhow::Result<Self> {
        let [publisher, other] = nats;
        let subscriber = other.subscribe(UNSTORED).await?;
        other.flush().await?;
        let players = players.iter().map(|name| anyhow::Ok((PlayerId::from_foreign(name)?, Head::default())));
        Ok(Self {
            log: JetStreamLog::open(other.clone()).await?,
            publisher: publisher.clone(),
            subscriber,
            players: players.collect::<anyhow::Result<_>>()?,
            clients,
        })
    }

    /// Appends `rate` events per second, for one player after another.
    pub(super) async fn steady(&mut self, rate: u32, seconds: u32) -> anyhow::Result<Pushed> {
        let due: Vec<Duration> = due_times(rate, seconds).collect();
        self.push(&due).await
    }

    /// Appends one event for every player at once.
    pub(super) async fn burst(&mut self) -> anyhow::Result<Pushed> {
        let due = vec![Duration::ZERO; self.players.len()];
        self.push(&due).await
    }

    async fn push(&mut self, due: &[Duration]) -> anyhow::Result<Pushed> {
        let limit = self.limit(due).await?;
        let Self { log, players, clients, .. } = self;
        let count = players.len();
        let (log, began) = (&*log, Instant::now());
        // Events are distributed over the players in turn. Those of one player are appended one after another, because
        // each expects the sequence of the one before.
        let mut appends = Vec::new();
        for (at, (player, head)) in players.iter_mut().enumerate() {
            let due: Vec<Duration> = due.iter().copied().skip(at).step_by(count).collect();
            appends.push(async move {
                let mut sent = Vec::new();
                for due in due {
                    sleep_until(began + due).await;
                    let (at, from) = (System.now().unix_timestamp_nanos(), Instant::now());
                    let sequences = log.append(decision(player, *head)?).await?;
                    let seq = *sequences.first().context("an append without a sequence")?;
                    *head = Head { seq, n: head.n + 1 };
                    sent.push((seq, at, from.elapsed()));
                }
                anyhow::Ok(sent)
            });
        }
        let receiving = async {
            let mut arrived = HashMap::new();
            while arrived.len() < due.len() {
                let (seq, at) =
                    clients.frame().await.with_context(|| format!("{} of {} frames", arrived.len(), due.len()))?;
                anyhow::ensure!(arrived.insert(seq, at).is_none(), "event {seq} arrived twice");
            }
            Ok(arrived)
        };
        let (sent, arrived) = tokio::try_join!(try_join_all(appends), receiving)?;
        let mut pushed = Pushed { limit, ..Pushed::default() };
        for (seq, at, stored) in sent.into_iter().flatten() {
            let arrived_at = arrived.get(&seq).with_context(|| format!("event {seq} did not arrive"))?;
            pushed.frame.add(Duration::from_nanos(u64::try_from(arrived_at - at).unwrap_or(0)));
            pushed.stored.add(stored);
        }
        Ok(pushed)
    }

    /// The latency of NATS alone, for the same number of messages of similar size at the same times.
    async fn limit(&mut self, due: &[Duration]) -> anyhow::Result<Latencies> {
        let began = Instant::now();
        let publishing = async {
            for due in due {
                sleep_until(began + *due).await;
                let mut body = System.now().unix_timestamp_nanos().to_le_bytes().to_vec();
                body.resize(400, b' ');
                self.publisher.publish(UNSTORED, body.into()).await?;
            }
            self.publisher.flush().await?;
            anyhow::Ok(())
        };
        let receiving = async {
            let mut latencies = Latencies::default();
            for _ in due {
                let message = self.subscriber.next().await.context("the subscription ended")?;
                let sent = message.payload.first_chunk().map(|bytes| i128::from_le_bytes(*bytes)).unwrap_or_default();
                let took = System.now().unix_timestamp_nanos() - sent;
                latencies.add(Duration::from_nanos(u64::try_from(took).unwrap_or(0)));
            }
            anyhow::Ok(latencies)
        };
        let ((), latencies) = tokio::try_join!(publishing, receiving)?;
        Ok(latencies)
    }
}

fn decision(player: &PlayerId, head: Head) -> anyhow::Result<Decision> {
    let change = Decision::new(&System, System.id(), None);
    Ok(change.change(
        &System,
        Aggregate::Player(player.clone()),
        head,
        [garage_events::player::Event::from(queued([].into())?)],
    ))
}
