//! How does a bundle appear? Written to a sibling directory, checked, synced, then renamed into place.
//!
//! The order, so that kill -9 at any moment leaves the old bundle, the new one, or none: (1) everything is written to
//! `.NAME.partial-RANDOM/bundle` beside the target, in a directory that is marked as ours and locked as long as the
//! process lives (`marked.rs`); (2) files and directories are synced; (3) where there is no target, one rename; where
//! an old bundle is, one atomic exchange of the two names (file systems that cannot exchange: the old one is moved
//! aside, then the new one is renamed); (4) the old bundle, now in the `.partial` directory, is removed with it. What
//! a killed export left is unlocked, and the next export to the same target removes it.

use crate::error::ExportError;
use crate::files::{check_space, sync_directory};
use crate::marked::{self, Marked};
use crate::target::{self, Found};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How often something is done again that other exports to the same target got in the way of.
const ATTEMPTS: u32 = 20;

/// The bundle in its marked directory.
const INSIDE: &str = "bundle";

/// A directory that becomes the target in one step, or disappears when it is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: Marked,
    /// Where the bundle is written, in `directory`.
    inside: PathBuf,
    target: PathBuf,
    /// Whether a bundle that is there is replaced.
    overwrite: bool,
    /// Dropped after `directory`, which lies in them.
    _parents: Parents,
}

impl Staging {
    /// Looks at the target and creates the sibling directory.
    ///
    /// # Errors
    /// A target that exists and may not be replaced, or a directory that cannot be written.
    pub(crate) fn create(target: &Path, overwrite: bool) -> Result<Self, ExportError> {
        let target = absolute(target)?;
        target::look(&target, overwrite)?;
        let (parent, name) = split(&target)?;
        let prefix = format!(".{name}.partial-");
        let mut attempt = 0;
        let (parents, directory) = loop {
            let parents = Parents::create(parent)?;
            attempt += 1;
            match Marked::create(parent, &prefix) {
                Ok(directory) => break (parents, directory),
                // Another export that failed has removed the directories that were made on the way.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                Err(error) => return Err(ExportError::io("create a directory in", parent)(error)),
            }
        };
        marked::remove_stale(&directory, &prefix);
        let inside = directory.path().join(INSIDE);
        fs::create_dir(&inside).map_err(ExportError::io("create", &inside))?;
        // As readable as the directory that it is in, whatever is usual for directories that begin with a dot.
        make_readable(&inside, parent)?;
        Ok(Staging {
            directory,
            inside,
            target,
            overwrite,
            _parents: parents,
        })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.inside
    }

    /// Refuses at once what would fail at the end.
    ///
    /// # Errors
    /// [`ExportError::NoSpace`].
    pub(crate) fn check_space(&self, needed: u64) -> Result<(), ExportError> {
        check_space(self.path(), &self.target, needed)
    }

    /// Makes the directory the target.
    ///
    /// # Errors
    /// A rename that is refused; the target is then as it was.
    pub(crate) fn publish(self) -> Result<(), ExportError> {
        sync_directory(self.path());
        for directory in ["onnx", "coreml", "page", "page/samples"] {
            sync_directory(&self.path().join(directory));
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_publish() {
                Ok(()) => break,
                // Another export to the same target was faster: looked at again, it is one to replace, or to keep.
                Err(ExportError::Io { source, .. }) if attempt < ATTEMPTS && is_overtaken(&source) => {}
                Err(error) => return Err(error),
            }
        }
        let (parent, _name) = split(&self.target)?;
        // The old bundle, which the directory's drop removes, is out of the way then.
        sync_directory(parent);
        Ok(())
    }

    fn try_publish(&self) -> Result<(), ExportError> {
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(ExportError::io("rename to", to));
        // Looked at again: minutes have passed since the first time.
        match target::look(&self.target, self.overwrite)? {
            Found::Nothing => return rename(&self.inside, &self.target),
            Found::Empty => {
                // Whoever filled it just now keeps it; not every system renames over an empty directory.
                target::remove_empty(&self.target).map_err(ExportError::io("replace", &self.target))?;
                return rename(&self.inside, &self.target);
            }
            Found::Bundle => {}
        }
        match exchange(&self.inside, &self.target) {
            Ok(()) => {
                // What came between the look and the exchange is nobody's to remove: the two change back.
                let problem = match target::look(&self.inside, true) {
                    Ok(_) => return Ok(()),
                    Err(problem) => problem,
                };
                exchange(&self.inside, &self.target).map_err(ExportError::io("exchange", &self.target))?;
                // Said of the place where it is.
                Err(target::look(&self.target, true).err().unwrap_or(problem))
            }
            Err(error) if is_overtaken(&error) => Err(ExportError::io("exchange", &self.target)(error)),
            Err(_cannot) => {
                let aside = self.directory.path().join("old");
                rename(&self.target, &aside)?;
                rename(&self.inside, &self.target).inspect_err(|_| {
                    // Back to the old bundle; if even that fails, the message of the first failure is the one that helps.
                    drop(fs::rename(&aside, &self.target));
                })
            }
        }
    }
}

