//! The file of `--output`: one JSON object a line. It is appended to, a line with one write; a later run goes on with it.

use crate::command::plan::Name;
use crate::{Choice, Finish};
use models::plain;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Most bytes of a line: more than any answer has.
const LONGEST_LINE: u64 = 64 << 20;

/// A line. The fields are stable.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    /// The image's path, with forward slashes.
    image: std::borrow::Cow<'a, str>,
    /// The bytes of its path in hex, where it is no Unicode.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_hex: Option<String>,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

/// What became of an image.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome<'a> {
    /// Its answer, and why that ended.
    Answer { text: &'a str, finish: Finish },
    /// The likeliest choice, and how likely each is.
    Choice { text: &'a str, choices: &'a [Choice] },
    /// What went wrong.
    Error { error: &'a str },
}

/// What is read of a line.
#[derive(Debug, Deserialize)]
struct Known {
    image: String,
    image_hex: Option<String>,
    error: Option<serde_json::Value>,
}

/// The file, open and locked: nobody else writes it.
#[derive(Debug)]
pub(crate) struct Captions {
    path: PathBuf,
    file: File,
    /// Images that have a line, by [`key`].
    done: HashSet<String>,
    /// Of all lines, those that have an error in the place of an answer.
    failed: usize,
}

/// What tells an image from others: no path has a NUL.
fn key(image: &str, hex: Option<&str>) -> String {
    hex.map_or_else(|| image.to_owned(), |hex| format!("\0{hex}"))
}

impl Captions {
    /// Opens the file, or makes it. Half a line at its end, of a run that was killed, is taken away.
    ///
    /// # Errors
    /// A file that is not of this program, which stays as it is; one that another run writes; what is no file.
    pub(crate) fn open(path: &Path) -> Result<Captions, String> {
        let about = |problem: &dyn std::fmt::Display| format!("--output `{}`: {problem}", path.display());
        // Makes it, and refuses what is no file, without waiting.
        drop(models::regular::open_or_create(path).map_err(|error| about(&error))?);
        let mut options = File::options();
        let opened = options.read(true).write(true).open(path);
        let file = opened.map_err(|error| about(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(about(
                    &"another run writes it; each --shard needs a file of its own",
                ));
            }
            // A file system that has no locks.
            Err(TryLockError::Error(_)) => {}
        }
        let foreign = |number: u64| {
            about(&format!(
                "line {number} is none of this program's; the file was left as it is"
            ))
        };
        // The file that was locked is kept: on some systems its lock ends with it.
        let mut reader = BufReader::new(file.try_clone().map_err(|error| about(&error))?);
        let mut captions = Captions {
            path: path.to_owned(),
            file,
            done: HashSet::new(),
            failed: 0,
        };
        let mut whole = 0;
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let mut limited = std::io::Read::take(&mut reader, LONGEST_LINE);
            if limited
                .read_until(b'\n', &mut line)
                .map_err(|error| about(&error))?
                == 0
            {
                break;
            }
            if !line.ends_with(b"\n") {
                // Torn, or nothing of ours.
                let begins = b"{\"image\":";
                let known = line.len().min(begins.len());
                if line.get(..known) != begins.get(..known) || u64::try_from(line.len()) == Ok(LONGEST_LINE) {
                    return Err(foreign(number));
                }
                break;
            }
            let found: Known = serde_json::from_slice(&line).map_err(|_| foreign(number))?;
            captions.failed += usize::from(found.error.is_some());
            captions
                .done
                .insert(key(&found.image, found.image_hex.as_deref()));
            whole += u64::try_from(line.len()).unwrap_or_default();
        }
        captions.file.set_len(whole).map_err(|error| about(&error))?;
        captions
            .file
            .seek(SeekFrom::Start(whole))
            .map_err(|error| about(&error))?;
        Ok(captions)
    }

    /// Whether an image has a line.
    pub(crate) fn has(&self, name: &Name) -> bool {
        let hex = plain::hex_of_odd(&name.0);
        self.done.contains(&key(&name.text(), hex.as_deref()))
    }

    /// Lines with an error in the place of an answer, of this run and those before.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// Appends a line, with one write: who reads along sees whole lines, and a killed run tears at most the last.
    ///
    /// # Errors
    /// A full disk and the like; the file is named. Half a line that stands there then is taken away by the next run.
    pub(crate) fn append(&mut self, name: &Name, outcome: Outcome<'_>) -> Result<(), String> {
        self.failed += usize::from(matches!(outcome, Outcome::Error { .. }));
        let line = Line {
            image: name.text(),
            image_hex: plain::hex_of_odd(&name.0),
            outcome,
        };
        let written = serde_json::to_string(&line)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                self.file
                    .write_all(format!("{}\n", plain::json(&text)).as_bytes())
            });
        written.map_err(|error| format!("--output `{}`: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn answer(text: &str) -> Outcome<'_> {
        Outcome::Answer {
            text,
            finish: Finish::Stop,
        }
    }

    #[test]
    fn a_later_run_goes_on_behind_the_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let [a, b] = ["a \"b\".png", "\u{e9}\u{202e}.png"].map(|name| Name(name.into()));
        let mut captions = Captions::open(&path).unwrap();
        captions.append(&a, answer("A fox.\n")).unwrap();
        captions.append(&b, Outcome::Error { error: "broken" }).unwrap();
        drop(captions);
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(!whole.windows(3).any(|bytes| bytes == "\u{202e}".as_bytes()));
        // Wherever a kill tore the next line.
        let torn = b"{\"image\":\"c.png\",\"text\":\"A \xc3";
        for length in 0..=torn.len() {
            fs::write(&path, [&whole, &torn[..length]].concat()).unwrap();
            let captions = Captions::open(&path).unwrap();
            assert!(captions.has(&a) && captions.has(&b) && !captions.has(&Name("c.png".into())));
            assert_eq!(captions.failed(), 1);
            assert_eq!(fs::read(&path).unwrap(), whole, "torn after {length} bytes");
        }
    }

    #[test]
    fn files_of_others_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for text in [
            "notes",
            "{\"image\":1}\n",
            "{}\n",
            "{\"image\":\"a\"}\nmine\n",
            "{\"imag_\": ",
            "\n",
            "[]\n",
        ] {
            fs::write(&path, text).unwrap();
            let error = Captions::open(&path).unwrap_err();
            assert!(
                error.contains("none of this program's") && error.contains("notes"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let error = Captions::open(folder.path()).unwrap_err();
        assert!(error.contains("--output"), "{error}");
        assert!(Captions::open(&folder.path().join("no/such")).is_err());
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let first = Captions::open(&path).unwrap();
        let error = Captions::open(&path).unwrap_err();
        assert!(error.contains("another run writes it"), "{error}");
        drop(first);
        Captions::open(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_unicode_are_told_apart() {
        use std::os::unix::ffi::OsStringExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let [a, b] = [0xff, 0xfe].map(|byte| Name(std::ffi::OsString::from_vec(vec![byte])));
        let mut captions = Captions::open(&path).unwrap();
        captions.append(&a, answer("x")).unwrap();
        drop(captions);
        let captions = Captions::open(&path).unwrap();
        assert!(captions.has(&a) && !captions.has(&b) && !captions.has(&Name("\u{fffd}".into())));
    }
}
