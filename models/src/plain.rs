//! How are words of others shown on a terminal? Without what drives it: escape sequences and other control
//! characters, and the marks by which text runs backwards.
//!
//! Words of others are file names, names of tensors, nodes and operators, what is read from configs, and what
//! a model answers. JSON keeps them exactly: [`json`] writes such characters as `\uXXXX`, the same value.

use std::borrow::Cow;
use std::ffi::OsStr;

/// What stands in the place of a character that is not shown: the replacement character.
const REPLACED: char = '\u{fffd}';

/// Whether a terminal would do something else than show it: control characters of both sets, the twelve of
/// Unicode's property `Bidi_Control`, and the two that separate lines and paragraphs.
fn drives(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// Words in one line: a name, or a message about one.
pub fn line(text: &str) -> Cow<'_, str> {
    without(text, drives)
}

/// Text that may have several lines: line breaks and tabs are kept.
pub fn text(text: &str) -> Cow<'_, str> {
    without(text, |character| {
        drives(character) && !matches!(character, '\n' | '\t')
    })
}

/// JSON in which no string holds what drives a terminal; what it means is the same. `text` is JSON.
pub fn json(text: &str) -> Cow<'_, str> {
    // Outside of strings JSON is ASCII, and in them the controls below the blank are escaped anyway.
    let escaped = |character| drives(character) && !matches!(character, '\n' | '\t' | '\r');
    if !text.contains(escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if escaped(character) {
            safe.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// The bytes of a file's name in lower-case hex, where text cannot hold it: a name that is not UTF-8 (on Windows, not
/// UTF-16), which is shown with U+FFFD in it. `None` for every other name.
pub fn hex_of_odd(name: &OsStr) -> Option<String> {
    match name.to_str() {
        Some(_) => None,
        None => Some(hex(name.as_encoded_bytes())),
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn without(text: &str, refused: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(&refused) {
        let shown = |character| if refused(character) { REPLACED } else { character };
        Cow::Owned(text.chars().map(shown).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind: controls of both sets, a backspace, a line break, a tab, bidi controls, separators.
    const HOSTILE: &str =
        "a\u{1b}[31m\u{9b}2J\u{7f}\u{8}\r\n\tb\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\u{2029}c";

    #[test]
    fn nothing_drives_a_terminal() {
        let r = "\u{fffd}";
        assert_eq!(
            line(HOSTILE),
            format!("a{r}[31m{r}2J{r}{r}{r}{r}{r}b{r}{r}{r}{r}{r}{r}c")
        );
        assert_eq!(
            text(HOSTILE),
            format!("a{r}[31m{r}2J{r}{r}{r}\n\tb{r}{r}{r}{r}{r}{r}c")
        );
        for kept in ["", "plain", "naïve 日本語 👩\u{200d}🚀 עברית"] {
            assert!(matches!(line(kept), Cow::Borrowed(same) if same == kept));
            assert_eq!(text(kept), kept);
        }
    }

    #[cfg(unix)]
    #[test]
    fn odd_names_are_kept_byte_by_byte() {
        use std::os::unix::ffi::OsStrExt as _;
        assert_eq!(hex_of_odd(OsStr::new("naïve.png")), None);
        assert_eq!(hex_of_odd(OsStr::from_bytes(b"a\xff")).as_deref(), Some("61ff"));
    }

    #[test]
    fn json_means_the_same() {
        let written = serde_json::to_string(&[HOSTILE]).unwrap();
        let safe = json(&written);
        assert!(!safe.chars().any(drives), "{safe:?}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [HOSTILE]);
        let pretty = serde_json::to_string_pretty(&["plain"]).unwrap();
        assert!(matches!(json(&pretty), Cow::Borrowed(_)));
    }
}
