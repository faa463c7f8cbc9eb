//! Which token comes next?
//!
//! The filters of transformers, in its order: repetition penalty, temperature, top-k, top-p. The presence and the frequency
//! penalty of OpenAI's interface come after the repetition penalty, as in vLLM; then what a constraint does not allow is
//! taken out. Random numbers come from SplitMix64 (Steele, Lea and Flood, 2014), so that a seed gives the same tokens on every
//! platform and in every version, as long as the logits are the same.

use std::borrow::Cow;
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
    /// No token that may come has a finite logit.
    #[error("none of the tokens that may come here has a finite logit")]
    NothingAllowed,
}

/// How a token is chosen. [`Sampling::default`] is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 chooses the most likely token (the first of equals), whatever the seed, `top_k` and `top_p`; otherwise the
    /// logits are divided by it.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens, and those as likely as the last of them; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability, at least one; 1 is all.
    pub top_p: f32,
    /// Makes tokens of the prompt and the answer less likely (above 1) or more (below 1): positive logits are divided
    /// by it, negative ones multiplied.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer has already; from -2 to 2, 0 changes nothing.
    pub presence_penalty: f32,
    /// Subtracted from the logits of the answer's tokens, as often as the answer has them; from -2 to 2, 0 changes nothing.
    pub frequency_penalty: f32,
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
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// What the sampler looks at beside the logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// Ids of the prompt.
    pub prompt: &'a [i64],
    /// Ids of the answer so far.
    pub answer: &'a [i64],
    /// Which tokens may come: a bit a token, the lowest of a word first, 1 is yes; those beyond the last word may not. `None`
    /// is all.
    pub allowed: Option<&'a [u32]>,
}

impl Sampling {
    /// Refuses parameters outside their range, all of them at once.
    pub fn check(&self) -> Result<(), SampleError> {
        let Sampling {
            temperature,
            top_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = *self;
        let mut problems = Vec::new();
        if !temperature.is_finite() || temperature < 0.0 {
            problems.push(format!(
                "temperature is {temperature}, expected a number of at least 0"
            ));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            problems.push(format!(
                "top-p is {top_p}, expected a number above 0 and at most 1"
            ));
        }
        if !repetition_penalty.is_finite() || repetition_penalty <= 0.0 {
            problems.push(format!(
                "repetition penalty is {repetition_penalty}, expected a number above 0"
            ));
        }
        for (name, penalty) in [("presence", presence_penalty), ("frequency", frequency_penalty)] {
            if !(-2.0..=2.0).contains(&penalty) {
                problems.push(format!(
                    "{name} penalty is {penalty}, expected a number from -2 to 2"
                ));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(SampleError::Parameters { problems })
        }
    }
}

/// Chooses tokens, one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    vocabulary: usize,
    random: SplitMix64,
}

impl Sampler {
    /// A sampler over the first `vocabulary` logits
    /// ([`Tokenizer::vocabulary`](crate::text::Tokenizer::vocabulary)): rows beyond are padding of the table, stand
    /// for no text and are never chosen.
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Sampler, SampleError> {
        sampling.check()?;
        Ok(Sampler {
            sampling,
            vocabulary,
            random: SplitMix64 { state: sampling.seed },
        })
    }

    /// The next token. `logits`: `[vocab]` of the last position. Ids of the context outside the vocabulary are ignored; the
    /// repetition penalty looks at each once.
    pub fn pick(&mut self, logits: &[f32], context: Context<'_>) -> Result<i64, SampleError> {
        let logits = self.prepared(logits, context)?;
        let chosen = if self.sampling.temperature == 0.0 {
            first_maximum(&logits)
        } else {
            let probabilities = self.filtered(logits.into_owned());
            draw(&probabilities, self.random.next_unit())
        };
        i64::try_from(chosen).map_err(|_| SampleError::Length {
            found: chosen,
            expected: self.vocabulary,
        })
    }

    /// The probabilities from which [`pick`](Sampler::pick) draws, `[vocabulary]`; with temperature 0, all of it is on
    /// one token.
    pub fn probabilities(&self, logits: &[f32], context: Context<'_>) -> Result<Vec<f64>, SampleError> {
        let logits = self.prepared(logits, context)?;
        if self.sampling.temperature == 0.0 {
            let mut probabilities = vec![0.0; logits.len()];
            probabilities[first_maximum(&logits)] = 1.0;
            return Ok(probabilities);
        }
        Ok(self.filtered(logits.into_owned()))
    }

