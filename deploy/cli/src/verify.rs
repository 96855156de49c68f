//! `garage verify`: checks the log against the invariants of Garage.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{bail, ensure};
use async_nats::{Client, jetstream};
use garage_director::backend::Name;
use garage_events::{
    env::{Env, System},
    jetstream::{
        follow::Message,
        reader::{Bounds, Reader},
        rule_store,
    },
    log::MAX_COMMIT,
    subject::{ALL, STREAM},
};
use garage_inventory::{
    config::MySql,
    mysql::{
        self,
        ledger_audit::{self, Discrepancy},
    },
};
use garage_session::{projector::identity, redis::Redis};
use garage_verify::{Checker, End, Projections, Rule, Secrets, Summary, Violation, instances, rules};
use garage_worker::{
    Shutdown,
    config::{self, Nats},
};

use crate::{
    progress::Progress,
    report::{note, print, say},
};

/// Reads the whole log up to its current end, and reports what must never happen. It changes nothing, and may run while
/// Garage runs.
///
/// It replays every aggregate through its decider, and checks each match against the rule set that made it. It also checks
/// that each message expected the right sequence, that
/// sessions and their players agree, that each player is paid once, and that the log contains no secret. If something
/// began before the first event of the log, only its later events are checked.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Also reports everything that is unfinished: open sessions, waiting tickets and unpaid players. Use it when
    /// nobody plays.
    #[arg(long)]
    settled: bool,
    /// Also searches the log for the secret in this file. Private keys and tokens are always searched for. Can be
    /// repeated.
    #[arg(long = "secret-file", value_name = "FILE")]
    secret_files: Vec<PathBuf>,
    /// Also compares the projections in Redis with the log.
    #[arg(long = "redis")]
    projections: bool,
    /// Also compares each wallet in the database with the sum of its ledger.
    #[arg(long = "mysql")]
    wallets: bool,
    /// Also checks that each game server in this folder of a director belongs to a live session.
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
        let mut verification =
            Verification { json: self.json, violations: 0, checker: Checker::new(secrets), projections: None };
        let verifying = self.verify(&mut verification);
        let Some(summary) = shutdown.run_until_cancelled(verifying).await else {
            bail!("interrupted; only a part of the log was read")
        };
        let (summary, violations) = (summary?, verification.violations);
        let result = if violations == 0 { "no violations" } else { "violations found" };
        let text = format!("{}; {result}", counts(&summary));
        // With --json, standard output contains JSON lines only.
        if self.json {
            note(text);
        } else {
            say(text);
        }
        ensure!(violations == 0, "{violations} violations");
        Ok(())
    }

    async fn verify(&self, verification: &mut Verification) -> anyhow::Result<Summary> {
        let client = self.nats.connect("cli").await?;
        let reader = Reader::open(client.clone(), STREAM).await?;
        // Copy the projections and list the instances before the end of the log is looked up. Then the log contains
        // every event that they depend on.
        verification.projections = self.copied().await?;
        let instances = self.instances()?;
        let bounds = reader.bounds().await?;
        verification.read(&reader, bounds).await?;
        self.check_projections(client, bounds, verification).await?;
        // An instance that is in only one of the two lists is just being started or removed.
        let instances = instances.intersection(&self.instances()?).copied().collect();
        let (sessions, now) = (verification.checker.sessions(), System.now());
        verification.show(instances::check(&instances, sessions, now, self.end()))?;
        verification.show(self.check_wallets().await?)?;
        let (found, summary) = std::mem::take(&mut verification.checker).finish(self.end());
        verification.show(found)?;
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

    async fn check_projections(
        &self,
        client: Client,
        bounds: Bounds,
        verification: &mut Verification,
    ) -> anyhow::Result<()> {
        let Some(projections) = verification.projections.take() else { return Ok(()) };
        let identity = identity(&jetstream::new(client)).await?;
        let behind = projections.behind();
        verification.show(projections.finish(&identity, bounds.last)?)?;
        if self.settled && behind > 0 {
            let what = format!("the projections have not applied the last {behind} events of players and sessions");
            verification.show(vec![Violation::new(Rule::Settled, [], what)])?;
        }
        Ok(())
    }

    async fn check_wallets(&self) -> anyhow::Result<Vec<Violation>> {
        if !self.wallets {
            return Ok(Vec::new());
        }
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        let violation = |discrepancy| match discrepancy {
            Discrepancy::Balance { player, balance, sum } => {
                let what = format!("the balance is {balance}, but the ledger entries add up to {sum}");
                Violation::new(Rule::Wallet, [], what).player(&player)
            }
            Discrepancy::DuplicateReward { player, session, rewards } => {
                let violation = Violation::new(Rule::Wallet, [], format!("{rewards} rewards for session {session}"));
                session.parse().into_iter().fold(violation.player(&player), Violation::session)
            }
        };
        Ok(ledger_audit::audit(&pool).await?.into_iter().map(violation).collect())
    }
}

/// A check in progress, and the number of violations that it has found.
#[derive(Debug)]
struct Verification {
    json: bool,
    violations: u64,
    checker: Checker,
    projections: Option<Projections>,
}

impl Verification {
    /// Reads the log to its last message, and further to the end of that message's commit.
    async fn read(&mut self, reader: &Reader, Bounds { first, last }: Bounds) -> anyhow::Result<()> {
        let mut progress = Progress::new(true);
        let mut range = reader.range(vec![ALL.into()], first, last);
        while let Some(message) = range.next().await? {
            let done = message.seq + 1 - first;
            if let Some(projections) = &mut self.projections {
                projections.take(&message);
            }
            self.read_rules(reader, &message).await?;
            let found = self.checker.take(message);
            self.show(found)?;
            progress.at(done, done, last + 1 - first);
        }
        let mut rest = reader.range(vec![ALL.into()], last + 1, last + MAX_COMMIT as u64);
        while self.checker.is_open()
            && let Some(message) = rest.next().await?
        {
            self.read_rules(reader, &message).await?;
            let found = self.checker.take(message);
            self.show(found)?;
        }
        Ok(())
    }

    /// Reads the rule set that made the match in a message, if the checker does not have it yet.
    async fn read_rules(&mut self, reader: &Reader, message: &Message) -> anyhow::Result<()> {
        if let Some(id) = rules::rule_set_of(message).filter(|id| !self.checker.has_rule_set(id))
            && let Some(text) = rule_store::text(reader.context(), &id).await?
        {
            self.checker.add_rule_set(&text);
        }
        Ok(())
    }

    fn show(&mut self, found: Vec<Violation>) -> anyhow::Result<()> {
        for violation in found {
            self.violations += 1;
            let line = if self.json { serde_json::to_string(&violation)? } else { violation.to_string() };
            ensure!(print(line)?.is_continue(), "cannot print violations: the reader has closed the pipe");
        }
        Ok(())
    }
}

fn counts(summary: &Summary) -> String {
    let Summary { events, players, sessions, tickets, paid, open, truncated } = summary;
    let mut text = format!("{events} events: {players} players, {sessions} sessions, {tickets} tickets, {paid} paid");
    if *open > 0 {
        text.push_str(&format!("; {open} unfinished"));
    }
    if *truncated > 0 {
        text.push_str(&format!("; {truncated} began before the log"));
    }
    text
}
