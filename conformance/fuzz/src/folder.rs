//! A folder of the process for what is only read from files. `TMPDIR` says where; whoever starts a target
//! removes it.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder that is made once and filled anew for each input.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder of that name.
    ///
    /// # Panics
    /// It cannot be made.
    pub(crate) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("fvlm-fuzz-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder { path }
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file; there is none of that name where there are no contents.
    ///
    /// # Panics
    /// It cannot be written.
    pub(crate) fn put(&self, name: &str, contents: Option<&[u8]>) -> PathBuf {
        let path = self.path.join(name);
        // A new file, not new contents: the last one may still be mapped.
        let _ = fs::remove_file(&path);
        if let Some(contents) = contents {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).expect("a folder can be made");
            }
            fs::write(&path, contents).expect("a file can be written");
        }
        path
    }
}
