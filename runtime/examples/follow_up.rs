//! Asks several questions about one image: it is encoded once, and each follow-up only computes what is new.

use runtime::{Engine, Message, Options, Request, Role, image};
use std::io::Write;

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p runtime --example follow_up -- fastvlm-bundle models/demo/scenes/scene_1.png \
///    "Describe the image." "What is the background color?"`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, file, questions @ ..] = arguments.as_slice() else {
        return Err("usage: follow_up BUNDLE IMAGE QUESTION...".into());
    };
    let mut engine = Engine::open(bundle.as_ref(), &Options::default())?;
    let picture = image::open(file.as_ref(), &image::Limits::default())?;
    let mut images = vec![engine.add_image(&picture)?];
    let mut messages = Vec::new();
    let mut stdout = std::io::stdout();
    for question in questions {
        messages.push(Message::user(std::mem::take(&mut images), question));
        let mut answer = engine.chat(&messages, &Request::default())?;
        let mut text = String::new();
        for piece in answer.by_ref() {
            text.push_str(&piece?.text);
        }
        let stats = answer.stats();
        writeln!(stdout, "{question}\n  {text}")?;
        writeln!(
            stdout,
            "  {} of {} positions reused",
            stats.reused_positions, stats.prompt_positions
        )?;
        messages.push(Message::new(Role::Assistant, text));
    }
    Ok(())
}
