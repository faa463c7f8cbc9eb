//! How well does a form of the demo model still answer? Its held-out questions, word for word.

use super::ExactMatch;
use crate::setup::error::CaseError;
use crate::suite::held_out::SCENES;
use runtime::Model;

/// Asks the held-out questions about rendered scenes.
///
/// # Errors
/// What the engine says.
pub fn exact_match(model: &Model) -> Result<ExactMatch, CaseError> {
    let found = SCENES.ask(model)?;
    Ok(ExactMatch {
        right: found.right(),
        asked: found.asked(),
    })
}
