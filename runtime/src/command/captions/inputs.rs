//! Which images do folders, files, patterns and lists name?

use crate::command::plan::Name;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

/// What is taken of a folder: files whose names end in one of these, in any case.
const ENDINGS: [&str; 12] = [
    "png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif", "avif",
];

/// Most bytes of a line of a list: longer than any path.
const LONGEST_LINE: u64 = 1 << 16;

/// The images that `inputs` name, each once: those of a folder sorted by name, all others in the order in which they are given.
///
/// An input is a folder (with those below it; hidden files, links to folders, pipes and devices are left out), a file whose name ends in `.txt` (a
/// list of images, one a line), `-` (a list on stdin), a pattern with `*`, `?`, `[..]` or `**` where nothing has that name, or an
/// image.
///
/// # Errors
/// A folder or list that cannot be read, an input that is not there, a pattern that is none or that nothing has.
pub(crate) fn images(inputs: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for input in inputs {
        if input.as_os_str() == "-" {
            list(io::stdin().lock(), "stdin", &mut found)?;
        } else if input.is_dir() {
            let before = found.len();
            below(input, &mut found)?;
            if found.len() == before {
                return Err(about(
                    input,
                    format!("no image is in this folder, expected {}", ENDINGS.join(", ")),
                ));
            }
        } else if ending(input).as_deref() == Some("txt") {
            let file = models::regular::open(input).map_err(|error| about(input, error))?;
            list(file, &input.to_string_lossy(), &mut found)?;
        } else if !input.exists() && is_pattern(input) {
            matching(input, &mut found)?;
        } else {
            // Whether it is one, or there at all, its line will say.
            found.push(input.clone());
        }
    }
    let mut seen = HashSet::new();
    found.retain(|path| seen.insert(path.clone()));
    Ok(found)
}

/// The name of an image in its line: its path, with forward slashes where the system has others.
pub(crate) fn name(path: &Path) -> Name {
    let path = path.as_os_str();
    Name(match path.to_str() {
        Some(text) if std::path::MAIN_SEPARATOR != '/' => text.replace(std::path::MAIN_SEPARATOR, "/").into(),
        _ => path.to_owned(),
    })
}

fn about(path: &Path, problem: impl Display) -> String {
    format!("`{}`: {problem}", path.display())
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

fn is_image(path: &Path) -> bool {
    ending(path).is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// Whether a link leads to a file, or nowhere, which its line will say.
fn may_be_file(link: &Path) -> bool {
    link.metadata().map_or(true, |found| found.is_file())
}

/// The images below a folder, sorted by path: files alone, since a pipe would be waited for.
fn below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let mut folders = vec![folder.to_owned()];
    let mut images = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| about(&folder, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| about(&folder, error))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let kind = entry.file_type().map_err(|error| about(&path, error))?;
            if kind.is_dir() {
                folders.push(path);
            } else if is_image(&path) && (kind.is_file() || kind.is_symlink() && may_be_file(&path)) {
                images.push(path);
            }
        }
    }
    images.sort_unstable();
    found.append(&mut images);
    Ok(())
}

/// The images of a list: a path a line, as it is; empty lines are none.
///
/// # Errors
/// What cannot be read, has a NUL or too long a line as no list of paths does, or names nothing.
fn list(reader: impl io::Read, name: &str, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let before = found.len();
    for number in 1_u64.. {
        line.clear();
        let mut limited = io::Read::take(&mut reader, LONGEST_LINE);
        let count = limited.read_until(b'\n', &mut line);
        if count.map_err(|error| format!("`{name}`: {error}"))? == 0 {
            break;
        }
        if !line.ends_with(b"\n") && u64::try_from(line.len()) == Ok(LONGEST_LINE) {
            return Err(format!(
                "`{name}`: line {number} has more than {LONGEST_LINE} bytes, expected the path of an image"
            ));
        }
        while line.ends_with(b"\n") || line.ends_with(b"\r") {
            line.pop();
        }
        let bytes = match number {
            1 => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line),
            _ => &line,
        };
        if bytes.contains(&0) {
            return Err(format!(
                "`{name}`: line {number} has a NUL, expected the path of an image in UTF-8, a line each (is it UTF-16, of \
                 `find -print0`, or no list?)"
            ));
        }
        if !bytes.is_empty() {
            let path = path_of(bytes).ok_or_else(|| {
                format!("`{name}`: line {number} is no Unicode, which paths are on this system")
            })?;
            found.push(path);
        }
    }
    if found.len() == before {
        return Err(format!(
            "`{name}`: no image is in this list, expected paths, a line each"
        ));
    }
    Ok(())
}

