//! Where do a package's weights lie? In `weights/weight.bin`, each behind a record of 64 bytes that says what it is.
//!
//! The layout is that of coremltools 9.0 (`mlmodel/src/MILBlob/Blob/StorageFormat.hpp`, version 2), all numbers little-endian:
//!
//! | bytes | file header | record, at a multiple of 64 |
//! |---|---|---|
//! | 0..4 | u32: records | u32: 0xDEADBEEF |
//! | 4..8 | u32: 2, the version | u32: element type |
//! | 8..16 | 0 | u64: bytes of the data |
//! | 16..24 | 0 | u64: offset of the data, 64 behind the record |
//! | 24..64 | 0 | 0 |
//!
//! Functions of one package, and what two of them read, share a record.

#![deny(clippy::as_conversions)]

use super::proto::DataType;
use crate::error::ExportError;
use crate::onnx::external::{DataFile, Tensor};
use models::dtype::DType;
use models::graph::WeightRef;
use std::collections::BTreeMap;

/// Bytes of a header and of a record, and what records are aligned to.
const UNIT: u64 = 64;

/// Marks a record.
const SENTINEL: u32 = 0xDEAD_BEEF;

/// The version of the layout.
const VERSION: u32 = 2;

/// The weights of a package, each with its place.
#[derive(Debug, Default)]
pub struct Blob {
    tensors: Vec<Tensor>,
    /// Bytes between the last tensor and the next: records, and literals with theirs.
    gap: Vec<u8>,
    /// Where the next record may begin.
    end: u64,
    records: u32,
    weights: BTreeMap<(WeightRef, DType), u64>,
    literals: BTreeMap<(DType, Vec<u8>), u64>,
}

impl Blob {
    /// Gives a weight a place, if it has none; `dtype` is what the writer makes of its elements, `kind` what Core ML
    /// calls them.
    pub fn weight(&mut self, weight: &WeightRef, dtype: DType, kind: DataType, bytes: u64) {
        let key = (weight.clone(), dtype);
        if self.weights.contains_key(&key) {
            return;
        }
        let record = self.record(kind, bytes);
        self.weights.insert(key, record);
        self.tensors.push(Tensor {
            weight: weight.clone(),
            dtype,
            offset: record + UNIT,
            bytes,
            before: std::mem::take(&mut self.gap),
        });
        self.end = record + UNIT + bytes;
    }

    /// Gives a literal a place, if it has none.
    pub fn literal(&mut self, dtype: DType, kind: DataType, bytes: &[u8]) {
        let key = (dtype, bytes.to_vec());
        if self.literals.contains_key(&key) {
            return;
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let record = self.record(kind, length);
        self.literals.insert(key, record);
        self.gap.extend(bytes);
        self.end = record + UNIT + length;
    }

    /// Where the record of a weight begins.
    ///
    /// # Errors
    /// A weight that was not placed.
    pub fn weight_record(&self, weight: &WeightRef, dtype: DType) -> Result<u64, ExportError> {
        let record = self.weights.get(&(weight.clone(), dtype)).copied();
        record.ok_or_else(|| ExportError::Internal {
            what: format!("weight `{}` was not placed", weight.name),
        })
    }

    /// Where the elements of a weight begin: behind its record.
    ///
    /// # Errors
    /// A weight that was not placed.
    pub fn weight_data(&self, weight: &WeightRef, dtype: DType) -> Result<u64, ExportError> {
        Ok(self.weight_record(weight, dtype)? + UNIT)
    }

    /// Where the record of a literal begins.
    ///
    /// # Errors
    /// A literal that was not placed.
    pub fn literal_record(&self, dtype: DType, bytes: &[u8]) -> Result<u64, ExportError> {
        let record = self.literals.get(&(dtype, bytes.to_vec())).copied();
        record.ok_or_else(|| ExportError::Internal {
            what: format!("a {dtype} literal of {} bytes was not placed", bytes.len()),
        })
    }

    /// The file, once everything has its place. What was placed last must be a weight.
    ///
    /// # Errors
    /// A package without weights.
    pub fn file(&self, name: &str) -> Result<DataFile, ExportError> {
        let mut tensors = self.tensors.clone();
        let header = tensors.first_mut().and_then(|first| first.before.get_mut(..4));
        let Some(header) = header.filter(|_| self.gap.is_empty()) else {
            let what = format!("`{name}` does not end with a weight");
            return Err(ExportError::Internal { what });
        };
        header.copy_from_slice(&self.records.to_le_bytes());
        Ok(DataFile {
            name: name.to_owned(),
            length: self.end,
            tensors,
        })
    }

    /// Adds a record for data of this length, and returns where it begins.
    fn record(&mut self, kind: DataType, bytes: u64) -> u64 {
        if self.end == 0 {
            self.gap.extend(0_u32.to_le_bytes());
            self.gap.extend(VERSION.to_le_bytes());
            self.pad(UNIT);
            self.end = UNIT;
        }
        let begin = self.end.next_multiple_of(UNIT);
        let padding = begin - self.end;
        self.gap.extend((0..padding).map(|_| 0));
        self.gap.extend(SENTINEL.to_le_bytes());
        self.gap.extend(code(kind).to_le_bytes());
        self.gap.extend(bytes.to_le_bytes());
        self.gap.extend((begin + UNIT).to_le_bytes());
        self.pad(UNIT - 24 + self.length());
        self.records += 1;
        begin
    }

    fn length(&self) -> u64 {
        u64::try_from(self.gap.len()).unwrap_or(u64::MAX)
    }

    /// Fills the gap up to this length.
    fn pad(&mut self, length: u64) {
        self.gap.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
    }
}

/// The number of an element type in a record.
const fn code(kind: DataType) -> u32 {
    match kind {
        DataType::Float16 => 1,
        DataType::Float32 => 2,
        DataType::Int8 => 4,
        DataType::Int4 => 8,
        // No weight has one of these.
        DataType::Unused | DataType::Bool | DataType::String | DataType::Int32 => 0,
    }
}
