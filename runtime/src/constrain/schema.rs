//! JSON schemas before they are compiled: which are refused?
//!
//! The grammar library leaves some things open that would make an answer invalid, or take all of the stack.

use super::ConstraintError;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Levels of a schema.
const MAX_DEPTH: usize = 100;

/// Values of a schema, of all kinds.
const MAX_VALUES: usize = 50_000;

/// Bytes of all its texts.
const MAX_TEXT: usize = 1 << 20;

/// Bytes of those texts that answers are made of: names, values, expressions. They are compiled, at five
/// microseconds and 200 bytes of memory each.
const MAX_WORDS: usize = 64 << 10;

/// The largest `multipleOf`, in units of its last digit, and that of all which hold for one number: what is
/// compiled has a state for each remainder.
const MAX_MULTIPLE: u128 = 10_000;

/// How deep references may lead: their number times the levels of the schema.
const MAX_WAY: usize = 4_000;

/// What may stand between the parts of JSON: small models would else write nothing but white space.
const WHITE_SPACE: &str = " |\\n {0,16}";

/// What may stand behind a backslash in a text: not `u`, by which a key that is named could be written once more, as another one.
const ESCAPES: &str = "nrbtf\\\"";

/// The largest number up to which float64 has all whole ones, and tells each from the next.
const MAX_WHOLE: f64 = 9_007_199_254_740_991.0;

/// Properties of one object, and items of one array that are counted: each is written out.
const MAX_PARTS: u64 = 1_000;

/// Parts of a schema where alternatives that stand beside others are written out: each with each.
const MAX_WRITTEN: f64 = 100_000.0;

/// Keywords whose numbers are compared with float64.
const NUMBERS: [&str; 7] = [
    "const",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// Keywords whose values are no schemas, and have none inside.
const LEAVES: [&str; 4] = ["const", "enum", "default", "examples"];

/// Keywords that answers do not depend on.
const NOTES: [&str; 5] = ["title", "description", "$comment", "default", "examples"];

/// What is counted of a schema.
#[derive(Default)]
struct Counts<'a> {
    values: usize,
    text: usize,
    words: usize,
    depth: usize,
    references: BTreeSet<&'a str>,
    /// Bounds of numbers, seen from 0 in both directions.
    bounds: [Bounds; 2],
    /// Each `multipleOf`.
    multiples: Vec<Decimal>,
    /// Whether bounds of one schema may be joined with those of another.
    joined: bool,
}

/// A number `digits / 10^places`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Decimal {
    digits: u128,
    places: u32,
}

impl Decimal {
    /// That of a number of JSON that is larger than 0 and has few digits.
    fn of(number: &Value) -> Option<Decimal> {
        let text = number.as_number()?.to_string();
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let part = part.trim_end_matches('0');
        let digits: u128 = format!("{whole}{part}")
            .parse()
            .ok()
            .filter(|digits| *digits > 0)?;
        let places = i64::try_from(part.len()).ok()? - exponent.parse::<i64>().ok()?;
        let zeros = u32::try_from(-places.min(0)).ok()?;
        let digits = digits.checked_mul(10_u128.checked_pow(zeros)?)?;
        let places = u32::try_from(places.max(0)).ok()?;
        Some(Decimal { digits, places })
    }
}

/// The least common multiple, in units of the last digit of any of them.
fn common_multiple(numbers: &[Decimal]) -> Option<u128> {
    let places = numbers.iter().map(|number| number.places).max().unwrap_or(0);
    numbers.iter().try_fold(1, |all: u128, number| {
        let scaled = number
            .digits
            .checked_mul(10_u128.checked_pow(places - number.places)?)?;
        let (mut a, mut b) = (all, scaled);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        (all / a.max(1)).checked_mul(scaled)
    })
}

