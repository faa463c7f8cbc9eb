//! Constraints in a program without feature `constrain`: there are none.

use super::{Constraint, ConstraintError};
use crate::text::Tokenizer;

/// What all constraints of a model share.
#[derive(Debug)]
pub(crate) enum Vocabulary {}

/// What an answer keeps to.
#[derive(Debug)]
pub(crate) enum Follower {}

impl Vocabulary {
    pub(crate) fn new(_tokenizer: &Tokenizer, _stop_ids: &[i64]) -> Result<Vocabulary, ConstraintError> {
        Err(ConstraintError::NotCompiled)
    }

    pub(crate) fn follow(&self, _constraint: &Constraint) -> Result<Follower, ConstraintError> {
        match *self {}
    }
}

impl Follower {
    pub(crate) fn allowed(&mut self) -> Result<&[u32], ConstraintError> {
        match *self {}
    }

    pub(crate) fn take(&mut self, _id: i64) -> Result<bool, ConstraintError> {
        match *self {}
    }
}
