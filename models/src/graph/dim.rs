//! Dimensions: a number, or one of four symbols that every graph spells alike.

use crate::fused::Length;
use std::fmt;

/// One dimension of a value's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// Known when the graph is built.
    Fixed(u64),
    /// Independent sequences, or images.
    Batch,
    /// Positions already in the KV cache; may be 0.
    Past,
    /// Positions fed by this call.
    New,
    /// `Past + New`.
    Total,
}

impl Dim {
    /// The number, where the dimension is one.
    pub const fn fixed(self) -> Option<u64> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Batch | Dim::Past | Dim::New | Dim::Total => None,
        }
    }

    /// The symbol's name in graphs and bundles; `None` for a number.
    pub const fn symbol(self) -> Option<&'static str> {
        match self {
            Dim::Fixed(_) => None,
            Dim::Batch => Some("batch"),
            Dim::Past => Some("past"),
            Dim::New => Some("new"),
            Dim::Total => Some("total"),
        }
    }
}

/// A length as operators have it in their shapes and bounds.
pub(crate) fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

impl From<u64> for Dim {
    fn from(n: u64) -> Self {
        Dim::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Batch | Dim::Past | Dim::New | Dim::Total => f.write_str(self.symbol().unwrap_or("?")),
        }
    }
}

impl Length for Dim {
    fn number(number: u64) -> Dim {
        Dim::Fixed(number)
    }

    fn known(&self) -> Option<u64> {
        self.fixed()
    }

    fn quotient(&self, divisor: u64) -> Option<Dim> {
        Some(Dim::Fixed(self.fixed()?.div_ceil(divisor.max(1))))
    }

    fn sum(&self, other: &Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Past, Dim::New) => Some(Dim::Total),
            _ => Some(Dim::Fixed(self.fixed()?.checked_add(other.fixed()?)?)),
        }
    }
}
