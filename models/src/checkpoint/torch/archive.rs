//! torch's zip archives: `NAME/data.pkl`, a pickle, and `NAME/data/KEY`, a storage each, stored as they are.

use super::super::tensor_file::Content;
use super::pickle::{self, MAX_PICKLE};
use super::values::Storage;
use super::{place, state};
use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most files in an archive.
const MAX_ENTRIES: usize = 1 << 20;
/// How far from its end the end of an archive's directory is looked for: a comment has no more.
const MAX_COMMENT: u64 = 1 << 16;

/// A file in the archive.
struct Entry {
    bytes: Range<usize>,
    /// Why its bytes are not what it holds, if they are not.
    packed: Option<&'static str>,
}

type Entries = BTreeMap<Vec<u8>, Entry>;

/// The tensors of an archive.
///
/// # Errors
/// An archive that is cut short or ambiguous, or is not one of `torch.save`.
pub(super) fn read(bytes: &[u8]) -> Result<Content, String> {
    let entries = entries(bytes)?;
    let root = root(&entries)?;
    let named = |name: &str| [root, b"/", name.as_bytes()].concat();
    check_order(bytes, &entries, &named("byteorder"))?;
    let range = whole(&entries, &named("data.pkl"))?;
    let pickled = bytes.get(range).unwrap_or_default();
    if pickled.len() > MAX_PICKLE {
        let length = pickled.len();
        return Err(format!(
            "has a pickle of {length} bytes, at most {MAX_PICKLE} are read"
        ));
    }
    let loaded = pickle::load(pickled)?;
    if loaded.length != pickled.len() {
        let more = pickled.len() - loaded.length;
        return Err(format!("has {more} bytes after the end of its pickle"));
    }
    let find = |storage: &Storage<'_>| {
        let range = whole(&entries, &named(&format!("data/{}", storage.key)))?;
        let (expected, found) = (place::length(storage)?, range.len());
        if expected != found {
            let key = storage.key;
            return Err(format!(
                "has storage `{key}` of {expected} bytes, its file has {found}"
            ));
        }
        Ok(range)
    };
    place::place(state::read(&loaded)?, bytes.len(), &find)
}

/// Where a file lies whose bytes are what it holds.
fn whole(entries: &Entries, name: &[u8]) -> Result<Range<usize>, String> {
    let missing = || format!("has no file `{}` in its archive: truncated?", shown(name));
    let entry = entries.get(name).ok_or_else(missing)?;
    match entry.packed {
        Some(how) => Err(format!(
            "has the file `{}` {how} in its archive, expected it stored as `torch.save` stores it",
            shown(name)
        )),
        None => Ok(entry.bytes.clone()),
    }
}

/// The archive's files by name: no two of one name, none over another.
fn entries(bytes: &[u8]) -> Result<Entries, String> {
    let broken = |error: rawzip::Error| format!("is not a whole zip archive: {error}: truncated?");
    let locator = ZipArchive::with_max_search_space(MAX_COMMENT);
    let archive = locator
        .locate_in_slice(bytes)
        .map_err(|(_, error)| broken(error))?;
    if place_of(archive.end_offset()) != bytes.len() {
        return Err("has bytes after the end of its zip archive".to_owned());
    }
    let mut entries = Entries::new();
    let mut spans = Vec::new();
    for header in archive.entries() {
        let header = header.map_err(broken)?;
        if entries.len() == MAX_ENTRIES {
            return Err(format!("has more than {MAX_ENTRIES} files in its archive"));
        }
        let name = header.file_path().as_bytes().to_vec();
        let found = archive.get_entry(header.wayfinder()).map_err(broken)?;
        let (start, end) = found.compressed_data_range();
        let entry = Entry {
            bytes: place_of(start)..place_of(end),
            packed: packed(&header),
        };
        spans.push((
            place_of(header.local_header_offset()),
            entry.bytes.end,
            name.clone(),
        ));
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("has the file `{}` twice in its archive", shown(&name)));
        }
    }
    if archive.entries_hint() != u64::try_from(entries.len()).unwrap_or(u64::MAX) {
        let (said, found) = (archive.entries_hint(), entries.len());
        return Err(format!(
            "has a zip archive of {found} files that says it has {said}"
        ));
    }
    spans.sort();
    let mut free = 0;
    for (start, end, name) in &spans {
        if *start < free {
            return Err(format!(
                "has the file `{}` over another in its archive",
                shown(name)
            ));
        }
        free = *end;
    }
    if free > place_of(archive.directory_offset()) {
        return Err("has files over the directory of its archive".to_owned());
    }
    Ok(entries)
}

fn place_of(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn shown(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// Why a file's bytes are not what it holds, if they are not.
fn packed(header: &ZipFileHeaderRecord<'_>) -> Option<&'static str> {
    if header.flags().is_encrypted() {
        Some("encrypted")
    } else if header.compression_method() != CompressionMethod::STORE {
        Some("compressed")
    } else if header.uncompressed_size_hint() != header.compressed_size_hint() {
        Some("with two different lengths")
    } else {
        None
    }
}

/// The directory that all of it lies in: that of the one `data.pkl`.
fn root(entries: &Entries) -> Result<&[u8], String> {
    let top = |name: &'_ [u8], file: &[u8]| {
        let root = name.strip_suffix(file).and_then(|root| root.strip_suffix(b"/"));
        root.is_some_and(|root| !root.contains(&b'/'))
    };
    if entries.keys().any(|name| top(name, b"constants.pkl")) {
        let what = "is a program of TorchScript (it has `constants.pkl`)";
        return Err(format!(
            "{what}, expected tensors by name: save the model's `state_dict()`"
        ));
    }
    let mut found = entries.keys().filter(|name| top(name, b"data.pkl"));
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name.strip_suffix(b"/data.pkl").unwrap_or_default()),
        (None, _) => Err("is a zip archive without `data.pkl`, expected one of `torch.save`".to_owned()),
        (Some(_), Some(_)) => Err("is a zip archive with more than one `data.pkl`".to_owned()),
    }
}

/// Files of the oldest archives do not say the order of bytes; it is that of every machine that wrote them.
fn check_order(bytes: &[u8], entries: &Entries, name: &[u8]) -> Result<(), String> {
    if !entries.contains_key(name) {
        return Ok(());
    }
    match bytes.get(whole(entries, name)?).unwrap_or_default() {
        b"little" => Ok(()),
        b"big" => Err("has its numbers in big-endian order, expected little-endian: load it with torch and save it again \
                       on a little-endian machine"
            .to_owned()),
        _ => Err(format!("has a file `{}` that says neither `little` nor `big`", shown(name))),
    }
}
