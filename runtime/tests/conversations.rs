//! Many conversations over one model, and processes that end with models open. On every engine that works here, over the
//! bundle of `tests/data/make_bundle.py`, which answers with the letter of the image's strongest colour and a full stop.

#![cfg(any(feature = "ort", feature = "tract"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use runtime::image::Picture;
use runtime::{
    Answer, Constraint, Conversation, Engine, Finish, Message, Model, Options, Progress, Provider, Request,
    Role, Sampling,
};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn bundle() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle")
}

fn options(provider: Provider) -> Options {
    Options::default().with_provider(provider).with_fallback(false)
}

/// A model on each engine that works here.
fn models() -> Vec<Model> {
    let works = |provider: &Provider| provider.usable(&options(*provider)).is_ok();
    let providers = [Provider::Cpu, Provider::Tract].into_iter().filter(works);
    let models: Vec<Model> = providers
        .map(|provider| Model::open(&bundle(), &options(provider)).unwrap())
        .collect();
    assert!(!models.is_empty(), "no engine works here");
    models
}

/// One of many pictures; which colour is the strongest depends on the number.
fn picture(number: u8) -> Picture {
    let mut color = [number; 3];
    color[usize::from(number) % 3] = 200 + number;
    Picture::new(8, 8, color.repeat(64)).unwrap()
}

/// A question about a picture, and another one; the tokens of both answers.
fn talk(conversation: &mut Conversation, picture: &Picture) -> Vec<i64> {
    let image = conversation.add_image(picture).unwrap();
    let mut messages = vec![Message::user([image], "What is it?")];
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let mut answer = conversation.chat(&messages, &Request::default()).unwrap();
        let text = answer.text().unwrap();
        tokens.extend(answer.tokens());
        messages.push(Message::new(Role::Assistant, text));
        messages.push(Message::new(Role::User, "Sure?"));
    }
    tokens
}

#[test]
fn conversations_beside_each_other_answer_as_one_after_another() {
    for model in models() {
        let alone: Vec<Vec<i64>> = (0..8)
            .map(|number| talk(&mut model.conversation(), &picture(number)))
            .collect();
        assert!(alone.iter().all(|tokens| !tokens.is_empty()));
        assert_ne!(alone[0], alone[1], "pictures do not matter");
        model.forget_features();
        let beside: Vec<Vec<i64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|number| {
                    let mut conversation = model.conversation();
                    scope.spawn(move || talk(&mut conversation, &picture(number)))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(beside, alone);
    }
}

/// The question about a picture, as long as its number says, and how it is answered.
fn question(number: u8) -> (String, Request) {
    let sampling = Sampling {
        temperature: f32::from(number % 3),
        seed: u64::from(number),
        ..Sampling::default()
    };
    let request = Request::default().with_sampling(sampling);
    let request = match number % 6 {
        0 => request.with_max_tokens(1),
        1 => request.with_past_end().with_max_tokens(7),
        2 => request.with_stops(["."]),
        3 => request
            .with_logprobs(2)
            .with_constraint(Constraint::Regex("[RGB]\\?{2,5}".to_owned())),
        4 => request.with_constraint(Constraint::Choices(vec!["R.?".to_owned(), "GG".to_owned()])),
        _ => request,
    };
    ("What is it? ".repeat(usize::from(number) + 1), request)
}

fn begin(model: &Model, number: u8) -> Answer<'static> {
    let mut conversation = model.conversation();
    let image = conversation.add_image(&picture(number)).unwrap();
    let (question, request) = question(number);
    let answer = conversation.into_chat(&[Message::user([image], question)], &request);
    answer.map_err(|refused| refused.1).unwrap()
}

