//! TIFF's directory: tags and their numbers.

use super::super::orientation;
use super::super::problem::Problem;

/// Most numbers of a tag: of strips, the longest edge has fewer.
const MAX_NUMBERS: u64 = 1 << 22;

/// The first directory of a file.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    pub(super) little: bool,
    big: bool,
    start: u64,
    entries: Vec<Entry>,
}

/// A tag: its values lie at `at`.
struct Entry {
    tag: u16,
    size: u64,
    count: u64,
    at: u64,
}

impl<'a> Directory<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Directory<'a>, Problem> {
        let little = bytes.starts_with(b"II");
        let mut directory = Directory {
            bytes,
            little,
            big: false,
            start: 0,
            entries: Vec::new(),
        };
        let big = directory.at(2, 2)? == 43;
        let (start, wide) = if big {
            (directory.at(8, 8)?, 8)
        } else {
            (directory.at(4, 4)?, 4)
        };
        (directory.big, directory.start) = (big, start);
        let (count, first) = if big {
            (directory.at(start, 8)?, 8)
        } else {
            (directory.at(start, 2)?, 2)
        };
        let length = 4 + 2 * wide;
        // As many as there are bytes for.
        if count > u64::try_from(bytes.len()).unwrap_or(u64::MAX) / length {
            return Err(Problem::Truncated);
        }
        for index in 0..count {
            let place = start.saturating_add(first + index * length);
            let tag = u16::try_from(directory.at(place, 2)?).unwrap_or(0);
            let size = match directory.at(place + 2, 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16..=18 => 8,
                // Readers skip what they do not know.
                _ => continue,
            };
            let count = directory.at(place + 4, wide)?;
            if count == 0 {
                continue;
            }
            let value = place + 4 + wide;
            let inline = count.saturating_mul(size) <= wide;
            let at = if inline { value } else { directory.at(value, wide)? };
            directory.entries.push(Entry { tag, size, count, at });
        }
        Ok(directory)
    }

    /// Where it is, for whoever reads it as Pillow does.
    pub(super) fn place(&self) -> orientation::Directory<'a> {
        orientation::Directory {
            bytes: self.bytes,
            little: self.little,
            big: self.big,
            start: self.start,
        }
    }

    /// The number of `size` bytes at `at`.
    fn at(&self, at: u64, size: u64) -> Result<u64, Problem> {
        let bytes = self.slice(at, size)?;
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Ok(if self.little {
            bytes.iter().rev().fold(0, fold)
        } else {
            bytes.iter().fold(0, fold)
        })
    }

    /// `length` bytes of the file.
    pub(super) fn slice(&self, at: u64, length: u64) -> Result<&'a [u8], Problem> {
        let place = |value: u64| usize::try_from(value).map_err(|_| Problem::Truncated);
        let (start, end) = (
            place(at)?,
            place(at.checked_add(length).ok_or(Problem::Truncated)?)?,
        );
        self.bytes.get(start..end).ok_or(Problem::Truncated)
    }

    /// The numbers of `tag`; `None` if there is no such tag.
    pub(super) fn numbers(&self, tag: u16) -> Result<Option<Vec<u64>>, Problem> {
        let Some(entry) = self.entries.iter().find(|entry| entry.tag == tag) else {
            return Ok(None);
        };
        if entry.count > MAX_NUMBERS {
            return Err(Problem::Memory);
        }
        self.slice(entry.at, entry.count.saturating_mul(entry.size))?;
        let numbers = (0..entry.count).map(|index| self.at(entry.at + index * entry.size, entry.size));
        numbers.collect::<Result<_, _>>().map(Some)
    }

    /// The first number of `tag`.
    pub(super) fn number(&self, tag: u16) -> Result<Option<u64>, Problem> {
        let entry = self.entries.iter().find(|entry| entry.tag == tag);
        entry.map(|entry| self.at(entry.at, entry.size)).transpose()
    }

    /// The bytes of `tag`.
    pub(super) fn data(&self, tag: u16) -> Result<Option<&'a [u8]>, Problem> {
        let entry = self.entries.iter().find(|entry| entry.tag == tag);
        entry
            .map(|entry| self.slice(entry.at, entry.count.saturating_mul(entry.size)))
            .transpose()
    }
}
