//! Files of torch before 1.6, and of `_use_new_zipfile_serialization=False`: pickles of a magic number, a
//! version, facts of the machine, the object and the keys of its storages, then the storages one after the
//! other.

use super::super::tensor_file::Content;
use super::pickle::{self, Loaded};
use super::values::{Storage, Value};
use super::{place, state};
use std::collections::BTreeMap;
use std::ops::Range;

/// `0x1950a86a20f9469cfc6c`
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// The tensors of a file.
///
/// # Errors
/// A pickle of something else, or a file that is cut short.
pub(super) fn read(bytes: &[u8]) -> Result<Content, String> {
    let mut at = 0;
    let mut next = || -> Result<Loaded<'_>, String> {
        let loaded = pickle::load(bytes.get(at..).unwrap_or_default())?;
        at += loaded.length;
        Ok(loaded)
    };
    let magic = next()?;
    if !matches!(magic.values.get(magic.root), Value::Long(found) if *found == MAGIC) {
        let found = magic.values.get(magic.root).kind();
        return Err(format!(
            "is a pickle of {found} and not a file of `torch.save`, which begins with torch's magic number"
        ));
    }
    let version = next()?;
    if !matches!(version.values.get(version.root), Value::Int(VERSION)) {
        return Err(format!(
            "is of another version of torch's old form, expected {VERSION}"
        ));
    }
    check_machine(&next()?)?;
    let object = next()?;
    let keys = next()?;
    let places = storages(bytes, at, &object, &keys)?;
    let find = |storage: &Storage<'_>| {
        let found = places.get(storage.key).cloned();
        found.ok_or_else(|| format!("has storage `{}`, which the file does not list", storage.key))
    };
    place::place(state::read(&object)?, bytes.len(), &find)
}

/// The order of bytes is the one fact of the machine that matters: types say their sizes.
fn check_machine(facts: &Loaded<'_>) -> Result<(), String> {
    let Value::Dict(entries) = facts.values.get(facts.root) else {
        return Err("does not say of what machine it is, expected a dict".to_owned());
    };
    let little = entries
        .iter()
        .find(|(key, _)| facts.values.text(*key) == Some("little_endian"))
        .map(|(_, value)| facts.values.get(*value));
    match little {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(
            "has its numbers in big-endian order, expected little-endian: load it with torch and save it again on a \
             little-endian machine"
                .to_owned(),
        ),
        _ => Err("does not say whether its numbers are little-endian".to_owned()),
    }
}

/// Where the storages lie: each is a number of elements and the elements, in the order of the keys.
fn storages<'a>(
    bytes: &[u8],
    mut at: usize,
    object: &Loaded<'a>,
    keys: &Loaded<'a>,
) -> Result<BTreeMap<&'a str, Range<usize>>, String> {
    let mut described: BTreeMap<&str, Storage<'_>> = BTreeMap::new();
    for value in object.values.all() {
        if let Value::Storage(storage) = value {
            let known = described.entry(storage.key).or_insert(*storage);
            if (known.kind, known.elements) != (storage.kind, storage.elements) {
                let key = storage.key;
                return Err(format!("has storage `{key}` with two types or lengths"));
            }
        }
    }
    let Value::List(keys_in_order) = keys.values.get(keys.root) else {
        return Err("does not list its storages".to_owned());
    };
    let mut places = BTreeMap::new();
    for key in keys_in_order {
        let key = keys
            .values
            .text(*key)
            .ok_or("lists a storage whose key is no text")?;
        let storage = described
            .get(key)
            .ok_or_else(|| format!("lists storage `{key}`, which no tensor has"))?;
        let whole = || format!("ends within storage `{key}`: truncated?");
        let count = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .ok_or_else(whole)?;
        let count = u64::from_le_bytes(*count);
        if count != storage.elements {
            let said = storage.elements;
            return Err(format!(
                "has storage `{key}` of {said} elements, its data has {count}"
            ));
        }
        let start = at + 8;
        let end = start.checked_add(place::length(storage)?);
        let end = end.filter(|end| *end <= bytes.len()).ok_or_else(whole)?;
        if places.insert(key, start..end).is_some() {
            return Err(format!("lists storage `{key}` twice"));
        }
        at = end;
    }
    if at != bytes.len() {
        return Err(format!("has {} bytes after its last storage", bytes.len() - at));
    }
    Ok(places)
}
