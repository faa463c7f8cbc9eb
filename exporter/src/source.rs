//! Where does a checkpoint come from? A directory, the embedded demo model, or the hub.

use crate::demo;
use crate::error::ExportError;
use crate::files;
use crate::hub;
use crate::plan::Source;
use crate::report::Report;
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
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// Holds the demo model as long as it is needed, with a lock that says so.
    _temporary: Option<(tempfile::TempDir, Option<File>)>,
}

impl Resolved {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Finds the checkpoint's directory; with `download`, what the cache lacks of a model of the hub is brought there.
pub(crate) fn resolve(
    source: &Source,
    download: bool,
    report: &mut dyn Report,
) -> Result<Resolved, ExportError> {
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
                warnings: Vec::new(),
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
                warnings: Vec::new(),
                _temporary: Some((temporary, lock)),
            })
        }
        Source::Hub { id, revision } => {
            let settings = hub::Settings::from_env();
            let snapshot = hub::snapshot(&settings, id, revision, download, report)?;
            Ok(Resolved {
                directory: snapshot.directory,
                warnings: snapshot.warnings,
                name: id.clone(),
                _temporary: None,
            })
        }
    }
}
