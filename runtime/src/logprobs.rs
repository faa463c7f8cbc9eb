//! Log-probability: how likely did the model find a token?
//!
//! Of the model's own distribution: the softmax of its logits over the tokenizer's vocabulary, in float64, before
//! penalties, temperature, filters and constraints. Rows of the table beyond the vocabulary stand for no text and have no part
//! in it.

use crate::text::Tokenizer;

/// How likely the model found a token that was chosen, and others in its place.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: i64,
    /// Natural logarithm of its probability; -infinity where that is 0, which JSON has as null.
    pub logprob: f64,
    /// The likeliest tokens and theirs, as many as were asked for, the likeliest first, of equals the one with the smaller id.
    pub top: Vec<(i64, f64)>,
}

/// A [`TokenLogprob`] with its texts, for programs: as JSON the fields of OpenAI's interface, and the ids.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LogprobRecord {
    /// The token's text; half a character in it is U+FFFD.
    pub token: String,
    /// The bytes of its text; of a special token, those of its name.
    pub bytes: Vec<u8>,
    /// The token.
    pub id: i64,
    /// As [`TokenLogprob::logprob`].
    pub logprob: f64,
    /// As [`TokenLogprob::top`]; `None` for those in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<LogprobRecord>>,
}

impl TokenLogprob {
    /// With the texts that its ids have.
    pub fn record(&self, tokenizer: &Tokenizer) -> LogprobRecord {
        let one = |id: i64, logprob: f64, top_logprobs| {
            let bytes = tokenizer.bytes(id).unwrap_or_default();
            LogprobRecord {
                token: String::from_utf8_lossy(&bytes).into_owned(),
                bytes,
                id,
                logprob,
                top_logprobs,
            }
        };
        let top = self.top.iter().map(|&(id, logprob)| one(id, logprob, None));
        one(self.id, self.logprob, Some(top.collect()))
    }
}

/// What is subtracted from a logit to get the logarithm of its probability: the logarithm of the sum of all exponentials.
/// `logits`: at least one is finite, none is NaN or +infinity.
pub(crate) fn log_sum(logits: &[f32]) -> f64 {
    let maximum = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - maximum).exp())
        .sum();
    maximum + sum.ln()
}

/// The log-probability of token `id` and of the `count` likeliest tokens. `logits` as for [`log_sum`].
pub(crate) fn log_probabilities(logits: &[f32], id: i64, count: usize) -> TokenLogprob {
    let log_sum = log_sum(logits);
    let of = |place: usize| {
        let logit = logits.get(place).copied().unwrap_or(f32::NEG_INFINITY);
        f64::from(logit) - log_sum
    };
    let mut likeliest: Vec<(f32, usize)> = Vec::with_capacity(count + 1);
    for (place, &logit) in logits.iter().enumerate() {
        // Most are less likely than all that were kept.
        if likeliest.len() == count && likeliest.last().is_none_or(|(last, _)| logit <= *last) {
            continue;
        }
        let rank = likeliest.partition_point(|(other, _)| *other >= logit);
        likeliest.truncate(count.saturating_sub(1));
        likeliest.insert(rank, (logit, place));
    }
    let top = likeliest.into_iter();
    let top = top.filter_map(|(_, place)| Some((i64::try_from(place).ok()?, of(place))));
    TokenLogprob {
        id,
        logprob: usize::try_from(id).map_or(f64::NEG_INFINITY, of),
        top: top.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithms_of_the_softmax() {
        let logits = [1.0_f32, 3.0, f32::NEG_INFINITY, 3.0, -1000.0];
        let found = log_probabilities(&logits, 0, 3);
        // exp(1 - 3) / (exp(1 - 3) + 2), worked out by hand.
        let expected = -2.0 - (2.0 + (-2.0_f64).exp()).ln();
        assert!((found.logprob - expected).abs() < 1e-12, "{found:?}");
        let ids: Vec<i64> = found.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3, 0]);
        assert_eq!(found.top[2].1, found.logprob);
        let sum: f64 = log_probabilities(&logits, 2, 20)
            .top
            .iter()
            .map(|(_, logprob)| logprob.exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert_eq!(log_probabilities(&logits, 2, 0).logprob, f64::NEG_INFINITY);
        assert!(log_probabilities(&logits, 2, 0).top.is_empty());
        // Extremes of float32 stay numbers.
        let far = log_probabilities(&[f32::MAX, f32::MIN], 1, 1);
        assert!(far.logprob.is_finite() && far.logprob < -6e38, "{far:?}");
    }

    #[test]
    fn the_likeliest_are_those_that_a_sort_puts_first() {
        let mut random = 7_u64;
        for length in 1..100 {
            let logits: Vec<f32> = (0..length)
                .map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    f32::from(u8::try_from(random >> 60).unwrap())
                })
                .collect();
            let mut sorted: Vec<i64> = (0..length).collect();
            let logit = |id: i64| logits[usize::try_from(id).unwrap()];
            sorted.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
            for count in [0, 1, 2, 5, 20] {
                let top = log_probabilities(&logits, 0, count).top;
                let ids: Vec<i64> = top.into_iter().map(|(id, _)| id).collect();
                assert_eq!(ids, sorted[..count.min(sorted.len())]);
            }
        }
    }
}
