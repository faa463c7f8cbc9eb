//! Many clients at once, over the bundle of `runtime/tests/data/make_bundle.py`, on every engine that works here. It answers
//! with the letter of the image's strongest colour and a full stop, and holds 64 positions.

use super::*;
use crate::work::Turn;
use runtime::image::Picture;
use runtime::{Finish, Message, Options, Provider, Request, Role, Sampling};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What goes wrong, or slowly.
#[derive(Debug, Default)]
pub(super) struct Faults {
    step: AtomicBool,
    prepare: AtomicBool,
    /// Milliseconds that each step takes longer.
    pace: AtomicU64,
}

impl Faults {
    pub(super) fn step(&self) {
        std::thread::sleep(Duration::from_millis(self.pace.load(Ordering::Relaxed)));
        assert!(!self.step.swap(false, Ordering::Relaxed), "asked to");
    }

    pub(super) fn prepare(&self) {
        assert!(!self.prepare.swap(false, Ordering::Relaxed), "asked to");
    }
}

fn models() -> Vec<Model> {
    let bundle = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bundle");
    let options = |provider| {
        Options::default()
            .with_provider(provider)
            .with_fallback(false)
            .with_threads(2)
    };
    let providers = [Provider::Cpu, Provider::Tract].into_iter();
    let works = providers.filter(|provider| provider.usable(&options(*provider)).is_ok());
    let models: Vec<Model> = works
        .map(|provider| Model::open(&bundle, &options(provider)).unwrap())
        .collect();
    assert!(!models.is_empty(), "no engine works here");
    models
}

fn start(model: &Model, limits: Limits) -> Scheduler {
    runtime::backend::silence_caught_panics();
    Scheduler::start(model.clone(), limits).unwrap()
}

fn limits() -> Limits {
    Limits {
        slots: 4,
        queue: 100,
        cache_positions: 64 * 4,
        kept: 4,
        prefill_piece: 3,
    }
}

/// One of many pictures; which colour is the strongest depends on the number.
fn picture(number: u8) -> Picture {
    let mut color = [number; 3];
    color[usize::from(number) % 3] = 200 + number;
    Picture::new(8, 8, color.repeat(64)).unwrap()
}

fn request(number: u8) -> Request {
    let sampling = Sampling {
        temperature: f32::from(number % 3),
        seed: u64::from(number),
        ..Sampling::default()
    };
    let request = Request::default().with_sampling(sampling);
    match number % 4 {
        0 => request.with_max_tokens(1),
        1 => request.with_past_end().with_max_tokens(9),
        2 => request.with_stops(["."]).with_max_tokens(20),
        _ => request.with_max_tokens(20),
    }
}

fn job(client: &str, number: u8, request: Request) -> Job {
    Job {
        turns: vec![Turn {
            role: Role::User,
            images: vec![Arc::new(picture(number))],
            text: "RGB?.".repeat(usize::from(number % 5) + 1),
        }],
        request,
        client: client.to_owned(),
        context_shift: false,
    }
}

/// One that goes on for `tokens` tokens.
fn long(client: &str, tokens: usize) -> Job {
    job(
        client,
        1,
        Request::default().with_past_end().with_max_tokens(tokens),
    )
}

/// What came of a job.
#[derive(Debug, Default)]
struct Outcome {
    prompt: usize,
    reused: usize,
    text: String,
    tokens: Vec<i64>,
    finish: Option<Finish>,
    queued: Duration,
    error: Option<JobError>,
}

/// Hears all events, which come in their order.
fn hear(events: Events) -> Outcome {
    hear_rest(events, false)
}

