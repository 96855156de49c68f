//! `garage session` and `garage player`: the events of one match or one player, from the log.

use anyhow::Context;
use garage_events::{
    event::Envelope,
    failure,
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
    select::player_id,
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
    /// The name of the player: the `sub` of their token, or an id that begins with ==.
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
        if let Some(attempt) = lines.iter().filter_map(|line| line.about.attempt).max() {
            say(own_log(self.session, attempt, &lines));
        }
        Ok(())
    }
}

/// Says where the output of a session's last game server is.
fn own_log(session: SessionId, attempt: u32, lines: &[TimelineLine]) -> String {
    let name = format!("game-{session}-{attempt}");
    let placed = lines.iter().rev().filter(|line| line.about.attempt == Some(attempt));
    let node = placed.filter_map(|line| line.about.node.as_deref()).next();
    let machine = node.map_or_else(|| "the director's machine".into(), failure::line);
    format!(
        "\nthe output of the last game server: $GARAGE_INSTANCES/{name}/log on {machine}, or in Kubernetes: kubectl logs \
         {name}\nGarage removes the output with the game server, when the attempt has failed or the session is closed."
    )
}

impl OfPlayer {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let log = JetStreamLog::open(self.nats.connect("cli").await?).await?;
        let player = player_id(&self.player)?;
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

/// The fields of an event's data that a timeline needs.
#[derive(Debug, Clone, Default, Deserialize)]
struct About {
    ticket: Option<TicketId>,
    session: Option<SessionId>,
    attempt: Option<u32>,
    node: Option<String>,
    why: Option<String>,
    reason: Option<String>,
    message: Option<String>,
}

impl About {
    /// What went wrong; empty if nothing did.
    fn failure(&self) -> String {
        let attempt = self.attempt.filter(|_| self.reason.is_some()).map(|attempt| format!("attempt {attempt}"));
        let why = self.why.clone().filter(|why| why != "finished");
        let parts = [attempt, why, self.reason.clone(), self.message.clone()];
        // An older build may have written a text that is not printable.
        failure::line(&parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": "))
    }
}

/// The events of a session and of its players, from queueing to the reward, in the order of the log.
pub(crate) async fn of_match(log: &JetStreamLog, id: SessionId) -> anyhow::Result<Vec<TimelineLine>> {
    let mut lines = of(log, &Aggregate::Session(id)).await?;
    let session = log.session(id).await?;
    for member in session.state.matched().into_iter().flat_map(|matched| &matched.teams).flat_map(|team| &team.players)
    {
        // Selects by ticket and session: before the player is paid, they may already have queued again.
        // A requeued ticket has several sessions.
        let about = |line: &TimelineLine| match line.about.session {
            Some(session) => session == id,
            None => line.about.ticket == Some(member.ticket),
        };
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

/// Prints a timeline: milliseconds since its first event, type, sequence, subject, and what went wrong, if anything did.
pub(crate) fn print(lines: &[TimelineLine]) {
    let Some(begin) = lines.first().map(|line| line.entry.time) else { return };
    // The cells are padded here, so that text is aligned to the left and numbers to the right.
    let widest = |len: fn(&LogEntry) -> usize| lines.iter().map(|line| len(&line.entry)).max().unwrap_or_default();
    let (event, subject) = (widest(|entry| entry.type_name.len()), widest(|entry| entry.subject.len()));
    let failures: Vec<_> = lines.iter().map(|line| line.about.failure()).collect();
    let failure = failures.iter().map(|failure| failure.chars().count()).max().unwrap_or_default();
    let row = |(TimelineLine { entry, .. }, failed): (&TimelineLine, &String)| {
        let since = (entry.time - begin).as_seconds_f64() * 1_000.0;
        let mut row = vec![
            format!("{:>9}", format!("+{since:.1}")),
            format!("{:<event$}", entry.type_name),
            entry.seq.to_string(),
            format!("{:<subject$}", entry.subject),
        ];
        row.extend((failure > 0).then(|| format!("{failed:<failure$}")));
        row
    };
    let rows: Vec<_> = lines.iter().zip(&failures).map(row).collect();
    say(format!("began {}", begin.format(&Rfc3339).unwrap_or_default()));
    let (event, subject) = (format!("{:<event$}", "event"), format!("{:<subject$}", "subject"));
    let failure = format!("{:<failure$}", "failure");
    let headings = ["       ms", &event, "seq", &subject, &failure];
    table(headings.get(..if failures.iter().all(String::is_empty) { 4 } else { 5 }).unwrap_or(&headings), &rows);
}

fn print_json(lines: &[TimelineLine]) -> anyhow::Result<()> {
    for line in lines {
        say(line.entry.json()?);
    }
    Ok(())
}
