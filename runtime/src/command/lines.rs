//! What is a line of a chat? Text that ends, of a length that a question may have.

use std::io::{self, BufRead, Read as _};

/// Longest line, in bytes: more than any context holds.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// Why there is no line.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It goes on, perhaps forever: nothing behind it can be read.
    TooLong,
    /// It is not UTF-8; the next one may be.
    NotText,
    /// The system's own.
    Read(io::Error),
}

/// Lines of a chat, without their ends and without the byte order mark that some systems put before the first.
pub(crate) struct Lines<R> {
    reader: R,
    first: bool,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R) -> Lines<R> {
        Lines { reader, first: true }
    }

    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Result<String, Problem>> {
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX).saturating_add(1);
        match (&mut self.reader).take(most).read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(Err(Problem::Read(error))),
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > MAX_LINE {
            return Some(Err(Problem::TooLong));
        }
        let first = std::mem::replace(&mut self.first, false);
        Some(match String::from_utf8(line) {
            Ok(line) => Ok(match line.strip_prefix('\u{feff}') {
                Some(rest) if first => rest.to_owned(),
                _whole => line,
            }),
            Err(_) => Err(Problem::NotText),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::new(bytes);
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            let stop = matches!(line, Err(Problem::TooLong | Problem::Read(_)));
            found.push(line.unwrap_or_else(|problem| format!("{problem:?}")));
            if stop {
                break;
            }
        }
        found
    }

    #[test]
    fn lines_end_and_begin_as_systems_write_them() {
        assert_eq!(all(b""), [""; 0]);
        assert_eq!(all(b"a\r\n\nb"), ["a\r", "", "b"]);
        assert_eq!(
            all("\u{feff}/image x\n\u{feff}y".as_bytes()),
            ["/image x", "\u{feff}y"]
        );
        assert_eq!(all(b"\xff\nb\n"), ["NotText", "b"]);
    }

    #[test]
    fn a_line_without_an_end_is_not_read_to_its_end() {
        let long = vec![b'a'; MAX_LINE];
        assert_eq!(all(&long)[0].len(), MAX_LINE);
        assert_eq!(all(&[&long[..], b"\nb"].concat()).len(), 2);
        assert_eq!(all(&[&long[..], b"a\nb"].concat()), ["TooLong"]);
        let mut endless = Lines::new(io::BufReader::new(io::repeat(0)));
        assert!(matches!(endless.next(), Some(Err(Problem::TooLong))));
    }
}