#[cfg(unix)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "other systems have bytes that are no path"
)]
fn path_of(bytes: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    Some(OsString::from_vec(bytes.to_vec()).into())
}

#[cfg(not(unix))]
fn path_of(bytes: &[u8]) -> Option<PathBuf> {
    Some(OsString::from(std::str::from_utf8(bytes).ok()?).into())
}

fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
}

/// The files that a pattern names, sorted; of folders that it names, nothing. `**` goes through no link, as a folder's files do
/// not lie behind one, and a name that is no Unicode matches as its text with U+FFFD does.
fn matching(pattern: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |error: glob::PatternError| about(pattern, format!("no pattern: {error}"));
    glob::Pattern::new(pattern.to_str().unwrap_or_default()).map_err(wrong)?;
    let (mut base, mut parts) = (PathBuf::new(), Vec::new());
    for component in pattern.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) if !parts.is_empty() || is_pattern(Path::new(part)) => parts.push(part),
            Component::ParentDir if !parts.is_empty() => parts.push(component.as_os_str()),
            literal => base.push(literal),
        }
    }
    parts.dedup_by(|one, other| *one == "**" && *other == "**");
    let mut files = Vec::new();
    walk(&base, &parts, &mut files)?;
    if files.is_empty() {
        return Err(about(
            pattern,
            "nothing is there, and as a pattern it names no file",
        ));
    }
    files.sort_unstable();
    found.append(&mut files);
    Ok(())
}

