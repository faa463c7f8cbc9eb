//! JSON of a request: parsed within bounds, and read field by field, each with its type and range.

use crate::error::{ApiError, clipped};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Most values of a body: each takes far more memory than its text, so the length of the text is no bound.
pub(crate) const MAX_VALUES: usize = 50_000;

/// A whole body. Depth is bounded by serde_json, at 128.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let left = Cell::new(MAX_VALUES);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Bounded(&left).deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| {
        ApiError::bad(format!("the body is not the JSON expected: {error}")).with_code("invalid_json")
    })
}

/// A value of which so many more may come.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    fn take<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| E::custom(format!("it has over {MAX_VALUES} values")))?;
        self.0.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number is not finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key = clipped(&key);
                return Err(A::Error::custom(format!("it has the field `{key}` twice")));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The fields of an object, and where it stands. A field that is null is as one that is not there.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    at: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub(crate) fn root(value: &'a Value) -> Result<Fields<'a>, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields {
                at: String::new(),
                map,
            }),
            other => {
                let found = crate::error::shown(other);
                Err(ApiError::bad(format!("the body is {found}, expected an object")))
            }
        }
    }

    /// A value that must be an object.
    pub(crate) fn of(value: &'a Value, at: String) -> Result<Fields<'a>, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { at, map }),
            other => Err(ApiError::field(at, other, "an object")),
        }
    }

    /// Where a field stands, in words of the whole body.
    pub(crate) fn name(&self, field: &str) -> String {
        if self.at.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.at)
        }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// A field that must be there.
    pub(crate) fn needed(&self, field: &str, expected: &str) -> Result<&'a Value, ApiError> {
        self.get(field).ok_or_else(|| {
            let name = self.name(field);
            let message = format!("`{name}` is missing, expected {expected}");
            ApiError::about(name, message).with_code("missing_field")
        })
    }

    /// An error about a field that has this value.
    pub(crate) fn wrong(&self, field: &str, found: &Value, expected: &str) -> ApiError {
        ApiError::field(self.name(field), found, expected)
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| self.wrong(field, value, "a string"))
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    pub(crate) fn list(&self, field: &str) -> Result<Option<&'a [Value]>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let list = value.as_array().map(Vec::as_slice);
        list.map(Some).ok_or_else(|| self.wrong(field, value, "an array"))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let value = self.get(field);
        value.map(|value| Fields::of(value, self.name(field))).transpose()
    }

    /// A number within `low..=high`.
    pub(crate) fn number(&self, field: &str, low: f64, high: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| {
            let expected = if high == f64::MAX {
                format!("a number of at least {low}")
            } else {
                format!("a number from {low} to {high}")
            };
            self.wrong(field, value, &expected)
        })
    }

    /// An integer within `low..=high`; `1.0` is one.
    pub(crate) fn whole(&self, field: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let number = whole(value).filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| {
            let expected = match (low, high) {
                (i64::MIN, i64::MAX) => "an integer of 64 bits".to_owned(),
                (low, i64::MAX) => format!("an integer of at least {low}"),
                (low, high) => format!("an integer from {low} to {high}"),
            };
            self.wrong(field, value, &expected)
        })
    }
}

/// An integer, also one that is written as `1.0`.
fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    let exact = number.fract() == 0.0 && number.abs() < 9.0e15;
    exact.then_some(number as i64)
}
