//! Describes every image below a folder: one JSON object a line, appended to a file as they come.
//!
//! It goes on where it was: an image that has a line is not looked at again, and half a line of a killed run is removed. `--shard 2/8`
//! takes the second of eight parts, so that any job runner can spread a million images over machines; a part depends on the
//! names alone, so that new images do not move old ones. Each part needs a file of its own. Links to folders are not followed.
//!
//! Exit codes: 0 all images have an answer, 2 some have an error in its place (on their line, or on stderr if their name is no
//! Unicode), 1 it could not go on.

use runtime::image::{self, ImageError, Limits, Picture};
use runtime::{Engine, EngineError, Options, Request};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;

type Error = Box<dyn std::error::Error>;

/// What is looked at.
const ENDINGS: [&str; 11] = [
    "png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif", "avif",
];

/// Steps to run it:
/// 1. `cargo run --release -p exporter --bin fvlm-export -- --model demo --output fastvlm-bundle`
/// 2. `cargo run --release -p runtime --example folder -- fastvlm-bundle models/demo/scenes answers.jsonl --shard 1/2`
fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            tell(&format!("{failed} images have no answer"));
            ExitCode::from(2)
        }
        Err(error) => {
            tell(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(line: &str) {
    // Nobody left to tell it to is no reason to stop.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// How many images got an error instead of an answer.
fn run() -> Result<usize, Error> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let (bundle, folder, output, shard) = match *arguments.as_slice() {
        [bundle, folder, output] => (bundle, folder, output, Shard { number: 1, of: 1 }),
        [bundle, folder, output, flag, shard] if flag == "--shard" => {
            (bundle, folder, output, Shard::parse(&shard.to_string_lossy())?)
        }
        _ => return Err("usage: folder BUNDLE FOLDER OUTPUT.jsonl [--shard NUMBER/OF]".into()),
    };
    let (images, mut failed) = images_below(Path::new(folder))?;
    let (mut lines, done) = resume(Path::new(output))?;
    let todo = images
        .into_iter()
        .filter(|name| shard.has(name) && !done.contains(name));
    let todo: Vec<String> = todo.collect();
    if todo.is_empty() {
        return Ok(failed);
    }
    let mut engine = Engine::open(bundle.as_ref(), &Options::default())?;

    // The next image is decoded while this one is answered.
    let (sender, receiver) = sync_channel::<(String, Result<Picture, ImageError>)>(1);
    let root = PathBuf::from(folder);
    let decoding = std::thread::spawn(move || {
        for name in todo {
            let picture = image::open(&root.join(&name), &Limits::default());
            if sender.send((name, picture)).is_err() {
                return;
            }
        }
    });
    for (name, picture) in receiver {
        let mut line = match picture
            .map_err(EngineError::from)
            .and_then(|picture| answer(&mut engine, &picture))
        {
            Ok(line) => line,
            Err(error) if error.is_about_model() => return Err(error.into()),
            // It is not tried again, and stops nobody.
            Err(error) => {
                failed += 1;
                json!({"error": error.to_string()})
            }
        };
        line["image"] = Value::from(name);
        // One write a line: a reader sees whole lines, and a killed run tears at most the last.
        let written = lines.write_all(format!("{line}\n").as_bytes());
        written.map_err(|error| about(output, error))?;
    }
    decoding
        .join()
        .map_err(|_| "the decoding thread panicked; this is a bug")?;
    Ok(failed)
}

fn about(path: impl AsRef<Path>, error: impl std::fmt::Display) -> Error {
    format!("`{}`: {error}", path.as_ref().display()).into()
}

/// One image's line, its name left out.
fn answer(engine: &mut Engine, picture: &Picture) -> Result<Value, EngineError> {
    let mut answer = engine.describe(picture, "Describe the image.", &Request::default())?;
    // The first answer says who computes, if it is not who was asked for.
    for notice in answer.notices() {
        tell(notice);
    }
    let text = answer.text()?;
    Ok(json!({"text": text, "tokens": answer.tokens(), "finish": answer.finish()}))
}

/// The file that lines are appended to, and the images that have one. A file that is not of this program stays as it is.
fn resume(path: &Path) -> Result<(File, HashSet<String>), Error> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false);
    let mut file = opened.open(path).map_err(|error| about(path, error))?;
    let foreign = || about(path, "it is not an output of this program, and was left as it is");
    let mut done = HashSet::new();
    let mut whole = 0;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if !line.ends_with(b"\n") {
            // Torn.
            let begins = b"{\"";
            let known = line.len().min(begins.len());
            if line[..known] != begins[..known] {
                return Err(foreign());
            }
            break;
        }
        let found: Value = serde_json::from_slice(&line).map_err(|_| foreign())?;
        let name = found["image"].as_str().ok_or_else(foreign)?;
        done.insert(name.to_owned());
        whole += u64::try_from(line.len())?;
        line.clear();
    }
    file.set_len(whole).map_err(|error| about(path, error))?;
    file.seek(SeekFrom::Start(whole))?;
    Ok((file, done))
}

