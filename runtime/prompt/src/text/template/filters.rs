//! Filters, tests, functions and methods that templates may call, each weighed before it computes.

use super::metered::Charged;
use super::weigh::{charge, is_namespace, iterate, length, make, number, read, settle, walk};
use super::{json, numbers};
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions, tests};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;

/// Longest argument of a function that writes: formats of dates, reasons.
const MAX_WORDS: usize = 4096;

/// What it costs to make another letter of one, for each byte.
const LETTER: u64 = 16;

/// minijinja's filters that Jinja has too, and `split`, which templates for minijinja use.
fn builtin() -> Vec<(&'static str, Value)> {
    macro_rules! all {
        ($($name:literal $filter:ident),* $(,)?) => { vec![$(($name, Value::from_function(filters::$filter))),*] };
    }
    all![
        "lower" lower, "upper" upper, "capitalize" capitalize, "replace" replace, "length" length,
        "count" length, "dictsort" dictsort, "items" items, "reverse" reverse, "split" split,
        "lines" lines, "default" default, "d" default, "abs" abs, "int" int, "float" float, "attr" attr,
        "first" first, "last" last, "min" min, "max" max, "sort" sort, "list" list, "bool" bool,
        "batch" batch, "slice" slice, "sum" sum, "indent" indent, "select" select, "reject" reject,
        "selectattr" selectattr, "rejectattr" rejectattr, "map" map, "groupby" groupby, "unique" unique, "zip" zip,
        "pprint" pprint, "format" format, "safe" safe, "escape" escape, "e" escape,
    ]
}

/// minijinja's tests whose cost depends on what they look at.
fn comparing() -> Vec<(&'static str, Value)> {
    macro_rules! all {
        ($($name:literal $test:ident),* $(,)?) => { vec![$(($name, Value::from_function(tests::$test))),*] };
    }
    all![
        "eq" is_eq, "equalto" is_eq, "==" is_eq, "ne" is_ne, "!=" is_ne, "lt" is_lt, "lessthan" is_lt, "<" is_lt,
        "le" is_le, "<=" is_le, "gt" is_gt, "greaterthan" is_gt, ">" is_gt, "ge" is_ge, ">=" is_ge, "in" is_in,
        "startingwith" is_startingwith, "endingwith" is_endingwith, "lower" is_lower, "upper" is_upper,
    ]
}

/// Replaces all that is called by what is weighed first.
pub(super) fn register(environment: &mut Environment<'_>) {
    for (name, filter) in builtin() {
        let weighed = move |state: &State<'_, '_>, Rest(operands): Rest<Value>| -> Result<Value, Error> {
            weigh_filter(name, &operands)?;
            made(filter.call(state, &operands)?)
        };
        environment.add_filter(name, weighed);
    }
    for (name, test) in comparing() {
        let weighed = move |state: &State<'_, '_>, Rest(operands): Rest<Value>| -> Result<bool, Error> {
            let bytes = read_all(&operands)?;
            charge(bytes)?;
            Ok(test.call(state, &operands)?.is_true())
        };
        environment.add_test(name, weighed);
    }
    for (name, function) in [
        ("range", Value::from_function(functions::range)),
        ("dict", Value::from_function(functions::dict)),
        ("namespace", Value::from_function(functions::namespace)),
    ] {
        let weighed = move |state: &State<'_, '_>, Rest(operands): Rest<Value>| -> Result<Value, Error> {
            let bytes = read_all(&operands)?;
            charge(bytes)?;
            settle(function.call(state, &operands)?)
        };
        environment.add_function(name, weighed);
    }
    // What has a length and members in Python: texts and dictionaries have, too.
    environment.add_test("sequence", |value: Value| match value.kind() {
        ValueKind::Map => !is_namespace(&value),
        kind => matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Undefined),
    });
    environment.add_filter("round", |Rest(operands): Rest<Value>| round(&operands));
    environment.add_filter("title", |value: Value| title(&value));
    environment.add_filter("string", |value: Value| text(&value));
    environment.add_filter("join", |value: Value, between: Option<Cow<'_, str>>| {
        join(&value, between.as_deref().unwrap_or_default())
    });
    // They print all variables, and promise lists that are kept one inside the other.
    environment.remove_global("debug");
    environment.remove_filter("chain");
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("trim", |text: Cow<'_, str>, letters: Option<Cow<'_, str>>| {
        strip(&text, letters.as_deref(), [true, true])
    });
    environment.set_unknown_method_callback(|state, value, method, operands| {
        if let Some(result) = weigh_method(value, method, operands)? {
            return Ok(result);
        }
        let result = minijinja_contrib::pycompat::unknown_method_callback(state, value, method, operands)?;
        made(result)
    });
}

/// A value as it is written.
fn text(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        read(value)?;
        return Ok(value.clone());
    }
    let mut text = String::new();
    super::print(value, &mut Charged(&mut text))?;
    Ok(Value::from(text))
}

