//! The stream of the game servers' reports bounds what one game server can store, and takes every legal report.

use async_nats::jetstream::{self, context::PublishError, stream::Config, stream::DiscardPolicy};
use garage_events::{
    game::MAX_REPORT,
    id::SessionId,
    jetstream::{is_already_stored, setup},
    subject::{REPORTS, Report, ReportKind},
};

use crate::{
    ending::within,
    samples::new_session,
    servers::{self, Cluster},
};

fn subject(session: SessionId, kind: ReportKind) -> String {
    Report { session, attempt: 1, kind }.to_string()
}

async fn publish(context: &jetstream::Context, subject: String, size: usize) -> Result<u64, PublishError> {
    Ok(context.publish(subject, vec![b'x'; size].into()).await?.await?.sequence)
}

async fn a_report_that_is_sent_again_and_again_is_stored_twice_and_then_known_to_be_stored(nodes: usize) {
    let context = jetstream::new(servers::shared(nodes).await.connect_to(0).await);
    let (session, other) = (new_session(), new_session());
    let stored = async || {
        let stream = context.get_stream(REPORTS).await.unwrap();
        let message = stream.get_last_raw_message_by_subject(&subject(session, ReportKind::Ready)).await.unwrap();
        (message.sequence, message.payload.len())
    };
    let mut last = 0;
    for size in [3, MAX_REPORT] {
        last = publish(&context, subject(session, ReportKind::Ready), size).await.unwrap();
    }
    for size in [3, MAX_REPORT, 4] {
        let refused = publish(&context, subject(session, ReportKind::Ready), size).await.unwrap_err();
        assert!(is_already_stored(&refused), "{refused}");
    }
    assert_eq!(stored().await, (last, MAX_REPORT), "what is stored was replaced");
    // The other report, and the report of another server, are not affected.
    publish(&context, subject(session, ReportKind::Finished), 3).await.unwrap();
    publish(&context, subject(other, ReportKind::Ready), 3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_report_that_is_sent_again_is_stored_twice_and_then_known_to_be_stored() {
    within(a_report_that_is_sent_again_and_again_is_stored_twice_and_then_known_to_be_stored(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_report_that_is_sent_again_is_stored_twice_and_then_known_to_be_stored() {
    within(a_report_that_is_sent_again_and_again_is_stored_twice_and_then_known_to_be_stored(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_is_too_large_or_on_another_subject_is_not_stored() {
    within(async {
        let context = jetstream::new(servers::shared(1).await.connect_to(0).await);
        let session = new_session();
        let refused = publish(&context, subject(session, ReportKind::Ready), MAX_REPORT + 1).await.unwrap_err();
        assert!(!is_already_stored(&refused), "{refused}");
        for wrong in
            [format!("report.{session}.1.up"), format!("report.{session}.1"), format!("report.{session}.1.ready.x")]
        {
            let refused = publish(&context, wrong.clone(), 3).await.unwrap_err();
            assert!(!is_already_stored(&refused), "{wrong}: {refused}");
        }
    })
    .await;
}

/// The server uses one error code for both.
async fn a_stream_without_room_is_not_mistaken_for_a_stored_report(nodes: usize) {
    let cluster = Cluster::start(nodes).await;
    let context = jetstream::new(cluster.access.connect_to(0).await);
    let config = context.get_stream(REPORTS).await.unwrap().cached_info().config.clone();
    context.update_stream(Config { max_bytes: 8 << 10, ..config.clone() }).await.unwrap();
    let full = async {
        loop {
            if let Err(error) = publish(&context, subject(new_session(), ReportKind::Ready), 1 << 10).await {
                return error;
            }
        }
    };
    let refused = full.await;
    assert!(!is_already_stored(&refused), "{refused}");
    context.update_stream(config).await.unwrap();
    publish(&context, subject(new_session(), ReportKind::Ready), 1 << 10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_stream_without_room_is_not_mistaken_for_a_stored_report() {
    within(a_stream_without_room_is_not_mistaken_for_a_stored_report(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_stream_without_room_is_not_mistaken_for_a_stored_report() {
    within(a_stream_without_room_is_not_mistaken_for_a_stored_report(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_an_older_version_is_updated_in_place() {
    within(async {
        let cluster = Cluster::start(1).await;
        let client = cluster.access.connect_to(0).await;
        let context = jetstream::new(client.clone());
        let new = context.get_stream(REPORTS).await.unwrap().cached_info().config.clone();
        let older = Config {
            subjects: vec!["report.>".into()],
            discard: DiscardPolicy::Old,
            discard_new_per_subject: false,
            max_message_size: 64 << 10,
            ..new.clone()
        };
        context.update_stream(older).await.unwrap();
        let session = new_session();
        publish(&context, format!("report.{session}.1.up"), 64_000).await.unwrap();
        publish(&context, subject(session, ReportKind::Ready), 64_000).await.unwrap();
        setup::init(client, 1).await.unwrap();
        let mut stream = context.get_stream(REPORTS).await.unwrap();
        let info = stream.info().await.unwrap();
        assert_eq!((&info.config.subjects, info.config.discard, info.state.messages), (&new.subjects, new.discard, 2));
        assert!(info.config.discard_new_per_subject);
        publish(&context, format!("report.{session}.1.up"), 3).await.unwrap_err();
    })
    .await;
}
