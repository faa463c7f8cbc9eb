//! Do the right words come out? Images and questions through the runtime library, as a user's program does it.

use crate::golden::{RecordedCase, Reference, Row, Segment};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::Deployed;
use crate::setup::subject::{Precision, Subject};
use crate::setup::workspace::{self, Workspace};
use crate::suite::recorded;
use models::bundle::Bundle;
use runtime::image::{ImageId, Limits, Picture};
use runtime::prompt::Piece;
use runtime::{Answer, Engine, EngineError, Finish, Message, Request};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The share of held-out questions that the demo model must answer word for word.
pub const EXACT_MATCH: f64 = 0.97;

/// Where the held-out questions and their scenes lie in the repository.
pub const HELD_OUT: &str = "models/demo/eval";

/// The answers of small models, by every engine.
pub fn cases() -> Vec<Case> {
    recorded::embedded(
        "end_to_end",
        |reference| !recorded::is_full_size(reference),
        |references| of("end_to_end", references, Subject::is_engine),
    )
}

/// The demo model's held-out questions.
pub fn evaluation() -> Vec<Case> {
    let claim =
        format!("at least {EXACT_MATCH} of the demo model's held-out questions are answered word for word");
    vec![Case::on_each(
        "demo-eval/exact_match",
        claim,
        |subject| subject.is_engine() && subject.precision() == Precision::Fp32,
        evaluate,
    )]
}

/// A case for each reference, on every engine that `applies` names: one conversation after the other in one engine, which reuses what they have in common.
pub fn of(suite: &str, references: &[Arc<Reference>], applies: fn(&Subject) -> bool) -> Vec<Case> {
    let asked = |reference: &&Arc<Reference>| {
        reference
            .cases
            .iter()
            .flat_map(|case| &case.rows)
            .any(|row| row.question.is_some())
    };
    let case = |reference: &Arc<Reference>| {
        let claim = format!(
            "prompts and greedy answers, alone and together, are those of {}",
            reference.recorder.architecture
        );
        let name = format!("{suite}/{}/answers", reference.name);
        let reference = Arc::clone(reference);
        Case::on_each_form(name, claim, applies, move |subject, workspace| {
            answers(&reference, subject, workspace)
        })
    };
    references.iter().filter(asked).map(case).collect()
}

/// What a conversation gave.
struct Answered {
    text: String,
    ids: Vec<i64>,
    finish: Option<Finish>,
}

fn ask(engine: &mut Engine, message: Message, max_tokens: usize) -> Result<Answered, EngineError> {
    let request = Request::default().with_max_tokens(max_tokens);
    let mut answer = engine.chat(&[message], &request)?;
    let mut text = String::new();
    for piece in answer.by_ref() {
        text.push_str(&piece?.text);
    }
    Ok(Answered {
        text,
        ids: answer.tokens().to_vec(),
        finish: answer.finish(),
    })
}

fn open(subject: &Subject, deployed: &Deployed) -> Result<Engine, CaseError> {
    let options = subject.options.clone().with_image_size(deployed.image_size);
    Engine::open(&deployed.directory, &options).during(|| "opening the bundle with the runtime".to_owned())
}

fn answers(reference: &Reference, subject: &Subject, workspace: &Workspace) -> Result<Findings, CaseError> {
    let deployed = workspace.deployed_for(reference, subject.target())?;
    deployed.variant(subject)?;
    let mut engine = open(subject, &deployed)?;
    let mut findings = Findings::default();
    let (mut decided, mut all) = (0, 0);
    let mut again = Vec::new();
    for case in &reference.cases {
        let margin = reference.decisive_margin(case, subject.precision());
        let mut images = Vec::with_capacity(case.images.len());
        let mut pictures = Vec::with_capacity(case.images.len());
        for image in &case.images {
            let picture = workspace.picture(reference, image)?;
            pictures.push(picture.clone());
            images.push(
                engine
                    .add_image(&picture)
                    .during(|| format!("preparing an image of `{}`", case.name))?,
            );
        }
        for (number, row) in case.rows.iter().enumerate() {
            let Some(question) = &row.question else { continue };
            let place = format!("{} row {number}", case.name);
            let message = Message::user(images_of(row, &images), question.as_str());
            if let Some(problem) = prompt_problem(&mut engine, &message, row, case, &images)? {
                findings.problems.push(format!("{place}: {problem}"));
                continue;
            }
            let count = row.decided(margin);
            (decided, all) = (decided + count, all + row.greedy.len());
            if count == 0 {
                continue;
            }
            let answered = ask(&mut engine, message.clone(), count).during(|| format!("asking {place}"))?;
            again.push(Again {
                place: place.clone(),
                answer: begin(&engine, &pictures, message, count).during(|| format!("asking {place}"))?,
                expected: answered.ids.clone(),
            });
            let problem = answer_problem(&answered, row, count, &deployed.bundle);
            findings
                .problems
                .extend(problem.map(|problem| format!("{place}: {problem}")));
        }
    }
    findings.problems.extend(together(again)?);
    if decided < all {
        findings.notes.push(format!(
            "{decided} of {all} greedy ids were compared: the others won by less than the tolerance can swap"
        ));
    }
    Ok(findings)
}

