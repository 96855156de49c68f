//! Property expressions, such as `avg(teams[*].players.attributes[skill])`.

use std::fmt;

use crate::{
    cursor::Cursor,
    rule_set::{Attribute, AttributeType, Team, TeamDefinition},
};

/// The maximum number of functions around a path. More than six cannot have a meaning.
const MAX_DEPTH: usize = 16;

/// An expression whose names are declared and whose types fit.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    Call(Function, Box<Expression>),
    Path(Path),
}

/// Properties of teams or of their players.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    pub teams: Teams,
    pub property: Property,
    /// How many lists are around a value. It is stored, because an empty list does not show what it is a list of.
    pub depth: usize,
}

impl Expression {
    /// The path inside of all functions.
    pub fn path(&self) -> &Path {
        match self {
            Self::Call(_, of) => of.path(),
            Self::Path(path) => path,
        }
    }

    /// How many lists are around a value of this expression.
    pub fn depth(&self) -> usize {
        match self {
            Self::Path(path) => path.depth,
            // Every function removes one level: of its argument, or of each sublist.
            Self::Call(_, of) => of.depth().saturating_sub(1),
        }
    }
}

/// The teams of a path. Indices are those of [`RuleSet::teams`](crate::rule_set::RuleSet::teams).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Teams {
    One(usize),
    /// The result is a list with an element for each team.
    Several(Vec<usize>),
    /// The extension `players…`: the players of all teams in one list.
    Together,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    Team,
    Players,
    PlayerIds,
    /// The index in [`RuleSet::attributes`](crate::rule_set::RuleSet::attributes).
    Attribute(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Min,
    Max,
    Avg,
    Median,
    Sum,
    Count,
    Stddev,
    Flatten,
    SetIntersection,
}

impl Function {
    const ALL: [(&'static str, Self); 9] = [
        ("min", Self::Min),
        ("max", Self::Max),
        ("avg", Self::Avg),
        ("median", Self::Median),
        ("sum", Self::Sum),
        ("count", Self::Count),
        ("stddev", Self::Stddev),
        ("flatten", Self::Flatten),
        ("set_intersection", Self::SetIntersection),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }
}

/// The type of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    Number,
    Text,
    Player,
    Team,
    List(Box<Type>),
}

impl Type {
    pub(crate) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    /// What is left without the lists around it, and how many these are.
    pub(crate) fn leaf(&self) -> (&Self, usize) {
        match self {
            Self::List(of) => {
                let (leaf, depth) = of.leaf();
                (leaf, depth + 1)
            }
            leaf => (leaf, 0),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number => f.write_str("number"),
            Self::Text => f.write_str("text"),
            Self::Player => f.write_str("player"),
            Self::Team => f.write_str("team"),
            Self::List(of) => write!(f, "list of ({of})"),
        }
    }
}

/// Why a text is not an expression, or not a valid one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Where in the text, in bytes.
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) cure: String,
}

impl Problem {
    fn new(at: usize, message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { at, message: message.into(), cure: cure.into() }
    }
}

/// An expression before its names are resolved. Positions are bytes of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Syntax {
    /// The functions, the outermost first.
    functions: Vec<(usize, Function)>,
    /// The names in `teams[…]`; `None` for `players…`.
    teams: Option<Vec<(usize, String)>>,
    property: SyntaxProperty,
    /// Where the path begins.
    path_at: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SyntaxProperty {
    Team,
    Players,
    PlayerIds,
    Attribute(usize, String),
}

impl Syntax {
    /// Whether this is an ordinary text where a text is allowed: `players` alone, or the extension if it is off.
    pub(crate) fn is_text(&self, extensions: bool) -> bool {
        let bare = self.functions.is_empty() && self.property == SyntaxProperty::Players;
        self.teams.is_none() && (bare || !extensions)
    }
}

/// Reads the syntax of an expression.
pub(crate) fn parse(text: &str) -> Result<Syntax, Problem> {
    let mut parser = Cursor::new(text);
    let syntax = parser.expression()?;
    parser.space();
    if parser.at < text.len() {
        let rest = parser.rest();
        let cure = "an expression is a path or functions around one path; it has no arithmetic";
        return Err(Problem::new(parser.at, format!("unexpected {rest:?} after the expression"), cure));
    }
    Ok(syntax)
}

/// Whether a text that is not an expression looks as if it should be one.
pub(crate) fn looks_like_one(text: &str) -> bool {
    let text = text.trim();
    let begins_with = |start: &str| text.starts_with(start);
    begins_with("teams[")
        || begins_with("players.")
        || Function::ALL
            .iter()
            .any(|(name, _)| text.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('(')))
}

