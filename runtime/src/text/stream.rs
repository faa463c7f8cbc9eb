//! How do ids become text while they come?

use super::Tokenizer;
use crate::prompt::PromptError;

/// Turns ids into text one at a time: never half a character, never a part of a stop string.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stops` (empty ones are ignored).
    pub fn new(tokenizer: Tokenizer, stops: &[String]) -> TextStream {
        let _ = stops;
        TextStream {
            tokenizer,
            stopped: false,
        }
    }

    /// Takes the next id; returns text that is certain by now, often empty. After a stop string nothing more comes.
    pub fn push(&mut self, id: i64) -> Result<String, PromptError> {
        self.tokenizer.decode(&[id])
    }

    /// Whether a stop string was met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// No more ids will come: the text that was held back.
    pub fn finish(&mut self) -> Result<String, PromptError> {
        Ok(String::new())
    }
}