/// A question that was answered alone, and is answered together with others now.
struct Again {
    place: String,
    answer: Answer<'static>,
    expected: Vec<i64>,
}

/// The same question in a conversation of its own.
fn begin(
    engine: &Engine,
    pictures: &[Picture],
    message: Message,
    max_tokens: usize,
) -> Result<Answer<'static>, EngineError> {
    let mut conversation = engine.model().conversation();
    for picture in pictures {
        conversation.add_image(picture)?;
    }
    let request = Request::default().with_max_tokens(max_tokens);
    let answer = conversation.into_chat(&[message], &request);
    answer.map_err(|refused| refused.1)
}

/// All questions at once, each to its end; which answers are others than alone.
fn together(mut again: Vec<Again>) -> Result<Vec<String>, CaseError> {
    loop {
        let mut answers: Vec<_> = again.iter_mut().map(|again| &mut again.answer).collect();
        let pieces = Answer::next_together(&mut answers);
        if pieces.iter().all(Option::is_none) {
            break;
        }
        for piece in pieces {
            piece.transpose().during(|| "asking all at once".to_owned())?;
        }
    }
    let others = again
        .iter()
        .filter(|again| again.answer.tokens() != again.expected);
    let problem = |again: &Again| {
        let (found, expected) = (again.answer.tokens(), &again.expected);
        format!(
            "{}: together with others {found:?}, alone {expected:?}",
            again.place
        )
    };
    Ok(others.map(problem).collect())
}

/// The images of a row, in order.
fn images_of(row: &Row, images: &[ImageId]) -> Vec<ImageId> {
    let image = |segment: &Segment| match segment {
        Segment::Image { image } => images.get(*image).copied(),
        Segment::Ids { .. } => None,
    };
    row.segments.iter().filter_map(image).collect()
}

/// How the prompt that the runtime builds differs from the recorded one.
fn prompt_problem(
    engine: &mut Engine,
    message: &Message,
    row: &Row,
    case: &RecordedCase,
    images: &[ImageId],
) -> Result<Option<String>, CaseError> {
    let building = || format!("building the prompt of `{}`", case.name);
    let prompter = engine.prompter().during(building)?;
    let prompt = prompter.build(std::slice::from_ref(message)).during(building)?;
    let found: Vec<Result<i64, ImageId>> = prompt.pieces().iter().flat_map(flat).collect();
    let expected: Vec<Result<i64, ImageId>> = row
        .segments
        .iter()
        .flat_map(|segment| match segment {
            Segment::Ids { ids } => ids.iter().map(|&id| Ok(id)).collect::<Vec<_>>(),
            Segment::Image { image } => vec![Err(images[*image])],
        })
        .collect();
    if found == expected {
        return Ok(None);
    }
    let place = found
        .iter()
        .zip(&expected)
        .take_while(|(found, expected)| found == expected)
        .count();
    let show = |list: &[Result<i64, ImageId>]| match list.get(place) {
        None => "the end".to_owned(),
        Some(Ok(id)) => format!("id {id}"),
        Some(Err(_)) => "an image".to_owned(),
    };
    Ok(Some(format!(
        "prompt: at {place} found {}, expected {}",
        show(&found),
        show(&expected)
    )))
}

/// Ids one by one, an image as one.
fn flat(piece: &Piece) -> Vec<Result<i64, ImageId>> {
    match piece {
        Piece::Tokens(ids) => ids.iter().map(|&id| Ok(id)).collect(),
        Piece::Image { id, .. } => vec![Err(*id)],
    }
}

