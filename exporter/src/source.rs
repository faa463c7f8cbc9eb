//! Where does a checkpoint come from? A directory, the embedded demo model, or the hub.

use crate::demo;
use crate::error::ExportError;
use crate::hub::{self, Wanted};
use crate::marked::{self, Marked};
use crate::plan::{AdapterPlace, AdapterSource, Source};
use crate::report::Report;
use models::checkpoint::Adapter;
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
    /// Its id, of a model of the hub.
    pub(crate) hub: Option<String>,
    /// Holds the demo model as long as it is needed.
    _temporary: Option<Marked>,
}

impl Resolved {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Opens an adapter; with `download`, what the cache lacks of one of the hub is brought there. What the user should know comes
/// with it.
pub(crate) fn adapter(
    source: &AdapterSource,
    download: bool,
    report: &mut dyn Report,
) -> Result<(Adapter, Vec<String>), ExportError> {
    match &source.place {
        AdapterPlace::Path(path) => Ok((Adapter::open(path, source.weight)?, Vec::new())),
        AdapterPlace::Hub { id, revision } => {
            let settings = hub::Settings::from_env();
            let snapshot = hub::snapshot(&settings, Wanted::Adapter, id, revision, download, report)?;
            let adapter = Adapter::open(&snapshot.directory, source.weight)?;
            Ok((adapter.called(id.clone()), snapshot.warnings))
        }
    }
}

/// What adapters say that they were made from.
///
/// # Errors
/// None that says so, two that say different things, or a directory that is not there.
fn base(adapters: &[Adapter]) -> Result<Source, ExportError> {
    let no_base = |problem: String| ExportError::NoBase { problem };
    let mut stated = adapters
        .iter()
        .filter_map(|adapter| Some((adapter, adapter.base()?)));
    let Some((first, (base, revision))) = stated.next() else {
        let names: Vec<String> = adapters
            .iter()
            .map(|adapter| format!("`{}`", adapter.name()))
            .collect();
        return Err(no_base(format!(
            "{} does not say which model it was made from",
            names.join(" and ")
        )));
    };
    if let Some((other, (another, _))) = stated.find(|(_, (another, _))| *another != base) {
        return Err(no_base(format!(
            "adapter `{}` was made from `{base}`, adapter `{}` from `{another}`",
            first.name(),
            other.name()
        )));
    }
    let source = match Source::named(base) {
        // Only a user's `demo` is the demo model.
        Source::Demo | Source::OfAdapters => Source::Directory(base.into()),
        other => other,
    };
    match (source, revision) {
        (Source::Directory(path), _) if !path.is_dir() => Err(no_base(format!(
            "adapter `{}` was made from `{base}`, which is no directory here",
            first.name()
        ))),
        (Source::Hub { id, .. }, Some(revision)) => Ok(Source::Hub {
            id,
            revision: revision.to_owned(),
        }),
        (source, _) => Ok(source),
    }
}

/// Finds the checkpoint's directory; with `download`, what the cache lacks of a model of the hub is brought there.
pub(crate) fn resolve(
    source: &Source,
    adapters: &[Adapter],
    download: bool,
    report: &mut dyn Report,
) -> Result<Resolved, ExportError> {
    match source {
        Source::OfAdapters => resolve(&base(adapters)?, adapters, download, report),
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
                hub: None,
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
                hub: None,
                _temporary: Some(temporary),
            })
        }
        Source::Hub { id, revision } => {
            let settings = hub::Settings::from_env();
            let snapshot = hub::snapshot(&settings, Wanted::Checkpoint, id, revision, download, report)?;
            Ok(Resolved {
                directory: snapshot.directory,
                warnings: snapshot.warnings,
                name: id.clone(),
                hub: Some(id.clone()),
                _temporary: None,
            })
        }
    }
}
