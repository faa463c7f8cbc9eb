//! What can be wrong with a stream of frames, and how it is told.

use super::super::ImageError;
use thiserror::Error;

/// A frame that is none, or a stream that has no more. Every variant names the stream (`name`: a path, or `stdin`).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream cannot be read.
    #[error("cannot read frames from `{name}`: {source}")]
    Read {
        /// The stream.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is no frame at all.
    #[error("`{name}` has no frame: it is {found}, expected {}", super::KINDS)]
    None {
        /// The stream.
        name: String,
        /// What its first bytes look like.
        found: String,
    },
    /// No frame begins for longer than [`super::MAX_GAP`].
    #[error(
        "`{name}` has lost its frames: none begins in {} bytes behind frame {after}, expected {}",
        super::MAX_GAP,
        super::KINDS
    )]
    Lost {
        /// The stream.
        name: String,
        /// The last frame.
        after: u64,
    },
    /// The header of a y4m stream says something that is not read here.
    #[error("`{name}` is a y4m stream {found}, expected {expected}")]
    Y4m {
        /// The stream.
        name: String,
        /// What it says.
        found: String,
        /// What is read here.
        expected: String,
    },
    /// A frame is broken or cut off. The next one follows.
    #[error("frame {number} of `{name}` is a damaged {kind}: {reason}")]
    Damaged {
        /// The stream.
        name: String,
        /// The frame, from 1 on.
        number: u64,
        /// `PNG`, `JPEG`, `y4m`, or `frame` where that is not known yet.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A frame is larger than the limits allow; it was not kept. The next one follows.
    #[error(transparent)]
    Image(ImageError),
}

impl FrameError {
    /// Whether no frame follows.
    pub fn is_end(&self) -> bool {
        match self {
            FrameError::Read { .. }
            | FrameError::None { .. }
            | FrameError::Lost { .. }
            | FrameError::Y4m { .. } => true,
            FrameError::Damaged { .. } | FrameError::Image(_) => false,
        }
    }
}
