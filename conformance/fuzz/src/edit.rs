//! Changes to a JSON value: what raw bytes would seldom get past the parser with.

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};

/// Most changes of a value.
const CHANGES: usize = 6;
/// Most values inside a value that is copied, and most bytes of what is built.
const MOST: usize = 4000;

/// Numbers at which something ends.
const NUMBERS: [i64; 18] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    255,
    256,
    1023,
    1024,
    65_536,
    1 << 24,
    (1 << 31) - 1,
    1 << 32,
    1 << 53,
    i64::MAX,
    i64::MIN,
];
const WORDS: [&str; 16] = [
    "",
    "a",
    "/etc/passwd",
    "../x",
    "onnx/../x",
    "a\\b",
    "C:x",
    "\u{1b}]0;x\u{7}",
    "\u{feff}",
    "\u{0}",
    "default",
    "float32",
    "<image>",
    "<|im_end|>",
    "é日👍",
    "{{ x }}",
];

/// Changes a few places.
pub(crate) fn edit(value: &mut Value, u: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..u.int_in_range(0..=CHANGES)? {
        let mut at = u.int_in_range(0..=count(value).saturating_sub(1))?;
        let other = u.int_in_range(0..=count(value).saturating_sub(1))?;
        let mut from = other;
        let copy = nth(value, &mut from).map(|found| found.clone());
        if let Some(place) = nth(value, &mut at) {
            change(place, copy.unwrap_or_default(), u)?;
        }
    }
    Ok(())
}

fn change(place: &mut Value, copy: Value, u: &mut Unstructured<'_>) -> Result<()> {
    *place = match u.int_in_range(0..=16)? {
        0 => Value::Null,
        1 => Value::Bool(u.arbitrary()?),
        2..=4 => json!(u.choose(&NUMBERS)?),
        5 => json!(u.int_in_range(-70_000..=70_000)?),
        6 => json!(*u.choose(&[0.0, -0.0, 0.5, 1e-300, 1e300, 1.0 / 255.0, 1e30])?),
        7 => json!(u.choose(&WORDS)?),
        8 => json!(text(u)?),
        9 => json!([]),
        10 => json!({}),
        11 => json!([place.take()]),
        12 if count(&copy) <= MOST => copy,
        13 => {
            let mut nested = place.take();
            for _ in 0..u.int_in_range(1..=160)? {
                nested = json!([nested]);
            }
            nested
        }
        14 => json!("x".repeat(u.int_in_range(0..=MOST)?)),
        _ => {
            inside(place, copy, u)?;
            return Ok(());
        }
    };
    Ok(())
}

/// Removes or adds an entry of an array or object, or a character of a string.
fn inside(place: &mut Value, copy: Value, u: &mut Unstructured<'_>) -> Result<()> {
    let add: bool = u.arbitrary()?;
    match place {
        Value::Array(values) if add && values.len() < MOST && count(&copy) <= MOST => values.push(copy),
        Value::Array(values) if !values.is_empty() => {
            values.remove(u.int_in_range(0..=values.len() - 1)?);
        }
        Value::Object(fields) => object(fields, add, copy, u)?,
        Value::String(word) if add && word.len() < MOST => word.push_str(&text(u)?),
        Value::String(word) => {
            word.pop();
        }
        other => *other = copy,
    }
    Ok(())
}

fn object(fields: &mut Map<String, Value>, add: bool, copy: Value, u: &mut Unstructured<'_>) -> Result<()> {
    let known: Vec<String> = fields.keys().cloned().collect();
    if add && count(&copy) <= MOST {
        fields.insert(text(u)?, copy);
    } else if !known.is_empty() {
        fields.remove(u.choose(&known)?);
    }
    Ok(())
}

/// A short text of any characters.
pub(crate) fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let length = u.int_in_range(0..=24_usize)?.min(u.len());
    Ok(String::from_utf8_lossy(u.bytes(length)?).into_owned())
}

/// Values in a value, itself too.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0_usize,
    }
}

/// The value at a place in order of the text.
fn nth<'v>(value: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(values) => values.iter_mut().find_map(|value| nth(value, at)),
        Value::Object(fields) => fields.values_mut().find_map(|value| nth(value, at)),
        _ => None,
    }
}