/// `round`, whose arguments may have names.
fn round(operands: &[Value]) -> Result<Value, Error> {
    let (operands, named) = named(operands)?;
    let (value, places, method): (Value, Option<i32>, Option<String>) = from_args(&operands)?;
    let places = match places {
        Some(places) => Some(places),
        None => named.get("precision")?,
    };
    let method = match method {
        Some(method) => Some(method),
        None => named.get("method")?,
    };
    named.assert_all_used()?;
    numbers::round(
        &value,
        places.unwrap_or(0),
        words(method.as_deref().unwrap_or("common")),
    )
}

/// A text whose words begin with a capital: they end at white space, a hyphen and opening brackets.
fn title(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    charge(read(&text)?.saturating_mul(LETTER))?;
    let text = text.as_str().unwrap_or_default();
    let separates = |letter: char| {
        letter.is_whitespace() || matches!(letter, '\x1c'..='\x1f' | '-' | '(' | '{' | '[' | '<')
    };
    let mut titled = String::with_capacity(text.len());
    for piece in text.split_inclusive(separates) {
        let mut letters = piece.chars();
        titled.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        titled.push_str(&letters.as_str().to_lowercase());
    }
    Ok(titled)
}

/// The members of a value as they are written, with a text between them.
fn join(value: &Value, between: &str) -> Result<String, Error> {
    weigh_join(value, &Value::from(between))?;
    let members: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None if value.is_undefined() => Vec::new(),
        None => value.try_iter()?.collect(),
    };
    let mut text = String::new();
    for (index, member) in members.iter().enumerate() {
        let mut out = Charged(&mut text);
        if index > 0 {
            out.write_str(between)?;
        }
        super::print(member, &mut out)?;
    }
    Ok(text)
}

fn read_all(operands: &[Value]) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    for operand in operands {
        bytes = bytes.saturating_add(read(operand)?);
    }
    Ok(bytes)
}

/// A result, charged for, and not a promise.
fn made(value: Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge(number(text.len()))?;
        return Ok(value);
    }
    let value = settle(value)?;
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        make(length(&value), 0)?;
        walk(&value)?;
    }
    Ok(value)
}

/// A text without white space at its ends, or without some letters there; minijinja's and Python's compare each
/// letter of the text with all of these.
fn strip(text: &str, letters: Option<&str>, [start, end]: [bool; 2]) -> Result<String, Error> {
    let letters = letters.map(|letters| letters.chars().collect::<HashSet<char>>());
    charge(
        number(text.len()).saturating_add(letters.as_ref().map_or(0, |letters| 16 * number(letters.len()))),
    )?;
    let goes = |letter: char| match &letters {
        Some(letters) => letters.contains(&letter),
        None => letter.is_whitespace(),
    };
    let text = if start {
        text.trim_start_matches(goes)
    } else {
        text
    };
    let text = if end { text.trim_end_matches(goes) } else { text };
    Ok(text.to_owned())
}

/// Bytes of those operands that are texts.
fn texts(operands: &[Value]) -> u64 {
    let lengths = operands.iter().filter_map(Value::as_str);
    lengths.map(|text| number(text.len())).sum()
}

/// Bytes of an operand as text.
fn text_bytes(operand: Option<&Value>) -> Result<u64, Error> {
    operand.map_or(Ok(0), read)
}

/// Members of a value; of a string, its bytes.
fn members(value: &Value) -> u64 {
    value.as_str().map_or(length(value), |text| number(text.len()))
}

fn weigh_filter(name: &str, operands: &[Value]) -> Result<(), Error> {
    let Some(value) = operands.first() else {
        return Ok(());
    };
    let more = operands.get(1..).unwrap_or_default();
    match name {
        // They look at one member, or at a number.
        "length" | "count" | "default" | "d" | "first" | "safe" => {
            charge(1 + value.as_str().map_or(0, |text| number(text.len()) / 8))
        }
        // Found by the hash of its name.
        "attr" => charge(1 + texts(more)),
        "lower" | "upper" | "capitalize" => charge(read_all(operands)?.saturating_mul(LETTER)),
        "replace" => weigh_replace(value, operands.get(1), operands.get(2)),
        "split" => weigh_split(value, operands.get(1)),
        "lines" => weigh_split(value, Some(&Value::from("\n"))),
        "indent" => {
            let text = value.as_str().unwrap_or_default();
            let lines = number(text.matches('\n').count()) + 1;
            let named = more.last().and_then(|last| last.get_attr("width").ok());
            let width = more.iter().chain(&named).filter_map(Value::as_usize).max();
            let width = number(width.unwrap_or(4));
            charge(
                lines
                    .saturating_mul(width)
                    .saturating_add(read(value)?)
                    .saturating_add(width),
            )
        }
        "batch" | "slice" => {
            read_all(operands)?;
            iterate(value)?;
            let count = more.iter().filter_map(Value::as_usize).max();
            make(number(count.unwrap_or(0)).saturating_mul(2), 0)
        }
        "format" => weigh_format(value, more),
        "sum" => {
            let bytes = read_all(operands)?;
            charge(bytes.saturating_mul(length(value)) / 2)
        }
        // Sorting compares each member some twenty times.
        "sort" | "unique" | "groupby" | "dictsort" | "min" | "max" => {
            iterate(value)?;
            charge(read_all(operands)?.saturating_mul(16))
        }
        // What stands behind is looked at for each member.
        "select" | "reject" | "selectattr" | "rejectattr" | "map" => {
            iterate(value)?;
            read(value)?;
            charge(read_all(more)?.saturating_mul(members(value)))
        }
        "list" | "reverse" | "last" | "zip" | "items" => {
            operands.iter().try_for_each(iterate)?;
            read_all(operands).map(|_| ())
        }
        // Each character may be escaped by six.
        "escape" | "e" | "pprint" => charge(read_all(operands)?.saturating_mul(6)),
        _ => charge(read_all(operands)?),
    }
}