    /// The logits of the vocabulary, checked, after the penalties and without what may not come. Never empty, and not all are
    /// -inf.
    fn prepared<'a>(&self, logits: &'a [f32], context: Context<'_>) -> Result<Cow<'a, [f32]>, SampleError> {
        let mut logits = self.penalized(logits, context)?;
        if let Some(allowed) = context.allowed {
            keep_allowed(logits.to_mut(), allowed);
            if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
                return Err(SampleError::NothingAllowed);
            }
        }
        Ok(logits)
    }

    /// The logits of the vocabulary, checked: not empty, none is NaN or +inf, and not all are -inf.
    pub(crate) fn checked<'a>(&self, logits: &'a [f32]) -> Result<&'a [f32], SampleError> {
        let length = SampleError::Length {
            found: logits.len(),
            expected: self.vocabulary.max(1),
        };
        let logits = logits
            .get(..self.vocabulary)
            .filter(|logits| !logits.is_empty())
            .ok_or(length)?;
        // Neither NaN nor +inf. Counted: a loop without an early end goes through vectors.
        let right = |value: f32| value < f32::INFINITY;
        let count = |part: &[f32]| part.iter().map(|&value| usize::from(right(value))).sum::<usize>();
        if count(logits) < logits.len()
            && let Some(id) = logits.iter().position(|&value| !right(value))
        {
            return Err(SampleError::NotFinite {
                id,
                value: logits[id],
            });
        }
        if logits.iter().all(|&value| value == f32::NEG_INFINITY) {
            return Err(SampleError::NotFinite {
                id: 0,
                value: f32::NEG_INFINITY,
            });
        }
        Ok(logits)
    }

    /// The logits of the vocabulary, checked, after the penalties. Never empty, and not all are -inf.
    fn penalized<'a>(&self, logits: &'a [f32], context: Context<'_>) -> Result<Cow<'a, [f32]>, SampleError> {
        let logits = self.checked(logits)?;
        let mut penalized = Cow::Borrowed(logits);
        let penalty = self.sampling.repetition_penalty;
        if penalty != 1.0 {
            let penalized = penalized.to_mut();
            let said = context.prompt.iter().chain(context.answer);
            for id in said.filter_map(|&id| usize::try_from(id).ok()) {
                // From the original logit, so that an id that comes twice is penalized once.
                if let (Some(&logit), Some(value)) = (logits.get(id), penalized.get_mut(id)) {
                    // Kept finite: a tiny penalty must not make an infinity of it.
                    let scaled = if logit < 0.0 {
                        logit * penalty
                    } else {
                        logit / penalty
                    };
                    *value = if logit.is_finite() {
                        scaled.clamp(f32::MIN, f32::MAX)
                    } else {
                        logit
                    };
                }
            }
        }
        self.subtract(&mut penalized, context.answer);
        Ok(penalized)
    }

    /// The presence and the frequency penalty of what the answer has.
    fn subtract(&self, logits: &mut Cow<'_, [f32]>, answer: &[i64]) {
        let Sampling {
            presence_penalty,
            frequency_penalty,
            ..
        } = self.sampling;
        if presence_penalty == 0.0 && frequency_penalty == 0.0 {
            return;
        }
        let mut ids: Vec<usize> = answer.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
        ids.sort_unstable();
        let logits = logits.to_mut();
        for same in ids.chunk_by(|a, b| a == b) {
            let logit = same.first().and_then(|&id| logits.get_mut(id));
            if let Some(logit) = logit.filter(|logit| logit.is_finite()) {
                let count: f32 = same.iter().map(|_| 1.0).sum();
                *logit = (*logit - frequency_penalty * count - presence_penalty).clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Temperature, top-k and top-p.
    fn filtered(&self, mut logits: Vec<f32>) -> Vec<f64> {
        let Sampling {
            temperature,
            top_k,
            top_p,
            ..
        } = self.sampling;
        // Near 0 quotients leave the range of f32, and clamped all would be equal: the largest becomes 0 first.
        let leaves = |logit: &f32| logit.is_finite() && !(logit / temperature).is_finite();
        let shift = if logits.iter().any(leaves) {
            let finite = logits.iter().copied().filter(|logit| logit.is_finite());
            finite.fold(f32::NEG_INFINITY, f32::max)
        } else {
            0.0
        };
        for logit in &mut logits {
            if logit.is_finite() {
                *logit = ((*logit - shift) / temperature).clamp(f32::MIN, f32::MAX);
            }
        }
        if top_k > 0 && top_k < logits.len() {
            let mut sorted = logits.clone();
            let (_, &mut threshold, _) = sorted.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
            for logit in &mut logits {
                if *logit < threshold {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let mut probabilities = softmax(&logits);
        if top_p < 1.0 {
            // As transformers: from the least likely token on, drop what adds up to at most 1 - top_p. Of equals
            // the later token goes first.
            let mut order: Vec<usize> = (0..logits.len()).filter(|&id| probabilities[id] > 0.0).collect();
            order.sort_unstable_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
            let mut sum = 0.0;
            let keep = order.len().saturating_sub(1);
            for &id in &order[..keep] {
                sum += probabilities[id];
                if sum > 1.0 - f64::from(top_p) {
                    break;
                }
                logits[id] = f32::NEG_INFINITY;
            }
            probabilities = softmax(&logits);
        }
        probabilities
    }
}

/// Makes the logits of all other tokens -inf.
fn keep_allowed(logits: &mut [f32], allowed: &[u32]) {
    for (place, logits) in logits.chunks_mut(32).enumerate() {
        let bits = allowed.get(place).copied().unwrap_or(0);
        if bits != u32::MAX {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if bits >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// The first of the largest of logits of which none is NaN.
fn first_maximum(logits: &[f32]) -> usize {
    // Of parts first: a maximum alone goes through vectors, its place does not.
    const PART: usize = 1024;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (mut most, mut start) = (f32::NEG_INFINITY, 0);
    for (place, part) in logits.chunks(PART).enumerate() {
        let here = part.iter().copied().fold(f32::NEG_INFINITY, larger);
        if here > most {
            (most, start) = (here, place * PART);
        }
    }
    let part = logits.iter().skip(start);
    start + part.take_while(|&&logit| logit < most).count()
}

/// Probabilities of logits of which at least one is finite and none is NaN or +inf.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let maximum = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut values: Vec<f64> = logits
        .iter()
        .map(|&logit| (f64::from(logit) - maximum).exp())
        .collect();
    let sum: f64 = values.iter().sum();
    for value in &mut values {
        *value /= sum;
    }
    values
}

/// The token at `unit` (in [0, 1)) of the cumulative probabilities, in the order of the ids.
fn draw(probabilities: &[f64], unit: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (id, &probability) in probabilities.iter().enumerate() {
        if probability > 0.0 {
            sum += probability;
            last = id;
            if unit < sum {
                break;
            }
        }
    }
    last
}

/// SplitMix64.
#[derive(Debug, Clone)]
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in [0, 1), with 53 random bits.
    #[expect(clippy::as_conversions, reason = "53 bits are exact in f64")]
    fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling, vocabulary: usize) -> Sampler {
        Sampler::new(sampling, vocabulary).unwrap()
    }

    fn prompt(ids: &[i64]) -> Context<'_> {
        Context {
            prompt: ids,
            ..Context::default()
        }
    }

    #[test]
    fn a_temperature_near_0_takes_the_likeliest_token() {
        for temperature in [f32::from_bits(1), 1e-40, 1e-38, 3e-38, 6e-38, 1e-20] {
            let sampling = Sampling {
                temperature,
                ..Sampling::default()
            };
            let mut sampler = sampler(sampling, 4);
            for _ in 0..20 {
                let picked = sampler.pick(&[9.0, 12.5, -3.0, 12.0], Context::default());
                assert_eq!(picked, Ok(1), "{temperature}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_maximum_of_the_vocabulary() {
        let cases: [(&[f32], usize, i64); 5] = [
            (&[0.0, 3.0, 3.0], 3, 1),
            (&[-5.0, -3.0, -4.0], 3, 1),
            (&[1.0, 2.0, 99.0, f32::NAN], 2, 1),
            (&[f32::NEG_INFINITY, -1.0], 2, 1),
            (&[f32::MIN], 1, 0),
        ];
        for (logits, vocabulary, expected) in cases {
            let mut sampler = sampler(
                Sampling {
                    seed: 9,
                    top_k: 1,
                    ..Sampling::default()
                },
                vocabulary,
            );
            assert_eq!(
                sampler.pick(logits, Context::default()),
                Ok(expected),
                "{logits:?}"
            );
        }
    }

    #[test]
    fn the_first_maximum_of_many_is_found_wherever_it_is() {
        for places in [[0, 4999], [1023, 1024], [1024, 1025], [2047, 4096], [4998, 4999]] {
            let mut logits = vec![-1.0; 5000];
            for place in places {
                logits[place] = 2.0;
            }
            assert_eq!(first_maximum(&logits), places[0]);
        }
        assert_eq!(first_maximum(&[f32::NEG_INFINITY; 3000]), 0);
    }

    #[test]
    fn logits_that_are_no_numbers_are_errors() {
        let cases: [&[f32]; 4] = [
            &[0.0, f32::NAN],
            &[0.0, f32::INFINITY],
            &[f32::NEG_INFINITY, f32::NEG_INFINITY],
            &[0.0, -f32::NAN],
        ];
        for temperature in [0.0, 1.0] {
            for logits in cases {
                let mut sampler = sampler(
                    Sampling {
                        temperature,
                        ..Sampling::default()
                    },
                    2,
                );
                let error = sampler.pick(logits, Context::default()).unwrap_err();
                assert!(
                    matches!(error, SampleError::NotFinite { .. }),
                    "{logits:?}: {error}"
                );
            }
            let mut sampler = sampler(
                Sampling {
                    temperature,
                    ..Sampling::default()
                },
                2,
            );
            assert_eq!(
                sampler.pick(&[0.0], Context::default()),
                Err(SampleError::Length {
                    found: 1,
                    expected: 2
                })
            );
        }
        let mut sampler = sampler(Sampling::default(), 0);
        assert_eq!(
            sampler.pick(&[], Context::default()),
            Err(SampleError::Length {
                found: 0,
                expected: 1
            })
        );
    }

    #[test]
    fn parameters_are_checked_all_at_once() {
        let wrong = Sampling {
            temperature: -1.0,
            top_p: 0.0,
            repetition_penalty: f32::NAN,
            ..Sampling::default()
        };
        let SampleError::Parameters { problems } = Sampler::new(wrong, 4).unwrap_err() else {
            panic!("other error")
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
        let each = [
            Sampling {
                temperature: f32::INFINITY,
                ..Sampling::default()
            },
            Sampling {
                temperature: f32::NAN,
                ..Sampling::default()
            },
            Sampling {
                top_p: 1.5,
                ..Sampling::default()
            },
            Sampling {
                top_p: f32::NAN,
                ..Sampling::default()
            },
            Sampling {
                repetition_penalty: 0.0,
                ..Sampling::default()
            },
            Sampling {
                presence_penalty: 2.1,
                ..Sampling::default()
            },
            Sampling {
                frequency_penalty: f32::NAN,
                ..Sampling::default()
            },
        ];
        for sampling in each {
            assert!(Sampler::new(sampling, 4).is_err(), "{sampling:?}");
        }
    }

    #[test]
    fn filters_agree_with_transformers() {
        #[derive(serde::Deserialize)]
        struct Case {
            logits: Vec<f32>,
            context: Vec<i64>,
            temperature: f32,
            top_k: usize,
            top_p: f32,
            repetition_penalty: f32,
            probabilities: Vec<f64>,
        }
        #[derive(serde::Deserialize)]
        struct Recorded {
            cases: Vec<Case>,
        }
        let recorded: Recorded = serde_json::from_str(include_str!("../tests/data/sampling.json")).unwrap();
        assert!(recorded.cases.len() > 20);
        for (index, case) in recorded.cases.iter().enumerate() {
            let sampling = Sampling {
                temperature: case.temperature,
                top_k: case.top_k,
                top_p: case.top_p,
                repetition_penalty: case.repetition_penalty,
                ..Sampling::default()
            };
            let found = sampler(sampling, case.logits.len())
                .probabilities(&case.logits, prompt(&case.context))
                .unwrap();
            for (id, (found, expected)) in found.iter().zip(&case.probabilities).enumerate() {
                let both_zero = (*found == 0.0) == (*expected == 0.0);
                assert!(
                    both_zero && (found - expected).abs() < 1e-6,
                    "case {index}, id {id}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn extreme_parameters_stay_numbers() {
        let logits = [f32::MAX, -f32::MAX, 0.0, 1.0, f32::NEG_INFINITY];
        for temperature in [f32::MIN_POSITIVE, 1e30] {
            for repetition_penalty in [1e-30, 1.0, 1e30] {
                for top_p in [f32::MIN_POSITIVE, 0.5, 1.0] {
                    let sampling = Sampling {
                        temperature,
                        top_p,
                        repetition_penalty,
                        ..Sampling::default()
                    };
                    let probabilities = sampler(sampling, 5)
                        .probabilities(&logits, prompt(&[0, 1, 3, 4, 77, -200]))
                        .unwrap();
                    let sum: f64 = probabilities.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-9, "{sampling:?}: {probabilities:?}");
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_tokens_for_ever() {
        // The published sequence of the generator for seed 1234567.
        let mut random = SplitMix64 { state: 1_234_567 };
        assert_eq!(
            [random.next(), random.next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]
        );
        let pick = |seed| {
            let mut sampler = sampler(
                Sampling {
                    temperature: 1.0,
                    seed,
                    ..Sampling::default()
                },
                8,
            );
            (0..12)
                .map(|_| sampler.pick(&[0.0; 10], Context::default()).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(pick(7), pick(7));
        assert_ne!(pick(7), pick(8));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0_f32, 1.0, 2.0, -1.0, 50.0];
        let sampling = Sampling {
            temperature: 1.0,
            top_k: 3,
            seed: 3,
            ..Sampling::default()
        };
        let mut sampler = sampler(sampling, 4);
        let expected = sampler.probabilities(&logits, Context::default()).unwrap();
        let mut counts = [0_u32; 4];
        for _ in 0..20_000 {
            counts[usize::try_from(sampler.pick(&logits, Context::default()).unwrap()).unwrap()] += 1;
        }
        assert_eq!(counts[3], 0);
        for (count, expected) in counts.into_iter().zip(expected) {
            assert!(
                (f64::from(count) / 20_000.0 - expected).abs() < 0.02,
                "{counts:?}"
            );
        }
    }

    /// As OpenAI's documentation and vLLM define them: `logit - frequency * count - presence * (count > 0)`, of the answer.
    #[test]
    fn presence_and_frequency_are_of_the_answer_only() {
        let logits = [1.0_f32, 2.0, 3.0, f32::NEG_INFINITY];
        let context = Context {
            prompt: &[2, 2, 2],
            answer: &[0, 1, 0, 3, 99, -5],
            allowed: None,
        };
        let penalized = |presence_penalty, frequency_penalty| {
            let sampling = Sampling {
                presence_penalty,
                frequency_penalty,
                ..Sampling::default()
            };
            sampler(sampling, 4)
                .penalized(&logits, context)
                .unwrap()
                .into_owned()
        };
        assert_eq!(penalized(0.0, 0.0), logits);
        assert_eq!(penalized(0.5, 0.0), [0.5, 1.5, 3.0, f32::NEG_INFINITY]);
        assert_eq!(penalized(0.0, 0.25), [0.5, 1.75, 3.0, f32::NEG_INFINITY]);
        assert_eq!(penalized(-2.0, 1.0), [1.0, 3.0, 3.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn what_may_not_come_is_never_chosen() {
        let logits: Vec<f32> = (0..70_u8).map(f32::from).collect();
        for temperature in [0.0, 5.0] {
            let sampling = Sampling {
                temperature,
                top_k: 4,
                ..Sampling::default()
            };
            let mut sampler = sampler(sampling, 70);
            let mut picked = |allowed: &[u32]| {
                let context = Context {
                    allowed: Some(allowed),
                    ..Context::default()
                };
                sampler.pick(&logits, context)
            };
            assert_eq!(picked(&[0, 1, 0]), Ok(32));
            assert_eq!(picked(&[1]), Ok(0));
            for _ in 0..20 {
                let id = picked(&[6, 0, 1 << 5]).unwrap();
                assert!([1, 2, 69].contains(&id), "{id}");
            }
            assert_eq!(picked(&[]), Err(SampleError::NothingAllowed));
            // Only rows that stand for no text.
            assert_eq!(picked(&[0, 0, 1 << 6]), Err(SampleError::NothingAllowed));
        }
    }
}
