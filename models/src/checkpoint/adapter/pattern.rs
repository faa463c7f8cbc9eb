//! `rank_pattern` and `alpha_pattern`: which modules have another rank or alpha? Keys are regular expressions
//! of Python, matched with the end of a module's name (peft `get_pattern_key`).

use fancy_regex::{Regex, RegexBuilder};
use std::collections::BTreeSet;

/// Steps that one match may take back: beyond, a pattern is refused instead of waited for.
const MOST_STEPS: usize = 10_000;
/// Bytes that one compiled pattern may have.
const MOST_BYTES: usize = 1 << 20;
/// Most patterns of a field: several for each module of the largest model.
pub(super) const MOST_PATTERNS: usize = 1024;

/// Values by pattern, in the order of the file: the first that matches counts.
#[derive(Debug)]
pub(super) struct Patterns<T>(Vec<Pattern<T>>);

#[derive(Debug)]
struct Pattern<T> {
    key: String,
    regex: Regex,
    value: T,
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns(Vec::new())
    }
}

/// An expression of which `key` is a part, with limits on what it takes.
///
/// # Errors
/// What is wrong with it.
pub(super) fn expression(key: &str, whole: &str) -> Result<Regex, String> {
    // Operations on sets of characters, which Python takes word for word, and warns of.
    if let Some(set) = ["&&", "~~", "--", "[["].into_iter().find(|set| key.contains(set)) {
        return Err(format!(
            "`{key}` has `{set}`, which is read otherwise here than in Python"
        ));
    }
    RegexBuilder::new(&with_our_ends(whole))
        .backtrack_limit(MOST_STEPS)
        .delegate_size_limit(MOST_BYTES)
        .build()
        .map_err(|error| format!("`{key}` is not a regular expression that is understood here: {error}"))
}

/// An expression with the end of the text as this library writes it: `\z` for Python's `\Z`.
fn with_our_ends(expression: &str) -> String {
    let mut ours = String::with_capacity(expression.len());
    let mut escaped = false;
    for letter in expression.chars() {
        ours.push(if escaped && letter == 'Z' { 'z' } else { letter });
        escaped = letter == '\\' && !escaped;
    }
    ours
}

impl<T: Copy> Patterns<T> {
    /// Adds a pattern behind the others.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn add(&mut self, key: &str, value: T) -> Result<(), String> {
        if self.0.len() == MOST_PATTERNS {
            return Err(format!("more than {MOST_PATTERNS} patterns"));
        }
        // peft: `re.match(rf"(.*\.)?({key})$", name)`
        let regex = expression(key, &format!(r"^(?:(.*\.)?({key})$)"))?;
        self.0.push(Pattern {
            key: key.to_owned(),
            regex,
            value,
        });
        Ok(())
    }

    /// The value of the first pattern that matches a module's name.
    ///
    /// # Errors
    /// A pattern that takes too long.
    pub(super) fn of(&self, module: &str) -> Result<Option<T>, String> {
        let first = self.first(module)?.and_then(|first| self.0.get(first));
        Ok(first.map(|pattern| pattern.value))
    }

    /// The place of that pattern.
    fn first(&self, module: &str) -> Result<Option<usize>, String> {
        for (place, pattern) in self.0.iter().enumerate() {
            let matches = pattern
                .regex
                .is_match(module)
                .map_err(|error| format!("`{}` cannot be matched with `{module}`: {error}", pattern.key))?;
            if matches {
                return Ok(Some(place));
            }
        }
        // As in peft, a name that does not match itself as an expression still is one.
        Ok(self.0.iter().position(|pattern| pattern.key == module))
    }

    /// Keys that are the first to match none of the modules, in the order of the file.
    pub(super) fn unused(&self, modules: &[&str]) -> Vec<&str> {
        let used: BTreeSet<usize> = modules
            .iter()
            .filter_map(|module| self.first(module).ok().flatten())
            .collect();
        let patterns = self.0.iter().enumerate();
        patterns
            .filter(|(place, _)| !used.contains(place))
            .map(|(_, pattern)| pattern.key.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were computed with Python's `re` as peft calls it.
    #[test]
    fn keys_are_matched_as_peft_matches_them() {
        let module = "model.language_model.layers.1.self_attn.q_proj";
        let cases = [
            ("q_proj", true),
            ("_proj", false),
            ("self_attn.q_proj", true),
            ("self_attn", false),
            (r"layers\.1\.self_attn\.q_proj", true),
            (r"layers\.[02]\..*", false),
            (r"layers\.\d+\.self_attn\.(q|v)_proj", true),
            ("^model.language_model.layers.1.self_attn.q_proj", true),
            ("^language_model.layers.1.self_attn.q_proj", false),
            ("k_proj|q_proj", true),
            (r"(?!k_).*_proj", true),
            (r"(?<=1\.)self_attn.q_proj", true),
            (r"q_proj\Z", true),
            (r"q_proj\\Z", false),
            (r"self_attn\Z", false),
            (".*", true),
            ("", false),
            ("model.language_model.layers.1.self_attn.q_proj", true),
        ];
        for (key, expected) in cases {
            let mut patterns = Patterns::default();
            patterns.add(key, 7).unwrap();
            assert_eq!(patterns.of(module), Ok(expected.then_some(7)), "{key}");
        }
    }

    #[test]
    fn the_first_counts_and_no_pattern_hangs() {
        let mut patterns = Patterns::default();
        patterns.add("v_proj", 1).unwrap();
        patterns.add(".*proj", 2).unwrap();
        patterns.add("q_proj", 3).unwrap();
        assert_eq!(patterns.of("a.q_proj"), Ok(Some(2)));
        assert_eq!(patterns.unused(&["a.q_proj", "a.fc1"]), ["v_proj", "q_proj"]);
        assert_eq!(patterns.of("a.fc1"), Ok(None));
        assert!(Patterns::default().add("(", 1).unwrap_err().contains("`(`"));
        assert!(Patterns::default().add("(?:a{1000}){1000}", 1).is_err());
        let mut slow = Patterns::default();
        slow.add(r"(a|aa)*(?=b)b", 1).unwrap();
        assert!(
            slow.of(&"a".repeat(64))
                .unwrap_err()
                .contains("cannot be matched")
        );
    }
}
