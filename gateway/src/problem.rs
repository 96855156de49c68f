//! The errors that clients see, as `application/problem+json` (RFC 9457). Internal causes are logged here and not sent
//! to clients.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use garage_events::{
    block::Block,
    event::DecodeError,
    id::{PartyId, PlayerId, QueueName, Region, SessionId, TicketId},
    log::{AppendError, ReadError},
    svc::CallError,
};
use garage_rules::ticket::Hopeless;
use hyper::{
    StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use warp::reply::Response;

use crate::{admission::Limit, party, token::Refused};

/// How long clients should wait before they retry, in seconds. NATS elects a new leader within a few seconds.
pub(crate) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// The same for a closed queue and a full log, in seconds. Operators usually close a queue for minutes or longer, and a
/// full log gets room when its oldest events expire.
const CLOSED_RETRY_AFTER: HeaderValue = HeaderValue::from_static("60");

/// The answer to a request that failed.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    /// A relative URI that identifies the kind of problem; `about:blank` if the status says enough.
    kind: &'static str,
    title: &'static str,
    detail: String,
    members: Vec<(&'static str, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The player of a group or a party whom the problem is about, and the player's name.
    about: Option<Box<(PlayerId, String)>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let (detail, members, headers) = (detail.into(), Vec::new(), Vec::new());
        Self { status, kind: "about:blank", title, detail, members, headers, about: None }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this path does not support the method; use one of: {allow}"))
            .header(header::ALLOW, HeaderValue::from_static(allow))
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request body is too long; the limit is {limit} bytes"))
            .header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).header(header::RETRY_AFTER, RETRY_AFTER)
    }

    pub(crate) fn queue_closed(queue: &QueueName, reason: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("queue {queue} is closed: {reason}"))
            .kind("/problems/queue-closed", "Queue closed")
            .member("queue", queue.as_str())
            .member("reason", reason)
            .header(header::RETRY_AFTER, CLOSED_RETRY_AFTER)
    }

    pub(crate) fn blocked(block: &Block) -> Self {
        let until = block.until.and_then(|until| until.format(&Rfc3339).ok());
        let mut detail = "an operator has blocked the player".to_owned();
        if let Some(until) = &until {
            detail += &format!(" until {until}");
        }
        if let Some(reason) = &block.reason {
            detail += &format!(": {reason}");
        }
        let problem = Self::new(StatusCode::FORBIDDEN, detail).kind("/problems/blocked", "Player blocked");
        let members = [("until", until), ("reason", block.reason.clone())];
        let members = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
        members.fold(problem, |problem, (name, value)| problem.member(name, value))
    }

    pub(crate) fn log_full() -> Self {
        let detail = "the log of tickets and matches is full, and has no room for this command now; try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
            .kind("/problems/log-full", "Log full")
            .header(header::RETRY_AFTER, CLOSED_RETRY_AFTER)
    }

    /// A limit of this gateway is reached. `why` says what the limit counts. Also counts the answer in the metrics.
    pub(crate) fn limited(limit: &Limit, why: impl Display, wait: Duration) -> Self {
        metrics::counter!("garage_gateway_limited_total", "limit" => limit.label).increment(1);
        // Rounded up, so that a request after this time is admitted.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let detail = format!("the limit `{limit}` is reached: {why}; try again in {seconds} s");
        Self::too_many_requests(limit.to_string(), detail, seconds.into())
    }

    /// A limit for connections is reached. The answer closes the connection.
    pub(crate) fn too_many_connections(detail: &str) -> Self {
        Self::too_many_requests("connections".into(), detail.into(), RETRY_AFTER)
            .header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    fn too_many_requests(limit: String, detail: String, retry_after: HeaderValue) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
            .kind("/problems/too-many-requests", "Too many requests")
            .member("limit", limit)
            .header(header::RETRY_AFTER, retry_after)
    }

    /// The queue can never match the ticket. `bounds` says in words by how much the latencies are too high.
    pub(crate) fn latency_too_high(queue: &QueueName, limits: &BTreeMap<Region, u32>, bounds: &str) -> Self {
        let limits: Map<_, _> = limits.iter().map(|(region, max)| (region.to_string(), (*max).into())).collect();
        let detail = format!("no latency is low enough for queue {queue}: {bounds}");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
            .kind("/problems/latency-too-high", "Latency too high")
            .member("queue", queue.as_str())
            .member("max_latency_ms", limits)
    }

    /// No match can ever contain the ticket under the queue's rules.
    pub(crate) fn hopeless(queue: &QueueName, why: &Hopeless) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("queue {queue} can never match the ticket: {why}"))
            .kind("/problems/hopeless-ticket", "Hopeless ticket")
            .member("queue", queue.as_str())
    }

    /// Adds the names of the members of a party that it is about.
    pub(crate) fn members<'a>(self, members: impl IntoIterator<Item = &'a PlayerId>) -> Self {
        self.member("players", members.into_iter().map(party::name).collect::<Vec<_>>())
    }

    /// Says which player of a group or of a party it is about.
    pub(crate) fn about(mut self, player: &PlayerId) -> Self {
        self.about = Some(Box::new((player.clone(), party::name(player))));
        self
    }

    /// Names the player as the client has named them. The id of a player may be a hash of their name.
    pub(crate) fn naming<'a>(mut self, names: impl IntoIterator<Item = (&'a PlayerId, &'a str)>) -> Self {
        if let Some(about) = &mut self.about
            && let Some((_, name)) = names.into_iter().find(|(player, _)| **player == about.0)
        {
            name.clone_into(&mut about.1);
        }
        self
    }

    pub(crate) fn waiting(ticket: TicketId) -> Self {
        let detail = format!("the player already waits with ticket {ticket}; cancel that ticket first");
        Self::new(StatusCode::CONFLICT, detail)
            .kind("/problems/already-waiting", "Already waiting")
            .member("ticket", ticket.to_string())
    }

    pub(crate) fn in_session(session: SessionId) -> Self {
        let detail = format!(
            "the player is or was in session {session}; a matched ticket cannot be cancelled; try other commands again \
             when the proposal or the match has ended"
        );
        Self::new(StatusCode::CONFLICT, detail)
            .kind("/problems/in-session", "Already matched")
            .member("session", session.to_string())
    }

    /// The player is in this party, and the command is only for players who are in none, or for the leader.
    pub(crate) fn in_party(party: PartyId) -> Self {
        let detail = format!(
            "the player is in party {party}; only its leader can queue it, and the player must leave it before they can \
             join another party or a group"
        );
        Self::new(StatusCode::CONFLICT, detail)
            .kind("/problems/in-party", "In a party")
            .member("party", party.to_string())
    }

    pub(crate) fn not_leader(leader: Option<&PlayerId>) -> Self {
        let problem = Self::new(StatusCode::FORBIDDEN, "only the leader of the party can do this")
            .kind("/problems/not-leader", "Not the leader");
        leader.iter().fold(problem, |problem, leader| problem.member("leader", party::name(leader)))
    }

    pub(crate) fn party_waits(ticket: TicketId) -> Self {
        let detail = format!("the party waits with ticket {ticket}; cancel that ticket first");
        Self::new(StatusCode::CONFLICT, detail)
            .kind("/problems/party-waits", "Party waits")
            .member("ticket", ticket.to_string())
    }

    pub(crate) fn party_full(detail: String) -> Self {
        Self::new(StatusCode::CONFLICT, detail).kind("/problems/party-full", "Party full")
    }

    /// These members of the party are away or not ready.
    pub(crate) fn not_ready<'a>(members: impl IntoIterator<Item = &'a PlayerId>) -> Self {
        Self::new(StatusCode::CONFLICT, "members of the party are away or not ready; `players` lists them")
            .kind("/problems/party-not-ready", "Party not ready")
            .members(members)
    }

    /// The proposed match no longer waits for answers.
    pub(crate) fn proposal_over(detail: &str) -> Self {
        Self::new(StatusCode::CONFLICT, detail).kind("/problems/proposal-over", "Proposal over")
    }

    /// The player did not accept or did not join their last matches, and has to wait.
    pub(crate) fn absent(until: OffsetDateTime, absences: u32, now: OffsetDateTime) -> Self {
        let at = until.format(&Rfc3339).unwrap_or_default();
        let seconds = (until - now).whole_seconds().max(0) + 1;
        let detail =
            format!("the player did not accept or join {absences} matches in a row, and can queue again at {at}");
        Self::new(StatusCode::CONFLICT, detail)
            .kind("/problems/matches-missed", "Matches missed")
            .member("absences", absences)
            .member("queue_again_at", at)
            .header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Whether the cause is the request (status 4xx) and not the server.
    pub fn is_clients(&self) -> bool {
        self.status.is_client_error()
    }

    #[cfg(test)]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    fn kind(mut self, kind: &'static str, title: &'static str) -> Self {
        (self.kind, self.title) = (kind, title);
        self
    }

    fn member(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }

    pub(crate) fn into_response(self) -> Response {
        let mut body = Map::new();
        body.insert("type".into(), self.kind.into());
        body.insert("title".into(), self.title.into());
        body.insert("status".into(), self.status.as_u16().into());
        let detail = match &self.about {
            Some(about) => format!("player {}: {}", about.1, self.detail),
            None => self.detail,
        };
        body.insert("detail".into(), detail.into());
        if let Some(about) = self.about {
            body.insert("player".into(), about.1.into());
        }
        for (name, value) in self.members {
            body.insert(name.into(), value);
        }
        let mut response = Response::new(Value::Object(body).to_string().into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(self.headers);
        response
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        metrics::counter!("garage_gateway_tokens_refused_total", "reason" => refused.reason()).increment(1);
        let challenge = match &refused {
            Refused::NoKeys => return Self::unavailable(refused.to_string()),
            // RFC 6750, section 3: no error code if the request has no token.
            Refused::Missing => Ok(HeaderValue::from_static("Bearer")),
            refused => {
                HeaderValue::try_from(format!("Bearer error=\"invalid_token\", error_description=\"{refused}\""))
            }
        };
        // The texts and the names of claims contain only characters that a header may contain.
        let challenge = challenge.unwrap_or(HeaderValue::from_static("Bearer error=\"invalid_token\""));
        Self::new(StatusCode::UNAUTHORIZED, refused.to_string()).header(header::WWW_AUTHENTICATE, challenge)
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable(_) => {
                tracing::warn!(%error, "request failed: temporarily unavailable");
                Self::unavailable("the matchmaking log does not answer; try again")
            }
            ReadError::Unreadable { source: DecodeError::Unknown { .. }, .. } => {
                // A newer build knows this event. Another gateway may already run that build.
                tracing::error!(%error, "request failed: temporarily unavailable");
                Self::unavailable("the service is being upgraded; try again")
            }
            ReadError::Unreadable { source: DecodeError::Corrupt(_), .. } => {
                tracing::error!(%error, "request failed: internal error");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the cause is in the gateway's log")
            }
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        tracing::warn!(%error, "request failed: temporarily unavailable");
        let detail = match error {
            AppendError::Full(_) => return Self::log_full(),
            AppendError::Conflict(_) => "the player's state changed several times during the request; try again",
            AppendError::Unavailable(_) => "the matchmaking log does not answer; try again",
            // Not a 429: the other commands may be those of a group, or of the gateway itself, so the player may not be
            // the cause.
            AppendError::Busy(_) => "too many commands change the player at the same time; try again",
            AppendError::Refused(_) => {
                "the matchmaking log does not accept this event; the cause is in the gateway's log"
            }
        };
        Self::unavailable(detail)
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { code, message, .. } if (400..500).contains(&code) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
                Self::new(status, message)
            }
            CallError::Refused { code: 503, .. } | CallError::Unavailable { .. } => {
                tracing::warn!(%error, "request failed: temporarily unavailable");
                Self::unavailable("a service behind the gateway does not answer; try again")
            }
            CallError::Refused { .. } | CallError::Malformed { .. } => {
                tracing::error!(%error, "request failed: unexpected answer from another worker");
                Self::new(
                    StatusCode::BAD_GATEWAY,
                    "a service behind the gateway failed; the cause is in the gateway's log",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_events::subject::Aggregate;
    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    async fn shown(problem: impl Into<Problem>) -> (hyper::http::response::Parts, Value) {
        let (parts, body) = problem.into().into_response().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_conflict_contains_the_ticket() {
        let ticket = TicketId::new(uuid::Uuid::nil());
        let (parts, body) = shown(Problem::waiting(ticket)).await;
        assert_eq!(parts.status, 409);
        assert_eq!(parts.headers[header::CONTENT_TYPE], "application/problem+json");
        let detail = format!("the player already waits with ticket {ticket}; cancel that ticket first");
        let expected = json!({"type": "/problems/already-waiting", "title": "Already waiting", "status": 409,
            "detail": detail, "ticket": ticket});
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn an_outage_is_a_503_with_retry_after_and_without_internal_details() {
        let internal = "10.0.0.7:4222 refused";
        let subject = "svc.session.get";
        for problem in [
            Problem::from(ReadError::Unavailable(internal.into())),
            Problem::from(AppendError::Unavailable(internal.into())),
            Problem::from(AppendError::Refused(internal.into())),
            Problem::from(AppendError::Busy(Aggregate::Player("ann".parse().unwrap()))),
            Problem::from(CallError::Unavailable { subject, reason: internal.into() }),
            Problem::from(CallError::Refused { subject, code: 503, message: internal.into() }),
        ] {
            let (parts, body) = shown(problem).await;
            assert_eq!(parts.status, 503);
            assert_eq!(parts.headers[header::RETRY_AFTER], "2");
            assert!(!body.to_string().contains("10.0"), "{body}");
        }
        let (parts, body) = shown(CallError::Refused { subject, code: 500, message: internal.into() }).await;
        assert_eq!(parts.status, 502);
        assert!(!body.to_string().contains("10.0"), "{body}");
        let (parts, body) = shown(CallError::Refused { subject, code: 404, message: "no such car".into() }).await;
        assert_eq!((parts.status.as_u16(), body["detail"].as_str()), (404, Some("no such car")));
    }

    #[tokio::test]
    async fn a_reached_limit_is_a_429_that_names_the_limit_and_rounds_the_wait_up() {
        let limit = Limit { label: "queue", queue: Some("ranked".parse().unwrap()) };
        for (millis, seconds) in [(1, "1"), (1_000, "1"), (1_001, "2"), (5_000, "5")] {
            let (parts, body) = shown(Problem::limited(&limit, "3 at once", Duration::from_millis(millis))).await;
            assert_eq!((parts.status.as_u16(), parts.headers[header::RETRY_AFTER].to_str().unwrap()), (429, seconds));
            let detail = format!("the limit `queue:ranked` is reached: 3 at once; try again in {seconds} s");
            let expected = json!({"type": "/problems/too-many-requests", "title": "Too many requests", "status": 429,
                "detail": detail, "limit": "queue:ranked"});
            assert_eq!(body, expected);
        }
    }

    #[tokio::test]
    async fn a_full_log_is_not_a_log_that_does_not_answer() {
        let (parts, body) = shown(AppendError::Full("maximum bytes exceeded".into())).await;
        assert_eq!((parts.status.as_u16(), parts.headers[header::RETRY_AFTER].to_str().unwrap()), (503, "60"));
        assert_eq!(body["type"], "/problems/log-full");
        assert!(!body.to_string().contains("bytes"), "{body}");
    }

    #[tokio::test]
    async fn a_401_contains_a_challenge() {
        let invalid = |why: &str| format!("Bearer error=\"invalid_token\", error_description=\"{why}\"");
        for (refused, challenge) in [
            (Refused::Missing, "Bearer".to_owned()),
            (Refused::Signature, invalid("the token is not valid; check its signature")),
            (Refused::Expired, invalid("the token has expired; get a new one from the identity provider")),
            (Refused::Rank("the claim https://a/rank is wrong".into()), invalid("the claim https://a/rank is wrong")),
        ] {
            let (parts, _) = shown(refused).await;
            assert_eq!(
                (parts.status.as_u16(), parts.headers[header::WWW_AUTHENTICATE].to_str().unwrap()),
                (401, &*challenge)
            );
        }
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_checked_yet_is_not_refused_as_invalid() {
        let (parts, _) = shown(Refused::NoKeys).await;
        assert_eq!((parts.status.as_u16(), parts.headers.contains_key(header::WWW_AUTHENTICATE)), (503, false));
        assert_eq!(parts.headers[header::RETRY_AFTER], "2");
    }

    #[tokio::test]
    async fn a_problem_about_a_player_names_them_as_the_request_did() {
        let (sub, ann) = ("ä".repeat(255), "ann".parse().unwrap());
        let long = PlayerId::from_foreign(&sub).unwrap();
        let names = [(&ann, "ann"), (&long, &*sub)];
        let (_, body) = shown(Problem::bad_request("no").about(&long).naming(names)).await;
        assert_eq!((&body["player"], &body["detail"]), (&json!(sub), &json!(format!("player {sub}: no"))));
        let (_, body) = shown(Problem::bad_request("no").about(&long)).await;
        assert_eq!(body["player"], long.as_str());
    }
}
