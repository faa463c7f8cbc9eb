//! A place for tests of the real `fvlm-export`: a directory of their own, with the demo model in it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A working directory with a checkpoint in `model`.
pub(crate) struct World {
    pub(crate) directory: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model");
        fs::create_dir(&model).unwrap();
        exporter::demo::extract(&model).unwrap();
        World { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The program in that directory, without a network and with a cache of the hub that has nothing.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-export"));
        command
            .current_dir(self.directory.path())
            .args(arguments)
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("cache"))
            .stdin(Stdio::null());
        command
    }
}
