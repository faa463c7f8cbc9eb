//! Which rewrites happen between a network and its file, and in which order? This list.
//!
//! 1. `cast_f16`, for fp16 exports only: it decides element types, so everything that looks at them comes after.

mod cast_f16;

pub use cast_f16::PRODUCT_SCALE;

use crate::error::ExportError;
use crate::plan::Precision;
use models::graph::Graph;

/// Applies the passes of a precision.
///
/// # Errors
/// A graph that a pass cannot rewrite.
pub fn run(graph: Graph, precision: Precision) -> Result<Graph, ExportError> {
    match precision {
        Precision::Fp32 => Ok(graph),
        Precision::Fp16 => cast_f16::cast_f16(&graph),
    }
}
