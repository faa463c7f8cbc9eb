//! The file of `--output`: one JSON object a line. It is appended to, a line with one write; a later run goes on with it.

use crate::command::plan::Name;
use crate::{Choice, Finish};
use models::plain;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
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
    /// The question.
    prompt: &'a str,
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
    /// Lines had none before version 0.1.0.
    prompt: Option<String>,
    text: Option<String>,
    finish: Option<serde::de::IgnoredAny>,
    choices: Option<Vec<KnownChoice>>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct KnownChoice {
    text: String,
}

impl Known {
    /// Whether it may be of this program: it has an answer or an error, and nothing but one of them.
    fn is_ours(&self) -> bool {
        let answer = self.text.is_some() && (self.finish.is_some() || self.choices.is_some());
        answer != self.error.is_some()
    }

    /// The choices that it is one of; none where any text may be an answer.
    fn choices(&self) -> BTreeSet<&str> {
        let choices = self.choices.iter().flatten();
        choices.map(|choice| choice.text.as_str()).collect()
    }
}

/// The file, open and locked: nobody else writes it.
#[derive(Debug)]
pub(crate) struct Captions {
    path: PathBuf,
    file: File,
    /// What all images are asked.
    prompt: String,
    /// Images that have a line, by [`key`].
    done: HashSet<String>,
    /// Of all lines, those that have an error in the place of an answer.
    failed: usize,
}

/// What tells an image from others: no path has a NUL.
fn key(image: &str, hex: Option<&str>) -> String {
    hex.map_or_else(|| image.to_owned(), |hex| format!("\0{hex}"))
}

/// How images are answered, for messages.
fn by(choices: &BTreeSet<&str>) -> String {
    if choices.is_empty() {
        return "without --choices".to_owned();
    }
    let mut shown: Vec<&str> = choices.iter().copied().take(3).collect();
    if choices.len() > shown.len() {
        shown.push("..");
    }
    format!("by --choices {}", plain::line(&shown.join(",")))
}

/// Opens a file, or makes it, for one run alone; others may read it. What is no file is refused, without waiting.
#[cfg(not(windows))]
fn alone(path: &Path) -> Result<File, TryLockError> {
    drop(models::regular::open_or_create(path).map_err(TryLockError::Error)?);
    let opened = File::options().read(true).write(true).open(path);
    let file = opened.map_err(TryLockError::Error)?;
    match file.try_lock() {
        // A file system that has no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
    }
}

/// As elsewhere, by what others may do with the file: nobody can read what is locked.
#[cfg(windows)]
fn alone(path: &Path) -> Result<File, TryLockError> {
    use std::os::windows::fs::OpenOptionsExt as _;
    /// `ERROR_SHARING_VIOLATION`
    const TAKEN: i32 = 32;
    /// `FILE_SHARE_READ`
    const MAY_READ: u32 = 1;
    let failed = |error: std::io::Error| match error.raw_os_error() {
        Some(TAKEN) => TryLockError::WouldBlock,
        _ => TryLockError::Error(error),
    };
    drop(models::regular::open_or_create(path).map_err(failed)?);
    let mut options = File::options();
    options.read(true).write(true).share_mode(MAY_READ);
    options.open(path).map_err(failed)
}

impl Captions {
    /// Opens the file of what images are asked by `prompt`, to be answered by one of the `choices` if there are any, or makes it.
    /// Half a line at its end, of a run that was killed, is taken away.
    ///
    /// # Errors
    /// A file that is not of this program or of another question, which stays as it is; one that another run writes; what is
    /// no file.
    pub(crate) fn open(path: &Path, prompt: &str, choices: &[String]) -> Result<Captions, String> {
        let about = |problem: &dyn std::fmt::Display| format!("--output `{}`: {problem}", path.display());
        let file = alone(path).map_err(|error| match error {
            TryLockError::WouldBlock => about(&"another run writes it; each --shard needs a file of its own"),
            TryLockError::Error(error) => about(&error),
        })?;
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
            prompt: prompt.to_owned(),
            done: HashSet::new(),
            failed: 0,
        };
        let expected: BTreeSet<&str> = choices.iter().map(String::as_str).collect();
        let mut whole = 0;
        let mut unended = false;
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
            unended = !line.ends_with(b"\n");
            if unended && serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_err() {
                // Torn, or nothing of ours.
                unended = false;
                let begins = b"{\"image\":";
                let known = line.len().min(begins.len());
                if line.get(..known) != begins.get(..known) || u64::try_from(line.len()) == Ok(LONGEST_LINE) {
                    return Err(foreign(number));
                }
                break;
            }
            let found: Known = serde_json::from_slice(&line).map_err(|_| foreign(number))?;
            if !found.is_ours() {
                return Err(foreign(number));
            }
            let other = found.choices();
            if found.error.is_none() && other != expected {
                return Err(about(&format!(
                    "line {number} is answered {}, and this run answers {}; the file was left as it is: other answers need another \
                     file",
                    by(&other),
                    by(&expected)
                )));
            }
            if let Some(other) = found.prompt.filter(|other| other != prompt) {
                return Err(about(&format!(
                    "line {number} answers \"{}\", and --prompt is \"{}\"; the file was left as it is: another prompt needs \
                     another file",
                    plain::line(&other),
                    plain::line(prompt)
                )));
            }
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
        if unended {
            // All of a line but its end, which an editor took away.
            captions.file.write_all(b"\n").map_err(|error| about(&error))?;
        }
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
            prompt: &self.prompt,
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

