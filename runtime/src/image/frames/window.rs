//! The bytes of a stream from where its next frame begins, read as far as somebody looks.

use std::io::{ErrorKind, Read, Result};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;

/// What is there of a stream; what was dropped from its front is gone.
#[derive(Debug)]
pub(super) struct Window<R> {
    reader: R,
    bytes: Vec<u8>,
    /// Where a read puts them first.
    chunk: Vec<u8>,
    end: bool,
}

impl<R: Read> Window<R> {
    pub(super) fn new(reader: R) -> Window<R> {
        Window {
            reader,
            bytes: Vec::new(),
            chunk: vec![0; CHUNK],
            end: false,
        }
    }

    /// What was read and not dropped.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads once more; `false` at the end of the stream.
    pub(super) fn more(&mut self) -> Result<bool> {
        if self.end {
            return Ok(false);
        }
        let count = loop {
            match self.reader.read(&mut self.chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.bytes.extend(self.chunk.iter().take(count));
        self.end = count == 0;
        Ok(count > 0)
    }

    /// Reads until `count` bytes are there; `false` where the stream ends before.
    pub(super) fn have(&mut self, count: usize) -> Result<bool> {
        while self.bytes.len() < count {
            if !self.more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The byte at a place; `None` behind the end of the stream.
    pub(super) fn byte(&mut self, at: usize) -> Result<Option<u8>> {
        self.have(at.saturating_add(1))?;
        Ok(self.bytes.get(at).copied())
    }

    /// Drops up to `count` bytes from the front.
    pub(super) fn drop_front(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Takes up to `count` bytes off the front.
    pub(super) fn take_front(&mut self, count: usize) -> Vec<u8> {
        let rest = self.bytes.split_off(count.min(self.bytes.len()));
        std::mem::replace(&mut self.bytes, rest)
    }
}
