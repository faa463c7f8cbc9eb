//! Under which terms does a checkpoint come? Its files that say so go into the bundle as they are.

#![deny(clippy::as_conversions)]

use super::assets::asset::{Asset, Origin};
use super::small;
use crate::bundle;
use crate::checkpoint::error::CheckpointError;
use std::ffi::OsString;
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

/// Whether a file is called as terms of use are, and can be part of a bundle under its name.
pub fn is_license(name: &str) -> bool {
    let plain = !name.contains(|c: char| c == '/' || c.is_control()) && bundle::inside(name).is_some();
    plain && looks_like_one(name)
}

fn looks_like_one(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    NAMES.iter().any(|begin| upper.starts_with(begin))
}

/// Terms of use.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Terms {
    /// The files, sorted.
    pub(super) files: Vec<Asset>,
    /// What they are called.
    pub(super) name: Option<String>,
    /// What is called as terms of use are and was left out, one sentence each.
    pub(super) left_out: Vec<String>,
}

/// The terms of use that lie in a checkpoint's directory.
///
/// # Errors
/// A file that cannot be read or is too long.
pub(super) fn find(directory: &Path) -> Result<Terms, CheckpointError> {
    let entries = std::fs::read_dir(directory).map_err(|source| CheckpointError::Io {
        path: directory.to_owned(),
        source,
    })?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<OsString> = names
        .filter(|name| looks_like_one(&name.to_string_lossy()))
        .collect();
    names.sort();
    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    for name in names {
        let place = directory.join(&name);
        let mut leave_out = |why: &str| left_out.push(format!("`{}` is left out: {why}", place.display()));
        match name.into_string() {
            Ok(_) if place.is_dir() => leave_out("it is a directory, terms of use are files"),
            Ok(path) if is_license(&path) => files.push(Asset {
                contents: small::bytes(&place, MAX_BYTES)?,
                path,
                origin: Origin::Kept,
            }),
            _odd => leave_out("no bundle can have a file of this name"),
        }
    }
    let card = directory.join("README.md");
    let declared = if card.is_file() {
        declared(&String::from_utf8_lossy(&small::bytes(&card, MAX_BYTES)?))
    } else {
        None
    };
    let first = files
        .iter()
        .find(|file| !file.path.to_ascii_uppercase().starts_with("ACK"));
    let name = declared.or_else(|| heading(&String::from_utf8_lossy(&first?.contents)));
    Ok(Terms {
        files,
        name,
        left_out,
    })
}

/// What the front matter of a model card declares: `license_name`, which the hub has for licenses outside its
/// list, or `license`, one or several.
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
        // Block scalars and what means nothing; the hub's words are `other` and `unknown`.
        let nothing = ["", "other", "unknown", "null", "~"].contains(&text.as_str());
        let known = !nothing && !text.starts_with(['|', '>']);
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
        assert!(is_license("LICENSE (1).txt"));
        for name in [
            "README.md",
            "a/LICENSE",
            "LICENSE\\x",
            "LICENSE:x",
            "LICENSE\n",
            "mylicense",
        ] {
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
            ("---\nlicense: null\n---\n", None),
            ("---\nlicense: |\n  mit\n---\n", None),
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
        assert_eq!(find(directory.path()).unwrap(), Terms::default());
        let put = |name: &str, text: &[u8]| std::fs::write(directory.path().join(name), text).unwrap();
        put("ACKNOWLEDGEMENTS", b"Thanks\n");
        put("LICENSE_MODEL", b"\n  == Apple Model License ==\nyou may \xff\n");
        put("config.json", b"{}");
        put("LICENSE:1", b"x");
        std::fs::create_dir(directory.path().join("LICENSES")).unwrap();
        let Terms {
            files,
            name,
            left_out,
        } = find(directory.path()).unwrap();
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        assert!(left_out[0].contains("LICENSE:1` is left out"), "{left_out:?}");
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["ACKNOWLEDGEMENTS", "LICENSE_MODEL"]);
        assert_eq!(
            files[1].contents,
            b"\n  == Apple Model License ==\nyou may \xff\n"
        );
        assert_eq!(name.as_deref(), Some("Apple Model License"));
        put("README.md", b"---\nlicense: apple-amlr\n---\n");
        assert_eq!(
            find(directory.path()).unwrap().name.as_deref(),
            Some("apple-amlr")
        );
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("nowhere", directory.path().join("NOTICE")).unwrap();
            let error = find(directory.path()).unwrap_err().to_string();
            assert!(error.contains("NOTICE"), "{error}");
        }
    }
}
