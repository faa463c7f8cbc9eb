//! Which token comes next?

use thiserror::Error;

/// Logits that give no token, or parameters that make no sense.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SampleError {
    /// Parameters outside their range, all of them.
    #[error("{}", .problems.join("; "))]
    Parameters {
        /// One sentence a fault.
        problems: Vec<String>,
    },
    /// There are fewer logits than the vocabulary has tokens, or none.
    #[error("{found} logits, expected at least {expected}")]
    Length {
        /// Logits given.
        found: usize,
        /// Tokens in the vocabulary.
        expected: usize,
    },
    /// The model computed something that is not a number.
    #[error("the logit of token {id} is {value}, expected a finite number")]
    NotFinite {
        /// The first such token.
        id: usize,
        /// NaN or infinity.
        value: f32,
    },
}

/// How a token is chosen. [`Sampling::default`] is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 chooses the most likely token; otherwise the logits are divided by it.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Makes tokens of the prompt and the answer less likely (above 1) or more (below 1).
    pub repetition_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Chooses tokens, one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    vocabulary: usize,
}

impl Sampler {
    /// A sampler over the first `vocabulary` logits (the tokenizer's size: rows beyond are padding of the table).
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Sampler, SampleError> {
        Ok(Sampler { sampling, vocabulary })
    }

    /// The next token. `logits`: `[vocab]` of the last position; `context`: the ids of the prompt and of the answer so
    /// far, which the repetition penalty looks at.
    pub fn pick(&mut self, logits: &[f32], context: &[i64]) -> Result<i64, SampleError> {
        let _ = (context, self.sampling);
        Err(SampleError::Length {
            found: logits.len(),
            expected: self.vocabulary,
        })
    }
}
