//! `deploy/docs/api.md` describes every operation of `gateway/openapi.json` and every frame of the socket, and its
//! examples are valid.
//!
//! Below a heading ``### `METHOD /path` ``, an `sh` block holds a request to this operation, and a `json` block its
//! answer. Everywhere, a `json` block with a numeric `status` is a problem, and one with `type` and `data` is a frame.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use crate::contract::{ASYNCAPI, OPENAPI, frame_faults, is_of, methods, paths};

/// The operation without a JSON answer and without a `curl` request.
const SOCKET: &str = "/v1/ws";

/// A method and the template of a path.
type Operation = (String, String);

/// A fenced block of the page.
struct Block {
    /// The operation of the heading above it.
    operation: Option<Operation>,
    language: String,
    text: String,
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/docs/api.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The operation that a heading names.
fn heading(line: &str) -> Option<Operation> {
    let (method, path) = line.strip_prefix("### `")?.strip_suffix('`')?.split_once(' ')?;
    Some((method.to_owned(), path.to_owned()))
}

/// The blocks of a page, and the operations that have a heading.
fn read(page: &str) -> (Vec<Block>, Vec<Operation>) {
    let (mut blocks, mut headings) = (Vec::new(), Vec::new());
    let mut operation = None;
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (open.take(), line.strip_prefix("```")) {
            (None, Some(language)) => {
                let (operation, language) = (operation.clone(), language.to_owned());
                open = Some(Block { operation, language, text: String::new() });
            }
            (None, None) => {
                // A smaller heading is a part of the operation.
                if line.starts_with('#') && !line.starts_with("####") {
                    operation = heading(line);
                    headings.extend(operation.clone());
                }
            }
            (Some(block), Some(_)) => blocks.push(block),
            (Some(mut block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
        }
    }
    assert!(open.is_none(), "the last block is not closed");
    (blocks, headings)
}

/// The blocks of one language.
fn blocks(language: &str) -> Vec<Block> {
    let (mut blocks, _) = read(&page());
    blocks.retain(|block| block.language == language);
    blocks
}

/// The JSON blocks, each with the operation of its heading.
fn examples() -> Vec<(Option<Operation>, Value)> {
    let example = |block: Block| {
        let value = serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("{error} in {}", block.text));
        (block.operation, value)
    };
    blocks("json").into_iter().map(example).collect()
}

fn described((method, path): &Operation) -> &'static Value {
    &OPENAPI.at("/paths")[path][method.to_lowercase()]
}

/// The schema of the JSON body of an operation's successful answer.
fn success(operation: &Operation) -> Option<&'static Value> {
    let responses = described(operation)["responses"].as_object()?;
    let (_, response) = responses.iter().find(|(status, _)| status.starts_with('2'))?;
    OPENAPI.follow(response)["content"].get("application/json")?.get("schema")
}

fn is_frame(value: &Value) -> bool {
    value["type"].is_string() && value.get("data").is_some()
}

fn is_problem(value: &Value) -> bool {
    value["status"].is_u64()
}

/// The differences between an example of a problem and OpenAPI. Below the heading of an operation, the problem must be
/// one of that operation. Elsewhere, it may be any problem.
fn problem_faults(operation: Option<&Operation>, problem: &Value) -> Vec<String> {
    let schema = match operation {
        Some(operation) => {
            let response = OPENAPI.follow(&described(operation)["responses"][problem["status"].to_string()]);
            response["content"]["application/problem+json"]["schema"].clone()
        }
        None => {
            let names = OPENAPI.at("/components/schemas").as_object().unwrap().keys();
            let problems = names.filter(|name| name.ends_with("Problem"));
            let problems = problems.map(|name| json!({ "$ref": format!("#/components/schemas/{name}") }));
            json!({ "oneOf": problems.collect::<Vec<_>>() })
        }
    };
    if schema.is_object() { OPENAPI.faults(&schema, problem) } else { vec!["the status is not described".into()] }
}

