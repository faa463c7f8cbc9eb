//! In how many greedy answers does a form agree with fp32, word for word? Over the 100 scenes that the demo
//! model was never trained on, three questions each, of which descriptions are the longest answers that such
//! a model gives.
//!
//! On a model that is sure of all its answers every precision agrees. `conformance/quality` has one that is
//! not.

use super::ExactMatch;
use crate::setup::error::{CaseError, Context};
use crate::suite::held_out::{Asked, SCENES};
use runtime::Model;
use runtime::image::Picture;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What each scene is asked.
pub const QUESTIONS: [&str; 3] = [
    "Describe the image.",
    "What is in the image?",
    "Name the objects.",
];

/// A greedy answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// File name of the scene.
    pub image: String,
    /// What was asked.
    pub question: String,
    /// What was answered.
    pub answer: String,
}

/// What another tool answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Who answered.
    pub name: String,
    /// SHA-256 of the weights, `model.safetensors`.
    pub weights: String,
    /// To all questions, in order.
    pub answers: Vec<Answer>,
}

/// A scene with its file name.
#[derive(Debug)]
pub struct Scene {
    /// File name.
    pub name: String,
    /// Its pixels.
    pub picture: Picture,
}

/// The scenes, in order of their names.
///
/// # Errors
/// A program without them.
pub fn scenes() -> Result<Vec<Scene>, CaseError> {
    let mut scenes = Vec::new();
    for name in SCENES.images()? {
        let picture = SCENES.picture(&name)?;
        scenes.push(Scene { name, picture });
    }
    Ok(scenes)
}

/// Asks all questions about all scenes.
///
/// # Errors
/// What the engine says.
pub fn answers(model: &Model) -> Result<Vec<Answer>, CaseError> {
    let mut asked = Asked::of(model);
    let mut answers = Vec::new();
    for scene in scenes()? {
        asked.look(std::slice::from_ref(&scene.picture))?;
        for question in QUESTIONS {
            answers.push(Answer {
                image: scene.name.clone(),
                question: question.to_owned(),
                answer: asked.answer(&[], 0..1, question)?,
            });
        }
    }
    Ok(answers)
}

/// How many answers are those of the reference.
pub fn agreement(found: &[Answer], reference: &[Answer]) -> ExactMatch {
    let same = found
        .iter()
        .zip(reference)
        .filter(|(found, reference)| found == reference);
    ExactMatch {
        right: same.count(),
        asked: reference.len(),
    }
}

/// Reads what other tools answered: a JSON list of [`Recorded`].
///
/// # Errors
/// A file that is no such list.
pub fn read(path: &Path) -> Result<Vec<Recorded>, CaseError> {
    let reading = || format!("reading `{}`", path.display());
    let text = models::regular::bytes(path, u64::MAX).during(reading)?;
    serde_json::from_slice(&text).during(reading)
}

impl Recorded {
    /// Whether the answers are to the questions of the reference, by a model with these weights.
    ///
    /// # Errors
    /// What is other.
    pub fn check(&self, reference: &[Answer], weights: &str) -> Result<(), CaseError> {
        let failed = |message| CaseError::Failed {
            context: format!("comparing with the answers of `{}`", self.name),
            message,
        };
        if self.weights != weights {
            return Err(failed(format!(
                "they are of weights with SHA-256 {}, expected {weights}",
                self.weights
            )));
        }
        if self.answers.len() != reference.len() {
            let (found, expected) = (self.answers.len(), reference.len());
            return Err(failed(format!("there are {found} answers, expected {expected}")));
        }
        let other = self.answers.iter().zip(reference);
        let mut other = other.filter(|(a, b)| (&a.image, &a.question) != (&b.image, &b.question));
        match other.next() {
            None => Ok(()),
            Some((found, expected)) => Err(failed(format!(
                "found `{}`, {:?}, expected `{}`, {:?}",
                found.image, found.question, expected.image, expected.question
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(image: &str, text: &str) -> Answer {
        Answer {
            image: image.to_owned(),
            question: "What?".to_owned(),
            answer: text.to_owned(),
        }
    }

    #[test]
    fn agreement_is_word_for_word() {
        let reference = [
            answer("a", "A cat."),
            answer("a", "A dog."),
            answer("b", "A cat."),
        ];
        let mut found = reference.clone();
        found[1].answer = "A dog".to_owned();
        assert_eq!(agreement(&found, &reference), ExactMatch { right: 2, asked: 3 });
    }

    #[test]
    fn answers_of_others_are_of_the_same_questions_and_weights() {
        let reference = [answer("a", "A cat."), answer("b", "A dog.")];
        let mut recorded = Recorded {
            name: "a tool".to_owned(),
            weights: "12".to_owned(),
            answers: vec![answer("a", "Two."), answer("b", "Three.")],
        };
        recorded.check(&reference, "12").unwrap();
        let refused = |recorded: &Recorded, weights: &str, words: &str| {
            let error = recorded.check(&reference, weights).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("a tool"),
                "no `{words}` in {error}"
            );
        };
        refused(&recorded, "13", "of weights with SHA-256 12, expected 13");
        recorded.answers[1].image = "c".to_owned();
        refused(&recorded, "12", "found `c`, \"What?\", expected `b`, \"What?\"");
        recorded.answers.pop();
        refused(&recorded, "12", "there are 1 answers, expected 2");
    }

    #[test]
    fn there_are_300_answers() {
        assert_eq!(QUESTIONS.len() * scenes().unwrap().len(), 300);
    }
}