impl<'t> Cursor<'t> {
    fn word(&self) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    fn expression(&mut self) -> Result<Syntax, Problem> {
        let mut functions = Vec::new();
        loop {
            self.space();
            let (at, word) = (self.at, self.word());
            let function = Function::ALL.iter().find(|(name, _)| *name == word);
            let after = self.rest().get(word.len()..).unwrap_or_default().trim_start();
            match function {
                Some((_, function)) if after.starts_with('(') => {
                    functions.push((at, *function));
                    self.at = self.text.len() - after.len() + 1;
                }
                None if after.starts_with('(') => {
                    let names: Vec<_> = Function::ALL.iter().map(|(name, _)| *name).collect();
                    let cure = format!("use one of {}", names.join(", "));
                    return Err(Problem::new(at, format!("{word:?} is not a function"), cure));
                }
                _ => break,
            }
            if functions.len() > MAX_DEPTH {
                return Err(Problem::new(at, format!("more than {MAX_DEPTH} functions"), "remove some"));
            }
        }
        let mut syntax = self.path()?;
        for _ in &functions {
            self.space();
            if !self.take(")") {
                return Err(Problem::new(self.at, "a closing parenthesis is missing", "add )"));
            }
        }
        syntax.functions = functions;
        Ok(syntax)
    }

    fn path(&mut self) -> Result<Syntax, Problem> {
        let path_at = self.at;
        let no_path = |at| {
            let cure = "write a path like teams[*].players.attributes[skill]";
            Problem::new(at, "this is not a path", cure)
        };
        if self.take("team[") {
            return Err(Problem::new(path_at, "`team[` is not a path", "write teams[…]"));
        }
        let mut teams = None;
        if self.take("teams[") {
            let mut names = Vec::new();
            let end = self.rest().find(']').ok_or_else(|| Problem::new(path_at, "] is missing", "add ]"))?;
            for name in self.rest().get(..end).unwrap_or_default().split(',') {
                let at = self.at + (name.len() - name.trim_start().len());
                names.push((at, name.trim().to_owned()));
                self.at += name.len() + 1;
            }
            teams = Some(names);
            if !self.take(".players") {
                if self.rest().starts_with('.') {
                    let cure = "write teams[…].players, teams[…].players.attributes[…] or teams[…].players[playerId]";
                    return Err(Problem::new(self.at, "a team has no other property than players", cure));
                }
                let property = SyntaxProperty::Team;
                return Ok(Syntax { functions: Vec::new(), teams, property, path_at });
            }
        } else if !self.take("players") {
            return Err(no_path(path_at));
        }
        let at = self.at;
        if self
            .rest()
            .get(.."[playerId]".len())
            .is_some_and(|id| id != "[playerId]" && id.eq_ignore_ascii_case("[playerId]"))
        {
            return Err(Problem::new(at, "the id of a player is not written so", "write players[playerId]"));
        }
        let property = if self.take("[playerId]") {
            SyntaxProperty::PlayerIds
        } else if self.take(".attributes[") {
            let at = self.at;
            let end = self.rest().find(']').ok_or_else(|| Problem::new(at, "] is missing", "add ]"))?;
            let name = self.rest().get(..end).unwrap_or_default();
            self.at += end + 1;
            SyntaxProperty::Attribute(at, name.trim().to_owned())
        } else if self.rest().is_empty() || self.rest().starts_with([')', ' ']) {
            SyntaxProperty::Players
        } else {
            let wrong = self.rest().split(')').next().unwrap_or_default();
            let name = wrong.rsplit(['.', '[']).next().unwrap_or_default().trim_end_matches(']');
            let cure = format!("write players.attributes[{name}]");
            return Err(Problem::new(at, format!("{wrong:?} is not a property of players"), cure));
        };
        Ok(Syntax { functions: Vec::new(), teams, property, path_at })
    }
}

/// What the names in expressions can refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'r> {
    pub(crate) attributes: &'r [Attribute],
    pub(crate) definitions: &'r [TeamDefinition],
    pub(crate) teams: &'r [Team],
    /// Whether `players…` without a team is allowed.
    pub(crate) extensions: bool,
}

