//! The dashboard's data in the form in which the page receives it, as JSON. Pure.

use std::collections::BTreeMap;

use garage_events::{
    id::{QueueName, SessionId},
    player::Ending,
    projection::{
        DeadLetterSummary, Entry, Flow, Histogram, LiveSession, MINUTES, Minute, Server, Step, Timeline, millis,
        minute_of,
    },
    session::Status,
};
use serde::Serialize;
use time::OffsetDateTime;

use super::read::{Snapshot, Watermark};

/// The maximum number of live sessions in the list.
const MAX_LIVE: usize = 100;

/// The overview.
#[derive(Debug, Serialize)]
pub(super) struct View {
    #[serde(rename = "mark")]
    watermark: WatermarkView,
    /// Why the log stores no events, or no new tickets, and what to do; absent if it stores them.
    log: Option<String>,
    window_minutes: i64,
    queues: Vec<QueueView>,
    funnel: Vec<StepView>,
    /// The players who left a queue without a match.
    lost: Lost,
    servers: BTreeMap<Server, u64>,
    /// The number of live sessions.
    sessions: u64,
    /// The number of players in live sessions.
    playing: u64,
    /// The newest live sessions.
    live: Vec<SessionView>,
    closed: Vec<SessionView>,
    failures: Failures,
    #[serde(rename = "letters")]
    dead_letters: Option<DeadLettersView>,
}

