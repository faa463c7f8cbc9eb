//! What is a claim tried on? The setup that all suites share, in rooms that know only those before them:
//!
//! 1. [`error`]: why a trial did not come to an end;
//! 2. [`subject`]: who computes, an engine or the interpreter, in a precision; [`required`]: which engines must work here;
//! 3. [`known`]: what subjects get wrong, and why we live with it;
//! 4. [`model`]: a checkpoint and its bundle, network by network on any subject;
//! 5. [`workspace`]: checkpoints and bundles, made when they are first asked for;
//! 6. [`case`]: a claim, which is tried on a subject in a workspace, and what became of it.

pub mod case;
pub mod error;
pub mod known;
pub mod model;
pub mod required;
pub mod subject;
pub mod workspace;
