//! An event of the log, printed as a line for people or as JSON.

use std::fmt::Write;

use garage_events::event::Envelope;
use serde::Serialize;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The type that is printed for a message that is not an event.
const UNREADABLE: &str = "?";

/// An event with its position in the log. The field names appear in JSON lines and must not change.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LogEntry {
    pub(crate) seq: u64,
    /// The stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) time: OffsetDateTime,
    pub(crate) subject: String,
    /// The message's body as stored, with fields that this build does not know. A JSON string if the body is not JSON.
    pub(crate) event: Box<RawValue>,
    #[serde(skip)]
    pub(crate) type_name: String,
}

impl LogEntry {
    /// # Errors
    /// If serialisation fails. No message body causes that.
    pub(crate) fn new(seq: u64, time: OffsetDateTime, subject: &str, body: &[u8]) -> serde_json::Result<Self> {
        let event = match serde_json::from_slice::<Box<RawValue>>(body) {
            Ok(event) if !event.get().contains('\n') => event,
            // A JSON line must not contain a line break.
            Ok(event) => to_raw_value(&serde_json::from_str::<Value>(event.get())?)?,
            Err(_) => to_raw_value(&String::from_utf8_lossy(body))?,
        };
        let type_name = Envelope::from_slice(body).map_or_else(|_| UNREADABLE.into(), |envelope| envelope.type_name);
        Ok(Self { seq, time, subject: subject.into(), event, type_name })
    }

    /// The entry as a JSON object on one line.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Time, sequence, type and subject, then the scalar fields of the data that are not part of the subject.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{} {:>8}  {:<14} {}", when(self.time), self.seq, self.type_name, self.subject);
        let data = serde_json::from_str::<Envelope>(self.event.get())
            .and_then(|envelope| serde_json::from_str::<Map<String, Value>>(envelope.data.get()));
        for (field, value) in data.into_iter().flatten() {
            let text = match value {
                Value::String(text) if is_plain(&text) => text,
                Value::String(_) | Value::Number(_) | Value::Bool(_) => value.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => continue,
            };
            if !self.subject.split('.').any(|token| token == text) {
                let _ = write!(line, "  {field}={text}");
            }
        }
        line
    }
}

/// Whether the text can be printed unquoted: printable ASCII without spaces and quotation marks.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"')
}

/// Formats a time in UTC, to the millisecond.
pub(crate) fn when(time: OffsetDateTime) -> String {
    time.to_offset(time::UtcOffset::UTC).format(TIME).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AT: OffsetDateTime = time::macros::datetime!(2026-11-22 10:00:00.1234 UTC);

    fn entry(body: &str) -> LogEntry {
        LogEntry::new(7, AT, "garage.player.anna", body.as_bytes()).unwrap()
    }

    fn body(data: &Value) -> String {
        let id = uuid::Uuid::nil();
        json!({ "id": id, "n": 1, "type": "Queued", "v": 1, "at": "2026-11-22T10:00:00Z", "correlation": id,
            "cause": null, "data": data, "later": true })
        .to_string()
    }

    #[test]
    fn a_json_line_contains_the_message_unchanged() {
        let body = body(&json!({ "player": "anna" }));
        let line: Value = serde_json::from_str(&entry(&body).json().unwrap()).unwrap();
        let event: Value = serde_json::from_str(&body).unwrap();
        let expected = json!({ "seq": 7, "time": "2026-11-22T10:00:00.1234Z", "subject": "garage.player.anna",
            "event": event });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_text_line_shows_the_fields_that_the_subject_does_not() {
        let data =
            json!({ "player": "anna", "queue": "ranked", "rank": 12, "latencies": { "eu": 1 }, "x": "\u{1b}[2J y" });
        let line = entry(&body(&data)).line();
        let expected = r#"2026-11-22T10:00:00.123Z        7  Queued         garage.player.anna  queue=ranked  rank=12"#;
        assert_eq!(line, format!("{expected}  x=\"\\u001b[2J y\""));
    }

    #[test]
    fn a_message_that_is_not_an_event_is_still_shown() {
        assert_eq!(entry("rubbish").event.get(), "\"rubbish\"");
        assert!(entry("{}").line().ends_with("?              garage.player.anna"));
        assert_eq!(entry("{\n\"a\":\n1}").event.get(), "{\"a\":1}");
    }
}
