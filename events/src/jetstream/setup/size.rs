//! Checks that the server has room for all streams before any of them is created or changed.
//!
//! A client cannot read how much room a server has (`max_file_store`). So the check creates a small stream, enlarges it by
//! the missing size, and removes it. The server reserves the whole size of a stream. In a cluster, only the check of a
//! larger size is exact: for a new stream, the server relies on numbers that are some seconds old.

use async_nats::jetstream::{
    Context, ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind},
    stream::{Config, StorageType},
};

use super::{SetupError, is_missing};

/// The stream of the check.
const CHECK: &str = "GARAGE_SIZE_CHECK";

/// What the error of a cluster contains if no node has enough room.
const INSUFFICIENT: &str = "insufficient storage";

/// # Errors
/// [`SetupError::NoRoom`], or [`SetupError::Create`] if the server does not answer.
pub(super) async fn check(context: &Context, streams: &[Config], log_size: u64) -> Result<(), SetupError> {
    let failed = |source: async_nats::Error| SetupError::Create { what: format!("stream {CHECK}"), source };
    let (mut total, mut missing) = (0, 0);
    for config in streams {
        let reserved = match context.get_stream(&config.name).await {
            Ok(found) => bytes(&found.cached_info().config),
            Err(error) if is_missing(&error) => 0,
            Err(error) => return Err(failed(error.into())),
        };
        total += bytes(config);
        missing += bytes(config).saturating_sub(reserved);
    }
    if missing == 0 {
        return Ok(());
    }
    let replicas = streams.iter().map(|config| config.num_replicas).max().unwrap_or(1);
    let of_size = |bytes: u64| Config {
        name: CHECK.into(),
        subjects: vec!["garage-size-check".into()],
        storage: StorageType::File,
        max_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        num_replicas: replicas,
        ..Default::default()
    };
    // An earlier run may have left it behind.
    remove(context).await.map_err(failed)?;
    let enlarged = match context.create_stream(of_size(1)).await {
        Ok(_) => context.update_stream(of_size(missing)).await.map(drop),
        Err(error) => Err(error),
    };
    let removed = remove(context).await.map_err(failed);
    match enlarged {
        Ok(()) => removed,
        Err(error) => match refusal(&error) {
            Some(refusal) => Err(SetupError::NoRoom { log_size, total, missing, refusal }),
            None => Err(failed(error.into())),
        },
    }
}

/// The server's error if it has too little room.
fn refusal(error: &CreateStreamError) -> Option<String> {
    let CreateStreamErrorKind::JetStream(api) = error.kind() else { return None };
    let text = api.to_string();
    let no_room = [
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ];
    (no_room.contains(&api.error_code()) || text.contains(INSUFFICIENT)).then_some(text)
}

async fn remove(context: &Context) -> Result<(), async_nats::Error> {
    match context.get_stream(CHECK).await {
        Ok(_) => context.delete_stream(CHECK).await.map(drop).map_err(Into::into),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn bytes(config: &Config) -> u64 {
    u64::try_from(config.max_bytes).unwrap_or_default()
}
