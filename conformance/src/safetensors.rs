//! A second safetensors reader, on purpose not that of `models`: what checks shares no code with what is checked. It
//! reads small files, recorded references and checkpoints in tests, and writes what was computed for other tools.

use crate::array::{Array, Shared};
use half::{bf16, f16};
use ndarray::{ArrayViewD, IxDyn};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
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
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>, SafetensorsError> {
    let bytes = models::regular::bytes(path, u64::MAX).map_err(|error| SafetensorsError {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    parse(path, &bytes)
}

/// As [`read`], with the file's own metadata.
///
/// # Errors
/// As [`read`].
pub fn read_with_metadata(path: &Path) -> Result<(Metadata, BTreeMap<String, Array>), SafetensorsError> {
    let failed = |problem: String| SafetensorsError {
        path: path.to_owned(),
        problem,
    };
    let bytes = models::regular::bytes(path, u64::MAX).map_err(|error| failed(error.to_string()))?;
    let metadata = metadata_of(&bytes).map_err(failed)?;
    Ok((metadata, tensors_of(&bytes).map_err(failed)?))
}

/// What a file says about itself.
pub type Metadata = BTreeMap<String, String>;

/// The elements of a tensor that is to be written.
#[derive(Debug, Clone)]
pub enum View<'a> {
    /// float32.
    Float(ArrayViewD<'a, f32>),
    /// int64.
    Int(ArrayViewD<'a, i64>),
    /// uint8.
    Bytes(ArrayViewD<'a, u8>),
}

impl View<'_> {
    /// Type, shape and bytes as a header says them.
    fn entry(&self) -> (&'static str, &[usize], usize) {
        match self {
            View::Float(data) => ("F32", data.shape(), data.len() * size_of::<f32>()),
            View::Int(data) => ("I64", data.shape(), data.len() * size_of::<i64>()),
            View::Bytes(data) => ("U8", data.shape(), data.len()),
        }
    }
}

/// Writes tensors, a name and the elements each, in this order; those of eight bytes belong first. A file of that
/// name is replaced in one step, once the new one is whole.
///
/// # Errors
/// A file that cannot be written; one that was there is then as before.
pub fn write(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &[(&str, View<'_>)],
) -> Result<(), SafetensorsError> {
    replace(path, &|file| write_bytes(file, metadata, tensors)).map_err(|error| SafetensorsError {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Fills a file beside `path` and renames it. What is there and no file, such as a pipe, is written to.
fn replace(path: &Path, fill: &dyn Fn(&mut File) -> std::io::Result<()>) -> std::io::Result<()> {
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return fill(&mut File::create(path)?);
    }
    // Where a link leads, so that it stays one.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    #[cfg_attr(not(unix), expect(unused_mut, reason = "permissions are of Unix"))]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
    fill(file.as_file_mut())?;
    file.persist(path)?;
    Ok(())
}

fn write_bytes(
    file: &mut File,
    metadata: &[(&str, &str)],
    tensors: &[(&str, View<'_>)],
) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
    header.insert(METADATA.to_owned(), serde_json::json!(metadata));
    let mut start = 0;
    for (name, view) in tensors {
        let (dtype, shape, bytes) = view.entry();
        let end = start + bytes;
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::io::BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, view) in tensors {
        match view {
            View::Float(data) => data
                .iter()
                .try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
            View::Int(data) => data
                .iter()
                .try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
            View::Bytes(data) => data.iter().try_for_each(|value| file.write_all(&[*value]))?,
        }
    }
    file.flush()
}

/// As [`read`], from the file's contents; `path` names it in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Array>, SafetensorsError> {
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

fn tensors_of(bytes: &[u8]) -> Result<BTreeMap<String, Array>, String> {
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
        let tensor = decode(&entry.dtype, data, &entry.shape).ok_or_else(|| {
            let (dtype, shape, bytes) = (&entry.dtype, &entry.shape, data.len());
            format!("tensor `{name}`: {dtype} {shape:?} in {bytes} bytes")
        })?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The elements of a tensor; none where their number is not that of the shape.
fn decode(dtype: &str, data: &[u8], shape: &[usize]) -> Option<Array> {
    fn elements<const N: usize, T>(
        data: &[u8],
        shape: &[usize],
        from: impl Fn([u8; N]) -> T,
    ) -> Option<Shared<T>> {
        let (chunks, rest) = data.as_chunks::<N>();
        let elements = chunks.iter().map(|&chunk| from(chunk)).collect();
        let array = Shared::from_shape_vec(IxDyn(shape), elements).ok()?;
        rest.is_empty().then_some(array)
    }
    match dtype {
        "F32" => elements(data, shape, f32::from_le_bytes).map(Array::Float),
        "F16" => elements(data, shape, |b| f16::from_le_bytes(b).to_f32()).map(Array::Float),
        "BF16" => elements(data, shape, |b| bf16::from_le_bytes(b).to_f32()).map(Array::Float),
        "I32" => elements(data, shape, |b| i64::from(i32::from_le_bytes(b))).map(Array::Int),
        "I64" => elements(data, shape, i64::from_le_bytes).map(Array::Int),
        "U8" => elements(data, shape, |[b]| i64::from(b)).map(Array::Int),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{aview1, aview2};

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
        assert_eq!(tensors["a"], Array::float(&[2], vec![1.5, -2.0]));
        assert_eq!(tensors["b"], Array::int(&[], vec![7]));
        assert_eq!(tensors["c"], Array::int(&[1], vec![-3]));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = [
            ("ids", View::Int(aview1(&[-1, 1 << 40]).into_dyn())),
            ("values", View::Float(aview2(&[[1.5, -0.0, 3e38]]).into_dyn())),
            ("bytes", View::Bytes(aview1(&[0, 255, 7]).into_dyn())),
        ];
        write(&path, &[("name", "a \"tool\"")], &tensors).unwrap();
        let (metadata, found) = read_with_metadata(&path).unwrap();
        assert_eq!(metadata["name"], "a \"tool\"");
        assert_eq!(found["ids"], Array::int(&[2], vec![-1, 1 << 40]));
        assert_eq!(found["values"], Array::float(&[1, 3], vec![1.5, -0.0, 3e38]));
        assert_eq!(found["bytes"], Array::int(&[3], vec![0, 255, 7]));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) % 8, 0);
        assert!(write(&folder.path().join("no/where"), &[], &tensors).is_err());
    }

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, "before").unwrap();
        let half = |file: &mut File| {
            file.write_all(b"half")?;
            Err(std::io::Error::other("the disk is full"))
        };
        assert!(replace(&path, &half).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        replace(&path, &|file| file.write_all(b"after")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing else stays");
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
