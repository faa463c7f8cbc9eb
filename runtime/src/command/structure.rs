//! Which answers are allowed? What `--choices`, `--json-schema` and `--regex` mean.

use crate::command::cli::Cli;
use crate::{Constraint, MAX_LOGPROBS};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Longest file with a schema, in bytes.
const MAX_SCHEMA: u64 = 4 << 20;

/// The choices of all `--choices`: parts between commas, without white space around them; `\\,` is a comma.
pub(crate) fn choices(given: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for list in given {
        let mut choice = String::new();
        let mut letters = list.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' if letters.peek() == Some(&',') => {
                    letters.next();
                    choice.push(',');
                }
                ',' => all.push(std::mem::take(&mut choice)),
                other => choice.push(other),
            }
        }
        all.push(choice);
    }
    all.iter().map(|choice| choice.trim().to_owned()).collect()
}

/// What the answer keeps to; problems with the flags that say so go to `problems`.
pub(crate) fn constraint(cli: &Cli, problems: &mut Vec<String>) -> Option<Constraint> {
    if let Some(path) = &cli.json_schema {
        return match schema(path) {
            Ok(schema) => Some(Constraint::JsonSchema(schema)),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
    }
    let pattern = cli.regex.clone()?;
    if pattern.is_empty() {
        problems.push("--regex is empty, expected a regular expression".to_owned());
    }
    Some(Constraint::Regex(pattern))
}

fn schema(path: &Path) -> Result<serde_json::Value, String> {
    let said = |problem: String| format!("--json-schema `{}`: {problem}", path.display());
    let unreadable = |error: std::io::Error| said(format!("cannot read it: {error}"));
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_SCHEMA + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_SCHEMA) {
        return Err(said(format!("it is longer than {MAX_SCHEMA} bytes")));
    }
    // Editors of some systems begin a file with a byte order mark.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    serde_json::from_slice(text).map_err(|error| said(format!("it is no JSON: {error}")))
}

/// Flags that are given and say nothing where the answer is one of several choices, or where there are not so many
/// alternatives.
pub(crate) fn check(cli: &Cli, problems: &mut Vec<String>) {
    if let Some(found) = cli.logprobs.filter(|found| *found > MAX_LOGPROBS) {
        problems.push(format!("--logprobs is {found}, expected 0 to {MAX_LOGPROBS}"));
    }
    if cli.choices.is_empty() {
        return;
    }
    let unused = [
        ("temperature", cli.temperature != 0.0),
        ("repetition-penalty", cli.repetition_penalty != 1.0),
        ("presence-penalty", cli.presence_penalty != 0.0),
        ("frequency-penalty", cli.frequency_penalty != 0.0),
        ("stop", !cli.stop.is_empty()),
        ("logprobs", cli.logprobs.is_some()),
    ];
    for (flag, _) in unused.iter().filter(|(_, given)| *given) {
        problems.push(format!("--{flag} has no effect with --choices"));
    }
    let choices = choices(&cli.choices);
    if choices.iter().any(String::is_empty) {
        problems.push("--choices has an empty choice, expected texts between commas".to_owned());
    }
    let mut seen = HashSet::new();
    if let Some(twice) = choices.iter().find(|choice| !seen.insert(choice.as_str())) {
        problems.push(format!("--choices has `{twice}` twice"));
    }
    if let [one] = choices.as_slice() {
        problems.push(format!(
            "--choices has only `{one}`, expected at least two texts, for example Yes,No"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_between_commas() {
        let given = |lists: &[&str]| {
            let lists: Vec<String> = lists.iter().map(|&list| list.to_owned()).collect();
            choices(&lists)
        };
        assert_eq!(given(&["yes, no ,a b"]), ["yes", "no", "a b"]);
        assert_eq!(given(&["1\\,5,2", "C:\\x"]), ["1,5", "2", "C:\\x"]);
        assert_eq!(given(&["a,,b,"]), ["a", "", "b", ""]);
        assert_eq!(given(&["\\"]), ["\\"]);
    }
}
