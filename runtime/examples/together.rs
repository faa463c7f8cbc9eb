//! Answers that are continued together: what does a step of many cost beside their single steps, and are they the same?

use runtime::image::Picture;
use runtime::{Answer, EngineError, Message, Model, Options, Request, image, stats};
use std::io::Write;
use std::time::{Duration, Instant};

type Error = Box<dyn std::error::Error>;

/// Tokens of each answer: of the steps that are measured the fastest counts.
const TOKENS: usize = 24;

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p fvlm-runtime --example together -- fastvlm-bundle 8 models/demo/scenes/scene_*.png`
///
/// The exit code is 1 where an answer is another one than alone. A number after COUNT says how many threads compute.
fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let usage = "usage: together BUNDLE COUNT [THREADS] IMAGE...";
    let (Some(bundle), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err(usage.into());
    };
    let count: usize = count.to_string_lossy().parse()?;
    let threads = arguments
        .peek()
        .and_then(|word| word.to_string_lossy().parse::<usize>().ok());
    if threads.is_some() {
        arguments.next();
    }
    let mut pictures = Vec::new();
    for path in arguments {
        pictures.push(image::open(path.as_ref(), &image::Limits::default())?);
    }
    if pictures.is_empty() || count == 0 {
        return Err(usage.into());
    }
    let model = Model::open(bundle.as_ref(), &Options::default().with_threads(threads))?;
    let begin = || -> Result<Vec<Answer<'static>>, EngineError> {
        let number = 0..count;
        number
            .map(|number| begin(&model, &pictures[number % pictures.len()]))
            .collect()
    };

    let mut alone = begin()?;
    let single = fastest(|| {
        for answer in &mut alone {
            answer.next().transpose()?;
        }
        Ok(())
    })?;
    let mut beside = begin()?;
    let mut answers: Vec<_> = beside.iter_mut().collect();
    let together = fastest(|| {
        for piece in Answer::next_together(&mut answers) {
            piece.transpose()?;
        }
        Ok(())
    })?;

    let most = beside
        .iter()
        .map(|answer| answer.stats().together)
        .max()
        .unwrap_or(0);
    let mut stdout = std::io::stdout();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    writeln!(
        stdout,
        "{count} single steps {:.2} ms, one step of {count} ({most} at a time) {:.2} ms: {:.3} of it; peak {} MiB",
        milliseconds(single),
        milliseconds(together),
        together.as_secs_f64() / single.as_secs_f64(),
        stats::peak_memory().unwrap_or(0) >> 20,
    )?;
    let pairs = alone.iter().zip(&beside);
    let different = pairs
        .filter(|(alone, beside)| alone.tokens() != beside.tokens())
        .count();
    match different {
        0 => Ok(()),
        _ => Err(format!("{different} of {count} answers differ").into()),
    }
}

/// The answer to a question about a picture; its prompt is read.
fn begin(model: &Model, picture: &Picture) -> Result<Answer<'static>, EngineError> {
    let mut conversation = model.conversation();
    let image = conversation.add_image(picture)?;
    let request = Request::default().with_max_tokens(TOKENS).with_past_end();
    let answer = conversation.into_chat(&[Message::user([image], "Describe the image.")], &request);
    answer.map_err(|refused| refused.1)
}

/// The shortest of the steps to the answers' end, but the first, which is of the prompt.
fn fastest(mut step: impl FnMut() -> Result<(), EngineError>) -> Result<Duration, EngineError> {
    let mut fastest = Duration::MAX;
    for number in 0..TOKENS {
        let begun = Instant::now();
        step()?;
        if number > 1 {
            fastest = fastest.min(begun.elapsed());
        }
    }
    Ok(fastest)
}
