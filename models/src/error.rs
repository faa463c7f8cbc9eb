//! What can be wrong, one enum per boundary.

use thiserror::Error;

/// A bundle that cannot be read, or is not what its contract says.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {}

/// A checkpoint that cannot be read, or is not the model that its config declares.
#[cfg(feature = "describe")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A canonical weight was asked for that the model does not have.
    #[error("no canonical weight is named `{name}`")]
    UnknownWeight {
        /// The name asked for.
        name: String,
    },
}

#[cfg(feature = "describe")]
pub use crate::graph::GraphError;
