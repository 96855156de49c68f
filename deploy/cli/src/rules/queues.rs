//! `garage rules apply`, `list`, `show` and `rollback`: the rule sets of the queues.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::{self, Context};
use garage_events::{
    id::QueueName,
    jetstream::{
        reader::{Bounds, Reader},
        rule_store,
    },
    rules::{self, Applied, Configured, RuleSetId},
};
use garage_worker::config::Nats;
use serde::Serialize;
use time::OffsetDateTime;

use super::summary;
use crate::{
    entry::when,
    report::{note, print, say},
};

/// How many digits of a rule set's id are shown to people.
const SHORT: usize = 12;

/// Applies a rule set to a queue: all gateways and matchmakers use it within a second, without a restart.
///
/// The rule set is checked first, and refused as a whole if the queue cannot use it. Waiting tickets stay in the queue. Those
/// that the new rule set cannot match, for example because they have no value for an attribute, wait until they time out.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    queue: QueueName,
    /// The rule set, in JSON.
    file: PathBuf,
    /// Only checks the rule set, and shows how it differs from the one in use.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Lists the queues with their rule sets.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Prints JSON lines: queue, rules, name, from, since.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Prints the text of a rule set: the one that a queue uses, or any that a queue has used.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// A queue, or the full id of a rule set (64 hex digits), as in the field `rules` of a match.
    #[arg(value_name = "QUEUE|ID")]
    what: String,
    #[command(flatten)]
    nats: Nats,
}

/// Lets a queue use its previous rule set again. A second rollback undoes the first.
#[derive(Debug, clap::Args)]
pub(crate) struct Rollback {
    queue: QueueName,
    #[command(flatten)]
    nats: Nats,
}

/// A queue with its rule set. The field names appear in JSON and must not change.
#[derive(Debug, Serialize)]
struct Line {
    queue: QueueName,
    rules: RuleSetId,
    /// The rule set's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `applied`, or `file` for the queues file.
    from: &'static str,
    /// When it was applied.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
}

/// The queues and what was applied to them, read from the bucket RULES.
struct Queues {
    context: Context,
    configured: BTreeMap<QueueName, Configured>,
    /// What was applied to each queue, the oldest first.
    applied: BTreeMap<QueueName, Vec<(Applied, OffsetDateTime)>>,
}

impl Queues {
    async fn read(nats: &Nats) -> anyhow::Result<Self> {
        let client = nats.connect("cli").await?;
        let reader = Reader::open(client.clone(), rules::STREAM).await;
        let reader = reader.context("cannot open the bucket RULES; run `garage init`")?;
        let mut queues =
            Self { context: jetstream::new(client), configured: BTreeMap::new(), applied: BTreeMap::new() };
        let Bounds { first, last } = reader.bounds().await?;
        let filters = vec![rules::CONFIGURED.into(), rules::APPLIED.into()];
        let mut range = reader.range(filters, first, last);
        while let Some(message) = range.next().await? {
            // An entry that a KV client has deleted has no body.
            if message.body.is_empty() {
                continue;
            }
            if let Some(queue) = Configured::queue_of(&message.subject) {
                let configured = serde_json::from_slice(&message.body);
                queues.configured.insert(queue, configured.context("cannot read the configuration of a queue")?);
            } else if let Some(queue) = Applied::queue_of(&message.subject) {
                let applied = serde_json::from_slice(&message.body).context("cannot read an applied rule set")?;
                queues.applied.entry(queue).or_default().push((applied, message.time));
            }
        }
        Ok(queues)
    }

    fn configured(&self, queue: &QueueName) -> anyhow::Result<&Configured> {
        self.configured.get(queue).with_context(|| {
            let names: Vec<_> = self.configured.keys().map(QueueName::as_str).collect();
            match names.is_empty() {
                true => "no matchmaker of this version has run yet, so the queues are not known".to_owned(),
                false => format!("no matchmaker has a queue {queue}; the queues are: {}", names.join(", ")),
            }
        })
    }

    /// The rule set that a queue uses.
    fn current(&self, queue: &QueueName) -> anyhow::Result<RuleSetId> {
        let applied = self.applied.get(queue).and_then(|all| all.last()).and_then(|(applied, _)| applied.rules.clone());
        match applied {
            Some(id) => Ok(id),
            None => Ok(self.configured(queue)?.rules.clone()),
        }
    }

    async fn text(&self, id: &RuleSetId) -> anyhow::Result<String> {
        let text = rule_store::text(&self.context, id).await?;
        text.with_context(|| format!("there is no rule set {id}; `garage rules list` shows those in use"))
    }

