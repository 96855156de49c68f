//! One stream to a file and back, by JetStream's own snapshots: every message with its sequence, time and headers.
//!
//! The server hands a snapshot out in chunks and waits for answers to them; it takes one back in the same way. What is in
//! it is the server's affair.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, Request, RequestErrorKind, jetstream::ErrorCode};
use bytes::Bytes;
use futures::StreamExt;
use garage_events::{game::hex, jetstream::setup::GATHERING};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

/// Bytes of a message; far below the megabyte that a server takes by default.
const CHUNK: usize = 128 << 10;

/// How often, and how far apart, a chunk is offered to a leader that this node has not heard of yet: for five seconds.
const INTEREST_TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// How long the server has to answer, or to send the next chunk.
const ANSWER: Duration = Duration::from_secs(30);

/// How long it has, after the last chunk, to make a stream of them: it reads all of it.
const UNPACK: Duration = Duration::from_secs(30 * 60);

/// A stream that was written to a file, and what the server needs to know to take it back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    config: Value,
    state: Value,
    bytes: u64,
    sha256: String,
}

impl Snapshot {
    /// The stream's name.
    pub(crate) fn name(&self) -> anyhow::Result<&str> {
        self.config.get("name").and_then(Value::as_str).context("the backup has a stream without a name")
    }

    /// How many messages it has, and what a person wants to know besides.
    pub(crate) fn summary(&self) -> String {
        let number = |field| self.state.get(field).and_then(Value::as_u64).unwrap_or(0);
        format!("{} messages, {} to {}", number("messages"), number("first_seq"), number("last_seq"))
    }

    /// Writes a stream to a new file, without its consumers.
    pub(crate) async fn take(client: &Client, stream: &str, path: &Path) -> anyhow::Result<Self> {
        let mut file = File::create_new(path).await.with_context(|| format!("cannot make {}", path.display()))?;
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        let inbox = client.new_inbox();
        let mut chunks = client.subscribe(inbox.clone()).await?;
        let ticket_request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK });
        let mut begun =
            api(client, format!("$JS.API.STREAM.SNAPSHOT.{stream}"), ticket_request.to_string(), ANSWER).await?;
        let (mut count, mut bytes, mut hash) = (0_u64, 0, Sha256::new());
        loop {
            let chunk = timeout(ANSWER, chunks.next()).await.ok().flatten();
            let chunk = chunk.context("the server has stopped sending; run it again")?;
            if chunk.payload.is_empty() {
                let failed = chunk.status.filter(|status| !matches!(status.as_u16(), 200..300));
                ensure!(failed.is_none(), "the server gave up: {}", chunk.description.unwrap_or_default());
                break;
            }
            count += 1;
            // The end of the subject to answer to is the chunk's length and its number. The last one asks for no answer.
            let length = chunk.payload.len();
            let next = chunk.reply.as_ref().is_none_or(|answer| answer.ends_with(&format!(".{length}.{count}")));
            ensure!(next, "a chunk was lost; run it again");
            file.write_all(&chunk.payload).await.with_context(|| format!("cannot write {}", path.display()))?;
            hash.update(&chunk.payload);
            bytes += length as u64;
            if let Some(answer) = chunk.reply {
                client.publish(answer, Bytes::new()).await?;
            }
        }
        let again = client.statistics().connects.load(Ordering::Relaxed) > connects;
        ensure!(!again, "the connection to nats was lost meanwhile; run it again");
        file.sync_all().await.with_context(|| format!("cannot write {}", path.display()))?;
        let mut part =
            |field| begun.get_mut(field).map(Value::take).with_context(|| format!("no {field} in the answer"));
        Ok(Self { config: part("config")?, state: part("state")?, bytes, sha256: hex(&hash.finalize()) })
    }

    /// That the file is what was written.
    pub(crate) async fn check(&self, path: &Path) -> anyhow::Result<()> {
        let (mut bytes, mut hash) = (0, Sha256::new());
        self.read(path, async |chunk| {
            bytes += chunk.len() as u64;
            hash.update(&chunk);
            Ok(())
        })
        .await?;
        let same = (bytes, hex(&hash.finalize())) == (self.bytes, self.sha256.clone());
        ensure!(same, "{} is not what was written to it; take another backup", path.display());
        Ok(())
    }

    /// Makes the stream of the file.
    pub(crate) async fn put(&self, client: &Client, path: &Path) -> anyhow::Result<()> {
        let stream = self.name()?;
        let ticket_request = json!({ "config": self.config, "state": self.state }).to_string();
        let began = Instant::now();
        let begun = loop {
            match api(client, format!("$JS.API.STREAM.RESTORE.{stream}"), ticket_request.clone(), ANSWER).await {
                // The nodes of a cluster that has just started take each other for absent at first.
                Err(error) if is_short(&error) && began.elapsed() < GATHERING => sleep(PAUSE).await,
                begun => break begun?,
            }
        };
        let to = begun.get("deliver_subject").and_then(Value::as_str).context("the server does not say where to")?;
        self.read(path, async |chunk| {
            let mut left = INTEREST_TRIES;
            let answer = loop {
                let request = Request::new().payload(chunk.clone()).timeout(Some(ANSWER));
                match client.send_request(to.to_owned(), request).await {
                    // The answer may overtake what tells this node where the stream's leader listens.
                    Err(error) if error.kind() == RequestErrorKind::NoResponders && left > 0 => left -= 1,
                    answer => break answer?,
                }
                tokio::time::sleep(PAUSE).await;
            };
            // Empty as long as all is well.
            if !answer.payload.is_empty() {
                refusal(&serde_json::from_slice(&answer.payload)?)?;
            }
            Ok(())
        })
        .await?;
        let made = api(client, to.to_owned(), String::new(), UNPACK).await?;
        let last = |state: &Value| state.get("last_seq").and_then(Value::as_u64);
        let (is, was) = (made.get("state").and_then(last), last(&self.state));
        if is < was {
            bail!("the stream ends at {is:?}, and its backup at {was:?}");
        }
        Ok(())
    }

    async fn read(&self, path: &Path, mut each: impl AsyncFnMut(Bytes) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let unread = || format!("cannot read {}", path.display());
        let mut file = File::open(path).await.with_context(unread)?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await.with_context(unread)?;
            if chunk.is_empty() {
                return Ok(());
            }
            each(chunk.into()).await?;
        }
    }
}

async fn api(client: &Client, subject: String, body: String, wait: Duration) -> anyhow::Result<Value> {
    let request = Request::new().payload(body.into()).timeout(Some(wait));
    let answer = client.send_request(subject, request).await.context("nats does not answer")?;
    let answer: Value = serde_json::from_slice(&answer.payload).context("nats answers what is no JSON")?;
    refusal(&answer)?;
    Ok(answer)
}

/// What the server says no with.
#[derive(Debug, thiserror::Error)]
#[error("nats refuses: {description}")]
struct Refused {
    code: ErrorCode,
    description: String,
}

fn refusal(answer: &Value) -> Result<(), Refused> {
    let Some(error) = answer.get("error") else { return Ok(()) };
    let code = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
    Err(Refused { code: ErrorCode(code), description: error.get("description").unwrap_or(error).to_string() })
}

/// Whether the cluster has too few nodes for a stream.
fn is_short(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == ErrorCode::CLUSTER_NO_PEERS)
}
