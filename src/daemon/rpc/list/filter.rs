//! Filters of lists: a small part of AIP-160. Key type: [`Filter`].
//!
//! ```text
//!   filter  = term { "AND" term }
//!   term    = field ( "=" | "!=" | ":" | "<" | "<=" | ">" | ">=" ) value        ":" is "contains"
//!   field   = one of the resource's, or one that is a map, a dot and a key of it: labels.team
//!   value   = bare word, or "text in quotes" with \" and \\ inside
//! ```

use std::iter::Peekable;
use std::str::Chars;

use crate::model::SpecError;

/// Longest filter, in bytes.
const MAX_LEN: usize = 1024;
/// Most terms.
const MAX_TERMS: usize = 16;

/// Something that can be asked about.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon::rpc) struct Field {
    pub(in crate::daemon::rpc) name: &'static str,
    pub(in crate::daemon::rpc) kind: Kind,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon::rpc) enum Kind {
    Text,
    Number,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A text for each key, which follows the name and a dot.
    Map,
}

/// What a field of one resource holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon::rpc) enum Value {
    Text(String),
    Number(u64),
}

/// What a resource must be to be listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::daemon::rpc) struct Filter(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    /// With its key, if it is a map.
    field: String,
    is: Comparison,
    value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Contains,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Comparison(Comparison),
}

impl Filter {
    /// Reads a filter about `fields`; empty: everything. The error's field is `filter`.
    pub(in crate::daemon::rpc) fn parse(text: &str, fields: &'static [Field]) -> Result<Self, SpecError> {
        if text.len() > MAX_LEN {
            return Err(refuse(format!("{} bytes, at most {MAX_LEN} are allowed", text.len())));
        }
        let mut tokens = tokens(text)?.into_iter();
        let mut terms = Vec::new();
        while let Some(token) = tokens.next() {
            let (field, name) = field_of(token, fields)?;
            let Some(Token::Comparison(is)) = tokens.next() else {
                return Err(refuse(format!("{name} must be followed by one of = != : < <= > >=")));
            };
            let value = value_of(field, is, tokens.next())?;
            terms.push(Term { field: name, is, value });
            match tokens.next() {
                None => break,
                Some(Token::Word(word)) if word == "AND" && tokens.len() > 0 => {}
                Some(_) => return Err(refuse("terms are joined by AND; there is no OR and no NOT".to_owned())),
            }
            if terms.len() == MAX_TERMS {
                return Err(refuse(format!("more than {MAX_TERMS} terms")));
            }
        }
        Ok(Self(terms))
    }

    /// Whether a resource whose fields `value` gives is listed.
    pub(in crate::daemon::rpc) fn matches(&self, value: impl Fn(&str) -> Option<Value>) -> bool {
        self.0.iter().all(|term| value(&term.field).is_some_and(|found| term.holds(&found)))
    }
}

impl Term {
    fn holds(&self, found: &Value) -> bool {
        match (self.is, found, &self.value) {
            (Comparison::Equal, found, wanted) => found == wanted,
            (Comparison::Unequal, found, wanted) => found != wanted,
            (Comparison::Contains, Value::Text(found), Value::Text(wanted)) => found.contains(wanted.as_str()),
            (Comparison::Less, Value::Number(found), Value::Number(wanted)) => found < wanted,
            (Comparison::LessOrEqual, Value::Number(found), Value::Number(wanted)) => found <= wanted,
            (Comparison::Greater, Value::Number(found), Value::Number(wanted)) => found > wanted,
            (Comparison::GreaterOrEqual, Value::Number(found), Value::Number(wanted)) => found >= wanted,
            // Refused when it was read.
            (
                Comparison::Contains
                | Comparison::Less
                | Comparison::LessOrEqual
                | Comparison::Greater
                | Comparison::GreaterOrEqual,
                _,
                _,
            ) => false,
        }
    }
}

impl Field {
    fn is_named(&self, word: &str) -> bool {
        match self.kind {
            Kind::Map => self.key(word).is_some_and(|key| !key.is_empty()),
            Kind::Text | Kind::Number | Kind::Choice(_) => self.name == word,
        }
    }

    /// What follows the name and a dot.
    fn key<'a>(&self, word: &'a str) -> Option<&'a str> {
        word.strip_prefix(self.name)?.strip_prefix('.')
    }

    /// How it is written.
    fn form(&self) -> String {
        let key = if self.kind == Kind::Map { ".KEY" } else { "" };
        format!("{}{key}", self.name)
    }
}

/// The field, and its name as it was written.
fn field_of(token: Token, fields: &'static [Field]) -> Result<(&'static Field, String), SpecError> {
    let known = || fields.iter().map(Field::form).collect::<Vec<_>>().join(", ");
    match token {
        Token::Word(word) => match fields.iter().find(|field| field.is_named(&word)) {
            Some(field) => Ok((field, word)),
            None => Err(refuse(format!("there is no field {:?}; there are {}", shorten(&word), known()))),
        },
        Token::Quoted(_) | Token::Comparison(_) => Err(refuse(format!("a term begins with a field: {}", known()))),
    }
}

