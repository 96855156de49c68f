//! Reads TOML files of operators.

use serde::de::{DeserializeOwned, Error as _};
use toml::de::Error;

/// How deep inline tables may be nested. No file of Garage needs more than two levels.
///
/// `toml` limits how deep inline tables are nested, and how many parts a key has, but not both together: 79 tables in each
/// other, each with a key of 33 parts, overflow the stack of a thread (seen with toml 1.2.1).
const MAX_DEPTH: usize = 4;

/// Parses the text of a file.
///
/// # Errors
/// [`Error`]
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let mut depth = 0_usize;
    for (index, line) in text.lines().enumerate() {
        for byte in line.bytes() {
            // Braces in texts and comments count too. That is harmless: nobody opens so many and does not close them.
            match byte {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_DEPTH {
                let place = index + 1;
                return Err(Error::custom(format!("line {place}: more than {MAX_DEPTH} open braces")));
            }
        }
    }
    toml::from_str(text)
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::*;

    fn nested(tables: usize, parts: usize) -> String {
        let key = vec!["a"; parts].join(".");
        format!("{}b = 1{}", format!("{key} = {{\n").repeat(tables), "\n}".repeat(tables))
    }

    #[test]
    fn a_text_that_is_nested_too_deep_is_an_error_with_its_line() {
        for parts in [1, 33, 79] {
            let error = parse::<Table>(&nested(79, parts)).unwrap_err().to_string();
            assert!(error.contains("line 5: more than 4 open braces"), "{error}");
        }
        let read: Table = parse(&nested(MAX_DEPTH, 79)).unwrap();
        assert!(read.contains_key("a"));
        parse::<Table>("a = \"}}} {{\" # {{").unwrap();
    }
}
