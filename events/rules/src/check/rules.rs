//! Reads rules.

use std::collections::BTreeSet;

use super::{
    Checker,
    expansions::{Expansions, Step},
    reader::get,
};
use crate::{
    expression::{self, Expression, Names, Problem, Property as Measured, Type},
    rule_set::{
        AttributeType, BatchDistance, Collection, CollectionOperation, Comparator, Comparison, Distance,
        DistanceReference, Latency, ListAggregation, ListReference, MapKey, NumberAggregation, Reference, RuleKind,
        Sort, SortBy, Stages,
    },
    source::{Json, Node, Property},
    statement,
};

/// The type of a rule, as in its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Comparison,
    Distance,
    Collection,
    Latency,
    Compound,
    AbsoluteSort,
    DistanceSort,
    BatchDistance,
}

const KINDS: [(&str, Kind); 8] = [
    ("comparison", Kind::Comparison),
    ("distance", Kind::Distance),
    ("collection", Kind::Collection),
    ("latency", Kind::Latency),
    ("compound", Kind::Compound),
    ("absoluteSort", Kind::AbsoluteSort),
    ("distanceSort", Kind::DistanceSort),
    ("batchDistance", Kind::BatchDistance),
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// The properties of a type of rule. (FlexMatch guide, "Rule types".)
pub(super) const fn properties_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Comparison => {
            &["name", "type", "description", "measurements", "operation", "referenceValue", "partyAggregation"]
        }
        Kind::Distance => &[
            "name",
            "type",
            "description",
            "measurements",
            "referenceValue",
            "minDistance",
            "maxDistance",
            "partyAggregation",
        ],
        Kind::Collection => &[
            "name",
            "type",
            "description",
            "measurements",
            "operation",
            "referenceValue",
            "minCount",
            "maxCount",
            "partyAggregation",
        ],
        Kind::Latency => {
            &["name", "type", "description", "maxLatency", "maxDistance", "distanceReference", "partyAggregation"]
        }
        Kind::Compound => &["name", "type", "description", "statement"],
        Kind::AbsoluteSort | Kind::DistanceSort => {
            &["name", "type", "description", "sortDirection", "sortAttribute", "mapKey", "partyAggregation"]
        }
        Kind::BatchDistance => &["name", "type", "description", "batchAttribute", "maxDistance", "partyAggregation"],
    }
}

/// A rule whose properties are not read yet.
pub(super) struct RuleSource<'n> {
    pub(super) at: usize,
    pub(super) name: Option<&'n str>,
    pub(super) kind: Option<Kind>,
    pub(super) properties: &'n [Property],
}

/// The maximum number of measurements of a rule.
const MAX_MEASUREMENTS: usize = 20;

/// A measurement and its type.
type Typed = (Expression, Type);

