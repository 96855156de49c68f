//! Reads values out of the JSON tree, and explains what is wrong with them.

use crate::{
    check::nearest,
    diagnostic::Findings,
    expression::Problem,
    source::{Json, Node, Property},
};

/// The maximum length of a name, in characters. It keeps messages short.
const MAX_NAME: usize = 128;

/// Reads values. What is wrong becomes a finding, and the value `None`.
pub(crate) struct Reader<'f> {
    pub(crate) findings: &'f mut Findings,
    /// Unknown keys are warnings.
    pub(crate) lenient: bool,
}

/// The value of a key.
pub(crate) fn get<'n>(properties: &'n [Property], name: &str) -> Option<&'n Node> {
    properties.iter().find(|property| property.name == name).map(|property| &property.value)
}

impl Reader<'_> {
    fn wrong(&mut self, node: &Node, what: &str, wants: &str) {
        let message = format!("{what} is {wants}, but this is {}", node.kind());
        self.findings.error(node.at, message, format!("write {wants}"));
    }

    pub(crate) fn object<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Property]> {
        let Json::Object(properties) = &node.value else {
            self.wrong(node, what, "an object");
            return None;
        };
        Some(properties)
    }

    /// A list with at most `max` elements. The limits keep a check fast; no real rule set comes near them.
    pub(crate) fn short_list<'n>(&mut self, node: &'n Node, what: &str, max: usize) -> Option<&'n [Node]> {
        let elements = self.list(node, what)?;
        if elements.len() > max {
            let message = format!("{what} has {} elements; the maximum is {max}", elements.len());
            self.findings.error(node.at, message, "split the rule set, or remove some");
            return None;
        }
        Some(elements)
    }

    pub(crate) fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        let Json::List(elements) = &node.value else {
            self.wrong(node, what, "a list");
            return None;
        };
        Some(elements)
    }

    pub(crate) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let Json::Text(text) = &node.value else {
            self.wrong(node, what, "a text");
            return None;
        };
        Some(text)
    }

    /// A number, also one in quotes.
    pub(crate) fn number(&mut self, node: &Node, what: &str) -> Option<f64> {
        match &node.value {
            Json::Number(number) => Some(*number),
            Json::Text(text) => {
                let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
                match number {
                    Some(_) => self.quoted(node, what),
                    None => self.wrong(node, what, "a number"),
                }
                number
            }
            Json::Null | Json::Bool | Json::List(_) | Json::Object(_) => {
                self.wrong(node, what, "a number");
                None
            }
        }
    }

    pub(crate) fn quoted(&mut self, node: &Node, what: &str) {
        self.findings.warning(node.at, format!("{what} is a number in quotes"), "remove the quotes");
    }

    /// A number that is not negative.
    pub(crate) fn distance(&mut self, node: &Node, what: &str) -> Option<f64> {
        let number = self.number(node, what)?;
        if number < 0.0 {
            self.findings.error(node.at, format!("{what} is negative"), "write 0 or more");
            return None;
        }
        Some(number)
    }

    /// A whole number from 0 to `max`.
    pub(crate) fn count(&mut self, node: &Node, what: &str, max: u32) -> Option<u32> {
        let number = self.number(node, what)?;
        if number.fract() != 0.0 || !(0.0..=f64::from(max)).contains(&number) {
            self.findings.error(
                node.at,
                format!("{what} is {number}"),
                format!("write a whole number from 0 to {max}"),
            );
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
        Some(number as u32)
    }

    /// One of several words.
    pub(crate) fn choice<T: Copy>(&mut self, node: &Node, what: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.findings.error(node.at, format!("{what} is {text:?}"), format!("use {}", names.join(" or ")));
        }
        found.map(|(_, choice)| *choice)
    }

    /// The value of a key that must be there. `at` is the position of its object.
    pub(crate) fn required<'n>(&mut self, of: (usize, &'n [Property]), name: &str, what: &str) -> Option<&'n Node> {
        let (at, properties) = of;
        let found = get(properties, name);
        if found.is_none() {
            self.findings.error(at, format!("{what} has no {name}"), format!("add {name}"));
        }
        found
    }

    /// A name that must be there and not be empty.
    pub(crate) fn name<'n>(&mut self, of: (usize, &'n [Property]), what: &str) -> Option<&'n str> {
        let node = self.required(of, "name", what)?;
        let name = self.text(node, &format!("the name of {what}"))?;
        if name.trim().is_empty() {
            self.findings.error(node.at, format!("the name of {what} is empty"), "write a name");
            return None;
        }
        if name.chars().count() > MAX_NAME {
            let cure = format!("write at most {MAX_NAME} characters");
            self.findings.error(node.at, format!("the name of {what} is too long"), cure);
            return None;
        }
        if name.trim() != name {
            let message = format!("the name of {what} begins or ends with white space, so nothing can refer to it");
            self.findings.warning(node.at, message, "remove the white space");
        }
        Some(name)
    }

    /// Reports each key that is not known.
    pub(crate) fn only(&mut self, properties: &[Property], what: &str, known: &[&str]) {
        for Property { name, at, value } in properties {
            if known.contains(&name.as_str()) {
                if matches!(name.as_str(), "description" | "$schema") {
                    self.text(value, name);
                }
                continue;
            }
            let message = format!("{what} has no property {name:?}");
            if self.lenient {
                self.findings.warning(*at, message, "it is ignored");
            } else {
                let cure = match nearest(name, known.iter().copied()) {
                    Some(nearest) => format!("did you mean {nearest:?}? --lenient ignores unknown properties"),
                    None => "remove it, or check with --lenient, which ignores unknown properties".into(),
                };
                self.findings.error(*at, message, cure);
            }
        }
    }

    /// A problem inside of a text.
    pub(crate) fn inside(&mut self, node: &Node, problem: Problem) {
        let Problem { at, message, cure } = problem;
        // Behind the opening quote. A text with escapes shifts the position a little.
        self.findings.error(node.at + 1 + at, message, cure);
    }
}
