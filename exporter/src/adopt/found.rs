//! Which graphs are in a directory in the layout of transformers.js, and which precisions are complete?

use crate::error::ExportError;
use crate::onnx;
use crate::plan::Variant;
use models::arch::Network;
use models::bundle::{Precision, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most files of a directory that are looked at.
const MOST_FILES: usize = 1 << 14;

/// The graphs in a directory.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// Precisions with all three graphs, in the order of [`Precision::ALL`].
    pub(super) complete: Vec<Precision>,
    /// Precisions that lack one, and what they lack.
    pub(super) lacking: BTreeMap<Precision, Vec<String>>,
    /// Graphs of no network or precision that is known here.
    pub(super) others: Vec<String>,
}

/// The file of a network in a precision, in the folder of graphs.
pub(super) fn file_name(network: Network, precision: Precision) -> String {
    let suffix = Variant::new(Target::Portable, precision).map_or("", Variant::suffix);
    format!("{}{suffix}.onnx", network.name())
}

/// Looks into the folder of graphs.
///
/// # Errors
/// No such folder, or one that cannot be read.
pub(super) fn look(directory: &Path) -> Result<Found, ExportError> {
    let folder = directory.join(onnx::DIRECTORY);
    if !folder.is_dir() {
        return Err(ExportError::NoGraphs {
            path: directory.to_owned(),
            problem: format!("has no folder `{}`", onnx::DIRECTORY),
        });
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&folder).map_err(ExportError::io("read", &folder))? {
        let name = entry.map_err(ExportError::io("read", &folder))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if name.ends_with(".onnx") {
            names.insert(name);
        }
        if names.len() > MOST_FILES {
            return Err(ExportError::NoGraphs {
                path: folder,
                problem: format!("has more than {MOST_FILES} graphs"),
            });
        }
    }
    let mut found = Found {
        complete: Vec::new(),
        lacking: BTreeMap::new(),
        others: Vec::new(),
    };
    for precision in Precision::ALL {
        let files = Network::ALL.map(|network| file_name(network, precision));
        let (there, lacking): (Vec<String>, Vec<String>) =
            files.into_iter().partition(|file| names.contains(file));
        for file in &there {
            names.remove(file);
        }
        if lacking.is_empty() {
            found.complete.push(precision);
        } else if !there.is_empty() {
            found.lacking.insert(precision, lacking);
        }
    }
    found.others = names.into_iter().collect();
    Ok(found)
}

/// Whether files of a directory may be read: those that lie in it, links followed. The cache of the Hugging Face hub has
/// links from `snapshots/REVISION` to `blobs`, which is as good.
pub(super) struct Inside {
    directory: PathBuf,
    blobs: Option<PathBuf>,
}

impl Inside {
    /// # Errors
    /// A directory that is not there.
    pub(super) fn of(directory: &Path) -> Result<Inside, ExportError> {
        let no_such = |_| ExportError::NoModel {
            path: directory.to_owned(),
        };
        let whole = directory.canonicalize().map_err(no_such)?;
        let snapshots = whole.parent().filter(|parent| parent.ends_with("snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|model| model.join("blobs"));
        Ok(Inside {
            directory: whole,
            blobs,
        })
    }

    /// Whether the file at a relative path may be read, if there is one.
    ///
    /// # Errors
    /// A link that leads elsewhere.
    pub(super) fn check(&self, relative: &str) -> Result<(), ExportError> {
        let path = self.directory.join(relative);
        // What is not there is somebody else's complaint.
        let Ok(whole) = path.canonicalize() else {
            return Ok(());
        };
        let blobs = self.blobs.as_deref();
        if whole.starts_with(&self.directory) || blobs.is_some_and(|blobs| whole.starts_with(blobs)) {
            return Ok(());
        }
        Err(ExportError::LinkOutside { path, to: whole })
    }
}
