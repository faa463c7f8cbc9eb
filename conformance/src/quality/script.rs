//! What is every form asked? The ids of the prompt, and those that are fed after it: the same for every tool, from a fixed
//! seed.

use super::metrics::relative_l2;
use super::{Recording, Settings};
use crate::loaded::{self, picture};
use crate::setup::error::{CaseError, Context};
use models::bundle::{Bundle, PromptSpec};
use runtime::Model;
use runtime::image::PixelValues;
use runtime::prompt::{Piece, Prompt};

/// What stands in [`Script::prompt_ids`] for a feature of an image where the vocabulary has no token for one; the
/// published code of Apple's layout uses it.
const IMAGE: i64 = -200;

/// By how much `pixel_values` of one image may differ from tool to tool, relative L2: they resize each in its own way.
const SAME_IMAGE: f64 = 0.05;

/// Seed of the fed ids.
const SEED: u64 = 20_261_125;

/// What is fed.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// The prompt.
    pub prompt: Prompt,
    /// Its ids, one a position: the image token, or -200 where there is none, once for each feature of the image.
    pub prompt_ids: Vec<i64>,
    /// Ids that are fed after it, one by one.
    pub token_ids: Vec<i64>,
    /// The image; `None` where the prompt has none.
    pub pixels: Option<PixelValues>,
}

impl Script {
    /// What these settings mean to a form.
    ///
    /// # Errors
    /// An image or a question that cannot be prepared, or more positions than the model holds.
    pub fn of(settings: &Settings, model: &Model) -> Result<Script, CaseError> {
        let pixels = match settings.text_only {
            true => None,
            false => {
                let picture = picture(settings.image.as_deref())?;
                Some(model.preprocess(&picture).during(|| "preprocessing".to_owned())?)
            }
        };
        let image = pixels.as_ref().map(|pixels| pixels.id);
        let prompt = loaded::prompt(model, image, &settings.prompt, settings.positions)?;
        let spec = &model.bundle().prompt;
        let reading = || "reading the tokenizer".to_owned();
        let vocabulary = model.prompter().during(reading)?.tokenizer().vocabulary();
        Ok(Script {
            prompt_ids: prompt_ids(&prompt, spec.image_token_id.unwrap_or(IMAGE)),
            token_ids: token_ids(spec, vocabulary, settings.positions),
            prompt,
            pixels,
        })
    }

    /// What was made of the image, `[1, 3, height, width]`.
    pub(super) fn pixel_values(&self) -> Option<&[f32]> {
        self.pixels.as_ref()?.values.as_slice()
    }

    /// What a recording of this script by a model of this shape has.
    pub fn facts(&self, bundle: &Bundle) -> Facts<'_> {
        let features = (bundle.image.tokens, bundle.prompt.hidden_size);
        Facts {
            features: self.pixels.is_some().then_some(features),
            pixels: self.pixel_values(),
            vocabulary: bundle.prompt.vocab_size,
            prompt_ids: &self.prompt_ids,
            token_ids: &self.token_ids,
        }
    }
}

/// What two recordings must have in common to be compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts<'a> {
    /// Rows and length of the image features, where there is an image.
    pub features: Option<(usize, usize)>,
    /// What was made of the image, where that is known.
    pub pixels: Option<&'a [f32]>,
    /// Length of a row of logits.
    pub vocabulary: usize,
    /// Ids of the prompt.
    pub prompt_ids: &'a [i64],
    /// Ids that were fed.
    pub token_ids: &'a [i64],
}

impl Recording {
    /// What another recording must have too.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            features: self
                .features
                .as_ref()
                .map(|features| (features.tokens, features.hidden)),
            pixels: self.pixels.as_deref(),
            vocabulary: self.vocabulary,
            prompt_ids: &self.prompt_ids,
            token_ids: &self.token_ids,
        }
    }

    /// Whether it can be compared with what has these facts.
    ///
    /// # Errors
    /// What is other.
    pub fn check(&self, expected: &Facts<'_>) -> Result<(), CaseError> {
        self.facts().differ(expected).map_or(Ok(()), |message| {
            Err(CaseError::Failed {
                context: format!("comparing with `{}`", self.name),
                message,
            })
        })
    }
}

impl Facts<'_> {
    /// The first thing that is other, in a sentence.
    fn differ(&self, expected: &Facts<'_>) -> Option<String> {
        match (self.features, expected.features) {
            (Some(_), None) => return Some("it is of an image, expected a prompt of text only".to_owned()),
            (None, Some(_)) => {
                return Some("it is of a prompt of text only, expected one of an image".to_owned());
            }
            (Some((a, b)), Some((c, d))) if (a, b) != (c, d) => {
                return Some(format!("`image_features` are {a} x {b}, expected {c} x {d}"));
            }
            _ => {}
        }
        if let (Some(found), Some(wanted)) = (self.pixels, expected.pixels) {
            let (a, b) = (found.len(), wanted.len());
            if a != b {
                return Some(format!("`pixel_values` has {a} values, expected {b}"));
            }
            let distance = relative_l2(found, wanted);
            if distance.is_nan() || distance > SAME_IMAGE {
                return Some("`pixel_values` are of another image".to_owned());
            }
        }
        let (found, wanted) = (self.vocabulary, expected.vocabulary);
        if found != wanted {
            return Some(format!("a row of `logits` has {found} values, expected {wanted}"));
        }
        difference("prompt_ids", self.prompt_ids, expected.prompt_ids)
            .or_else(|| difference("token_ids", self.token_ids, expected.token_ids))
    }
}

