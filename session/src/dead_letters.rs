//! The dead letters, looked at for the operators' page.

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

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Letters that are shown.
const LATEST: usize = 8;

/// Sequences that are looked at for them: those of letters that were retried hold none.
const DEPTH: u64 = 32;

/// As much of an error as is shown, in characters.
const ERROR: usize = 300;

/// Keeps what is known of the dead letters at what the stream holds, until `shutdown`. Several instances write the same.
///
/// # Errors
/// None; what does not answer is asked again.
pub async fn watch(client: Client, redis: Redis, shutdown: Shutdown) -> anyhow::Result<()> {
    let watching = async {
        let mut last = DeadLetters::default();
        loop {
            match look(&client, &last).await {
                Ok(dead_letters) => {
                    // Written each time, as Redis may have been emptied.
                    if let Err(error) = redis.note_dead_letters(&dead_letters).await {
                        tracing::debug!("dead letters not noted: {error:#}");
                    }
                    last = dead_letters;
                }
                Err(error) => tracing::debug!("dead letters not looked at: {error:#}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
    Ok(())
}

/// What the stream holds. The letters themselves are read only when it is not what it was.
async fn look(client: &Client, last: &DeadLetters) -> anyhow::Result<DeadLetters> {
    let stream = async_nats::jetstream::new(client.clone()).get_stream_no_info(DEAD).await?;
    let mut counts = BTreeMap::new();
    let mut subjects = stream.info_with_subjects(ALL_DEAD).await?;
    let seq = subjects.info.state.last_sequence;
    while let Some((at, count)) = subjects.try_next().await? {
        counts.insert(subject::dead_of(&at).unwrap_or(&at).to_owned(), count as u64);
    }
    let looked = Some(System.now());
    if last.seq == seq && last.counts == counts {
        return Ok(DeadLetters { looked, ..last.clone() });
    }
    let reader = Reader::open(client.clone(), DEAD).await?;
    let mut latest = Vec::new();
    for number in (seq.saturating_sub(DEPTH) + 1..=seq).rev() {
        if latest.len() == LATEST {
            break;
        }
        let Some(message) = reader.get(number).await.context("a dead letter")? else { continue };
        let consumer = subject::dead_of(&message.subject).unwrap_or(&message.subject).to_owned();
        let (subject, error) = match serde_json::from_slice::<DeadLetter>(&message.payload) {
            Ok(read) => (read.subject, read.error),
            Err(error) => (String::new(), format!("the letter cannot be read: {error}")),
        };
        let error = error.chars().take(ERROR).collect();
        latest.push(DeadLetterSummary { number, dead_lettered_at: message.time, consumer, subject, error });
    }
    Ok(DeadLetters { looked, seq, counts, latest })
}