/// How an answer differs from the first `count` greedy ids of a row.
fn answer_problem(answered: &Answered, row: &Row, count: usize, bundle: &Bundle) -> Option<String> {
    let mut expected = &row.greedy[..count];
    // The id that stops an answer is not part of it.
    let stops = expected
        .split_last()
        .filter(|(last, _)| bundle.prompt.stop_ids.contains(last));
    if let Some((_, rest)) = stops {
        expected = rest;
    }
    if answered.ids != expected {
        let place = answered
            .ids
            .iter()
            .zip(expected)
            .take_while(|(found, expected)| found == expected)
            .count();
        let show = |list: &[i64]| {
            list.get(place)
                .map_or_else(|| "the end".to_owned(), i64::to_string)
        };
        return Some(format!(
            "greedy id {place} is {}, expected {}, in {:?}",
            show(&answered.ids),
            show(expected),
            answered.text
        ));
    }
    if stops.is_some() != (answered.finish == Some(Finish::Stop)) {
        let expected = if stops.is_some() {
            "a stop id"
        } else {
            "no stop id"
        };
        return Some(format!(
            "it ended with {:?}, expected {expected}",
            answered.finish
        ));
    }
    match &row.answer {
        Some(answer) if count == row.greedy.len() && *answer != answered.text => {
            Some(format!("answer {:?}, expected {answer:?}", answered.text))
        }
        _ => None,
    }
}

/// A held-out question.
#[derive(Debug, Deserialize)]
struct Question {
    image: String,
    task: String,
    question: String,
    answer: String,
}

/// Who answers held-out questions: one picture at a time.
pub trait Answers {
    /// Looks at another picture; nothing of the last one is needed.
    ///
    /// # Errors
    /// A picture that cannot be prepared.
    fn look(&mut self, picture: &Picture) -> Result<(), CaseError>;

    /// The greedy answer to a question about the picture.
    ///
    /// # Errors
    /// What the engine says.
    fn answer(&mut self, question: &str) -> Result<String, CaseError>;
}

/// How the held-out questions were answered.
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

fn held_out_questions() -> Result<Vec<Question>, CaseError> {
    let path = format!("{HELD_OUT}/questions.json");
    let Some(text) = workspace::asset(&path) else {
        return Err(CaseError::Skip(format!("`{path}` is not part of this program")));
    };
    serde_json::from_slice(text).during(|| format!("reading `{path}`"))
}

/// File names in [`HELD_OUT`] of the scenes that held-out questions are about, each once, in order.
///
/// # Errors
/// A program without the questions.
pub fn held_out_images() -> Result<Vec<String>, CaseError> {
    let questions = held_out_questions()?;
    let mut images: Vec<String> = questions.into_iter().map(|question| question.image).collect();
    images.dedup();
    Ok(images)
}

/// Asks the demo model's held-out questions.
///
/// # Errors
/// What the one who answers says; a program without the questions.
pub fn held_out(model: &mut dyn Answers) -> Result<HeldOut, CaseError> {
    let questions = held_out_questions()?;
    let mut found = HeldOut::default();
    let mut seen = None;
    for question in &questions {
        let image = question.image.as_str();
        if seen.replace(image) != Some(image) {
            let name = format!("{HELD_OUT}/{image}");
            let bytes = workspace::asset(&name).ok_or_else(|| CaseError::Failed {
                context: format!("asking about `{image}`"),
                message: format!("`{name}` is not part of this program"),
            })?;
            let picture = runtime::image::decode(bytes, &name, &Limits::default())
                .during(|| format!("asking about `{image}`"))?;
            model.look(&picture)?;
        }
        let answer = model.answer(&question.question)?;
        let right = answer == question.answer;
        let (rights, asked) = found.tasks.entry(question.task.clone()).or_default();
        *rights += usize::from(right);
        *asked += 1;
        if !right {
            found.wrong.push(format!(
                "{image}: {:?} -> {answer:?}, expected {:?}",
                question.question, question.answer
            ));
        }
    }
    Ok(found)
}

/// The runtime's engine as one who answers.
struct EngineAnswers {
    engine: Engine,
    image: Option<ImageId>,
}

impl Answers for EngineAnswers {
    fn look(&mut self, picture: &Picture) -> Result<(), CaseError> {
        let looking = || "looking at an image".to_owned();
        self.engine.reset();
        self.image = Some(self.engine.add_image(picture).during(looking)?);
        Ok(())
    }

    fn answer(&mut self, question: &str) -> Result<String, CaseError> {
        let images: Vec<ImageId> = self.image.into_iter().collect();
        let message = Message::user(images, question);
        let answered = ask(&mut self.engine, message, runtime::DEFAULT_MAX_TOKENS)
            .during(|| format!("asking {question:?}"))?;
        Ok(answered.text)
    }
}

fn evaluate(subject: &Subject, workspace: &Workspace) -> Result<Findings, CaseError> {
    let deployed = workspace.demo()?;
    let mut answers = EngineAnswers {
        engine: open(subject, &deployed)?,
        image: None,
    };
    let found = held_out(&mut answers)?;
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
    if share(right, asked) < EXACT_MATCH {
        findings.problems.push(format!(
            "{right} of {asked} answers are right, expected a share of {EXACT_MATCH}"
        ));
        findings.problems.extend(found.wrong);
    }
    Ok(findings)
}
