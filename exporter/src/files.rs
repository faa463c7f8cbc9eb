//! How is a file of a bundle written? Hashed on its way out, and synced; and how is one hashed that is there?

use crate::error::ExportError;
use models::bundle::FileEntry;
use models::plain::hex;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

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
    let mut file = models::regular::open(path).map_err(ExportError::io("open", path))?;
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

/// Makes what a directory names survive a crash, where the system can.
pub(crate) fn sync_directory(directory: &Path) {
    // Not every system can sync a directory; the files themselves are synced.
    if let Ok(file) = File::open(directory) {
        drop(file.sync_all());
    }
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
