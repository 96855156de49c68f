//! Evaluates the rules for a match.

use std::collections::{BTreeMap, BTreeSet};

use garage_rules::{
    rule_set::Value,
    ticket::{Player, Ticket},
};
use serde_json::Value as Json;

use super::{
    MAX_QUANTITY, compound, is, list, number, optional, required, text, text_or,
    value::{Base, Data, Expression, Item, Type, aggregate, apply, intersection, output},
};

/// In place of a `partyAggregation`: each player has their own number.
const OWN: &str = "own";

/// The name of the `partyAggregation`: how the values of a ticket's players become one.
fn party(rule: &Json) -> Result<&str, String> {
    match (is(rule, "collection"), text_or(rule, "partyAggregation", "")?) {
        (true, "") => Ok("union"),
        (false, "") => Ok("avg"),
        (true, party @ ("union" | "intersection")) | (false, party @ ("avg" | "min" | "max")) => Ok(party),
        (_, other) => Err(format!("there is no partyAggregation {other:?} for this type of rule")),
    }
}

pub(super) struct Match<'a> {
    teams: &'a [Vec<Ticket>],
    /// For each team, its name and that of its definition.
    names: Vec<(String, &'a str)>,
    /// The names and types of the attributes.
    attributes: Vec<(&'a str, &'a str)>,
}

impl<'a> Match<'a> {
    /// Also returns whether the sizes of the teams are within their bounds.
    pub(super) fn read(document: &'a Json, teams: &'a [Vec<Ticket>]) -> Result<(Self, bool), String> {
        let mut counts = teams.iter().map(|team| team.iter().map(|ticket| ticket.players.len()).sum::<usize>() as f64);
        let (mut names, mut unique, mut sizes) = (Vec::new(), BTreeSet::new(), true);
        for definition in list(document, "teams")? {
            let name = text(definition, "name")?;
            let bounds = required(definition, "minPlayers")?..=required(definition, "maxPlayers")?;
            let quantity = optional(definition, "quantity")?.unwrap_or(1.0);
            if quantity.fract() != 0.0 || !(1.0..=MAX_QUANTITY).contains(&quantity) {
                return Err(format!("the team {name:?} has a wrong quantity"));
            }
            let mut is_unique = unique.insert(String::from(name));
            for n in 1..=quantity as u32 {
                let own = if quantity > 1.0 { format!("{name}_{n}") } else { name.into() };
                is_unique &= quantity == 1.0 || unique.insert(own.clone());
                names.push((own, name));
                sizes &= counts.next().is_some_and(|count| bounds.contains(&count));
            }
            if !is_unique {
                return Err(format!("another team has the name {name:?} or one of its numbered names"));
            }
        }
        if names.len() != teams.len() {
            return Err(format!("the rule set has {} teams, but the match has {}", names.len(), teams.len()));
        }
        let read = |attribute| Ok::<_, String>((text(attribute, "name")?, text(attribute, "type")?));
        let attributes = list(document, "playerAttributes")?.iter().map(read).collect::<Result<_, _>>()?;
        Ok((Self { teams, names, attributes }, sizes))
    }

