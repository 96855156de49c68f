//! Shows the settings of one worker.

use std::{ffi::OsString, fs::File};

use anyhow::anyhow;
use clap::{Arg, ArgMatches, parser::ValueSource, value_parser};
use serde::Serialize;

use super::{Kind, Show, Worker};
use crate::report::say;

/// A setting and its source. The field names appear in the JSON and must not change.
#[derive(Debug, Serialize)]
struct Setting {
    flag: String,
    variable: Option<String>,
    /// `None` if it is not set. A URL is shown without its secrets.
    value: Option<String>,
    source: Source,
    /// For the file of a secret: `readable`, or why it cannot be read. Absent for all other settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Flag,
    Environment,
    Default,
    Unset,
}

#[derive(Serialize)]
struct Shown {
    worker: &'static str,
    settings: Vec<Setting>,
    error: Option<String>,
}

impl Show {
    pub(super) fn run(self, worker: &Worker) -> anyhow::Result<()> {
        let line: Vec<_> = [OsString::from(format!("garage-{}", worker.name))].into_iter().chain(self.flags).collect();
        let settings = settings(worker, &line)?;
        let error = (worker.check)(&line).err().map(|error| format!("{error:#}"));
        let shown = Shown { worker: worker.name, settings, error };
        if self.json {
            say(serde_json::to_string(&shown)?);
        } else {
            shown.print();
        }
        match shown.error {
            Some(error) => Err(anyhow!("garage-{} would refuse to start: {error}", worker.name)),
            None => Ok(()),
        }
    }
}

impl Shown {
    fn print(&self) {
        let value = |setting: &Setting| match (&setting.value, &setting.file) {
            (Some(value), Some(file)) => format!("{value} ({file})"),
            (Some(value), None) => value.clone(),
            (None, _) => "-".into(),
        };
        let width = |text: &dyn Fn(&Setting) -> String| self.settings.iter().map(|one| text(one).chars().count()).max();
        let (flags, values) = (width(&|one| one.flag.clone()), width(&value));
        for setting in &self.settings {
            let from = match setting.source {
                Source::Flag => "flag",
                Source::Environment => setting.variable.as_deref().unwrap_or_default(),
                Source::Default => "default",
                Source::Unset => "not set",
            };
            let (flags, values) = (flags.unwrap_or(0), values.unwrap_or(0));
            say(format!("{:<flags$}  {:<values$}  {from}", setting.flag, value(setting)));
        }
        if self.error.is_none() {
            say(format!("\ngarage-{} would start with these settings", self.worker));
        }
    }
}

/// All settings, including invalid ones.
fn settings(worker: &Worker, line: &[OsString]) -> anyhow::Result<Vec<Setting>> {
    let command = (worker.command)();
    let lenient = (worker.command)().ignore_errors(true).mut_args(|arg| {
        if arg.get_action().takes_values() { arg.required(false).value_parser(value_parser!(OsString)) } else { arg }
    });
    let matches = lenient.try_get_matches_from(line)?;
    Ok(command.get_arguments().map(|arg| setting(arg, &matches)).collect())
}

fn setting(arg: &Arg, matches: &ArgMatches) -> Setting {
    let id = arg.get_id().as_str();
    let value = matches.get_raw(id).map(|values| {
        let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
        values.join(" ")
    });
    let source = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => Source::Environment,
        Some(_) => Source::Default,
        None => Source::Unset,
    };
    let kind = Kind::of(arg);
    let file = value.as_ref().filter(|_| kind == Kind::SecretFile).map(|path| match File::open(path) {
        Ok(_) => "readable".into(),
        Err(error) => error.to_string(),
    });
    Setting {
        flag: format!("--{}", arg.get_long().unwrap_or_default()),
        variable: arg.get_env().map(|name| name.to_string_lossy().into_owned()),
        value: value.map(|value| if kind == Kind::Url { without_secrets(&value) } else { value }),
        source,
        file,
    }
}

/// One URL or several, without the parts that may contain a secret: the user and the query. If a URL is malformed, this
/// leaves out too much rather than too little.
fn without_secrets(url: &str) -> String {
    let scheme = url.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
    let (before, after) = url.rsplit_once('@').map_or((None, url), |(before, after)| (Some(before), after));
    let (address, query) = after.split_once('?').map_or((after, ""), |(address, _)| (address, "?…"));
    match before {
        // The text after the `?` may belong to a password.
        Some(before) if before.contains('?') => format!("{scheme}…"),
        Some(_) => format!("{scheme}…@{address}{query}"),
        None => format!("{address}{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("nats://one:4222,nats://two:4222", "nats://one:4222,nats://two:4222"),
            ("redis://:hunter2@127.0.0.1:6379/0", "redis://…@127.0.0.1:6379/0"),
            ("nats://one,nats://ann:hunter2@two", "nats://…@two"),
            ("redis://:hun@hunter2/@host", "redis://…@host"),
            ("ann:hunter2@host", "…@host"),
            ("unix:///run/redis.sock?pass=hunter2", "unix:///run/redis.sock?…"),
            ("mysql://garage@host/garage?ssl-mode=required", "mysql://…@host/garage?…"),
            ("mysql://garage:hun?hunter2@host/garage", "mysql://…"),
            ("unix:///run/redis.sock?pass=hun@ter2", "unix://…"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
