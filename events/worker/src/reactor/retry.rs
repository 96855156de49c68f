//! Handling a dead letter again, when an operator asks for it.
//!
//! The log takes no message twice, and a consumer brings none back that was given up. But a letter holds all that its
//! handler was given, and was written by the worker itself: so that worker is asked, and handles the letter as it
//! handles a delivery. Whoever asked removes the letter when the answer says that its effect is durable; should that
//! answer be lost, the letter is there to be retried, which is idempotent as every reaction is.

use std::future::Future;

use async_nats::{Client, jetstream};
use garage_events::{
    dead_letter::DeadLetter,
    jetstream::{reader::Reader, setup},
    subject,
    svc::Retry,
};
use tokio::time::sleep;

use super::{Delivery, Failure, Then};
use crate::{
    Shutdown,
    service::{Refusal, Service},
};

/// Opens the endpoint on which a consumer's worker is asked. One letter at a time: each was trouble before.
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
    let service = Service::start(&client, &format!("{name}-retry"), "handles dead letters again").await?;
    let answer = move |Retry { number }: Retry| {
        let (client, handler) = (client.clone(), handler.clone());
        async move {
            let delivery = read(client, name, number).await?;
            let outcome = handle(handler, delivery).await;
            match &outcome {
                Ok(()) => tracing::info!(consumer = name, dead_letter = number, "dead letter handled"),
                Err(error) => tracing::warn!(consumer = name, dead_letter = number, %error, "dead letter not handled"),
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

/// Reads what was given up from the letter, not from the stream that it was of: that one forgets sooner.
async fn read(client: Client, consumer: &str, number: u64) -> Result<Delivery, Refusal> {
    let message = Reader::open(client, subject::DEAD).await?.get(number).await?;
    let message = message.filter(|message| message.subject.as_str() == subject::dead(consumer));
    let message = message.ok_or_else(|| Refusal::new(404, format!("{consumer} has no dead letter {number}")))?;
    let dead_letter: DeadLetter = serde_json::from_slice(&message.payload)
        .map_err(|error| Refusal::new(422, format!("the letter cannot be read: {error}")))?;
    let body = dead_letter.bytes();
    Ok(Delivery { seq: dead_letter.seq, time: dead_letter.time, subject: dead_letter.subject, body, delivered: 1 })
}

/// What one delivery gets, but that nobody waits for a dependency: the operator is told.
async fn handle<F, R>(handler: F, delivery: Delivery) -> Result<(), Failure>
where
    F: Fn(Delivery) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let mut tries = 1;
    loop {
        match handler(delivery.clone()).await {
            Err(failure @ Failure::Retry(_)) => match failure.then(0, tries) {
                Then::Hold(pause) => sleep(pause).await,
                Then::Return(_) | Then::DeadLetter => return Err(failure),
            },
            outcome => return outcome,
        }
        tries += 1;
    }
}
