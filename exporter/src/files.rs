//! How does a bundle appear? Written to a sibling directory, checked, synced, then renamed into place.
//!
//! The order, so that kill -9 at any moment leaves the old bundle, the new one, or none: (1) everything is written to
//! `.NAME.partial-RANDOM` beside the target, which is locked as long as the process lives; (2) files and directories are
//! synced; (3) where there is no target, one rename; where an old bundle is, one atomic exchange of the two names
//! (file systems that cannot exchange: the old one is moved aside, then the new one is renamed); (4) the old bundle,
//! now under the `.partial` name, is removed. What a killed export left is unlocked, and the next export to the
//! same target removes it.

use crate::error::ExportError;
use models::bundle::FileEntry;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A directory that becomes the target in one step, or disappears when it is dropped.
#[derive(Debug)]
pub struct Staging {
    directory: tempfile::TempDir,
    target: PathBuf,
    /// Whether a bundle that is there is replaced.
    overwrite: bool,
    /// Held while this process lives; tells other exports that the directory is in use.
    _lock: Option<File>,
    /// Dropped after `directory`, which lies in them.
    _parents: Parents,
}

impl Staging {
    /// Looks at the target and creates the sibling directory.
    ///
    /// # Errors
    /// A target that exists and may not be replaced, or a directory that cannot be written.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self, ExportError> {
        let target = absolute(target)?;
        check_target(&target, overwrite)?;
        let (parent, name) = split(&target)?;
        let parents = Parents::create(parent)?;
        let prefix = format!(".{name}.partial-");
        remove_stale(parent, &prefix, Duration::ZERO);
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(ExportError::io("create a directory in", parent))?;
        // A temporary directory is for its owner only; a bundle is as readable as any other directory.
        make_readable(directory.path(), parent)?;
        let lock = lock(directory.path());
        Ok(Staging {
            directory,
            target,
            overwrite,
            _lock: lock,
            _parents: parents,
        })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Refuses at once what would fail at the end.
    ///
    /// # Errors
    /// [`ExportError::NoSpace`].
    pub fn check_space(&self, needed: u64) -> Result<(), ExportError> {
        check_space(self.path(), &self.target, needed)
    }

    /// Makes the directory the target.
    ///
    /// # Errors
    /// A rename that is refused; the target is then as it was.
    pub fn publish(self) -> Result<(), ExportError> {
        for directory in [
            self.path(),
            &self.path().join("onnx"),
            &self.path().join("coreml"),
        ] {
            sync_directory(directory);
        }
        // Looked at again: minutes have passed since the first time.
        check_target(&self.target, self.overwrite)?;
        let (parent, _name) = split(&self.target)?;
        if !self.overwrite || !self.target.exists() {
            if self.target.exists() {
                // An empty directory, or whoever filled it just now keeps it; not every system renames over one.
                fs::remove_dir(&self.target).map_err(ExportError::io("replace", &self.target))?;
            }
            fs::rename(self.path(), &self.target).map_err(ExportError::io("rename to", &self.target))?;
            drop(self.directory.keep());
        } else if exchange(self.path(), &self.target).is_err() {
            let name = self
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let aside = parent.join(format!("{name}.old"));
            fs::rename(&self.target, &aside).map_err(ExportError::io("rename", &self.target))?;
            if let Err(source) = fs::rename(self.path(), &self.target) {
                // Back to the old bundle; if even that fails, the message of the first failure is the one that helps.
                drop(fs::rename(&aside, &self.target));
                return Err(ExportError::Io {
                    action: "rename to",
                    path: self.target,
                    source,
                });
            }
            drop(self.directory.keep());
            fs::remove_dir_all(&aside).map_err(ExportError::io("remove", &aside))?;
        }
        // After an exchange it is the old bundle that the temporary directory's drop removes.
        sync_directory(parent);
        Ok(())
    }
}

/// Whether so many bytes fit where `directory` is; `named` is what they are for.
///
/// # Errors
/// [`ExportError::NoSpace`].
pub(crate) fn check_space(directory: &Path, named: &Path, needed: u64) -> Result<(), ExportError> {
    match available_space(directory) {
        Some(available) if available < needed => Err(ExportError::NoSpace {
            path: named.to_owned(),
            available,
            needed,
        }),
        _enough_or_unknown => Ok(()),
    }
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

/// Writes a whole file into a directory, creating the directories on its way, and syncs it.
///
/// # Errors
/// What the operating system refuses.
pub fn write(directory: &Path, name: &str, contents: &[u8]) -> Result<FileEntry, ExportError> {
    let path = directory.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
    }
    let mut file = HashedFile::create(&path)?;
    file.write_all(contents)
        .map_err(ExportError::io("write", &path))?;
    let (bytes, sha256) = file.finish()?;
    Ok(FileEntry {
        path: name.to_owned(),
        bytes,
        sha256,
    })
}

