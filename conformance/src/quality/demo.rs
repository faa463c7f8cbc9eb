//! How well does a form of the demo model still answer? Its held-out questions, word for word.

use super::ExactMatch;
use crate::setup::error::{CaseError, Context};
use crate::suite::end_to_end::{Answers, held_out};
use runtime::image::{ImageId, Picture};
use runtime::{Conversation, Message, Model, Request};

/// Asks all held-out questions.
///
/// # Errors
/// What the engine says.
pub fn exact_match(model: &Model) -> Result<ExactMatch, CaseError> {
    let found = held_out(&mut Asked::of(model))?;
    Ok(ExactMatch {
        right: found.right(),
        asked: found.asked(),
    })
}

/// A form that is asked about one picture after the other, each question by itself.
pub(super) struct Asked {
    conversation: Conversation,
    image: Option<ImageId>,
}

impl Asked {
    pub(super) fn of(model: &Model) -> Asked {
        Asked {
            conversation: model.conversation(),
            image: None,
        }
    }
}

impl Answers for Asked {
    fn look(&mut self, picture: &Picture) -> Result<(), CaseError> {
        self.conversation.reset();
        let image = self.conversation.add_image(picture);
        self.image = Some(image.during(|| "looking at an image".to_owned())?);
        Ok(())
    }

    fn answer(&mut self, question: &str) -> Result<String, CaseError> {
        let images: Vec<ImageId> = self.image.into_iter().collect();
        let message = Message::user(images, question);
        let answer = self.conversation.chat(&[message], &Request::default());
        let text = answer.and_then(|mut answer| answer.text());
        text.during(|| format!("asking {question:?}"))
    }
}
