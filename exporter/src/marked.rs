//! How does a directory say whose it is, and that somebody still works in it? By a file of ours in it, locked as long
//! as the process lives.
//!
//! A killed export leaves its directories behind; the next one removes them. It must not remove what another export
//! works in at that moment, nor what only happens to have such a name. So only a directory with our [`MARK`] in it is
//! removed, by whoever got the lock on the mark, which is kept until the directory is gone. Creation and lock are one
//! step: a mark has no words in it before it is locked, and a directory that was lost in between is made again.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file that makes a directory ours.
const MARK: &str = "fvlm-export.lock";

/// What stands in it.
const WORDS: &str = "fvlm-export works in this directory as long as this file is locked; without a lock, \
                     it is what a killed one has left\n";

/// How often a directory is made again that was taken for a killed export's before it was locked.
const ATTEMPTS: u32 = 20;

/// Characters that make a directory's name one of its kind.
const RANDOM: usize = 6;

/// The directories of this process, for an end that runs no destructors.
static LIVING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A directory that is removed when it is dropped, by the next export if nobody drops it.
#[derive(Debug)]
pub(crate) struct Marked {
    path: PathBuf,
    /// Locked; the lock ends with the process at the latest.
    mark: Option<File>,
}

impl Marked {
    /// Makes a directory in `parent`, called `prefix` and six random characters.
    ///
    /// # Errors
    /// What the system refuses.
    pub(crate) fn create(parent: &Path, prefix: &str) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let made = tempfile::Builder::new()
                .prefix(prefix)
                .rand_bytes(RANDOM)
                .tempdir_in(parent)?;
            match mark(made.path()) {
                Ok(Some(mark)) => {
                    let path = made.keep();
                    living().push(path.clone());
                    return Ok(Marked {
                        path,
                        mark: Some(mark),
                    });
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("other programs remove what is made there"))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        remove(&self.path, self.mark.take());
        living().retain(|path| *path != self.path);
    }
}

fn living() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what this process would remove later: for an end that runs no destructors.
pub(crate) fn abandon() {
    for path in living().drain(..) {
        // The lock ends with the process.
        remove(&path, None);
    }
}

/// Marks a directory that was just made; `None` if another export took it for a killed one's meanwhile.
fn mark(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join(MARK);
    let mut file = match File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        // Where files cannot be locked, nobody can get the lock that removing needs.
        Err(fs::TryLockError::Error(_)) => {}
    }
    file.write_all(WORDS.as_bytes())?;
    // Somebody may have had the lock before, and be done with removing.
    Ok(path.exists().then_some(file))
}

/// Removes directories beside `own` that killed exports of this user have left under names that begin with `prefix`. A
/// failure is no reason not to export.
pub(crate) fn remove_stale(own: &Marked, prefix: &str) {
    let Some(Ok(entries)) = own.path.parent().map(fs::read_dir) else {
        return;
    };
    let Ok(own) = own.path.metadata() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(prefix) else {
            continue;
        };
        // The entry itself: a link is nobody's directory. One of another user could become a link while it is removed.
        if !entry
            .metadata()
            .is_ok_and(|found| found.is_dir() && same_owner(&found, &own))
        {
            continue;
        }
        let path = entry.path();
        if rest.len() == RANDOM && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            // Killed before there was a mark: goes only if it is empty.
            drop(fs::remove_dir(&path));
        }
        if let Some(mark) = left_behind(&path) {
            remove(&path, Some(mark));
        }
    }
}

/// Whether two things belong to one user.
#[cfg(unix)]
fn same_owner(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    one.uid() == other.uid()
}

#[cfg(not(unix))]
fn same_owner(_one: &fs::Metadata, _other: &fs::Metadata) -> bool {
    true
}

/// The locked mark of a directory whose process has ended; `None` for every other directory.
fn left_behind(directory: &Path) -> Option<File> {
    let mut file = models::regular::open(&directory.join(MARK)).ok()?;
    file.try_lock().ok()?;
    let mut words = String::new();
    let most = u64::try_from(WORDS.len()).ok()? + 1;
    (&mut file).take(most).read_to_string(&mut words).ok()?;
    // A mark without words is all that a process left which was killed while it made it.
    let alone = || fs::read_dir(directory).is_ok_and(|entries| entries.count() == 1);
    (words == WORDS || (words.is_empty() && alone())).then_some(file)
}

