//! The wire format of protobuf, read where it lies: what is not asked for is jumped over, so that a graph with gigabytes
//! of weights inside takes no memory.

use std::fs::File;
use std::io::{BufReader, Read as _};

/// Why a file cannot be read on.
pub(super) type Problem = String;

/// A file, and how far it was read.
pub(super) struct Wire {
    file: BufReader<File>,
    at: u64,
}

/// A field's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// A whole number.
    Number(u64),
    /// 4 or 8 bytes, which were jumped over.
    Fixed,
    /// What lies from here to this place in the file.
    Bytes(u64),
}

impl Wire {
    pub(super) fn new(file: File) -> Wire {
        Wire {
            file: BufReader::new(file),
            at: 0,
        }
    }

    /// How far it was read, in bytes.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next field of a message that ends at `end`: its number and value. `None` at the end.
    pub(super) fn field(&mut self, end: u64) -> Result<Option<(u64, Value)>, Problem> {
        if self.at >= end {
            return Ok(None);
        }
        let key = self.number(end)?;
        if key > u64::from(u32::MAX) {
            // Others read 32 bits of it, and find another field.
            return Err(format!(
                "a field before byte {} has a number of more than 32 bits",
                self.at
            ));
        }
        let value = match key & 7 {
            0 => Value::Number(self.number(end)?),
            1 => self.fixed(8, end)?,
            2 => {
                let length = self.number(end)?;
                let last = self.at.checked_add(length).filter(|last| *last <= end);
                let last = last.ok_or_else(|| {
                    format!(
                        "a field at byte {} has {length} bytes, which end beyond its message",
                        self.at
                    )
                })?;
                Value::Bytes(last)
            }
            5 => self.fixed(4, end)?,
            other => {
                return Err(format!(
                    "byte {} has wire type {other}, which ONNX has not",
                    self.at
                ));
            }
        };
        Ok(Some((key >> 3, value)))
    }

    /// Jumps to a place that was not passed yet.
    pub(super) fn jump(&mut self, to: u64) -> Result<(), Problem> {
        let distance = to
            .checked_sub(self.at)
            .and_then(|distance| i64::try_from(distance).ok());
        let distance = distance.ok_or_else(|| format!("byte {} is followed by byte {to}", self.at))?;
        self.file
            .seek_relative(distance)
            .map_err(|error| error.to_string())?;
        self.at = to;
        Ok(())
    }

    /// What lies from here to `end`: at most `most` bytes.
    pub(super) fn bytes(&mut self, end: u64, most: u64) -> Result<Vec<u8>, Problem> {
        let length = end.saturating_sub(self.at);
        if length > most {
            return Err(format!(
                "byte {} has a text of {length} bytes, at most {most} are read",
                self.at
            ));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        self.file
            .read_exact(&mut bytes)
            .map_err(|error| error.to_string())?;
        self.at = end;
        Ok(bytes)
    }

    fn fixed(&mut self, bytes: u64, end: u64) -> Result<Value, Problem> {
        let to = self.at.saturating_add(bytes);
        if to > end {
            return Err(format!(
                "byte {} has {bytes} bytes, which end beyond their message",
                self.at
            ));
        }
        self.jump(to)?;
        Ok(Value::Fixed)
    }

    /// A number of at most ten bytes of seven bits.
    pub(super) fn number(&mut self, end: u64) -> Result<u64, Problem> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(format!("byte {} ends in a number", self.at));
            }
            let mut byte = [0];
            self.file
                .read_exact(&mut byte)
                .map_err(|error| error.to_string())?;
            self.at += 1;
            let [byte] = byte;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(format!("byte {} has a number of more than 64 bits", self.at))
    }
}
