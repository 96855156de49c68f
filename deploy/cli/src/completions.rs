//! `garage completions`

use clap_complete::Shell;

use crate::report::say;

/// Prints the completions of this command for your shell.
///
/// To use them in the current shell: source <(garage completions bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell to print them for.
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, mut command: clap::Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "garage", &mut script);
        say(String::from_utf8(script)?);
        Ok(())
    }
}