/// Removes a directory, its mark last, so that what is left after another kill is still ours to remove. So it is where
/// something cannot be removed: Windows keeps files that another program has mapped. The mark then stays, without a lock.
fn remove(directory: &Path, mark: Option<File>) {
    let mut whole = true;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name() == MARK {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|found| found.is_dir()) {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        whole &= removed.is_ok();
    }
    if !whole {
        return;
    }
    if cfg!(windows) {
        // A file that is open cannot be removed there.
        drop(mark);
        drop(fs::remove_file(directory.join(MARK)));
    } else {
        drop(fs::remove_file(directory.join(MARK)));
        drop(mark);
    }
    drop(fs::remove_dir(directory));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parent: &Path) -> Vec<String> {
        let entries = fs::read_dir(parent).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// What a process leaves that is killed with `words` in its mark, and `file` beside it.
    fn killed(parent: &Path, name: &str, words: &str, file: Option<&str>) {
        let directory = parent.join(name);
        fs::create_dir_all(directory.join("bundle/onnx")).unwrap();
        fs::remove_dir_all(directory.join("bundle")).unwrap();
        fs::write(directory.join(MARK), words).unwrap();
        if let Some(file) = file {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn only_what_is_ours_and_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        killed(parent, ".b.partial-whole1", WORDS, Some("bundle/onnx/x"));
        killed(parent, ".b.partial-begun1", "", None);
        fs::create_dir(parent.join(".b.partial-empty1")).unwrap();
        let gone = names(parent);
        // Not ours: no mark, other words in it, something beside a mark without words, a file, another prefix.
        fs::create_dir(parent.join(".b.partial-foreign")).unwrap();
        fs::write(parent.join(".b.partial-foreign/thesis.txt"), "x").unwrap();
        killed(parent, ".b.partial-words1", "my own lock", Some("thesis.txt"));
        killed(parent, ".b.partial-beside", "", Some("thesis.txt"));
        fs::create_dir(parent.join(".b.partial-my empty one")).unwrap();
        fs::write(parent.join(".b.partial-file01"), "x").unwrap();
        killed(parent, ".c.partial-whole1", WORDS, Some("bundle/x"));
        let alive = Marked::create(parent, ".b.partial-").unwrap();
        let before = names(parent);
        remove_stale(&alive, ".b.partial-");
        let after = names(parent);
        let removed: Vec<String> = before.into_iter().filter(|name| !after.contains(name)).collect();
        assert_eq!(removed, gone);
        assert!(alive.path().join(MARK).exists());
        fs::create_dir(alive.path().join("bundle")).unwrap();
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }

    #[cfg(windows)]
    #[test]
    fn what_another_program_has_open_is_removed_later() {
        use std::os::windows::fs::OpenOptionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let replaced = Marked::create(parent.path(), ".b.partial-").unwrap();
        let file = replaced.path().join("weights");
        fs::write(&file, "x").unwrap();
        // Nobody else may remove it, as if it were mapped.
        let open = File::options().read(true).share_mode(1).open(&file).unwrap();
        let left = replaced.path().to_owned();
        drop(replaced);
        assert_eq!(names(&left), [MARK, "weights"]);
        drop(open);
        let next = Marked::create(parent.path(), ".b.partial-").unwrap();
        remove_stale(&next, ".b.partial-");
        assert!(!left.exists());
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_links_with_such_names_are_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        killed(elsewhere.path(), "kept", WORDS, Some("thesis.txt"));
        let link = parent.path().join(".b.partial-link01");
        std::os::unix::fs::symlink(elsewhere.path().join("kept"), link).unwrap();
        fs::create_dir(parent.path().join(".b.partial-mark01")).unwrap();
        for pipe in [".b.partial-pipe01", ".b.partial-mark01/fvlm-export.lock"] {
            let made = std::process::Command::new("mkfifo")
                .arg(parent.path().join(pipe))
                .status();
            assert!(made.unwrap().success());
        }
        let alive = Marked::create(parent.path(), ".b.partial-").unwrap();
        let before = names(parent.path());
        remove_stale(&alive, ".b.partial-");
        assert_eq!(names(parent.path()), before);
        assert!(elsewhere.path().join("kept/thesis.txt").exists());
    }

    #[test]
    fn many_at_once_keep_what_is_theirs() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..40 {
                        let made = Marked::create(parent, ".b.partial-").unwrap();
                        let file = made.path().join("bundle");
                        fs::write(&file, "mine").unwrap();
                        remove_stale(&made, ".b.partial-");
                        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
                    }
                });
            }
        });
        assert_eq!(names(parent), [""; 0]);
    }
}
