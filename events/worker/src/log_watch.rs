//! Reports in /readyz, in metrics and in the process log whether the log stores events (see
//! [`garage_events::jetstream::storage`]), and exchanges what is known with the other workers.

use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt;
use garage_events::jetstream::{
    JetStreamLog,
    storage::{TROUBLE, Trouble},
};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{Health, Shutdown};

/// The name of the dependency in /readyz.
const LOG: &str = "log";

/// Interval between checks. Each check costs the stream's leader one request.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// After this many checks in a row without an answer, the log is reported as down. An election takes less time.
const MAX_UNANSWERED: u32 = 3;

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches the log until `shutdown`.
pub(crate) async fn run(log: JetStreamLog, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
    shutdown.run_until_cancelled(watch(log, health)).await;
    Ok(())
}

async fn watch(log: JetStreamLog, health: Health) {
    let client = log.context().client();
    let mut watch = Watch { log, health, unanswered: 0, reported: None };
    let mut others = None;
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if others.is_none() {
            others = client.subscribe(TROUBLE).await.ok();
        }
        tokio::select! {
            heard = next(&mut others) => match heard {
                Some(trouble) => watch.log.storage().heard(trouble),
                None => others = None,
            },
            _ = checks.tick() => watch.check().await,
        }
    }
}

/// What another worker, or this one, says next. `None` if the subscription has ended.
async fn next(others: &mut Option<Subscriber>) -> Option<Trouble> {
    let Some(others) = others else { return std::future::pending().await };
    loop {
        let message = others.next().await?;
        // A newer version may say something that this one does not know.
        if let Ok(trouble) = serde_json::from_slice(&message.payload) {
            return Some(trouble);
        }
    }
}

struct Watch {
    log: JetStreamLog,
    health: Health,
    /// The checks in a row without an answer.
    unanswered: u32,
    /// What was reported last.
    reported: Option<&'static str>,
}

impl Watch {
    async fn check(&mut self) {
        let measured = timeout(CHECK_TIMEOUT, self.log.measure()).await;
        match measured.map_err(anyhow::Error::from).and_then(|measured| Ok(measured?)) {
            Ok(_) => {
                if std::mem::take(&mut self.unanswered) >= MAX_UNANSWERED {
                    self.health.up(LOG);
                }
            }
            Err(_) => {
                self.unanswered = self.unanswered.saturating_add(1);
                if self.unanswered >= MAX_UNANSWERED {
                    self.health.down(
                        LOG,
                        "the stream GARAGE does not answer; are its NATS nodes up, and is there room on their disks?",
                    );
                }
            }
        }
        self.report();
        if let Some(trouble) = self.log.storage().own_trouble()
            && let Ok(message) = serde_json::to_vec(&trouble)
        {
            // If this fails, the next check says it again.
            let _ = self.log.context().client().publish(TROUBLE, message.into()).await;
        }
    }

    /// Reports the state. Logs it when it changes.
    fn report(&mut self) {
        let storage = self.log.storage();
        let (trouble, remark) = (storage.trouble(), storage.remark());
        for kind in ["full", "not-storing"] {
            let is = trouble.is_some_and(|trouble| trouble.kind() == kind);
            metrics::gauge!("garage_log_trouble", "kind" => kind).set(f64::from(u8::from(is)));
        }
        let kind = trouble.map(Trouble::kind).or_else(|| remark.is_some().then_some("nearly-full"));
        if kind != self.reported {
            match &remark {
                Some(remark) => tracing::error!(log.state = kind, "the log is {remark}"),
                None => tracing::info!("the log stores events again, and has room"),
            }
            self.reported = kind;
        }
        self.health.remark(LOG, remark);
    }
}
