//! What do engines get wrong, and why do we live with it? Each exception is asserted to still fail: one that heals is
//! reported and must be removed here.

use crate::subject::Subject;

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Name of the case, or its beginning up to a `/`.
    pub case: &'static str,
    /// Name of the provider.
    pub provider: &'static str,
    /// Only in this precision; in each where absent.
    pub precision: Option<&'static str>,
    /// What is wrong, whose fault it is, until when.
    pub reason: &'static str,
}

/// Every exception.
pub const KNOWN: &[Known] = &[];

/// The exception for a case on a subject.
pub fn find(case: &str, subject: &Subject) -> Option<&'static Known> {
    KNOWN.iter().find(|known| {
        let below = case
            .strip_prefix(known.case)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below
            && known.provider == subject.provider.name()
            && known
                .precision
                .is_none_or(|precision| precision == subject.precision.name())
    })
}
