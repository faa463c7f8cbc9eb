//! conformance
pub mod compare;
pub mod interpreter;
pub mod tensor;