/// A file that is hashed while it is written.
#[derive(Debug)]
pub struct HashedFile {
    file: File,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    /// Creates the file; one that exists is an error.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn create(path: &Path) -> Result<Self, ExportError> {
        let file = File::create_new(path).map_err(ExportError::io("create", path))?;
        Ok(HashedFile {
            file,
            path: path.to_owned(),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Syncs the file; returns its length and SHA-256.
    ///
    /// # Errors
    /// What the operating system refuses: a full disk may show only here.
    pub fn finish(self) -> Result<(u64, String), ExportError> {
        self.file
            .sync_all()
            .map_err(ExportError::io("write", &self.path))?;
        Ok((self.bytes, hex(&self.hash.finalize())))
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += u64::try_from(written).unwrap_or(0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// SHA-256 and length of a file, read in pieces; `stop` is asked between them.
///
/// # Errors
/// A file that cannot be read, or [`ExportError::Interrupted`].
pub fn hash_file(path: &Path, stop: &dyn Fn() -> bool) -> Result<(u64, String), ExportError> {
    let mut file = File::open(path).map_err(ExportError::io("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        if stop() {
            return Err(ExportError::Interrupted);
        }
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex(&hash.finalize()))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(ExportError::Io {
                    action: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        hash.update(&buffer[..read]);
        bytes += u64::try_from(read).unwrap_or(0);
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a target may be written: absent, an empty directory, or a bundle with nothing foreign in it.
///
/// # Errors
/// Says what stands in the way.
pub fn check_target(target: &Path, overwrite: bool) -> Result<(), ExportError> {
    let not_a_bundle = |found: &str| {
        Err(ExportError::NotABundle {
            path: target.to_owned(),
            found: found.to_owned(),
        })
    };
    let metadata = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ExportError::Io {
                action: "read",
                path: target.to_owned(),
                source,
            });
        }
        Ok(metadata) => metadata,
    };
    if metadata.is_symlink() {
        return not_a_bundle("a symbolic link");
    }
    if !metadata.is_dir() {
        return not_a_bundle("a file");
    }
    let present = list(target, "").map_err(ExportError::io("read", target))?;
    if present.is_empty() {
        return Ok(());
    }
    let contract = target.join(models::bundle::FILE_NAME);
    let Ok(text) = fs::read(&contract) else {
        return not_a_bundle("a directory without bundle.json");
    };
    let Some(own) = files_of_bundle(&text) else {
        return not_a_bundle("its bundle.json was not written by fvlm-export");
    };
    let foreign: Vec<String> = present.into_iter().filter(|path| !own.contains(path)).collect();
    if !foreign.is_empty() {
        return Err(ExportError::ForeignFiles {
            path: target.to_owned(),
            files: foreign,
        });
    }
    if overwrite {
        Ok(())
    } else {
        Err(ExportError::Exists {
            path: target.to_owned(),
        })
    }
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

/// Removes directories that killed exports have left: unlocked, and untouched for `age`. A failure is no reason not
/// to export.
pub(crate) fn remove_stale(parent: &Path, prefix: &str, age: Duration) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        let old = || {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            age.is_zero() || modified.is_ok_and(|time| time.elapsed().is_ok_and(|found| found >= age))
        };
        if ours && old() && lock(&entry.path()).is_some() {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// Locks a directory; `None` if another process has it, or where directories cannot be locked.
pub(crate) fn lock(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    file.try_lock().ok()?;
    Some(file)
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

/// Makes what a directory names survive a crash, where the system can.
pub(crate) fn sync_directory(directory: &Path) {
    // Not every system can sync a directory; the files themselves are synced.
    if let Ok(file) = File::open(directory) {
        drop(file.sync_all());
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

#[cfg(unix)]
fn available_space(directory: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(directory).ok()?;
    status.f_bavail.checked_mul(status.f_frsize)
}

#[cfg(not(unix))]
fn available_space(_directory: &Path) -> Option<u64> {
    None
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

    #[test]
    fn removes_what_a_killed_export_left_but_not_a_living_one() {
        let parent = tempfile::tempdir().unwrap();
        put(parent.path(), &[(".bundle.partial-dead/x", "1"), ("other", "2")]);
        let target = parent.path().join("bundle");
        let alive = Staging::create(&target, true).unwrap();
        assert!(!parent.path().join(".bundle.partial-dead").exists());
        let second = Staging::create(&target, true).unwrap();
        assert!(alive.path().exists() && second.path().exists());
        drop((alive, second));
        assert_eq!(list(parent.path(), "").unwrap(), ["other"]);
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