impl Checker<'_> {
    pub(super) fn rule_sources<'n>(&mut self, document: &'n [Property]) -> Vec<RuleSource<'n>> {
        let Some(node) = get(document, "rules") else { return Vec::new() };
        let mut sources: Vec<RuleSource<'n>> = Vec::new();
        for node in self.reader.short_list(node, "rules", super::MAX_LIST).unwrap_or_default() {
            let what = "a rule";
            let Some(properties) = self.reader.object(node, what) else { continue };
            let of = (node.at, properties);
            let name = self.reader.name(of, what);
            if name.is_some() && sources.iter().any(|other| other.name == name) {
                let message = format!("there are two rules {:?}", name.unwrap_or_default());
                self.reader.findings.error(node.at, message, "rename one of them");
            }
            let kind = self.reader.required(of, "type", what);
            let kind = kind.and_then(|kind| self.reader.choice(kind, "the type of a rule", &KINDS));
            if let Some(kind) = kind {
                let what = format!("a rule of type {}", kind.name());
                self.reader.only(properties, &what, properties_of(kind));
            }
            sources.push(RuleSource { at: node.at, name, kind, properties });
        }
        sources
    }

    /// The rules with all their stages. `None` for a rule with an error.
    pub(super) fn rules(
        &mut self,
        sources: &[RuleSource<'_>],
        expansions: &Expansions<'_>,
        names: Names<'_>,
    ) -> Vec<Option<Stages<RuleKind>>> {
        let kinds = sources.iter().enumerate().map(|(index, source)| {
            let changes: Vec<_> = expansions.of_rule(index).collect();
            let ages: BTreeSet<_> = changes.iter().flat_map(|(_, steps)| steps.iter()).map(|step| step.age).collect();
            let first = self.rule(index, source.at, source.properties, sources, names);
            let mut later = Vec::new();
            for age in ages {
                let mut properties = source.properties.to_vec();
                for (name, steps) in &changes {
                    let Some(value) = Step::at(steps, age) else { continue };
                    properties.retain(|property| property.name != *name);
                    properties.push(Property { name: (*name).to_owned(), at: value.at, value: value.clone() });
                }
                later.push((age, self.rule(index, source.at, &properties, sources, names)?));
            }
            Some(Stages::new(first?, later))
        });
        kinds.collect()
    }

    /// A rule at one stage.
    fn rule(
        &mut self,
        index: usize,
        at: usize,
        properties: &[Property],
        sources: &[RuleSource<'_>],
        names: Names<'_>,
    ) -> Option<RuleKind> {
        let of = (at, properties);
        match sources.get(index)?.kind? {
            Kind::Comparison => self.comparison(of, names).map(RuleKind::Comparison),
            Kind::Distance => self.distance(of, names).map(RuleKind::Distance),
            Kind::Collection => self.collection(of, names).map(RuleKind::Collection),
            Kind::Latency => self.latency(of).map(RuleKind::Latency),
            Kind::Compound => self.compound(of, index, sources),
            Kind::AbsoluteSort => self.sort(of, SortBy::Value, names).map(RuleKind::Sort),
            Kind::DistanceSort => self.sort(of, SortBy::Distance, names).map(RuleKind::Sort),
            Kind::BatchDistance => self.batch_distance(of, names).map(RuleKind::BatchDistance),
        }
    }

    fn measurements(&mut self, of: (usize, &[Property]), names: Names<'_>) -> Option<Vec<Typed>> {
        let node = self.reader.required(of, "measurements", "the rule")?;
        let nodes = match &node.value {
            Json::Text(_) => {
                let message = "measurements is a text";
                self.reader.findings.warning(node.at, message, "other tools may need a list: [\"…\"]");
                std::slice::from_ref(node)
            }
            _ => self.reader.short_list(node, "measurements", MAX_MEASUREMENTS)?,
        };
        if nodes.is_empty() {
            self.reader.findings.error(node.at, "measurements is empty", "add an expression");
        }
        let mut measurements = Vec::new();
        for node in nodes {
            let text = self.reader.text(node, "a measurement")?;
            measurements.push(self.resolved(node, expression::parse(text), names)?);
        }
        Some(measurements)
    }

    fn resolved(
        &mut self,
        node: &Node,
        syntax: Result<expression::Syntax, Problem>,
        names: Names<'_>,
    ) -> Option<Typed> {
        let resolved = syntax.and_then(|syntax| names.resolve(&syntax));
        resolved.map_err(|problem| self.reader.inside(node, problem)).ok()
    }

    /// The position of a rule's measurements, for errors about their types.
    fn measured_at(of: (usize, &[Property])) -> usize {
        get(of.1, "measurements").map_or(of.0, |node| node.at)
    }

    fn comparison(&mut self, of: (usize, &[Property]), names: Names<'_>) -> Option<Comparison> {
        const OPERATIONS: [(&str, Comparator); 6] = [
            ("<", Comparator::Less),
            ("<=", Comparator::LessOrEqual),
            ("=", Comparator::Equal),
            ("!=", Comparator::NotEqual),
            (">=", Comparator::GreaterOrEqual),
            (">", Comparator::Greater),
        ];
        let operation = self.reader.required(of, "operation", "a comparison");
        let operation_at = operation.map_or(of.0, |node| node.at);
        let operation =
            operation.and_then(|node| self.reader.choice(node, "the operation of a comparison", &OPERATIONS));
        let measurements = self.measurements(of, names);
        let party = self.number_aggregation(of.1);
        let (operation, measurements) = (operation?, measurements?);
        let at = Self::measured_at(of);
        let mut leaf = None;
        for (_, measured) in &measurements {
            let this = measured.leaf().0;
            if !matches!(this, Type::Number | Type::Text) {
                let message = format!("a comparison needs numbers or texts, but this is: {measured}");
                self.reader.findings.error(at, message, "use an attribute, or a function such as count");
                return None;
            }
            if leaf.get_or_insert(this) != &this {
                let message = "the measurements of a comparison are numbers and texts";
                self.reader.findings.error(at, message, "use two rules");
                return None;
            }
        }
        let numbers = leaf == Some(&Type::Number);
        let across = matches!(operation, Comparator::Equal | Comparator::NotEqual);
        let Some(node) = get(of.1, "referenceValue") else {
            if !across {
                let message = "a comparison without a referenceValue compares the players with each other";
                self.reader.findings.error(operation_at, message, "use = or !=, or add a referenceValue");
            }
            let measurements = measurements.into_iter().map(|(expression, _)| expression).collect();
            return Some(Comparison { measurements, operation, reference: None, party: party? });
        };
        if !numbers && !across {
            let message = "texts have no order";
            self.reader.findings.error(operation_at, message, "use = or !=");
        }
        let reference = self.reference(node, if numbers { &Type::Number } else { &Type::Text }, names)?;
        let measurements = measurements.into_iter().map(|(expression, _)| expression).collect();
        Some(Comparison { measurements, operation, reference: Some(reference), party: party? })
    }

    /// A reference of one type: a literal, or an expression.
    fn reference(&mut self, node: &Node, wants: &Type, names: Names<'_>) -> Option<Reference> {
        let what = "the referenceValue";
        match &node.value {
            Json::Number(number) if *wants == Type::Number => Some(Reference::Number(*number)),
            Json::Text(text) => match expression::parse(text) {
                // Without the extension, `players` is an ordinary text.
                Ok(syntax) if *wants == Type::Text && syntax.is_text(names.extensions) => {
                    Some(Reference::Text(text.clone()))
                }
                Ok(syntax) => {
                    let (expression, of) = self.resolved(node, Ok(syntax), names)?;
                    if of != *wants {
                        let message = format!("{what} must be one {wants}, but this is: {of}");
                        let cure = match wants {
                            Type::Number => "use a function that gives one number, such as avg(flatten(…))",
                            _ => "no expression gives one text; write the text itself",
                        };
                        self.reader.findings.error(node.at, message, cure);
                        return None;
                    }
                    Some(Reference::Expression(expression))
                }
                Err(problem) => match wants {
                    Type::Number => match text.trim().parse().ok().filter(|number: &f64| number.is_finite()) {
                        Some(number) => {
                            self.reader.quoted(node, what);
                            Some(Reference::Number(number))
                        }
                        None => {
                            let message = format!("{what} is neither a number nor an expression: {}", problem.message);
                            self.reader.findings.error(node.at + 1 + problem.at, message, problem.cure);
                            None
                        }
                    },
                    _ => {
                        self.looks_like_text(node, text, &problem);
                        Some(Reference::Text(text.clone()))
                    }
                },
            },
            Json::Number(_) | Json::Null | Json::Bool | Json::List(_) | Json::Object(_) => {
                let message = format!("{what} must be a {wants} or an expression, but this is {}", node.kind());
                self.reader.findings.error(node.at, message, format!("write a {wants}"));
                None
            }
        }
    }

    /// Warns about a text that is probably meant as an expression.
    fn looks_like_text(&mut self, node: &Node, text: &str, problem: &Problem) {
        if expression::looks_like_one(text) {
            let message = format!("this is used as a text, because it is not an expression: {}", problem.message);
            self.reader.findings.warning(node.at, message, problem.cure.clone());
        }
    }

    fn distance(&mut self, of: (usize, &[Property]), names: Names<'_>) -> Option<Distance> {
        let measurements = self.measurements(of, names);
        let reference = self.reader.required(of, "referenceValue", "a distance rule");
        let reference = reference.and_then(|node| self.reference(node, &Type::Number, names));
        let (min, max) = (get(of.1, "minDistance"), get(of.1, "maxDistance"));
        if min.is_none() && max.is_none() {
            let message = "a distance rule needs a minDistance or a maxDistance";
            self.reader.findings.error(of.0, message, "add maxDistance");
        }
        let min = min.map(|node| self.reader.distance(node, "minDistance"));
        let max = max.map(|node| self.reader.distance(node, "maxDistance"));
        let party = self.number_aggregation(of.1);
        let measurements = measurements?;
        for (_, measured) in &measurements {
            if *measured.leaf().0 != Type::Number {
                let message = format!("a distance rule needs numbers, but this is: {measured}");
                self.reader.findings.error(Self::measured_at(of), message, "use an attribute of type number");
            }
        }
        if let (Some(Some(min)), Some(Some(max))) = (min, max)
            && min > max
        {
            let message = format!("minDistance {min} is greater than maxDistance {max}");
            self.reader.findings.error(of.0, message, "lower minDistance or raise maxDistance");
        }
        let measurements = measurements.into_iter().map(|(expression, _)| expression).collect();
        let (min, max) = (min.map_or(Some(None), |min| min.map(Some))?, max.map_or(Some(None), |max| max.map(Some))?);
        Some(Distance { measurements, reference: reference?, min, max, party: party? })
    }

    fn collection(&mut self, of: (usize, &[Property]), names: Names<'_>) -> Option<Collection> {
        #[derive(Clone, Copy)]
        enum Operation {
            Intersection,
            Contains,
            ReferenceIntersectionCount,
        }
        const OPERATIONS: [(&str, Operation); 3] = [
            ("intersection", Operation::Intersection),
            ("contains", Operation::Contains),
            ("reference_intersection_count", Operation::ReferenceIntersectionCount),
        ];
        let operation = self.reader.required(of, "operation", "a collection rule");
        let operation =
            operation.and_then(|node| self.reader.choice(node, "the operation of a collection rule", &OPERATIONS));
        let measurements = self.measurements(of, names);
        let bound = |this: &mut Self, name: &str| match get(of.1, name) {
            Some(node) => this.reader.count(node, name, u32::MAX).map(Some),
            None => Some(None),
        };
        let (min, max) = (bound(self, "minCount"), bound(self, "maxCount"));
        let party = get(of.1, "partyAggregation").map(|node| {
            let choices = [("union", ListAggregation::Union), ("intersection", ListAggregation::Intersection)];
            self.reader.choice(node, "partyAggregation of a collection rule", &choices)
        });
        let reference = get(of.1, "referenceValue");
        let operation = match operation? {
            Operation::Intersection => {
                if let Some(node) = reference {
                    let message = "the operation intersection has no referenceValue";
                    let cure = "remove it, or use reference_intersection_count";
                    self.reader.findings.error(node.at, message, cure);
                }
                Some(CollectionOperation::Intersection)
            }
            Operation::Contains => {
                let node = self.reader.required(of, "referenceValue", "a collection rule with contains");
                node.and_then(|node| {
                    let text = self.reader.text(node, "the referenceValue of contains")?;
                    match expression::parse(text) {
                        Ok(syntax) if syntax.is_text(names.extensions) => {}
                        Ok(_) => {
                            let message = "the referenceValue of contains is one text, not an expression";
                            self.reader.findings.error(node.at, message, "use reference_intersection_count");
                        }
                        Err(problem) => self.looks_like_text(node, text, &problem),
                    }
                    Some(CollectionOperation::Contains(text.to_owned()))
                })
            }
            Operation::ReferenceIntersectionCount => {
                let what = "a collection rule with reference_intersection_count";
                let node = self.reader.required(of, "referenceValue", what);
                let reference = node.and_then(|node| self.list_reference(node, names));
                reference.map(CollectionOperation::ReferenceIntersectionCount)
            }
        };
        let measurements = measurements?;
        for (expression, measured) in &measurements {
            let (leaf, depth) = measured.leaf();
            let is_list = match expression.path().property {
                Measured::PlayerIds => true,
                Measured::Attribute(index) => {
                    names.attributes.get(index).is_some_and(|of| of.kind == AttributeType::TextList)
                }
                Measured::Team | Measured::Players => false,
            };
            if *leaf != Type::Text || depth == 0 || !is_list {
                let message =
                    format!("a collection rule needs lists of texts of an attribute, but this is: {measured}");
                self.reader.findings.error(Self::measured_at(of), message, "use an attribute of type string_list");
            }
        }
        if let (Some(Some(min)), Some(Some(max))) = (min, max)
            && min > max
        {
            let message = format!("minCount {min} is greater than maxCount {max}");
            self.reader.findings.error(of.0, message, "lower minCount or raise maxCount");
        }
        let measurements = measurements.into_iter().map(|(expression, _)| expression).collect();
        let party = party.unwrap_or(Some(ListAggregation::Union))?;
        Some(Collection { measurements, operation: operation?, min: min?, max: max?, party })
    }

    fn list_reference(&mut self, node: &Node, names: Names<'_>) -> Option<ListReference> {
        let what = "the referenceValue of reference_intersection_count";
        if let Json::Text(text) = &node.value {
            let (expression, of) = self.resolved(node, expression::parse(text), names)?;
            if of != Type::list(Type::Text) {
                let message = format!("{what} must be a list of (text), but this is: {of}");
                self.reader.findings.error(node.at, message, "use flatten or set_intersection");
                return None;
            }
            return Some(ListReference::Expression(expression));
        }
        let elements = self.reader.list(node, what)?;
        let texts = elements.iter().map(|element| Some(self.reader.text(element, "a text of the list")?.to_owned()));
        texts.collect::<Option<Vec<_>>>().map(ListReference::Texts)
    }

    fn latency(&mut self, of: (usize, &[Property])) -> Option<Latency> {
        let max = get(of.1, "maxLatency").map(|node| self.reader.distance(node, "maxLatency"));
        let distance = get(of.1, "maxDistance").map(|node| (node.at, self.reader.distance(node, "maxDistance")));
        let reference = get(of.1, "distanceReference").map(|node| {
            let choices = [("min", DistanceReference::Min), ("avg", DistanceReference::Avg)];
            (node.at, self.reader.choice(node, "distanceReference", &choices))
        });
        if max.is_none() && distance.is_none() {
            let message = "a latency rule needs a maxLatency or a maxDistance";
            self.reader.findings.error(of.0, message, "add maxLatency");
        }
        let distance = match (distance, reference) {
            (Some((_, distance)), Some((_, reference))) => Some((distance?, reference?)),
            (Some((at, _)), None) => {
                let message = "maxDistance needs a distanceReference";
                self.reader.findings.error(at, message, "add distanceReference: min or avg");
                None
            }
            (None, Some((at, _))) => {
                let message = "distanceReference has no effect without maxDistance";
                self.reader.findings.error(at, message, "add maxDistance, or remove it");
                None
            }
            (None, None) => None,
        };
        let party = self.number_aggregation(of.1);
        Some(Latency { max: max.map_or(Some(None), |max| max.map(Some))?, distance, party: party? })
    }

    fn compound(&mut self, of: (usize, &[Property]), index: usize, sources: &[RuleSource<'_>]) -> Option<RuleKind> {
        let node = self.reader.required(of, "statement", "a compound rule")?;
        let text = self.reader.text(node, "a statement")?;
        let mut rule = |at: usize, name: &str| {
            let problem = |message: String, cure: &str| Err(Problem { at, message, cure: cure.into() });
            let Some(found) = sources.iter().position(|source| source.name == Some(name)) else {
                let near = super::nearest(name, sources.iter().filter_map(|source| source.name));
                let cure = near.map_or("name a rule of this rule set".into(), |near| format!("did you mean {near:?}?"));
                return problem(format!("there is no rule {name:?}"), &cure);
            };
            if found >= index {
                let message = format!("the rule {name:?} does not stand before this rule");
                return problem(message, "move the compound rule behind the rules that it names");
            }
            match sources.get(found).and_then(|source| source.kind) {
                Some(kind @ (Kind::BatchDistance | Kind::AbsoluteSort | Kind::DistanceSort)) => problem(
                    format!("a compound rule cannot contain {name:?}, a rule of type {}", kind.name()),
                    "remove it from the statement",
                ),
                _ => Ok(found),
            }
        };
        let statement = statement::parse(text, &mut rule);
        statement.map_err(|problem| self.reader.inside(node, problem)).ok().map(RuleKind::Compound)
    }

    fn sort(&mut self, of: (usize, &[Property]), by: SortBy, names: Names<'_>) -> Option<Sort> {
        let what = "a sort rule";
        let direction = self.reader.required(of, "sortDirection", what);
        let directions = [("ascending", false), ("descending", true)];
        let direction = direction.and_then(|node| self.reader.choice(node, "sortDirection", &directions));
        let node = self.reader.required(of, "sortAttribute", what);
        let attribute = node.and_then(|node| self.declared(node, "sortAttribute", names.attributes));
        let map_key = get(of.1, "mapKey").map(|node| {
            let choices = [("minValue", MapKey::MinValue), ("maxValue", MapKey::MaxValue)];
            (node.at, self.reader.choice(node, "mapKey", &choices))
        });
        let party = self.number_aggregation(of.1);
        let attribute = attribute?;
        let at = node.map_or(of.0, |node| node.at);
        match (names.attributes.get(attribute)?.kind, &map_key) {
            (AttributeType::Number, None) | (AttributeType::NumberMap, Some(_)) => {}
            (AttributeType::Text, None) if by == SortBy::Value => {}
            (AttributeType::NumberMap, None) => {
                let message = "a sort by a map needs a mapKey";
                self.reader.findings.error(at, message, "add mapKey: minValue or maxValue");
            }
            (AttributeType::Text | AttributeType::TextList, None) => {
                let message = "this attribute has no numbers to sort by";
                self.reader.findings.error(at, message, "choose an attribute of type number or string_number_map");
            }
            (_, Some((at, _))) => {
                self.reader.findings.error(*at, "mapKey has no effect, because the attribute is no map", "remove it");
            }
        }
        let map_key = map_key.map_or(Some(None), |(_, key)| key.map(Some))?;
        Some(Sort { by, descending: direction?, attribute, map_key, party: party? })
    }

    fn batch_distance(&mut self, of: (usize, &[Property]), names: Names<'_>) -> Option<BatchDistance> {
        let what = "a batchDistance rule";
        let node = self.reader.required(of, "batchAttribute", what)?;
        let attribute = self.declared(node, "batchAttribute", names.attributes);
        let max = get(of.1, "maxDistance").map(|node| (node.at, self.reader.distance(node, "maxDistance")));
        let party = self.number_aggregation(of.1);
        let attribute = attribute?;
        match (names.attributes.get(attribute)?.kind, &max) {
            (AttributeType::Number, Some(_)) | (AttributeType::Text, None) => {}
            (AttributeType::Number, None) => {
                let message = "a batchDistance rule of a number needs a maxDistance";
                self.reader.findings.error(of.0, message, "add maxDistance");
            }
            (AttributeType::Text, Some((at, _))) => {
                let message = "a batchDistance rule of a text has no maxDistance: all texts are the same";
                self.reader.findings.error(*at, message, "remove it");
            }
            (AttributeType::TextList | AttributeType::NumberMap, _) => {
                let message = "a batchDistance rule needs a number or a text";
                self.reader.findings.error(node.at, message, "use a collection rule for a list");
            }
        }
        let max = max.map_or(Some(None), |(_, max)| max.map(Some))?;
        Some(BatchDistance { attribute, max, party: party? })
    }

    fn number_aggregation(&mut self, properties: &[Property]) -> Option<NumberAggregation> {
        const CHOICES: [(&str, NumberAggregation); 3] =
            [("avg", NumberAggregation::Avg), ("min", NumberAggregation::Min), ("max", NumberAggregation::Max)];
        let node = get(properties, "partyAggregation");
        node.map_or(Some(NumberAggregation::Avg), |node| self.reader.choice(node, "partyAggregation", &CHOICES))
    }
}