    const PROMPT: &str = "What is it?";

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
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
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
            let captions = Captions::open(&path, PROMPT, &[]).unwrap();
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
            "{\"image\":\"a\",\"caption\":\"mine\"}",
            "{\"image\":\"a\",\"label\":\"cat\"}\n",
            "{\"image\":\"a\",\"text\":\"a cat\"}\n",
            "\n",
            "[]\n",
        ] {
            fs::write(&path, text).unwrap();
            let error = Captions::open(&path, PROMPT, &[]).unwrap_err();
            assert!(
                error.contains("none of this program's") && error.contains("notes"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let error = Captions::open(folder.path(), PROMPT, &[]).unwrap_err();
        assert!(error.contains("--output"), "{error}");
        assert!(Captions::open(&folder.path().join("no/such"), PROMPT, &[]).is_err());
    }

    #[test]
    fn another_prompt_needs_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let a = Name("a.png".into());
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
        captions.append(&a, answer("A fox.")).unwrap();
        drop(captions);
        let mut whole = fs::read(&path).unwrap();
        whole.extend(b"{\"image\":\"b");
        fs::write(&path, &whole).unwrap();
        let error = Captions::open(&path, "What color?", &[]).unwrap_err();
        for part in [
            "captions.jsonl",
            "line 1",
            "\"What is it?\"",
            "\"What color?\"",
            "another file",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(fs::read(&path).unwrap(), whole);
        // Lines of before there were prompts in them.
        let before = "{\"image\":\"a.png\",\"text\":\"A fox.\",\"finish\":\"stop\"}\n";
        fs::write(&path, before).unwrap();
        assert!(Captions::open(&path, "What color?", &[]).unwrap().has(&a));
    }

    #[test]
    fn other_choices_need_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let choices = ["yes", "no"].map(str::to_owned);
        let answers = choices.clone().map(|text| Choice {
            text,
            logprob: -0.5,
            probability: 0.5,
        });
        let a = Name("a.png".into());
        let mut captions = Captions::open(&path, PROMPT, &choices).unwrap();
        let outcome = Outcome::Choice {
            text: "yes",
            choices: &answers,
        };
        captions.append(&a, outcome).unwrap();
        drop(captions);
        let swapped = ["no", "yes"].map(str::to_owned);
        assert!(Captions::open(&path, PROMPT, &swapped).unwrap().has(&a));
        for other in [&[][..], &["no", "maybe"].map(str::to_owned)] {
            let error = Captions::open(&path, PROMPT, other).unwrap_err();
            assert!(
                error.contains("line 1 is answered by --choices no,yes, and this run answers"),
                "{error}"
            );
        }
        fs::write(&path, "").unwrap();
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
        captions.append(&a, answer("A fox.")).unwrap();
        drop(captions);
        let error = Captions::open(&path, PROMPT, &choices).unwrap_err();
        assert!(error.contains("without --choices"), "{error}");
    }

    #[test]
    fn a_line_that_lacks_its_end_alone_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let [a, b] = ["a.png", "b.png"].map(|name| Name(name.into()));
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
        captions.append(&a, answer("A fox.")).unwrap();
        drop(captions);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
        assert!(captions.has(&a));
        assert_eq!(fs::read(&path).unwrap(), whole);
        captions.append(&b, answer("A hen.")).unwrap();
        drop(captions);
        assert!(Captions::open(&path, PROMPT, &[]).unwrap().has(&b));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let first = Captions::open(&path, PROMPT, &[]).unwrap();
        let error = Captions::open(&path, PROMPT, &[]).unwrap_err();
        assert!(error.contains("another run writes it"), "{error}");
        drop(first);
        Captions::open(&path, PROMPT, &[]).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_unicode_are_told_apart() {
        use std::os::unix::ffi::OsStringExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let [a, b] = [0xff, 0xfe].map(|byte| Name(std::ffi::OsString::from_vec(vec![byte])));
        let mut captions = Captions::open(&path, PROMPT, &[]).unwrap();
        captions.append(&a, answer("x")).unwrap();
        drop(captions);
        let captions = Captions::open(&path, PROMPT, &[]).unwrap();
        assert!(captions.has(&a) && !captions.has(&b) && !captions.has(&Name("\u{fffd}".into())));
    }
}
