//! How is a file opened that must be one? Without waiting: a pipe would wait for whoever writes it, a device
//! for whatever it is attached to.

use std::fs::{File, FileType, Metadata};
use std::io;
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
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // It may have become a pipe meanwhile. For a regular file the flag means nothing.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

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
        #[cfg(unix)]
        {
            let pipe = folder.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            assert!(made.unwrap().success());
            assert!(says(&pipe).contains("a pipe, expected a regular file"));
            assert!(says(Path::new("/dev/null")).contains("a device"));
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            open(&link).unwrap();
        }
    }
}
