//! Feeds a decoder with random input: arbitrary bytes, and valid documents with random changes. For tests only.
//!
//! A test calls [`feed`]. The name of each such test contains `any_bytes`, so that one command runs all of
//! them. This crate depends on no other crate of the workspace, so every crate can use it in its tests.

use std::fmt;

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};

/// The maximum length of a changed document, in bytes. It is far above every limit of a decoder for untrusted input, and
/// small enough that a run stays fast. A change that would exceed it is left out.
const MAX_LENGTH: usize = 256 << 10;

/// Texts that are numbers, or almost.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "00",
    "0.5",
    "-0.0",
    "1e400",
    "1e-400",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "99999999999999999999999999999999999999999999",
    "nan",
];

/// Texts that mean something in JSON, TOML, URLs, HTTP headers or Unicode.
const TOKENS: [&str; 22] = [
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "\"",
    "\\",
    "\\ud800",
    "\\u0000",
    "\0",
    "é",
    "\u{202e}",
    "\u{feff}",
    "\u{10ffff}",
    "\n",
    "\r\n",
    ",",
    ";",
    ".",
    "=",
    "%00",
    "\"a\":1,",
];

/// Brackets around a value.
const BRACKETS: [(&str, &str); 4] = [("[", "]"), ("{\"a\":", "}"), ("{a=", "}"), ("(", ")")];

/// How deep values are nested. The last depth overflows the stack of a decoder that is recursive without a limit.
const DEPTHS: [usize; 4] = [1, 3, 130, 20_000];

/// How often a part is repeated. The last number makes a text of thousands of bytes of a single one.
const TIMES: [usize; 4] = [2, 12, 300, 5_000];

/// Calls a decoder with each of the valid documents, with arbitrary bytes, and with the valid documents after random
/// changes. `accepts` checks what the decoder promises with assertions, and returns whether the decoder has accepted the
/// input. The number of inputs is proptest's default, 256, or `PROPTEST_CASES`.
///
/// # Panics
/// If `accepts` panics, or if it returns false for a valid document: then the test would never see an accepted value. If an
/// input makes `accepts` panic, the message contains the shortest such input that was found.
pub fn feed<D: AsRef<[u8]>>(valid: &[D], accepts: impl Fn(&[u8]) -> bool) {
    let valid: Vec<Vec<u8>> = valid.iter().map(|document| document.as_ref().to_vec()).collect();
    for document in &valid {
        assert!(accepts(document), "refused a valid document: {}", document.escape_ascii());
    }
    // The message contains the input, so there is no file with the seeds of failed runs.
    let config = Config { failure_persistence: None, ..Config::default() };
    let ran = TestRunner::new(config).run(&input(valid), |Input(bytes)| {
        accepts(&bytes);
        Ok(())
    });
    assert!(ran.is_ok(), "{}", ran.err().map(|error| error.to_string()).unwrap_or_default());
}

/// An input of the decoder. `Debug` writes it as a byte string.
#[derive(Clone)]
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn input(valid: Vec<Vec<u8>>) -> impl Strategy<Value = Input> {
    let changed = (select(valid), vec(change(), 0..6));
    let changed = changed.prop_map(|(document, changes)| changes.iter().fold(document, Change::apply));
    prop_oneof![1 => vec(any::<u8>(), 0..200), 4 => changed].prop_map(Input)
}

