//! The filters of `garage tail` and `garage replay`.

use clap::builder::PossibleValuesParser;
use garage_events::{
    event::Event,
    id::{PartyId, PlayerId, SessionId},
    inventory, party, player, session,
    subject::{ALL, Aggregate, Filter},
};

use crate::entry::LogEntry;

/// The events that an operator selects.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Select {
    /// Only events on these subjects, for example 'garage.session.*.closed'.
    #[arg(long, value_name = "FILTER", conflicts_with_all = ["player", "session", "party"])]
    subject: Option<Filter>,
    /// Only events of this player. NAME is the `sub` of the player's token, or an id that begins with ==.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["session", "party"])]
    player: Option<String>,
    /// Only events of this session.
    #[arg(long, value_name = "ID", conflicts_with = "party")]
    session: Option<SessionId>,
    /// Only events of this party. The events of its members are events of players.
    #[arg(long, value_name = "ID")]
    party: Option<PartyId>,
    /// Only events of this type. Can be repeated.
    #[arg(long = "type", value_name = "TYPE", value_parser = types(), hide_possible_values = true)]
    types: Vec<String>,
}

impl Select {
    /// The subject filters for the server. They do not overlap.
    pub(crate) fn filters(&self) -> anyhow::Result<Vec<String>> {
        if let Some(player) = &self.player {
            let player = player_id(player)?;
            return Ok([Aggregate::Player(player.clone()), Aggregate::Inventory(player)]
                .map(|one| one.filter())
                .into());
        }
        let session = self.session.map(|session| Aggregate::Session(session).filter());
        let party = self.party.map(|party| Aggregate::Party(party).filter());
        let subject = self.subject.as_ref().map(|filter| filter.as_str().to_owned());
        Ok(vec![session.or(party).or(subject).unwrap_or_else(|| ALL.into())])
    }

    /// Whether an event that the server selected also has one of the types.
    pub(crate) fn takes(&self, entry: &LogEntry) -> bool {
        self.types.is_empty() || self.types.contains(&entry.type_name)
    }
}

/// The player whom an operator names. The id of a player with a long `sub` is a hash. The log and the dashboard show
/// only the id, so it is accepted too.
///
/// # Errors
/// When the name is empty or too long.
pub(crate) fn player_id(name: &str) -> Result<PlayerId, garage_events::id::Invalid> {
    if name.starts_with("==")
        && let Ok(id) = name.parse()
    {
        Ok(id)
    } else {
        PlayerId::from_foreign(name)
    }
}

/// All event types. With this list, a typing error is refused instead of selecting nothing.
fn types() -> PossibleValuesParser {
    let mut types =
        [player::Event::TYPES, party::Event::TYPES, session::Event::TYPES, inventory::Event::TYPES].concat();
    types.sort_unstable();
    types.dedup();
    PossibleValuesParser::new(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_player_is_named_by_their_sub_or_by_an_id_that_is_a_hash() {
        let long = "a".repeat(255);
        let id = player_id(&long).unwrap();
        assert_eq!(player_id(id.as_str()).unwrap(), id);
        assert_eq!(player_id("ann@example.org").unwrap().as_str(), "ann=40example=2Eorg");
        assert_eq!(player_id("==").unwrap().to_foreign().as_deref(), Some("=="));
    }
}
