//! What a check finds in the text of a rule set.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

/// Whether a rule set can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It cannot be used.
    Error,
    /// It can be used, but may not do what its author expects.
    Warning,
}

/// One finding. The field names appear in JSON and must not change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if there is anything to do.
    pub cure: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, severity, message, cure } = self;
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{line}:{column}: {severity}: {message}")?;
        cure.iter().try_for_each(|cure| write!(f, "; {cure}"))
    }
}

/// Collects the findings of one check.
#[derive(Debug, Default)]
pub(crate) struct Findings(BTreeSet<(usize, Severity, String, Option<String>)>);

impl Findings {
    /// An error at a position of the text, in bytes. The same finding again has no effect.
    pub(crate) fn error(&mut self, at: usize, message: impl Into<String>, cure: impl Into<String>) {
        self.0.insert((at, Severity::Error, message.into(), Some(cure.into())));
    }

    pub(crate) fn warning(&mut self, at: usize, message: impl Into<String>, cure: impl Into<String>) {
        let cure = Some(cure.into()).filter(|cure| !cure.is_empty());
        self.0.insert((at, Severity::Warning, message.into(), cure));
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|(_, severity, _, _)| *severity == Severity::Error)
    }

    /// The findings in the order of the text.
    pub(crate) fn into_diagnostics(self, text: &str) -> Vec<Diagnostic> {
        let place = |at: usize| {
            let before = text.get(..at).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            (line, column)
        };
        let located = self.0.into_iter().map(|(at, severity, message, cure)| {
            let (line, column) = place(at);
            Diagnostic { line, column, severity, message, cure }
        });
        located.collect()
    }
}