fn value_of(field: &Field, is: Comparison, token: Option<Token>) -> Result<Value, SpecError> {
    let (Some(Token::Word(text)) | Some(Token::Quoted(text))) = token else {
        return Err(refuse(format!("{} is compared with nothing", field.name)));
    };
    let is_order = !matches!(is, Comparison::Equal | Comparison::Unequal | Comparison::Contains);
    match field.kind {
        Kind::Number if is == Comparison::Contains => {
            Err(refuse(format!("{} is a number: it contains nothing", field.name)))
        }
        Kind::Number => text
            .parse()
            .map(Value::Number)
            .map_err(|_| refuse(format!("{} is compared with a number, not {:?}", field.name, shorten(&text)))),
        Kind::Text | Kind::Choice(_) | Kind::Map if is_order => {
            Err(refuse(format!("{} is no number: use =, != or :", field.name)))
        }
        Kind::Choice(choices) if is != Comparison::Contains && !choices.contains(&text.as_str()) => {
            Err(refuse(format!("{} is never {:?}; it is one of {}", field.name, shorten(&text), choices.join(", "))))
        }
        Kind::Text | Kind::Choice(_) | Kind::Map => Ok(Value::Text(text)),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, SpecError> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        let then_equal = |rest: &mut Peekable<Chars<'_>>| rest.next_if_eq(&'=').is_some();
        tokens.push(match first {
            c if c.is_ascii_whitespace() => continue,
            '"' => Token::Quoted(quoted(&mut rest)?),
            '=' => Token::Comparison(Comparison::Equal),
            ':' => Token::Comparison(Comparison::Contains),
            '!' if then_equal(&mut rest) => Token::Comparison(Comparison::Unequal),
            '<' if then_equal(&mut rest) => Token::Comparison(Comparison::LessOrEqual),
            '<' => Token::Comparison(Comparison::Less),
            '>' if then_equal(&mut rest) => Token::Comparison(Comparison::GreaterOrEqual),
            '>' => Token::Comparison(Comparison::Greater),
            c if is_bare(c) => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|c| is_bare(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
            other => return Err(refuse(format!("{other:?} must stand in quotes"))),
        });
    }
    Ok(tokens)
}

fn quoted(rest: &mut Peekable<Chars<'_>>) -> Result<String, SpecError> {
    let mut text = String::new();
    loop {
        match rest.next() {
            Some('"') => return Ok(text),
            Some('\\') => match rest.next() {
                Some(c @ ('"' | '\\')) => text.push(c),
                _ => return Err(refuse("\\ in quotes is followed by \" or \\".to_owned())),
            },
            Some(c) => text.push(c),
            None => return Err(refuse("a quote is not closed".to_owned())),
        }
    }
}

fn is_bare(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')
}

fn refuse(reason: String) -> SpecError {
    SpecError::new("filter", reason)
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIELDS: &[Field] = &[
        Field { name: "name", kind: Kind::Text },
        Field { name: "vcpus", kind: Kind::Number },
        Field { name: "state", kind: Kind::Choice(&["RUNNING", "STOPPED"]) },
        Field { name: "labels", kind: Kind::Map },
    ];

    fn is_listed(filter: &str) -> bool {
        Filter::parse(filter, FIELDS).unwrap().matches(|field| match field {
            "name" => Some(Value::Text("web-\"1\"".into())),
            "vcpus" => Some(Value::Number(4)),
            "state" => Some(Value::Text("RUNNING".into())),
            "labels.team" => Some(Value::Text("web".into())),
            _ => None,
        })
    }

    #[test]
    fn terms_hold_as_they_read() {
        for filter in [
            "",
            "  ",
            "state = RUNNING",
            "state=RUNNING AND name:web",
            "state != STOPPED AND name : \"web\" AND vcpus >= 4",
            r#"name = "web-\"1\"""#,
            "vcpus > 3 AND vcpus < 5 AND vcpus <= 4 AND vcpus = 4 AND vcpus != 5",
            "state : RUN",
            "labels.team = web AND labels.team != db",
        ] {
            assert!(is_listed(filter), "{filter}");
        }
        for filter in [
            "state = STOPPED",
            "name = web",
            "vcpus > 4",
            "state = RUNNING AND vcpus < 4",
            "name : WEB",
            "labels.team = db",
            "labels.tier = web",
            "labels.tier != web",
        ] {
            assert!(!is_listed(filter), "{filter}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_filter() {
        for (filter, part) in [
            ("colour = red", "there are name, vcpus, state, labels.KEY"),
            ("labels = web", "there is no field"),
            ("labels. = web", "there is no field"),
            ("labels.team > web", "is no number"),
            ("name", "must be followed by"),
            ("name =", "compared with nothing"),
            ("name = a OR name = b", "joined by AND"),
            ("name = a name = b", "joined by AND"),
            ("name = a AND", "joined by AND"),
            ("AND", "there is no field"),
            ("= a", "begins with a field"),
            ("vcpus = many", "with a number"),
            ("vcpus : 4", "contains nothing"),
            ("name > a", "is no number"),
            ("state = SLEEPING", "one of RUNNING, STOPPED"),
            ("name = \"a", "not closed"),
            ("name = \"\\n\"", "followed by"),
            ("name ! a", "in quotes"),
            ("name = é", "in quotes"),
            (&"vcpus = 1 AND ".repeat(17), "more than 16"),
            (&"x".repeat(2000), "2000 bytes"),
        ] {
            let error = Filter::parse(filter, FIELDS).unwrap_err();
            assert_eq!(error.field, "filter");
            assert!(error.reason.contains(part) && error.reason.len() < 300, "{filter}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "((name|vcpus|state|AND|=|!=|:|<|\"|\\\\| |[a-z0-9é]){0,12}|\\PC{0,40})") {
            if let Ok(filter) = Filter::parse(&text, FIELDS) {
                let _ = filter.matches(|_| Some(Value::Number(1)));
            }
        }
    }
}
