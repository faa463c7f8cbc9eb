//! Many conversations over one model, each on a thread and about an image of its own: what do they take, and do they answer as
//! they would one after another?

use runtime::{EngineError, Model, Options, Request, image, stats};
use std::ffi::OsString;
use std::io::Write;
use std::time::Instant;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What one conversation gave.
struct Said {
    text: String,
    cache_bytes: usize,
}

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p fvlm-runtime --example many -- fastvlm-bundle 8 models/demo/scenes/scene_*.png`
///
/// The exit code is 1 where an answer is another one than that of the same conversation alone.
fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: many BUNDLE COUNT IMAGE...";
    let (Some(bundle), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err(usage.into());
    };
    let count: usize = count.to_string_lossy().parse()?;
    let images: Vec<OsString> = arguments.collect();
    if images.is_empty() || count == 0 {
        return Err(usage.into());
    }
    let mut stdout = std::io::stdout();
    let model = Model::open(bundle.as_ref(), &Options::default())?;
    model.ready()?;
    writeln!(stdout, "opened: peak {}", peak())?;

    let image = |number: usize| images[number % images.len()].clone();
    let first = describe(&model, &image(0))?;
    let cache = first.cache_bytes;
    writeln!(
        stdout,
        "one conversation: peak {}, cache {}",
        peak(),
        mebibytes(cache)
    )?;
    model.forget_features();

    let begun = Instant::now();
    let beside: Vec<Said> = std::thread::scope(|scope| {
        let talk = |number| {
            let (model, image) = (&model, image(number));
            scope.spawn(move || describe(model, &image))
        };
        let threads: Vec<_> = (0..count).map(talk).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Said, EngineError>>| {
            let said = thread.join().map_err(|_| "a thread panicked; this is a bug")?;
            Ok::<Said, Error>(said?)
        };
        threads.into_iter().map(join).collect::<Result<_, _>>()
    })?;
    let caches = beside.iter().map(|said| said.cache_bytes).sum();
    let seconds = begun.elapsed().as_secs_f64();
    writeln!(
        stdout,
        "{count} conversations: peak {}, caches {} together, {seconds:.1} s",
        peak(),
        mebibytes(caches)
    )?;

    let begun = Instant::now();
    model.forget_features();
    let mut different = 0;
    for (number, said) in beside.iter().enumerate() {
        let alone = describe(&model, &image(number))?;
        if alone.text != said.text {
            different += 1;
            let (found, expected) = (&said.text, &alone.text);
            writeln!(stdout, "conversation {number}: {found:?}, alone {expected:?}")?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    writeln!(
        stdout,
        "one after another: {seconds:.1} s, {different} answers differ"
    )?;
    if different > 0 {
        return Err(format!("{different} of {count} answers differ").into());
    }
    Ok(())
}

/// A conversation from its beginning to its end.
fn describe(model: &Model, path: &OsString) -> Result<Said, EngineError> {
    let picture = image::open(path.as_ref(), &image::Limits::default())?;
    let mut conversation = model.conversation();
    let request = Request::default().with_max_tokens(64);
    let text = conversation
        .describe(&picture, "Describe the image.", &request)?
        .text()?;
    let cache_bytes = conversation.cache_bytes();
    Ok(Said { text, cache_bytes })
}

fn peak() -> String {
    let bytes = stats::peak_memory().and_then(|bytes| usize::try_from(bytes).ok());
    bytes.map_or_else(|| "unknown".to_owned(), mebibytes)
}

fn mebibytes(bytes: usize) -> String {
    // Tenths are exact enough, and need no floats.
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
