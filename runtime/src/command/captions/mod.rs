//! `--output`: a line for each of many images, in a file that a later run goes on with.

pub(crate) mod file;
pub(crate) mod inputs;
pub(crate) mod shard;

use shard::Shard;
use std::path::PathBuf;

/// Which images, and where their lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaptionTask {
    /// Folders, image files, patterns, lists of images; `-` is a list on stdin.
    pub(crate) inputs: Vec<PathBuf>,
    /// The file of lines.
    pub(crate) output: PathBuf,
    /// The part of the images that is this run's.
    pub(crate) shard: Shard,
}
