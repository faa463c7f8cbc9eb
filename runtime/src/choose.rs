//! Choices: how likely is each of several answers?

use crate::conversation::Conversation;
use crate::error::EngineError;
use crate::generate::NextToken as _;
use crate::logprobs::log_sum;
use crate::model::ProviderReport;
use crate::prompt::Message;
use crate::request::Request;
use crate::sample::Sampler;
use crate::stats::{Stats, peak_memory};
use crate::text::Tokenizer;
use kernels::planes::with_all_bits;
use std::collections::BTreeSet;
use std::time::Instant;
use thiserror::Error;

/// Most choices at once.
pub const MAX_CHOICES: usize = 1000;

/// One of several answers, and how likely it is.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Choice {
    /// The answer.
    pub text: String,
    /// Natural logarithm of its probability: the sum of those of its tokens, each in the model's own distribution.
    pub logprob: f64,
    /// Its share of the probability of all choices; they add up to 1.
    pub probability: f64,
}

/// Choices that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChoicesError {
    /// There is nothing to compare.
    #[error("{found} choices, expected 1 to {MAX_CHOICES}")]
    Count {
        /// How many there are.
        found: usize,
    },
    /// One has no letters.
    #[error("choice {number} is empty")]
    Empty {
        /// Which, from 1.
        number: usize,
    },
    /// One is there twice, or two are the same tokens.
    #[error("choice {number} `{text}` is there twice")]
    Twice {
        /// The second of them, from 1.
        number: usize,
        /// Its text.
        text: String,
    },
    /// One has the name of a token that was added to the vocabulary: no answer has it as text.
    #[error("choice {number} `{text}` has the name of a special token in it")]
    Special {
        /// Which, from 1.
        number: usize,
        /// Its text.
        text: String,
    },
}

/// How likely each of several answers is, and what it took to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Choices {
    /// The answers, in the order in which they were given.
    pub choices: Vec<Choice>,
    /// Whether the end of the answer counts too: one choice is the beginning of another.
    pub end_counts: bool,
    /// Who computed, and with which graphs.
    pub provider: ProviderReport,
    /// What is to be said about the choice of the engine, which the first answer decides; one line each.
    pub notices: Vec<String>,
    /// What it took; [`Stats::tokens`] are those that were computed.
    pub stats: Stats,
}

impl Choices {
    /// The likeliest; of equals the first.
    pub fn best(&self) -> Option<&Choice> {
        let later = |best: &'_ Choice, next: &'_ Choice| next.probability > best.probability;
        self.choices
            .iter()
            .reduce(|best, next| if later(best, next) { next } else { best })
    }
}

/// A choice in tokens.
struct Tokens {
    /// Its place among the choices.
    place: usize,
    ids: Vec<i64>,
}

/// What of the distribution after some tokens is asked for.
struct Row {
    /// Log-probabilities of the tokens that choices go on with.
    next: Vec<(i64, f64)>,
    /// That of the end of the answer, whatever stop id it is.
    end: f64,
}

impl Row {
    fn of(&self, id: i64) -> f64 {
        let found = self.next.iter().find(|(next, _)| *next == id);
        found.map_or(f64::NEG_INFINITY, |(_, logprob)| *logprob)
    }
}

/// How choices are compared.
struct Comparison {
    /// All of them, in the order of their tokens.
    sorted: Vec<Tokens>,
    /// Positions of the prompt.
    prompt: usize,
    sampler: Sampler,
    /// Ids that end the answer, where the end counts.
    ends: Option<Vec<i64>>,
}

impl Comparison {
    /// The row after the first `depth` tokens of choice `number`, for it and for those after it that begin like that.
    fn row(&self, logits: &[f32], number: usize, depth: usize) -> Result<Row, EngineError> {
        let logits = self.sampler.checked(logits)?;
        let log_sum = log_sum(logits);
        let of = |id: i64| {
            let logit = usize::try_from(id).ok().and_then(|id| logits.get(id));
            logit.map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - log_sum)
        };
        let rest = self.sorted.get(number..).unwrap_or_default();
        let beginning = rest.first().and_then(|choice| choice.ids.get(..depth));
        let beginning = beginning.unwrap_or_default();
        let like = rest.iter().take_while(|choice| choice.ids.starts_with(beginning));
        let mut next: Vec<(i64, f64)> = like
            .filter_map(|choice| choice.ids.get(depth))
            .map(|&id| (id, of(id)))
            .collect();
        next.dedup_by_key(|(id, _)| *id);
        let ends = self.ends.iter().flatten();
        Ok(Row {
            next,
            end: ends.map(|&id| of(id).exp()).sum::<f64>().ln(),
        })
    }
}

