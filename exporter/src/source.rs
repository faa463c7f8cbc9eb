//! Where does a checkpoint come from? A directory, the embedded demo model, or the local cache of the hub.

use crate::demo;
use crate::error::ExportError;
use crate::files;
use crate::plan::Source;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the demo model's directories are called while they are needed, and when one that nobody holds is a killed
/// export's: none takes that long to be locked.
const DEMO_PREFIX: &str = "fvlm-demo-";
const DEMO_AGE: Duration = Duration::from_secs(600);

/// A checkpoint on this disk, with a name for people.
pub(crate) struct Resolved {
    directory: PathBuf,
    /// `demo`, `org/name`, or a directory's name.
    pub(crate) name: String,
    /// Holds the demo model as long as it is needed, with a lock that says so.
    _temporary: Option<(tempfile::TempDir, Option<File>)>,
}

impl Resolved {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Finds the checkpoint's directory.
pub(crate) fn resolve(source: &Source) -> Result<Resolved, ExportError> {
    match source {
        Source::Directory(path) => {
            if !path.is_dir() {
                return Err(ExportError::NoModel { path: path.clone() });
            }
            let whole = path.canonicalize().map_err(ExportError::io("resolve", path))?;
            let name = whole
                .file_name()
                .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
            Ok(Resolved {
                directory: path.clone(),
                name,
                _temporary: None,
            })
        }
        Source::Demo => {
            let parent = std::env::temp_dir();
            files::remove_stale(&parent, DEMO_PREFIX, DEMO_AGE);
            let temporary = tempfile::Builder::new()
                .prefix(DEMO_PREFIX)
                .tempdir()
                .map_err(ExportError::io("create a directory in", &parent))?;
            let lock = files::lock(temporary.path());
            demo::extract(temporary.path())?;
            Ok(Resolved {
                directory: temporary.path().to_owned(),
                name: "demo".to_owned(),
                _temporary: Some((temporary, lock)),
            })
        }
        Source::Hub { id, revision } => {
            let cache = cache(|name| std::env::var_os(name));
            let directory = snapshot(&cache, id, revision)?;
            Ok(Resolved {
                directory,
                name: id.clone(),
                _temporary: None,
            })
        }
    }
}

/// The cache of `huggingface_hub`, by its own variables: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, then `~/.cache`.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(cache) = set("HF_HUB_CACHE") {
        return cache;
    }
    let home = set("HF_HOME").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").unwrap_or_else(|| {
            set("HOME")
                .or_else(|| set("USERPROFILE"))
                .unwrap_or_default()
                .join(".cache")
        });
        cache.join("huggingface")
    });
    home.join("hub")
}

/// The directory of a revision: a branch or tag by its entry in `refs`, or a commit.
fn snapshot(cache: &Path, id: &str, revision: &str) -> Result<PathBuf, ExportError> {
    let model = cache.join(format!("models--{}", id.replace('/', "--")));
    let reference = model.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    let directory = model.join("snapshots").join(commit);
    if directory.is_dir() {
        Ok(directory)
    } else {
        Err(ExportError::NotCached {
            id: id.to_owned(),
            revision: revision.to_owned(),
            looked: directory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_by_the_variables_of_the_hub() {
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[("HF_HUB_CACHE", "a"), ("HF_HOME", "b"), ("HOME", "c")], "a"),
            (&[("HF_HOME", "b"), ("HOME", "c")], "b/hub"),
            (&[("XDG_CACHE_HOME", "d"), ("HOME", "c")], "d/huggingface/hub"),
            (&[("HF_HOME", ""), ("HOME", "c")], "c/.cache/huggingface/hub"),
            (&[("USERPROFILE", "u")], "u/.cache/huggingface/hub"),
        ];
        for (variables, expected) in cases {
            let found = cache(|name| {
                variables
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            });
            assert_eq!(found, Path::new(expected), "{variables:?}");
        }
    }

    #[test]
    fn snapshots_by_branch_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--org--name");
        std::fs::create_dir_all(model.join("snapshots/0123abc")).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "0123abc\n").unwrap();
        for revision in ["main", "0123abc"] {
            assert_eq!(
                snapshot(cache.path(), "org/name", revision).unwrap(),
                model.join("snapshots/0123abc")
            );
        }
        let error = snapshot(cache.path(), "org/name", "v2").unwrap_err().to_string();
        assert!(error.contains("`org/name` at revision `v2`"), "{error}");
    }
}
