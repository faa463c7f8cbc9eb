//! Describes an image.

use runtime::{Engine, Message, Options, Request, image};
use std::io::Write;

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p fvlm-runtime --example describe -- fastvlm-bundle models/demo/scenes/scene_1.png`
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(bundle), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: describe BUNDLE IMAGE".into());
    };
    let mut engine = Engine::open(bundle.as_ref(), &Options::default())?;
    let picture = image::open(file.as_ref(), &image::Limits::default())?;
    let id = engine.add_image(&picture)?;
    let mut stdout = std::io::stdout();
    for piece in engine.chat(&[Message::user([id], "Describe the image.")], &Request::default())? {
        stdout.write_all(piece?.text.as_bytes())?;
        stdout.flush()?;
    }
    stdout.write_all(b"\n")?;
    Ok(())
}
