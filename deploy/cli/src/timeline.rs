//! `garage session` and `garage player`: the events of one match or one player, from the log.

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

/// Shows what happened in a session, from the log.
#[derive(Debug, clap::Args)]
pub(crate) struct OfSession {
    /// The id of the session.
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
    /// The name of the player: the `sub` of their token.
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

/// An event of a timeline.
#[derive(Debug, Clone)]
pub(crate) struct TimelineLine {
    entry: LogEntry,
    about: About,
}

/// The ticket and the session that an event's data names.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct About {
    ticket: Option<TicketId>,
    session: Option<SessionId>,
}

/// The events of a session and of its players, from queueing to the reward, in the order of the log.
pub(crate) async fn of_match(log: &JetStreamLog, id: SessionId) -> anyhow::Result<Vec<TimelineLine>> {
    let mut lines = of(log, &Aggregate::Session(id)).await?;
    let session = log.session(id).await?;
    for member in session.state.matched().into_iter().flat_map(|matched| &matched.teams).flat_map(|team| &team.players)
    {
        // Selects by ticket and session: before the player is paid, they may already have queued again.
        let about = |line: &TimelineLine| line.about.session == Some(id) || line.about.ticket == Some(member.ticket);
        for aggregate in [Aggregate::Player(member.player.clone()), Aggregate::Inventory(member.player.clone())] {
            lines.extend(of(log, &aggregate).await?.into_iter().filter(about));
        }
    }
    lines.sort_by_key(|line| line.entry.seq);
    Ok(lines)
}

/// The events of a player's last match. If the player had no match, all their events.
pub(crate) async fn of_last_match(log: &JetStreamLog, player: &PlayerId) -> anyhow::Result<Vec<TimelineLine>> {
    let aggregate = Aggregate::Player(player.clone());
    let Some(last) = log.player(player).await?.last else { return Ok(Vec::new()) };
    // From the match on, the correlation of every event is the session's id.
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
    // The cells are padded here, so that text is aligned to the left and numbers to the right.
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
