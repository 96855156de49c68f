//! How many players per second are matched when many queue at once.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, future::try_join, stream};
use garage_events::env::{Env, System};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::{
    events::MAX_DISTANCE,
    stage::{By, Stage},
    watch::{Watch, within_limit},
};

/// Pairs that are queued as fast as the log takes them. Any two of their players can be matched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    pub(super) pairs: u32,
    /// Pairs that are written at the same time.
    pub(super) in_progress: usize,
}

impl Burst {
    /// Returns the players per second, from the first append until the last match is stored. `name` must be new.
    pub(super) async fn measure(self, stage: &mut Stage, by: By, name: &str) -> anyhow::Result<f64> {
        let (watch, writer, load) = (stage.watch(name, self.pairs).await?, stage.writer(by), Arc::from(name));
        let skill = || f64::from(rand::random_range(0..=MAX_DISTANCE));
        let began = System.now();
        let write = |pair| writer.clone().write(Arc::clone(&load), pair, [skill(), skill()]);
        let writing = stream::iter(0..self.pairs).map(write).buffer_unordered(self.in_progress);
        let writing = writing.try_for_each(async |_| Ok(()));
        let ((), ended) = stage.run(try_join(writing, last_match(watch))).await?;
        let took = Duration::try_from(ended - began).context("the server's clock is behind")?;
        Ok(f64::from(self.pairs) * 2.0 / took.as_secs_f64())
    }
}

/// When the server stored the last match of a load. A task of its own reads the log, so that another core can do it.
async fn last_match(mut watch: Watch) -> anyhow::Result<OffsetDateTime> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut last = OffsetDateTime::UNIX_EPOCH;
        while let Some(complete) = within_limit(watch.next()).await? {
            last = last.max(complete.stored);
        }
        anyhow::Ok(last)
    });
    tasks.join_next().await.context("no task")??
}
