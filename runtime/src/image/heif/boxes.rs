//! HEIF's boxes: a length, four letters, contents. Everything in such a file is in one (ISO/IEC 14496-12).

use crate::image::problem::Problem;

/// Four letters, as words: what is no letter or digit is a question mark.
pub(super) fn letters(kind: [u8; 4]) -> String {
    let plain = |byte: u8| {
        if byte.is_ascii_graphic() {
            byte as char
        } else {
            '?'
        }
    };
    kind.map(plain).iter().collect()
}

/// Bytes that are read from their start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    /// Whose bytes, for messages.
    of: [u8; 4],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(rest: &'a [u8], of: [u8; 4]) -> Cursor<'a> {
        Cursor { rest, of }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Problem::damaged(format!("`{}` ends too early", letters(self.of))),
        }
    }

    /// A number of up to 8 bytes; of none it is 0.
    pub(super) fn number(&mut self, bytes: usize) -> Result<u64, Problem> {
        let taken = self.take(bytes)?;
        Ok(taken
            .iter()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Problem> {
        let taken = self.take(2)?;
        Ok(u16::from_be_bytes([taken[0], taken[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        let taken = self.take(4)?;
        Ok(u32::from_be_bytes([taken[0], taken[1], taken[2], taken[3]]))
    }

    pub(super) fn letters(&mut self) -> Result<[u8; 4], Problem> {
        Ok(self.u32()?.to_be_bytes())
    }

    /// The version and the flags that many boxes begin with.
    pub(super) fn version(&mut self) -> Result<(u8, u32), Problem> {
        let [version, flags @ ..] = self.letters()?;
        let [a, b, c] = flags;
        Ok((version, u32::from_be_bytes([0, a, b, c])))
    }
}

/// A box.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) kind: [u8; 4],
    pub(super) body: &'a [u8],
}

impl<'a> Part<'a> {
    pub(super) fn cursor(&self) -> Cursor<'a> {
        Cursor::new(self.body, self.kind)
    }
}

/// The boxes that stand side by side in some bytes.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    rest: &'a [u8],
    /// What it is if a box is longer than what there is.
    short: Problem,
}

impl<'a> Parts<'a> {
    /// Those of a file: one that is cut off says that the file is.
    pub(super) fn of_file(file: &'a [u8]) -> Parts<'a> {
        let short = Problem::Truncated;
        Parts { rest: file, short }
    }

    /// Those inside a box.
    pub(super) fn inside(cursor: Cursor<'a>) -> Parts<'a> {
        let short = format!("a box in `{}` is longer than that", letters(cursor.of));
        Parts {
            rest: cursor.rest,
            short: Problem::Damaged(short),
        }
    }

    fn part(&mut self) -> Result<Part<'a>, Problem> {
        let short = || self.short.clone();
        let mut head = Cursor::new(self.rest, *b"box ");
        let (size, kind) = match (head.u32(), head.letters()) {
            (Ok(size), Ok(kind)) => (size, kind),
            _ => return Err(short()),
        };
        let size = match size {
            // It goes on to the end.
            0 => self.rest.len(),
            1 => usize::try_from(head.number(8).map_err(|_| short())?).unwrap_or(usize::MAX),
            size => usize::try_from(size).unwrap_or(usize::MAX),
        };
        if kind == *b"uuid" {
            head.take(16).map_err(|_| short())?;
        }
        let used = self.rest.len() - head.rest.len();
        if size < used {
            return Problem::damaged(format!("the box `{}` is shorter than its head", letters(kind)));
        }
        let (part, rest) = self.rest.split_at_checked(size).ok_or_else(short)?;
        self.rest = rest;
        Ok(Part {
            kind,
            body: &part[used..],
        })
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<Part<'a>, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.rest = &[];
        }
        Some(part)
    }
}
