//! A file of another program, copied into the bundle a block at a time, hashed on its way.

use crate::error::ExportError;
use crate::files::HashedFile;
use crate::report::Report;
use models::bundle::FileEntry;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

/// Bytes copied at a time.
const BLOCK: usize = 1 << 20;

/// Copies the file at a relative path, which has so many bytes, from one directory into another.
///
/// # Errors
/// A file that cannot be read, is written meanwhile, or does not fit; or an interruption.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    (relative, bytes): (&str, u64),
    report: &mut dyn Report,
) -> Result<FileEntry, ExportError> {
    let (path, target) = (from.join(relative), to.join(relative));
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(ExportError::io("create", folder))?;
    }
    report.file(relative);
    let mut source = models::regular::open(&path).map_err(ExportError::io("open", &path))?;
    let before = stamp(&source);
    let mut copy = HashedFile::create(&target)?;
    let mut block = vec![0; BLOCK];
    loop {
        if report.interrupted() {
            return Err(ExportError::Interrupted);
        }
        let read = match source.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ExportError::io("read", &path)(error)),
        };
        let block = block.get(..read).unwrap_or_default();
        copy.write_all(block).map_err(ExportError::io("write", &target))?;
        report.advance(u64::try_from(read).unwrap_or(0));
    }
    let (length, sha256) = copy.finish()?;
    if length != bytes || stamp(&source) != before {
        return Err(ExportError::SourceChanged { path });
    }
    Ok(FileEntry {
        path: relative.to_owned(),
        bytes,
        sha256,
    })
}

/// When a file was written last, and its length; `None` where the system does not say.
fn stamp(file: &File) -> Option<(u64, SystemTime)> {
    let found = file.metadata().ok()?;
    Some((found.len(), found.modified().ok()?))
}
