//! `garage session` and `garage player`: what happened, from the log.

use anyhow::Context;
use garage_events::{
    event::Envelope,
    id::{PlayerId, SessionId, TicketId},
    jetstream::JetStreamLog,
    log::Load,
    subject::Aggregate,
};
use garage_worker::config::Nats;
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;

use crate::{
    entry::LogEntry,
    report::{say, table},
};

/// Shows what happened to a session, from the log.
#[derive(Debug, clap::Args)]
pub(crate) struct OfSession {
    /// Its id.
    session: SessionId,
    /// Prints JSON lines: seq, time, subject, event.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Shows what happened to a player, from the log.
#[derive(Debug, clap::Args)]
pub(crate) struct OfPlayer {
    /// His name, as the identity provider has it.
    player: String,
    /// Prints JSON lines: seq, time, subject, event.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

impl OfSession {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let log = JetStreamLog::open(self.nats.connect("cli").await?).await?;
        let lines = of_match(&log, self.session).await?;
        anyhow::ensure!(!lines.is_empty(), "the log holds no session {}", self.session);
        if self.json {
            return print_json(&lines);
        }
        print(&lines);
        Ok(())
    }
}

impl OfPlayer {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let log = JetStreamLog::open(self.nats.connect("cli").await?).await?;
        let player = PlayerId::from_foreign(&self.player)?;
        let mut lines = of(&log, &Aggregate::Player(player.clone())).await?;
        lines.extend(of(&log, &Aggregate::Inventory(player)).await?);
        lines.sort_by_key(|line| line.entry.seq);
        anyhow::ensure!(!lines.is_empty(), "the log holds no player {}", self.player);
        if self.json {
            return print_json(&lines);
        }
        print(&lines);
        Ok(())
    }
}

/// An event, as a timeline shows it.
#[derive(Debug, Clone)]
pub(crate) struct TimelineLine {
    entry: LogEntry,
    about: About,
}

/// What an event's data says it is about.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct About {
    ticket: Option<TicketId>,
    session: Option<SessionId>,
}

/// A match: the session, and what its players went through from queueing to being paid, in the log's order.
pub(crate) async fn of_match(log: &JetStreamLog, id: SessionId) -> anyhow::Result<Vec<TimelineLine>> {
    let mut lines = of(log, &Aggregate::Session(id)).await?;
    let session = log.session(id).await?;
    for member in session.state.matched().into_iter().flat_map(|matched| &matched.teams).flat_map(|team| &team.players)
    {
        // By what each event is about: when he is paid he may have queued again long since.
        let about = |line: &TimelineLine| line.about.session == Some(id) || line.about.ticket == Some(member.ticket);
        for aggregate in [Aggregate::Player(member.player.clone()), Aggregate::Inventory(member.player.clone())] {
            lines.extend(of(log, &aggregate).await?.into_iter().filter(about));
        }
    }
    lines.sort_by_key(|line| line.entry.seq);
    Ok(lines)
}

/// A player's last match, or, without one, all that happened to him.
pub(crate) async fn of_last_match(log: &JetStreamLog, player: &PlayerId) -> anyhow::Result<Vec<TimelineLine>> {
    let aggregate = Aggregate::Player(player.clone());
    let Some(last) = log.player(player).await?.last else { return Ok(Vec::new()) };
    // From the match on, every event of one matter has the session's id as its correlation.
    let mut lines = of_match(log, SessionId::new(last.correlation)).await?;
    if lines.is_empty() {
        lines = of(log, &aggregate).await?;
    }
    Ok(lines)
}

async fn of(log: &JetStreamLog, aggregate: &Aggregate) -> anyhow::Result<Vec<TimelineLine>> {
    let filter = aggregate.filter();
    let mut lines = Vec::new();
    let mut from = 1;
    while let Some(message) = log.next(&filter, from).await? {
        from = message.sequence + 1;
        let envelope = Envelope::from_slice(&message.payload).with_context(|| format!("event {}", message.sequence))?;
        lines.push(TimelineLine {
            entry: LogEntry::new(message.sequence, message.time, &message.subject, &message.payload)?,
            about: serde_json::from_str(envelope.data.get()).unwrap_or_default(),
        });
    }
    Ok(lines)
}

/// Prints a timeline: milliseconds since its first event, type, subject, sequence.
pub(crate) fn print(lines: &[TimelineLine]) {
    let Some(begin) = lines.first().map(|line| line.entry.time) else { return };
    // Text to the left, numbers to the right.
    let widest = |len: fn(&LogEntry) -> usize| lines.iter().map(|line| len(&line.entry)).max().unwrap_or_default();
    let (event, subject) = (widest(|entry| entry.type_name.len()), widest(|entry| entry.subject.len()));
    let row = |TimelineLine { entry, .. }: &TimelineLine| {
        let since = (entry.time - begin).as_seconds_f64() * 1_000.0;
        vec![
            format!("{:>9}", format!("+{since:.1}")),
            format!("{:<event$}", entry.type_name),
            entry.seq.to_string(),
            format!("{:<subject$}", entry.subject),
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    say(format!("began {}", begin.format(&Rfc3339).unwrap_or_default()));
    table(&["       ms", &format!("{:<event$}", "event"), "seq", &format!("{:<subject$}", "subject")], &rows);
}

fn print_json(lines: &[TimelineLine]) -> anyhow::Result<()> {
    for line in lines {
        say(line.entry.json()?);
    }
    Ok(())
}
