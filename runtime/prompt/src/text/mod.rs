//! How do ids and text become each other?

pub mod bounds;
mod bytes;
pub mod stream;
pub mod template;
pub mod tokenizer;

pub use bytes::TokenBytes;
pub use stream::TextStream;
pub use template::{ChatTemplate, TemplateContent, TemplateMessage, TemplatePart};
pub use tokenizer::Tokenizer;
