//! `garage verify`: whether the log's history is one that can be.

mod checker;
mod event;
mod gathering;
mod heads;
mod instances;
mod payments;
mod players;
mod projections;
mod secrets;
mod sessions;
mod together;
mod violation;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{bail, ensure};
use async_nats::{Client, jetstream};
use garage_director::backend::Name;
use garage_events::{
    env::{Env, System},
    jetstream::reader::{Bounds, Reader},
    log::MAX_COMMIT,
    subject::{ALL, STREAM},
};
use garage_inventory::{
    config::MySql,
    mysql::{
        self,
        ledger_audit::{self, Wrong},
    },
};
use garage_session::{projector::identity, redis::Redis};
use garage_worker::{
    Shutdown,
    config::{self, Nats},
};

use self::{
    checker::{Checker, End, Summary},
    projections::Projections,
    secrets::Secrets,
    violation::{Rule, Violation},
};
use crate::{
    progress::Progress,
    report::{note, print, say},
};

/// Reads the whole log, up to where it is now, and says what in it cannot be. It changes nothing, and may be run while
/// all goes on.
///
/// It replays every aggregate through its decider, and looks whether each message expected what was there, whether
/// sessions and players go together, whether each is paid once, and whether a secret is in the log. Of what began before
/// the log does only the rest is judged.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Nothing may be under way any more: every session closed, every ticket ended, everybody paid.
    #[arg(long)]
    settled: bool,
    /// A file with a secret that must not be in the log, besides what looks like a private key or a token; may be given
    /// more than once.
    #[arg(long = "secret-file", value_name = "FILE")]
    secret_files: Vec<PathBuf>,
    /// Compares the projections in Redis with a fold of the log.
    #[arg(long = "redis")]
    projections: bool,
    /// Adds up the ledgers in the database, and compares the wallets.
    #[arg(long = "mysql")]
    wallets: bool,
    /// Looks whether each game server in this folder of a director belongs to a session that lives.
    #[arg(long, value_name = "DIR")]
    instances: Option<PathBuf>,
    /// Prints JSON lines: rule, player, session, seqs, what.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
    #[command(flatten)]
    redis: config::Redis,
    #[command(flatten)]
    mysql: MySql,
}

impl Verify {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut secrets = Secrets::default();
        for file in &self.secret_files {
            secrets.add(file)?;
        }
        let mut verified =
            Verified { json: self.json, violations: 0, checker: Checker::new(secrets), projections: None };
        let verifying = self.verify(&mut verified);
        let Some(summary) = shutdown.run_until_cancelled(verifying).await else {
            bail!("interrupted; only a part was read")
        };
        let (summary, violations) = (summary?, verified.violations);
        let text = format!("{}; {}", counts(&summary), if violations == 0 { "all holds" } else { "not all holds" });
        // Of JSON, standard output holds nothing but lines.
        if self.json {
            note(text);
        } else {
            say(text);
        }
        ensure!(violations == 0, "{violations} violations");
        Ok(())
    }

    async fn verify(&self, verified: &mut Verified) -> anyhow::Result<Summary> {
        let client = self.nats.connect("cli").await?;
        let reader = Reader::open(client.clone(), STREAM).await?;
        // Before the log's end is looked up: what they hold is in it then.
        verified.projections = self.copied().await?;
        let instances = self.instances()?;
        let bounds = reader.bounds().await?;
        verified.read(&reader, bounds).await?;
        self.judge_projections(client, bounds, verified).await?;
        // Those that were there only before or after come and go.
        let instances = instances.intersection(&self.instances()?).copied().collect();
        let (sessions, now) = (verified.checker.sessions(), System.now());
        verified.show(instances::judge(&instances, sessions, now, self.end()))?;
        verified.show(self.judge_wallets().await?)?;
        let (found, summary) = std::mem::take(&mut verified.checker).finish(self.end());
        verified.show(found)?;
        Ok(summary)
    }

    fn end(&self) -> End {
        if self.settled { End::Settled } else { End::Open }
    }

    async fn copied(&self) -> anyhow::Result<Option<Projections>> {
        if !self.projections {
            return Ok(None);
        }
        let redis = Redis::new(garage_worker::redis::Redis::new(&self.redis)?);
        Ok(Some(Projections::new(redis.copy().await?)))
    }

    fn instances(&self) -> anyhow::Result<BTreeSet<Name>> {
        self.instances.as_deref().map_or_else(|| Ok(BTreeSet::new()), instances::list)
    }

    async fn judge_projections(&self, client: Client, bounds: Bounds, verified: &mut Verified) -> anyhow::Result<()> {
        let Some(projections) = verified.projections.take() else { return Ok(()) };
        let identity = identity(&jetstream::new(client)).await?;
        let behind = projections.behind();
        verified.show(projections.finish(&identity, bounds.last)?)?;
        if self.settled && behind > 0 {
            let what = format!("the projections have not applied the last {behind} events of players and sessions");
            verified.show(vec![Violation::new(Rule::Settled, [], what)])?;
        }
        Ok(())
    }

    async fn judge_wallets(&self) -> anyhow::Result<Vec<Violation>> {
        if !self.wallets {
            return Ok(Vec::new());
        }
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        let violation = |wrong| match wrong {
            Wrong::Sum { player, balance, sum } => {
                let what = format!("the wallet holds {balance}, and its ledger comes to {sum}");
                Violation::new(Rule::Wallet, [], what).player(&player)
            }
            Wrong::Twice { player, session, rewards } => {
                let violation = Violation::new(Rule::Wallet, [], format!("{rewards} rewards for {session}"));
                session.parse().into_iter().fold(violation.player(&player), Violation::session)
            }
        };
        Ok(ledger_audit::audit(&pool).await?.into_iter().map(violation).collect())
    }
}

/// What is being verified, and what came of it so far.
#[derive(Debug)]
struct Verified {
    json: bool,
    violations: u64,
    checker: Checker,
    projections: Option<Projections>,
}

impl Verified {
    /// Reads the log, and beyond where it was to the end of the last commit.
    async fn read(&mut self, reader: &Reader, Bounds { first, last }: Bounds) -> anyhow::Result<()> {
        let mut progress = Progress::new(true);
        let mut range = reader.range(vec![ALL.into()], first, last);
        while let Some(message) = range.next().await? {
            let done = message.seq + 1 - first;
            if let Some(projections) = &mut self.projections {
                projections.take(&message);
            }
            let found = self.checker.take(message);
            self.show(found)?;
            progress.at(done, done, last + 1 - first);
        }
        let mut rest = reader.range(vec![ALL.into()], last + 1, last + MAX_COMMIT as u64);
        while self.checker.is_open()
            && let Some(message) = rest.next().await?
        {
            let found = self.checker.take(message);
            self.show(found)?;
        }
        Ok(())
    }

    fn show(&mut self, found: Vec<Violation>) -> anyhow::Result<()> {
        for violation in found {
            self.violations += 1;
            let line = if self.json { serde_json::to_string(&violation)? } else { violation.to_string() };
            ensure!(print(line)?.is_continue(), "nobody reads any more what does not hold");
        }
        Ok(())
    }
}

fn counts(summary: &Summary) -> String {
    let Summary { events, players, sessions, tickets, paid, open, midway } = summary;
    let mut text = format!("{events} events: {players} players, {sessions} sessions, {tickets} tickets, {paid} paid");
    if *open > 0 {
        text.push_str(&format!("; {open} under way"));
    }
    if *midway > 0 {
        text.push_str(&format!("; {midway} began before the log does"));
    }
    text
}

#[cfg(test)]
mod tests;
