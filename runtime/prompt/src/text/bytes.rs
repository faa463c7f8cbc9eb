//! Token bytes: which bytes does a token stand for, alone?

use super::Tokenizer;
use crate::PromptError;
use tokenizers::DecoderWrapper;

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes of the text, perhaps a part of a character.
    Text(Vec<u8>),
    /// Something else than text: a token that was added to the vocabulary, by its name.
    Added(String),
    /// Nothing: there is no token with this id.
    Unused,
}

/// The byte that a letter of a byte-level vocabulary stands for: printable ones for themselves, the others for those from
/// U+0100 on, in order.
fn byte_of(letter: char) -> Option<u8> {
    match u32::from(letter) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

impl Tokenizer {
    /// What each token stands for; the place is its id, up to [`Tokenizer::vocabulary`].
    ///
    /// # Errors
    /// [`PromptError::Tokenize`] for a tokenizer that is not byte-level: its tokens are no bytes.
    pub fn all_bytes(&self) -> Result<Vec<TokenBytes>, PromptError> {
        self.check_byte_level()?;
        let ids = 0..u32::try_from(self.vocabulary()).unwrap_or(u32::MAX);
        ids.map(|id| match self.added(id) {
            Some(token) => Ok(TokenBytes::Added(token.content.clone())),
            None => self.text_bytes(id),
        })
        .collect()
    }

    /// The bytes of one token, perhaps a part of a character; of an added token, those of its name. `None` where there is no
    /// such token.
    pub fn bytes(&self, id: i64) -> Option<Vec<u8>> {
        let id = u32::try_from(id).ok()?;
        if let Some(token) = self.added(id) {
            return Some(token.content.clone().into_bytes());
        }
        let name = self.inner.id_to_token(id)?;
        if self.check_byte_level().is_ok()
            && let Ok(TokenBytes::Text(bytes)) = self.text_bytes(id)
        {
            return Some(bytes);
        }
        // A vocabulary of another kind: what the token is alone.
        let text = self.decode(&[i64::from(id)]).unwrap_or(name);
        Some(text.into_bytes())
    }

    fn text_bytes(&self, id: u32) -> Result<TokenBytes, PromptError> {
        let Some(name) = self.inner.id_to_token(id) else {
            return Ok(TokenBytes::Unused);
        };
        let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
        match bytes {
            Some(bytes) => Ok(TokenBytes::Text(bytes)),
            None => Err(PromptError::Tokenize {
                reason: format!(
                    "`{}`: token {id} is `{name}`, which is not made of the letters of a byte-level vocabulary",
                    self.file.display()
                ),
            }),
        }
    }

    fn check_byte_level(&self) -> Result<(), PromptError> {
        match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Ok(()),
            _other => Err(PromptError::Tokenize {
                reason: format!("`{}`: its decoder is not ByteLevel", self.file.display()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::{bytes_for_tests, json_for_tests};
    use super::*;
    use std::path::Path;

    #[test]
    fn every_byte_is_that_of_its_token() {
        let tokenizer = bytes_for_tests();
        let all = tokenizer.all_bytes().unwrap();
        assert_eq!(all.len(), 260);
        for byte in 0..=255_u8 {
            let expected = vec![byte];
            assert_eq!(all[usize::from(byte)], TokenBytes::Text(expected.clone()));
            assert_eq!(tokenizer.bytes(i64::from(byte)), Some(expected));
        }
        assert_eq!(all[258], TokenBytes::Added("<|im_end|>".to_owned()));
        assert_eq!(tokenizer.bytes(258), Some(b"<|im_end|>".to_vec()));
        assert_eq!(tokenizer.bytes(260), None);
        assert_eq!(tokenizer.bytes(-1), None);
    }

    #[test]
    fn a_vocabulary_of_another_kind_is_said() {
        let mut json: serde_json::Value = serde_json::from_str(&json_for_tests()).unwrap();
        json["decoder"] = serde_json::json!({"type": "Fuse"});
        let read = |json: &serde_json::Value| {
            Tokenizer::read(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap()
        };
        let error = read(&json).all_bytes().unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        assert_eq!(read(&json).bytes(65), Some(b"A".to_vec()));
        let mut json: serde_json::Value = serde_json::from_str(&json_for_tests()).unwrap();
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.insert("\u{4e2d}".to_owned(), 300.into());
        let tokenizer = read(&json);
        let error = tokenizer.all_bytes().unwrap_err().to_string();
        assert!(error.contains("token 300"), "{error}");
        assert_eq!(tokenizer.bytes(299), None);
    }
}