/// Hears all that is left of them, after the first where it has `begun`.
fn hear_rest(mut events: Events, mut begun: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let from_first = !begun;
    while let Some(event) = events.next_blocking() {
        assert!(
            outcome.finish.is_none() && outcome.error.is_none(),
            "after the last"
        );
        match event {
            Event::Begun {
                prompt_positions,
                reused_positions,
            } => {
                assert!(!begun);
                begun = true;
                (outcome.prompt, outcome.reused) = (prompt_positions, reused_positions);
            }
            Event::Piece(piece) => {
                assert!(begun);
                outcome.text.push_str(&piece.text);
                outcome.tokens.extend(piece.id);
            }
            Event::Ended {
                finish,
                stats,
                first_token,
                queued,
            } => {
                assert!(begun && queued <= first_token);
                assert_eq!(stats.tokens, outcome.tokens.len());
                assert!(!from_first || stats.prompt_positions == outcome.prompt);
                (outcome.finish, outcome.queued) = (Some(finish), queued);
            }
            Event::Failed(error) => outcome.error = Some(error),
        }
    }
    outcome
}

/// The same without a scheduler.
fn alone(model: &Model, job: &Job) -> (String, Vec<i64>, Option<Finish>) {
    let mut conversation = model.conversation();
    let mut messages = Vec::new();
    for turn in &job.turns {
        let images = turn.images.iter();
        let images: Vec<_> = images
            .map(|picture| conversation.add_image(picture).unwrap())
            .collect();
        messages.push(Message {
            images,
            ..Message::new(turn.role, turn.text.clone())
        });
    }
    let mut answer = conversation.chat(&messages, &job.request).unwrap();
    let text = answer.text().unwrap();
    (text, answer.tokens().to_vec(), answer.finish())
}

