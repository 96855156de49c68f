//! Every event that was ever released can still be read. `golden/<aggregate>.<event>.v<version>.json` contains a sample
//! message of each event. A field that was added within a version gets a sample of its own:
//! `golden/<aggregate>.<event>.v<version>.<field>.json`.
//!
//! Never change a file after its version has been released. A new event, or a new version of an event, gets a new file.
//! Write it by hand, or copy a message from a running log (`nats stream view GARAGE`).
#![cfg(test)]

use std::{fs, path::PathBuf};

use garage_events::{
    event::{DecodeError, Envelope, Event},
    id::{PartyId, PlayerId, SessionId},
    inventory, party, player, session,
};
use serde_json::{Value, json};

/// A sample file, and the parts of its name.
struct Sample {
    file: String,
    aggregate: String,
    token: String,
    version: u32,
    message: Value,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn samples() -> Vec<Sample> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut samples: Vec<_> = files.map(sample).collect();
    samples.sort_by(|a, b| a.file.cmp(&b.file));
    samples
}

fn sample(file: String) -> Sample {
    let text = fs::read_to_string(folder().join(&file)).unwrap();
    let message = serde_json::from_str(&text).unwrap_or_else(|error| panic!("golden/{file} is not JSON: {error}"));
    let parts: Vec<_> = file.split('.').collect();
    let ([aggregate, token, version, "json"] | [aggregate, token, version, _, "json"]) = parts[..] else {
        panic!(
            "golden/{file}: the name must be <aggregate>.<event>.v<version>.json, or have another word before .json"
        );
    };
    let version = version.strip_prefix('v').and_then(|version| version.parse().ok());
    let version = version.unwrap_or_else(|| panic!("golden/{file}: the name has no version"));
    Sample { aggregate: aggregate.into(), token: token.into(), version, message, file }
}

/// A decoded event of any aggregate.
struct Decoded {
    /// The event's `Debug` text, for comparisons.
    event: String,
    type_name: &'static str,
    token: &'static str,
    version: u32,
    data: Value,
}

fn decode_as<E: Event + std::fmt::Debug>(message: &Value) -> Result<Decoded, DecodeError> {
    let event: E = Envelope::from_slice(message.to_string().as_bytes())?.event()?;
    Ok(Decoded {
        event: format!("{event:?}"),
        type_name: event.type_name(),
        token: event.token(),
        version: event.version(),
        data: event.data().unwrap(),
    })
}

/// A type of aggregate: its name in subjects, the field with its id in an event's data, a check of the id, and its
/// events.
struct Kind {
    name: &'static str,
    id_field: &'static str,
    is_id: fn(&str) -> bool,
    types: &'static [&'static str],
    decode: fn(&Value) -> Result<Decoded, DecodeError>,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "player",
        id_field: "player",
        is_id: |text| text.parse::<PlayerId>().is_ok(),
        types: player::Event::TYPES,
        decode: decode_as::<player::Event>,
    },
    Kind {
        name: "party",
        id_field: "party",
        is_id: |text| text.parse::<PartyId>().is_ok(),
        types: party::Event::TYPES,
        decode: decode_as::<party::Event>,
    },
    Kind {
        name: "session",
        id_field: "session",
        is_id: |text| text.parse::<SessionId>().is_ok(),
        types: session::Event::TYPES,
        decode: decode_as::<session::Event>,
    },
    Kind {
        name: "inventory",
        id_field: "player",
        is_id: |text| text.parse::<PlayerId>().is_ok(),
        types: inventory::Event::TYPES,
        decode: decode_as::<inventory::Event>,
    },
];

impl Sample {
    fn kind(&self) -> &'static Kind {
        KINDS
            .iter()
            .find(|kind| kind.name == self.aggregate)
            .unwrap_or_else(|| panic!("{}: unknown aggregate", self.file))
    }

    fn decode(&self) -> Decoded {
        self.decode_changed(|_| {})
    }

    #[track_caller]
    fn decode_changed(&self, change: impl FnOnce(&mut Value)) -> Decoded {
        self.try_decode_changed(change)
            .unwrap_or_else(|error| panic!("golden/{} can no longer be read: {error}", self.file))
    }

    fn try_decode_changed(&self, change: impl FnOnce(&mut Value)) -> Result<Decoded, DecodeError> {
        let mut message = self.message.clone();
        change(&mut message);
        (self.kind().decode)(&message)
    }
}

#[test]
fn every_sample_is_the_event_that_its_file_name_says() {
    for sample in samples() {
        let event = sample.decode();
        let message = &sample.message;
        assert_eq!(
            (event.token, event.type_name),
            (&*sample.token, message["type"].as_str().unwrap()),
            "{}",
            sample.file
        );
        assert_eq!(message["v"], sample.version, "{}", sample.file);
    }
}

