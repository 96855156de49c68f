//! The reference of all settings, written from the workers' own definitions of them.

use std::fmt::Write;

use clap::Arg;

use super::{Kind, Worker};

const HEAD: &str = "# Configuration

<!-- Written by `garage config reference`, from the code; a test holds it to that. -->

Each setting is a flag and a variable; the flag goes before the variable, and the variable before the default. Without
one that is needed the worker does not start. A secret is always in a file, and the setting is the file's path.
`garage config WORKER` shows what a worker would be told, and whether it would take it. `RUST_LOG` says how much is
logged (`info`).
";

/// The page.
pub(super) fn of(workers: &[Worker]) -> String {
    let mut page = HEAD.to_owned();
    for worker in workers {
        let command = (worker.command)();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## garage-{}\n\n{about}.\n\n", worker.name);
        page.push_str("| flag | variable | default | meaning |\n|---|---|---|---|\n");
        for arg in command.get_arguments() {
            let _ = writeln!(page, "{}", row(arg));
        }
    }
    page
}

fn row(arg: &Arg) -> String {
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match (defaults.join(" "), arg.is_required_set()) {
        (default, _) if !default.is_empty() => format!("`{default}`"),
        (_, true) => "needed".into(),
        (_, false) => String::new(),
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let secret = if Kind::of(arg) == Kind::SecretFile { "**Secret.** " } else { "" };
    let stop = if help.ends_with('.') { "" } else { "." };
    format!("| `--{}` | {variable} | {default} | {secret}{help}{stop} |", arg.get_long().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::{DIRECTOR, GATEWAY, INVENTORY, MATCHMAKER, SESSION};

    #[test]
    fn the_page_in_the_repository_is_that_of_the_code() {
        let page = super::of(&[GATEWAY, MATCHMAKER, SESSION, DIRECTOR, INVENTORY]);
        let kept = include_str!("../../../CONFIGURATION.md");
        assert!(kept == page, "run `garage config reference > deploy/CONFIGURATION.md`; it is:\n{page}");
    }

    #[test]
    fn every_setting_is_a_flag_and_a_variable_and_is_explained() {
        for worker in [GATEWAY, MATCHMAKER, SESSION, DIRECTOR, INVENTORY] {
            for arg in (worker.command)().get_arguments() {
                let variable = arg.get_env().is_some_and(|name| name.to_string_lossy().starts_with("GARAGE_"));
                assert!(arg.get_long().is_some() && variable && arg.get_help().is_some(), "{}: {arg}", worker.name);
            }
        }
    }
}
