//! The demo model's held-out questions: what is asked, and how many answers are right word for word.

use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::subject::{Precision, Subject};
use crate::setup::workspace::{self, Workspace};
use runtime::image::{ImageId, Limits, Picture};
use runtime::{Conversation, Engine, Message, Model, Request, Role};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Held-out questions of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// The case's name in the suite.
    name: &'static str,
    /// Where its pictures and `questions.json` lie in the repository.
    pub folder: &'static str,
    /// What they are, in a claim.
    about: &'static str,
    /// The share that the demo model must answer word for word.
    least: f64,
}

/// Rendered scenes, each question by itself.
pub const SCENES: Set = Set {
    name: "exact_match",
    folder: "models/demo/eval",
    about: "held-out questions",
    least: 0.98,
};

/// Scenes as a camera sees them, and pictures without one.
const CAMERA: Set = Set {
    name: "camera",
    folder: "models/demo/eval/camera",
    about: "held-out questions about what a camera sees",
    least: 0.95,
};

/// Conversations, about one image or two; each question after the right answers to those before it.
const CONVERSATIONS: Set = Set {
    name: "conversations",
    folder: "models/demo/eval/conversations",
    about: "held-out questions of conversations",
    least: 0.95,
};

/// A case for each set.
pub fn cases() -> Vec<Case> {
    let case = |set: Set| {
        let Set {
            name, about, least, ..
        } = set;
        Case::on_each(
            format!("demo-eval/{name}"),
            format!("at least {least} of the demo model's {about} are answered word for word"),
            |subject| subject.is_engine() && subject.precision() == Precision::Fp32,
            move |subject, workspace| evaluate(&set, subject, workspace),
        )
    };
    [SCENES, CAMERA, CONVERSATIONS].map(case).into()
}

/// A question and the right answer.
#[derive(Debug, Clone, Deserialize)]
struct Turn {
    /// File names of the images that are shown with it.
    #[serde(default)]
    images: Vec<String>,
    /// The same, where it is one.
    #[serde(default)]
    image: Option<String>,
    task: String,
    question: String,
    answer: String,
}

impl Turn {
    fn images(&self) -> impl Iterator<Item = &String> {
        self.image.iter().chain(&self.images)
    }
}

/// Questions that follow on one another, or one by itself.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Entry {
    Alone(Turn),
    Dialogue(Vec<Turn>),
}

impl Entry {
    fn turns(&self) -> &[Turn] {
        match self {
            Entry::Alone(turn) => std::slice::from_ref(turn),
            Entry::Dialogue(turns) => turns,
        }
    }
}

/// How held-out questions were answered.
#[derive(Debug, Default)]
pub struct HeldOut {
    /// Of each task, how many were right and how many were asked.
    pub tasks: BTreeMap<String, (usize, usize)>,
    /// The others, a line each.
    pub wrong: Vec<String>,
}

impl HeldOut {
    /// How many were asked.
    pub fn asked(&self) -> usize {
        self.tasks.values().map(|(_, asked)| asked).sum()
    }

    /// How many were answered word for word.
    pub fn right(&self) -> usize {
        self.tasks.values().map(|(right, _)| right).sum()
    }
}

impl Set {
    fn entries(&self) -> Result<Vec<Entry>, CaseError> {
        let path = format!("{}/questions.json", self.folder);
        let Some(text) = workspace::asset(&path) else {
            return Err(CaseError::Skip(format!("`{path}` is not part of this program")));
        };
        serde_json::from_slice(text).during(|| format!("reading `{path}`"))
    }

    /// File names in [`Set::folder`] of the images that are asked about, each once, in order.
    ///
    /// # Errors
    /// A program without the questions.
    pub fn images(&self) -> Result<Vec<String>, CaseError> {
        let entries = self.entries()?;
        let turns = entries.iter().flat_map(Entry::turns);
        let mut images: Vec<String> = turns.flat_map(Turn::images).cloned().collect();
        images.dedup();
        Ok(images)
    }

    /// One of its pictures.
    ///
    /// # Errors
    /// A program without it.
    pub fn picture(&self, image: &str) -> Result<Picture, CaseError> {
        let path = format!("{}/{image}", self.folder);
        let bytes = workspace::asset(&path)
            .ok_or_else(|| CaseError::Skip(format!("`{path}` is not part of this program")))?;
        runtime::image::decode(bytes, &path, &Limits::default()).during(|| format!("reading `{path}`"))
    }