#[test]
fn every_event_has_a_sample_of_its_current_version() {
    for kind in &KINDS {
        for type_name in kind.types {
            let samples = samples().into_iter().filter(|sample| sample.aggregate == kind.name);
            let known: Vec<_> = samples
                .map(|sample| (sample.decode(), sample.version))
                .filter(|(event, _)| event.type_name == *type_name)
                .collect();
            assert!(
                known.iter().any(|(event, version)| event.version == *version),
                "write a message of {} {type_name} in its current version to events/golden/{}.<event>.v<version>.json; \
                 do not change samples of other versions",
                kind.name,
                kind.name,
            );
        }
    }
}

#[test]
fn every_aggregate_is_tested() {
    // The module of an aggregate is `<name>.rs`, or `<name>/event.rs` if it has several files.
    let sources = fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let sources = sources.map(|entry| entry.unwrap().path());
    let sources = sources.map(|path| if path.is_dir() { path.join("event.rs") } else { path });
    let declaring = sources.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("\nevents! {")));
    let name = |path: PathBuf| match path.file_name().is_some_and(|name| name == "event.rs") {
        true => path.parent().unwrap().file_stem().unwrap().to_owned(),
        false => path.file_stem().unwrap().to_owned(),
    };
    let mut declaring: Vec<_> = declaring.map(name).collect();
    let mut tested = KINDS.map(|kind| kind.name);
    declaring.sort();
    tested.sort();
    assert_eq!(declaring, tested, "each module with events! {{…}} is an aggregate: add it to KINDS in this file");
}

#[test]
fn a_sample_survives_a_round_trip() {
    for sample in samples() {
        let envelope = Envelope::from_slice(sample.message.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&envelope).unwrap(), sample.message, "{}", sample.file);
    }
}

#[test]
fn the_data_of_a_sample_survives_a_round_trip() {
    for sample in samples() {
        let event = sample.decode();
        // Data of an older version is encoded in the current version, so it differs.
        if event.version != sample.version {
            continue;
        }
        let mut expected = sample.message["data"].clone();
        let (kind, data) = (sample.kind(), expected.as_object_mut().unwrap());
        // Older builds wrote this field of a time-out. Nothing reads it any more.
        data.remove("candidates");
        let id = data.remove(kind.id_field).unwrap_or_else(|| panic!("{}: no {}", sample.file, kind.id_field));
        assert!((kind.is_id)(id.as_str().unwrap()), "{}: {id} is not the id of a {}", sample.file, kind.name);
        assert_eq!(event.data, expected, "{}", sample.file);
    }
}

#[test]
fn an_unknown_field_is_ignored() {
    for sample in samples() {
        let plain = sample.decode();
        let of_data = sample.decode_changed(|message| message["data"]["later"] = json!({ "nested": [1, null] }));
        let of_the_message = sample.decode_changed(|message| message["later"] = json!("text"));
        assert_eq!((of_data.event, of_the_message.event), (plain.event.clone(), plain.event), "{}", sample.file);
    }
}

#[test]
fn an_event_of_a_newer_build_is_reported_as_unknown() {
    for sample in samples() {
        for (field, newer) in [("type", json!("NeverHeardOf")), ("v", json!(1_000)), ("v", json!(0))] {
            let result = sample.try_decode_changed(|message| message[field] = newer.clone());
            assert!(matches!(result, Err(DecodeError::Unknown { .. })), "{} with {field} = {newer}", sample.file);
        }
    }
}

#[test]
fn an_event_of_another_aggregate_cannot_be_decoded() {
    for sample in samples() {
        for other in KINDS.iter().filter(|kind| kind.name != sample.aggregate) {
            assert!((other.decode)(&sample.message).is_err(), "{} read as {}", sample.file, other.name);
        }
    }
}

#[test]
fn a_message_that_does_not_match_its_type_is_corrupt() {
    for sample in samples() {
        for data in [json!({}), json!([]), json!("text"), Value::Null] {
            let result = sample.try_decode_changed(|message| message["data"] = data.clone());
            assert!(matches!(result, Err(DecodeError::Corrupt(_))), "{} with data {data}", sample.file);
        }
        for field in ["id", "n", "type", "v", "at", "correlation", "data"] {
            let result = sample.try_decode_changed(|message| {
                message.as_object_mut().unwrap().remove(field);
            });
            assert!(matches!(result, Err(DecodeError::Corrupt(_))), "{} without {field}", sample.file);
        }
    }
    for body in [&b""[..], b"{", b"not JSON", b"[]", b"\xff"] {
        assert!(matches!(Envelope::from_slice(body), Err(DecodeError::Corrupt(_))), "{body:?}");
    }
}