fn check_multiples(numbers: &[Decimal], what: &str) -> Result<(), ConstraintError> {
    if common_multiple(numbers).is_some_and(|found| found <= MAX_MULTIPLE) {
        return Ok(());
    }
    let problem = format!("`multipleOf` {what}, expected at most {MAX_MULTIPLE} units of its last digit");
    Err(refused(&problem))
}

impl Counts<'_> {
    fn within(&self) -> Result<(), ConstraintError> {
        within(self.depth, "levels", MAX_DEPTH)?;
        within(self.values, "values", MAX_VALUES)?;
        within(self.text, "bytes of text", MAX_TEXT)?;
        within(self.words, "bytes of names, values and expressions", MAX_WORDS)
    }
}

/// Bounds of numbers on one side of 0, by their size.
#[derive(Default)]
struct Bounds {
    /// Whole ones nearer to 0 that are no part of the range.
    near: Vec<f64>,
    /// Those farther from 0.
    far: Vec<f64>,
}

impl Bounds {
    /// Whether the library would take a whole bound for a part of the range: where both ends have the same whole part.
    fn wrong(&self) -> Option<f64> {
        let same = |near: f64| self.far.iter().any(|far| *far > near && far.trunc() == near);
        self.near.iter().copied().find(|near| same(*near))
    }
}

/// The bounds of a schema, above and below 0; none where it is for whole numbers only, whose bounds are kept.
fn bounds(keywords: &Map<String, Value>) -> [Bounds; 2] {
    let mut sides = <[Bounds; 2]>::default();
    if keywords.get("type").and_then(Value::as_str) == Some("integer") {
        return sides;
    }
    let number = |name: &str| keywords.get(name).and_then(Value::as_f64);
    // In draft 4, `true` makes an exclusive bound of the other keyword.
    let exclusive = |name: &str, of: &str| match keywords.get(name) {
        Some(Value::Bool(true)) => number(of),
        _number => number(name),
    };
    let least = exclusive("exclusiveMinimum", "minimum");
    let most = exclusive("exclusiveMaximum", "maximum");
    let above = (least, [number("maximum"), most]);
    let below = (most, [number("minimum"), least]);
    for (side, ((near, far), sign)) in sides.iter_mut().zip([(above, 1.0), (below, -1.0)]) {
        side.near.extend(
            near.map(|near| near * sign)
                .filter(|near| *near >= 0.0 && near.fract() == 0.0),
        );
        side.far.extend(far.into_iter().flatten().map(|far| far * sign));
    }
    sides
}

/// What a value of a schema is.
#[derive(Clone, Copy)]
enum Place {
    /// A schema; the first is the whole one.
    Schema { root: bool },
    /// Schemas by names of any kind.
    Names,
    /// The value of a keyword that compares numbers.
    Numbers,
    /// What answers do not depend on.
    Note,
}

