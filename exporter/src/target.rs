//! May a target be written? It may if it is absent, an empty directory, or a bundle with nothing foreign in it.
//!
//! Foreign is what neither an export wrote nor a file manager leaves of itself. The latter (`.DS_Store`, `._NAME`
//! beside a file `NAME` of the bundle, `Thumbs.db`, `desktop.ini`) holds views and icons, nothing of the user's, and
//! goes with the bundle.

use crate::error::ExportError;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

/// Longest `bundle.json` that is looked into.
const MOST_BYTES: u64 = 64 << 20;

/// Foreign files that a complaint names.
const MOST_NAMED: usize = 20;

/// What is at a target that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// An empty directory, but for what a file manager left.
    Empty,
    /// A bundle.
    Bundle,
}

/// Whether a target may be written. Nothing is walked through that is no bundle.
///
/// # Errors
/// Says what stands in the way.
pub(crate) fn look(target: &Path, overwrite: bool) -> Result<Found, ExportError> {
    let not_a_bundle = |found: String| {
        Err(ExportError::NotABundle {
            path: target.to_owned(),
            found,
        })
    };
    let metadata = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        metadata => metadata.map_err(ExportError::io("read", target))?,
    };
    if metadata.is_symlink() {
        return not_a_bundle("a symbolic link".to_owned());
    }
    if !metadata.is_dir() {
        return not_a_bundle("a file".to_owned());
    }
    if holds_current_directory(target) {
        return Err(ExportError::CurrentDirectory {
            path: target.to_owned(),
        });
    }
    if is_empty(target).map_err(ExportError::io("read", target))? {
        return Ok(Found::Empty);
    }
    let contract = match contract(&target.join(models::bundle::FILE_NAME)) {
        Ok(contract) => contract,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return not_a_bundle("a directory without bundle.json".to_owned());
        }
        Err(error) => return not_a_bundle(format!("its bundle.json cannot be read: {error}")),
    };
    let Some(own) = files_of_bundle(&contract) else {
        return not_a_bundle("its bundle.json was not written by fvlm-export".to_owned());
    };
    let mut foreign = Vec::new();
    find_foreign(target, "", &own, &mut foreign).map_err(ExportError::io("read", target))?;
    if !foreign.is_empty() {
        foreign.sort();
        return Err(ExportError::ForeignFiles {
            path: target.to_owned(),
            files: foreign,
        });
    }
    if overwrite {
        Ok(Found::Bundle)
    } else {
        Err(ExportError::Exists {
            path: target.to_owned(),
        })
    }
}

/// Whether the current directory, or one above it, would be replaced: whoever works in it would be left in one that is
/// gone.
fn holds_current_directory(target: &Path) -> bool {
    let current = std::env::current_dir().and_then(|path| path.canonicalize());
    match (current, target.canonicalize()) {
        (Ok(current), Ok(target)) => current.starts_with(target),
        _unknown => false,
    }
}