/// Names of images below a folder, relative to it, with forward slashes, sorted; and how many have no name to write down.
fn images_below(folder: &Path) -> Result<(Vec<String>, usize), Error> {
    let (mut names, mut nameless) = (Vec::new(), 0);
    let mut folders = vec![String::new()];
    while let Some(relative) = folders.pop() {
        let folder = folder.join(&relative);
        let entries = std::fs::read_dir(&folder).map_err(|error| about(&folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| about(&folder, error))?;
            let is_folder = entry
                .file_type()
                .map_err(|error| about(entry.path(), error))?
                .is_dir();
            if !is_folder && !is_image(&entry.path()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                tell(&format!(
                    "`{}` is left out: its name is no Unicode",
                    entry.path().display()
                ));
                nameless += 1;
                continue;
            };
            let name = if relative.is_empty() {
                name
            } else {
                format!("{relative}/{name}")
            };
            if is_folder { &mut folders } else { &mut names }.push(name);
        }
    }
    names.sort_unstable();
    Ok((names, nameless))
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
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

    /// Whether an image is in this part: by its name, not by its place among the others.
    fn has(&self, name: &str) -> bool {
        // FNV-1a, then a mix of its bits (MurmurHash3's last step): the low ones alone know little of a name.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash ^ (hash >> 33)) % self.of == self.number - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_about_equal_and_none_overlap() {
        let names: [fn(u32) -> String; 3] = [
            |i| format!("{i:05}/{i:05}.jpg"),
            |i| format!("{i:05}_{i:05}.jpg"),
            |i| format!("frame-{i}.png"),
        ];
        for name in names {
            for of in [2, 3, 4, 8] {
                let mut counts = vec![0_u64; 8];
                for i in 0..8000 {
                    let parts = (1..=of).filter(|number| Shard { number: *number, of }.has(&name(i)));
                    let parts: Vec<u64> = parts.collect();
                    assert_eq!(parts.len(), 1);
                    counts[usize::try_from(parts[0]).unwrap() - 1] += 1;
                }
                let expected = 8000 / of;
                for count in &counts[..usize::try_from(of).unwrap()] {
                    assert!(
                        count.abs_diff(expected) < expected / 5,
                        "{counts:?} for {}",
                        name(1)
                    );
                }
            }
        }
    }

    #[test]
    fn what_others_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for foreign in [
            "notes",
            "notes\n",
            "{\"text\": 1}\n",
            "\0\0\0",
            "{\"image\": \"a\"}\nnotes",
        ] {
            std::fs::write(&path, foreign).unwrap();
            let error = resume(&path).unwrap_err().to_string();
            assert!(error.contains("not an output of this program"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        for torn in ["", "{", "{\"image\": \"b"] {
            std::fs::write(&path, format!("{{\"image\": \"a\"}}\n{torn}")).unwrap();
            assert_eq!(resume(&path).unwrap().1, HashSet::from(["a".to_owned()]));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"image\": \"a\"}\n");
        }
    }
}
