//! Constraint: which answers are allowed? JSON of a schema, the texts of a regular expression, one of several choices.
//!
//! At each token those that cannot continue an allowed answer are taken out (crate `llguidance`), before temperature and
//! filters; the model chooses among the rest. Where only one continuation of several letters is left, it is written in the
//! tokens that the tokenizer would make of it. Log-probabilities stay those of the model.
//!
//! What is compiled is bounded in time and memory; a constraint that would need more is an error, and so is one that cannot be
//! kept exactly: nothing of a schema is ignored but what JSON Schema itself calls an annotation, and keywords that it does not
//! know.
//!
//! A [`Request`](crate::Request) takes a constraint; whoever samples tokens without a [`Model`](crate::Model) has [`Vocabulary`]
//! and [`Follower`].

#[cfg(feature = "constrain")]
mod expression;
#[cfg(feature = "constrain")]
mod format;
#[cfg(feature = "constrain")]
mod grammar;
#[cfg(not(feature = "constrain"))]
mod missing;
#[cfg(feature = "constrain")]
mod schema;

#[cfg(feature = "constrain")]
pub use grammar::{Follower, Vocabulary};
#[cfg(not(feature = "constrain"))]
pub use missing::{Follower, Vocabulary};

use thiserror::Error;

/// What an answer keeps to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// JSON that is valid against this schema (draft 2020-12; older ones by `$schema`). Properties come in the order of the
    /// schema, those that are not named there after them. Between its parts there is at most a space, or a line break and up to
    /// sixteen spaces, and nothing before and after it.
    JsonSchema(serde_json::Value),
    /// Any JSON object.
    JsonObject,
    /// A text that as a whole matches this regular expression: the syntax of crate `regex`, with Unicode, without anchors and
    /// look-around.
    Regex(String),
    /// One of these texts.
    Choices(Vec<String>),
}

impl Constraint {
    /// About how many bytes of memory it takes, and whether that is as few as what is compiled may be: to be asked before it
    /// waits for its turn. It may be wrong otherwise.
    ///
    /// # Errors
    /// [`ConstraintError::TooLarge`].
    #[cfg(feature = "constrain")]
    pub fn size(&self) -> Result<usize, ConstraintError> {
        match self {
            Constraint::JsonSchema(schema) => schema::size(schema),
            Constraint::JsonObject => Ok(0),
            Constraint::Regex(regex) => grammar::length("regular expression", [regex.as_str()]),
            Constraint::Choices(choices) => {
                grammar::length("list of choices", choices.iter().map(String::as_str))
            }
        }
    }
}

/// A constraint that cannot be kept, or an answer that cannot go on within it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The JSON schema is none, has no valid answer, or says what cannot be kept exactly.
    #[error("cannot keep to the JSON schema: {reason}")]
    Schema {
        /// What of it.
        reason: String,
    },
    /// The regular expression is none, or has what cannot be kept.
    #[error("cannot keep to the regular expression: {reason}")]
    Regex {
        /// What of it.
        reason: String,
    },
    /// The choices are none.
    #[error("cannot keep to the choices: {reason}")]
    Choices {
        /// What of them.
        reason: String,
    },
    /// It is larger than what is compiled.
    #[error("the {what} has {found} {unit}, expected at most {most}")]
    TooLarge {
        /// What kind of constraint.
        what: &'static str,
        /// Bytes, levels or others, as many as were counted.
        found: usize,
        /// Of what.
        unit: &'static str,
        /// How many may be.
        most: usize,
    },
    /// The bundle's tokenizer has no tokens that are bytes.
    #[error("answers of this bundle cannot be constrained: {reason}")]
    Tokenizer {
        /// What of it.
        reason: String,
    },
    /// In the middle of an answer: what may come next cannot be found out within bounds, or is nothing.
    #[error("the answer cannot go on within its constraint: {reason}")]
    Stuck {
        /// Why.
        reason: String,
    },
    /// [`Request::past_end`](crate::Request::past_end) is set too.
    #[error("an answer that keeps to a constraint cannot go on past its end")]
    PastEnd,
    /// This program was built without what it needs.
    #[error("answers cannot be constrained: this program was built without the feature `constrain`")]
    NotCompiled,
}

impl ConstraintError {
    /// Whether it is about one answer, not about the constraint itself: another answer may fare better.
    pub(crate) fn is_about_answer(&self) -> bool {
        matches!(self, ConstraintError::Stuck { .. })
    }
}
