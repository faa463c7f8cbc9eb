//! Which files does a graph read its weights from? A walk over an ONNX file, past everything but the places of external
//! data: engines read whatever stands there, and only what the contract lists has a hash.

#![deny(clippy::as_conversions)]

use super::GraphEntry;
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Component, Path, PathBuf};

/// Messages inside one another that are followed: a graph in a node of a graph takes three.
const MAX_DEPTH: usize = 100;
/// Longest key or value of an entry of external data.
const MAX_WORD: u64 = 4096;

/// The messages of ONNX in which tensors can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Training,
    Graph,
    Function,
    Node,
    Attribute,
    Sparse,
    Tensor,
    /// A key and a value of a tensor's external data.
    Entry,
}

impl Message {
    /// The message in a field, if it is one that is followed. Numbers are those of `onnx.proto`.
    fn inside(self, field: u64) -> Option<Message> {
        match (self, field) {
            (Message::Model, 7) | (Message::Training, 1 | 2) | (Message::Attribute, 6 | 11) => {
                Some(Message::Graph)
            }
            (Message::Model, 20) => Some(Message::Training),
            (Message::Model, 25) => Some(Message::Function),
            (Message::Graph, 1) | (Message::Function, 7) => Some(Message::Node),
            (Message::Graph, 5) | (Message::Attribute, 5 | 10) | (Message::Sparse, 1 | 2) => {
                Some(Message::Tensor)
            }
            (Message::Graph, 15) | (Message::Attribute, 22 | 23) => Some(Message::Sparse),
            (Message::Function, 11) | (Message::Node, 5) => Some(Message::Attribute),
            (Message::Tensor, 13) => Some(Message::Entry),
            _other => None,
        }
    }
}

/// An ONNX file being read.
struct Walk<R> {
    source: R,
    /// Bytes that were read or passed.
    at: u64,
    /// The places of external data that were found.
    places: BTreeSet<String>,
}

impl<R: BufRead + Seek> Walk<R> {
    /// A message that ends at `end`.
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "its graphs are nested more than {MAX_DEPTH} messages deep"
            ));
        }
        let (mut key, mut value) = (Vec::new(), Vec::new());
        while self.at < end {
            let tag = self.varint()?;
            if tag > u64::from(u32::MAX) {
                // Others read 32 bits of it, and find another field.
                return Err(format!(
                    "a field before byte {} has a number of more than 32 bits",
                    self.at
                ));
            }
            let (field, wire) = (tag >> 3, tag & 7);
            match wire {
                0 => drop(self.varint()?),
                1 => self.pass(8, end)?,
                5 => self.pass(4, end)?,
                2 => {
                    let length = self.varint()?;
                    let inner = self.at.checked_add(length).filter(|inner| *inner <= end);
                    let inner =
                        inner.ok_or_else(|| format!("{length} bytes at {} are not there", self.at))?;
                    match (message.inside(field), message, field) {
                        (Some(inside), ..) => self.message(inside, inner, depth + 1)?,
                        (None, Message::Entry, 1) => key = self.word(length)?,
                        (None, Message::Entry, 2) => value = self.word(length)?,
                        _other => self.pass(length, end)?,
                    }
                }
                other => return Err(format!("wire type {other} at {}", self.at)),
            }
        }
        if self.at != end {
            return Err(format!("a message that ends at {end} goes on to {}", self.at));
        }
        if key == b"location" {
            let place = String::from_utf8(value).map_err(|_| "a file name that is not UTF-8".to_owned())?;
            self.places.insert(place);
        }
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.source
                .read_exact(&mut byte)
                .map_err(|error| self.broken(&error))?;
            self.at += 1;
            let [byte] = byte;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(format!("a number at {} has no end", self.at))
    }

    fn word(&mut self, length: u64) -> Result<Vec<u8>, String> {
        let length = usize::try_from(length.min(MAX_WORD + 1)).unwrap_or(usize::MAX);
        let mut word = vec![0; length];
        if u64::try_from(length).is_ok_and(|length| length > MAX_WORD) {
            return Err(format!("a file name of more than {MAX_WORD} bytes"));
        }
        self.source
            .read_exact(&mut word)
            .map_err(|error| self.broken(&error))?;
        self.at += u64::try_from(length).unwrap_or(0);
        Ok(word)
    }

    fn pass(&mut self, length: u64, end: u64) -> Result<(), String> {
        if length > end.saturating_sub(self.at) {
            return Err(format!("{length} bytes at {} are not there", self.at));
        }
        let step = i64::try_from(length).map_err(|_| format!("{length} bytes at {}", self.at))?;
        self.source
            .seek_relative(step)
            .map_err(|error| self.broken(&error))?;
        self.at += length;
        Ok(())
    }

    fn broken(&self, error: &io::Error) -> String {
        format!("at {}: {error}", self.at)
    }
}

