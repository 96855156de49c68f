//! What happened to a session.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::LiveSession;
use crate::{player::Ending, session::Event};

/// A session and its events. Their number is bounded by that of its attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The session as it stands; once it is closed, as it stood.
    pub session: LiveSession,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
    /// The oldest first.
    pub events: Vec<Entry>,
}

/// One event of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its sequence in the log.
    pub seq: u64,
    /// The stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// For example `PodReady`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Which attempt it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What went wrong, for a person; cut off when it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A step on the way of a session that goes well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are the events of the same names")]
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
    /// All of them, in their order.
    pub const ALL: [Self; 7] = [
        Self::Matched,
        Self::PodRequested,
        Self::PodScheduled,
        Self::PodReady,
        Self::Opened,
        Self::Finished,
        Self::Closed,
    ];

    /// The step that an event is, if it is one.
    pub fn of(event: &Event) -> Option<Self> {
        Some(match event {
            Event::Matched(_) => Self::Matched,
            Event::PodRequested(_) => Self::PodRequested,
            Event::PodScheduled(_) => Self::PodScheduled,
            Event::PodReady(_) => Self::PodReady,
            Event::Opened(_) => Self::Opened,
            Event::Finished(_) => Self::Finished,
            Event::Closed(_) => Self::Closed,
            Event::PodFailed(_) | Event::Failed(_) => return None,
        })
    }

    /// The type of the event that it is, as messages name it.
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

    /// The step before it.
    pub fn previous(self) -> Option<Self> {
        Self::ALL.into_iter().take_while(|step| *step != self).last()
    }
}