impl Conversation {
    /// How likely each of `choices` is as the answer to `messages`: classification, yes or no, ratings. The prompt is read
    /// once, what choices begin with in common too; nothing is said, and the conversation is as it was after the prompt.
    ///
    /// The likelihood of a choice is the product of those of its tokens, as the tokenizer makes them of the choice alone, at the
    /// beginning of an answer: in the model's own distribution over the vocabulary, whatever the request says about sampling
    /// and constraints. Where one choice is the beginning of another (`1` and `10`, in tokens), the end of the answer counts as
    /// one more token of each, whatever stop id it is: otherwise the shorter would always win. Of the request,
    /// [`Request::cancel`] is looked at; it is not too late until this returns.
    ///
    /// # Errors
    /// As [`Conversation::chat`], choices that cannot be compared, and [`EngineError::TooLong`] where the longest of them does
    /// not fit.
    pub fn choose<T: AsRef<str>>(
        &mut self,
        messages: &[Message],
        choices: &[T],
        request: &Request,
    ) -> Result<Choices, EngineError> {
        check(choices)?;
        let plain = Request {
            cancel: request.cancel.clone(),
            ..Request::default()
        };
        let begun = Instant::now();
        // What is compared may all be far from what the model would say.
        let mut prepared = with_all_bits(|| self.prepare(messages, &plain))?;
        let first = Instant::now();
        let tokenizer = self.model().prompter()?.tokenizer().clone();
        let sorted = tokens(choices, &tokenizer, self.model().context()?)?;
        // Sorted, a choice stands right before those that it begins.
        let begins = |pair: &[Tokens]| matches!(pair, [a, b] if b.ids.starts_with(&a.ids));
        let end_counts = sorted.windows(2).any(begins);
        let comparison = Comparison {
            sorted,
            prompt: self.sequence.fed(),
            sampler: prepared.sampler.clone(),
            ends: end_counts.then(|| self.model().bundle().prompt.stop_ids.clone()),
        };
        let row = prepared.logits.as_slice().unwrap_or_default();
        let compared = with_all_bits(|| self.compare(&comparison, row, &plain));
        // Also where it was cancelled halfway.
        let rewound = self.sequence.rewind(comparison.prompt);
        let (logprobs, steps) = compared?;
        rewound?;
        prepared.stats.time_to_first_token = Some(first.duration_since(begun).as_secs_f64());
        prepared.stats.tokens = steps;
        prepared.stats.tokens_per_second = Stats::rate(steps + 1, first.elapsed());
        prepared.stats.peak_memory = peak_memory();
        let probabilities = shares(&logprobs);
        let each = choices.iter().zip(logprobs).zip(probabilities);
        Ok(Choices {
            choices: each
                .map(|((text, logprob), probability)| Choice {
                    text: text.as_ref().to_owned(),
                    logprob,
                    probability,
                })
                .collect(),
            end_counts,
            provider: prepared.provider,
            notices: prepared.notices,
            stats: prepared.stats,
        })
    }

    /// The log-probability of each choice, in their own order, and how many tokens were fed for that: each choice as far as it
    /// differs from the one before.
    fn compare(
        &mut self,
        comparison: &Comparison,
        first: &[f32],
        request: &Request,
    ) -> Result<(Vec<f64>, usize), EngineError> {
        let Comparison {
            sorted, prompt, ends, ..
        } = comparison;
        // The last token of a choice is not fed where nothing is asked after it.
        let fed_of = |choice: &Tokens| choice.ids.len() - usize::from(ends.is_none());
        let needed = prompt + sorted.iter().map(fed_of).max().unwrap_or(0);
        let expected = prompt + self.sequence.room();
        if needed > expected {
            let found = needed;
            return Err(EngineError::TooLong { found, expected });
        }
        let mut logprobs = vec![f64::NEG_INFINITY; sorted.len()];
        // The prompt's, then that after each token that is fed.
        let mut rows = vec![comparison.row(first, 0, 0)?];
        let mut fed: Vec<i64> = Vec::new();
        let mut steps = 0;
        for (number, choice) in sorted.iter().enumerate() {
            let common = fed.iter().zip(&choice.ids).take_while(|(a, b)| a == b).count();
            fed.truncate(common);
            rows.truncate(common + 1);
            self.sequence.rewind(prompt + common)?;
            for &id in choice.ids.get(common..fed_of(choice)).unwrap_or_default() {
                request.check()?;
                let logits = self.sequence.step(id)?;
                steps += 1;
                fed.push(id);
                rows.push(comparison.row(logits.as_slice().unwrap_or_default(), number, fed.len())?);
            }
            let mut logprob: f64 = choice.ids.iter().zip(&rows).map(|(&id, row)| row.of(id)).sum();
            if ends.is_some() {
                let end = rows.get(choice.ids.len());
                logprob += end.map_or(f64::NEG_INFINITY, |row| row.end);
            }
            if let Some(place) = logprobs.get_mut(choice.place) {
                *place = logprob;
            }
        }
        Ok((logprobs, steps))
    }
}

