//! What a rendering may cost: a budget for its thread, and what values weigh.
//!
//! minijinja's fuel counts instructions, whose cost has no bound: one can write, compare or copy all
//! memory. Each operation whose cost depends on its operands is weighed first ([`super::metered`]), in
//! units of about a nanosecond or a byte; when the budget is spent, the rendering ends with an error.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::cell::Cell;

/// Units of one rendering, and those for each message and each byte of the messages.
const WORK: u64 = 128 << 20;
const WORK_PER_MESSAGE: u64 = 64 << 10;
const WORK_PER_BYTE: u64 = 16;
/// Longest text in bytes, with what is captured on the way: over a thousand times the context of any model
/// that there is.
pub(super) const MAX_TEXT: u64 = 64 << 20;
/// Deepest nesting of lists and dictionaries: printing, comparing and dropping them has a frame of the
/// stack for each.
const MAX_DEPTH: usize = 100;
/// What it costs to look at a value, and to hold one more in a list.
const LOOK: u64 = 16;
const HOLD: u64 = 32;
/// What it costs to make a value of each character of a string, for each byte.
const LETTER: u64 = 64;

/// What is left for the rendering of this thread.
#[derive(Clone, Copy, Default)]
struct Left {
    work: u64,
    text: u64,
    /// What was spent first.
    spent: Option<Spent>,
}

/// What a template used too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spent {
    Work,
    Text,
    Depth,
}

thread_local! {
    static LEFT: Cell<Left> = const { Cell::new(Left { work: 0, text: 0, spent: None }) };
}

/// Begins a rendering of `messages` with `bytes` of text on this thread.
pub(super) fn begin(messages: u64, bytes: u64) {
    let work = WORK
        .saturating_add(messages.saturating_mul(WORK_PER_MESSAGE))
        .saturating_add(bytes.saturating_mul(WORK_PER_BYTE));
    LEFT.set(Left {
        work,
        text: MAX_TEXT,
        spent: None,
    });
}

/// What the rendering of this thread used too much of.
pub(super) fn spent() -> Option<Spent> {
    LEFT.get().spent
}

fn end(what: Spent) -> Error {
    let mut left = LEFT.get();
    left.spent.get_or_insert(what);
    LEFT.set(left);
    Error::new(ErrorKind::OutOfFuel, "a bound of what a template may use")
}

/// Takes units from the budget.
///
/// # Errors
/// When it has not as many.
pub(super) fn charge(units: u64) -> Result<(), Error> {
    let mut left = LEFT.get();
    match left.work.checked_sub(units) {
        Some(work) => {
            left.work = work;
            LEFT.set(left);
            Ok(())
        }
        None => Err(end(Spent::Work)),
    }
}

/// Takes bytes that are written from what may be written.
///
/// # Errors
/// When that is not as much.
pub(super) fn write(bytes: usize) -> Result<(), Error> {
    let mut left = LEFT.get();
    match left.text.checked_sub(number(bytes)) {
        Some(text) => {
            left.text = text;
            LEFT.set(left);
            Ok(())
        }
        None => Err(end(Spent::Text)),
    }
}

pub(super) fn number(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Values in a list or dictionary; 0 for what has none.
pub(super) fn length(value: &Value) -> u64 {
    match value.as_str() {
        Some(_) => 0,
        None => value.len().map_or(0, number),
    }
}

/// Looks at everything in a value, and says about how many bytes it is when printed.
///
/// # Errors
/// When the budget is spent, or the value is nested too deeply.
pub(super) fn walk(value: &Value) -> Result<u64, Error> {
    look(value, 0, false)
}

/// As [`walk`], for what is kept where it could come to hold itself: only data, no namespaces and macros.
pub(super) fn walk_data(value: &Value) -> Result<u64, Error> {
    look(value, 0, true)
}

/// Whether a value is what `namespace()` makes.
pub(super) fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().contains("amespace"))
}

fn look(value: &Value, depth: usize, data: bool) -> Result<u64, Error> {
    charge(LOOK)?;
    if let Some(text) = value.as_str() {
        return Ok(number(text.len()));
    }
    if depth > MAX_DEPTH {
        return Err(end(Spent::Depth));
    }
    if data && is_namespace(value) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a namespace cannot hold a namespace",
        ));
    }
    let mut bytes = 8_u64;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                bytes = bytes.saturating_add(look(&item, depth + 1, data)?);
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                bytes = bytes.saturating_add(look(&key, depth + 1, data)?);
                bytes = bytes.saturating_add(look(&value.get_item(&key)?, depth + 1, data)?);
            }
        }
        ValueKind::Bytes => bytes = number(value.as_bytes().map_or(0, <[u8]>::len)),
        ValueKind::Plain if data => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a namespace can hold data only",
            ));
        }
        _ => {}
    }
    Ok(bytes)
}

/// Charges for reading all of a value once: comparing, printing, searching.
pub(super) fn read(value: &Value) -> Result<u64, Error> {
    let bytes = walk(value)?;
    charge(bytes / 8)?;
    Ok(bytes)
}

/// Charges for going through the members of a value: a string's are its characters.
pub(super) fn iterate(value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => charge(number(text.len()).saturating_mul(LETTER)),
        None => charge(length(value).saturating_mul(HOLD)),
    }
}

/// Charges for `count` values that are made, of `bytes` in all.
pub(super) fn make(count: u64, bytes: u64) -> Result<(), Error> {
    charge(count.saturating_mul(HOLD).saturating_add(bytes))
}

/// A list where a value is a promise of one: a chain of promises would be kept one inside the other.
pub(super) fn settle(value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(HOLD)?;
        items.push(item);
    }
    Ok(Value::from(items))
}
