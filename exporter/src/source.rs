//! Where does a checkpoint come from? A directory, the embedded demo model, or the hub.

use crate::demo;
use crate::error::ExportError;
use crate::hub;
use crate::marked::{self, Marked};
use crate::plan::Source;
use crate::report::Report;
use std::path::{Path, PathBuf};

/// What the demo model's directories are called while they are needed.
const DEMO_PREFIX: &str = "fvlm-demo-";

/// A checkpoint on this disk, with a name for people.
pub(crate) struct Resolved {
    directory: PathBuf,
    /// `demo`, `org/name`, or a directory's name.
    pub(crate) name: String,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// Holds the demo model as long as it is needed.
    _temporary: Option<Marked>,
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
            let temporary = Marked::create(&parent, DEMO_PREFIX)
                .map_err(ExportError::io("create a directory in", &parent))?;
            marked::remove_stale(&temporary, DEMO_PREFIX);
            let directory = temporary.path().join("demo");
            std::fs::create_dir(&directory).map_err(ExportError::io("create", &directory))?;
            demo::extract(&directory)?;
            Ok(Resolved {
                directory,
                name: "demo".to_owned(),
                warnings: Vec::new(),
                _temporary: Some(temporary),
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
