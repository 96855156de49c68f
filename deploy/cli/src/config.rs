//! `garage config`: what the workers are told, where it comes from, and whether they would take it; and what NATS goes by.

mod reference;
mod shown;

use std::{any::TypeId, ffi::OsString, path::PathBuf};

use clap::{Arg, Command, CommandFactory, Parser};
use garage_events::game::Secret;
use garage_stack::servers::nats::Operator;

use crate::report::say;

/// Shows how a worker is configured, or all that can be.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Config {
    /// What the gateway is told.
    Gateway(Show),
    /// What the matchmaker is told.
    Matchmaker(Show),
    /// What session is told.
    Session(Show),
    /// What the director is told.
    Director(Show),
    /// What inventory is told.
    Inventory(Show),
    /// Every flag and variable of every worker, in Markdown: deploy/CONFIGURATION.md.
    Reference,
    /// Makes or renews what NATS goes by, in files for their owner alone.
    Nats(Nats),
}

/// Shows each setting with where it comes from, and checks them as the worker does before it connects. Secrets are not
/// shown. The exit code is 1, with the error, where the worker would refuse to start.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Prints JSON: worker, settings (flag, variable, value, source, file), error.
    #[arg(long)]
    json: bool,
    /// The worker's flags, after --; its variables are those of this process.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Writes the servers' part of the configuration (nats-operator.conf, which is public), credentials for each worker,
/// admin and sys (nats-NAME.creds), and the key that games' users are signed with (nats-game.seed). The seeds that are
/// there are kept, so that credentials of before go on to be accepted; the rest is written anew, with the rights of this
/// version.
#[derive(Debug, clap::Args)]
pub(crate) struct Nats {
    /// The folder of these files; made when it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A worker, as far as its configuration goes.
#[derive(Debug, Clone, Copy)]
struct Worker {
    name: &'static str,
    command: fn() -> Command,
    /// Reads a command line, the program's name first, and checks it as the worker would.
    check: fn(&[OsString]) -> anyhow::Result<()>,
}

const GATEWAY: Worker = Worker {
    name: "gateway",
    command: garage_gateway::Config::command,
    check: |line| parse::<garage_gateway::Config>(line)?.check(),
};
const MATCHMAKER: Worker = Worker {
    name: "matchmaker",
    command: garage_matchmaker::Config::command,
    check: |line| parse::<garage_matchmaker::Config>(line)?.check(),
};
const SESSION: Worker = Worker {
    name: "session",
    command: garage_session::Config::command,
    check: |line| parse::<garage_session::Config>(line)?.check(),
};
const DIRECTOR: Worker = Worker {
    name: "director",
    command: garage_director::Config::command,
    check: |line| parse::<garage_director::Config>(line)?.check(),
};
const INVENTORY: Worker = Worker {
    name: "inventory",
    command: garage_inventory::Config::command,
    check: |line| parse::<garage_inventory::Config>(line)?.check(),
};

impl Config {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Gateway(show) => show.run(&GATEWAY),
            Self::Matchmaker(show) => show.run(&MATCHMAKER),
            Self::Session(show) => show.run(&SESSION),
            Self::Director(show) => show.run(&DIRECTOR),
            Self::Inventory(show) => show.run(&INVENTORY),
            Self::Reference => {
                say(reference::of(&[GATEWAY, MATCHMAKER, SESSION, DIRECTOR, INVENTORY]).trim_end());
                Ok(())
            }
            Self::Nats(Nats { out }) => Ok(Operator::renew(&out)?.write_settings()?),
        }
    }
}

fn parse<C: Parser>(line: &[OsString]) -> anyhow::Result<C> {
    C::try_parse_from(line).map_err(|error| {
        let text = error.to_string();
        // How to use the worker is not what was asked.
        let text = text.split("\n\nUsage:").next().unwrap_or_default();
        let text = text.strip_prefix("error: ").unwrap_or(text);
        anyhow::anyhow!("{}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Anything that may be seen.
    Plain,
    /// A URL, which may hold a secret although it should not.
    Url,
    /// The path of a file with a secret.
    SecretFile,
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        let holds = arg.get_value_parser().type_id();
        let variable = arg.get_env().map(|name| name.to_string_lossy()).unwrap_or_default();
        let secret = variable.contains("KEY") && !variable.contains("PUBLIC")
            || variable.contains("PASSWORD")
            || variable.contains("CREDENTIALS");
        if holds == TypeId::of::<Secret>() {
            Self::Url
        } else if holds == TypeId::of::<PathBuf>() && secret {
            Self::SecretFile
        } else {
            Self::Plain
        }
    }
}