/// Of different lengths, greedy and drawn, each with an end of its own; they join and leave.
#[test]
fn answers_continued_together_are_those_of_one_after_another() {
    for model in models() {
        let mut alone = Vec::new();
        for number in 0..9 {
            let mut answer = begin(&model, number);
            let text = answer.text().unwrap();
            assert_eq!((answer.stats().together_asked, answer.stats().together), (1, 1));
            match number % 6 {
                3 => assert!(
                    text.len() >= 3 && text[1..].chars().all(|letter| letter == '?'),
                    "{text}"
                ),
                4 => assert!(["R.?", "GG"].contains(&text.as_str()), "{text}"),
                _ => {}
            }
            alone.push((text, answer.tokens().to_vec(), answer.finish()));
        }
        assert!(alone.iter().any(|(_, tokens, _)| tokens.len() == 7));
        let mut waiting = (0..9).map(|number| (usize::from(number), begin(&model, number)));
        let mut running: Vec<(usize, Answer<'static>)> = waiting.by_ref().take(3).collect();
        let mut texts = vec![String::new(); alone.len()];
        let mut most = 0;
        while !running.is_empty() {
            let mut answers: Vec<_> = running.iter_mut().map(|(_, answer)| answer).collect();
            let pieces = Answer::next_together(&mut answers);
            for ((number, _), piece) in running.iter().zip(pieces) {
                texts[*number].push_str(&piece.map_or_else(String::new, |piece| piece.unwrap().text));
            }
            // One that has ended may stay for a while, in any place.
            let (over, rest): (Vec<_>, Vec<_>) = running
                .into_iter()
                .partition(|(number, answer)| answer.finish().is_some() && number % 2 == 0);
            running = rest;
            for (number, answer) in over {
                most = most.max(answer.stats().together);
                let (text, tokens, finish) = &alone[number];
                assert_eq!(
                    (&texts[number], answer.tokens(), &answer.finish()),
                    (text, tokens.as_slice(), finish)
                );
                // A conversation that goes on knows what was said.
                let mut conversation = answer.into_conversation().unwrap();
                assert!(conversation.cache_bytes() > 0);
                assert!(!talk(&mut conversation, &picture(3)).is_empty());
            }
            running.extend(waiting.next());
            let count = running.len();
            running.rotate_left(1 % count.max(1));
            if running.iter().all(|(_, answer)| answer.finish().is_some()) {
                for (number, answer) in running.drain(..) {
                    assert_eq!(answer.tokens(), alone[number].1);
                    assert_eq!(texts[number], alone[number].0);
                }
            }
        }
        assert!(waiting.next().is_none());
        assert!(
            most > 1,
            "{:?} steps one at a time",
            model.provider().unwrap().used
        );
    }
}

#[test]
fn an_answer_that_is_cancelled_ends_alone() {
    let models = models();
    let flag = std::sync::Arc::default();
    let mut answers: Vec<Answer<'static>> = Vec::new();
    // Answers of several engines beside each other.
    for model in &models {
        for cancel in [None, Some(std::sync::Arc::clone(&flag))] {
            let mut request = Request::default().with_past_end().with_max_tokens(4);
            request.cancel = cancel;
            let answer = model
                .conversation()
                .into_chat(&[Message::new(Role::User, "?")], &request);
            answers.push(answer.map_err(|refused| refused.1).unwrap());
        }
    }
    for step in 0..5 {
        if step == 2 {
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Answer::next_together(&mut answers.iter_mut().collect::<Vec<_>>());
    }
    for (number, answer) in answers.iter().enumerate() {
        let expected = [(4, Finish::MaxTokens), (2, Finish::Cancelled)][number % 2];
        assert_eq!(
            (answer.tokens().len(), answer.finish()),
            (expected.0, Some(expected.1))
        );
    }
    // One that cannot begin gives its conversation back.
    let conversation = models[0].conversation();
    let request = Request::default().with_cancel(flag);
    let refused = conversation
        .into_chat(&[Message::new(Role::User, "?")], &request)
        .unwrap_err();
    assert!(matches!(refused.1, runtime::EngineError::Cancelled));
    let mut conversation = refused.0;
    assert!(!talk(&mut conversation, &picture(1)).is_empty());
}

#[test]
fn turns_of_conversations_may_alternate() {
    for model in models() {
        let mut conversations: Vec<Conversation> = (0..3).map(|_| model.conversation()).collect();
        let mut first = Vec::new();
        for (number, conversation) in (0..).zip(&mut conversations) {
            assert_eq!(conversation.cache_bytes(), 0);
            let image = conversation.add_image(&picture(number)).unwrap();
            let messages = [Message::user([image], "What is it?")];
            let mut answer = conversation.chat(&messages, &Request::default()).unwrap();
            first.push((messages, answer.text().unwrap(), answer.tokens().to_vec()));
        }
        for (conversation, (messages, text, tokens)) in conversations.iter_mut().zip(&first) {
            assert!(conversation.cache_bytes() > 0);
            let mut answer = conversation.chat(messages, &Request::default()).unwrap();
            assert_eq!(&answer.text().unwrap(), text);
            assert_eq!(answer.tokens(), tokens);
            // All but the last position of the prompt was remembered.
            let stats = answer.stats();
            assert_eq!(stats.reused_positions, stats.prompt_positions - 1);
        }
        let conversation = &mut conversations[0];
        conversation.reset();
        assert_eq!(conversation.cache_bytes(), 0);
    }
}

/// Others who look at the model at the same moment may make it seem not to be there yet: what was fed is not asked for again.
#[test]
fn forgotten_images_are_not_missed_while_others_look_at_the_model() {
    for model in models() {
        let mut conversation = model.conversation();
        let image = conversation.add_image(&picture(1)).unwrap();
        let messages = [Message::user([image], "What is it?")];
        let first = conversation
            .chat(&messages, &Request::default())
            .unwrap()
            .text()
            .unwrap();
        conversation.forget_images();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        model.ready().unwrap();
                    }
                });
            }
            let again = (0..200).try_for_each(|_| {
                let text = conversation
                    .chat(&messages, &Request::default())
                    .and_then(|mut answer| answer.text())
                    .map_err(|error| error.to_string())?;
                (text == first).then_some(()).ok_or(text)
            });
            over.store(true, Ordering::Relaxed);
            assert_eq!(again, Ok(()));
        });
    }
}

