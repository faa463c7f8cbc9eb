//! What a pickle is made of: values in one list, which name each other by their places in it.

use super::super::tensor_file::StoredType;
use super::globals::Global;

/// Place of a value in the list of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(pub(super) u32);

/// What a pickle is made of.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits: little-endian, two's complement.
    Long(&'a [u8]),
    Float,
    Text(&'a str),
    /// Bytes, a device: nothing that is looked into.
    Opaque(&'static str),
    Global(Global),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage(Storage<'a>),
    Tensor(Box<View<'a>>),
}

/// A storage as the pickle refers to it; its elements lie outside of the pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) kind: Global,
    /// Elements, or bytes where the storage has no type.
    pub(super) elements: u64,
    /// First element and number of elements of a part of it, in the oldest files.
    pub(super) part: Option<(u64, u64)>,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) dtype: StoredType,
    /// First element in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// Elements to the next one in each dimension.
    pub(super) strides: Vec<u64>,
}

/// All values of a pickle.
#[derive(Debug)]
pub(super) struct Values<'a>(pub(super) Vec<Value<'a>>);

impl<'a> Values<'a> {
    pub(super) fn get(&self, Id(id): Id) -> &Value<'a> {
        // Only places of values that exist are handed out.
        usize::try_from(id)
            .ok()
            .and_then(|id| self.0.get(id))
            .unwrap_or(&Value::None)
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number from 0 on.
    pub(super) fn number(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(values) => Some(values),
            _ => None,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Value<'a>> {
        self.0.iter()
    }
}

impl Value<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Long(_) | Value::Float => "a number",
            Value::Text(_) => "a text",
            Value::Opaque(what) => what,
            Value::Global(_) => "a name",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Storage(_) => "a storage without a tensor",
            Value::Tensor(_) => "a tensor",
        }
    }
}