    /// Asks all of them.
    ///
    /// # Errors
    /// What the engine says; a program without the questions.
    pub fn ask(&self, model: &Model) -> Result<HeldOut, CaseError> {
        let mut asked = Asked::of(model);
        let mut found = HeldOut::default();
        let mut shown: Vec<String> = Vec::new();
        for entry in self.entries()? {
            let images: Vec<String> = entry.turns().iter().flat_map(Turn::images).cloned().collect();
            // Questions about one picture stand behind each other.
            if shown != images {
                asked.look(&self.pictures(&images)?)?;
                shown = images;
            }
            let mut told = Vec::new();
            let mut before = 0;
            for turn in entry.turns() {
                let count = turn.images().count();
                let answer = asked.answer(&told, before..before + count, &turn.question)?;
                let right = answer == turn.answer;
                let (rights, number) = found.tasks.entry(turn.task.clone()).or_default();
                *rights += usize::from(right);
                *number += 1;
                if !right {
                    found.wrong.push(format!(
                        "{}: {:?} -> {answer:?}, expected {:?}",
                        shown.join(", "),
                        turn.question,
                        turn.answer
                    ));
                }
                told.push(asked.message(before..before + count, &turn.question));
                told.push(Message::new(Role::Assistant, turn.answer.clone()));
                before += count;
            }
        }
        Ok(found)
    }

    fn pictures(&self, images: &[String]) -> Result<Vec<Picture>, CaseError> {
        images.iter().map(|image| self.picture(image)).collect()
    }
}

/// Who answers questions about pictures.
#[derive(Debug)]
pub struct Asked {
    conversation: Conversation,
    images: Vec<ImageId>,
}

impl Asked {
    /// Somebody who has seen nothing yet.
    pub fn of(model: &Model) -> Asked {
        Asked {
            conversation: model.conversation(),
            images: Vec::new(),
        }
    }

    /// Looks at other pictures; nothing of those before is needed.
    ///
    /// # Errors
    /// A picture that cannot be prepared.
    pub fn look(&mut self, pictures: &[Picture]) -> Result<(), CaseError> {
        self.conversation.reset();
        let images = pictures
            .iter()
            .map(|picture| self.conversation.add_image(picture));
        let images: Result<_, _> = images.collect();
        self.images = images.during(|| "looking at an image".to_owned())?;
        Ok(())
    }

    /// A question with some of the pictures.
    fn message(&self, images: std::ops::Range<usize>, question: &str) -> Message {
        let images = self.images.get(images).unwrap_or_default();
        Message::user(images, question)
    }

    /// The greedy answer to a question with some of the pictures, after what was `told` before.
    ///
    /// # Errors
    /// What the engine says.
    pub fn answer(
        &mut self,
        told: &[Message],
        images: std::ops::Range<usize>,
        question: &str,
    ) -> Result<String, CaseError> {
        let mut messages = told.to_vec();
        messages.push(self.message(images, question));
        let answer = self.conversation.chat(&messages, &Request::default());
        let text = answer.and_then(|mut answer| answer.text());
        text.during(|| format!("asking {question:?}"))
    }
}

fn evaluate(set: &Set, subject: &Subject, workspace: &Workspace) -> Result<Findings, CaseError> {
    let deployed = workspace.demo()?;
    let options = subject.options.clone().with_image_size(deployed.image_size);
    let engine = Engine::open(&deployed.directory, &options)
        .during(|| "opening the bundle with the runtime".to_owned())?;
    let found = set.ask(engine.model())?;
    let share = |right: usize, asked: usize| right as f64 / asked.max(1) as f64;
    let (right, asked) = (found.right(), found.asked());
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "{right} of {asked} right: {:.1} %",
        100.0 * share(right, asked)
    ));
    for (task, &(right, asked)) in &found.tasks {
        findings.notes.push(format!(
            "{task}: {right} of {asked}, {:.1} %",
            100.0 * share(right, asked)
        ));
    }
    if share(right, asked) < set.least {
        findings.problems.push(format!(
            "{right} of {asked} answers are right, expected a share of {}",
            set.least
        ));
        findings.problems.extend(found.wrong);
    }
    Ok(findings)
}
