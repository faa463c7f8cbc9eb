//! Python's pickle, as far as `torch.save` needs it for tensors: a machine with a closed list of opcodes that
//! holds a bounded number of values. Values lie in one list and name each other by their places in it, so
//! that nothing is followed deeper than it is looked at.

use super::globals::{self, Global};
use super::rebuild;
use super::values::{Id, Value, Values};
use std::collections::BTreeMap;

/// Longest pickle that is read, in bytes.
pub(super) const MAX_PICKLE: usize = 64 << 20;
/// Most values that a pickle makes, that it remembers, and that lie on the stack.
const MAX_VALUES: usize = 1 << 22;
/// Longest name of a module or of what is in it, in bytes.
const MAX_NAME: usize = 200;

/// A pickle that was read.
#[derive(Debug)]
pub(super) struct Loaded<'a> {
    pub(super) values: Values<'a>,
    /// What the pickle is of.
    pub(super) root: Id,
    /// Length of the pickle in bytes.
    pub(super) length: usize,
}

/// Reads the pickle that the bytes begin with.
///
/// # Errors
/// A sentence that names the opcode or the name that the pickle asks for, and where.
pub(super) fn load(bytes: &[u8]) -> Result<Loaded<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Values(Vec::new()),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        copied: 0,
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                return Ok(Loaded {
                    values: machine.values,
                    root,
                    length: machine.at,
                });
            }
            Err(problem) => return Err(format!("its pickle, at byte {at}, {problem}")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Values<'a>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    /// Pairs of dicts that were made of lists.
    copied: usize,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// One operation; the root, if it is the last one.
    fn step(&mut self) -> Step<Option<Id>> {
        let [opcode] = self.array()?;
        match opcode {
            // PROTO
            0x80 => match self.array()? {
                [2..=5] => {}
                [found] => return Err(format!("has protocol {found}, expected 2 to 5")),
            },
            // FRAME: how many bytes follow, for readers of streams.
            0x95 => drop(self.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'.' => return self.stop().map(Some),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode)?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b's' | b'u' | b'a' | b'e' => self.fill(opcode)?,
            b't' | b')' | 0x85..=0x87 => self.tuple(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let storage = rebuild::storage(&self.values, id)?;
                self.push(Value::Storage(storage))?;
            }
            // REDUCE
            b'R' => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                let made = self.call(function, arguments)?;
                self.push_id(made)?;
            }
            // BUILD: an `OrderedDict` of torch has a dict `_metadata` of versions, which are no tensors.
            b'b' => {
                let state = self.pop()?;
                let object = self.values.get(self.top()?);
                let state = self.values.get(state);
                if !matches!((object, state), (Value::Dict(_), Value::Dict(_))) {
                    let (object, state) = (object.kind(), state.kind());
                    return Err(format!(
                        "sets the state of {object} to {state}, expected a dict's to a dict"
                    ));
                }
            }
            _ => {
                let value = self.scalar(opcode)?;
                self.push(value)?;
            }
        }
        if self.stack.len() > MAX_VALUES || self.marks.len() > MAX_VALUES || self.memo.len() > MAX_VALUES {
            return Err(format!("holds more than {MAX_VALUES} values"));
        }
        Ok(None)
    }

    /// STOP
    fn stop(&mut self) -> Step<Id> {
        match (self.stack.as_slice(), self.marks.as_slice()) {
            ([root], []) => Ok(*root),
            (stack, _) => Err(format!("ends with {} values, expected 1", stack.len())),
        }
    }

    /// Values without parts.
    fn scalar(&mut self, opcode: u8) -> Step<Value<'a>> {
        Ok(match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(u8::from_le_bytes(self.array()?))),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            // LONG1
            0x8a => {
                let length = self.length8()?;
                long(self.take(length)?)
            }
            b'G' => {
                self.array::<8>()?;
                Value::Float
            }
            // SHORT_BINUNICODE, SHORT_BINSTRING; BINUNICODE, BINSTRING; BINUNICODE8
            0x8c | b'U' => {
                let length = self.length8()?;
                self.text(length)?
            }
            b'X' | b'T' => {
                let length = self.length32()?;
                self.text(length)?
            }
            0x8d => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(usize::try_from(length).unwrap_or(usize::MAX))?
            }
            // SHORT_BINBYTES, BINBYTES
            b'C' => {
                let length = self.length8()?;
                self.take(length)?;
                Value::Opaque("bytes")
            }
            b'B' => {
                let length = self.length32()?;
                self.take(length)?;
                Value::Opaque("bytes")
            }
            _ => return Err(refused(opcode)),
        })
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE; BINGET, LONG_BINGET
    fn memory(&mut self, opcode: u8) -> Step<()> {
        let key = match opcode {
            b'q' | b'h' => u32::from(u8::from_le_bytes(self.array()?)),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if matches!(opcode, b'h' | b'j') {
            let found = self.memo.get(&key).copied();
            let found = found.ok_or_else(|| format!("recalls value {key}, which it did not remember"))?;
            self.push_id(found)
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
            Ok(())
        }
    }

    /// EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
    fn tuple(&mut self, opcode: u8) -> Step<()> {
        let values = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_marked()?,
            _ => {
                let count = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(count).ok_or_else(short)?;
                self.check_marks(from)?;
                self.stack.split_off(from)
            }
        };
        self.push(Value::Tuple(values))
    }

    /// SETITEM, SETITEMS; APPEND, APPENDS
    fn fill(&mut self, opcode: u8) -> Step<()> {
        let added = match opcode {
            b'u' | b'e' => self.pop_marked()?,
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => vec![self.pop()?],
        };
        let Id(top) = self.top()?;
        let place = usize::try_from(top).ok();
        let object = place.and_then(|place| self.values.0.get_mut(place));
        match (object, opcode) {
            (Some(Value::Dict(entries)), b's' | b'u') => {
                let (pairs, rest) = added.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err("gives a dict a key without a value".to_owned());
                }
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            (Some(Value::List(values)), b'a' | b'e') => {
                values.extend(added);
                Ok(())
            }
            (object, _) => {
                let kind = object.map_or("nothing", |object| object.kind());
                Err(format!("adds to {kind}, expected a dict or a list"))
            }
        }
    }

    /// GLOBAL, STACK_GLOBAL
    fn global(&mut self, opcode: u8) -> Step<()> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            let text = |id| {
                let text = self.values.text(id);
                text.filter(|text| text.len() <= MAX_NAME).ok_or_else(|| {
                    format!("asks for a global that is not named by texts of {MAX_NAME} bytes")
                })
            };
            (text(module)?, text(name)?)
        };
        let found = globals::find(module, name)?;
        self.push(Value::Global(found))
    }

    /// What a function of the closed list makes of its arguments.
    fn call(&mut self, function: Id, arguments: Id) -> Step<Id> {
        let Value::Global(function) = *self.values.get(function) else {
            let kind = self.values.get(function).kind();
            return Err(format!("calls {kind}, expected a function that rebuilds tensors"));
        };
        let Some(given) = self.values.tuple(arguments) else {
            let kind = self.values.get(arguments).kind();
            return Err(format!(
                "calls a function with {kind}, expected a tuple of arguments"
            ));
        };
        let made = match function {
            Global::OrderedDict => {
                let pairs = rebuild::pairs(&self.values, given)?;
                // Of one list as many dicts as somebody likes.
                self.copied = self.copied.saturating_add(pairs.len());
                if self.copied > MAX_VALUES {
                    return Err(format!("makes dicts of more than {MAX_VALUES} pairs"));
                }
                Value::Dict(pairs)
            }
            Global::RebuildTensor | Global::RebuildTensorV2 | Global::RebuildTensorV3 => {
                Value::Tensor(Box::new(rebuild::tensor(&self.values, function, given)?))
            }
            Global::RebuildParameter => return rebuild::parameter(&self.values, given),
            Global::Size => match given {
                [sides] if self.values.tuple(*sides).is_some() => return Ok(*sides),
                _ => return Err("calls `torch.Size` without a tuple".to_owned()),
            },
            Global::Device => Value::Opaque("a device"),
            Global::Storage(_) | Global::DType(_) => {
                return Err("calls a type, expected a function that rebuilds tensors".to_owned());
            }
        };
        self.add(made)
    }

    fn add(&mut self, value: Value<'a>) -> Step<Id> {
        if self.values.0.len() == MAX_VALUES {
            return Err(format!("makes more than {MAX_VALUES} values"));
        }
        let id = u32::try_from(self.values.0.len()).map_err(|error| error.to_string())?;
        self.values.0.push(value);
        Ok(Id(id))
    }

    fn push(&mut self, value: Value<'a>) -> Step<()> {
        let id = self.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Step<()> {
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Step<Id> {
        self.stack.last().copied().ok_or_else(short)
    }

    fn pop(&mut self) -> Step<Id> {
        let last = self.stack.len().checked_sub(1).ok_or_else(short)?;
        self.check_marks(last)?;
        self.stack.pop().ok_or_else(short)
    }

    /// Nothing below a mark is taken before the mark.
    fn check_marks(&self, from: usize) -> Step<()> {
        match self.marks.last() {
            Some(mark) if *mark > from => Err(short()),
            _ => Ok(()),
        }
    }

    /// What lies on the stack above the last mark.
    fn pop_marked(&mut self) -> Step<Vec<Id>> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| "takes values back to a mark that it has not set".to_owned())?;
        if mark > self.stack.len() {
            return Err(short());
        }
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= MAX_PICKLE);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        let found = found.ok_or_else(|| {
            let left = self.bytes.len().min(MAX_PICKLE).saturating_sub(self.at);
            format!("has {left} bytes left and needs {length}: truncated?")
        })?;
        self.at += length;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| short())
    }

    fn length8(&mut self) -> Step<usize> {
        Ok(usize::from(u8::from_le_bytes(self.array()?)))
    }

    fn length32(&mut self) -> Step<usize> {
        let length = u32::from_le_bytes(self.array()?);
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self, length: usize) -> Step<Value<'a>> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes);
        text.map(Value::Text)
            .map_err(|error| format!("has a text that is not UTF-8: {error}"))
    }

    /// Up to a line break, which is taken too.
    fn line(&mut self) -> Step<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().take(MAX_NAME + 1).position(|byte| *byte == b'\n');
        let end =
            end.ok_or_else(|| format!("asks for a global whose name is longer than {MAX_NAME} bytes"))?;
        let line = self.take(end + 1)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        std::str::from_utf8(line)
            .map_err(|error| format!("asks for a global whose name is not UTF-8: {error}"))
    }
}

