//! `garage catalogue`: what the store sells.

use std::path::PathBuf;

use anyhow::Context;
use garage_inventory::{
    catalogue::{Catalogue, Difference},
    config::MySql,
    mysql::{self, catalogue::apply},
};

use crate::report::say;

/// Shows and changes what the store sells.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Replaces the catalogue with the one in a file, completely or not at all, and shows the changes.
    Apply(Apply),
    /// Prints the current catalogue as a file that you can edit and apply.
    Export(Export),
}

/// Replaces the catalogue with the one in a file, completely or not at all, and shows the changes. A line begins with
/// + (added), ~ (changed) or - (retired). A retired product is no longer sold; its owners keep it.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// The catalogue, in TOML. `garage init` creates the one in deploy/local/catalogue.toml.
    file: PathBuf,
    /// Checks the file and shows what would change, but changes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mysql: MySql,
}

/// Prints the current catalogue as a file that you can edit and apply.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    mysql: MySql,
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Apply(apply) => apply.run().await,
            Self::Export(export) => export.run().await,
        }
    }
}

impl Apply {
    async fn run(self) -> anyhow::Result<()> {
        let name = self.file.display();
        let text = std::fs::read_to_string(&self.file).with_context(|| format!("cannot read {name}"))?;
        let next: Catalogue = text.parse().with_context(|| format!("cannot use {name}; nothing has changed"))?;
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        if self.dry_run {
            show(&apply::differences(&pool, &next).await?);
            say("nothing has changed: this was a dry run");
        } else {
            show(&apply::apply(&pool, &next).await.context("cannot apply the catalogue; nothing has changed")?);
            say("the catalogue now matches the file");
        }
        Ok(())
    }
}

impl Export {
    async fn run(self) -> anyhow::Result<()> {
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        say(apply::current(&pool).await?.to_toml()?.trim_end());
        Ok(())
    }
}

fn show(differences: &[Difference]) {
    for difference in differences {
        say(difference);
    }
    if differences.is_empty() {
        say("no difference");
    }
}