/// Whether an error says that a name came or went since it was looked at.
fn is_overtaken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
    )
}

/// Directories made on the way to the target: those that are still empty at the end are removed again.
#[derive(Debug)]
struct Parents {
    made: Vec<PathBuf>,
}

impl Parents {
    fn create(parent: &Path) -> Result<Self, ExportError> {
        let made = parent
            .ancestors()
            .take_while(|path| !path.exists())
            .map(Path::to_owned)
            .collect();
        let parents = Parents { made };
        fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
        Ok(parents)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for directory in &self.made {
            drop(fs::remove_dir(directory));
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ExportError> {
    std::path::absolute(path).map_err(ExportError::io("resolve", path))
}

fn split(target: &Path) -> Result<(&Path, String), ExportError> {
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name.to_string_lossy().into_owned())),
        _no_name => {
            let found = "a path without a name".to_owned();
            Err(ExportError::NotABundle {
                path: target.to_owned(),
                found,
            })
        }
    }
}

#[cfg(unix)]
fn make_readable(directory: &Path, like: &Path) -> Result<(), ExportError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(like)
        .map_err(ExportError::io("read", like))?
        .permissions()
        .mode();
    let permissions = fs::Permissions::from_mode((mode & 0o755) | 0o700);
    fs::set_permissions(directory, permissions).map_err(ExportError::io("write", directory))
}

#[cfg(not(unix))]
fn make_readable(_directory: &Path, _like: &Path) -> Result<(), ExportError> {
    Ok(())
}

