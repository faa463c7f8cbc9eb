//! How does text become ids, and ids text?

use super::bounds::Parts;
use crate::PromptError;
use crate::catch::catch;
use std::path::Path;
use std::sync::Arc;

/// Bytes of the shortest beginning that [`Tokenizer::encode_at_most`] takes of a text.
const LEAST_BEGINNING: usize = 16 << 10;
/// By how many tokens the beginning of a text may be more than the whole, at most: those of a word that it ends in.
const CUT_WORD: usize = 256;

/// A bundle's tokenizer. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) inner: Arc<tokenizers::Tokenizer>,
    vocabulary: usize,
    /// For messages.
    pub(super) file: Arc<Path>,
}

impl Tokenizer {
    /// Opens a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or that the tokenizers library does not take.
    pub fn open(path: &Path) -> Result<Tokenizer, PromptError> {
        let bytes = models::regular::bytes(path, u64::MAX).map_err(|source| PromptError::Read {
            path: path.to_owned(),
            source,
        })?;
        Tokenizer::read(path, &bytes)
    }

    /// Reads the contents of a `tokenizer.json`; `path` stands in errors. Its truncation and padding are
    /// ignored, as transformers does.
    ///
    /// # Errors
    /// What the tokenizers library does not take, with line and column where it is no JSON.
    pub fn read(path: &Path, json: &[u8]) -> Result<Tokenizer, PromptError> {
        let parsed =
            catch(|| Tokenizer::parse(path, json)).unwrap_or_else(|words| Err(sentence(&words).into()));
        parsed.map_err(|reason| PromptError::Tokenizer {
            path: path.to_owned(),
            reason: reason.to_string(),
        })
    }

    fn parse(path: &Path, json: &[u8]) -> tokenizers::Result<Tokenizer> {
        // The library asserts that these can be read, and does as they say whatever it costs.
        serde_json::from_slice::<Parts>(json)?.check()?;
        let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let last = inner
            .get_vocab(true)
            .into_values()
            .max()
            .ok_or("it has no tokens")?;
        let vocabulary = usize::try_from(last)?.saturating_add(1);
        Ok(Tokenizer {
            inner: Arc::new(inner),
            vocabulary,
            file: path.into(),
        })
    }

    /// Ids of `text`. Special tokens in it become their ids; none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, PromptError> {
        let encoding = self.calling(|| self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }

    /// Ids of `text` where they are at most `most`, otherwise those of a beginning of it, more than `most`: what is
    /// much too long for a model costs about as much memory and time as what just fits, however long it is.
    pub fn encode_at_most(&self, text: &str, most: usize) -> Result<Vec<i64>, PromptError> {
        // A token is some four bytes of most texts; of a repetition it may be hundreds.
        let mut length = most.saturating_mul(4).max(LEAST_BEGINNING);
        while length < text.len() {
            let beginning = text.split_at(text.floor_char_boundary(length)).0;
            let ids = self.encode(beginning)?;
            // The last word may be cut through, and be more tokens than when it is whole.
            if ids.len() > most.saturating_add(CUT_WORD) {
                return Ok(ids);
            }
            length = length.saturating_mul(2);
        }
        self.encode(text)
    }

    /// Text of `ids`, without special tokens. Bytes that are not UTF-8 become U+FFFD; ids without a token
    /// nothing.
    pub fn decode(&self, ids: &[i64]) -> Result<String, PromptError> {
        let ids: Result<Vec<u32>, _> = ids
            .iter()
            .map(|&id| {
                u32::try_from(id).map_err(|_| PromptError::Tokenize {
                    reason: format!("{id} is not the id of a token"),
                })
            })
            .collect();
        let ids = ids?;
        self.calling(|| self.inner.decode(&ids, true))
    }

    /// Calls the tokenizers library, which asserts that what its file says fits together.
    fn calling<T>(&self, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, PromptError> {
        let result = catch(work).unwrap_or_else(|words| Err(sentence(&words).into()));
        result.map_err(|error| PromptError::Tokenize {
            reason: format!("`{}`: {error}", self.file.display()),
        })
    }

    /// One more than the largest id that has a token: rows of the logits from there on are padding of the
    /// table.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id of a token, special or not.
    pub fn id_of(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Whether an id is that of a token that was added to the vocabulary, as all special ones are.
    pub fn is_added(&self, id: i64) -> bool {
        u32::try_from(id).is_ok_and(|id| self.added(id).is_some())
    }

    /// The token that was added to the vocabulary with an id.
    pub(super) fn added(&self, id: u32) -> Option<&tokenizers::AddedToken> {
        // The tokenizer's own method of this name copies all of them.
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
    }
}

/// What a panic of the library says to people. Where it expected a value and had an error, the panic has the
/// error's text of `Debug`, of which this is the sentence; where nothing is a sentence, it says that.
fn sentence(words: &str) -> String {
    let (what, error) = words.split_once(": Error(\"").unwrap_or((words, ""));
    let (error, _) = error.split_once("\", line: ").unwrap_or((error, ""));
    let named = !what.is_empty() && !what.contains(['`', '(', '{']);
    match (named, error) {
        (false, "") => "the tokenizers library failed on it".to_owned(),
        (true, "") => what.to_owned(),
        (false, error) => error.replace('\\', ""),
        (true, error) => format!("`{what}`: {}", error.replace('\\', "")),
    }
}

/// A byte-level tokenizer without merges, as Qwen2's but for its size: every byte is a token, and four
/// special ones.
#[cfg(test)]
pub(crate) fn json_for_tests() -> String {
    // GPT-2's table of printable stand-ins for bytes.
    let mut next = 256;
    let letters = (0..256_u32).map(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
        _ => {
            next += 1;
            next - 1
        }
    });
    let vocabulary: serde_json::Map<_, _> = letters
        .enumerate()
        .map(|(id, letter)| (char::from_u32(letter).unwrap().to_string(), id.into()))
        .collect();
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"];
    let added: Vec<_> = (256..)
        .zip(special)
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                               "normalized": false, "special": true})
        })
        .collect();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []}
    });
    json.to_string()
}