    /// The locations that each player knows. The first has the least worst latency of a player, then the least sum of
    /// latencies, then the first name.
    pub(super) fn common_locations(&self) -> Vec<&'a str> {
        let players: Vec<&Player> = self.teams.iter().flatten().flat_map(|ticket| &ticket.players).collect();
        let rank = |location: &'a str| {
            let latencies: Option<Vec<f64>> = players.iter().map(|player| player.latencies.get(location)).collect();
            let latencies = latencies?;
            Some((aggregate("max", &latencies)?, aggregate("sum", &latencies)?, location))
        };
        let of_first = players.first().into_iter().flat_map(|player| player.latencies.locations());
        let mut ranks: Vec<_> = of_first.filter_map(rank).collect();
        ranks.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(b.2)));
        ranks.into_iter().map(|(_, _, location)| location).collect()
    }

    /// Which rules hold in a location. `None` stands for no location: latency rules fail.
    pub(super) fn evaluate<'b>(
        &self,
        rules: &'b [Json],
        location: Option<&str>,
    ) -> Result<BTreeMap<&'b str, bool>, String> {
        let mut results = BTreeMap::new();
        for rule in rules {
            let name = text(rule, "name")?;
            let holds = match text(rule, "type")? {
                "comparison" => self.comparison(rule),
                "distance" => self.distance(rule),
                "collection" => self.collection(rule),
                "latency" => self.latency(rule, location),
                "batchDistance" => self.batch_distance(rule),
                "compound" => compound(rule, &mut |name| results.get(name).copied()),
                "absoluteSort" | "distanceSort" => Ok(true),
                other => Err(format!("there is no type {other:?}")),
            };
            if results.insert(name, holds.map_err(|error| format!("rule {name:?}: {error}"))?).is_some() {
                return Err(format!("two rules have the name {name:?}"));
            }
        }
        Ok(results)
    }

    /// The types and values of a rule's measurements. A value is `None` if an aggregate in it has none.
    fn measure(&self, rule: &Json, party: &str) -> Result<Vec<(Type, Option<Data>)>, String> {
        let measurements = match rule.get("measurements") {
            Some(Json::Array(many)) if !many.is_empty() => many.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => return Err("the measurements are missing".into()),
        };
        let value = |source: &Json| self.value(source.as_str().ok_or("a measurement is not a text")?, party);
        measurements.iter().map(value).collect()
    }

    /// The type and the value of an expression. The value is `None` if an aggregate in it has none.
    fn value(&self, source: &str, party: &str) -> Result<(Type, Option<Data>), String> {
        let expression = Expression::parse(source).ok_or_else(|| format!("{source:?} is not an expression"))?;
        let (mut kind, path) = self.path(&expression, party)?;
        let mut data = Some(path);
        for function in expression.functions.iter().rev() {
            let result = output(function, kind).ok_or_else(|| format!("{source:?}: wrong input of {function:?}"))?;
            data = data.and_then(|data| apply(function, &data, kind.1));
            kind = result;
        }
        Ok((kind, data))
    }

    /// The type and the value of an expression without its functions.
    fn path(&self, expression: &Expression<'_>, party: &str) -> Result<(Type, Data), String> {
        let (teams, several) = self.select(expression.teams)?;
        let (base, inner) = match expression.item {
            Item::Player => (Base::Player, 0),
            Item::Id => (Base::Text, 0),
            Item::Attribute(name) => match self.attribute(name)? {
                (_, "string") => (Base::Text, 0),
                (_, "number") => (Base::Number, 0),
                (_, "string_list") => (Base::Text, 1),
                (_, other) => return Err(format!("the attribute {name:?} of the type {other:?} is in an expression")),
            },
        };
        let values = |ticket: &Ticket| match expression.item {
            Item::Attribute(name) => self.values(ticket, name, party),
            Item::Player | Item::Id => {
                Ok(ticket.players.iter().map(|player| Data::Text(player.id.to_string())).collect())
            }
        };
        let list = |team: &[Ticket]| {
            let tickets = team.iter().map(values).collect::<Result<Vec<_>, String>>()?;
            Ok::<_, String>(Data::List(tickets.concat()))
        };
        let lists = Data::List(teams.into_iter().map(list).collect::<Result<_, _>>()?);
        if several {
            Ok(((base, inner + 2), lists))
        } else {
            Ok(((base, inner + 1), Data::List(lists.without(2).into_iter().cloned().collect())))
        }
    }

    /// The teams that stand in brackets, in that order, and whether they make a list of teams.
    fn select(&self, names: Option<&str>) -> Result<(Vec<&'a [Ticket]>, bool), String> {
        let all = || self.teams.iter().map(Vec::as_slice);
        let Some(names) = names else { return Ok((all().collect(), false)) };
        if names.trim() == "*" {
            return Ok((all().collect(), true));
        }
        let mut selected = Vec::new();
        for name in names.split(',').map(str::trim) {
            let before = selected.len();
            let named = all().zip(&self.names).filter(|(_, (own, definition))| own == name || *definition == name);
            selected.extend(named.map(|(team, _)| team));
            if selected.len() == before {
                return Err(format!("there is no team {name:?}"));
            }
        }
        let several = selected.len() > 1;
        Ok((selected, several))
    }

    /// The index and the type of an attribute.
    fn attribute(&self, name: &str) -> Result<(usize, &'a str), String> {
        let found = self.attributes.iter().zip(0..).find(|((known, _), _)| *known == name);
        found.map(|((_, kind), index)| (index, *kind)).ok_or_else(|| format!("there is no attribute {name:?}"))
    }

    /// The value of an attribute for each player of a ticket.
    fn values(&self, ticket: &Ticket, attribute: &str, party: &str) -> Result<Vec<Data>, String> {
        let (index, kind) = self.attribute(attribute)?;
        let (mut texts, mut numbers, mut lists) = (Vec::new(), Vec::new(), Vec::<BTreeSet<String>>::new());
        for player in &ticket.players {
            match (kind, player.values.get(index)) {
                ("string", Some(Value::Text(text))) => texts.push(Data::Text(text.clone())),
                ("number", Some(Value::Number(number))) => numbers.push(*number),
                ("string_list", Some(Value::TextList(list))) => lists.push(list.iter().cloned().collect()),
                _ => return Err(format!("player {:?} has no value for {attribute:?} of its type", player.id)),
            }
        }
        let joined = match kind {
            "number" if party == OWN => return Ok(numbers.into_iter().map(Data::Number).collect()),
            "number" => aggregate(party, &numbers).map(Data::Number),
            "string_list" if party == "intersection" => Some(Data::of_texts(intersection(lists))),
            "string_list" => Some(Data::of_texts(lists.into_iter().flatten().collect())),
            _ => return Ok(texts),
        };
        Ok(ticket.players.iter().filter_map(|_| joined.clone()).collect())
    }

    // ---- The types of rules ----

    fn comparison(&self, rule: &Json) -> Result<bool, String> {
        let (party, operation) = (party(rule)?, text(rule, "operation")?);
        let across = rule.get("referenceValue").is_none();
        let mut holds = true;
        for ((base, _), data) in self.measure(rule, if across { OWN } else { party })? {
            let is_allowed = match operation {
                "=" | "!=" => base != Base::Player,
                "<" | "<=" | ">" | ">=" => base == Base::Number && !across,
                _ => false,
            };
            if !is_allowed {
                return Err(format!("the operation {operation:?} does not fit what it compares"));
            }
            let reference = match base {
                _ if across => None,
                Base::Number => self.reference(rule, party)?.map(Data::Number),
                Base::Text | Base::Player => Some(Data::Text(literal(rule)?.into())),
            };
            holds &= data.is_some_and(|data| {
                let values = data.leaves();
                let fits_later = |(n, left): (usize, &&Data)| {
                    values.iter().skip(n + 1).all(|right| relation(left, operation, right))
                };
                match &reference {
                    None => across && values.iter().enumerate().all(fits_later),
                    Some(reference) => values.iter().all(|value| relation(value, operation, reference)),
                }
            });
        }
        Ok(holds)
    }

    fn distance(&self, rule: &Json) -> Result<bool, String> {
        let party = party(rule)?;
        let (min, max) = (optional(rule, "minDistance")?, optional(rule, "maxDistance")?);
        if min.is_none() && max.is_none() {
            return Err("minDistance and maxDistance are missing".into());
        }
        let reference = self.reference(rule, party)?;
        let mut holds = true;
        for ((base, _), data) in self.measure(rule, party)? {
            if base != Base::Number {
                return Err("a measurement of a distance does not give numbers".into());
            }
            holds &= data.zip(reference).is_some_and(|(data, reference)| {
                let mut distances = data.numbers().into_iter().map(|number| (number - reference).abs());
                distances.all(|d| min.is_none_or(|min| d >= min) && max.is_none_or(|max| d <= max))
            });
        }
        Ok(holds)
    }

    /// The number that a measurement is compared with. `None` if an aggregate in it has no value.
    fn reference(&self, rule: &Json, party: &str) -> Result<Option<f64>, String> {
        let value = rule.get("referenceValue").ok_or("the referenceValue is missing")?;
        let wrong = || format!("the referenceValue {value} is not one number");
        match value.as_str().filter(|source| Expression::parse(source).is_some()) {
            None => number(value).map(Some).ok_or_else(wrong),
            Some(source) => match self.value(source, party)? {
                ((Base::Number, 0), data) => Ok(data.and_then(|data| data.numbers().pop())),
                _ => Err(wrong()),
            },
        }
    }

    fn collection(&self, rule: &Json) -> Result<bool, String> {
        let (party, operation) = (party(rule)?, text(rule, "operation")?);
        let max = optional(rule, "maxCount")?;
        // Without bounds, the count must be at least 1.
        let min = optional(rule, "minCount")?.unwrap_or(if max.is_some() { 0.0 } else { 1.0 });
        let mut holds = true;
        for (kind, data) in self.measure(rule, party)? {
            let ((Base::Text, depth @ 1..), Some(data)) = (kind, data) else {
                return Err("a measurement of a collection does not give lists of texts".into());
            };
            // A list of lists is one group. If it is nested deeper, each team is a group.
            let groups = data.without(depth.saturating_sub(2)).into_iter();
            let counts: Vec<usize> = match operation {
                "intersection" if depth == 1 => groups.map(|list| list.texts().len()).collect(),
                "intersection" => {
                    groups.map(|group| intersection(group.items().iter().map(Data::texts)).len()).collect()
                }
                "contains" => {
                    let wanted = literal(rule)?;
                    let has = |item: &&Data| item.texts().contains(wanted);
                    groups.map(|group| group.items().iter().filter(has).count()).collect()
                }
                "reference_intersection_count" => {
                    let reference = self.reference_list(rule, party)?;
                    let lists = data.without(depth - 1).into_iter();
                    lists.map(|list| list.texts().intersection(&reference).count()).collect()
                }
                _ => return Err(format!("there is no operation {operation:?}")),
            };
            holds &= counts.iter().all(|count| *count as f64 >= min && max.is_none_or(|max| *count as f64 <= max));
        }
        Ok(holds)
    }

    fn reference_list(&self, rule: &Json, party: &str) -> Result<BTreeSet<String>, String> {
        let wrong = || String::from("the referenceValue is not a list of texts");
        match rule.get("referenceValue") {
            Some(Json::Array(items)) => {
                items.iter().map(|item| item.as_str().map(String::from).ok_or_else(wrong)).collect()
            }
            Some(Json::String(source)) => match self.value(source, party)? {
                ((Base::Text, 1), Some(data)) => Ok(data.texts()),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }

    fn latency(&self, rule: &Json, location: Option<&str>) -> Result<bool, String> {
        let party = party(rule)?;
        let (max, distance) = (optional(rule, "maxLatency")?, optional(rule, "maxDistance")?);
        let function = match (text_or(rule, "distanceReference", "")?, distance) {
            ("", None) => "min",
            (function @ ("min" | "avg"), _) => function,
            _ => return Err("the distanceReference is missing or not understood".into()),
        };
        // `None` if a player of the ticket does not know the location.
        let of = |ticket: &Ticket| {
            let latencies = ticket.players.iter().map(|player| player.latencies.get(location?));
            aggregate(party, &latencies.collect::<Option<Vec<_>>>()?)
        };
        let latencies: Option<Vec<f64>> = self.teams.iter().flatten().map(of).collect();
        Ok(latencies.filter(|_| location.is_some()).is_some_and(|latencies| {
            let reference = aggregate(function, &latencies).unwrap_or(0.0);
            let is_near = |latency: f64| distance.is_none_or(|distance| (latency - reference).abs() <= distance);
            latencies.iter().all(|latency| max.is_none_or(|max| *latency <= max) && is_near(*latency))
        }))
    }

    fn batch_distance(&self, rule: &Json) -> Result<bool, String> {
        let attribute = text(rule, "batchAttribute")?;
        // Each player has the aggregate of their ticket.
        match self.value(&format!("players.attributes[{attribute}]"), party(rule)?)? {
            ((Base::Text, 1), Some(values)) => Ok(values.texts().len() <= 1),
            ((Base::Number, 1), Some(values)) => {
                let (max, numbers) = (required(rule, "maxDistance")?, values.numbers());
                let ends = aggregate("min", &numbers).zip(aggregate("max", &numbers));
                Ok(ends.is_none_or(|(least, greatest)| greatest - least <= max))
            }
            _ => Err(format!("the batchAttribute {attribute:?} is neither a text nor a number")),
        }
    }
}

/// The text that a measurement is compared with.
fn literal(rule: &Json) -> Result<&str, String> {
    let literal = text(rule, "referenceValue")?;
    // Without the extension, `players` is an ordinary text. With it, the check refuses the rule: it is not one text.
    match Expression::parse(literal) {
        Some(Expression { teams: Some(_), .. }) => Err(format!("the expression {literal:?} does not give a text")),
        Some(Expression { teams: None, .. }) | None => Ok(literal),
    }
}

fn relation(left: &Data, operation: &str, right: &Data) -> bool {
    match (operation, left, right) {
        ("=", _, _) => left == right,
        ("!=", _, _) => left != right,
        ("<", Data::Number(left), Data::Number(right)) => left < right,
        ("<=", Data::Number(left), Data::Number(right)) => left <= right,
        (">", Data::Number(left), Data::Number(right)) => left > right,
        (">=", Data::Number(left), Data::Number(right)) => left >= right,
        _ => false,
    }
}
