//! Do the right words come out? Images and questions through the runtime library, as a user's program does it.

use crate::golden::{RecordedCase, Reference, Row, Segment};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::Deployed;
use crate::setup::subject::Subject;
use crate::setup::workspace::Workspace;
use crate::suite::recorded;
use models::bundle::Bundle;
use runtime::image::{ImageId, Picture};
use runtime::prompt::Piece;
use runtime::{Answer, Engine, EngineError, Finish, Message, Request};
use std::sync::Arc;

/// The answers of small models, by every engine.
pub fn cases() -> Vec<Case> {
    recorded::embedded(
        "end_to_end",
        |reference| !recorded::is_full_size(reference),
        |references| of("end_to_end", references, Subject::is_engine),
    )
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