/// Whether nothing is in a directory but what a file manager left.
fn is_empty(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !(is_left_by_a_system(&name.to_string_lossy(), |_| false) && entry.file_type()?.is_file()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes from an empty directory what a file manager left, and the directory.
pub(crate) fn remove_empty(directory: &Path) -> io::Result<()> {
    if is_empty(directory)? {
        for entry in fs::read_dir(directory)? {
            fs::remove_file(entry?.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn contract(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    models::regular::open(path)?
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files that a `bundle.json` of ours lists, of whatever schema.
fn files_of_bundle(contract: &[u8]) -> Option<BTreeSet<String>> {
    let contract: serde_json::Value = serde_json::from_slice(contract).ok()?;
    if !contract.get("tool")?.as_str()?.starts_with("fvlm-export ") {
        return None;
    }
    let mut files = BTreeSet::from([models::bundle::FILE_NAME.to_owned()]);
    for file in contract.get("files")?.as_array()? {
        files.insert(file.get("path")?.as_str()?.to_owned());
    }
    Some(files)
}

/// Gathers what in a directory is no file of the bundle, as relative paths with forward slashes; a directory that has
/// none of its files is named, not walked.
fn find_foreign(
    directory: &Path,
    prefix: &str,
    own: &BTreeSet<String>,
    foreign: &mut Vec<String>,
) -> io::Result<()> {
    let holds_own = |folder: &str| {
        let next = own.range(folder.to_owned()..).next();
        next.is_some_and(|path| path.starts_with(folder))
    };
    for entry in fs::read_dir(directory)? {
        if foreign.len() == MOST_NAMED {
            return Ok(());
        }
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        // A name that is no Unicode is nobody's whom a contract could name.
        let Some(name) = name.to_str() else {
            foreign.push(format!("{prefix}{}", name.to_string_lossy()));
            continue;
        };
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            let folder = format!("{path}/");
            if holds_own(&folder) {
                find_foreign(&entry.path(), &folder, own, foreign)?;
            } else if fs::read_dir(entry.path())?.next().is_some() {
                foreign.push(folder);
            }
            continue;
        }
        let companion = |of: &str| {
            let of = format!("{prefix}{of}");
            own.contains(&of) || holds_own(&format!("{of}/"))
        };
        let known = own.contains(&path) || (kind.is_file() && is_left_by_a_system(name, companion));
        if !known {
            foreign.push(path);
        }
    }
    Ok(())
}

/// Whether a file of this name holds nothing but how a file manager shows a folder, or what macOS knows of a file
/// beside the file itself; `companion` says whether there is such a file.
fn is_left_by_a_system(name: &str, companion: impl Fn(&str) -> bool) -> bool {
    const VIEWS: [&str; 4] = [".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini"];
    let is_view = |name: &str| VIEWS.iter().any(|view| view.eq_ignore_ascii_case(name));
    match name.strip_prefix("._") {
        // `._.` is the folder's own.
        Some(of) => of == "." || is_view(of) || companion(of),
        None => is_view(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str =
        r#"{"tool": "fvlm-export 0.0.1", "files": [{"path": "a.txt"}, {"path": "onnx/b.onnx"}]}"#;

    /// A target with these files, and the answer about it.
    fn found(files: &[(&str, &str)]) -> Result<Found, String> {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        fs::create_dir(&target).unwrap();
        for (name, contents) in files {
            let path = target.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        look(&target, true).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_file_manager_leaves_is_nobodys() {
        let bundle = [("bundle.json", CONTRACT), ("a.txt", ""), ("onnx/b.onnx", "")];
        let and = |name: &'static str| found(&[&bundle[..], &[(name, "x")]].concat());
        for name in [
            ".DS_Store",
            "onnx/.DS_Store",
            "._a.txt",
            "._bundle.json",
            "._onnx",
            "._.",
            "onnx/._b.onnx",
            "._.DS_Store",
            "Thumbs.db",
            "onnx/desktop.ini",
        ] {
            assert_eq!(and(name), Ok(Found::Bundle), "{name}");
        }
        for name in [
            "notes.txt",
            "._notes.txt",
            "._b.onnx",
            ".DS_Store/thesis.txt",
            "my/Thumbs.db",
            ".DS_Store.txt",
        ] {
            assert!(
                and(name).is_err_and(|error| error.contains("not part of it")),
                "{name}"
            );
        }
        assert_eq!(
            found(&[(".DS_Store", "x"), ("._.DS_Store", "x")]),
            Ok(Found::Empty)
        );
        let problem = found(&[(".DS_Store", "x"), ("._thesis.txt", "x")]).unwrap_err();
        assert!(problem.contains("without bundle.json"), "{problem}");
        assert_eq!(found(&[]), Ok(Found::Empty));
    }

    #[test]
    fn a_foreign_directory_is_named_and_not_walked() {
        let problem = found(&[("bundle.json", CONTRACT), ("my/deep/thesis.txt", ""), ("z", "")]).unwrap_err();
        assert!(problem.ends_with(": my/, z"), "{problem}");
        let many: Vec<String> = (0..100).map(|index| format!("f{index}")).collect();
        let mut files = vec![("bundle.json", CONTRACT)];
        files.extend(many.iter().map(|name| (name.as_str(), "")));
        assert_eq!(found(&files).unwrap_err().matches(", ").count(), MOST_NAMED - 1);
    }

    #[test]
    fn the_directory_that_one_stands_in_stays() {
        let current = std::env::current_dir().unwrap();
        for path in [&current, current.parent().unwrap()] {
            let error = look(path, true).unwrap_err();
            assert!(matches!(error, ExportError::CurrentDirectory { .. }), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_for_a_contract_is_not_waited_for() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        fs::create_dir(&target).unwrap();
        let pipe = target.join("bundle.json");
        let made = std::process::Command::new("mkfifo").arg(pipe).status();
        assert!(made.unwrap().success());
        let problem = look(&target, true).unwrap_err().to_string();
        assert!(problem.contains("it is a pipe"), "{problem}");
    }
}
