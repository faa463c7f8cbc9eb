//! What `torch.save` wrote (`pytorch_model.bin`, `*.pth`), read without executing anything: a zip archive, or
//! in files of torch before 1.6 pickles and storages one after the other.
//!
//! A pickle is a program for a machine with a stack. The machine here has a closed list of operations and of
//! names, holds a bounded number of values, and makes of them nothing but tensors, which stay in the mapped
//! file.

#![deny(clippy::as_conversions)]

mod archive;
mod globals;
mod legacy;
mod pickle;
mod place;
mod rebuild;
mod state;
#[cfg(test)]
mod tests;
mod values;
#[cfg(test)]
pub(super) mod write;

use super::safetensors::MAX_HEADER;
use super::tensor_file::Content;

/// Whether the bytes are for [`validate`]: a zip archive, a pickle, or torch's oldest form, a tar archive.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK") || is_pickle(bytes) || is_tar(bytes)
}

/// Reads what a file says and checks everything that is used later.
///
/// # Errors
/// One sentence that names what was found and what was expected.
pub(super) fn validate(bytes: &[u8]) -> Result<Content, String> {
    let content = validate_any(bytes)?;
    if content.tensors.is_empty() {
        return Err(state::empty(&content.skipped));
    }
    Ok(content)
}

/// The same of a file that may be an empty dict.
///
/// # Errors
/// As [`validate`].
pub(super) fn validate_any(bytes: &[u8]) -> Result<Content, String> {
    if bytes.starts_with(b"PK") {
        archive::read(bytes)
    } else if is_tar(bytes) {
        let what = "is a tar archive, as torch before 0.1.10 wrote";
        Err(format!(
            "{what}: load it with torch and save it again with `torch.save(state_dict, path)`"
        ))
    } else {
        legacy::read(bytes)
    }
}

/// Whether the bytes begin as a pickle of a protocol that says its number, and not as the length of the
/// header of a safetensors file.
fn is_pickle(bytes: &[u8]) -> bool {
    let pickled = matches!(bytes, [0x80, 2..=5, ..]);
    let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    pickled && length.is_none_or(|length| length > MAX_HEADER)
}

fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar") && bytes.get(8) != Some(&b'{')
}