    fn line(&self, queue: &QueueName, configured: &Configured) -> Line {
        let last = self.applied.get(queue).and_then(|all| all.last());
        let (from, rules, since) = match last {
            Some((Applied { rules: Some(id) }, at)) => ("applied", id.clone(), Some(*at)),
            Some((Applied { rules: None }, at)) => ("file", configured.rules.clone(), Some(*at)),
            None => ("file", configured.rules.clone(), None),
        };
        Line { queue: queue.clone(), rules, name: None, from, since }
    }
}

fn short(id: &RuleSetId) -> String {
    id.to_string().chars().take(SHORT).collect()
}

impl Apply {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { queue, file, dry_run, nats } = self;
        let path = file.display();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read the rule set {path}"))?;
        let queues = Queues::read(&nats).await?;
        let read = queues.configured(&queue)?.read(&text);
        let rules = match read {
            Ok(rules) => rules,
            Err(reason) => {
                for line in reason.lines() {
                    note(format!("{path}: {line}"));
                }
                bail!("queue {queue} cannot use the rule set; nothing was changed");
            }
        };
        let before = queues.current(&queue)?;
        if rules.id == before {
            say(format!("queue {queue} already uses this rule set ({})", short(&before)));
            return Ok(());
        }
        if dry_run {
            let current = queues.text(&before).await?;
            let diff = similar::TextDiff::from_lines(current.as_str(), text.as_str());
            let names = (format!("in use: {}", short(&before)), format!("{path}: {}", short(&rules.id)));
            let diff = diff.unified_diff().header(&names.0, &names.1).to_string();
            let _ = print(diff.trim_end())?;
            note(format!("the rule set can be used: {}", summary(&rules.rule_set)));
            return Ok(());
        }
        rule_store::store(&queues.context, &text).await.context("cannot store the rule set")?;
        let applied = Applied { rules: Some(rules.id.clone()) };
        rule_store::apply(&queues.context, &queue, &applied).await.context("cannot apply the rule set")?;
        let (id, summary) = (short(&rules.id), summary(&rules.rule_set));
        say(format!("queue {queue} uses rule set {id} now, instead of {}: {summary}", short(&before)));
        Ok(())
    }
}

impl List {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let queues = Queues::read(&self.nats).await?;
        if queues.configured.is_empty() && !self.json {
            say("no queues: no matchmaker of this version has run yet");
        }
        for (queue, configured) in &queues.configured {
            let mut line = queues.line(queue, configured);
            let text = queues.text(&line.rules).await?;
            line.name = configured.read(&text).ok().and_then(|rules| rules.rule_set.name);
            let line = if self.json { serde_json::to_string(&line)? } else { line.text() };
            if print(line)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Line {
    fn text(&self) -> String {
        let Self { queue, rules, name, from, since } = self;
        let since = since.map_or_else(|| "-".into(), when);
        // The name comes from a file, and may contain control characters for the terminal.
        let name = name.as_deref().unwrap_or_default().replace(char::is_control, " ");
        format!("{queue:<32}  {}  {from:<7}  {since:<24}  {name}", short(rules)).trim_end().into()
    }
}

impl Show {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let queues = Queues::read(&self.nats).await?;
        let id = match self.what.parse::<RuleSetId>() {
            Ok(id) => id,
            Err(_) => {
                let queue = self.what.parse();
                let queue = queue.with_context(|| format!("{:?} is neither a queue nor a rule set's id", self.what))?;
                queues.current(&queue)?
            }
        };
        let _ = print(queues.text(&id).await?.trim_end())?;
        Ok(())
    }
}

impl Rollback {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { queue, nats } = self;
        let queues = Queues::read(&nats).await?;
        let file = &queues.configured(&queue)?.rules;
        let before = queues.current(&queue)?;
        // Before the first one was applied, the queue used the rule set of the file.
        let applied = queues.applied.get(&queue).into_iter().flatten().map(|(applied, _)| applied.clone());
        let earlier: Vec<_> = [Applied { rules: None }].into_iter().chain(applied).collect();
        let of = |applied: &Applied| applied.rules.clone().unwrap_or_else(|| file.clone());
        let previous = earlier.iter().rev().find(|applied| of(applied) != before);
        let previous = previous.with_context(|| format!("queue {queue} has had no other rule set"))?;
        let (id, text) = (of(previous), queues.text(&of(previous)).await?);
        let usable = queues.configured(&queue)?.read(&text);
        ensure!(usable.is_ok(), "queue {queue} can no longer use its previous rule set {}", short(&id));
        rule_store::apply(&queues.context, &queue, previous).await.context("cannot apply the rule set")?;
        say(format!("queue {queue} uses rule set {} again, instead of {}", short(&id), short(&before)));
        Ok(())
    }
}
