//! Under which terms does a checkpoint come? Its files that say so go into the bundle as they are.

#![deny(clippy::as_conversions)]

use super::processing::{Asset, Origin};
use crate::error::CheckpointError;
use std::path::Path;

/// How names of such files begin, in capitals.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "NOTICE",
    "ACKNOWLEDGEMENTS",
    "ACKNOWLEDGMENTS",
];
/// Longest such file that is read.
const MAX_BYTES: u64 = 4 << 20;
/// Longest name of a license, in characters.
const MAX_NAME: usize = 80;

/// Whether a file is called as terms of use are.
pub fn is_license(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'\\'));
    plain && NAMES.iter().any(|begin| upper.starts_with(begin))
}

/// The terms of use that lie in a checkpoint's directory, sorted, and what they are called.
///
/// # Errors
/// A file that cannot be read or is too long.
pub(super) fn find(directory: &Path) -> Result<(Vec<Asset>, Option<String>), CheckpointError> {
    let entries = std::fs::read_dir(directory).map_err(|source| CheckpointError::Io {
        path: directory.to_owned(),
        source,
    })?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_license(name)).collect();
    names.sort();
    let mut files = Vec::new();
    for path in names {
        if directory.join(&path).is_file() {
            files.push(Asset {
                contents: read(&directory.join(&path))?,
                path,
                origin: Origin::Kept,
            });
        }
    }
    let card = directory.join("README.md");
    let declared = if card.is_file() {
        declared(&String::from_utf8_lossy(&read(&card)?))
    } else {
        None
    };
    let first = files
        .iter()
        .find(|file| !file.path.to_ascii_uppercase().starts_with("ACK"));
    let name = declared.or_else(|| heading(&String::from_utf8_lossy(&first?.contents)));
    Ok((files, name))
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        let problem = format!("is {length} bytes long, at most {MAX_BYTES} are read");
        return Err(CheckpointError::malformed(path, problem));
    }
    std::fs::read(path).map_err(io)
}

/// What the front matter of a model card declares: `license_name`, which the hub has for licenses outside its list, or
/// `license`, one or several.
fn declared(card: &str) -> Option<String> {
    let mut lines = card.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let of = |key: &str| {
        let place = front.iter().position(|line| line.starts_with(key))?;
        let plain = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
        let value = front[place].strip_prefix(key)?.split(" #").next()?.trim();
        let values: Vec<String> = if value.is_empty() {
            let items = front[place + 1..]
                .iter()
                .map_while(|line| line.trim_start().strip_prefix("- "));
            items.map(plain).collect()
        } else {
            value.trim_matches(['[', ']']).split(',').map(plain).collect()
        };
        let text = values.join(" or ");
        let known = !text.is_empty() && text != "other" && text != "unknown";
        known.then(|| text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect())
    };
    of("license_name:").or_else(|| of("license:"))
}

/// The first line that says something.
fn heading(text: &str) -> Option<String> {
    let words = |line: &str| -> String {
        let line = line.trim_matches(|c: char| !c.is_alphanumeric() && c != ')');
        line.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
    };
    text.lines().map(words).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        for name in [
            "LICENSE",
            "LICENSE_MODEL",
            "license.txt",
            "Copying",
            "NOTICE",
            "ACKNOWLEDGEMENTS",
        ] {
            assert!(is_license(name), "{name}");
        }
        for name in ["README.md", "a/LICENSE", "LICENSE\\x", "LICENSE x", "mylicense"] {
            assert!(!is_license(name), "{name}");
        }
    }

    #[test]
    fn what_a_card_declares() {
        let cases = [
            (
                "---\nlicense: apple-amlr\nlicense_name: apple-ascl\n---\n# x",
                Some("apple-ascl"),
            ),
            ("---\nlicense: apple-amlr\ntags:\n- x\n---\n", Some("apple-amlr")),
            ("---\nlicense: \"mit\" # ours\n---\n", Some("mit")),
            (
                "---\nlicense:\n- mit\n- apache-2.0\nlanguage: en\n---\n",
                Some("mit or apache-2.0"),
            ),
            (
                "---\nlicense: [mit, 'apache-2.0']\n---\n",
                Some("mit or apache-2.0"),
            ),
            ("---\nlicense: other\n---\n", None),
            ("---\ntags:\n- license: x\n---\nlicense: mit", None),
            ("license: mit", None),
            ("", None),
        ];
        for (card, expected) in cases {
            assert_eq!(declared(card).as_deref(), expected, "{card}");
        }
    }

    #[test]
    fn what_lies_in_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(find(directory.path()).unwrap(), (Vec::new(), None));
        let put = |name: &str, text: &[u8]| std::fs::write(directory.path().join(name), text).unwrap();
        put("ACKNOWLEDGEMENTS", b"Thanks\n");
        put("LICENSE_MODEL", b"\n  == Apple Model License ==\nyou may \xff\n");
        put("config.json", b"{}");
        let (files, name) = find(directory.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["ACKNOWLEDGEMENTS", "LICENSE_MODEL"]);
        assert_eq!(
            files[1].contents,
            b"\n  == Apple Model License ==\nyou may \xff\n"
        );
        assert_eq!(name.as_deref(), Some("Apple Model License"));
        put("README.md", b"---\nlicense: apple-amlr\n---\n");
        assert_eq!(find(directory.path()).unwrap().1.as_deref(), Some("apple-amlr"));
    }
}
