//! Reads JSON bodies. Clients see the errors, so they name fields and limits, but no types of this program.

use std::{collections::BTreeMap, fmt, str::FromStr};

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::problem::Problem;

/// The longest detail of an error, in characters. The detail quotes the body, which may be long.
const MAX_DETAIL: usize = 300;

/// The fields of a JSON object that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(BTreeMap<String, Value>);

impl Fields {
    /// Reads a body that is a JSON object and has no other fields than these.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes, known: &[&str]) -> Result<Self, Problem> {
        let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = essence.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON, with Content-Type application/json",
            ));
        }
        let Unique(value) = serde_json::from_slice(body).map_err(|error| {
            let detail = cut(&error.to_string());
            if error.is_data() { Problem::unprocessable(detail) } else { Problem::bad_request(detail) }
        })?;
        let Value::Object(fields) = value else {
            return Err(Problem::unprocessable("the body must be a JSON object"));
        };
        Self::of(fields, known)
    }

    /// The fields of an object that has no other fields than these.
    pub(crate) fn of(fields: Map<String, Value>, known: &[&str]) -> Result<Self, Problem> {
        if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let detail = format!("unknown field `{}`; the fields are: {}", cut(name), known.join(", "));
            return Err(Problem::unprocessable(detail));
        }
        Ok(Self(fields.into_iter().collect()))
    }

    /// Takes a required field.
    pub(crate) fn take(&mut self, name: &str) -> Result<Value, Problem> {
        self.0.remove(name).ok_or_else(|| Problem::unprocessable(format!("the field `{name}` is missing")))
    }

    /// Takes an optional field. A client may also send it as `null`.
    pub(crate) fn take_optional(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a required field that contains an id.
    pub(crate) fn take_id<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Result<T, Problem> {
        let value = self.take(name)?;
        let text = value.as_str().ok_or_else(|| Problem::unprocessable(format!("{name} must be a text")))?;
        text.parse().map_err(|error: T::Err| Problem::unprocessable(cut(&error.to_string())))
    }
}

/// The beginning of a text.
fn cut(text: &str) -> String {
    text.chars().take(MAX_DETAIL).collect()
}

/// A JSON value whose objects have no field twice. `serde_json` alone would keep the last one.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Unique(value)) = values.next_element()? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all = serde_json::Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let Unique(value) = fields.next_value()?;
            if all.contains_key(&name) {
                return Err(de::Error::custom(format_args!("`{}` appears twice in one object", cut(&name))));
            }
            all.insert(name, value);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &'static str, body: impl Into<Bytes>) -> Result<Fields, (u16, String)> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
        Fields::read(&headers, &body.into(), &["car", "item"])
            .map_err(|problem| (problem.status().as_u16(), problem.detail().to_owned()))
    }

    #[test]
    fn a_body_must_be_json_with_the_content_type_of_json() {
        let status = |kind, body: &'static str| read(kind, body).unwrap_err().0;
        assert_eq!(status("text/plain", "{}"), 415);
        assert_eq!(status("application/json", ""), 400);
        assert_eq!(status("application/json", "{\"car\""), 400);
        assert_eq!(status("application/json", "[]"), 422);
        assert!(read("Application/JSON; charset=utf-8", "{}").is_ok());
        assert_eq!(Fields::read(&HeaderMap::new(), &"{}".into(), &[]).unwrap_err().status(), 415);
    }

    #[test]
    fn a_body_must_be_an_object_with_known_fields_that_appear_once() {
        for (body, why) in [
            ("\"gt\"", "must be a JSON object"),
            ("7", "must be a JSON object"),
            ("null", "must be a JSON object"),
            ("{\"car\": \"gt\", \"price\": 1}", "unknown field `price`; the fields are: car, item"),
            ("{\"car\": \"gt\", \"car\": \"gt\"}", "`car` appears twice"),
            ("{\"car\": {\"a\": 1, \"a\": null}}", "`a` appears twice"),
            ("{\"car\": [{\"a\": 1, \"\\u0061\": 2}]}", "`a` appears twice"),
        ] {
            let (status, detail) = read("application/json", body).unwrap_err();
            assert!(status == 422 && detail.contains(why), "{body}: {status} {detail}");
        }
        let (_, detail) = read("application/json", format!("{{{:?}: 1}}", "x".repeat(10_000))).unwrap_err();
        assert!(detail.len() < 400, "{detail}");
    }

    #[test]
    fn an_id_is_a_valid_text() {
        use garage_events::id::CarId;
        let car = |body: &'static str| {
            let car = read("application/json", body).unwrap().take_id::<CarId>("car");
            car.map_err(|problem| problem.detail().to_owned())
        };
        assert_eq!(car("{\"car\": \"gt\"}").unwrap().as_str(), "gt");
        for (body, why) in [
            ("{}", "the field `car` is missing"),
            ("{\"car\": null}", "car must be a text"),
            ("{\"car\": 7}", "car must be a text"),
            ("{\"car\": \"GT 40\"}", "\"GT 40\" is not valid"),
        ] {
            assert!(car(body).unwrap_err().contains(why), "{body}");
        }
    }
}
