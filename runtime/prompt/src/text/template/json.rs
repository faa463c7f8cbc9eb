//! `tojson`: Python's `json.dumps(value, ensure_ascii=False, indent=.., sort_keys=..)`.

use super::filters::named;
use super::metered::Charged;
use super::weigh::walk;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write as _;

/// Widest indentation.
const MAX_INDENT: usize = 64;

/// The filter. Its arguments have names.
pub(super) fn to_json(Rest(operands): Rest<Value>) -> Result<Value, Error> {
    let wrong = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}")));
    let (positional, named) = named(&operands)?;
    let [value] = positional.as_slice() else {
        return wrong("expected its arguments by name");
    };
    if named.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return wrong("`ensure_ascii` is not supported");
    }
    if named
        .get::<Option<Value>>("separators")?
        .is_some_and(|separators| !separators.is_none())
    {
        return wrong("`separators` is not supported");
    }
    let indent = named.get::<Option<usize>>("indent")?;
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return wrong("expected an `indent` of at most 64");
    }
    // What is nested too deeply ends here.
    walk(value)?;
    let mut text = String::new();
    let mut writer = Writer {
        out: Charged(&mut text),
        indent,
        sort_keys,
    };
    writer.value(value, 0)?;
    Ok(Value::from(text))
}

/// A float as `json.dumps` writes it.
fn number_text(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => super::python::float(number),
    }
}

struct Writer<'a> {
    out: Charged<'a>,
    indent: Option<usize>,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::Map => self.map(value, depth),
            ValueKind::Number if !value.is_integer() => {
                let number = f64::try_from(value.clone())?;
                Ok(self.out.write_str(&number_text(number))?)
            }
            _ => {
                let json = serde_json::to_string(value)
                    .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
                Ok(self.out.write_str(&json)?)
            }
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut first = true;
        self.out.write_str("[")?;
        for item in value.try_iter()? {
            self.separate(first, depth)?;
            first = false;
            self.value(&item, depth + 1)?;
        }
        self.end(first, depth, "]")
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let item = value.get_item(&key)?;
            entries.push((name(&key)?, item));
        }
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let mut first = true;
        self.out.write_str("{")?;
        for (name, item) in entries {
            self.separate(first, depth)?;
            first = false;
            let name = serde_json::Value::String(name).to_string();
            self.out.write_str(&name)?;
            self.out.write_str(": ")?;
            self.value(&item, depth + 1)?;
        }
        self.end(first, depth, "}")
    }

    fn separate(&mut self, first: bool, depth: usize) -> Result<(), Error> {
        match self.indent {
            Some(width) => {
                self.out.write_str(if first { "\n" } else { ",\n" })?;
                self.spaces(width * (depth + 1))
            }
            None if first => Ok(()),
            None => Ok(self.out.write_str(", ")?),
        }
    }

    fn end(&mut self, empty: bool, depth: usize, bracket: &str) -> Result<(), Error> {
        if let (Some(width), false) = (self.indent, empty) {
            self.out.write_str("\n")?;
            self.spaces(width * depth)?;
        }
        Ok(self.out.write_str(bracket)?)
    }

    fn spaces(&mut self, count: usize) -> Result<(), Error> {
        Ok(self.out.write_str(&" ".repeat(count))?)
    }
}

/// A key of an object: JSON has strings only, Python makes them of what is simple.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number | ValueKind::Bool | ValueKind::None => serde_json::to_string(key)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string())),
        kind => {
            let reason = format!("tojson: a {kind} is no key of an object");
            Err(Error::new(ErrorKind::BadSerialization, reason))
        }
    }
}