/// One change of a document.
#[derive(Debug, Clone)]
enum Change {
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Replace(Index, u8),
    /// A part, given by its beginning and its length, appears this many times.
    Repeat(Index, usize, usize),
    /// The next number becomes this text.
    Number(Index, &'static str),
    /// The next value becomes a text of this many characters.
    Text(Index, usize),
    /// The next value is put into this many brackets.
    Nest(Index, (&'static str, &'static str), usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    let length = || prop_oneof![1..4_usize, 1..200_usize];
    let inserted =
        prop_oneof![vec(any::<u8>(), 1..8), select(&TOKENS[..]).prop_map(|token| token.as_bytes().to_vec()),];
    prop_oneof![
        (at(), length()).prop_map(|(at, length)| Change::Remove(at, length)),
        (at(), inserted).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (at(), length(), select(&TIMES[..])).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        (at(), select(&NUMBERS[..])).prop_map(|(at, number)| Change::Number(at, number)),
        (at(), select(&TIMES[..])).prop_map(|(at, length)| Change::Text(at, length)),
        (at(), select(&BRACKETS[..]), select(&DEPTHS[..]))
            .prop_map(|(at, brackets, depth)| Change::Nest(at, brackets, depth)),
    ]
}

impl Change {
    /// The changed document.
    fn apply(mut document: Vec<u8>, change: &Self) -> Vec<u8> {
        let length = document.len();
        // The position after the last byte is possible too.
        let place = |at: &Index| at.index(length + 1);
        let (start, end, new) = match change {
            Self::Remove(at, removed) => (place(at), place(at) + removed, Vec::new()),
            Self::Insert(at, bytes) => (place(at), place(at), bytes.clone()),
            Self::Replace(at, byte) => (place(at), place(at) + 1, vec![*byte]),
            Self::Repeat(at, repeated, times) => {
                let (start, end) = (place(at), (place(at) + repeated).min(length));
                let part = document.get(start..end).unwrap_or_default();
                let times = (*times).min(MAX_LENGTH / part.len().max(1));
                (start, end, part.repeat(times))
            }
            Self::Number(at, number) => {
                let start = find(&document, place(at), |byte| byte.is_ascii_digit());
                let end = find(&document, start, |byte| !byte.is_ascii_digit());
                (start, end, number.as_bytes().to_vec())
            }
            Self::Text(at, characters) => {
                let (start, end) = value(&document, place(at));
                (start, end, format!("\"{}\"", "x".repeat(*characters)).into_bytes())
            }
            Self::Nest(at, (open, close), depth) => {
                let (start, end) = value(&document, place(at));
                let nested = document.get(start..end).unwrap_or_default();
                (start, end, [open.repeat(*depth).as_bytes(), nested, close.repeat(*depth).as_bytes()].concat())
            }
        };
        if length + new.len() <= MAX_LENGTH {
            document.splice(start.min(length)..end.clamp(start.min(length), length), new);
        }
        document
    }
}

/// The beginning and the end of the next value, as far as it has no commas and no brackets.
fn value(document: &[u8], from: usize) -> (usize, usize) {
    let start = (find(document, from, |byte| b":=,[(".contains(&byte)) + 1).min(document.len());
    (start, find(document, start, |byte| b",}])\n;".contains(&byte)))
}

/// The first position, from `start` on, of a byte that fits. The length if there is none.
fn find(document: &[u8], start: usize, fits: impl Fn(u8) -> bool) -> usize {
    let rest = document.get(start..).unwrap_or_default();
    rest.iter().position(|byte| fits(*byte)).map_or(document.len(), |offset| start + offset)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::strategy::ValueTree as _;

    use super::*;

    fn changed(document: &str, change: &Change) -> String {
        String::from_utf8(Change::apply(document.into(), change)).unwrap()
    }

    #[test]
    fn each_kind_of_change_changes_a_document() {
        let document = "{\"a\":17,\"b\":2}";
        // An index is a share of the length, so these two are the first and the last position.
        let (first, last) = (index(0), index(usize::MAX));
        for (change, expected) in [
            (Change::Remove(first, 5), "17,\"b\":2}"),
            (Change::Remove(last, 5), document),
            (Change::Insert(last, b"x".to_vec()), "{\"a\":17,\"b\":2}x"),
            (Change::Replace(first, b'['), "[\"a\":17,\"b\":2}"),
            (Change::Repeat(first, 1, 3), "{{{\"a\":17,\"b\":2}"),
            (Change::Number(first, "1e400"), "{\"a\":1e400,\"b\":2}"),
            (Change::Text(first, 2), "{\"a\":\"xx\",\"b\":2}"),
            (Change::Nest(first, ("[", "]"), 3), "{\"a\":[[[17]]],\"b\":2}"),
        ] {
            assert_eq!(changed(document, &change), expected, "{change:?}");
        }
        for change in [Change::Remove(first, 1), Change::Replace(last, 1), Change::Number(first, "0")] {
            assert!(changed("", &change).len() <= 1, "{change:?}");
        }
        assert!(
            changed(document, &Change::Nest(first, ("[", "]"), 1_000_000)) == document,
            "beyond the maximum length"
        );
    }

    fn index(raw: usize) -> Index {
        // An `Index` has no public constructor other than its strategy.
        let mut runner = TestRunner::deterministic();
        let fits = |index: &Index| if raw == 0 { index.index(1_000) == 0 } else { index.index(1_000) == 999 };
        any::<Index>().prop_filter("another place", fits).new_tree(&mut runner).unwrap().current()
    }

    #[test]
    fn a_decoder_gets_valid_changed_and_arbitrary_input() {
        let (all, valid, deep, not_text) = (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
        let count = |cell: &Cell<u32>, fits: bool| cell.set(cell.get() + u32::from(fits));
        feed(&["{\"a\":[17]}"], |bytes| {
            count(&all, true);
            count(&valid, bytes == b"{\"a\":[17]}");
            count(&deep, bytes.windows(100).any(|part| part.iter().all(|byte| *byte == b'[')));
            count(&not_text, std::str::from_utf8(bytes).is_err());
            true
        });
        assert!(all.get() > Config::default().cases, "{}", all.get());
        for cell in [valid, deep, not_text] {
            assert!(cell.get() > 1, "{}", cell.get());
        }
    }

    #[test]
    #[should_panic = "minimal failing input: b"]
    fn an_input_that_makes_the_decoder_panic_is_shown() {
        feed(&["a"], |bytes| {
            assert!(!bytes.contains(&0xff));
            true
        });
    }

    #[test]
    #[should_panic = "refused a valid document: a"]
    fn a_valid_document_that_is_refused_is_a_failure() {
        feed(&["a"], |_| false);
    }
}
