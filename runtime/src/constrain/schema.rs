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

/// How deep references may lead: their number times the levels of the schema.
const MAX_WAY: usize = 4_000;

/// What may stand between the parts of JSON: small models would else write nothing but white space.
const WHITE_SPACE: &str = " |\\n {0,16}";

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

/// What is counted of a schema.
#[derive(Default)]
struct Counts<'a> {
    values: usize,
    text: usize,
    depth: usize,
    references: BTreeSet<&'a str>,
    /// Bounds of numbers, seen from 0 in both directions.
    bounds: [Bounds; 2],
    /// Whether bounds of one schema may be joined with those of another.
    joined: bool,
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
    let above = (
        number("exclusiveMinimum"),
        [number("maximum"), number("exclusiveMaximum")],
    );
    let below = (
        number("exclusiveMaximum"),
        [number("minimum"), number("exclusiveMinimum")],
    );
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
    /// Anything else.
    Other,
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
    // A keyword of the library, which would change what is valid.
    prepared.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_pattern": WHITE_SPACE}),
    );
    Ok(Value::Object(prepared))
}

fn check(schema: &Value) -> Result<(), ConstraintError> {
    let mut counts = Counts::default();
    let mut open = vec![(schema, 1, Place::Schema { root: true })];
    while let Some((value, depth, place)) = open.pop() {
        counts.values += 1;
        counts.depth = counts.depth.max(depth);
        within(counts.depth, "levels", MAX_DEPTH)?;
        within(counts.values, "values", MAX_VALUES)?;
        within(counts.text, "bytes of text", MAX_TEXT)?;
        match value {
            Value::String(text) => counts.text += text.len(),
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
                    open.push((member, depth + 1, inner(place, name)));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
    if counts.joined {
        check_bounds(&counts.bounds)?;
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
        Place::Schema { .. } if LEAVES.contains(&name) => Place::Other,
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
    counts.joined |= keywords.contains_key("allOf")
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
