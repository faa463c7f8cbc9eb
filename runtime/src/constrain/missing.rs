//! Constraints in a program without feature `constrain`: there are none.

use super::{Constraint, ConstraintError};
use crate::text::Tokenizer;

/// What all constraints of a model share.
#[derive(Debug)]
pub enum Vocabulary {}

/// What an answer keeps to.
#[derive(Debug)]
pub enum Follower {}

impl Vocabulary {
    /// None.
    ///
    /// # Errors
    /// [`ConstraintError::NotCompiled`].
    pub fn new(_tokenizer: &Tokenizer, _stop_ids: &[i64]) -> Result<Vocabulary, ConstraintError> {
        Err(ConstraintError::NotCompiled)
    }

    /// What is never called.
    ///
    /// # Errors
    /// None.
    pub fn follow(&self, _constraint: &Constraint) -> Result<Follower, ConstraintError> {
        match *self {}
    }
}

impl Follower {
    /// What is never called.
    ///
    /// # Errors
    /// None.
    pub fn allowed(&mut self) -> Result<&[u32], ConstraintError> {
        match *self {}
    }

    /// What is never called.
    ///
    /// # Errors
    /// None.
    pub fn take(&mut self, _id: i64) -> Result<bool, ConstraintError> {
        match *self {}
    }
}
