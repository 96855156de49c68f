//! The values of expressions, and how expressions are read.

use std::collections::BTreeSet;

const FUNCTIONS: [&str; 9] = ["min", "max", "avg", "median", "sum", "stddev", "count", "flatten", "set_intersection"];

/// What the lists of a value consist of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Player,
    Number,
    Text,
}

/// The base and the levels of lists around it.
pub(super) type Type = (Base, usize);

/// A player is the text of their id.
#[derive(Clone, PartialEq)]
pub(super) enum Data {
    Number(f64),
    Text(String),
    List(Vec<Self>),
}

impl Data {
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            Self::Number(_) | Self::Text(_) => &[],
        }
    }

    /// What is left without the outermost levels of lists: the elements, or the elements of the elements.
    pub(super) fn without(&self, levels: usize) -> Vec<&Self> {
        (0..levels).fold(vec![self], |outer, _| outer.into_iter().flat_map(Self::items).collect())
    }

    /// The single values in all levels of lists.
    pub(super) fn leaves(&self) -> Vec<&Self> {
        match self {
            Self::List(items) => items.iter().flat_map(Self::leaves).collect(),
            Self::Number(_) | Self::Text(_) => vec![self],
        }
    }

    pub(super) fn numbers(&self) -> Vec<f64> {
        let number = |leaf: &Self| if let Self::Number(number) = leaf { Some(*number) } else { None };
        self.leaves().into_iter().filter_map(number).collect()
    }

    /// The different texts.
    pub(super) fn texts(&self) -> BTreeSet<String> {
        let text = |leaf: &Self| if let Self::Text(text) = leaf { Some(text.clone()) } else { None };
        self.leaves().into_iter().filter_map(text).collect()
    }

    pub(super) fn of_texts(texts: BTreeSet<String>) -> Self {
        Self::List(texts.into_iter().map(Self::Text).collect())
    }
}

/// The texts that all lists have in common. Nothing, if there are no lists.
pub(super) fn intersection(lists: impl IntoIterator<Item = BTreeSet<String>>) -> BTreeSet<String> {
    lists.into_iter().reduce(|left, right| &left & &right).unwrap_or_default()
}

pub(super) fn average(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| sum(numbers) / numbers.len() as f64)
}

/// Adds the least number first: with rounding, the order matters.
fn sum(numbers: &[f64]) -> f64 {
    let mut ascending = numbers.to_vec();
    ascending.sort_by(f64::total_cmp);
    ascending.iter().fold(0.0, |sum, number| sum + number)
}

/// `None` if the numbers have no such aggregate.
pub(super) fn aggregate(function: &str, numbers: &[f64]) -> Option<f64> {
    match function {
        "min" => numbers.iter().copied().reduce(f64::min),
        "max" => numbers.iter().copied().reduce(f64::max),
        "sum" => Some(sum(numbers)),
        "avg" => average(numbers),
        "stddev" => {
            let mean = average(numbers)?;
            let squares: Vec<f64> = numbers.iter().map(|number| (number - mean) * (number - mean)).collect();
            average(&squares).map(f64::sqrt)
        }
        "median" => {
            let mut sorted = numbers.to_vec();
            sorted.sort_by(f64::total_cmp);
            let upper = *sorted.get(sorted.len() / 2)?;
            let lower = *sorted.get((sorted.len() - 1) / 2)?;
            Some(if sorted.len().is_multiple_of(2) { (lower + upper) / 2.0 } else { upper })
        }
        _ => None,
    }
}

/// The type of a function's result. `None` if the function does not accept the input.
pub(super) fn output(function: &str, (base, depth): Type) -> Option<Type> {
    let (base, needs) = match (function, base) {
        ("count", _) => (Base::Number, 1),
        ("flatten", _) => (base, 2),
        ("set_intersection", Base::Text) => (base, 2),
        ("min" | "max" | "avg" | "median" | "sum" | "stddev", Base::Number) => (base, 1),
        _ => return None,
    };
    (depth >= needs).then(|| (base, depth - 1))
}

/// The result of a function for an input that [`output`] accepts. `None` if an aggregate has no value.
pub(super) fn apply(function: &str, input: &Data, depth: usize) -> Option<Data> {
    let items = input.items();
    match (function, depth) {
        ("flatten", _) => Some(Data::List(input.without(2).into_iter().cloned().collect())),
        ("count", 1) => Some(Data::Number(items.len() as f64)),
        ("set_intersection", 2) => Some(Data::of_texts(intersection(items.iter().map(Data::texts)))),
        (_, 1) => aggregate(function, &input.numbers()).map(Data::Number),
        // The list is nested deeper than the input of the function.
        _ => items.iter().map(|item| apply(function, item, depth - 1)).collect::<Option<_>>().map(Data::List),
    }
}

/// Functions around a path, the outermost first.
pub(super) struct Expression<'a> {
    pub(super) functions: Vec<&'static str>,
    /// What stands between the brackets of `teams[…]`. `None` for the extension `players…`.
    pub(super) teams: Option<&'a str>,
    pub(super) item: Item<'a>,
}

pub(super) enum Item<'a> {
    Player,
    Id,
    Attribute(&'a str),
}

impl<'a> Expression<'a> {
    /// `None` if the text is not an expression.
    pub(super) fn parse(source: &'a str) -> Option<Self> {
        let mut rest = source.trim();
        let mut functions = Vec::new();
        let open = |rest: &'a str, name| rest.strip_prefix(name)?.trim_start().strip_prefix('(');
        while let Some((name, inner)) = FUNCTIONS.into_iter().find_map(|name| Some((name, open(rest, name)?))) {
            functions.push(name);
            rest = inner.strip_suffix(')')?.trim();
        }
        let (teams, rest) = match rest.strip_prefix("teams[") {
            Some(rest) => {
                let (names, rest) = rest.split_once(']')?;
                (Some(names), rest.strip_prefix(".players")?)
            }
            None => (None, rest.strip_prefix("players")?),
        };
        let item = match rest {
            "" => Item::Player,
            "[playerId]" => Item::Id,
            _ => Item::Attribute(rest.strip_prefix(".attributes[")?.strip_suffix(']')?),
        };
        let is_valid = !matches!(item, Item::Attribute(name) if name.contains([']', ',']));
        is_valid.then_some(Self { functions, teams, item })
    }
}
