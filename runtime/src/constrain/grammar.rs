//! Grammars over a vocabulary: which tokens may come next?

use super::schema;
use super::{Constraint, ConstraintError};
use crate::text::{TokenBytes, Tokenizer};
use ::prompt::catch::catch;
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::derivre::RegexBuilder;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use std::fmt;
use std::sync::Arc;
use std::thread;

/// Bytes of stack for compiling: nested schemas and expressions are compiled by recursion.
const STACK: usize = 64 << 20;

/// Bytes of a regular expression, and of all choices.
const MAX_TEXT: usize = 64 << 10;

/// States of the automaton that one answer may make, a kilobyte or two each.
const MAX_STATES: usize = 50_000;

/// Items of the parser in one place: four for each optional property of an object.
const MAX_ROW: usize = 8_000;

/// Characters of the words of the grammar library that are passed on.
const MAX_REASON: usize = 300;

/// Tokenizer and trie, as the grammar library asks for them.
struct Words {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Words {
    /// The tokens that a text has alone, or others of the same bytes: none that was added to the vocabulary.
    fn tokens(&self, text: &str) -> Vec<TokenId> {
        let ids = self.tokenizer.encode(text).unwrap_or_default();
        let ids: Vec<TokenId> = ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
        // A normalizer may change bytes, and a name of an added token in the text becomes that token.
        let same = !ids.iter().any(|&id| self.trie.is_special_token(id))
            && self.trie.decode_raw(&ids) == text.as_bytes();
        if same {
            ids
        } else {
            self.trie.greedy_tokenize(text.as_bytes())
        }
    }
}

impl TokenizerEnv for Words {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie
            .tokenize_with_greedy_fallback(bytes, |text| self.tokens(text))
    }
}

/// What all constraints of a model share: the tokens' bytes as a trie, which takes some tenths of a
/// second to make for 150,000 tokens.
pub struct Vocabulary {
    factory: ParserFactory,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.factory.tok_env().tok_trie().vocab_size();
        f.debug_struct("Vocabulary")
            .field("tokens", &tokens)
            .finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// That of a tokenizer. `stop_ids` may come where an answer is complete.
    ///
    /// # Errors
    /// A tokenizer that is not byte-level.
    pub fn new(tokenizer: &Tokenizer, stop_ids: &[i64]) -> Result<Vocabulary, ConstraintError> {
        let unusable = |reason: String| ConstraintError::Tokenizer { reason };
        let tokens = tokenizer
            .all_bytes()
            .map_err(|error| unusable(error.to_string()))?;
        let words: Vec<Vec<u8>> = tokens.into_iter().map(word).collect();
        let count = u32::try_from(words.len()).map_err(|error| unusable(error.to_string()))?;
        let ends: Vec<TokenId> = stop_ids
            .iter()
            .filter_map(|&id| u32::try_from(id).ok())
            .filter(|&id| id < count)
            .collect();
        let tokenizer = tokenizer.clone();
        let made = caught(move || {
            let mut trie = TokTrie::from(&TokRxInfo::new(count, INVALID_TOKEN), &words);
            if !ends.is_empty() {
                trie = trie.with_eos_tokens(&ends);
            }
            let words: TokEnv = Arc::new(Words { tokenizer, trie });
            let capabilities = InferenceCapabilities::default();
            let slices = SlicedBiasComputer::general_slices();
            ParserFactory::new(&words, capabilities, &slices).map_err(|error| brief(&error.to_string()))
        });
        let mut factory = made.and_then(|made| made).map_err(unusable)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_STATES;
        limits.max_items_in_row = MAX_ROW;
        limits.verbose_errors = false;
        Ok(Vocabulary { factory })
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// One that cannot be kept, or is too large.
    pub fn follow(&self, constraint: &Constraint) -> Result<Follower, ConstraintError> {
        let (grammar, failed) = grammar(constraint)?;
        let work = || caught(|| Matcher::new(self.factory.create_parser(grammar)));
        let made = thread::scope(|scope| {
            let thread = thread::Builder::new().name("constraint".to_owned());
            let thread = thread.stack_size(STACK).spawn_scoped(scope, work);
            let thread = thread.map_err(|error| error.to_string())?;
            thread.join().unwrap_or_else(|_| Err("a panic".to_owned()))
        });
        let mut matcher = made.map_err(&failed)?;
        if let Some(error) = matcher.get_error() {
            return Err(failed(brief(&error)));
        }
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(failed(brief(warning)));
        }
        let mut follower = Follower {
            matcher,
            allowed: Vec::new(),
        };
        if follower.matcher.is_stopped()
            || matches!(follower.allowed(), Ok(allowed) if self.ends_only(allowed))
        {
            return Err(failed("only the empty answer keeps to it".to_owned()));
        }
        // What can be said about it at once is not said in the middle of an answer.
        follower.allowed().map_err(|error| match error {
            ConstraintError::Stuck { reason } => failed(reason),
            other => other,
        })?;
        Ok(follower)
    }

    /// Whether nothing but an end may come.
    fn ends_only(&self, allowed: &[u32]) -> bool {
        let trie = self.factory.tok_env().tok_trie();
        let ends = trie.eos_token_set();
        let rest = allowed.iter().zip(ends.as_slice());
        allowed.iter().any(|&word| word != 0) && rest.into_iter().all(|(word, ends)| word & !ends == 0)
    }
}

