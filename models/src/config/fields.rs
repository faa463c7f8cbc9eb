//! How is a field of a config read? With the way to it, so that a problem names it.

use crate::checkpoint::error::CheckpointError;
use serde_json::{Map, Value};
use std::path::Path;

/// No dimension of a network is longer; products of two stay far from overflow.
pub(super) const LARGEST: u64 = 1 << 24;
/// Everything that is wrong with a config, one sentence each.
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    pub(super) fn of(self, path: &Path) -> CheckpointError {
        CheckpointError::Config {
            path: path.to_owned(),
            problems: self.0,
        }
    }
}

/// An object of the config with the way to it.
pub(super) struct Fields<'a> {
    pub(super) object: Option<&'a Map<String, Value>>,
    pub(super) prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Self {
        Fields {
            object: Some(object),
            prefix: "",
        }
    }

    /// An object inside; absent and null read as an object without fields.
    pub(super) fn inside(&self, name: &str, prefix: &'a str, problems: &mut Problems) -> Fields<'a> {
        let object = match self.value(name) {
            None => None,
            Some(Value::Object(object)) => Some(object),
            Some(other) => {
                problems.add(format!("`{}{name}` is {other}, expected an object", self.prefix));
                None
            }
        };
        Fields { object, prefix }
    }

    /// The field's value; null counts as absent.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.object
            .and_then(|object| object.get(name))
            .filter(|value| !value.is_null())
    }

    pub(super) fn take<T>(
        &self,
        name: &str,
        default: Option<T>,
        expected: &str,
        problems: &mut Problems,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let name_for_people = format!("{}{name}", self.prefix);
        match self.value(name) {
            Some(value) => {
                let converted = convert(value);
                if converted.is_none() {
                    problems.add(format!("`{name_for_people}` is {value}, expected {expected}"));
                }
                converted
            }
            None => {
                if default.is_none() {
                    problems.add(format!("`{name_for_people}` is missing, expected {expected}"));
                }
                default
            }
        }
    }

    pub(super) fn size(&self, name: &str, default: Option<u64>, problems: &mut Problems) -> u64 {
        self.take(
            name,
            default,
            "a whole number from 1 to 16777216",
            problems,
            whole,
        )
        .unwrap_or(1)
    }

    pub(super) fn number(&self, name: &str, default: Option<f64>, problems: &mut Problems) -> f64 {
        let positive = |value: &Value| {
            value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
        };
        self.take(name, default, "a number above 0", problems, positive)
            .unwrap_or(1.0)
    }

    pub(super) fn flag(&self, name: &str, default: bool, problems: &mut Problems) -> bool {
        self.take(name, Some(default), "true or false", problems, Value::as_bool)
            .unwrap_or(default)
    }

    pub(super) fn list<T>(
        &self,
        name: &str,
        default: Vec<T>,
        expected: &str,
        problems: &mut Problems,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Vec<T> {
        let all = |value: &'a Value| value.as_array()?.iter().map(&convert).collect::<Option<Vec<T>>>();
        self.take(name, Some(default), expected, problems, all)
            .unwrap_or_default()
    }

    /// A field that may stand there with one value only.
    pub(super) fn only(&self, name: &str, supported: &Value, problems: &mut Problems) {
        if let Some(found) = self.value(name).filter(|found| *found != supported) {
            problems.add(format!(
                "`{}{name}` is {found}, this build supports {supported}",
                self.prefix
            ));
        }
    }
}

pub(super) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().filter(|&number| (1..=LARGEST).contains(&number))
}