/// Exchanges two names in one step.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    Ok(rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::write;

    /// Every file under a directory, as relative paths with forward slashes, sorted.
    fn list(directory: &Path, prefix: &str) -> io::Result<Vec<String>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                files.extend(list(&entry.path(), &format!("{name}/"))?);
            } else {
                files.push(name);
            }
        }
        files.sort();
        Ok(files)
    }

    const CONTRACT: &str =
        r#"{"tool": "fvlm-export 0.0.1", "files": [{"path": "a.txt"}, {"path": "onnx/b.onnx"}]}"#;

    fn put(directory: &Path, files: &[(&str, &str)]) {
        for (name, contents) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
    }

    fn publish(target: &Path, contents: &str) -> Result<(), ExportError> {
        let staging = Staging::create(target, true)?;
        write(staging.path(), "a.txt", contents.as_bytes())?;
        write(staging.path(), "bundle.json", CONTRACT.as_bytes())?;
        staging.publish()
    }

    #[test]
    fn publishes_and_replaces_and_leaves_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        for contents in ["one", "two"] {
            publish(&target, contents).unwrap();
            assert_eq!(fs::read_to_string(target.join("a.txt")).unwrap(), contents);
            assert_eq!(
                list(parent.path(), "").unwrap(),
                ["bundle/a.txt", "bundle/bundle.json"]
            );
        }
        drop(Staging::create(&target, true).unwrap());
        assert_eq!(
            list(parent.path(), "").unwrap(),
            ["bundle/a.txt", "bundle/bundle.json"]
        );
    }

    #[test]
    fn an_empty_directory_is_a_target() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        fs::create_dir(&target).unwrap();
        publish(&target, "x").unwrap();
        assert_eq!(
            list(parent.path(), "").unwrap(),
            ["bundle/a.txt", "bundle/bundle.json"]
        );
    }

    #[test]
    fn what_came_meanwhile_stays() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        for empty_before in [false, true] {
            if empty_before {
                fs::create_dir(&target).unwrap();
            }
            let staging = Staging::create(&target, false).unwrap();
            write(staging.path(), "a.txt", b"late").unwrap();
            write(staging.path(), "bundle.json", CONTRACT.as_bytes()).unwrap();
            publish(&target, "early").unwrap();
            let error = staging.publish().unwrap_err();
            assert!(matches!(error, ExportError::Exists { .. }), "{error}");
            assert_eq!(fs::read_to_string(target.join("a.txt")).unwrap(), "early");
            fs::remove_dir_all(&target).unwrap();
        }
        let staging = Staging::create(&target, false).unwrap();
        fs::create_dir(&target).unwrap();
        write(staging.path(), "a.txt", b"x").unwrap();
        staging.publish().unwrap();
        assert_eq!(list(parent.path(), "").unwrap(), ["bundle/a.txt"]);
    }

    #[test]
    fn refuses_what_is_not_its_own() {
        struct Case {
            files: &'static [(&'static str, &'static str)],
            says: &'static str,
        }
        let cases = [
            Case {
                files: &[("thesis.txt", "x")],
                says: "without bundle.json",
            },
            Case {
                files: &[("bundle.json", "{}")],
                says: "not written by fvlm-export",
            },
            Case {
                files: &[("bundle.json", CONTRACT), ("onnx/notes.txt", "x")],
                says: "onnx/notes.txt",
            },
        ];
        for case in cases {
            let parent = tempfile::tempdir().unwrap();
            let target = parent.path().join("bundle");
            put(&target, case.files);
            let error = publish(&target, "x").unwrap_err().to_string();
            assert!(error.contains(case.says), "{error}");
            assert_eq!(list(&target, "").unwrap().len(), case.files.len());
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        }
    }

    // On Windows nobody reads what another has locked.
    #[cfg(unix)]
    #[test]
    fn removes_what_a_killed_export_left_but_not_a_living_one() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        let killed = Staging::create(&target, true).unwrap();
        let mark = fs::read(killed.directory.path().join("fvlm-export.lock")).unwrap();
        drop(killed);
        put(
            parent.path(),
            &[(".bundle.partial-dead/bundle/x", "1"), ("other", "2")],
        );
        fs::write(parent.path().join(".bundle.partial-dead/fvlm-export.lock"), mark).unwrap();
        let alive = Staging::create(&target, true).unwrap();
        assert!(!parent.path().join(".bundle.partial-dead").exists());
        let second = Staging::create(&target, true).unwrap();
        assert!(alive.path().exists() && second.path().exists());
        drop((alive, second));
        assert_eq!(list(parent.path(), "").unwrap(), ["other"]);
    }

    #[test]
    fn a_foreign_directory_with_such_a_name_stays() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        put(
            parent.path(),
            &[
                (".bundle.partial-x/thesis.txt", "1"),
                (".bundle.partial-abcdef/bundle/bundle.json", CONTRACT),
            ],
        );
        publish(&target, "x").unwrap();
        publish(&target, "y").unwrap();
        assert_eq!(
            list(parent.path(), "").unwrap(),
            [
                ".bundle.partial-abcdef/bundle/bundle.json",
                ".bundle.partial-x/thesis.txt",
                "bundle/a.txt",
                "bundle/bundle.json"
            ]
        );
    }

    #[test]
    fn many_at_once_leave_one_whole_bundle() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("new/bundle");
        std::thread::scope(|scope| {
            for index in 0..6 {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..20 {
                        publish(target, &index.to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(
            list(parent.path(), "").unwrap(),
            ["new/bundle/a.txt", "new/bundle/bundle.json"]
        );
    }

    #[test]
    fn what_a_file_manager_left_goes_with_the_old_bundle() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        put(&target, &[(".DS_Store", "x")]);
        for contents in ["one", "two"] {
            publish(&target, contents).unwrap();
            assert_eq!(list(&target, "").unwrap(), ["a.txt", "bundle.json"]);
            put(
                &target,
                &[(".DS_Store", "x"), ("._a.txt", "x"), ("Thumbs.db", "x")],
            );
        }
    }

    #[test]
    fn keeps_an_existing_bundle_when_told_to() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("bundle");
        publish(&target, "x").unwrap();
        assert!(matches!(
            Staging::create(&target, false),
            Err(ExportError::Exists { .. })
        ));
    }

    #[test]
    fn refuses_more_than_the_disk_holds() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::create(&parent.path().join("bundle"), true).unwrap();
        assert!(matches!(
            staging.check_space(u64::MAX),
            Err(ExportError::NoSpace { .. })
        ));
        staging.check_space(1).unwrap();
    }
}
