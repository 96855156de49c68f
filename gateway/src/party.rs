//! Parties, as their members see them, and the codes for joining one. Pure.

pub(crate) mod code;

use garage_events::{
    id::{PartyId, PlayerId, TicketId},
    party::Party,
};
use serde::Serialize;
use time::OffsetDateTime;

/// The answer to `GET /v1/party`, and the data of a frame `party`. Other members' latencies and attributes are not part
/// of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct View {
    party: PartyId,
    leader: PlayerId,
    /// The longest-standing member first.
    members: Vec<MemberView>,
    /// The players with a valid invitation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    invited: Vec<InvitedView>,
    /// Until when the code for joining is valid; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    code_expires_at: Option<OffsetDateTime>,
    /// The last ticket that the party queued with, whether it has ended or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<TicketId>,
    /// When the party ends, unless it queues before.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct MemberView {
    /// The id that events and sessions contain.
    player: PlayerId,
    /// How requests name the player: the `sub` of their token.
    sub: String,
    #[serde(with = "time::serde::rfc3339")]
    joined_at: OffsetDateTime,
    ready: bool,
    away: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct InvitedView {
    player: PlayerId,
    /// How requests name the player: the `sub` of their token.
    sub: String,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

impl View {
    /// The party at this time. What has expired is not shown.
    pub(crate) fn of(id: PartyId, party: &Party, now: OffsetDateTime) -> Self {
        let members = party.members.iter().map(|member| MemberView {
            player: member.player.clone(),
            sub: name(&member.player),
            joined_at: member.joined_at,
            ready: member.ready.is_some(),
            away: member.away,
        });
        let invited = party.invited.iter().filter(|(_, invitation)| now < invitation.expires_at);
        let invited = invited.map(|(player, invitation)| InvitedView {
            player: player.clone(),
            sub: name(player),
            expires_at: invitation.expires_at,
        });
        Self {
            party: id,
            leader: party.leader.clone(),
            members: members.collect(),
            invited: invited.collect(),
            code_expires_at: party.code.as_ref().map(|code| code.expires_at).filter(|expires_at| now < *expires_at),
            ticket: party.ticket,
            expires_at: party.ends_at(),
        }
    }
}

/// The `sub` of a player's token. If the player's id is a hash of it, the id itself: [`named`] accepts both.
pub(crate) fn name(player: &PlayerId) -> String {
    player.to_foreign().unwrap_or_else(|| player.to_string())
}

/// The player whom a client names by the `sub` of their token, or by [`name`]. `None` if the text is neither.
pub(crate) fn named(text: &str) -> Option<PlayerId> {
    let hashed = text.parse::<PlayerId>().ok().filter(|player| player.to_foreign().is_none());
    hashed.or_else(|| PlayerId::from_foreign(text).ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_events::party::{Invitation, JoinCode, LIFETIME, Member, Readiness};
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn every_player_is_named_by_their_name() {
        for sub in ["ann", "ann@example.org", "=", "==ab", &"ä".repeat(255)] {
            let player = PlayerId::from_foreign(sub).unwrap();
            assert_eq!(named(sub), Some(player.clone()), "{sub}");
            assert_eq!(named(&name(&player)), Some(player), "{sub}");
        }
        assert_eq!((named(""), named(&"a".repeat(256))), (None, None));
    }

    #[test]
    fn a_view_shows_neither_what_has_expired_nor_the_values_of_members() {
        let (epoch, at) =
            (OffsetDateTime::UNIX_EPOCH, |seconds| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds));
        let ann: PlayerId = "ann=40x".parse().unwrap();
        let ready =
            Some(Readiness { latencies: BTreeMap::from([("eu".parse().unwrap(), 20)]), ..Readiness::default() });
        let invitation = |seconds| Invitation { by: ann.clone(), expires_at: at(seconds) };
        let party = Party {
            members: vec![Member { player: ann.clone(), joined_at: epoch, ready, away: false }],
            leader: ann.clone(),
            invited: BTreeMap::from([
                ("bob".parse().unwrap(), invitation(9)),
                ("eve".parse().unwrap(), invitation(10)),
            ]),
            code: Some(JoinCode { sha256: "ab".repeat(32), expires_at: at(9) }),
            renewed_at: epoch,
            ticket: None,
        };
        let id = PartyId::new(Uuid::nil());
        let view = serde_json::to_value(View::of(id, &party, at(9))).unwrap();
        let expected = json!({
            "party": id,
            "leader": "ann=40x",
            "members": [{"player": "ann=40x", "sub": "ann@x", "joined_at": "1970-01-01T00:00:00Z", "ready": true,
                "away": false}],
            "invited": [{"player": "eve", "sub": "eve", "expires_at": "1970-01-01T00:00:10Z"}],
            "expires_at": format!("1970-01-01T{:02}:00:00Z", LIFETIME.whole_hours()),
        });
        assert_eq!(view, expected);
    }
}