/// How two lists of ids differ.
fn difference(name: &str, found: &[i64], expected: &[i64]) -> Option<String> {
    if found == expected {
        return None;
    }
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    match (found.get(same), expected.get(same)) {
        (Some(a), Some(b)) => Some(format!("`{name}` has {a} at {same}, expected {b}")),
        _ => Some(format!(
            "`{name}` has {} ids, expected {}",
            found.len(),
            expected.len()
        )),
    }
}

fn prompt_ids(prompt: &Prompt, image: i64) -> Vec<i64> {
    let ids = prompt.pieces().iter().flat_map(|piece| match piece {
        Piece::Tokens(ids) => ids.clone(),
        Piece::Image { tokens, .. } => vec![image; *tokens],
    });
    ids.collect()
}

/// Ids that look like nothing in particular, of a vocabulary of `count`; none that stands for an image or ends an answer.
fn token_ids(spec: &PromptSpec, count: usize, positions: usize) -> Vec<i64> {
    let count = u64::try_from(count.clamp(1, spec.vocab_size.max(1))).unwrap_or(1);
    let free = |id: &i64| spec.image_token_id != Some(*id) && !spec.stop_ids.contains(id);
    let mut state = SEED;
    let draw = || {
        // The generator of Knuth's MMIX; its high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((state >> 33) % count).unwrap_or(0)
    };
    // A vocabulary of nothing but such ids has no other: then fewer come, which `check` of the reader sees.
    let most = positions.saturating_mul(64).saturating_add(1024);
    std::iter::repeat_with(draw)
        .take(most)
        .filter(free)
        .take(positions)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::bundle::Content;
    use runtime::image::ImageId;

    fn spec() -> PromptSpec {
        PromptSpec {
            tokenizer: String::new(),
            chat_template: String::new(),
            content: Content::Text,
            image_token: "<image>".to_owned(),
            image_token_id: Some(3),
            stop_ids: vec![5],
            special_tokens: Default::default(),
            vocab_size: 64,
            hidden_size: 2,
        }
    }

    #[test]
    fn tokens_are_fixed_and_ordinary() {
        let ids = token_ids(&spec(), 10, 300);
        assert_eq!(ids.len(), 300);
        assert_eq!(ids, token_ids(&spec(), 10, 300));
        assert_eq!(ids[..100], token_ids(&spec(), 10, 100));
        let expected: Vec<i64> = (0..10).filter(|id| ![3, 5].contains(id)).collect();
        let mut found = ids.clone();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, expected);
        // Other tools are fed these: a change of the sequence is a change of every recording.
        assert_eq!(token_ids(&spec(), 60, 6), FIRST);
    }

    const FIRST: [i64; 6] = [35, 44, 51, 59, 0, 23];

    #[test]
    fn an_image_is_as_many_ids_as_it_takes_positions() {
        let prompt = Prompt::new(vec![
            Piece::Tokens(vec![1, 2]),
            Piece::Image {
                id: ImageId(9),
                tokens: 3,
            },
            Piece::Tokens(vec![4]),
        ]);
        assert_eq!(prompt_ids(&prompt, 7), [1, 2, 7, 7, 7, 4]);
    }

    #[test]
    fn the_first_difference_is_told() {
        assert_eq!(difference("a", &[1, 2], &[1, 2]), None);
        assert_eq!(
            difference("a", &[1, 3], &[1, 2]).unwrap(),
            "`a` has 3 at 1, expected 2"
        );
        assert_eq!(
            difference("a", &[1], &[1, 2]).unwrap(),
            "`a` has 1 ids, expected 2"
        );
        let facts = Facts {
            features: Some((2, 3)),
            pixels: Some(&[0.5, 1.0]),
            vocabulary: 5,
            prompt_ids: &[1],
            token_ids: &[2],
        };
        assert_eq!(facts.differ(&facts), None);
        for near in [None, Some(&[0.51, 0.99][..])] {
            let other = Facts {
                pixels: near,
                ..facts
            };
            assert_eq!(facts.differ(&other), None);
        }
        for (other, expected) in [
            (
                Facts {
                    features: None,
                    ..facts
                },
                "it is of an image, expected a prompt of text only",
            ),
            (
                Facts {
                    features: Some((2, 4)),
                    ..facts
                },
                "`image_features` are 2 x 3, expected 2 x 4",
            ),
            (
                Facts {
                    pixels: Some(&[1.0, 0.5]),
                    ..facts
                },
                "`pixel_values` are of another image",
            ),
            (
                Facts {
                    pixels: Some(&[0.5]),
                    ..facts
                },
                "`pixel_values` has 2 values, expected 1",
            ),
            (
                Facts {
                    vocabulary: 6,
                    ..facts
                },
                "a row of `logits` has 5 values, expected 6",
            ),
            (
                Facts {
                    prompt_ids: &[3],
                    ..facts
                },
                "`prompt_ids` has 1 at 0, expected 3",
            ),
            (
                Facts {
                    token_ids: &[],
                    ..facts
                },
                "`token_ids` has 1 ids, expected 0",
            ),
        ] {
            assert_eq!(facts.differ(&other).unwrap(), expected);
        }
    }
}
