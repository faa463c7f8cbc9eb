//! Which rewrites happen between a network and its file, and in which order? This list. After each the invariants
//! of the graph are checked.
//!
//! 1. `convolutions`, for the Neural Engine only: it takes marks away that the next pass reads.
//! 2. `cast_f16`, for exports in halves only: it decides element types, so everything that looks at them comes after.
//! 3. `rounded`, for portable exports of 8 and 4 bits only: scales have the type that weights would have.

mod cast_f16;
mod convolutions;
mod rounded;

pub use cast_f16::PRODUCT_SCALE;

use crate::error::ExportError;
use crate::plan::{Precision, Variant};
use models::graph::Graph;

/// The graph as a Core ML package of a precision has it: whatever weights are stored as, products are in half
/// precision, or all is in float32.
///
/// # Errors
/// A graph that a pass cannot rewrite.
pub fn stored_as(graph: Graph, precision: Precision) -> Result<Graph, ExportError> {
    match precision {
        Precision::Fp32 => Ok(graph),
        Precision::Fp16 | Precision::Int8 | Precision::Q4 => checked(cast_f16::cast_f16(&graph)?),
        Precision::Q8 | Precision::Q4F16 => Err(ExportError::NoPackages { precision }),
    }
}

/// The same for the Neural Engine: linear layers are convolutions, and nothing is in float32 but inputs and outputs.
///
/// # Errors
/// As [`stored_as`].
pub fn for_neural_engine(graph: &Graph, precision: Precision) -> Result<Graph, ExportError> {
    stored_as(checked(convolutions::convolutions(graph))?, precision)
}

/// Applies the passes of a variant.
///
/// # Errors
/// A graph that a pass cannot rewrite.
pub fn run(graph: Graph, variant: Variant) -> Result<Graph, ExportError> {
    let graph = match variant.precision() {
        // How fused operators store their weights was decided when the network was built.
        Precision::Fp32 | Precision::Int8 | Precision::Q8 | Precision::Q4 => graph,
        Precision::Fp16 | Precision::Q4F16 => checked(cast_f16::cast_f16(&graph)?)?,
    };
    match variant.storage() {
        None => Ok(graph),
        Some(storage) => checked(rounded::rounded(&graph, storage)?),
    }
}

/// What a pass made, if it is sound: otherwise an engine would find that out.
fn checked(graph: Graph) -> Result<Graph, ExportError> {
    graph.check()?;
    Ok(graph)
}
