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
pub(crate) enum Of {
    /// Puts a file's catalogue in the place of the present one, all of it or nothing, and shows what that changes.
    Apply(Apply),
    /// Prints the present catalogue as a file to start from.
    Export(Export),
}

/// Puts a file's catalogue in the place of the present one, all of it or nothing, and shows what that changes: + added,
/// ~ changed, - retired. What is retired is sold no more; who owns it keeps it.
#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// The catalogue, in TOML; deploy/local/catalogue.toml is the one that `garage init` makes.
    file: PathBuf,
    /// Checks the file and shows what it would change, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mysql: MySql,
}

/// Prints the present catalogue as a file to start from.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    mysql: MySql,
}

impl Of {
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
        let next: Catalogue = text.parse().with_context(|| format!("nothing has changed: {name}"))?;
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        if self.dry_run {
            show(&apply::differences(&pool, &next).await?);
            say("nothing has changed: this was a dry run");
        } else {
            show(&apply::apply(&pool, &next).await.context("nothing has changed")?);
            say("the catalogue is as the file says");
        }
        Ok(())
    }
}

impl Export {
    async fn run(self) -> anyhow::Result<()> {
        let pool = self.mysql.pool()?;
        mysql::check_schema(&pool).await?;
        say(apply::present(&pool).await?.to_toml()?.trim_end());
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
