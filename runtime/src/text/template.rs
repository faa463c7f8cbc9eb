//! How does a chat template become text?
/// A chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {}
