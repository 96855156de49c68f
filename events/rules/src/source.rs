//! The JSON text of a rule set as a tree with positions.

use std::collections::BTreeSet;

use jsonc_parser::{
    CollectOptions, CommentCollectionStrategy, ParseOptions,
    ast::{ObjectPropName, StringLit, Value},
    common::Ranged,
    parse_to_ast,
};

use crate::diagnostic::Findings;

/// The maximum length of a rule set, in characters (GameLift API, `RuleSetBody`).
const MAX_LENGTH: usize = 65_535;

/// A JSON value.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where it begins in the text, in bytes.
    pub(crate) at: usize,
    pub(crate) value: Json,
}

#[derive(Debug, Clone)]
pub(crate) enum Json {
    Null,
    Bool,
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Property>),
}

/// A key of an object, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Property {
    pub(crate) name: String,
    /// Where the key begins.
    pub(crate) at: usize,
    pub(crate) value: Node,
}

impl Node {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Json::Null => "null",
            Json::Bool => "true or false",
            Json::Number(_) => "a number",
            Json::Text(_) => "a text",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }
}

/// Reads a text. Accepts comments and trailing commas, with a warning. Refuses duplicate keys.
pub(crate) fn read(text: &str, findings: &mut Findings) -> Option<Node> {
    let length = text.chars().count();
    if length > MAX_LENGTH {
        let message = format!("the rule set has {length} characters; the maximum is {MAX_LENGTH}");
        findings.error(0, message, "remove descriptions or white space");
        return None;
    }
    let comments = CommentCollectionStrategy::Separate;
    let collected = parse_to_ast(text, &CollectOptions { comments, tokens: false }, &options(true));
    let parsed = match collected {
        Ok(parsed) => parsed,
        Err(error) => {
            let message = format!("this is not JSON: {}", lower(&error.kind().to_string()));
            findings.error(error.range().start, message, "correct the syntax here, or just before");
            return None;
        }
    };
    let first = parsed.comments.iter().flatten().flat_map(|(_, comments)| comments.iter()).map(Ranged::start).min();
    if let Some(at) = first {
        findings.warning(at, "comments are not JSON", "Garage ignores them, but other tools may refuse the file");
    }
    if let Err(error) = parse_to_ast(text, &CollectOptions::default(), &options(false)) {
        let message = "a comma before a closing bracket is not JSON";
        findings.warning(error.range().start, message, "Garage ignores it, but other tools may refuse the file");
    }
    let Some(value) = parsed.value else {
        findings.error(0, "the file is empty", "write a rule set: an object with ruleLanguageVersion and teams");
        return None;
    };
    Some(node(text, &value, findings))
}

fn options(trailing_commas: bool) -> ParseOptions {
    ParseOptions {
        allow_comments: true,
        allow_trailing_commas: trailing_commas,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

fn lower(message: &str) -> String {
    let mut characters = message.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

/// Reports a line break in a text: usually a quote is missing. The parser accepts it.
fn unbroken(text: &str, literal: &StringLit<'_>, findings: &mut Findings) {
    let source = text.get(literal.range.start..literal.range.end).unwrap_or_default();
    if source.chars().any(|c| c < ' ') {
        let message = "this text has a line break or another control character";
        findings.error(literal.range.start, message, "close the text with a quote, or write \\n");
    }
}

/// Recursive. The parser limits the depth.
fn node(text: &str, value: &Value<'_>, findings: &mut Findings) -> Node {
    let at = value.start();
    let json = match value {
        Value::NullKeyword(_) => Json::Null,
        Value::BooleanLit(_) => Json::Bool,
        Value::StringLit(literal) => {
            unbroken(text, literal, findings);
            Json::Text(literal.value.to_string())
        }
        Value::NumberLit(literal) => {
            let number = literal.value.parse().ok().filter(|number: &f64| number.is_finite());
            if number.is_none() {
                findings.error(at, format!("{} is not a number that Garage can store", literal.value), "use another");
            }
            Json::Number(number.unwrap_or_default())
        }
        Value::Array(list) => Json::List(list.elements.iter().map(|element| node(text, element, findings)).collect()),
        Value::Object(object) => {
            let mut names = BTreeSet::new();
            let mut properties = Vec::new();
            for property in &object.properties {
                let name = match &property.name {
                    ObjectPropName::String(literal) => {
                        unbroken(text, literal, findings);
                        literal.value.to_string()
                    }
                    ObjectPropName::Word(word) => word.value.to_owned(),
                };
                let at = property.name.start();
                if !names.insert(name.clone()) {
                    let message = format!("the key {name:?} occurs twice in the same object");
                    let cure = "remove one of them, or put each into an object of its own";
                    findings.error(at, message, cure);
                }
                properties.push(Property { name, at, value: node(text, &property.value, findings) });
            }
            Json::Object(properties)
        }
    };
    Node { at, value: json }
}
