//! How long are the parts in which weights are laid out? For who stores them to compare with.

/// Outputs in a panel of a matrix: a vector has one of each.
pub const PANEL: usize = crate::isa::LANES;

/// Inputs of an output whose bytes lie together in a panel: products of bytes are added four at a time.
pub const GROUP: usize = 4;

/// Inputs of a panel of nibbles that share a scale.
pub const BLOCK: usize = crate::matrix::NIBBLE_BLOCK;

/// Numbers of a table's row that lie together in a plane: a block of quantised activations.
pub const PLANE_BLOCK: usize = crate::quantise::BLOCK;