/// The request of a `curl` command: its method, its path without the query, and its body.
fn request(command: &str) -> (String, String, Option<Value>) {
    let after = |start: &str, end: char| Some(command.split_once(start)?.1.split(end).next()?.to_owned());
    let body = after("-d '", '\'').map(|body| serde_json::from_str::<Value>(&body).unwrap());
    let method = after("-X ", ' ').unwrap_or_else(|| String::from(if body.is_some() { "POST" } else { "GET" }));
    let url = after("\"$GATEWAY", '"').unwrap_or_else(|| panic!("{command} requests nothing from $GATEWAY"));
    let path = url.split('?').next().unwrap_or_default().to_owned();
    (method, path, body)
}

#[test]
fn the_page_has_one_heading_for_each_operation() {
    let (_, headings) = read(&page());
    let operations = paths().flat_map(|(path, item)| methods(item).into_iter().map(|method| (method, path.clone())));
    let operations: BTreeSet<Operation> = operations.collect();
    assert_eq!(headings.iter().cloned().collect::<BTreeSet<_>>(), operations);
    assert_eq!(headings.len(), operations.len(), "an operation has two headings");
}

#[test]
fn each_operation_has_a_valid_example_request() {
    let (_, mut without) = read(&page());
    without.retain(|(_, path)| path != SOCKET);
    for Block { operation, text, .. } in blocks("sh") {
        let Some(operation) = operation else { continue };
        if !text.contains("curl ") {
            continue;
        }
        let (method, path, body) = request(&text);
        let (expected, template) = &operation;
        assert_eq!(&method, expected, "{text}");
        assert!(is_of(&path, template, &OPENAPI.at("/paths")[template]), "{text} is not a request to {template}");
        let schema = described(&operation)["requestBody"]["content"].get("application/json");
        match (schema.map(|media| &media["schema"]), body) {
            (Some(schema), Some(body)) => assert_eq!(OPENAPI.faults(schema, &body), Vec::<String>::new(), "{text}"),
            (None, None) => {}
            (schema, _) => panic!("{text}: a body is {}", if schema.is_some() { "missing" } else { "not expected" }),
        }
        without.retain(|one| *one != operation);
    }
    assert_eq!(without, [], "these operations have no example request");
}

#[test]
fn each_operation_with_a_json_answer_has_a_valid_example_answer() {
    let (_, mut without) = read(&page());
    // The OpenAPI document itself is too long for an example, and its schema is any object.
    without.retain(|operation| success(operation).is_some_and(|schema| schema.get("$ref").is_some()));
    for (operation, example) in examples().into_iter().filter(|(_, example)| !is_frame(example)) {
        if is_problem(&example) {
            assert_eq!(problem_faults(operation.as_ref(), &example), Vec::<String>::new(), "{example}");
            continue;
        }
        let operation = operation.unwrap_or_else(|| panic!("{example} is not below the heading of an operation"));
        let schema = success(&operation).unwrap_or_else(|| panic!("{operation:?} has no JSON answer"));
        assert_eq!(OPENAPI.faults(schema, &example), Vec::<String>::new(), "{operation:?}: {example}");
        without.retain(|one| *one != operation);
    }
    assert_eq!(without, [], "these operations have no example answer");
}

#[test]
fn each_type_of_frame_has_a_valid_example() {
    let frames = examples().into_iter().map(|(_, example)| example).filter(is_frame);
    let mut types = BTreeSet::new();
    for frame in frames {
        assert_eq!(frame_faults(&frame), Vec::<String>::new(), "{frame}");
        types.insert(frame["type"].as_str().unwrap().to_owned());
    }
    let described = ASYNCAPI.at("/channels/socket/messages").as_object().unwrap();
    assert_eq!(types, described.keys().cloned().collect());
}

#[test]
fn the_page_names_each_close_code_and_each_type_of_problem() {
    let page = page();
    let codes = ASYNCAPI.at("/channels/socket/x-close-codes").as_object().unwrap();
    for (code, reason) in codes {
        let row = format!("| {code} | `{}` |", reason.as_str().unwrap());
        assert!(page.contains(&row), "the page has no row {row}");
    }
    for (name, schema) in OPENAPI.at("/components/schemas").as_object().unwrap() {
        if let Some(kind) = schema["properties"]["type"]["const"].as_str() {
            assert!(page.contains(&format!("| `{kind}` |")), "the page has no row for {name}, {kind}");
        }
    }
}
