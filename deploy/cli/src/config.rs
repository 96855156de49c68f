//! `garage config`: shows and checks the settings of the workers, and creates the keys and credentials of NATS.

mod reference;
mod shown;

use std::{any::TypeId, ffi::OsString, path::PathBuf};

use clap::{Arg, Command, CommandFactory, Parser};
use garage_events::game::Secret;
use garage_nats::Operator;

use crate::report::say;

/// Shows and checks the settings of a worker, lists all settings, or creates the NATS keys.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Config {
    /// Shows and checks the settings of the gateway.
    Gateway(Show),
    /// Shows and checks the settings of the matchmaker.
    Matchmaker(Show),
    /// Shows and checks the settings of the session worker.
    Session(Show),
    /// Shows and checks the settings of the director.
    Director(Show),
    /// Shows and checks the settings of the inventory worker.
    Inventory(Show),
    /// Prints every flag and variable of every worker in Markdown, for deploy/docs/configuration.md.
    Reference,
    /// Creates or renews the keys, credentials and server settings of NATS, in files that only their owner can read.
    Nats(Nats),
}

/// Shows each setting and where it comes from, and makes the checks that the worker makes before it connects. It does
/// not show secrets. The exit code is 1 if the worker would refuse to start.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Prints JSON: worker, settings (flag, variable, value, source, file), error.
    #[arg(long)]
    json: bool,
    /// The worker's flags, after `--`. Environment variables come from your shell.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Writes the servers' part of the configuration (nats-operator.conf, which is public), the credentials of each worker,
/// of admin and of sys (nats-NAME.creds), and the key that signs the users of game servers (nats-game.seed). Existing
/// seeds are kept, so older credentials stay valid. All other files are written again, with the rights of this version.
#[derive(Debug, clap::Args)]
pub(crate) struct Nats {
    /// The folder of these files. It is created if it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The settings of one worker, and their check.
#[derive(Debug, Clone, Copy)]
struct Worker {
    name: &'static str,
    command: fn() -> Command,
    /// Parses a command line, which begins with the program's name, and makes the worker's checks.
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
        // clap appends a usage text. It is removed, because the user has asked for the settings.
        let text = text.split("\n\nUsage:").next().unwrap_or_default();
        let text = text.strip_prefix("error: ").unwrap_or(text);
        anyhow::anyhow!("{}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// How a setting is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Unchanged.
    Plain,
    /// A URL. It may contain a secret, so it is shown without its user and its query.
    Url,
    /// The path of a file with a secret, and whether the file is readable.
    SecretFile,
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        let value_type = arg.get_value_parser().type_id();
        let variable = arg.get_env().map(|name| name.to_string_lossy()).unwrap_or_default();
        let secret = variable.contains("KEY") && !variable.contains("PUBLIC")
            || variable.contains("PASSWORD")
            || variable.contains("CREDENTIALS");
        if value_type == TypeId::of::<Secret>() {
            Self::Url
        } else if value_type == TypeId::of::<PathBuf>() && secret {
            Self::SecretFile
        } else {
            Self::Plain
        }
    }
}