#[test]
fn an_image_is_encoded_once_for_all_conversations() {
    for model in models() {
        let ask = |model: &Model| {
            let mut conversation = model.conversation();
            let mut answer = conversation
                .describe(&picture(1), "What is it?", &Request::default())
                .unwrap();
            answer.text().unwrap();
            answer.stats().images_encoded
        };
        assert_eq!(ask(&model), 1);
        assert_eq!(ask(&model), 0);
        model.forget_features();
        let encoded: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(&model))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(encoded, 1);
    }
}

#[test]
fn a_conversation_keeps_its_model() {
    for model in models() {
        let mut conversation = model.conversation();
        drop(model);
        assert!(!talk(&mut conversation, &picture(2)).is_empty());
        let mut engine = Engine::from(conversation);
        let other = engine.model().conversation();
        engine.reset();
        drop(engine);
        other.model().ready().unwrap();
    }
}

/// Set in a process that [`a_process_may_end_with_models_open`] starts: milliseconds before it ends.
const DELAY: &str = "FVLM_TEST_ENDS_AFTER_MS";

/// Not a test by itself: the process that ends.
#[test]
fn ends_with_models_open() {
    let Ok(delay) = std::env::var(DELAY) else {
        return;
    };
    for provider in [Provider::Cpu, Provider::Tract] {
        for _ in 0..3 {
            if let Ok(model) = Model::open(&bundle(), &options(provider)) {
                std::thread::spawn(move || talk(&mut model.conversation(), &picture(1)));
            }
            if let Ok(engine) = Engine::open(&bundle(), &options(provider)) {
                std::mem::forget(engine);
            }
        }
    }
    std::thread::sleep(Duration::from_millis(delay.parse().unwrap()));
    #[expect(clippy::exit, reason = "what is tested")]
    std::process::exit(0);
}

