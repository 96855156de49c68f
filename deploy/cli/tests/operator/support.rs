//! A NATS server with some events, and a runner for `garage` commands.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::Context;
use async_nats::Client;
use garage_events::{
    block,
    deadline::exit,
    env::{Env, System},
    id::{PlayerId, SessionId, TicketId},
    jetstream::{JetStreamLog, setup},
    lease,
    log::{Append, Decision, Load},
    player::{self, CancelReason, Cancelled, Ending, Queued},
    session,
    subject::{Aggregate, DEAD, HISTORY, STREAM},
};
use garage_stack::servers::{Nats, Role};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Fixture {
    pub(crate) client: Client,
    pub(crate) nats: Nats,
    pub(crate) folder: tempfile::TempDir,
}

/// The result of a finished command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A command that is still running.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Fixture {
    /// A NATS server without streams.
    pub(crate) async fn without_streams() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), 1).await?;
        Ok(Self { client: nats.connect(Role::Admin).await?, nats, folder })
    }

    pub(crate) async fn start() -> anyhow::Result<Self> {
        let fixture = Self::without_streams().await?;
        setup::init(fixture.client.clone(), 1).await?;
        Ok(fixture)
    }

    pub(crate) async fn log(&self) -> anyhow::Result<JetStreamLog> {
        Ok(JetStreamLog::open(self.client.clone()).await?)
    }

    /// A log with five events: anna queues, bert queues, a session is matched and closed, anna cancels.
    pub(crate) async fn with_events() -> anyhow::Result<(Self, SessionId)> {
        let fixture = Self::start().await?;
        let log = fixture.log().await?;
        assert_eq!(queue(&log, "anna").await?, 1);
        assert_eq!(queue(&log, "bert").await?, 2);
        let session = open(&log, &["anna"]).await?;
        let closed =
            session::Event::from(session::Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() });
        assert_eq!(of_session(&log, session, closed).await?, 4);
        assert_eq!(cancel(&log, "anna").await?, 5);
        Ok((fixture, session))
    }

    pub(crate) fn garage(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_garage"));
        command
            .args(args)
            .env("GARAGE_NATS_URL", self.nats.url())
            .env("GARAGE_NATS_CREDENTIALS", self.nats.credentials(Role::Admin))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `garage` until it ends.
    pub(crate) async fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let output = timeout(DEADLINE, self.garage(args).output()).await.with_context(|| format!("{args:?}"))??;
        Ran::of(&output)
    }

    /// The JSON lines of a command that must succeed.
    pub(crate) async fn json(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let ran = self.run(args).await?;
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        Ok(ran.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> anyhow::Result<Running> {
        let mut child = self.garage(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Running { child, lines })
    }
}

impl Ran {
    fn of(output: &Output) -> anyhow::Result<Self> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        Ok(Self { code: output.status.code(), out: text(&output.stdout)?, err: text(&output.stderr)? })
    }
}

impl Running {
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        timeout(DEADLINE, self.lines.next_line()).await.context("a line in time")??.context("a line")
    }

    /// Closes the pipe of its standard output, as `head` does.
    pub(crate) fn close_output(self) -> Child {
        self.child
    }

    /// Sends SIGINT, as Ctrl-C does, and waits for the end.
    pub(crate) async fn interrupt(mut self) -> anyhow::Result<Ran> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().context("it runs")?.try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let mut err = String::new();
        let mut stderr = self.child.stderr.take().context("its errors")?;
        timeout(DEADLINE, stderr.read_to_string(&mut err)).await.context("it ends")??;
        Ok(Ran { code: exit(&mut self.child, DEADLINE).await?.code(), out: String::new(), err })
    }
}

/// Polls until `look` returns a value.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, looking).await.with_context(|| format!("{what} in time"))?
}

pub(crate) fn seqs(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect()
}

async fn append(log: &JetStreamLog, decision: Decision) -> anyhow::Result<u64> {
    log.append(decision).await?.last().copied().context("a sequence")
}

async fn of_player(log: &JetStreamLog, name: &str, event: player::Event) -> anyhow::Result<u64> {
    let player: PlayerId = name.parse()?;
    let head = log.player(&player).await?.head;
    append(log, Decision::new(&System, System.id(), None).change(&System, Aggregate::Player(player), head, [event]))
        .await
}

pub(crate) async fn queue(log: &JetStreamLog, name: &str) -> anyhow::Result<u64> {
    let now = System.now();
    let queued = Queued {
        ticket: TicketId::new(System.id()),
        queue: "ranked".parse()?,
        rank: 1_000,
        latencies: [("eu".parse()?, 20)].into(),
        attributes: [].into(),
        group: Vec::new(),
        waiting_since: now,
        expires_at: now + time::Duration::MINUTE,
        requeues: 0,
        absences: 0,
        party: None,
    };
    of_player(log, name, queued.into()).await
}

pub(crate) async fn cancel(log: &JetStreamLog, name: &str) -> anyhow::Result<u64> {
    let ticket = TicketId::new(System.id());
    of_player(
        log,
        name,
        Cancelled { ticket, queue: "ranked".parse()?, reason: CancelReason::Player, absences: 0, party: None }.into(),
    )
    .await
}

pub(crate) async fn of_session(log: &JetStreamLog, id: SessionId, event: session::Event) -> anyhow::Result<u64> {
    let head = log.session(id).await?.head;
    append(log, Decision::new(&System, id.uuid(), None).change(&System, Aggregate::Session(id), head, [event])).await
}

/// Appends a new session without the events of its players.
pub(crate) async fn open(log: &JetStreamLog, players: &[&str]) -> anyhow::Result<SessionId> {
    let member = |name: &&str| {
        anyhow::Ok(session::Member { player: name.parse()?, ticket: TicketId::new(System.id()), rank: 1_000 })
    };
    let team = session::Team { name: "one".parse()?, players: players.iter().map(member).collect::<Result<_, _>>()? };
    let matched = session::Matched {
        queue: "ranked".parse()?,
        region: "eu".parse()?,
        teams: vec![team],
        latencies: Default::default(),
        rules: "band-region-fifo/1".into(),
        pool_seq: 0,
        clock: System.now(),
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    };
    let id = SessionId::new(System.id());
    of_session(log, id, matched.into()).await?;
    Ok(id)
}

/// The subject and the body of each message of the log.
pub(crate) async fn bodies(fixture: &Fixture) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let log = fixture.log().await?;
    let (mut bodies, mut from) = (Vec::new(), 1);
    while let Some(message) = log.next(">", from).await? {
        from = message.sequence + 1;
        bodies.push((message.subject.to_string(), message.payload.to_vec()));
    }
    Ok(bodies)
}

#[tokio::test]
async fn without_streams_every_command_says_to_run_garage_init() -> anyhow::Result<()> {
    let fixture = Fixture::without_streams().await?;
    for (args, stream) in [
        (&["replay"][..], HISTORY),
        (&["tail"], STREAM),
        (&["verify"], STREAM),
        (&["dead", "list"], DEAD),
        (&["queue", "list"], lease::STREAM),
        (&["blocks"], block::STREAM),
        (&["block", "ann"], block::BUCKET),
    ] {
        let ran = fixture.run(args).await?;
        assert_eq!(ran.code, Some(1));
        assert!(ran.err.contains(stream) && ran.err.contains("garage init"), "{ran:?}");
    }
    Ok(())
}