/// Nothing is left of jobs that are over.
fn assert_idle(scheduler: &Scheduler) {
    let since = Instant::now();
    loop {
        let counts = scheduler.counts();
        if (counts.running, counts.waiting) == (0, 0) {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{counts:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let state = scheduler.shared.state();
    assert_eq!((state.reserved, state.handed.len()), (0, 0));
    assert!(state.memory.is_empty() && state.encoder.is_empty());
    assert!(state.kept.len() <= scheduler.shared.limits.kept);
    assert!(state.kept.positions() <= scheduler.shared.limits.cache_positions);
}

#[test]
fn answers_beside_others_are_those_of_one_alone() {
    for model in models() {
        let expected: Vec<_> = (0..20)
            .map(|number| alone(&model, &job("", number, request(number))))
            .collect();
        model.forget_features();
        let scheduler = start(&model, limits());
        std::thread::scope(|scope| {
            for number in 0..20 {
                let (scheduler, expected) = (&scheduler, &expected);
                scope.spawn(move || {
                    let client = format!("client {}", number % 7);
                    let events = scheduler.submit(job(&client, number, request(number)));
                    let outcome = hear(events.unwrap());
                    let (text, tokens, finish) = &expected[usize::from(number)];
                    assert_eq!(
                        (&outcome.text, &outcome.tokens, &outcome.finish),
                        (text, tokens, finish),
                        "{number}: {outcome:?}"
                    );
                });
            }
        });
        assert_idle(&scheduler);
        let counts = scheduler.counts();
        assert_eq!((counts.finished, counts.failed, counts.cancelled), (20, 0, 0));
        assert_eq!(counts.images_encoded + counts.images_reused, 20);
        let tokens: usize = expected.iter().map(|(_, tokens, _)| tokens.len()).sum();
        assert_eq!(counts.tokens, u64::try_from(tokens).unwrap());
        assert!(counts.kept > 0 && counts.cache_bytes > 0);
    }
}

#[test]
fn clients_that_go_away_at_any_time_free_their_slots() {
    for model in models() {
        let limits = Limits { slots: 2, ..limits() };
        let scheduler = start(&model, limits);
        scheduler.shared.faults.pace.store(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for thread in 0..6_u64 {
                let scheduler = &scheduler;
                scope.spawn(move || {
                    let mut random = thread * 7919 + 17;
                    for round in 0..12_u8 {
                        let mut events = scheduler.submit(long(&format!("client {thread}"), 30)).unwrap();
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        // In the queue, while it is prepared, or after some tokens.
                        if round % 3 == 0 {
                            std::thread::sleep(Duration::from_micros((random >> 33) % 3000));
                        } else {
                            for _ in 0..(random >> 33) % 8 {
                                events.next_blocking().unwrap();
                            }
                        }
                    }
                });
            }
        });
        assert_idle(&scheduler);
        let counts = scheduler.counts();
        assert_eq!((counts.cancelled, counts.finished, counts.failed), (72, 0, 0));
        let outcome = hear(scheduler.submit(job("later", 2, Request::default())).unwrap());
        assert_eq!(outcome.text, "B.");
    }
}

#[test]
fn the_queue_is_bounded_and_clients_take_turns() {
    for model in models() {
        let limits = Limits {
            slots: 1,
            queue: 4,
            ..limits()
        };
        let scheduler = start(&model, limits);
        scheduler.shared.faults.pace.store(3, Ordering::Relaxed);
        let mut first = scheduler.submit(long("a", 40)).unwrap();
        assert!(matches!(first.next_blocking(), Some(Event::Begun { .. })));
        let waits: Vec<Duration> = std::thread::scope(|scope| {
            let threads = ["a", "a", "a", "b"].map(|client| {
                let events = scheduler.submit(long(client, 4)).unwrap();
                scope.spawn(move || {
                    let outcome = hear(events);
                    assert_eq!(outcome.tokens.len(), 4);
                    outcome.queued
                })
            });
            let busy = scheduler.submit(long("c", 4)).unwrap_err();
            assert_eq!(busy.waiting, 4);
            assert!(busy.retry_after >= Duration::from_secs(1));
            let counts = scheduler.counts();
            assert_eq!((counts.waiting, counts.running, counts.refused), (4, 1, 1));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        // `b` did not wait for all that `a` had before it.
        assert!(
            waits[0] < waits[3] && waits[3] < waits[1] && waits[1] < waits[2],
            "{waits:?}"
        );
        assert_eq!(hear_rest(first, true).tokens.len(), 40);
        // Also at once, when slots are free that nobody has taken yet, no more are said to wait than may.
        let quick: Vec<_> = (0..8).map(|_| scheduler.submit(long("q", 1))).collect();
        for busy in quick.iter().filter_map(|taken| taken.as_ref().err()) {
            assert_eq!(busy.waiting, 4);
        }
        drop(quick);
        assert_idle(&scheduler);
        // Those whose client is gone make room.
        let mut last = scheduler.submit(long("a", 50)).unwrap();
        assert!(matches!(last.next_blocking(), Some(Event::Begun { .. })));
        let waiting: Vec<Events> = (0..4).map(|_| scheduler.submit(long("a", 1)).unwrap()).collect();
        scheduler.submit(long("b", 1)).unwrap_err();
        drop(waiting);
        assert_eq!(scheduler.counts().waiting, 0);
        let events = scheduler.submit(long("b", 1)).unwrap();
        drop(last);
        assert_eq!(hear(events).tokens.len(), 1);
        assert_idle(&scheduler);
    }
}

#[test]
fn caches_take_no_more_than_is_allowed() {
    for model in models() {
        let limits = Limits {
            slots: 4,
            cache_positions: 60,
            ..limits()
        };
        let scheduler = start(&model, limits);
        scheduler.shared.faults.pace.store(1, Ordering::Relaxed);
        // 2 tokens around it, 2 of the image, 10 of the text, 20 of the answer: no two fit, but a short one does.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let state = scheduler.shared.state();
                    let taken = state.reserved + state.kept.positions();
                    most = (most.0.max(taken), most.1.max(state.running));
                    drop(state);
                    std::thread::sleep(Duration::from_micros(300));
                }
                most
            });
            let jobs: Vec<_> = (0..12)
                .map(|number| {
                    let events = scheduler.submit(long(&format!("client {number}"), 20)).unwrap();
                    scope.spawn(move || assert_eq!(hear(events).tokens.len(), 20))
                })
                .collect();
            for thread in jobs {
                thread.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            let (positions, running) = watch.join().unwrap();
            assert!((30..=60).contains(&positions), "{positions}");
            assert!(running > 1, "{running}");
        });
        assert_idle(&scheduler);
        // One that can never fit is refused with the numbers.
        let error = hear(scheduler.submit(long("a", 50)).unwrap()).error.unwrap();
        let JobError::Refused(words) = error else {
            panic!("{error}");
        };
        for number in ["at most 50 tokens", "have 60 (--cache-positions)"] {
            assert!(words.contains(number), "{words}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_request_is_refused() {
    for model in models() {
        let scheduler = start(&model, limits());
        let sampling = Sampling {
            top_p: -1.0,
            ..Sampling::default()
        };
        let mut too_long = long("a", 1);
        too_long.turns[0].text = "R".repeat(70);
        let mut misplaced = long("a", 1);
        misplaced.turns[0].text = "<image><image>".to_owned();
        let cases = [
            (too_long, "the model can hold 64"),
            (misplaced, "2 times"),
            (job("a", 1, Request::default().with_sampling(sampling)), "top-p"),
        ];
        for (job, expected) in cases {
            let outcome = hear(scheduler.submit(job).unwrap());
            let Some(JobError::Refused(words) | JobError::TooLong(words)) = outcome.error else {
                panic!("{expected}: {outcome:?}");
            };
            assert!(words.contains(expected), "{words}");
        }
        assert_idle(&scheduler);
        assert_eq!(scheduler.counts().failed, 3);
        // One that fits, and leaves no room for an answer: turns are left out of it too.
        for letters in 8..24 {
            let mut close = job("a", 1, Request::default().with_max_tokens(16));
            close.turns.insert(
                0,
                Turn {
                    role: Role::Assistant,
                    images: Vec::new(),
                    text: "G.".to_owned(),
                },
            );
            close.turns.insert(
                0,
                Turn {
                    role: Role::User,
                    images: Vec::new(),
                    text: "R".repeat(letters),
                },
            );
            close.turns[2].text = "B".repeat(30);
            close.context_shift = true;
            let outcome = hear(scheduler.submit(close).unwrap());
            assert!(outcome.error.is_none(), "{letters}: {outcome:?}");
        }
        // With leave, the oldest turns are left out, whose image is shown still.
        let mut shifted = job("a", 1, Request::default().with_max_tokens(4));
        shifted.turns[0].text = "R".repeat(40);
        let turn = |role, text: &str| Turn {
            role,
            images: Vec::new(),
            text: text.to_owned(),
        };
        shifted.turns.push(turn(Role::Assistant, "G."));
        shifted.turns.push(turn(Role::User, &"B".repeat(30)));
        shifted.context_shift = true;
        let mut next = shifted.clone();
        let outcome = hear(scheduler.submit(shifted).unwrap());
        // Thirty letters, what stands around them, and the image.
        assert_eq!((outcome.prompt, outcome.text.as_str()), (30 + 3 + 2, "B."));
        assert!(outcome.error.is_none(), "{outcome:?}");
        // What is left out once stays so: the next turn goes on where this one ended.
        next.turns.push(turn(Role::Assistant, "B."));
        next.turns.push(turn(Role::User, "??"));
        let outcome = hear(scheduler.submit(next).unwrap());
        assert!(outcome.error.is_none(), "{outcome:?}");
        assert!((35..outcome.prompt).contains(&outcome.reused), "{outcome:?}");
    }
}

#[test]
fn a_next_turn_goes_on_with_its_own_conversation() {
    for model in models() {
        let scheduler = start(&model, limits());
        let ask = |jobs: &[Turn], client: &str| {
            let job = Job {
                turns: jobs.to_vec(),
                request: Request::default().with_max_tokens(8),
                client: client.to_owned(),
                context_shift: false,
            };
            hear(scheduler.submit(job).unwrap())
        };
        let turn = |role, number: Option<u8>, text: &str| Turn {
            role,
            images: number
                .map(|number| Arc::new(picture(number)))
                .into_iter()
                .collect(),
            text: text.to_owned(),
        };
        let mut talks: Vec<Vec<Turn>> = (0..3)
            .map(|number| vec![turn(Role::User, Some(number), "RRGGBB??")])
            .collect();
        for round in 0..2 {
            for (number, talk) in talks.iter_mut().enumerate() {
                let outcome = ask(talk, &format!("client {number}"));
                assert_eq!(outcome.text, ["R.", "G.", "B."][number]);
                if round == 0 {
                    assert_eq!(outcome.reused, 0);
                } else {
                    // All that was said before, image and answer.
                    assert!(outcome.reused >= 13, "{outcome:?}");
                }
                talk.push(turn(Role::Assistant, None, &outcome.text));
                talk.push(turn(Role::User, None, "??"));
            }
        }
        let counts = scheduler.counts();
        assert_eq!(
            (counts.kept, counts.images_encoded, counts.images_reused),
            (3, 3, 3)
        );
        assert!(counts.reused_positions >= 39);
        // Kept ones are bounded, and the oldest go.
        for number in 10..20 {
            ask(&[turn(Role::User, Some(number), "BGBGBG")], "another");
        }
        assert_eq!(scheduler.counts().kept, 4);
        assert_eq!(ask(&talks[0], "client 0").reused, 0);
        assert_idle(&scheduler);
    }
}

/// However long a prompt, a running answer goes on after each piece of it.
#[test]
fn prompts_are_read_between_the_steps_of_others() {
    for model in models() {
        let limits = Limits {
            prefill_piece: 1,
            ..limits()
        };
        let scheduler = start(&model, limits);
        scheduler.shared.faults.pace.store(2, Ordering::Relaxed);
        let mut stream = scheduler.submit(long("a", 45)).unwrap();
        assert!(matches!(stream.next_blocking(), Some(Event::Begun { .. })));
        let mut reads = job("b", 2, Request::default());
        reads.turns[0].text = "R".repeat(30);
        let before = scheduler.counts();
        let mut events = scheduler.submit(reads).unwrap();
        assert!(
            matches!(events.next_blocking(), Some(Event::Begun { prompt_positions, .. }) if prompt_positions > 30)
        );
        let after = scheduler.counts();
        // One step a piece: so many tokens of the other came meanwhile.
        assert!(after.prompt_positions - before.prompt_positions > 30);
        assert!(after.tokens - before.tokens >= 30, "{before:?} {after:?}");
        assert_eq!(hear_rest(stream, true).tokens.len(), 45);
    }
}

#[test]
fn an_end_with_grace_and_without() {
    for model in models() {
        for (grace, ends) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            let limits = Limits { slots: 1, ..limits() };
            let scheduler = start(&model, limits);
            scheduler.shared.faults.pace.store(3, Ordering::Relaxed);
            let mut running = scheduler.submit(long("a", 30)).unwrap();
            assert!(matches!(running.next_blocking(), Some(Event::Begun { .. })));
            let waiting = scheduler.submit(long("b", 30)).unwrap();
            scheduler.end(grace);
            assert_eq!(scheduler.counts().running, 0);
            assert!(matches!(hear(waiting).error, Some(JobError::Ending)));
            let late = scheduler.submit(long("b", 30)).unwrap();
            assert!(matches!(hear(late).error, Some(JobError::Ending)));
            let mut tokens = 0;
            let last = loop {
                match running.next_blocking() {
                    Some(Event::Piece(_)) => tokens += 1,
                    last => break last,
                }
            };
            match last {
                Some(Event::Ended { .. }) => assert!(ends && tokens == 30),
                Some(Event::Failed(JobError::Ending)) => assert!(!ends && tokens < 30),
                other => panic!("{other:?}"),
            }
            // Again is no harm.
            scheduler.end(Duration::ZERO);
        }
    }
}

#[test]
fn a_panic_is_not_the_end_of_the_server() {
    for model in models() {
        let scheduler = start(&model, limits());
        for number in 0..4 {
            let faults = &scheduler.shared.faults;
            let fault = [&faults.step, &faults.prepare][number % 2];
            fault.store(true, Ordering::Relaxed);
            let outcome = hear(scheduler.submit(long("a", 9)).unwrap());
            assert!(
                matches!(&outcome.error, Some(JobError::Engine(words)) if words.contains("asked to")),
                "{outcome:?}"
            );
            assert_eq!(hear(scheduler.submit(long("a", 9)).unwrap()).tokens.len(), 9);
        }
        assert_idle(&scheduler);
        assert_eq!(scheduler.counts().failed, 4);
    }
}
