//! `events/asyncapi.json` describes the events in the log. Each sample of an event must match the description, and each
//! event of the code must be in it. The gateway's tests check the WebSocket frames against it.
#![cfg(test)]

mod document;

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use garage_events::{
    event::{self, Envelope, Event},
    inventory, party, player, session,
    subject::Aggregate,
};
use serde_json::{Value, json};

use crate::document::Document;

static ASYNCAPI: LazyLock<Document> = LazyLock::new(|| Document::read("events/asyncapi.json"));

/// The field with the aggregate's id in an event's data.
fn id_field(aggregate: &str) -> &str {
    if aggregate == "inventory" { "player" } else { aggregate }
}

/// All golden samples, each with the aggregate from its file name.
fn samples() -> Vec<(String, Value)> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let sample = |file: std::path::PathBuf| {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let body = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        (name.split('.').next().unwrap().to_owned(), body)
    };
    files.map(sample).collect()
}

fn faults(aggregate: &str, body: &Value) -> Vec<String> {
    let message = &ASYNCAPI.at("/channels")[aggregate]["messages"][body["type"].as_str().unwrap()];
    assert!(message.is_object(), "the channel {aggregate} has no message {}", body["type"]);
    ASYNCAPI.faults(&ASYNCAPI.follow(message)["payload"], body)
}

#[test]
fn every_sample_matches_the_description() {
    for (aggregate, body) in samples() {
        assert_eq!(faults(&aggregate, &body), Vec::<String>::new(), "{aggregate} {body}");
    }
}

#[test]
fn a_message_that_does_not_match_the_description_is_detected() {
    for (aggregate, body) in samples() {
        let changes: [fn(&str, &mut Value); 5] = [
            |_, body| body["data"]["more"] = json!(1),
            |_, body| body["more"] = json!(1),
            |_, body| body["v"] = json!(2),
            |_, body| drop(body.as_object_mut().unwrap().remove("cause")),
            |id, body| assert!(body["data"].as_object_mut().unwrap().remove(id).is_some()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = body.clone();
            change(id_field(&aggregate), &mut changed);
            assert!(!faults(&aggregate, &changed).is_empty(), "{number}: {changed}");
        }
    }
}

/// Checks a channel against the code: its messages, their subjects, and the event types in subjects.
fn assert_channel<E: Event>(name: &str, aggregate: fn(&str) -> Aggregate) {
    let channel = &ASYNCAPI.at("/channels")[name];
    let messages: BTreeSet<_> = channel["messages"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(messages, E::TYPES.iter().copied().collect(), "the messages of the channel {name}");
    let mut tokens = BTreeSet::new();
    for (_, body) in samples().into_iter().filter(|(of, _)| of == name) {
        let event: E = Envelope::from_slice(body.to_string().as_bytes()).unwrap().event().unwrap();
        let field = id_field(name);
        let id = body["data"][field].as_str().unwrap();
        let address = channel["address"].as_str().unwrap();
        let address = address.replace(&format!("{{{field}}}"), id).replace("{event}", event.token());
        assert_eq!(aggregate(id).subject(&event), address);
        assert_eq!(ASYNCAPI.follow(&channel["messages"][event.type_name()])["name"], event.type_name());
        tokens.insert(event.token());
    }
    if let Some(described) = channel["parameters"]["event"]["enum"].as_array() {
        assert_eq!(described.iter().map(|token| token.as_str().unwrap()).collect::<BTreeSet<_>>(), tokens);
    }
}

#[test]
fn every_event_of_the_code_is_described_with_its_message_and_subject() {
    assert_channel::<player::Event>("player", |id| Aggregate::Player(id.parse().unwrap()));
    assert_channel::<party::Event>("party", |id| Aggregate::Party(id.parse().unwrap()));
    assert_channel::<session::Event>("session", |id| Aggregate::Session(id.parse().unwrap()));
    assert_channel::<inventory::Event>("inventory", |id| Aggregate::Inventory(id.parse().unwrap()));
    let channels: BTreeSet<_> = ASYNCAPI.at("/channels").as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(channels, ["inventory", "party", "player", "session", "socket"].into());
    assert!(ASYNCAPI.at("/components/schemas/Headers/properties").get(event::TYPE_HEADER).is_some());
}

#[test]
fn the_socket_channel_has_a_frame_for_each_player_event_for_parties_proposed_matches_and_tokens() {
    let frames = ASYNCAPI.at("/channels/socket/messages").as_object().unwrap();
    let others = ["resync", "blocked", "kicked", "token", "token-accepted", "token-refused"];
    let proposals = ["match-progress", "accept", "decline", "match-answer"];
    let parties = ["party", "party-left", "party-invitation"];
    let expected = player::Event::TYPES.iter().copied().chain(others).chain(proposals).chain(parties);
    assert_eq!(frames.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected.collect());
    for (name, frame) in frames {
        assert_eq!(ASYNCAPI.follow(frame)["name"], **name);
    }
}
