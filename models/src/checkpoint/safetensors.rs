//! The header of a safetensors file, which is not believed until it has been checked.
//!
//! Format: 8 bytes little-endian header length, the header (a JSON object: name -> dtype, shape,
//! data_offsets), the data.

#![deny(clippy::as_conversions)]

use super::tensor_file::{Content, MAX_RANK, Place, StoredTensor, StoredType};
use crate::dtype::DType;
use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

/// Longest header that is read; the safetensors library's own limit.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// Most tensors of a file.
pub(super) const MAX_TENSORS: usize = 1 << 20;

impl StoredType {
    /// The type of that name in a header.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => StoredType::Float(DType::Float32),
            "F16" => StoredType::Float(DType::Float16),
            "BF16" => StoredType::Float(DType::BFloat16),
            "F64" => StoredType::Other("F64", 64),
            "I64" => StoredType::Other("I64", 64),
            "U64" => StoredType::Other("U64", 64),
            "I32" => StoredType::Other("I32", 32),
            "U32" => StoredType::Other("U32", 32),
            "I16" => StoredType::Other("I16", 16),
            "U16" => StoredType::Other("U16", 16),
            "I8" => StoredType::Other("I8", 8),
            "U8" => StoredType::Other("U8", 8),
            "BOOL" => StoredType::Other("BOOL", 8),
            "F8_E4M3" => StoredType::Other("F8_E4M3", 8),
            "F8_E5M2" => StoredType::Other("F8_E5M2", 8),
            "F8_E8M0" => StoredType::Other("F8_E8M0", 8),
            "F8_E4M3FNUZ" => StoredType::Other("F8_E4M3FNUZ", 8),
            "F8_E5M2FNUZ" => StoredType::Other("F8_E5M2FNUZ", 8),
            "F6_E2M3" => StoredType::Other("F6_E2M3", 6),
            "F6_E3M2" => StoredType::Other("F6_E3M2", 6),
            "F4" => StoredType::Other("F4", 4),
            "C64" => StoredType::Other("C64", 64),
            _ => return None,
        })
    }
}

/// One entry of the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's entries in file order, `__metadata__` left out; a name that stands twice is kept twice.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let entry = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// How files begin that are called `.safetensors` and are something else. As the length of a header each would
/// be far beyond [`MAX_HEADER`].
const FOREIGN: [(&[u8], &str); 5] = [
    (
        b"PK\x03\x04",
        "a zip archive, as PyTorch writes weights: it is read under the name `pytorch_model.bin`",
    ),
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF",
        "a pickle, as old PyTorch writes weights: it is read under the name `pytorch_model.bin`",
    ),
    (
        b"GGUF",
        "a GGUF file, which llama.cpp reads: use the original checkpoint",
    ),
    (b"<!DOCTYP", "a web page: it was not downloaded as a file"),
    (b"<!doctyp", "a web page: it was not downloaded as a file"),
];

/// The only function that believes a file: checks everything that is used later.
pub(super) fn validate(bytes: &[u8]) -> Result<Content, String> {
    let file_length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if bytes.starts_with(b"version https://git-lfs") {
        return Err("is a pointer of Git LFS instead of weights: `git lfs pull` brings them".to_owned());
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(format!("is not a safetensors file but {what}"));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{file_length} bytes, a safetensors file has at least 8"));
    };
    let header_length = u64::from_le_bytes(*length);
    if header_length > MAX_HEADER {
        return Err(format!(
            "declares a header of {header_length} bytes, at most {MAX_HEADER} are read"
        ));
    }
    let header_end = usize::try_from(header_length).unwrap_or(usize::MAX);
    let (Some(header), Some(data)) = (rest.get(..header_end), rest.get(header_end..)) else {
        return Err(format!(
            "declares a header of {header_length} bytes, the file has {file_length}: truncated?"
        ));
    };
    // All of it: of what it passes over, the parser does not look at bytes.
    let header =
        std::str::from_utf8(header).map_err(|error| format!("the header is not text in UTF-8: {error}"))?;
    let Header(entries) = serde_json::from_str(header)
        .map_err(|error| format!("the header is not a JSON object of tensors: {error}"))?;

    let data_length = u64::try_from(data.len()).unwrap_or(u64::MAX);
    let offset = bytes.len() - data.len();
    let mut names = std::collections::BTreeSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if !names.insert(name.clone()) {
            return Err(format!("tensor `{name}` stands twice in the header"));
        }
        tensors.push(tensor(name, &entry, data_length, offset)?);
    }
    tensors.sort_by(|a, b| (a.start(), end(a), &a.name).cmp(&(b.start(), end(b), &b.name)));
    let mut expected = offset;
    for tensor in &tensors {
        if tensor.start() != expected {
            let what = if tensor.start() < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(format!("tensor `{}` {what}", tensor.name));
        }
        expected = end(tensor);
    }
    if expected != bytes.len() {
        let extra = bytes.len() - expected;
        return Err(format!("{extra} bytes after the last tensor"));
    }
    Ok(Content {
        tensors,
        skipped: Vec::new(),
    })
}

/// Where a tensor's data ends.
fn end(tensor: &StoredTensor) -> usize {
    match &tensor.place {
        Place::Whole(range) => range.end,
        Place::Strided { start, .. } => *start,
    }
}

