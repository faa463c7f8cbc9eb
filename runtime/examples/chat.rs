//! A chat about an image, a line a question: it is encoded once, and each follow-up only computes what is new.

use runtime::{Engine, Message, Options, Request, Role, image};
use std::io::{BufRead, Write};

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p fvlm-runtime --example chat -- fastvlm-bundle models/demo/scenes/scene_1.png`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(bundle), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: chat BUNDLE IMAGE < QUESTIONS".into());
    };
    let mut engine = Engine::open(bundle.as_ref(), &Options::default())?;
    let picture = image::open(file.as_ref(), &image::Limits::default())?;
    // The first question shows the image; later ones find it in the conversation.
    let mut images = vec![engine.add_image(&picture)?];
    let mut messages = Vec::new();
    let mut stdout = std::io::stdout();
    for question in std::io::stdin().lock().lines() {
        messages.push(Message::user(std::mem::take(&mut images), question?));
        let mut answer = engine.chat(&messages, &Request::default())?;
        let mut text = String::new();
        for piece in answer.by_ref() {
            let piece = piece?;
            stdout.write_all(piece.text.as_bytes())?;
            stdout.flush()?;
            text.push_str(&piece.text);
        }
        let stats = answer.stats();
        let (reused, prompt) = (stats.reused_positions, stats.prompt_positions);
        writeln!(stdout, "  ({reused} of {prompt} positions reused)")?;
        messages.push(Message::new(Role::Assistant, text));
    }
    Ok(())
}