/// Refuses choices that cannot be compared, whatever the tokenizer.
fn check<T: AsRef<str>>(choices: &[T]) -> Result<(), ChoicesError> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let found = choices.len();
        return Err(ChoicesError::Count { found });
    }
    let mut seen = BTreeSet::new();
    for (number, choice) in (1..).zip(choices) {
        let text = choice.as_ref();
        if text.is_empty() {
            return Err(ChoicesError::Empty { number });
        }
        if !seen.insert(text) {
            let text = text.to_owned();
            return Err(ChoicesError::Twice { number, text });
        }
    }
    Ok(())
}

/// The choices in tokens, in the order of these. Of one that is longer than `context` there may be a beginning.
fn tokens<T: AsRef<str>>(
    choices: &[T],
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Vec<Tokens>, EngineError> {
    let mut sorted = Vec::with_capacity(choices.len());
    for (place, choice) in choices.iter().enumerate() {
        let (number, text) = (place + 1, choice.as_ref());
        let ids = tokenizer.encode_at_most(text, context)?;
        if ids.iter().any(|&id| tokenizer.is_added(id)) {
            let text = text.to_owned();
            return Err(ChoicesError::Special { number, text }.into());
        }
        // A normalizer may leave nothing of a text.
        if ids.is_empty() {
            return Err(ChoicesError::Empty { number }.into());
        }
        sorted.push(Tokens { place, ids });
    }
    sorted.sort_by(|a, b| a.ids.cmp(&b.ids));
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && a.ids == b.ids
        {
            // Two spellings of the same letters.
            let place = a.place.max(b.place);
            let text = choices.get(place).map(|choice| choice.as_ref().to_owned());
            return Err(ChoicesError::Twice {
                number: place + 1,
                text: text.unwrap_or_default(),
            }
            .into());
        }
    }
    Ok(sorted)
}

/// What each has of the sum of all, from logarithms; where all are 0, each has the same.
fn shares(logprobs: &[f64]) -> Vec<f64> {
    let maximum = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let relative = logprobs.iter().map(|logprob| {
        if maximum == f64::NEG_INFINITY {
            1.0
        } else {
            (logprob - maximum).exp()
        }
    });
    let relative: Vec<f64> = relative.collect();
    let sum: f64 = relative.iter().sum();
    relative.into_iter().map(|share| share / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_one() {
        let shares = shares(&[-1000.0, -1000.0 + 3.0_f64.ln(), f64::NEG_INFINITY]);
        assert!((shares[0] - 0.25).abs() < 1e-12 && (shares[1] - 0.75).abs() < 1e-12);
        assert_eq!(shares[2], 0.0);
        assert_eq!(super::shares(&[f64::NEG_INFINITY; 2]), [0.5, 0.5]);
    }

    #[test]
    fn choices_that_cannot_be_compared() {
        assert_eq!(check::<&str>(&[]), Err(ChoicesError::Count { found: 0 }));
        assert_eq!(check(&["a", ""]), Err(ChoicesError::Empty { number: 2 }));
        let many: Vec<String> = (0..=MAX_CHOICES).map(|number| number.to_string()).collect();
        assert_eq!(check(&many), Err(ChoicesError::Count { found: 1001 }));
        assert!(check(&many[1..]).is_ok());
        let text = "a".to_owned();
        assert_eq!(
            check(&["a", "b", "a"]),
            Err(ChoicesError::Twice { number: 3, text })
        );
    }
}
