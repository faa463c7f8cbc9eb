//! `safetensors`: one file of tensors, read as `fvlm-export --calibration` reads it.
//!
//! What is accepted, a reader of another kind finds whole: tensors tile the data, each as long as its shape.

use crate::folder::Folder;
use crate::words;
use models::checkpoint::Statistics;
use serde_json::Value;
use std::cell::OnceCell;

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// The first byte says whether the rest is a file, or a header whose length and data are added.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let file = if kind % 4 == 0 {
        rest.to_vec()
    } else {
        let Some((length, header)) = rest.split_first_chunk::<2>() else {
            return;
        };
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.resize(file.len() + usize::from(u16::from_le_bytes(*length)), *kind);
        file
    };
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| Folder::new("safetensors"));
        let path = folder.put("s.safetensors", Some(&file));
        match Statistics::open(&path) {
            Ok(statistics) => {
                assert!(whole(&file), "accepted, and not whole");
                for error in [
                    statistics.fingerprint().err(),
                    statistics.moments("w", 0, 2).err(),
                    statistics.moments("w", 1, 513).err(),
                    statistics.peaks("w", 3).err(),
                ] {
                    error
                        .iter()
                        .for_each(|error| words::check(&error.to_string(), &file));
                }
            }
            Err(error) => words::check(&error.to_string(), &file),
        }
    });
}

/// Whether the tensors that the header names tile the data.
fn whole(file: &[u8]) -> bool {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return false;
    };
    let length = u64::from_le_bytes(*length) as usize;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return false;
    };
    let Ok(Value::Object(header)) = serde_json::from_slice(header) else {
        return false;
    };
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let places = tensors.map(|(_, tensor)| place(tensor));
    let Some(mut places) = places.collect::<Option<Vec<(u64, u64)>>>() else {
        return false;
    };
    places.sort_unstable();
    let end = places
        .iter()
        .try_fold(0, |at, (start, end)| (at == *start).then_some(*end));
    end == Some(data.len() as u64)
}

/// Where a tensor lies, if it is as long as its shape and type say.
fn place(tensor: &Value) -> Option<(u64, u64)> {
    let bits = match tensor["dtype"].as_str()? {
        "F64" | "I64" | "U64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "F6_E2M3" | "F6_E3M2" => 6,
        "F4" => 4,
        "BOOL" | "I8" | "U8" => 8,
        name if name.starts_with("F8_") => 8,
        _ => return None,
    };
    let shape = tensor["shape"].as_array()?;
    let shape: Vec<u64> = shape.iter().map(Value::as_u64).collect::<Option<_>>()?;
    // Of nothing there is nothing, however long its other sides are.
    let bits = if shape.contains(&0) {
        Some(0)
    } else {
        shape
            .iter()
            .try_fold(bits, |bits: u64, side| bits.checked_mul(*side))
    }?;
    let offsets = tensor["data_offsets"].as_array()?;
    let [start, end] = offsets.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()?[..] else {
        return None;
    };
    (end.checked_sub(start)? == bits / 8 && bits % 8 == 0).then_some((start, end))
}
