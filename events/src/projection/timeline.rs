//! The timeline of a session.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::LiveSession;
use crate::{player::Ending, session::Event};

/// A session and its events. The number of attempts bounds the number of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The current state of the session; once it is closed, its last state before that.
    pub session: LiveSession,
    /// How the session ended; absent until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
    /// Oldest first.
    pub events: Vec<Entry>,
}

/// One event of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Sequence in the log.
    pub seq: u64,
    /// The stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The type of the event, for example `PodReady`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The attempt that the event is about; absent if it is not about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What went wrong, in words; truncated if it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A step of a session that succeeds. Each step is the event of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each step is the event of the same name")]
pub enum Step {
    Matched,
    PodRequested,
    PodScheduled,
    PodReady,
    Opened,
    Finished,
    Closed,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Self; 7] = [
        Self::Matched,
        Self::PodRequested,
        Self::PodScheduled,
        Self::PodReady,
        Self::Opened,
        Self::Finished,
        Self::Closed,
    ];

    /// The step that corresponds to an event; `None` if there is none.
    pub fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::Matched(_) => Self::Matched,
            Event::PodRequested(_) => Self::PodRequested,
            Event::PodScheduled(_) => Self::PodScheduled,
            Event::PodReady(_) => Self::PodReady,
            Event::Opened(_) => Self::Opened,
            Event::Finished(_) => Self::Finished,
            Event::Closed(_) => Self::Closed,
            Event::PodFailed(_)
            | Event::Failed(_)
            | Event::Proposed(_)
            | Event::Accepted(_)
            | Event::ProposalEnded(_) => return None,
        })
    }

    /// The type name of the corresponding event.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Matched => "Matched",
            Self::PodRequested => "PodRequested",
            Self::PodScheduled => "PodScheduled",
            Self::PodReady => "PodReady",
            Self::Opened => "Opened",
            Self::Finished => "Finished",
            Self::Closed => "Closed",
        }
    }

    /// The step before this one; `None` for the first.
    pub fn previous(self) -> Option<Self> {
        Self::ALL.into_iter().take_while(|step| *step != self).last()
    }
}