impl Names<'_> {
    /// Resolves the names of an expression, and checks its types.
    pub(crate) fn resolve(&self, syntax: &Syntax) -> Result<(Expression, Type), Problem> {
        let (path, mut of) = self.path(syntax)?;
        let mut expression = Expression::Path(path);
        for (at, function) in syntax.functions.iter().rev() {
            of = apply(*function, &of).ok_or_else(|| {
                let (wants, cure) = match function {
                    Function::Flatten => ("a list of lists", "remove flatten, the list is already flat"),
                    Function::SetIntersection => {
                        ("a list of lists of texts", "use it on an attribute of type string_list")
                    }
                    Function::Count => ("a list", "use it on players"),
                    _ => ("a list of numbers", "use it on an attribute of type number"),
                };
                Problem::new(*at, format!("{} needs {wants}, but gets: {of}", function.name()), cure)
            })?;
            expression = Expression::Call(*function, Box::new(expression));
        }
        Ok((expression, of))
    }

    fn path(&self, syntax: &Syntax) -> Result<(Path, Type), Problem> {
        let teams = match &syntax.teams {
            Some(names) => self.teams(names)?,
            None if self.extensions => Teams::Together,
            None => {
                let cure = "write teams[*].players…, or check with --extensions";
                return Err(Problem::new(syntax.path_at, "`players` without a team is not FlexMatch", cure));
            }
        };
        let (property, of) = match &syntax.property {
            SyntaxProperty::Team => (Property::Team, Type::Team),
            SyntaxProperty::Players => (Property::Players, Type::list(Type::Player)),
            SyntaxProperty::PlayerIds => (Property::PlayerIds, Type::list(Type::Text)),
            SyntaxProperty::Attribute(at, name) => {
                let (index, attribute) = self.attribute(name).ok_or_else(|| {
                    let message = format!("there is no attribute {name:?}");
                    Problem::new(*at, message, self.attribute_cure(name))
                })?;
                let of = match attribute.kind {
                    AttributeType::Number => Type::Number,
                    AttributeType::Text => Type::Text,
                    AttributeType::TextList => Type::list(Type::Text),
                    AttributeType::NumberMap => {
                        let message = format!("the attribute {name:?} is a map, which an expression cannot use");
                        return Err(Problem::new(*at, message, "use a map only as the sortAttribute of a sort rule"));
                    }
                };
                (Property::Attribute(index), Type::list(of))
            }
        };
        let of = if matches!(teams, Teams::Several(_)) { Type::list(of) } else { of };
        let depth = of.leaf().1;
        Ok((Path { teams, property, depth }, of))
    }

    fn teams(&self, names: &[(usize, String)]) -> Result<Teams, Problem> {
        if let [(_, name)] = names {
            if name == "*" {
                return Ok(Teams::Several((0..self.teams.len()).collect()));
            }
            if let Some(team) = self.teams.iter().position(|team| team.name == *name) {
                return Ok(Teams::One(team));
            }
        }
        let mut found = Vec::new();
        for (at, name) in names {
            let of_definition =
                |team: &Team| self.definitions.get(team.definition).is_some_and(|definition| definition.name == *name);
            let indices = self.teams.iter().enumerate();
            let indices: Vec<_> =
                indices.filter(|(_, team)| team.name == *name || of_definition(team)).map(|(index, _)| index).collect();
            if indices.is_empty() {
                let names = crate::check::some(self.teams.iter().map(|team| team.name.as_str()));
                let cure = format!("use * or {names}");
                return Err(Problem::new(*at, format!("there is no team {name:?}"), cure));
            }
            if indices.iter().any(|index| found.contains(index)) {
                return Err(Problem::new(*at, format!("the team {name:?} is named twice"), "name it once"));
            }
            found.extend(indices);
        }
        Ok(Teams::Several(found))
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<(usize, &Attribute)> {
        self.attributes.iter().enumerate().find(|(_, attribute)| attribute.name == name)
    }

    /// What to do about an attribute that is not declared.
    pub(crate) fn attribute_cure(&self, name: &str) -> String {
        match crate::check::nearest(name, self.attributes.iter().map(|attribute| attribute.name.as_str())) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => "declare it in playerAttributes".into(),
        }
    }
}

/// The type of a function's result. On a list that is nested deeper than its input, a function works on each sublist.
/// `flatten` is different: it always removes the outermost level.
fn apply(function: Function, to: &Type) -> Option<Type> {
    let Type::List(of) = to else { return None };
    match function {
        Function::Flatten => matches!(**of, Type::List(_)).then(|| (**of).clone()),
        Function::Count => match &**of {
            Type::List(_) => Some(Type::list(apply(function, of)?)),
            _ => Some(Type::Number),
        },
        Function::SetIntersection => match &**of {
            Type::List(inner) if **inner == Type::Text => Some((**of).clone()),
            Type::List(_) => Some(Type::list(apply(function, of)?)),
            _ => None,
        },
        Function::Min | Function::Max | Function::Avg | Function::Median | Function::Sum | Function::Stddev => {
            match &**of {
                Type::Number => Some(Type::Number),
                Type::List(_) => Some(Type::list(apply(function, of)?)),
                _ => None,
            }
        }
    }
}
