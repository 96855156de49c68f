//! Retries a dead letter when an operator asks for it.
//!
//! The log does not accept the same message twice, and a consumer does not redeliver a terminated message. But the
//! dead letter contains everything that the handler received. So the operator's tool asks the worker that wrote the
//! dead letter, and the worker handles it like a delivery. The tool removes the dead letter after the answer confirms
//! that the effect is durable. If that answer is lost, the dead letter remains and can be retried: every reaction is
//! idempotent.

use std::future::Future;

use async_nats::{Client, jetstream};
use bytes::Bytes;
use garage_events::{
    dead_letter::DeadLetter,
    jetstream::{reader::Reader, setup},
    subject,
    svc::Retry,
};
use tokio::time::sleep;

use super::{Delivery, Failure, NextStep};
use crate::{
    Shutdown,
    service::{Refusal, Service},
};

/// Opens the endpoint for retry requests of one consumer. It handles one dead letter at a time, as each of them has
/// already caused a failure.
pub(super) async fn serve<F, R>(
    context: &jetstream::Context,
    consumer: setup::Consumer,
    shutdown: Shutdown,
    handler: F,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<F, R>>
where
    F: Fn(Delivery) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    let client = context.client();
    let name = consumer.name;
    let service = Service::start(&client, &format!("{name}-retry"), "retries dead letters").await?;
    let answer = move |Retry { number }: Retry| {
        let (client, handler) = (client.clone(), handler.clone());
        async move {
            let delivery = read(client, consumer, number).await?;
            let outcome = handle(handler, delivery).await;
            match &outcome {
                Ok(()) => tracing::info!(consumer = name, dead_letter = number, "retry of a dead letter succeeded"),
                Err(error) => {
                    tracing::warn!(consumer = name, dead_letter = number, %error, "retry of a dead letter failed");
                }
            }
            let label = if outcome.is_ok() { "retried" } else { "still-dead" };
            metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => label).increment(1);
            outcome.map_err(|failure| {
                let code = match failure {
                    Failure::Unavailable(_) => 503,
                    Failure::Retry(_) => 409,
                    Failure::Newer(_) | Failure::Poison(_) => 422,
                };
                Refusal::new(code, failure.to_string())
            })
        }
    };
    service.serve_at(subject::retry(name), 1, shutdown, answer).await
}

/// Restores the delivery from the dead letter. The original stream may have deleted the message already.
async fn read(client: Client, consumer: setup::Consumer, number: u64) -> Result<Delivery, Refusal> {
    let name = consumer.name;
    let message = Reader::open(client.clone(), subject::DEAD).await?.get(number).await?;
    let message = message.filter(|message| message.subject.as_str() == subject::dead(name));
    let message = message.ok_or_else(|| Refusal::new(404, format!("{name} has no dead letter {number}")))?;
    let dead_letter: DeadLetter = serde_json::from_slice(&message.payload)
        .map_err(|error| Refusal::new(422, format!("the dead letter cannot be read: {error}")))?;
    let body = match dead_letter.bytes() {
        Some(body) => body,
        None => original(client, consumer.stream, &dead_letter).await?,
    };
    Ok(Delivery { seq: dead_letter.seq, time: dead_letter.time, subject: dead_letter.subject, body, delivered: 1 })
}

/// The body of a message of which the dead letter contains only the beginning.
async fn original(client: Client, stream: &'static str, dead_letter: &DeadLetter) -> Result<Bytes, Refusal> {
    let message = Reader::open(client, stream).await?.get(dead_letter.seq).await?;
    let message = message.filter(|message| message.subject.as_str() == dead_letter.subject);
    let gone = || {
        let seq = dead_letter.seq;
        Refusal::new(
            410,
            format!("the dead letter has only the beginning of the message, and {stream} has dropped message {seq}"),
        )
    };
    Ok(message.ok_or_else(gone)?.payload)
}

/// Handles the dead letter with as many tries as one delivery has. If a dependency is unavailable, it returns the
/// failure to the operator and does not wait.
async fn handle<F, R>(handler: F, delivery: Delivery) -> Result<(), Failure>
where
    F: Fn(Delivery) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let mut tries = 1;
    loop {
        match handler(delivery.clone()).await {
            Err(failure @ Failure::Retry(_)) => match failure.next_step(0, tries) {
                NextStep::Hold(pause) => sleep(pause).await,
                NextStep::Return(_) | NextStep::DeadLetter => return Err(failure),
            },
            outcome => return outcome,
        }
        tries += 1;
    }
}