/// The files below `base` that the `parts` of a pattern name.
fn walk(base: &Path, parts: &[&OsStr], found: &mut Vec<PathBuf>) -> Result<(), String> {
    let Some((part, rest)) = parts.split_first() else {
        if base.is_file() {
            found.push(base.to_owned());
        }
        return Ok(());
    };
    if !is_pattern(Path::new(part)) {
        return walk(&base.join(part), rest, found);
    }
    let folder = if base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        base
    };
    if !folder.is_dir() {
        return Ok(());
    }
    let any_depth = *part == "**";
    if any_depth {
        walk(base, rest, found)?;
    }
    let one = glob::Pattern::new(&part.to_string_lossy()).map_err(|error| about(Path::new(part), error))?;
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    };
    for entry in std::fs::read_dir(folder).map_err(|error| about(folder, error))? {
        let entry = entry.map_err(|error| about(folder, error))?;
        let (name, path) = (entry.file_name(), base.join(entry.file_name()));
        if !any_depth {
            if one.matches_with(&name.to_string_lossy(), options) {
                walk(&path, rest, found)?;
            }
        } else if !name.as_encoded_bytes().starts_with(b".") {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&path, parts, found)?;
            } else if rest.is_empty() {
                walk(&path, rest, found)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn world() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "b.png",
            "a.JPG",
            "c.txt",
            ".hidden.png",
            "deep/er/x.heic",
            "deep/._x.heic",
            "deep/y.webp",
            "no.rs",
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(folder: &Path, inputs: &[&str]) -> Result<Vec<String>, String> {
        let inputs: Vec<PathBuf> = inputs.iter().map(|input| folder.join(input)).collect();
        let found = images(&inputs)?;
        let relative = |path: &PathBuf| {
            name(path.strip_prefix(folder).unwrap_or(path))
                .text()
                .into_owned()
        };
        Ok(found.iter().map(relative).collect())
    }

    #[test]
    fn folders_files_patterns_and_lists() {
        let world = world();
        let root = world.path();
        assert_eq!(
            names(root, &[""]).unwrap(),
            ["a.JPG", "b.png", "deep/er/x.heic", "deep/y.webp"]
        );
        assert_eq!(
            names(root, &["b.png", "deep", "b.png"]).unwrap(),
            ["b.png", "deep/er/x.heic", "deep/y.webp"]
        );
        assert_eq!(names(root, &["*.png"]).unwrap(), ["b.png"]);
        assert_eq!(
            names(root, &["**/*.[hw]e*"]).unwrap(),
            ["deep/er/x.heic", "deep/y.webp"]
        );
        // What is not there has a line that says so.
        assert_eq!(names(root, &["missing.png"]).unwrap(), ["missing.png"]);
        let lines = format!("\u{feff}{0}/b.png\r\n\n{0}/a b.png\n{0}/b.png\n", root.display());
        fs::write(root.join("c.txt"), lines).unwrap();
        assert_eq!(names(root, &["c.txt"]).unwrap(), ["b.png", "a b.png"]);
        // A file that has a pattern's name is a file.
        fs::write(root.join("[1].png"), "").unwrap();
        assert_eq!(names(root, &["[1].png"]).unwrap(), ["[1].png"]);
    }

    #[test]
    fn patterns_name_files_at_any_depth() {
        let world = world();
        let root = world.path();
        let all = [
            "a.JPG",
            "b.png",
            "c.txt",
            "deep/er/x.heic",
            "deep/y.webp",
            "no.rs",
        ];
        for (pattern, expected) in [
            ("**/*", &all[..]),
            ("**", &all),
            ("**/**/[xy].*", &["deep/er/x.heic", "deep/y.webp"]),
            ("d*/*", &["deep/y.webp"]),
            ("d*/../*.png", &["deep/../b.png"]),
            ("./?.png", &["b.png"]),
            (".*.png", &[".hidden.png"]),
            ("*/er/.*", &[]),
        ] {
            match names(root, &[pattern]) {
                Ok(found) => assert_eq!(found, expected, "{pattern}"),
                Err(error) => assert!(expected.is_empty(), "{pattern}: {error}"),
            }
        }
    }

    /// Of two links to their own folder `**` could make 2^40 paths.
    #[cfg(unix)]
    #[test]
    fn patterns_go_through_no_link_without_end_and_know_odd_names() {
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::fs::symlink;
        let world = world();
        let root = world.path();
        for link in ["l1", "l2"] {
            symlink(".", root.join(link)).unwrap();
        }
        assert_eq!(names(root, &["**/b.png"]).unwrap(), ["b.png"]);
        // Named, a link is gone through.
        assert_eq!(names(root, &["l1/*.png"]).unwrap(), ["l1/b.png"]);
        assert_eq!(names(root, &["l?/b.png"]).unwrap(), ["l1/b.png", "l2/b.png"]);
        let odd = OsStr::from_bytes(b"z\xff.png");
        if cfg!(target_vendor = "apple") {
            // Its file systems refuse such names.
            return;
        }
        fs::write(root.join(odd), "").unwrap();
        let found = images(&[root.join("*.png")]).unwrap();
        assert_eq!(found, [root.join("b.png"), root.join(odd)]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_no_image_of_a_folder() {
        use std::os::unix::fs::symlink;
        let world = world();
        let root = world.path();
        let pipe = root.join("deep/pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(root.join("deep/socket.png")).unwrap();
        for (target, link) in [
            ("pipe.png", "deep/to_pipe.png"),
            ("/dev/zero", "deep/to_device.png"),
            ("er", "deep/to_folder.png"),
            ("y.webp", "deep/to_file.webp"),
            ("nothing", "deep/to_nothing.png"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        assert_eq!(
            names(root, &["deep"]).unwrap(),
            [
                "deep/er/x.heic",
                "deep/to_file.webp",
                "deep/to_nothing.png",
                "deep/y.webp"
            ]
        );
        // Named, it has a line, which says what it is.
        assert_eq!(names(root, &["deep/pipe.png"]).unwrap(), ["deep/pipe.png"]);
    }

    #[test]
    fn inputs_that_name_nothing() {
        let world = world();
        let root = world.path();
        fs::create_dir(root.join("empty")).unwrap();
        fs::write(root.join("long.txt"), "x".repeat(1 << 17)).unwrap();
        fs::write(root.join("wide.txt"), b"a\0.\0p\0n\0g\0\r\0\n\0").unwrap();
        fs::write(root.join("blank.txt"), "\n\r\n").unwrap();
        for (input, said) in [
            ("empty", "no image is in this folder"),
            ("*.bmp", "names no file"),
            ("a**b.png", "no pattern"),
            ("none.txt", "none.txt"),
            ("long.txt", "line 1 has more than 65536 bytes"),
            ("wide.txt", "line 1 has a NUL"),
            ("blank.txt", "no image is in this list"),
        ] {
            let error = names(root, &[input]).unwrap_err();
            assert!(
                error.contains(said) && error.contains(input.trim_end_matches("*")),
                "{error}"
            );
        }
    }
}
