//! How large a request for a game server can become. The log refuses events above a limit, so what goes into a request
//! is limited where it comes from: the catalogue must fit a match with the most players that a queue may have.

use crate::{game::Loadout, log::MAX_EVENT, queue::MAX_PLAYERS};

/// Bytes of a [`super::PodRequested`] besides the loadouts: the envelope, ids, times and the public key. About 1.2 KiB
/// are needed.
const REST: usize = 4 << 10;

/// The maximum size of one player's loadout in JSON, in bytes.
pub const MAX_LOADOUT: usize = (MAX_EVENT - REST) / MAX_PLAYERS - 1;

/// The size of a loadout in JSON, in bytes.
pub fn of_loadout(loadout: &Loadout) -> usize {
    // A loadout has no values that JSON cannot represent, except numbers that are not finite, which become `null`.
    serde_json::to_vec(loadout).map_or(usize::MAX, |json| json.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::executor::block_on;
    use time::macros::datetime;

    use super::*;
    use crate::{
        env::{Env, Simulated},
        game::{Car, Stats},
        id::SessionId,
        log::{Append, Decision, Head},
        session::{Event, PodRequested},
        sim::SimLog,
        subject::Aggregate,
    };

    /// A loadout of exactly this size, for the longest player id.
    fn loadout(size: usize) -> Loadout {
        let stats = Stats { power_kw: 80.0, mass_kg: 900.0, grip: 1.0, drag_m2: 0.6 };
        let car = Car { id: "a".parse().unwrap(), model: String::new(), texture: String::new(), stats };
        let mut loadout = Loadout { player: "p".repeat(128).parse().unwrap(), car, items: BTreeMap::new() };
        loadout.car.model = "m".repeat(size - of_loadout(&loadout));
        assert_eq!(of_loadout(&loadout), size);
        loadout
    }

    #[test]
    fn the_largest_match_with_the_largest_loadouts_fits_an_event() {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let log = SimLog::new(env.clone());
        for (size, fits) in [(MAX_LOADOUT, true), (MAX_LOADOUT + 64, false)] {
            let requested = PodRequested {
                attempt: u32::MAX,
                region: "r".repeat(32).parse().unwrap(),
                loadouts: vec![loadout(size); MAX_PLAYERS],
                // The length of an RSA key of 2,048 bits in PEM, with its line breaks.
                public_key: "k\n".repeat(240),
                fingerprint: "f".repeat(64),
                ends_at: Some(env.now()),
            };
            let session = SessionId::new(env.id());
            let decision = Decision::new(&env, session.uuid(), Some(env.id()));
            let event = [Event::from(requested)];
            let decision = decision.change(&env, Aggregate::Session(session), Head::default(), event);
            assert_eq!(block_on(log.append(decision)).is_ok(), fits, "{size}");
        }
    }
}
