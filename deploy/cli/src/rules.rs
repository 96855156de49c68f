//! `garage rules`: checks rule sets, and sets those of the queues.

mod queues;

use std::{fs, path::PathBuf};

use anyhow::bail;
use garage_rules::{Checked, Options, check, diagnostic::Diagnostic, rule_set::RuleSet};
use serde::Serialize;

use crate::report::{note, print};

/// Checks rule sets, which say who can be matched with whom, and sets those of the queues.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Rules {
    /// Checks rule sets in the language of GameLift FlexMatch, and says what to correct.
    Check(Check),
    Apply(queues::Apply),
    List(queues::List),
    Show(queues::Show),
    Rollback(queues::Rollback),
}

/// Checks rule sets in the language of GameLift FlexMatch, and says what to correct.
///
/// Ends with status 1 if a rule set has an error. Warnings are allowed.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The rule sets, in JSON.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Prints JSON lines: file, line, column, severity, message, cure.
    #[arg(long)]
    json: bool,
    /// Ignores unknown properties, with a warning.
    #[arg(long)]
    lenient: bool,
    /// Accepts `players…` without `teams[…]`, as the players of all teams. FlexMatch does not accept this.
    #[arg(long)]
    extensions: bool,
    /// The time-out of the queue's tickets, in seconds. With it, the check also warns about expansion steps that come later.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=43_200))]
    timeout: Option<u64>,
}

/// One line of JSON. The field names must not change.
#[derive(Debug, Serialize)]
struct Line<'d> {
    file: String,
    #[serde(flatten)]
    diagnostic: &'d Diagnostic,
}

impl Rules {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(check) => check.run(),
            Self::Apply(apply) => apply.run().await,
            Self::List(list) => list.run().await,
            Self::Show(show) => show.run().await,
            Self::Rollback(rollback) => rollback.run().await,
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<()> {
        let Self { files, json, lenient, extensions, timeout } = self;
        let (mut refused, mut piped) = (0, true);
        for path in &files {
            let file = path.display().to_string();
            let text = match fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    note(format!("cannot read the rule set {file}: {error}"));
                    refused += 1;
                    continue;
                }
            };
            let Checked { rule_set, diagnostics } = check(&text, Options { lenient, extensions, timeout });
            refused += usize::from(rule_set.is_none());
            let found = diagnostics.iter().map(|diagnostic| match json {
                true => Ok(serde_json::to_string(&Line { file: file.clone(), diagnostic })?),
                false => Ok(format!("{file}:{diagnostic}")),
            });
            let mut lines = found.collect::<anyhow::Result<Vec<_>>>()?;
            lines.extend(rule_set.filter(|_| !json).map(|rule_set| format!("{file}: ok, {}", summary(&rule_set))));
            for line in lines {
                // The exit status still counts the files that nobody reads about.
                piped = piped && print(line)?.is_continue();
            }
        }
        match (refused, files.len()) {
            (0, _) => Ok(()),
            (1, 1) => bail!("the rule set cannot be used"),
            (refused, count) => bail!("{refused} of {count} rule sets cannot be used"),
        }
    }
}

/// What a rule set makes.
pub(super) fn summary(rule_set: &RuleSet) -> String {
    let (teams, size, rules) = (rule_set.teams.len(), rule_set.match_size(), rule_set.rules.len());
    let s = |count: usize| if count == 1 { "" } else { "s" };
    let players = if size == 1 { "1 player".to_owned() } else { format!("up to {size} players") };
    format!("{teams} team{}, {players}, {rules} rule{}", s(teams), s(rules))
}
