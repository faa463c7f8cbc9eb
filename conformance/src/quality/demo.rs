//! How well does a form of the demo model still answer? Its held-out questions, word for word.

use super::ExactMatch;
use crate::loaded::Loaded;
use crate::setup::error::CaseError;
use crate::suite::end_to_end::{Answers, held_out};
use ndarray::Array2;
use runtime::image::{ImageId, Picture};

/// Asks all held-out questions.
///
/// # Errors
/// What the engine says.
pub fn exact_match(loaded: &mut Loaded) -> Result<ExactMatch, CaseError> {
    let found = held_out(&mut LoadedAnswers { loaded, image: None })?;
    Ok(ExactMatch {
        right: found.right(),
        asked: found.asked(),
    })
}

struct LoadedAnswers<'a> {
    loaded: &'a mut Loaded,
    /// The picture and its features.
    image: Option<(ImageId, Array2<f32>)>,
}

impl Answers for LoadedAnswers<'_> {
    fn look(&mut self, picture: &Picture) -> Result<(), CaseError> {
        let pixels = self.loaded.preprocess(picture)?;
        self.image = Some((pixels.id, self.loaded.encode(&pixels)?));
        Ok(())
    }

    fn answer(&mut self, question: &str) -> Result<String, CaseError> {
        let id = self.image.as_ref().map(|(id, _)| *id);
        let prompt = self.loaded.prompt(id, question)?;
        let none = Array2::default((0, 0));
        let features = self.image.as_ref().map_or(&none, |(_, features)| features);
        self.loaded
            .answer(&prompt, features.view(), runtime::DEFAULT_MAX_TOKENS)
    }
}
