//! Statements of compound rules, such as `or(and(A, B), not(C))`.

use crate::{cursor::Cursor, expression::Problem};

/// The maximum depth of a statement.
const MAX_DEPTH: usize = 32;

/// Other rules, combined. Rules are indices of [`RuleSet::rules`](crate::rule_set::RuleSet::rules).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    Rule(usize),
    And(Vec<Statement>),
    Or(Vec<Statement>),
    /// Exactly one.
    Xor(Vec<Statement>),
    Not(Box<Statement>),
}

impl Statement {
    /// The rules that it names, with repetitions.
    pub fn rules(&self) -> Vec<usize> {
        match self {
            Self::Rule(index) => vec![*index],
            Self::Not(of) => of.rules(),
            Self::And(of) | Self::Or(of) | Self::Xor(of) => of.iter().flat_map(Self::rules).collect(),
        }
    }

    /// Whether it holds, if `rule` says whether each rule holds.
    pub fn holds(&self, rule: &impl Fn(usize) -> bool) -> bool {
        match self {
            Self::Rule(index) => rule(*index),
            Self::Not(of) => !of.holds(rule),
            Self::And(of) => of.iter().all(|part| part.holds(rule)),
            Self::Or(of) => of.iter().any(|part| part.holds(rule)),
            Self::Xor(of) => of.iter().filter(|part| part.holds(rule)).count() == 1,
        }
    }
}

/// Reads a statement. `rule` resolves the name of a rule at a position of the text, in bytes.
pub(crate) fn parse(
    text: &str,
    rule: &mut impl FnMut(usize, &str) -> Result<usize, Problem>,
) -> Result<Statement, Problem> {
    let mut parser = Cursor::new(text);
    let statement = parser.part(rule, 0)?;
    if let Statement::Rule(_) = statement {
        return Err(problem(0, "a statement begins with and, or, xor or not", "write for example and(A, B)"));
    }
    parser.space();
    if parser.at < text.len() {
        return Err(problem(parser.at, "unexpected text after the statement", "remove it"));
    }
    Ok(statement)
}

fn problem(at: usize, message: impl Into<String>, cure: impl Into<String>) -> Problem {
    Problem { at, message: message.into(), cure: cure.into() }
}

impl<'t> Cursor<'t> {
    fn part(
        &mut self,
        rule: &mut impl FnMut(usize, &str) -> Result<usize, Problem>,
        depth: usize,
    ) -> Result<Statement, Problem> {
        self.space();
        let at = self.at;
        if depth > MAX_DEPTH {
            return Err(problem(at, format!("the statement is deeper than {MAX_DEPTH}"), "use several compound rules"));
        }
        let end = self.rest().find(['(', ')', ',']).unwrap_or(self.rest().len());
        let name: &'t str = self.rest().get(..end).unwrap_or_default();
        self.at += name.len();
        let name = name.trim();
        if !self.rest().starts_with('(') {
            if name.is_empty() {
                return Err(problem(at, "the name of a rule is missing", "add it"));
            }
            return rule(at, name).map(Statement::Rule);
        }
        self.at += 1;
        let mut parts = Vec::new();
        loop {
            parts.push(self.part(rule, depth + 1)?);
            self.space();
            if !self.take(",") {
                break;
            }
        }
        if !self.take(")") {
            return Err(problem(self.at, "a closing parenthesis is missing", "add )"));
        }
        let count = parts.len();
        let few = || problem(at, format!("{name} needs at least two parts"), "add one, or remove the operator");
        match name {
            "not" => match parts.pop().filter(|_| count == 1) {
                Some(part) => Ok(Statement::Not(Box::new(part))),
                None => Err(problem(at, "not has one part", "write not(A), or for example not(or(A, B))")),
            },
            "and" | "or" | "xor" if count < 2 => Err(few()),
            "and" => Ok(Statement::And(parts)),
            "or" => Ok(Statement::Or(parts)),
            "xor" => Ok(Statement::Xor(parts)),
            other => Err(problem(at, format!("{other:?} is not an operator"), "use and, or, xor or not")),
        }
    }
}