fn tensor(name: String, entry: &Entry, data_length: u64, offset: usize) -> Result<StoredTensor, String> {
    let dtype = StoredType::parse(&entry.dtype).ok_or_else(|| {
        format!(
            "tensor `{name}` has dtype `{}`, which the format does not know",
            entry.dtype
        )
    })?;
    if entry.shape.len() > MAX_RANK {
        return Err(format!(
            "tensor `{name}` has {} dimensions, at most {MAX_RANK} are read",
            entry.shape.len()
        ));
    }
    let bits = entry
        .shape
        .iter()
        .try_fold(dtype.bits(), |product, &n| product.checked_mul(n))
        .ok_or_else(|| format!("tensor `{name}` has shape {:?}, which overflows", entry.shape))?;
    if bits % 8 != 0 {
        return Err(format!(
            "tensor `{name}` of shape {:?} takes {bits} bits as {}, expected whole bytes",
            entry.shape, entry.dtype
        ));
    }
    let bytes = bits / 8;
    let [start, end] = entry.data_offsets;
    if start > end {
        return Err(format!("tensor `{name}` begins at {start} and ends at {end}"));
    }
    if end - start != bytes {
        return Err(format!(
            "tensor `{name}` has {} bytes, {} of shape {:?} take {bytes}",
            end - start,
            entry.dtype,
            entry.shape
        ));
    }
    if end > data_length {
        return Err(format!(
            "tensor `{name}` ends at byte {end} of the data, the file has {data_length}: truncated?"
        ));
    }
    let place = |at: u64| usize::try_from(at).ok().and_then(|at| at.checked_add(offset));
    match (place(start), place(end)) {
        (Some(start), Some(end)) => Ok(StoredTensor {
            name,
            dtype,
            shape: entry.shape.clone(),
            place: Place::Whole(start..end),
        }),
        _ => Err(format!(
            "tensor `{name}` lies beyond what this machine can address"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    }

    #[test]
    fn a_good_header() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        let tensors = validate(&file(header, 16)).unwrap().tensors;
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(tensors[1].dtype, StoredType::Float(DType::BFloat16));
    }

    #[test]
    fn attacks_are_refused() {
        let one = |body: &str| format!(r#"{{"a":{body}}}"#);
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty file", vec![], "0 bytes, a safetensors file has at least 8"),
            ("seven bytes", vec![0; 7], "7 bytes"),
            (
                "huge header",
                u64::MAX.to_le_bytes().to_vec(),
                "at most 100000000 are read",
            ),
            (
                "header beyond the file",
                90u64.to_le_bytes().to_vec(),
                "truncated?",
            ),
            ("not JSON", file("{", 0), "not a JSON object"),
            ("not an object", file("[]", 0), "not a JSON object"),
            (
                "bytes that are no text where nobody reads",
                [&[20, 0, 0, 0, 0, 0, 0, 0][..], b"{\"__metadata__\":\"\x8c\"}"].concat(),
                "not text in UTF-8",
            ),
            (
                "deep JSON",
                file(&format!(r#"{{"a":{}}}"#, "[".repeat(100_000)), 0),
                "not a JSON object",
            ),
            (
                "same name twice",
                file(
                    r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                ),
                "stands twice",
            ),
            (
                "missing field",
                file(&one(r#"{"dtype":"F32","shape":[1]}"#), 4),
                "tensor `a`: missing field",
            ),
            (
                "negative dimension",
                file(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4),
                "tensor `a`: invalid value",
            ),
            (
                "unknown dtype",
                file(&one(r#"{"dtype":"F12","shape":[1],"data_offsets":[0,4]}"#), 4),
                "dtype `F12`",
            ),
            (
                "overflowing shape",
                file(
                    &one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}"#),
                    4,
                ),
                "overflows",
            ),
            (
                "many dimensions",
                file(
                    &one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#),
                    4,
                ),
                "9 dimensions",
            ),
            (
                "reversed offsets",
                file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4),
                "begins at 4 and ends at 0",
            ),
            (
                "lying size",
                file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4),
                "has 4 bytes, F32 of shape [2] take 8",
            ),
            (
                "zip",
                b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl".to_vec(),
                "a zip archive, as PyTorch writes",
            ),
            ("gguf", b"GGUF\x03\0\0\0\x01\0\0\0".to_vec(), "a GGUF file"),
            ("page", b"<!DOCTYPE html><html>".to_vec(), "a web page"),
            (
                "half a byte",
                file(&one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#), 2),
                "takes 12 bits as F4, expected whole bytes",
            ),
            (
                "unknown type",
                file(&one(r#"{"dtype":"F3","shape":[8],"data_offsets":[0,3]}"#), 3),
                "has dtype `F3`, which the format does not know",
            ),
            (
                "beyond the data",
                file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 4),
                "truncated?",
            ),
            (
                "overlap",
                file(
                    r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                    6,
                ),
                "tensor `b` overlaps",
            ),
            (
                "gap",
                file(
                    r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
                    12,
                ),
                "tensor `b` leaves a gap",
            ),
            (
                "bytes after the end",
                file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 9),
                "5 bytes after the last tensor",
            ),
        ];
        let mut failures = Vec::new();
        for (name, bytes, expected) in cases {
            match validate(&bytes) {
                Err(problem) if problem.contains(expected) => {}
                other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
