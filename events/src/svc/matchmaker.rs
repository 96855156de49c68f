//! The request that the matchmaker answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Call;
use crate::{id::PlayerId, player::Candidates};

/// Asks which other tickets a waiting player's ticket could be matched with. The answer is `None` if the player does not
/// wait. Refused with 503 if too many requests wait.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CountCandidates {
    pub player: PlayerId,
}
impl Call for CountCandidates {
    const SUBJECT: &'static str = "svc.matchmaker.candidates";
    type Reply = Option<Candidates>;
    // The caller can do without the answer.
    const TIMEOUT: Duration = Duration::from_secs(1);
}