/// A schema as it is given to the grammar library.
///
/// # Errors
/// One that is too large, or that the library would not keep exactly.
pub(super) fn prepared(schema: &Value) -> Result<Value, ConstraintError> {
    check(schema)?;
    let mut prepared = match schema {
        Value::Object(keywords) => keywords.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(refused("it is `false`, which nothing is valid against")),
        other => {
            let found = kind(other);
            return Err(refused(&format!(
                "it is {found}, expected an object or a boolean"
            )));
        }
    };
    narrow(&mut prepared, Place::Schema { root: true });
    // A keyword of the library, which would change what is valid.
    prepared.insert(
        "x-guidance".to_owned(),
        match has_control_characters(schema) {
            true => json!({"whitespace_pattern": WHITE_SPACE}),
            false => json!({"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES}),
        },
    );
    Ok(Value::Object(prepared))
}

/// Whether a text of the schema has characters that JSON writes with `\u` only.
fn has_control_characters(schema: &Value) -> bool {
    let named = |letter: char| matches!(letter, '\n' | '\r' | '\t' | '\u{8}' | '\u{c}');
    match schema {
        Value::String(text) => text
            .chars()
            .any(|letter| letter.is_ascii_control() && !named(letter)),
        Value::Array(items) => items.iter().any(has_control_characters),
        Value::Object(members) => members
            .iter()
            .any(|(name, member)| !NOTES.contains(&name.as_str()) && has_control_characters(member)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Formats as they are meant, in all schemas inside.
fn narrow(members: &mut Map<String, Value>, place: Place) {
    for (name, member) in members.iter_mut() {
        match (inner(place, name), member) {
            (Place::Numbers | Place::Note, _) => {}
            (inner, Value::Object(members)) => narrow(members, inner),
            (_, Value::Array(items)) => {
                let schemas = items.iter_mut().filter_map(Value::as_object_mut);
                schemas.for_each(|members| narrow(members, Place::Schema { root: false }));
            }
            _leaf => {}
        }
    }
    if matches!(place, Place::Schema { .. }) {
        narrow_format(members);
        any_of_constants(members);
    }
}

/// `oneOf` of different constants is their `anyOf`, which the library takes where they are numbers too.
fn any_of_constants(keywords: &mut Map<String, Value>) {
    let Some(Value::Array(options)) = keywords.get("oneOf") else {
        return;
    };
    let constants: Option<Vec<Vec<&Value>>> = options.iter().map(constants).collect();
    let Some(constants) = constants.filter(|_| !keywords.contains_key("anyOf")) else {
        return;
    };
    // As texts, in which 1 and 1.0, or 0 and -0, are the same number.
    let text = |value: &Value| match value.as_f64() {
        Some(number) => (number + 0.0).to_string(),
        None => value.to_string(),
    };
    let mut seen = BTreeSet::new();
    let apart = constants.iter().all(|option| {
        let texts: BTreeSet<String> = option.iter().map(|value| text(value)).collect();
        texts.into_iter().all(|text| seen.insert(text))
    });
    // References may lead to the others.
    let numbers = constants.iter().flatten().any(|value| value.is_number());
    if apart
        && numbers
        && let Some(options) = keywords.remove("oneOf")
    {
        keywords.insert("anyOf".to_owned(), options);
    }
}

/// The values, none of them with parts, one of which a schema says that its value is.
fn constants(schema: &Value) -> Option<Vec<&Value>> {
    let values = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => vec![value],
        (None, Some(Value::Array(values))) => values.iter().collect(),
        _ => return None,
    };
    let plain = |value: &&Value| !value.is_array() && !value.is_object();
    values.iter().all(plain).then_some(values)
}

/// The format of one schema, whose own pattern stays.
fn narrow_format(keywords: &mut Map<String, Value>) {
    let format = keywords.get("format").and_then(Value::as_str);
    let Some(pattern) = format.and_then(super::format::pattern) else {
        return;
    };
    if !keywords.contains_key("pattern") {
        keywords.insert("pattern".to_owned(), pattern.into());
        return;
    }
    let all = keywords.entry("allOf").or_insert_with(|| json!([]));
    if let Some(all) = all.as_array_mut() {
        all.push(json!({"pattern": pattern}));
    }
}

fn check(schema: &Value) -> Result<(), ConstraintError> {
    let mut counts = Counts::default();
    let mut open = vec![(schema, 1, Place::Schema { root: true })];
    while let Some((value, depth, place)) = open.pop() {
        counts.values += 1;
        counts.depth = counts.depth.max(depth);
        counts.within()?;
        let counted = !matches!(place, Place::Note);
        match value {
            Value::String(text) => {
                counts.text += text.len();
                counts.words += if counted { text.len() } else { 0 };
            }
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or(f64::INFINITY);
                if matches!(place, Place::Numbers) && number.abs() > MAX_WHOLE {
                    let way = "expected less than 2^53, as far as float64 has all whole numbers";
                    return Err(refused(&format!("the number {number} is too large: {way}")));
                }
            }
            Value::Array(items) => {
                let inner = match place {
                    Place::Schema { .. } | Place::Names => Place::Schema { root: false },
                    same => same,
                };
                open.extend(items.iter().map(|item| (item, depth + 1, inner)));
            }
            Value::Object(members) => {
                if let Place::Schema { root } = place {
                    check_keywords(members, root, &mut counts)?;
                }
                for (name, member) in members {
                    counts.text += name.len();
                    counts.words += if counted { name.len() } else { 0 };
                    open.push((member, depth + 1, inner(place, name)));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
    counts.within()?;
    for reference in &counts.references {
        if !leads_to_schema(schema, reference) {
            return Err(refused(&format!(
                "`$ref` is `{reference}`, which is no schema: expected one of `$defs`, or a keyword's"
            )));
        }
    }
    if counts.joined {
        check_bounds(&counts.bounds)?;
        check_multiples(&counts.multiples, "of several numbers together is too large")?;
    }
    // Definitions are compiled where they are first referred to, one inside the other.
    let way = counts.references.len().saturating_mul(counts.depth);
    within(way, "references times levels", MAX_WAY)?;
    if written(schema, counts.values).size > MAX_WRITTEN {
        let problem = "alternatives beside others (`anyOf` beside `anyOf`, in `allOf`, beside `properties`) make it too large";
        return Err(refused(problem));
    }
    Ok(())
}

/// Whether what a reference leads to was looked at as a schema; also where the library is to say what is wrong with it.
fn leads_to_schema(root: &Value, reference: &str) -> bool {
    let Some(path) = reference.strip_prefix("#/").filter(|path| !path.is_empty()) else {
        return true;
    };
    let (mut value, mut place) = (root, Place::Schema { root: true });
    for name in path.split('/') {
        let next = match (value, place) {
            (Value::Array(items), Place::Schema { .. } | Place::Names) => {
                place = Place::Schema { root: false };
                name.parse().ok().and_then(|index: usize| items.get(index))
            }
            _ => {
                place = inner(place, name);
                value.get(name)
            }
        };
        if matches!(place, Place::Note | Place::Numbers) {
            return false;
        }
        let Some(next) = next else { return true };
        value = next;
    }
    matches!(place, Place::Schema { .. })
}

/// What a schema becomes where its alternatives are written out.
struct Written {
    /// Alternatives.
    ways: f64,
    /// Parts of all of them.
    size: f64,
}

/// An estimate. `values`: those of the whole schema, which a reference may stand for.
fn written(schema: &Value, values: usize) -> Written {
    let Value::Object(keywords) = schema else {
        return Written { ways: 1.0, size: 1.0 };
    };
    let number = |count: usize| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    let all = |schemas: &mut dyn Iterator<Item = &Value>| -> Vec<Written> {
        schemas.map(|schema| written(schema, values)).collect()
    };
    let sizes = |parts: &[Written]| parts.iter().map(|part| part.size).sum::<f64>();
    let mut own = 1.0;
    // Definitions are written once, wherever they are.
    let mut apart = 0.0;
    let mut parts = Vec::new();
    for (name, value) in keywords {
        match (name.as_str(), value) {
            ("anyOf" | "oneOf", Value::Array(options)) => {
                let options = all(&mut options.iter());
                let ways = options.iter().map(|option| option.ways).sum();
                let size = sizes(&options);
                parts.push(Written { ways, size });
            }
            ("allOf", Value::Array(members)) => parts.extend(all(&mut members.iter())),
            ("enum", Value::Array(values)) => {
                let ways = number(values.len());
                parts.push(Written { ways, size: ways });
            }
            ("$ref", _) if keywords.len() > 1 => {
                let size = number(values);
                parts.push(Written { ways: 1.0, size });
            }
            ("$defs" | "definitions", Value::Object(members)) => apart += sizes(&all(&mut members.values())),
            ("properties" | "patternProperties", Value::Object(members)) => {
                own += sizes(&all(&mut members.values()));
            }
            ("minItems" | "maxItems" | "minProperties" | "maxProperties", count) => {
                own += count.as_f64().unwrap_or_default();
            }
            (name, _) if LEAVES.contains(&name) => {}
            (_, Value::Array(members)) => own += sizes(&all(&mut members.iter())),
            (_, member) => own += written(member, values).size,
        }
    }
    if own > 1.0 || parts.is_empty() {
        parts.push(Written { ways: 1.0, size: own });
    }
    // Each alternative of one with each of the others, and all that it has in it.
    let ways: f64 = parts.iter().map(|part| part.ways.max(1.0)).product();
    let size = parts
        .iter()
        .map(|part| part.size / part.ways.max(1.0))
        .sum::<f64>();
    Written {
        ways,
        size: ways * size + apart,
    }
}

/// What the member `name` of an object at `place` is.
fn inner(place: Place, name: &str) -> Place {
    match place {
        Place::Schema { .. } if NUMBERS.contains(&name) => Place::Numbers,
        Place::Schema { .. } if NOTES.contains(&name) => Place::Note,
        Place::Schema { .. } => match name {
            "properties" | "patternProperties" | "$defs" | "definitions" => Place::Names,
            _keyword => Place::Schema { root: false },
        },
        Place::Names => Place::Schema { root: false },
        same => same,
    }
}

/// What of a schema's own keywords the library would not keep.
fn check_keywords<'a>(
    keywords: &'a Map<String, Value>,
    root: bool,
    counts: &mut Counts<'a>,
) -> Result<(), ConstraintError> {
    if let Some(Value::String(reference)) = keywords.get("$ref") {
        counts.references.insert(reference);
    }
    // A property may match a pattern: then both schemas hold for it.
    counts.joined |= keywords.contains_key("allOf")
        || keywords.contains_key("properties") && keywords.contains_key("patternProperties")
        || keywords.len() > 1
            && ["anyOf", "oneOf", "$ref"]
                .iter()
                .any(|name| keywords.contains_key(*name));
    let bounds = bounds(keywords);
    check_bounds(&bounds)?;
    for (all, own) in counts.bounds.iter_mut().zip(bounds) {
        all.near.extend(own.near);
        all.far.extend(own.far);
    }
    if let Some(multiple) = keywords.get("multipleOf").filter(|value| value.is_number()) {
        let decimal = Decimal::of(multiple);
        let what = format!("is {multiple}");
        check_multiples(decimal.as_slice(), &what)?;
        if decimal.is_none() {
            return Err(refused(&format!(
                "`multipleOf` {what}, expected a number above 0"
            )));
        }
        counts.multiples.extend(decimal);
    }
    if let Some(Value::String(pattern)) = keywords.get("pattern") {
        check_pattern("pattern", pattern)?;
    }
    if let Some(Value::Object(patterns)) = keywords.get("patternProperties") {
        patterns
            .keys()
            .try_for_each(|pattern| check_pattern("patternProperties", pattern))?;
    }
    let other_base = |name: &&str| matches!(keywords.get(*name), Some(Value::String(_)));
    if !root && let Some(name) = ["$id", "id"].iter().find(|name| other_base(name)) {
        let problem = format!("`{name}` inside of it: references are from its beginning only");
        return Err(refused(&problem));
    }
    for name in ["minItems", "maxItems", "minProperties", "maxProperties"] {
        let found = keywords.get(name).and_then(Value::as_u64);
        if let Some(found) = found.filter(|found| *found > MAX_PARTS) {
            let problem = format!("`{name}` is {found}, expected at most {MAX_PARTS}");
            return Err(refused(&problem));
        }
    }
    if let Some(Value::Object(properties)) = keywords.get("properties") {
        let most = usize::try_from(MAX_PARTS).unwrap_or(usize::MAX);
        within(properties.len(), "properties in one object", most)?;
    }
    // Keys that have no name in the schema may come twice, and are then one.
    let named = match keywords.get("required") {
        Some(Value::Array(names)) => names.len(),
        _none => 0,
    };
    let least = keywords.get("minProperties").and_then(Value::as_f64);
    let kept = u32::try_from(named.max(1)).map_or(f64::INFINITY, f64::from);
    if let Some(least) = least.filter(|least| *least > kept) {
        let problem = format!("`minProperties` is {least}, expected at most as many as are `required`");
        return Err(refused(&problem));
    }
    Ok(())
}

/// An expression of the schema, as far as its size is concerned.
fn check_pattern(keyword: &str, pattern: &str) -> Result<(), ConstraintError> {
    super::expression::check(pattern).map_err(|problem| refused(&format!("`{keyword}`: {problem}")))
}

fn check_bounds(sides: &[Bounds; 2]) -> Result<(), ConstraintError> {
    let names = [("exclusiveMinimum", 1.0), ("exclusiveMaximum", -1.0)];
    for (side, (name, sign)) in sides.iter().zip(names) {
        if let Some(near) = side.wrong() {
            let found = near * sign;
            let way = "a range of less than one beside a whole number that is no part of it";
            let problem = format!("`{name}` is {found}: {way}; say where it begins, as 0.001");
            return Err(refused(&problem));
        }
    }
    Ok(())
}

/// About how many bytes of memory a schema takes, of which not too many values and bytes of text are compiled.
pub(super) fn size(schema: &Value) -> Result<usize, ConstraintError> {
    let (mut values, mut text) = (1_usize, 0_usize);
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(string) => text += string.len(),
            Value::Array(items) => values += items.len(),
            Value::Object(fields) => {
                values += fields.len();
                text += fields.keys().map(String::len).sum::<usize>();
            }
            _ => {}
        }
        within(values, "values", MAX_VALUES)?;
        within(text, "bytes of text", MAX_TEXT)?;
        match value {
            Value::Array(items) => rest.extend(items),
            Value::Object(fields) => rest.extend(fields.values()),
            _ => {}
        }
    }
    // A value, and what a map keeps beside it.
    Ok(text + values * 2 * size_of::<Value>())
}

fn within(found: usize, unit: &'static str, most: usize) -> Result<(), ConstraintError> {
    if found > most {
        return Err(ConstraintError::TooLarge {
            what: "JSON schema",
            found,
            unit,
            most,
        });
    }
    Ok(())
}

fn refused(problem: &str) -> ConstraintError {
    ConstraintError::Schema {
        reason: problem.to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_are_bounded_one_by_one_and_together() {
        for schema in [
            json!({"multipleOf": 0.01}),
            json!({"multipleOf": 2.5}),
            json!({"multipleOf": 10000}),
            json!({"multipleOf": 1e-15}),
            json!({"properties": {"a": {"multipleOf": 9973}, "b": {"multipleOf": 9967}}}),
            json!({"allOf": [{"multipleOf": 0.5}, {"multipleOf": 3}, {"multipleOf": 100}]}),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
        for schema in [
            json!({"multipleOf": 10001}),
            json!({"multipleOf": 1.99999}),
            json!({"multipleOf": 0}),
            json!({"multipleOf": -2}),
            json!({"multipleOf": 1e300}),
            json!({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
            json!({"properties": {"a": {"multipleOf": 101}}, "allOf": [{"multipleOf": 0.01}, {"multipleOf": 3}]}),
        ] {
            let error = check(&schema).unwrap_err().to_string();
            assert!(error.contains("`multipleOf`"), "{schema}: {error}");
        }
    }

    #[test]
    fn notes_may_be_longer_than_what_answers_are_made_of() {
        let long = "a".repeat(MAX_WORDS + 1);
        assert_eq!(check(&json!({"description": long, "examples": [long]})), Ok(()));
        for schema in [
            json!({"const": long}),
            json!({"properties": {long.as_str(): {}}}),
            json!({"pattern": long}),
        ] {
            assert!(check(&schema).is_err());
        }
    }
}
