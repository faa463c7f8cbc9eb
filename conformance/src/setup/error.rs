//! Why did a trial not come to an end? [`CaseError`], of everything that prepares a trial or is one; [`Context`] says
//! what was being done.

/// Why a trial did not come to an end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// It cannot be tried here, and that is no fault.
    #[error("{0}")]
    Skip(String),
    /// Something broke.
    #[error("{context}: {message}")]
    Failed {
        /// What was being done.
        context: String,
        /// What the part said, with its causes.
        message: String,
    },
}

impl CaseError {
    /// Something broke while `context` was being done.
    pub fn failed(context: impl Into<String>, error: &dyn std::error::Error) -> CaseError {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Transparent wrappers repeat what they wrap.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        CaseError::Failed {
            context: context.into(),
            message,
        }
    }
}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// Converts the error into a [`CaseError`].
    ///
    /// # Errors
    /// The same error, with `context`.
    fn during(self, context: impl FnOnce() -> String) -> Result<T, CaseError>;
}

impl<T, E: std::error::Error> Context<T> for Result<T, E> {
    fn during(self, context: impl FnOnce() -> String) -> Result<T, CaseError> {
        self.map_err(|error| CaseError::failed(context(), &error))
    }
}