/// Not a test by itself: a process that is ended by a thread which has used no model.
#[test]
fn ends_while_another_opens() {
    let Ok(delay) = std::env::var(DELAY) else {
        return;
    };
    #[cfg(feature = "ort")]
    runtime::backend::watch_thread();
    std::thread::spawn(|| {
        let model = Model::open(&bundle(), &options(Provider::Cpu)).unwrap();
        let _ = model.ready();
    });
    std::thread::sleep(Duration::from_millis(delay.parse().unwrap()));
    #[expect(clippy::exit, reason = "what is tested")]
    std::process::exit(0);
}

#[test]
fn a_process_may_end_with_models_open() {
    let program = std::env::current_exe().unwrap();
    for (number, delay) in (0..60).map(|number| (number, number / 2 * 4)) {
        let mut command = Command::new(&program);
        let name = ["ends_with_models_open", "ends_while_another_opens"][number % 2];
        command.args(["--exact", name]);
        let done = command.env(DELAY, delay.to_string()).output().unwrap();
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(
            done.status.code(),
            Some(0),
            "after {delay} ms: {:?} {words}",
            done.status
        );
    }
}

/// A prompt that is read in pieces of any length is answered as one that is read at once, and may be given up between two.
#[test]
fn prompts_are_read_in_pieces() {
    for model in models() {
        let messages = |conversation: &mut Conversation| {
            let image = conversation.add_image(&picture(4)).unwrap();
            [Message::user([image], "What is it? ".repeat(3))]
        };
        let (_, request) = question(7);
        let request = request.with_logprobs(3);
        let collect = |answer: &mut Answer<'_>| {
            let pieces: Vec<_> = answer.by_ref().map(Result::unwrap).collect();
            (pieces, answer.finish())
        };
        let mut whole = model.conversation();
        let said = messages(&mut whole);
        let expected = collect(&mut whole.chat(&said, &request).unwrap());
        let mut kept = model.conversation();
        for most in [1, 2, 3, 5, 1000] {
            kept.reset();
            let said = messages(&mut kept);
            let mut reading = kept.begin(&said, &request).unwrap();
            let prompt = reading.prompt_positions();
            assert_eq!((reading.reused_positions(), reading.left()), (0, prompt));
            let mut pieces = 0;
            let mut answer = loop {
                let left = reading.left();
                pieces += 1;
                match reading.advance(most).unwrap() {
                    Progress::Reading(more) => {
                        assert_eq!(more.left(), left - most);
                        reading = *more;
                    }
                    Progress::Answer(answer) => break answer,
                }
            };
            assert_eq!(pieces, prompt.div_ceil(most));
            assert_eq!(collect(&mut answer), expected, "pieces of {most}");
            assert_eq!(answer.stats().prompt_positions, prompt);
            kept = answer.into_conversation().unwrap();
            assert!(kept.positions() > prompt && kept.cache_bytes() > 0);
        }
        // What was read of one that is given up stays useful.
        let flag = std::sync::Arc::default();
        let cancelled = request.clone().with_cancel(std::sync::Arc::clone(&flag));
        kept.reset();
        let said = messages(&mut kept);
        let reading = kept.begin(&said, &cancelled).unwrap();
        let Progress::Reading(reading) = reading.advance(6).unwrap() else {
            panic!("the prompt is shorter than six positions");
        };
        flag.store(true, std::sync::atomic::Ordering::Relaxed);
        let (conversation, error) = *reading.advance(6).unwrap_err();
        assert!(matches!(error, runtime::EngineError::Cancelled));
        assert_eq!(conversation.positions(), 6);
        let reading = conversation.begin(&said, &request).unwrap();
        assert_eq!(reading.reused_positions(), 6);
        let Progress::Answer(mut answer) = reading.advance(1000).unwrap() else {
            panic!("not all was read");
        };
        assert_eq!(collect(&mut answer), expected);
    }
}
