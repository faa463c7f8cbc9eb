//! Reads the tensors of a small safetensors file: recorded references, and checkpoints in tests; and writes what was
//! computed for other tools. On purpose not the reader of `models`: what checks should not share code with what is checked.

use crate::tensor::{Data, Tensor};
use half::{bf16, f16};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longest header that is believed.
const HEADER_LIMIT: u64 = 100 << 20;

/// A file that cannot be read as safetensors.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct SafetensorsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Reads every tensor; real ones become float32.
///
/// # Errors
/// A file that is missing, cut short, or says something about itself that is not so.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, SafetensorsError> {
    let bytes = std::fs::read(path).map_err(|error| SafetensorsError {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    parse(path, &bytes)
}

/// As [`read`], with the file's own metadata.
///
/// # Errors
/// As [`read`].
pub fn read_with_metadata(path: &Path) -> Result<(Metadata, BTreeMap<String, Tensor>), SafetensorsError> {
    let failed = |problem: String| SafetensorsError {
        path: path.to_owned(),
        problem,
    };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let metadata = metadata_of(&bytes).map_err(failed)?;
    Ok((metadata, tensors_of(&bytes).map_err(failed)?))
}

/// What a file says about itself.
pub type Metadata = BTreeMap<String, String>;

/// The elements of a tensor that is to be written.
#[derive(Debug, Clone, Copy)]
pub enum Array<'a> {
    /// float32.
    Float(&'a [f32]),
    /// int64.
    Int(&'a [i64]),
}

impl Array<'_> {
    const fn dtype(&self) -> &'static str {
        match self {
            Array::Float(_) => "F32",
            Array::Int(_) => "I64",
        }
    }

    const fn bytes(&self) -> usize {
        match self {
            Array::Float(data) => size_of_val(*data),
            Array::Int(data) => size_of_val(*data),
        }
    }
}

