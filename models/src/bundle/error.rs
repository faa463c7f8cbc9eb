//! What can be wrong with a bundle.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// A bundle that cannot be read, or is not what its contract says.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A file of the bundle cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no `bundle.json` where a bundle was expected.
    #[error("{} is not a bundle: it has no `bundle.json`", path.display())]
    NotABundle {
        /// The directory.
        path: PathBuf,
    },
    /// `bundle.json` is not JSON of this schema.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The bundle was written with another schema.
    #[error("{}: schema {found}, this build reads schema {expected}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The bundle's schema.
        found: u64,
        /// This build's.
        expected: u32,
    },
    /// The contract and the files disagree; every disagreement.
    #[error("{}: {}", path.display(), problems.join("; "))]
    Broken {
        /// The bundle.
        path: PathBuf,
        /// What was found and what was expected, one sentence each.
        problems: Vec<String>,
    },
}

impl BundleError {
    /// The file or directory that the error is about.
    pub fn subject(&self) -> &Path {
        match self {
            BundleError::Io { path, .. }
            | BundleError::NotABundle { path }
            | BundleError::Malformed { path, .. }
            | BundleError::Schema { path, .. }
            | BundleError::Broken { path, .. } => path,
        }
    }
}