fn weigh_replace(value: &Value, from: Option<&Value>, to: Option<&Value>) -> Result<(), Error> {
    let (length, _, new) = (read(value)?, text_bytes(from)?, text_bytes(to)?);
    let text = value.as_str().unwrap_or_default();
    let found = match from.and_then(Value::as_str) {
        Some("") => length + 1,
        Some(from) => number(text.matches(from).count()),
        None => length,
    };
    charge(length.saturating_add(found.saturating_mul(new)))
}

fn weigh_split(value: &Value, at: Option<&Value>) -> Result<(), Error> {
    read(value)?;
    let text = value.as_str().unwrap_or_default();
    let pieces = match at.and_then(Value::as_str) {
        Some("") => number(text.len()),
        Some(at) => number(text.matches(at).count()),
        None => number(text.split_whitespace().count()),
    };
    make(pieces.saturating_add(1).saturating_mul(2), number(text.len()))
}

fn weigh_join(value: &Value, between: &Value) -> Result<(), Error> {
    iterate(value)?;
    let bytes = read(value)?;
    let between = text_bytes(Some(between))?;
    charge(between.saturating_mul(members(value)).saturating_add(bytes))
}

/// A format may state widths, and one operand many times.
fn weigh_format(format: &Value, operands: &[Value]) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    let mut widths = 0_u64;
    let digits = text.split(|letter: char| !letter.is_ascii_digit());
    for number in digits.filter(|digits| !digits.is_empty()) {
        let width: u64 = number.parse().unwrap_or(u64::MAX);
        if width > 4096 {
            let reason = format!("a format states a width of {width}, at most 4096 are written");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        widths = widths.saturating_add(width);
    }
    let stated: u64 = operands
        .iter()
        .filter_map(Value::as_usize)
        .map(number)
        .fold(0, u64::saturating_add);
    let places = number(text.matches(['%', '{']).count());
    // A width may be an operand too (`*`).
    if text.contains('*') {
        widths = widths.saturating_add(places.saturating_mul(stated));
    }
    let bytes = read_all(operands)?.saturating_mul(6);
    charge(
        widths
            .saturating_add(places.saturating_mul(bytes))
            .saturating_add(read(format)?),
    )
}

/// Weighs a method of a string, list or dictionary; the result of one that would not end.
fn weigh_method(value: &Value, method: &str, operands: &[Value]) -> Result<Option<Value>, Error> {
    let first = operands.first();
    match (value.as_str(), method) {
        (Some(_), "replace") => weigh_replace(value, first, operands.get(1))?,
        (Some(_), "split") => weigh_split(value, first)?,
        (Some(_), "splitlines") => weigh_split(value, Some(&Value::from("\n")))?,
        (Some(_), "join") => {
            let list = first.cloned().unwrap_or_default();
            weigh_join(&list, value)?;
        }
        (Some(_), "format") => weigh_format(value, operands)?,
        (Some(text), "count") => {
            read_all(operands)?;
            charge(number(text.len()))?;
            if first.and_then(Value::as_str) == Some("") {
                return Ok(Some(Value::from(text.chars().count() + 1)));
            }
        }
        (Some(text), "strip" | "lstrip" | "rstrip") => {
            let (letters,): (Option<Cow<'_, str>>,) = from_args(operands)?;
            let ends = [method != "rstrip", method != "lstrip"];
            return strip(text, letters.as_deref(), ends).map(|text| Some(Value::from(text)));
        }
        (Some(_), "lower" | "upper" | "title" | "capitalize" | "swapcase" | "casefold") => {
            charge(read(value)?.saturating_mul(LETTER))?;
        }
        (Some(_), _) => {
            let bytes = read(value)?.saturating_add(read_all(operands)?);
            charge(bytes)?;
        }
        // Found by the key's hash.
        (None, "get") => charge(read_all(operands)?)?,
        (None, _) => {
            let bytes = read_all(operands)?;
            read(value)?;
            charge((bytes / 8).saturating_mul(length(value)))?;
        }
    }
    Ok(None)
}

/// The words of a template that are its own to say, cut where they are no words.
pub(super) fn words(text: &str) -> &str {
    let mut end = text.len().min(MAX_WORDS);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The arguments by name of a filter.
pub(super) fn named(operands: &[Value]) -> Result<(Vec<Value>, Kwargs), Error> {
    minijinja::value::from_args::<(Rest<Value>, Kwargs)>(operands).map(|(Rest(rest), named)| (rest, named))
}