/// Writes tensors, a name, a shape and the elements each, in this order; those of eight bytes belong first.
///
/// # Errors
/// A file that cannot be written.
pub fn write(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &[(&str, Vec<usize>, Array<'_>)],
) -> Result<(), SafetensorsError> {
    write_bytes(path, metadata, tensors).map_err(|error| SafetensorsError {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn write_bytes(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &[(&str, Vec<usize>, Array<'_>)],
) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
    header.insert(METADATA.to_owned(), serde_json::json!(metadata));
    let mut start = 0;
    for (name, shape, array) in tensors {
        let end = start + array.bytes();
        let entry = serde_json::json!({"dtype": array.dtype(), "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, _, array) in tensors {
        match array {
            Array::Float(data) => data
                .iter()
                .try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
            Array::Int(data) => data
                .iter()
                .try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
        }
    }
    file.flush()
}

/// As [`read`], from the file's contents; `path` names it in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, SafetensorsError> {
    tensors_of(bytes).map_err(|problem| SafetensorsError {
        path: path.to_owned(),
        problem,
    })
}

/// The name in a header under which there is no tensor.
const METADATA: &str = "__metadata__";

/// A header's entries, and the bytes after it.
type Split<'a> = (BTreeMap<String, serde_json::Value>, &'a [u8]);

fn split(bytes: &[u8]) -> Result<Split<'_>, String> {
    let (prefix, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than 8 bytes")?;
    let length = u64::from_le_bytes(*prefix);
    let (header, data) = usize::try_from(length)
        .ok()
        .filter(|_| length <= HEADER_LIMIT)
        .and_then(|length| rest.split_at_checked(length))
        .ok_or_else(|| format!("a header of {length} bytes does not fit"))?;
    let entries =
        serde_json::from_slice(header).map_err(|error| format!("the header is not JSON: {error}"))?;
    Ok((entries, data))
}

fn metadata_of(bytes: &[u8]) -> Result<Metadata, String> {
    let (mut entries, _) = split(bytes)?;
    let Some(metadata) = entries.remove(METADATA) else {
        return Ok(Metadata::new());
    };
    serde_json::from_value(metadata).map_err(|error| format!("`{METADATA}`: {error}"))
}

fn tensors_of(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let (entries, bytes) = split(bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        if name == METADATA {
            continue;
        }
        let entry: Entry =
            serde_json::from_value(entry).map_err(|error| format!("tensor `{name}`: {error}"))?;
        let [start, end] = entry.data_offsets;
        let data = bytes
            .get(start..end)
            .ok_or_else(|| format!("tensor `{name}` lies outside the file"))?;
        let count = entry
            .shape
            .iter()
            .try_fold(1_usize, |product, &n| product.checked_mul(n));
        let tensor = decode(&entry.dtype, data, &entry.shape)
            .filter(|tensor| count == Some(tensor.len()))
            .ok_or_else(|| {
                format!(
                    "tensor `{name}`: {} {:?} in {} bytes",
                    entry.dtype,
                    entry.shape,
                    data.len()
                )
            })?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn decode(dtype: &str, data: &[u8], shape: &[usize]) -> Option<Tensor> {
    fn elements<const N: usize, T>(data: &[u8], from: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let (chunks, rest) = data.as_chunks::<N>();
        rest.is_empty()
            .then(|| chunks.iter().map(|&chunk| from(chunk)).collect())
    }
    let float = |data: Vec<f32>| Tensor {
        shape: shape.to_vec(),
        data: Data::Float(data),
    };
    let int = |data: Vec<i64>| Tensor {
        shape: shape.to_vec(),
        data: Data::Int(data),
    };
    match dtype {
        "F32" => elements(data, f32::from_le_bytes).map(float),
        "F16" => elements(data, |b| f16::from_le_bytes(b).to_f32()).map(float),
        "BF16" => elements(data, |b| bf16::from_le_bytes(b).to_f32()).map(float),
        "I32" => elements(data, |b| i64::from(i32::from_le_bytes(b))).map(int),
        "I64" => elements(data, i64::from_le_bytes).map(int),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn tensors_come_back() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                         "b":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
                         "c":{"dtype":"I32","shape":[1],"data_offsets":[16,20]}}"#;
        let mut data = Vec::new();
        data.extend(1.5_f32.to_le_bytes());
        data.extend((-2.0_f32).to_le_bytes());
        data.extend(7_i64.to_le_bytes());
        data.extend((-3_i32).to_le_bytes());
        let tensors = tensors_of(&file(header, &data)).unwrap();
        assert_eq!(tensors["a"], Tensor::float(&[2], vec![1.5, -2.0]));
        assert_eq!(tensors["b"], Tensor::int(&[], vec![7]));
        assert_eq!(tensors["c"], Tensor::int(&[1], vec![-3]));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = [
            ("ids", vec![2], Array::Int(&[-1, 1 << 40])),
            ("values", vec![1, 3], Array::Float(&[1.5, -0.0, 3e38])),
        ];
        write(&path, &[("name", "a \"tool\"")], &tensors).unwrap();
        let (metadata, found) = read_with_metadata(&path).unwrap();
        assert_eq!(metadata["name"], "a \"tool\"");
        assert_eq!(found["ids"], Tensor::int(&[2], vec![-1, 1 << 40]));
        assert_eq!(found["values"], Tensor::float(&[1, 3], vec![1.5, -0.0, 3e38]));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        assert!(write(&folder.path().join("no/where"), &[], &tensors).is_err());
    }

    #[test]
    fn lies_are_refused() {
        for (header, data, expected) in [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                4,
                "outside the file",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                8,
                "in 8 bytes",
            ),
            (
                r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
                8,
                "F99",
            ),
            ("[]", 0, "not JSON"),
        ] {
            let problem = tensors_of(&file(header, &vec![0; data])).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(tensors_of(&[255; 12]).unwrap_err().contains("does not fit"));
    }
}
