//! What does a form make of the script? Its features, and its logits position by position: what a reference keeps, and what
//! is compared with one at once.

use super::metrics::{LogitsError, Tally, relative_l2};
use super::script::Script;
use super::{Features, Recording};
use crate::loaded::Loaded;
use crate::setup::error::{CaseError, Context};
use ndarray::ArrayView2;

/// What a form computed, compared with a reference.
#[derive(Debug)]
pub struct Compared {
    /// Relative L2 distance of the image features.
    pub features: Option<f64>,
    /// The logits after its own features.
    pub end_to_end: LogitsError,
    /// The logits after the features of the reference.
    pub decoder_alone: Option<LogitsError>,
}

/// Feeds a script to a form and keeps everything.
///
/// # Errors
/// What the engine says.
pub fn record(name: &str, loaded: &mut Loaded, script: &Script) -> Result<Recording, CaseError> {
    let features = features(loaded, script)?;
    let vocabulary = loaded.bundle().prompt.vocab_size;
    let mut logits = Vec::with_capacity(script.token_ids.len() * vocabulary);
    feed(loaded, script, features.as_ref(), &mut |_, row| {
        logits.extend_from_slice(row);
        Ok(())
    })?;
    Ok(Recording {
        name: name.to_owned(),
        prompt_ids: script.prompt_ids.clone(),
        token_ids: script.token_ids.clone(),
        pixels: script.pixel_values().map(<[f32]>::to_vec),
        features,
        vocabulary,
        logits,
    })
}

/// Feeds a script to a form and compares with a reference, which fits the script ([`Recording::check`]).
///
/// # Errors
/// What the engine says.
pub fn compare(loaded: &mut Loaded, script: &Script, reference: &Recording) -> Result<Compared, CaseError> {
    let own = features(loaded, script)?;
    let mut logits = |features: Option<&Features>| -> Result<LogitsError, CaseError> {
        let mut tally = Tally::default();
        feed(loaded, script, features, &mut |position, row| {
            let expected = reference
                .row(position)
                .ok_or_else(|| missing(reference, position))?;
            tally.add(row, expected);
            Ok(())
        })?;
        tally.error().ok_or_else(|| missing(reference, 0))
    };
    let end_to_end = logits(own.as_ref())?;
    let (Some(own), Some(expected)) = (&own, &reference.features) else {
        return Ok(Compared {
            features: None,
            end_to_end,
            decoder_alone: None,
        });
    };
    Ok(Compared {
        features: Some(relative_l2(&own.values, &expected.values)),
        end_to_end,
        decoder_alone: Some(logits(Some(expected))?),
    })
}

/// Compares what is recorded with a reference. Both are of one script ([`Recording::check`]).
///
/// # Errors
/// Recordings that are shorter than they say.
pub fn compare_recorded(found: &Recording, reference: &Recording) -> Result<Compared, CaseError> {
    let mut tally = Tally::default();
    for position in 0..reference.token_ids.len() {
        let expected = reference
            .row(position)
            .ok_or_else(|| missing(reference, position))?;
        let row = found.row(position).ok_or_else(|| missing(found, position))?;
        tally.add(row, expected);
    }
    let features = match (&found.features, &reference.features) {
        (Some(found), Some(expected)) => Some(relative_l2(&found.values, &expected.values)),
        _ => None,
    };
    Ok(Compared {
        features,
        end_to_end: tally.error().ok_or_else(|| missing(reference, 0))?,
        decoder_alone: None,
    })
}

fn missing(recording: &Recording, position: usize) -> CaseError {
    CaseError::Failed {
        context: format!("comparing with `{}`", recording.name),
        message: format!("there are no logits of position {position}"),
    }
}

fn features(loaded: &mut Loaded, script: &Script) -> Result<Option<Features>, CaseError> {
    let Some(pixels) = &script.pixels else {
        return Ok(None);
    };
    Ok(Some(Features {
        values: loaded.encode(pixels)?.into_raw_vec_and_offset().0,
        tokens: loaded.bundle().image.tokens,
        hidden: loaded.bundle().prompt.hidden_size,
    }))
}

/// Is told a position and the logits after it.
type See<'a> = dyn FnMut(usize, &[f32]) -> Result<(), CaseError> + 'a;

/// Feeds the prompt, then the tokens one by one; `see` gets each position and the logits after it.
fn feed(
    loaded: &mut Loaded,
    script: &Script,
    features: Option<&Features>,
    see: &mut See<'_>,
) -> Result<(), CaseError> {
    let (shape, values): (_, &[f32]) = match features {
        Some(features) => ((features.tokens, features.hidden), &features.values),
        None => ((0, 0), &[]),
    };
    let features = ArrayView2::from_shape(shape, values).during(|| "reading image features".to_owned())?;
    loaded.prefill(&script.prompt, features)?;
    for (position, &id) in script.token_ids.iter().enumerate() {
        let logits = loaded.step(id)?;
        let vocabulary = loaded.bundle().prompt.vocab_size;
        if logits.len() != vocabulary {
            return Err(CaseError::Failed {
                context: format!("feeding token {id}"),
                message: format!("{} logits, expected {vocabulary}", logits.len()),
            });
        }
        see(position, logits.as_slice().unwrap_or_default())?;
    }
    Ok(())
}