/// The places of external data in an ONNX file of `length` bytes, as they stand there: of tensors of the graph, of
/// attributes, and of graphs and functions inside.
///
/// # Errors
/// What is no protobuf message, or nested too deeply, in words.
pub fn places(source: impl BufRead + Seek, length: u64) -> Result<BTreeSet<String>, String> {
    let mut walk = Walk {
        source,
        at: 0,
        places: BTreeSet::new(),
    };
    walk.message(Message::Model, length, 0)?;
    Ok(walk.places)
}

/// What is wrong with the files that a graph of the bundle in `directory` reads, if anything is: each must be one of its
/// `data`.
pub(super) fn problem(graph: &GraphEntry, directory: &Path) -> Option<String> {
    let GraphEntry { path, data, .. } = graph;
    let found = crate::regular::open(&directory.join(path)).and_then(|file| {
        let length = file.metadata()?.len();
        Ok(places(BufReader::new(file), length))
    });
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(why)) => return Some(format!("`{path}` is no ONNX graph: {why}")),
        Err(error) => return Some(format!("`{path}`: {error}")),
    };
    let beside = Path::new(path).parent().unwrap_or(Path::new(""));
    let unknown = |place: &&String| {
        let inside = plain(place).map(|place| beside.join(place));
        !inside.is_some_and(|inside| data.iter().any(|listed| Path::new(listed) == inside))
    };
    let place = found.iter().find(unknown)?;
    Some(format!(
        "`{path}` reads weights from {place:?}, expected one of its `data`: {}",
        data.join(", ")
    ))
}

/// A relative path without steps back and forth; `None` where it is none.
fn plain(place: &str) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in Path::new(place).components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn field(number: u8, contents: &[u8]) -> Vec<u8> {
        assert!(number < 16);
        let mut bytes = vec![number << 3 | 2];
        let mut length = contents.len();
        while length >= 0x80 {
            bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        bytes.push(u8::try_from(length).unwrap());
        [&bytes, contents].concat()
    }

    /// A tensor with raw data and with external data in `place`.
    fn tensor(place: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            field(
                13,
                &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
            )
        };
        [
            field(9, &[0xff; 300]),
            entry("offset", "location"),
            entry("location", place),
        ]
        .concat()
    }

    fn found(model: &[u8]) -> Result<Vec<String>, String> {
        let length = u64::try_from(model.len()).unwrap();
        places(Cursor::new(model), length).map(|found| found.into_iter().collect())
    }

    #[test]
    fn places_are_found_wherever_a_tensor_can_be() {
        let attribute = |field_of: u8, inner: &[u8]| field(1, &field(5, &field(field_of, inner)));
        let graph = [
            field(5, &tensor("a")),
            attribute(5, &tensor("b")),
            attribute(10, &tensor("c")),
            attribute(6, &field(5, &tensor("d"))),
            attribute(11, &attribute(5, &tensor("e"))),
            field(15, &[field(1, &tensor("f")), field(2, &tensor("g"))].concat()),
        ]
        .concat();
        let model = [vec![8, 10], field(7, &graph), vec![0x2d, 1, 2, 3, 4]].concat();
        assert_eq!(found(&model).unwrap(), ["a", "b", "c", "d", "e", "f", "g"]);
        assert!(found(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_graph_is_said() {
        let model = field(7, &field(5, &tensor("a")));
        for cut in 1..model.len() {
            found(&model[..cut]).unwrap_err();
        }
        let deep = (0..200).fold(tensor("a"), |inner, _| field(1, &field(5, &field(6, &inner))));
        assert!(found(&field(7, &deep)).unwrap_err().contains("nested"));
        assert!(found(&[0x0b]).unwrap_err().contains("wire type 3"));
        assert!(found(&[0xff; 20]).unwrap_err().contains("no end"));
        let long = field(7, &field(5, &tensor(&"x".repeat(5000))));
        assert!(found(&long).unwrap_err().contains("4096"));
    }

    #[test]
    fn places_outside_are_none() {
        for outside in ["../a", "/a", "a/../b", "a/../../b"] {
            assert_eq!(plain(outside), None, "{outside}");
        }
        assert_eq!(plain("./a//b"), Some(PathBuf::from("a/b")));
    }
}
