//! `garage bench matching`: how fast matches are made.

mod baseline;
mod engine;
mod figures;
mod path;
#[path = "../../../../events/rules/benches/pools.rs"]
mod pools;
#[path = "../../../../matchmaker/benches/waiting.rs"]
mod waiting;

use std::path::PathBuf;

use self::figures::Figures;
use crate::report::say;

/// Measures how fast matches are made, and compares it with a writer that only stores the same events.
///
/// It prints tables, and writes its figures to a file. With the defaults, it takes about half an hour on two cores.
#[derive(Debug, clap::Args)]
pub(crate) struct Matching {
    /// Runs only one part. `engine` looks for matches in memory. `path` makes matches with a matchmaker process and NATS.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Number of NATS nodes for `path`.
    #[arg(long, value_enum, default_value = "both")]
    nats_nodes: Nodes,
    /// File for the figures: a JSON object of numbers. An existing file is overwritten.
    #[arg(long, value_name = "FILE", default_value = "target/bench/figures.json")]
    figures: PathBuf,
    #[command(flatten)]
    load: path::Options,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Engine,
    Path,
}

/// The numbers of NATS nodes that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Nodes {
    #[value(name = "1")]
    One,
    #[value(name = "3")]
    Three,
    Both,
}

impl Nodes {
    fn counts(self) -> &'static [u8] {
        match self {
            Self::One => &[1],
            Self::Three => &[3],
            Self::Both => &[1, 3],
        }
    }
}

impl Matching {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut figures = Figures::default();
        let runs = |part| self.only.is_none_or(|only| only == part);
        if runs(Part::Engine) {
            engine::run(&mut figures)?;
        }
        if runs(Part::Path) {
            for nodes in self.nats_nodes.counts() {
                path::run(&self.load, *nodes, &mut figures).await?;
            }
        }
        figures.write(&self.figures)?;
        say(format!("\nThe figures are in {}.", self.figures.display()));
        Ok(())
    }
}
