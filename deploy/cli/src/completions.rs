//! `garage completions`

use clap_complete::Shell;

use crate::report::say;

/// Makes a shell's completions of this command.
///
/// For this shell only: source <(garage completions bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// Which shell.
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
