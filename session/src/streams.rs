//! Reports as metrics how full the streams are, and how far behind the durable consumers.
//!
//! All instances report them, with the same values. So the figures do not depend on who holds a lease, and an alert
//! about a full log is never missing while one session worker runs. Dashboards and alerts take the maximum over the
//! instances.

use std::time::Duration;

use async_nats::jetstream::Context;
use garage_events::jetstream::setup::{CONSUMERS, Consumer, STREAMS};
use garage_worker::Shutdown;
use tokio::time::{sleep, timeout};

/// Time between two readings. Prometheus scrapes every 15 or 30 s.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long to wait for an answer about one stream or consumer.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Updates the metrics until `shutdown`.
///
/// # Errors
/// None. If NATS does not answer, it retries, and the metrics keep their values.
pub async fn watch(context: Context, shutdown: Shutdown) -> anyhow::Result<()> {
    let watching = async {
        loop {
            for name in STREAMS {
                report(name, timeout(MAX_WAIT, stream(&context, name)).await);
            }
            for consumer in CONSUMERS {
                report(consumer.name, timeout(MAX_WAIT, self::consumer(&context, consumer)).await);
            }
            sleep(INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
    Ok(())
}

fn report(name: &str, outcome: Result<anyhow::Result<()>, tokio::time::error::Elapsed>) {
    // /readyz and the log say that NATS does not answer.
    if let Err(error) = outcome.map_err(anyhow::Error::from).flatten() {
        tracing::debug!(name, "cannot read the state of a stream or consumer: {error:#}");
    }
}

async fn stream(context: &Context, name: &'static str) -> anyhow::Result<()> {
    let stream = context.get_stream(name).await?;
    let info = stream.cached_info();
    metrics::gauge!("garage_stream_bytes", "stream" => name).set(number(info.state.bytes));
    metrics::gauge!("garage_stream_bytes_max", "stream" => name).set(limit(info.config.max_bytes));
    metrics::gauge!("garage_stream_messages", "stream" => name).set(number(info.state.messages));
    metrics::gauge!("garage_stream_messages_max", "stream" => name).set(limit(info.config.max_messages));
    Ok(())
}

async fn consumer(context: &Context, consumer: Consumer) -> anyhow::Result<()> {
    let stream = context.get_stream_no_info(consumer.stream).await?;
    let info = stream.consumer_info(consumer.name).await?;
    metrics::gauge!("garage_consumer_pending", "consumer" => consumer.name).set(number(info.num_pending));
    let in_progress = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
    metrics::gauge!("garage_consumer_in_progress", "consumer" => consumer.name).set(number(in_progress));
    Ok(())
}

/// A gauge's value. Above 2^53, which no stream reaches, it is rounded.
#[expect(clippy::cast_precision_loss, reason = "a metric need not be exact")]
fn number(value: u64) -> f64 {
    value as f64
}

/// The value of a limit. NATS has -1, and in some versions 0, for no limit. As infinity, a ratio to it is 0.
fn limit(limit: i64) -> f64 {
    match u64::try_from(limit) {
        Ok(limit) if limit > 0 => number(limit),
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_a_limit_is_never_full() {
        assert_eq!([-1, 0, 1_024].map(limit), [f64::INFINITY, f64::INFINITY, 1_024.0]);
    }
}
