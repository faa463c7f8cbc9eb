//! Describes every image below a folder: one JSON object a line, appended to a file as they come.
//!
//! It goes on where it was: an image that has a line is not looked at again, and half a line of a killed run is removed. `--shard 2/8`
//! takes the second of eight parts, so that any job runner can spread a million images over machines; a part depends on the
//! names alone, so that new images do not move old ones. Each part needs a file of its own.

use runtime::image::{self, ImageError, Limits, Picture};
use runtime::{Engine, Options, Request};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

type Error = Box<dyn std::error::Error>;

/// What is looked at.
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p runtime --example folder -- fastvlm-bundle models/demo/scenes answers.jsonl --shard 1/2`
fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (bundle, folder, output, shard) = match arguments.as_slice() {
        [bundle, folder, output] => (bundle, folder, output, Shard { number: 1, of: 1 }),
        [bundle, folder, output, flag, shard] if flag == "--shard" => {
            (bundle, folder, output, Shard::parse(shard)?)
        }
        _ => return Err("usage: folder BUNDLE FOLDER OUTPUT.jsonl [--shard NUMBER/OF]".into()),
    };
    let (mut lines, done) = resume(Path::new(output))?;
    let images = images_below(Path::new(folder))?;
    let todo = images
        .into_iter()
        .filter(|name| shard.has(name) && !done.contains(name));
    let todo: Vec<String> = todo.collect();
    let mut engine = Engine::open(bundle.as_ref(), &Options::default())?;

    // The next image is decoded while this one is answered.
    let (sender, receiver) = sync_channel::<(String, Result<Picture, ImageError>)>(1);
    let root = PathBuf::from(folder);
    std::thread::spawn(move || {
        for name in todo {
            let picture = image::open(&root.join(&name), &Limits::default());
            if sender.send((name, picture)).is_err() {
                return;
            }
        }
    });
    for (name, picture) in receiver {
        let mut line = answer(&mut engine, picture)?;
        line["image"] = Value::from(name);
        // One write a line: a reader sees whole lines, and a killed run tears at most the last.
        lines.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

/// One image's line, its name left out. An image that cannot be used has one too: it is not tried again.
fn answer(engine: &mut Engine, picture: Result<Picture, ImageError>) -> Result<Value, Error> {
    let picture = match picture {
        Ok(picture) => picture,
        Err(error) => return Ok(json!({"error": error.to_string()})),
    };
    let mut answer = engine.describe(&picture, "Describe the image.", &Request::default())?;
    let text = answer.text()?;
    Ok(json!({"text": text, "tokens": answer.tokens(), "finish": answer.finish()}))
}

/// The file that lines are appended to, and the images that have one.
fn resume(path: &Path) -> Result<(File, HashSet<String>), Error> {
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let mut done = HashSet::new();
    let mut whole = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        let found: Value = serde_json::from_slice(&line)?;
        let name = found["image"]
            .as_str()
            .ok_or("a line of the output names no image")?;
        done.insert(name.to_owned());
        whole += u64::try_from(line.len())?;
        line.clear();
    }
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    Ok((file, done))
}

/// Names of images below a folder, relative to it, with forward slashes, sorted.
fn images_below(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.to_str() {
                let ending = path
                    .extension()
                    .and_then(|ending| ending.to_str())
                    .unwrap_or_default();
                if ENDINGS.contains(&ending.to_ascii_lowercase().as_str()) {
                    names.push(name.replace('\\', "/"));
                }
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// One of several parts of the work, counted from 1.
struct Shard {
    number: u64,
    of: u64,
}

impl Shard {
    fn parse(text: &str) -> Result<Shard, Error> {
        let numbers = text
            .split_once('/')
            .map(|(number, of)| (number.parse(), of.parse()));
        match numbers {
            Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Shard { number, of }),
            _ => Err(format!("--shard is `{text}`, expected NUMBER/OF with 1 <= NUMBER <= OF").into()),
        }
    }

    /// Whether an image is in this part: by its name (FNV-1a), not by its place among the others.
    fn has(&self, name: &str) -> bool {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // The low bits of FNV are its best, and `% of` takes them.
        hash % self.of == self.number - 1
    }
}
