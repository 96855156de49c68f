//! Checks the text of a rule set.

#[cfg(test)]
mod any_bytes;
mod expansions;
mod reader;
mod rules;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::expansions::some;
use self::{
    expansions::{Expansions, Step},
    reader::{Reader, get},
    rules::RuleSource,
};
use crate::{
    diagnostic::{Diagnostic, Findings},
    expression::Names,
    rule_set::{
        Algorithm, Attribute, AttributeType, BackfillPriority, BatchingPreference, ExpansionAge, MAX_MATCH,
        MAX_SMALL_MATCH, Rule, RuleKind, RuleSet, Sizes, Stages, Strategy, Team, TeamDefinition, Value, match_size,
    },
    source::{self, Json, Node, Property},
};

/// The maximum number of attributes, of team definitions, of rules, of expansions, and of steps of an expansion.
const MAX_LIST: usize = 200;

/// What a check accepts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Unknown keys are warnings, not errors.
    pub lenient: bool,
    /// Accepts `players…` without a team, which is not FlexMatch: the players of all teams.
    pub extensions: bool,
    /// After how many seconds a ticket times out. Steps that come later are reported.
    pub timeout: Option<u64>,
}

/// The result of a check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// `None` if there is an error.
    pub rule_set: Option<RuleSet>,
    /// In the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

/// Checks the text of a rule set.
pub fn check(text: &str, options: Options) -> Checked {
    let mut findings = Findings::default();
    let node = source::read(text, &mut findings);
    let reader = Reader { findings: &mut findings, lenient: options.lenient };
    let checked = node.and_then(|node| Checker { reader, options }.document(&node));
    let rule_set = checked.filter(|_| !findings.has_errors());
    Checked { rule_set, diagnostics: findings.into_diagnostics(text) }
}

/// The name that is most similar to a wrong one, if one is similar at all.
pub(crate) fn nearest<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if wrong.len() > 200 {
        return None;
    }
    let similarity = |name: &str| strsim::jaro_winkler(&wrong.to_lowercase(), &name.to_lowercase());
    let nearest = names.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    Some(nearest).filter(|nearest| similarity(nearest) > 0.8)
}

struct Checker<'f> {
    reader: Reader<'f>,
    options: Options,
}

/// Where things are in the text, for warnings.
struct Places {
    attributes: Vec<usize>,
    definitions: Vec<usize>,
    rules: Vec<usize>,
    algorithm: usize,
}

