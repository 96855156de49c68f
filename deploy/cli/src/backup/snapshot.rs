//! Copies one stream to a file and back, with JetStream's snapshots. They keep the sequence, time and headers of every
//! message.
//!
//! The server sends a snapshot in chunks and waits for acknowledgements. It receives one in the same way. This code
//! does not interpret the chunks.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, Request, RequestErrorKind, jetstream::ErrorCode};
use bytes::Bytes;
use futures::StreamExt;
use garage_events::{game::hex, jetstream::setup::CLUSTER_TIMEOUT};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

/// Chunk size in bytes. It is far below the server's default message limit of 1 MiB.
const CHUNK: usize = 128 << 10;

/// Retries of a chunk while this node does not know yet where the stream's leader listens: five seconds with [`PAUSE`].
const MAX_RETRIES: u32 = 100;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How long the server may take to answer, or to send the next chunk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the server may take after the last chunk. It then reads all chunks and creates the stream.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A stream in a file: what the server needs to restore it, and the file's size and checksum.
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
        self.config.get("name").and_then(Value::as_str).context("the backup contains a stream without a name")
    }

    /// The number of messages and their first and last sequence, as text.
    pub(crate) fn summary(&self) -> String {
        let number = |field| self.state.get(field).and_then(Value::as_u64).unwrap_or(0);
        format!("{} messages, {} to {}", number("messages"), number("first_seq"), number("last_seq"))
    }

    /// Writes a stream, without its consumers, to a new file.
    pub(crate) async fn take(client: &Client, stream: &str, path: &Path) -> anyhow::Result<Self> {
        let mut file = File::create_new(path).await.with_context(|| format!("cannot create {}", path.display()))?;
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        let inbox = client.new_inbox();
        let mut chunks = client.subscribe(inbox.clone()).await?;
        let request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK });
        let mut begun =
            api(client, format!("$JS.API.STREAM.SNAPSHOT.{stream}"), request.to_string(), ANSWER_TIMEOUT).await?;
        let (mut count, mut bytes, mut hash) = (0_u64, 0, Sha256::new());
        loop {
            let chunk = timeout(ANSWER_TIMEOUT, chunks.next()).await.ok().flatten();
            let chunk = chunk.context("the server has stopped sending; run the command again")?;
            if chunk.payload.is_empty() {
                let failed = chunk.status.filter(|status| !matches!(status.as_u16(), 200..300));
                ensure!(failed.is_none(), "the server has failed: {}", chunk.description.unwrap_or_default());
                break;
            }
            count += 1;
            // The reply subject ends with the length and the number of the chunk. The last chunk has no reply subject.
            let length = chunk.payload.len();
            let next = chunk.reply.as_ref().is_none_or(|answer| answer.ends_with(&format!(".{length}.{count}")));
            ensure!(next, "a chunk was lost; run the command again");
            file.write_all(&chunk.payload).await.with_context(|| format!("cannot write {}", path.display()))?;
            hash.update(&chunk.payload);
            bytes += length as u64;
            if let Some(answer) = chunk.reply {
                client.publish(answer, Bytes::new()).await?;
            }
        }
        let again = client.statistics().connects.load(Ordering::Relaxed) > connects;
        ensure!(!again, "the connection to NATS was lost; run the command again");
        file.sync_all().await.with_context(|| format!("cannot write {}", path.display()))?;
        let mut part =
            |field| begun.get_mut(field).map(Value::take).with_context(|| format!("no field {field} in the answer"));
        Ok(Self { config: part("config")?, state: part("state")?, bytes, sha256: hex(&hash.finalize()) })
    }

    /// Checks that the file has not changed since the backup.
    pub(crate) async fn check(&self, path: &Path) -> anyhow::Result<()> {
        let (mut bytes, mut hash) = (0, Sha256::new());
        self.read(path, async |chunk| {
            bytes += chunk.len() as u64;
            hash.update(&chunk);
            Ok(())
        })
        .await?;
        let same = (bytes, hex(&hash.finalize())) == (self.bytes, self.sha256.clone());
        ensure!(same, "{} has changed since the backup; use another backup", path.display());
        Ok(())
    }

    /// Creates the stream from the file.
    pub(crate) async fn put(&self, client: &Client, path: &Path) -> anyhow::Result<()> {
        let stream = self.name()?;
        let request = json!({ "config": self.config, "state": self.state }).to_string();
        let began = Instant::now();
        let begun = loop {
            match api(client, format!("$JS.API.STREAM.RESTORE.{stream}"), request.clone(), ANSWER_TIMEOUT).await {
                // In a cluster that has just started, the nodes do not know yet that the others are there.
                Err(error) if lacks_nodes(&error) && began.elapsed() < CLUSTER_TIMEOUT => sleep(PAUSE).await,
                begun => break begun?,
            }
        };
        let to = begun.get("deliver_subject").and_then(Value::as_str).context("no deliver_subject in the answer")?;
        self.read(path, async |chunk| {
            let mut retries = MAX_RETRIES;
            let answer = loop {
                let chunk_request = Request::new().payload(chunk.clone()).timeout(Some(ANSWER_TIMEOUT));
                match client.send_request(to.to_owned(), chunk_request).await {
                    // This node may not know yet that the leader listens on this subject.
                    Err(error) if error.kind() == RequestErrorKind::NoResponders && retries > 0 => retries -= 1,
                    answer => break answer?,
                }
                tokio::time::sleep(PAUSE).await;
            };
            // The answer is empty unless there is an error.
            if !answer.payload.is_empty() {
                refusal(&serde_json::from_slice(&answer.payload)?)?;
            }
            Ok(())
        })
        .await?;
        let made = api(client, to.to_owned(), String::new(), CREATE_TIMEOUT).await?;
        let last = |state: &Value| state.get("last_seq").and_then(Value::as_u64);
        let (is, was) = (made.get("state").and_then(last), last(&self.state));
        if is < was {
            bail!("the restored stream ends at {is:?}, but the backup ends at {was:?}");
        }
        Ok(())
    }

    async fn read(&self, path: &Path, mut each: impl AsyncFnMut(Bytes) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let not_read = || format!("cannot read {}", path.display());
        let mut file = File::open(path).await.with_context(not_read)?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await.with_context(not_read)?;
            if chunk.is_empty() {
                return Ok(());
            }
            each(chunk.into()).await?;
        }
    }
}

async fn api(client: &Client, subject: String, body: String, wait: Duration) -> anyhow::Result<Value> {
    let request = Request::new().payload(body.into()).timeout(Some(wait));
    let answer = client.send_request(subject, request).await.context("NATS does not answer")?;
    let answer: Value = serde_json::from_slice(&answer.payload).context("the answer of NATS is not JSON")?;
    refusal(&answer)?;
    Ok(answer)
}

/// An error that the server has returned.
#[derive(Debug, thiserror::Error)]
#[error("NATS refuses: {description}")]
struct Refused {
    code: ErrorCode,
    description: String,
}

fn refusal(answer: &Value) -> Result<(), Refused> {
    let Some(error) = answer.get("error") else { return Ok(()) };
    let code = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
    Err(Refused { code: ErrorCode(code), description: error.get("description").unwrap_or(error).to_string() })
}

/// Whether the cluster has too few nodes for the stream.
fn lacks_nodes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == ErrorCode::CLUSTER_NO_PEERS)
}