/// The tokenizer of [`json_for_tests`].
#[cfg(test)]
pub(crate) fn bytes_for_tests() -> Tokenizer {
    Tokenizer::read(Path::new("tokenizer.json"), json_for_tests().as_bytes()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_one_id_and_are_not_decoded() {
        let tokenizer = bytes_for_tests();
        assert_eq!(tokenizer.vocabulary(), 260);
        assert_eq!(tokenizer.id_of("<|im_end|>"), Some(258));
        assert_eq!(tokenizer.id_of("<|nothing|>"), None);
        let ids = tokenizer.encode("é<|im_end|>!").unwrap();
        assert_eq!(ids, [0xc3, 0xa9, 258, 0x21]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "é!");
        assert_eq!(tokenizer.decode(&[0xc3]).unwrap(), "\u{fffd}");
        assert!(matches!(
            tokenizer.decode(&[-200]),
            Err(PromptError::Tokenize { .. })
        ));
        assert!(tokenizer.encode("").unwrap().is_empty());
    }

    /// Up to the limit all of a text, however it is cut; above it, a beginning.
    #[test]
    fn of_what_is_much_too_long_a_beginning_is_encoded() {
        let tokenizer = bytes_for_tests();
        let text = "aé\u{10348}<|im_end|>".repeat(10_000);
        let whole = tokenizer.encode(&text).unwrap();
        for most in [0, 1, 1000, whole.len() - 1, whole.len(), usize::MAX] {
            let ids = tokenizer.encode_at_most(&text, most).unwrap();
            if whole.len() <= most {
                assert_eq!(ids, whole);
            } else {
                assert!(ids.len() > most, "{most}: {}", ids.len());
                let bound = (8 * most).max(LEAST_BEGINNING).max(most + CUT_WORD);
                assert!(ids.len() <= bound, "{most}: {}", ids.len());
            }
        }
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let tokenizer = bytes_for_tests();
        let mut json: serde_json::Value =
            serde_json::from_str(&tokenizer.inner.to_string(false).unwrap()).unwrap();
        json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 256, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
        let json = json.to_string();
        let tokenizer = Tokenizer::read(Path::new("tokenizer.json"), json.as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("abcd").unwrap().len(), 4);
    }

    /// A wrong byte ends at a place in the file, not in an assertion of the library.
    #[test]
    fn a_wrong_byte_is_said_with_its_place() {
        let whole = json_for_tests();
        let place = whole.find("\"decoder\":{").unwrap() + 14;
        let mut json = whole.into_bytes();
        json[place] = b'"';
        let error = Tokenizer::read(Path::new("tokenizer.json"), &json).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("tokenizer.json") && error.contains("line 1 column"),
            "{error}"
        );
    }

    /// The library expects some parts to be readable: its panic has the text of `Debug` of an error.
    #[test]
    fn parts_that_the_library_asserts_to_read_are_said_in_a_sentence() {
        crate::catch::silence_caught_panics();
        let normalizer = |part: serde_json::Value| {
            let mut json: serde_json::Value = serde_json::from_str(&json_for_tests()).unwrap();
            json["normalizer"] = part;
            let read = Tokenizer::read(Path::new("tokenizer.json"), json.to_string().as_bytes());
            read.map(|_| ()).unwrap_err().to_string()
        };
        let map =
            |map: serde_json::Value| serde_json::json!({"type": "Precompiled", "precompiled_charsmap": map});
        for bad in [
            serde_json::Value::Null,
            3.into(),
            "!".into(),
            "AAAA".into(),
            serde_json::json!(["\"", "\\"]),
        ] {
            for part in [
                map(bad.clone()),
                serde_json::json!({"type": "Sequence", "normalizers": [map(bad)]}),
            ] {
                let error = normalizer(part);
                assert!(error.contains("`tokenizer.json`: "), "{error}");
                assert!(!error.ends_with(": "), "{error}");
                for debug in ["Error(", "Error {", "Err(", "called `", "line: "] {
                    assert!(!error.contains(debug), "{error}");
                }
            }
        }
    }

    #[test]
    fn panics_become_sentences() {
        for (panic, expected) in [
            (
                "Precompiled: Error(\"a \\\"b\\\"\", line: 1, column: 28)",
                "`Precompiled`: a \"b\"",
            ),
            (
                "called `Result::unwrap()` on an `Err` value: Error(\"no\", line: 0, column: 0)",
                "no",
            ),
            (
                "called `Option::unwrap()` on a `None` value",
                "the tokenizers library failed on it",
            ),
            (
                "Bad charsmap: Utf8Error { valid_up_to: 0, error_len: Some(1) }",
                "the tokenizers library failed on it",
            ),
            ("", "the tokenizers library failed on it"),
            (
                "index out of bounds: the len is 0 but the index is 0",
                "index out of bounds: the len is 0 but the index is 0",
            ),
        ] {
            assert_eq!(sentence(panic), expected);
        }
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        assert!(matches!(Tokenizer::open(&path), Err(PromptError::Read { .. })));
        for contents in ["", "{}", "[1, 2", "{\"model\": 3}"] {
            std::fs::write(&path, contents).unwrap();
            let error = Tokenizer::open(&path).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json"), "{error}");
        }
    }
}