impl Checker<'_> {
    fn document(mut self, node: &Node) -> Option<RuleSet> {
        let properties = self.reader.object(node, "a rule set")?;
        const KNOWN: [&str; 8] =
            ["$schema", "name", "ruleLanguageVersion", "playerAttributes", "teams", "algorithm", "rules", "expansions"];
        self.reader.only(properties, "a rule set", &KNOWN);
        let of = (node.at, properties);
        if let Some(version) = self.reader.required(of, "ruleLanguageVersion", "the rule set")
            && !matches!(&version.value, Json::Text(text) if text == "1.0")
        {
            let message = "this version of the language is not known";
            self.reader.findings.error(version.at, message, "write \"1.0\", with quotes");
        }
        let name = get(properties, "name").and_then(|node| self.reader.text(node, "the name")).map(str::to_owned);
        let attributes = self.attributes(properties);
        let teams = self.reader.required(of, "teams", "the rule set");
        let sources = self.team_sources(teams);
        // With a wrong declaration, rules that use it would seem to be wrong too.
        if self.reader.findings.has_errors() {
            return None;
        }
        let rules = self.rule_sources(properties);
        let expansions = Expansions::read(&mut self.reader, properties, &sources, &rules);
        let definitions = self.definitions(&sources, &expansions);
        let size = match_size(&definitions);
        if size > MAX_MATCH {
            let at = sources.first().map_or(node.at, |source| source.at);
            let message = format!("a match has up to {size} players");
            self.reader.findings.error(at, message, format!("the maximum is {MAX_MATCH}"));
            return None;
        }
        let teams = self.teams(&sources, &definitions);
        let algorithm_node = get(properties, "algorithm");
        let at = algorithm_node.or(get(properties, "teams")).map_or(node.at, |node| node.at);
        let algorithm = self.algorithm(algorithm_node, size, at, &attributes);
        let names = Names {
            attributes: &attributes,
            definitions: &definitions,
            teams: &teams,
            extensions: self.options.extensions,
        };
        let kinds = self.rules(&rules, &expansions, names);
        self.suits_the_size(size, &rules, &kinds);
        let compounds = |kind: &Stages<RuleKind>| match kind.at(0) {
            RuleKind::Compound(statement) => statement.rules(),
            _ => Vec::new(),
        };
        let named: BTreeSet<_> = kinds.iter().flatten().flat_map(compounds).collect();
        let complete = rules.iter().zip(&kinds).enumerate().map(|(index, (source, kind))| {
            let (name, kind) = (source.name?.to_owned(), kind.clone()?);
            Some(Rule { name, kind, in_compound: named.contains(&index) })
        });
        let places = Places {
            attributes: self.places(properties, "playerAttributes"),
            definitions: sources.iter().map(|source| source.at).collect(),
            rules: rules.iter().map(|rule| rule.at).collect(),
            algorithm: at,
        };
        let rules = complete.collect::<Option<Vec<_>>>()?;
        let rule_set = RuleSet { name, attributes, definitions, teams, algorithm: algorithm?, rules };
        if !self.reader.findings.has_errors() {
            warnings::find(self.reader.findings, &rule_set, &places);
            expansions.warn(self.reader.findings, self.options.timeout);
        }
        Some(rule_set)
    }

    fn places(&self, properties: &[Property], list: &str) -> Vec<usize> {
        match get(properties, list).map(|node| &node.value) {
            Some(Json::List(elements)) => elements.iter().map(|node| node.at).collect(),
            _ => Vec::new(),
        }
    }

    fn attributes(&mut self, properties: &[Property]) -> Vec<Attribute> {
        let Some(node) = get(properties, "playerAttributes") else { return Vec::new() };
        let mut found: Vec<Attribute> = Vec::new();
        for node in self.reader.short_list(node, "playerAttributes", MAX_LIST).unwrap_or_default() {
            // An attribute with an error is left out, and the check goes on.
            if let Some(attribute) = self.attribute(node) {
                if found.iter().any(|other| other.name == attribute.name) {
                    let message = format!("the attribute {:?} is declared twice", attribute.name);
                    self.reader.findings.error(node.at, message, "remove one of them");
                }
                found.push(attribute);
            }
        }
        found
    }

    fn attribute(&mut self, node: &Node) -> Option<Attribute> {
        let what = "an attribute";
        let properties = self.reader.object(node, what)?;
        self.reader.only(properties, what, &["name", "type", "default", "description"]);
        let name = self.reader.name((node.at, properties), what)?;
        if name.contains(']') {
            let message = format!("no expression can name the attribute {name:?}, because of the bracket");
            self.reader.findings.warning(node.at, message, "rename it");
        }
        const TYPES: [(&str, AttributeType); 4] = [
            ("string", AttributeType::Text),
            ("number", AttributeType::Number),
            ("string_list", AttributeType::TextList),
            ("string_number_map", AttributeType::NumberMap),
        ];
        let kind = self.reader.required((node.at, properties), "type", what)?;
        let kind = self.reader.choice(kind, "the type of an attribute", &TYPES)?;
        let default = get(properties, "default").map(|default| self.value(default, kind));
        // A wrong default is reported. Without it, other findings would be misleading.
        Some(Attribute { name: name.to_owned(), kind, default: default.flatten() })
    }

    /// A value of an attribute, within the limits of the GameLift API (`AttributeValue`).
    fn value(&mut self, node: &Node, kind: AttributeType) -> Option<Value> {
        const MAX_TEXT: usize = 100;
        const MAX_TEXTS: usize = 100;
        const MAX_MAP: usize = 10;
        let what = "the default";
        let bounded = |reader: &mut Reader<'_>, node: &Node| {
            let text = reader.text(node, what)?.to_owned();
            if text.chars().count() > MAX_TEXT {
                reader.findings.error(node.at, "the text is too long", format!("write at most {MAX_TEXT} characters"));
            }
            Some(text)
        };
        match kind {
            AttributeType::Text => bounded(&mut self.reader, node).map(Value::Text),
            AttributeType::Number => self.reader.number(node, what).map(Value::Number),
            AttributeType::TextList => {
                let elements = self.reader.list(node, what)?;
                if elements.len() > MAX_TEXTS {
                    let cure = format!("write at most {MAX_TEXTS} texts");
                    self.reader.findings.error(node.at, "the list is too long", cure);
                }
                let mut texts = Vec::new();
                for element in elements {
                    let text = bounded(&mut self.reader, element)?;
                    if !texts.contains(&text) {
                        texts.push(text);
                    }
                }
                Some(Value::TextList(texts))
            }
            AttributeType::NumberMap => {
                let properties = self.reader.object(node, what)?;
                if properties.len() > MAX_MAP {
                    let cure = format!("write at most {MAX_MAP} entries");
                    self.reader.findings.error(node.at, "the map is too large", cure);
                }
                let mut map = BTreeMap::new();
                for property in properties {
                    map.insert(property.name.clone(), self.reader.number(&property.value, "a value of the map")?);
                }
                Some(Value::NumberMap(map))
            }
        }
    }

    fn team_sources<'n>(&mut self, node: Option<&'n Node>) -> Vec<TeamSource<'n>> {
        let Some(node) = node else { return Vec::new() };
        let elements = self.reader.short_list(node, "teams", MAX_LIST).unwrap_or_default();
        if matches!(&node.value, Json::List(list) if list.is_empty()) {
            self.reader.findings.error(node.at, "there is no team", "add at least one team");
        }
        let mut sources: Vec<TeamSource<'n>> = Vec::new();
        for node in elements {
            let what = "a team";
            let Some(properties) = self.reader.object(node, what) else { continue };
            self.reader.only(properties, what, &["name", "minPlayers", "maxPlayers", "quantity", "description"]);
            let of = (node.at, properties);
            let Some(name) = self.reader.name(of, what) else { continue };
            if name.contains([']', ',']) || name == "*" {
                let cure = "use a name without ] and commas, so that expressions can contain it";
                self.reader.findings.error(node.at, format!("{name:?} cannot be the name of a team"), cure);
            }
            if sources.iter().any(|other| other.name == name) {
                self.reader.findings.error(node.at, format!("there are two teams {name:?}"), "rename one of them");
            }
            let quantity = get(properties, "quantity");
            let quantity = quantity.map_or(Some(1), |node| self.reader.count(node, "quantity", MAX_MATCH));
            let (min, max) =
                (self.reader.required(of, "minPlayers", what), self.reader.required(of, "maxPlayers", what));
            if let (Some(quantity), Some(min), Some(max)) = (quantity, min, max) {
                if quantity == 0 {
                    self.reader.findings.error(node.at, "a team with the quantity 0", "write 1 or more");
                }
                sources.push(TeamSource { at: node.at, name, quantity, min, max });
            }
        }
        sources
    }

    fn definitions(&mut self, sources: &[TeamSource<'_>], expansions: &Expansions<'_>) -> Vec<TeamDefinition> {
        let mut definitions = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let min = expansions.of_team(index, "minPlayers");
            let max = expansions.of_team(index, "maxPlayers");
            let first = self.sizes(source.min, source.max);
            let ages: BTreeSet<_> = min.iter().chain(max).map(|step| step.age).collect();
            let later = ages.into_iter().map(|age| {
                let min = Step::at(min, age).unwrap_or(source.min);
                (age, self.sizes(min, Step::at(max, age).unwrap_or(source.max)))
            });
            let sizes = Stages::new(first, later.collect());
            definitions.push(TeamDefinition { name: source.name.to_owned(), quantity: source.quantity, sizes });
        }
        definitions
    }

    fn sizes(&mut self, min: &Node, max: &Node) -> Sizes {
        let counts = (self.reader.count(min, "minPlayers", MAX_MATCH), self.reader.count(max, "maxPlayers", MAX_MATCH));
        // After an error, sizes that cause no further ones.
        let (Some(least), Some(most)) = counts else { return Sizes { min: 0, max: 1 } };
        if most == 0 {
            self.reader.findings.error(max.at, "maxPlayers is 0", "write 1 or more");
        } else if least > most {
            let message = format!("minPlayers {least} is greater than maxPlayers {most}");
            self.reader.findings.error(min.at, message, "raise maxPlayers or lower minPlayers");
        }
        Sizes { min: least, max: most }
    }

    fn teams(&mut self, sources: &[TeamSource<'_>], definitions: &[TeamDefinition]) -> Vec<Team> {
        let mut teams: Vec<Team> = Vec::new();
        let mut names = BTreeSet::new();
        for (definition, (of, source)) in definitions.iter().zip(sources).enumerate() {
            for number in 1..=of.quantity {
                let name = if of.quantity == 1 { of.name.clone() } else { format!("{}_{number}", of.name) };
                if !names.insert(name.clone()) {
                    let message = format!("two teams have the name {name:?}, because of a quantity");
                    self.reader.findings.error(source.at, message, "rename one of them");
                    break;
                }
                teams.push(Team { name, definition });
            }
        }
        teams
    }

    fn algorithm(&mut self, node: Option<&Node>, size: u32, at: usize, attributes: &[Attribute]) -> Option<Algorithm> {
        let large = size > MAX_SMALL_MATCH;
        if large && node.is_none() {
            let message = format!("a match of more than {MAX_SMALL_MATCH} players needs an algorithm");
            self.reader.findings.error(at, message, "add an algorithm with the strategy balanced");
        }
        let Some(node) = node else {
            return Some(Algorithm {
                strategy: Strategy::Exhaustive { sort_by: Vec::new() },
                expansion_age: ExpansionAge::Newest,
                backfill: BackfillPriority::Normal,
            });
        };
        let what = "an algorithm";
        let properties = self.reader.object(node, what)?;
        const KNOWN: [&str; 6] = [
            "strategy",
            "batchingPreference",
            "sortByAttributes",
            "balancedAttribute",
            "expansionAgeSelection",
            "backfillPriority",
        ];
        self.reader.only(properties, what, &KNOWN);
        let balanced = get(properties, "strategy")
            .map(|node| self.reader.choice(node, "strategy", &[("exhaustiveSearch", false), ("balanced", true)]));
        let balanced = balanced.unwrap_or(Some(false))?;
        if large && !balanced {
            let message = format!("a match of more than {MAX_SMALL_MATCH} players needs the strategy balanced");
            self.reader.findings.error(node.at, message, "set strategy to balanced, and balancedAttribute");
        }
        let expansion_age = get(properties, "expansionAgeSelection").map(|node| {
            let choices = [("newest", ExpansionAge::Newest), ("oldest", ExpansionAge::Oldest)];
            self.reader.choice(node, "expansionAgeSelection", &choices)
        });
        let backfill = get(properties, "backfillPriority").map(|node| {
            let choices = [
                ("normal", BackfillPriority::Normal),
                ("high", BackfillPriority::High),
                ("low", BackfillPriority::Low),
            ];
            self.reader.choice(node, "backfillPriority", &choices)
        });
        let strategy = if balanced {
            self.balanced((node.at, properties), attributes)
        } else {
            self.exhaustive((node.at, properties), attributes)
        };
        Some(Algorithm {
            strategy: strategy?,
            expansion_age: expansion_age.unwrap_or(Some(ExpansionAge::Newest))?,
            backfill: backfill.unwrap_or(Some(BackfillPriority::Normal))?,
        })
    }

    fn balanced(&mut self, of: (usize, &[Property]), attributes: &[Attribute]) -> Option<Strategy> {
        let preference = get(of.1, "batchingPreference").map(|node| {
            let choices = [
                ("largestPopulation", BatchingPreference::LargestPopulation),
                ("fastestRegion", BatchingPreference::FastestRegion),
            ];
            self.reader.choice(node, "batchingPreference with the strategy balanced", &choices)
        });
        if let Some(node) = get(of.1, "sortByAttributes") {
            let message = "sortByAttributes has no effect with the strategy balanced";
            self.reader.findings.error(node.at, message, "remove it");
        }
        let node = self.reader.required(of, "balancedAttribute", "an algorithm with the strategy balanced")?;
        let attribute = self.declared(node, "balancedAttribute", attributes)?;
        if attributes.get(attribute).is_some_and(|attribute| attribute.kind != AttributeType::Number) {
            let message = "the balancedAttribute is not a number";
            self.reader.findings.error(node.at, message, "choose an attribute of type number");
        }
        let preference = preference.unwrap_or(Some(BatchingPreference::LargestPopulation))?;
        Some(Strategy::Balanced { attribute, preference })
    }

    fn exhaustive(&mut self, of: (usize, &[Property]), attributes: &[Attribute]) -> Option<Strategy> {
        if let Some(node) = get(of.1, "balancedAttribute") {
            let message = "balancedAttribute has no effect with the strategy exhaustiveSearch";
            self.reader.findings.error(node.at, message, "remove it, or set strategy to balanced");
        }
        let sorted = get(of.1, "batchingPreference").map(|node| {
            let choices = [("random", false), ("sorted", true)];
            self.reader.choice(node, "batchingPreference with the strategy exhaustiveSearch", &choices)
        });
        let sorted = sorted.unwrap_or(Some(false))?;
        if !sorted {
            if let Some(node) = get(of.1, "sortByAttributes") {
                let message = "sortByAttributes has no effect without the batchingPreference sorted";
                self.reader.findings.error(node.at, message, "set batchingPreference to sorted");
            }
            return Some(Strategy::Exhaustive { sort_by: Vec::new() });
        }
        let node = self.reader.required(of, "sortByAttributes", "an algorithm with the batchingPreference sorted")?;
        let names = self.reader.list(node, "sortByAttributes")?;
        if names.is_empty() {
            self.reader.findings.error(node.at, "sortByAttributes is empty", "name at least one attribute");
        }
        let mut sort_by = Vec::new();
        for name in names {
            let attribute = self.declared(name, "an element of sortByAttributes", attributes)?;
            let kind = attributes.get(attribute).map(|attribute| attribute.kind);
            if !matches!(kind, Some(AttributeType::Number | AttributeType::Text)) {
                let message = "lists and maps have no order";
                self.reader.findings.error(name.at, message, "choose an attribute of type number or string");
            }
            sort_by.push(attribute);
        }
        Some(Strategy::Exhaustive { sort_by })
    }

    /// The attribute that a text names.
    fn declared(&mut self, node: &Node, what: &str, attributes: &[Attribute]) -> Option<usize> {
        let name = self.reader.text(node, what)?;
        let names = Names { attributes, definitions: &[], teams: &[], extensions: false };
        let found = names.attribute(name).map(|(index, _)| index);
        if found.is_none() {
            self.reader.findings.error(node.at, format!("there is no attribute {name:?}"), names.attribute_cure(name));
        }
        found
    }

    /// Reports the rules that a large match does not allow.
    fn suits_the_size(&mut self, size: u32, rules: &[RuleSource<'_>], kinds: &[Option<Stages<RuleKind>>]) {
        if size <= MAX_SMALL_MATCH {
            return;
        }
        for (source, kind) in rules.iter().zip(kinds) {
            let allowed = |kind: &RuleKind| match kind {
                RuleKind::Latency(latency) => latency.distance.is_none(),
                RuleKind::BatchDistance(_) => true,
                RuleKind::Comparison(_)
                | RuleKind::Distance(_)
                | RuleKind::Collection(_)
                | RuleKind::Compound(_)
                | RuleKind::Sort(_) => false,
            };
            if kind.iter().flat_map(Stages::all).any(|(_, kind)| !allowed(kind)) {
                let message = format!("a match of more than {MAX_SMALL_MATCH} players does not allow this rule");
                let cure = "use only batchDistance rules, and latency rules with maxLatency";
                self.reader.findings.error(source.at, message, cure);
            }
        }
    }
}

/// A team definition whose sizes are not read yet.
struct TeamSource<'n> {
    at: usize,
    name: &'n str,
    quantity: u32,
    min: &'n Node,
    max: &'n Node,
}
