//! A small file of the bundle, and where it comes from.

/// A small file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Path in the bundle.
    pub path: String,
    /// All of it.
    pub contents: Vec<u8>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a small file of the bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The checkpoint's file of this name, byte for byte.
    Kept,
    /// The checkpoint's file of this name; what was changed.
    Adapted(String),
    /// Not of the checkpoint's file of this name, if there is one; what it was derived from.
    Derived(String),
}
