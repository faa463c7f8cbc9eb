//! What is a claim tried on? The setup that suites share: engines, models, the directory that they work in, and the
//! claims themselves.

pub mod case;
pub mod known;
pub mod model;
pub mod subject;
pub mod workspace;