#[derive(Debug, Serialize)]
struct WatermarkView {
    seq: u64,
    behind: Option<u64>,
    /// The age of the last event.
    event_age_ms: Option<u64>,
    /// The time since the projector last reported.
    seen_age_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct QueueView {
    name: QueueName,
    /// The number of waiting players.
    depth: u64,
    /// The longest current wait; absent if nobody waits.
    oldest_ms: Option<u64>,
    queued_per_minute: f64,
    matched_per_minute: f64,
    /// Players queued in each minute of the last hour, oldest first.
    queued: Vec<u64>,
    /// Players matched in each minute of the last hour, oldest first.
    matched: Vec<u64>,
    /// The candidates that each rule excluded from matches with tickets that timed out in the last hour.
    excluded: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct StepView {
    step: &'static str,
    players: u64,
    /// Absent for the step `queued`, which belongs to players and not to a session.
    sessions: Option<u64>,
    /// Percentiles of the time since the previous step.
    p50_ms: Option<u64>,
    p99_ms: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
struct Lost {
    cancelled: u64,
    timed_out: u64,
}

#[derive(Debug, Serialize)]
struct SessionView {
    id: SessionId,
    queue: QueueName,
    region: String,
    /// The name of each player in the identity provider's tokens, or the player's id if it is a hash of the name.
    players: Vec<String>,
    status: Status,
    server: Option<Server>,
    attempt: u32,
    /// The time since the match; for a closed session, the time since it was closed.
    age_ms: u64,
    ended: Option<Ending>,
    /// The duration of a closed session.
    took_ms: Option<u64>,
}

/// The failures of the last hour, by reason.
#[derive(Debug, Serialize)]
struct Failures {
    servers: BTreeMap<String, u64>,
    sessions: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct DeadLettersView {
    /// By consumer.
    counts: BTreeMap<String, u64>,
    latest: Vec<DeadLetterView>,
    /// The age of this summary.
    looked_age_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct DeadLetterView {
    #[serde(rename = "letter")]
    number: u64,
    consumer: String,
    subject: String,
    error: String,
    age_ms: u64,
}

/// The timeline of a session.
#[derive(Debug, Serialize)]
pub(super) struct TimelineView {
    session: SessionView,
    events: Vec<EventView>,
}

#[derive(Debug, Serialize)]
struct EventView {
    /// The time since the match.
    since_ms: u64,
    #[serde(rename = "type")]
    type_name: String,
    attempt: Option<u32>,
    seq: u64,
    detail: Option<String>,
}

impl View {
    /// Makes the overview. It contains the configured `queues`, and all queues in which something happened.
    pub(super) fn of(snapshot: &Snapshot, queues: &[QueueName], log: Option<String>) -> Self {
        let now = snapshot.now;
        let current = minute_of(now);
        let window: BTreeMap<i64, &Minute> = snapshot
            .minutes
            .iter()
            .filter(|(at, _)| **at > current - MINUTES)
            .map(|(at, minute)| (*at, minute))
            .collect();
        let mut sum = Minute::default();
        for minute in window.values() {
            sum.add(minute);
        }
        let mut names: Vec<_> = queues.iter().chain(snapshot.queues.keys()).chain(sum.queues.keys()).cloned().collect();
        names.sort();
        names.dedup();
        let mut servers: BTreeMap<_, _> =
            [Server::Requested, Server::Scheduled, Server::Ready, Server::Running].map(|server| (server, 0)).into();
        for server in snapshot.sessions.values().filter_map(|session| session.server) {
            *servers.entry(server).or_default() += 1;
        }
        let mut live: Vec<_> = snapshot.sessions.iter().collect();
        live.sort_by_key(|(id, session)| (std::cmp::Reverse(session.since), **id));
        let flows = sum.queues.values().fold(Flow::default(), |mut all, flow| {
            all.add(flow);
            all
        });
        Self {
            watermark: WatermarkView::of(&snapshot.watermark, now),
            log,
            window_minutes: MINUTES,
            queues: names.into_iter().map(|name| QueueView::of(name, snapshot, &window)).collect(),
            funnel: funnel(&flows, &sum),
            lost: Lost { cancelled: flows.cancelled, timed_out: flows.timed_out },
            servers,
            sessions: live.len() as u64,
            playing: live.iter().map(|(_, session)| session.players.len() as u64).sum(),
            live: live.into_iter().take(MAX_LIVE).map(|(id, session)| SessionView::of(*id, session, now)).collect(),
            closed: snapshot.closed.iter().map(|(id, timeline)| SessionView::closed(*id, timeline, now)).collect(),
            failures: Failures { servers: sum.servers_failed, sessions: sum.sessions_failed },
            dead_letters: snapshot.dead_letters.as_ref().map(|dead_letters| DeadLettersView {
                counts: dead_letters.counts.clone(),
                latest: dead_letters.latest.iter().map(|summary| DeadLetterView::of(summary, now)).collect(),
                looked_age_ms: dead_letters.looked.map(|looked| age_ms(looked, now)),
            }),
        }
    }
}

impl WatermarkView {
    fn of(watermark: &Watermark, now: OffsetDateTime) -> Self {
        Self {
            seq: watermark.seq,
            behind: watermark.behind,
            event_age_ms: watermark.time.map(|time| age_ms(time, now)),
            seen_age_ms: watermark.seen.map(|seen| age_ms(seen, now)),
        }
    }
}

impl QueueView {
    fn of(name: QueueName, snapshot: &Snapshot, window: &BTreeMap<i64, &Minute>) -> Self {
        let current = minute_of(snapshot.now);
        let nothing = Flow::default();
        let flow = |at: i64| window.get(&at).and_then(|minute| minute.queues.get(&name)).unwrap_or(&nothing);
        let by_minute = |count: fn(&Flow) -> u64| (current - MINUTES + 1..=current).map(|at| count(flow(at))).collect();
        // A rate is computed over the current minute and the one before, because the current one may have just begun.
        let seconds = 60 + snapshot.now.unix_timestamp().rem_euclid(60);
        let per_minute = |count: fn(&Flow) -> u64| {
            let counted = u32::try_from(count(flow(current)) + count(flow(current - 1))).unwrap_or(u32::MAX);
            f64::from(counted) * 60.0 / f64::from(i32::try_from(seconds).unwrap_or(60))
        };
        Self {
            depth: snapshot.queues.get(&name).copied().unwrap_or_default(),
            oldest_ms: snapshot.oldest.get(&name).map(|since| age_ms(*since, snapshot.now)),
            queued_per_minute: per_minute(|flow| flow.queued),
            matched_per_minute: per_minute(|flow| flow.matched),
            queued: by_minute(|flow| flow.queued),
            matched: by_minute(|flow| flow.matched),
            excluded: {
                let mut sum = Flow::default();
                window.keys().for_each(|at| sum.add(flow(*at)));
                sum.excluded
            },
            name,
        }
    }
}

/// How many players and sessions reached each step, from the queue to the end of the session.
fn funnel(flows: &Flow, sum: &Minute) -> Vec<StepView> {
    let step = |step, players, sessions, took: &Histogram| StepView {
        step,
        players,
        sessions,
        p50_ms: took.percentile_ms(50),
        p99_ms: took.percentile_ms(99),
    };
    let mut steps = vec![step("queued", flows.queued, None, &Histogram::default())];
    for one in Step::ALL {
        let reached = sum.steps.get(&one).cloned().unwrap_or_default();
        let name = match one {
            // The players and their waits come from the players' events.
            Step::Matched => {
                steps.push(step("matched", flows.matched, Some(reached.sessions), &flows.waited));
                continue;
            }
            Step::PodRequested => "pod-requested",
            Step::PodScheduled => "pod-scheduled",
            Step::PodReady => "pod-ready",
            Step::Opened => "opened",
            Step::Finished => "finished",
            Step::Closed => "closed",
        };
        steps.push(step(name, reached.players, Some(reached.sessions), &reached.took));
    }
    steps
}

impl SessionView {
    fn of(id: SessionId, session: &LiveSession, now: OffsetDateTime) -> Self {
        Self {
            id,
            queue: session.queue.clone(),
            region: session.region.to_string(),
            players: session.players.iter().map(|id| id.to_foreign().unwrap_or_else(|| id.to_string())).collect(),
            status: session.status,
            server: session.server,
            attempt: session.attempt,
            age_ms: age_ms(session.since, now),
            ended: None,
            took_ms: None,
        }
    }

    fn closed(id: SessionId, timeline: &Timeline, now: OffsetDateTime) -> Self {
        let end = timeline.events.last().map_or(timeline.session.since, |entry| entry.time);
        Self {
            age_ms: age_ms(end, now),
            ended: timeline.ended,
            took_ms: timeline.ended.map(|_| age_ms(timeline.session.since, end)),
            ..Self::of(id, &timeline.session, now)
        }
    }
}

impl DeadLetterView {
    fn of(summary: &DeadLetterSummary, now: OffsetDateTime) -> Self {
        let DeadLetterSummary { number, dead_lettered_at, consumer, subject, error } = summary.clone();
        Self { number, consumer, subject, error, age_ms: age_ms(dead_lettered_at, now) }
    }
}

impl TimelineView {
    /// Makes the view of a timeline. All times are relative to the session's events, so it needs no clock.
    pub(super) fn of(id: SessionId, timeline: &Timeline) -> Self {
        let began = timeline.session.since;
        let end = timeline.events.last().map_or(began, |entry| entry.time);
        let event = |Entry { seq, time, type_name, attempt, detail }: &Entry| EventView {
            since_ms: age_ms(began, *time),
            type_name: type_name.clone(),
            attempt: *attempt,
            seq: *seq,
            detail: detail.clone(),
        };
        Self { session: SessionView::closed(id, timeline, end), events: timeline.events.iter().map(event).collect() }
    }
}

/// The milliseconds from `since` to `now`; 0 if `since` is later, because two clocks differ.
fn age_ms(since: OffsetDateTime, now: OffsetDateTime) -> u64 {
    u64::try_from(millis(now) - millis(since)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, to_value};

    use garage_events::id::PlayerId;

    use super::*;

    /// The middle of a minute.
    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(1_800_000_030)
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            now: now(),
            watermark: Watermark::default(),
            queues: BTreeMap::new(),
            oldest: BTreeMap::new(),
            sessions: BTreeMap::new(),
            minutes: BTreeMap::new(),
            closed: Vec::new(),
            dead_letters: None,
        }
    }

    fn view(snapshot: &Snapshot) -> Value {
        to_value(View::of(snapshot, &["ranked".parse().unwrap()], None)).unwrap()
    }

    fn queued(queue: &str, queued: u64) -> Minute {
        Minute { queues: [(queue.parse().unwrap(), Flow { queued, ..Flow::default() })].into(), ..Minute::default() }
    }

    fn session(number: i64) -> (SessionId, LiveSession) {
        let session = LiveSession {
            status: Status::Starting,
            server: (number % 2 == 0).then_some(Server::Ready),
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            players: vec![PlayerId::from_foreign("anna@example.com").unwrap()],
            attempt: 1,
            since: now() - time::Duration::seconds(number),
        };
        (format!("0198c5a0-7b1e-7c3d-8000-{number:012}").parse().unwrap(), session)
    }

    #[test]
    fn an_empty_log_shows_the_configured_queues_as_empty() {
        let view = view(&snapshot());
        assert_eq!(view["queues"][0]["name"], "ranked");
        assert_eq!((&view["queues"][0]["depth"], &view["queues"][0]["oldest_ms"]), (&json!(0), &Value::Null));
        assert_eq!(view["servers"], json!({ "requested": 0, "scheduled": 0, "ready": 0, "running": 0 }));
        assert_eq!(view["funnel"].as_array().map(Vec::len), Some(8));
        assert_eq!(view["mark"], json!({ "seq": 0, "behind": null, "event_age_ms": null, "seen_age_ms": null }));
    }

    #[test]
    fn a_rate_covers_the_current_minute_and_the_one_before() {
        let current = minute_of(now());
        let minutes =
            [(current, queued("ranked", 20)), (current - 1, queued("ranked", 10)), (current - 2, queued("ranked", 99))];
        let view = view(&Snapshot { minutes: minutes.into(), ..snapshot() });
        assert_eq!(view["queues"][0]["queued_per_minute"], 20.0);
        let by_minute = view["queues"][0]["queued"].as_array().unwrap();
        assert_eq!((by_minute.len(), &by_minute[57..]), (60, &[json!(99), json!(10), json!(20)][..]));
    }

    #[test]
    fn events_older_than_an_hour_are_not_shown() {
        let old = minute_of(now()) - MINUTES;
        let view =
            view(&Snapshot { minutes: [(old, queued("duo", 5)), (old + 1, queued("ranked", 7))].into(), ..snapshot() });
        assert_eq!(view["funnel"][0]["players"], 7);
        assert_eq!(view["queues"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn all_live_sessions_are_counted_but_only_the_newest_are_listed() {
        let view = view(&Snapshot { sessions: (0..150).map(session).collect(), ..snapshot() });
        assert_eq!(
            (&view["sessions"], &view["playing"], &view["servers"]["ready"]),
            (&json!(150), &json!(150), &json!(75))
        );
        let live = view["live"].as_array().unwrap();
        assert_eq!((live.len(), &live[0]["age_ms"], &live[99]["age_ms"]), (100, &json!(0), &json!(99_000)));
        assert_eq!(live[0]["players"], json!(["anna@example.com"]));
    }
}
