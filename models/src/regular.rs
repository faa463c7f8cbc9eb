//! How is a file opened that must be one? Without waiting: a pipe would wait for whoever writes it, a device
//! for whatever it is attached to.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;

/// Opens a file to read. Links are followed.
///
/// # Errors
/// What is not there or may not be read, and whatever is no regular file: a directory, a pipe, a device. That
/// is found out without waiting, and before anything is opened that something happens to when it is.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a device may do something, and opening a socket is an error of its own.
    check(&std::fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    // It may have become a pipe meanwhile.
    without_waiting(&mut options);
    let file = options.open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// The contents of a file of at most `most` bytes.
///
/// # Errors
/// As [`open`], and what is longer or cannot be read.
pub fn bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    // Room for all of it, as far as it says how much that is.
    let length = file.metadata().map_or(0, |found| found.len()).min(most);
    let mut bytes = Vec::new();
    let room = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1);
    bytes
        .try_reserve_exact(room)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let what = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(bytes)
}

/// The text of a file of at most `most` bytes.
///
/// # Errors
/// As [`bytes`], and what is not UTF-8.
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(bytes(path, most)?).map_err(invalid)
}

/// A text without the byte order mark that editors of some systems put before it.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Opens a file to write, and makes it if it is not there. What stands in it stays.
///
/// # Errors
/// What may not be written, and whatever is there and no regular file, without waiting.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    without_waiting(&mut options);
    let file = options.open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// A pipe without anybody at its other end is then an error, or open at once. For a regular file it means nothing.
#[cfg(unix)]
fn without_waiting(options: &mut OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
}

#[cfg(not(unix))]
fn without_waiting(_options: &mut OpenOptions) {}

fn check(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let what = format!("it is {}, expected a regular file", kind(found.file_type()));
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// What something is that is no file.
fn kind(found: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if found.is_fifo() {
            return "a pipe";
        }
        if found.is_char_device() || found.is_block_device() {
            return "a device";
        }
        if found.is_socket() {
            return "a socket";
        }
    }
    if found.is_dir() {
        "a directory"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(open(&file).unwrap().metadata().unwrap().len(), 1);
        let missing = open(&folder.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let says = |path: &Path| open(path).unwrap_err().to_string();
        assert!(says(folder.path()).contains("a directory"));
        assert_eq!(text(&file, 1).unwrap(), "x");
        assert_eq!(bytes(&file, u64::MAX).unwrap(), b"x");
        std::fs::write(folder.path().join("binary"), [0xff]).unwrap();
        let binary = text(&folder.path().join("binary"), 9).unwrap_err();
        assert_eq!(binary.kind(), io::ErrorKind::InvalidData);
        assert_eq!(without_mark("\u{feff}\u{feff}x"), "\u{feff}x");
        assert!(
            text(&file, 0)
                .unwrap_err()
                .to_string()
                .contains("more than 0 bytes")
        );
        open_or_create(&file).unwrap();
        assert_eq!(text(&file, 9).unwrap(), "x");
        open_or_create(&folder.path().join("made")).unwrap();
        #[cfg(unix)]
        {
            let pipe = folder.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            assert!(made.unwrap().success());
            assert!(says(&pipe).contains("a pipe, expected a regular file"));
            assert!(open_or_create(&pipe).is_err());
            assert!(says(Path::new("/dev/null")).contains("a device"));
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            open(&link).unwrap();
        }
    }
}