/// An integer of any length.
fn long(bytes: &[u8]) -> Value<'_> {
    let mut whole = [match bytes.last() {
        Some(last) if *last >= 0x80 => 0xff,
        _ => 0,
    }; 8];
    match whole.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(whole))
        }
        None => Value::Long(bytes),
    }
}

fn short() -> String {
    "takes a value from an empty stack".to_owned()
}

/// What to say about an opcode that is not in the list.
fn refused(opcode: u8) -> String {
    const NAMES: [(u8, &str); 24] = [
        (b'0', "POP"),
        (b'1', "POP_MARK"),
        (b'2', "DUP"),
        (b'F', "FLOAT"),
        (b'I', "INT"),
        (b'L', "LONG"),
        (b'P', "PERSID"),
        (b'S', "STRING"),
        (b'V', "UNICODE"),
        (b'd', "DICT"),
        (b'g', "GET"),
        (b'i', "INST"),
        (b'l', "LIST"),
        (b'o', "OBJ"),
        (b'p', "PUT"),
        (0x81, "NEWOBJ"),
        (0x82, "EXT1"),
        (0x8b, "LONG4"),
        (0x8f, "EMPTY_SET"),
        (0x90, "ADDITEMS"),
        (0x91, "FROZENSET"),
        (0x92, "NEWOBJ_EX"),
        (0x96, "BYTEARRAY8"),
        (0x97, "NEXT_BUFFER"),
    ];
    let name = NAMES.iter().find(|(known, _)| *known == opcode);
    let name = name.map_or(String::new(), |(_, name)| format!("{name}, "));
    format!(
        "asks for the opcode {name}0x{opcode:02x}, expected only what tensors by name need: save the model's \
         `state_dict()` alone"
    )
}
