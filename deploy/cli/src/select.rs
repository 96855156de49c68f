//! Which events an operator wants.

use clap::builder::PossibleValuesParser;
use garage_events::{
    event::Event,
    id::{PlayerId, SessionId},
    inventory, player, session,
    subject::{ALL, Aggregate, Filter},
};

use crate::entry::LogEntry;

/// Which events.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Select {
    /// Only subjects that this selects, as 'garage.session.*.closed'.
    #[arg(long, value_name = "FILTER", conflicts_with_all = ["player", "session"])]
    subject: Option<Filter>,
    /// Only what happened to this player; his name as the identity provider has it.
    #[arg(long, value_name = "NAME", conflicts_with = "session")]
    player: Option<String>,
    /// Only what happened to this session.
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only events of this type; may be given more than once.
    #[arg(long = "type", value_name = "TYPE", value_parser = types(), hide_possible_values = true)]
    types: Vec<String>,
}

impl Select {
    /// What the server selects by; none overlaps another.
    pub(crate) fn filters(&self) -> anyhow::Result<Vec<String>> {
        if let Some(player) = &self.player {
            let player = PlayerId::from_foreign(player)?;
            return Ok([Aggregate::Player(player.clone()), Aggregate::Inventory(player)]
                .map(|one| one.filter())
                .into());
        }
        let session = self.session.map(|session| Aggregate::Session(session).filter());
        let subject = self.subject.as_ref().map(|filter| filter.as_str().to_owned());
        Ok(vec![session.or(subject).unwrap_or_else(|| ALL.into())])
    }

    /// Whether an event that the server selected is wanted.
    pub(crate) fn takes(&self, entry: &LogEntry) -> bool {
        self.types.is_empty() || self.types.contains(&entry.type_name)
    }
}

/// Every type there is, so that a slip of the pen does not select nothing.
fn types() -> PossibleValuesParser {
    let mut types = [player::Event::TYPES, session::Event::TYPES, inventory::Event::TYPES].concat();
    types.sort_unstable();
    types.dedup();
    PossibleValuesParser::new(types)
}
