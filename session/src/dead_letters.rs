//! Keeps a summary of the dead letters in Redis, for the dashboard.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use async_nats::Client;
use futures::TryStreamExt;
use garage_events::{
    dead_letter::DeadLetter,
    env::{Env, System},
    jetstream::reader::Reader,
    projection::{DeadLetterSummary, DeadLetters},
    subject::{self, ALL_DEAD, DEAD},
};
use garage_worker::Shutdown;

use crate::redis::Redis;

/// The interval of polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How many of the newest dead letters the summary contains.
const LATEST: usize = 8;

/// How many sequences are read to find them. Sequences of removed dead letters are empty.
const DEPTH: u64 = 32;

/// The maximum length of an error in the summary, in characters.
const MAX_ERROR: usize = 300;

/// Updates the summary until `shutdown`. All instances do this, and write the same summary.
///
/// # Errors
/// None. If NATS or Redis does not answer, it retries.
pub async fn watch(client: Client, redis: Redis, shutdown: Shutdown) -> anyhow::Result<()> {
    let polling = async {
        let mut last = DeadLetters::default();
        loop {
            match summarise(&client, &last).await {
                Ok(dead_letters) => {
                    // Write the summary even if it has not changed, because Redis may have been emptied.
                    if let Err(error) = redis.write_dead_letters(&dead_letters).await {
                        tracing::debug!("cannot write the summary of the dead letters; retrying: {error:#}");
                    }
                    last = dead_letters;
                }
                Err(error) => tracing::debug!("cannot read the dead letters; retrying: {error:#}"),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(polling).await;
    Ok(())
}

/// Summarises the dead letters. Reads their content only if the stream has changed since the `last` summary.
async fn summarise(client: &Client, last: &DeadLetters) -> anyhow::Result<DeadLetters> {
    let stream = async_nats::jetstream::new(client.clone()).get_stream_no_info(DEAD).await?;
    let mut counts = BTreeMap::new();
    let mut subjects = stream.info_with_subjects(ALL_DEAD).await?;
    let seq = subjects.info.state.last_sequence;
    while let Some((at, count)) = subjects.try_next().await? {
        counts.insert(subject::dead_of(&at).unwrap_or(&at).to_owned(), count as u64);
    }
    let polled_at = Some(System.now());
    if last.seq == seq && last.counts == counts {
        return Ok(DeadLetters { looked: polled_at, ..last.clone() });
    }
    let reader = Reader::open(client.clone(), DEAD).await?;
    let mut latest = Vec::new();
    for number in (seq.saturating_sub(DEPTH) + 1..=seq).rev() {
        if latest.len() == LATEST {
            break;
        }
        let Some(message) = reader.get(number).await.context("cannot read a dead letter")? else { continue };
        let consumer = subject::dead_of(&message.subject).unwrap_or(&message.subject).to_owned();
        let (subject, error) = match serde_json::from_slice::<DeadLetter>(&message.payload) {
            Ok(read) => (read.subject, read.error),
            Err(error) => (String::new(), format!("cannot read the dead letter: {error}")),
        };
        let error = error.chars().take(MAX_ERROR).collect();
        latest.push(DeadLetterSummary { number, dead_lettered_at: message.time, consumer, subject, error });
    }
    Ok(DeadLetters { looked: polled_at, seq, counts, latest })
}