/// A token as the trie has it: what is no text begins with a byte that no text has.
fn word(token: TokenBytes) -> Vec<u8> {
    match token {
        TokenBytes::Text(bytes) => bytes,
        TokenBytes::Added(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
        TokenBytes::Unused => Vec::new(),
    }
}

/// How what is wrong with a constraint of one kind is said.
type Failed = fn(String) -> ConstraintError;

/// The grammar of a constraint, checked as far as we know better than the library.
fn grammar(constraint: &Constraint) -> Result<(TopLevelGrammar, Failed), ConstraintError> {
    let schema_failed: Failed = |reason| ConstraintError::Schema { reason };
    Ok(match constraint {
        Constraint::JsonSchema(schema) => {
            let schema = schema::prepared(schema)?;
            (TopLevelGrammar::from_json_schema(schema), schema_failed)
        }
        Constraint::JsonObject => {
            let schema = schema::prepared(&serde_json::json!({"type": "object"}))?;
            (TopLevelGrammar::from_json_schema(schema), schema_failed)
        }
        Constraint::Regex(pattern) => {
            let failed: Failed = |reason| ConstraintError::Regex { reason };
            check_length("regular expression", pattern.len())?;
            super::expression::check(pattern).map_err(failed)?;
            let parsed = caught(|| RegexBuilder::new().mk_regex(pattern).map(|_| ()));
            match parsed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed(brief(&error.to_string()))),
                Err(reason) => return Err(failed(reason)),
            }
            (TopLevelGrammar::from_regex(pattern), failed)
        }
        Constraint::Choices(choices) => {
            let failed: Failed = |reason| ConstraintError::Choices { reason };
            if choices.is_empty() {
                return Err(failed("there are none".to_owned()));
            }
            if choices.iter().any(String::is_empty) {
                return Err(failed("one of them is empty".to_owned()));
            }
            check_length("list of choices", choices.iter().map(String::len).sum())?;
            let patterns: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            let pattern = format!("({})", patterns.join("|"));
            (TopLevelGrammar::from_regex(&pattern), failed)
        }
    })
}

/// Bytes of several texts, which are not too many.
pub(super) fn length<'a>(
    what: &'static str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<usize, ConstraintError> {
    let mut found = 0;
    for text in texts {
        // An empty one, which is refused later, takes memory too.
        found += text.len().max(1);
        check_length(what, found)?;
    }
    Ok(found)
}

fn check_length(what: &'static str, found: usize) -> Result<(), ConstraintError> {
    if found > MAX_TEXT {
        return Err(ConstraintError::TooLarge {
            what,
            found,
            unit: "bytes",
            most: MAX_TEXT,
        });
    }
    Ok(())
}

/// The regular expression of one text.
fn literal(text: &str) -> String {
    let letter = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | ' ' => letter.to_string(),
        other => format!("\\x{{{:x}}}", u32::from(other)),
    };
    text.chars().map(letter).collect()
}

/// Runs code of the library; the words of its panic.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch(work).map_err(|words| brief(&words))
}

/// What the library says, without its traces and dumps.
fn brief(words: &str) -> String {
    let words = words.split("\n<").next().unwrap_or_default().trim();
    if let Some(assertion) = words.strip_prefix("panic: ") {
        return brief(&format!(
            "it is more than the grammar library takes ({assertion})"
        ));
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let words = words.replace("Unimplemented keys:", "it has keywords that cannot be kept to:");
    // The name of a reason of the library's.
    let words = words.replace(
        "NoExtensionBias",
        "no text keeps to it that can be reached token by token",
    );
    match words.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}...", words.get(..end).unwrap_or_default()),
        None => words,
    }
}

/// Where an answer is within its constraint.
pub struct Follower {
    matcher: Matcher,
    /// The tokens that may come next; empty if that was not asked yet.
    allowed: Vec<u32>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("stopped", &self.matcher.is_stopped())
            .finish_non_exhaustive()
    }
}

impl Follower {
    /// Which tokens may come next, a bit each: of id `i` bit `i % 32` of word `i / 32`. Stop ids are among them where the answer is
    /// complete.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`].
    pub fn allowed(&mut self) -> Result<&[u32], ConstraintError> {
        if self.allowed.is_empty() {
            let mask = self
                .matcher
                .compute_mask_or_eos()
                .map_err(|error| stuck(&error.to_string()))?;
            self.allowed = mask.into();
        }
        Ok(&self.allowed)
    }

    /// Takes a token of the answer, which may come; whether the answer is complete and nothing can follow.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`].
    pub fn take(&mut self, id: i64) -> Result<bool, ConstraintError> {
        self.allowed.clear();
        let id = u32::try_from(id).map_err(|_| stuck(&format!("{id} is not the id of a token")))?;
        self.matcher
            .consume_token(id)
            .map_err(|error| stuck(&error.to_string()))?;
        match self.matcher.stop_reason() {
            StopReason::NotStopped => Ok(false),
            reason if reason.is_ok() => Ok(true),
            reason => Err(stuck(&reason.to_string())),
        }
    }
}

fn stuck(words: &str) -> ConstraintError {
    ConstraintError::Stuck { reason: brief(words) }
}

#[cfg(test)]
mod tests;
