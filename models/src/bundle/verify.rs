//! Verification: has every file of a bundle the SHA-256 that its contract states?
//!
//! What is hashed when: small files by [`Bundle::open`], the tokenizer and the graphs that are run by whoever
//! opens them ([`Bundle::verify_files`]), weights when somebody asks ([`Bundle::verify`]). `bundle.json` has no
//! hash of its own: what of it changes answers is compared with files that have one (`agree`), and with the
//! graphs.

#![deny(clippy::as_conversions)]

use super::{Bundle, BundleError, CoreMlPackages, FileEntry, GraphEntry, Variant};
use crate::plain::hex;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes hashed at a time.
const BLOCK: usize = 1 << 20;

/// Longest file without weights that is hashed when a bundle is opened.
const MAX_SMALL: u64 = 256 << 20;

impl Variant {
    /// All of its graphs.
    pub fn graphs(&self) -> impl Iterator<Item = &GraphEntry> {
        let further = self.further_encoders.iter().map(|encoder| &encoder.graph);
        let prefill = self.fixed.iter().flat_map(|fixed| &fixed.prefill);
        [&self.vision_encoder, &self.embed_tokens, &self.decoder]
            .into_iter()
            .chain(further)
            .chain(prefill.map(|prefill| &prefill.graph))
    }
}

impl Bundle {
    /// The entries of the files that hold weights; they are hashed when somebody asks.
    pub fn weights(&self) -> impl Iterator<Item = &FileEntry> {
        let graphs = self.variants.iter().flat_map(Variant::graphs);
        let mut paths: BTreeSet<&str> = graphs.flat_map(|graph| &graph.data).map(String::as_str).collect();
        paths.extend(self.packages.iter().map(|one| one.embedding.path.as_str()));
        self.files.iter().filter(move |file| {
            let in_package = in_packages(&self.packages, &file.path);
            paths.contains(file.path.as_str()) || (in_package && file.path.ends_with("/weight.bin"))
        })
    }

    /// The entries of the files that are hashed whenever the bundle is opened: all but weights, the tokenizer,
    /// and what a form is run by.
    pub(super) fn small_files(&self) -> impl Iterator<Item = &FileEntry> {
        let mut later: BTreeSet<&str> = self.weights().map(|file| file.path.as_str()).collect();
        let graphs = self.variants.iter().flat_map(Variant::graphs);
        later.extend(graphs.map(|graph| graph.path.as_str()));
        later.insert(self.prompt.tokenizer.as_str());
        // Those of forms that this build does not know are none of its business either.
        let unknown = !self.unknown.is_empty();
        self.files.iter().filter(move |file| {
            let of_form = unknown && (file.path.starts_with("onnx/") || file.path.starts_with("coreml/"));
            !later.contains(file.path.as_str()) && !in_packages(&self.packages, &file.path) && !of_form
        })
    }

    /// Reads some files of the bundle in `directory` and compares their SHA-256 with the contract.
    ///
    /// # Errors
    /// All files whose contents are not those of the contract, that cannot be read, or that it does not list.
    pub fn verify_files<'p>(
        &self,
        directory: &Path,
        paths: impl IntoIterator<Item = &'p str>,
    ) -> Result<(), BundleError> {
        let mut problems = Vec::new();
        for path in paths {
            match self.files.iter().find(|file| file.path == path) {
                Some(file) => problems.extend(self.problem(file, directory, &|_| ())),
                None => problems.push(format!("`{path}` is not listed in `files`")),
            }
        }
        all_well(directory, problems)
    }

    /// The contents of a file of the bundle in `directory`, compared with the contract as
    /// [`Bundle::verify_files`] does: what was hashed is what is returned, and nothing is read twice.
    ///
    /// # Errors
    /// A file whose contents are not those of the contract, that cannot be read, or that it does not list.
    pub fn read_file(&self, directory: &Path, path: &str) -> Result<Vec<u8>, BundleError> {
        let entry = self.files.iter().find(|file| file.path == path);
        let read = match entry {
            Some(entry) => entry.contents(directory),
            None => Err(format!("`{path}` is not listed in `files`")),
        };
        read.map_err(|problem| BundleError::Broken {
            path: directory.to_owned(),
            problems: vec![problem],
        })
    }

    /// Reads the package at `path` but its weights, and compares as [`Bundle::verify_files`] does.
    ///
    /// # Errors
    /// As [`Bundle::verify_files`].
    pub fn verify_package(&self, directory: &Path, path: &str) -> Result<(), BundleError> {
        let weights: BTreeSet<&str> = self.weights().map(|file| file.path.as_str()).collect();
        let files = self.files.iter().map(|file| file.path.as_str());
        let parts = files.filter(|file| is_inside(file, path) && !weights.contains(file));
        self.verify_files(directory, parts)
    }

    /// Reads every file of the bundle in `directory`, weights too, and compares its SHA-256 with the contract:
    /// as many files at once as there are processors. `progress` is told of bytes read, from several threads.
    ///
    /// # Errors
    /// All files whose contents are not those of the contract, or that cannot be read.
    pub fn verify(&self, directory: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<(), BundleError> {
        // The longest first, so that no thread is left with it at the end.
        let mut entries: Vec<&FileEntry> = self.files.iter().collect();
        entries.sort_by_key(|file| std::cmp::Reverse(file.bytes));
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let next = AtomicUsize::new(0);
        let problems = Mutex::new(Vec::new());
        let work = || {
            while let Some(file) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(problem) = self.problem(file, directory, progress) {
                    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                    problems.push(problem);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(entries.len()) {
                // Fewer threads than wished for are slower, not wrong.
                let thread = std::thread::Builder::new().name("verify".to_owned());
                if thread.spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let mut problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.sort();
        all_well(directory, problems)
    }

    /// Compares the checkpoint in a directory with what [`Bundle::source`] and [`Bundle::adapters`] say that the bundle was
    /// exported from.
    ///
    /// # Errors
    /// All files whose contents are not those that were exported, or that are not there; adapters.
    pub fn verify_source(&self, checkpoint: &Path) -> Result<(), BundleError> {
        let mut problems = Vec::new();
        for file in &self.source {
            if super::inside(&file.path).is_some() {
                problems.extend(problem(file, checkpoint, &|_| ()));
            } else {
                problems.push(format!("`{}` is not a plain relative path", file.path));
            }
        }
        for adapter in &self.adapters {
            problems.push(format!(
                "adapter `{}` is merged into the bundle's weights, expected those of the checkpoint alone",
                adapter.name
            ));
        }
        all_well(checkpoint, problems)
    }

    /// What is wrong with a file, if anything is: with its contents, or, of a graph, with the files that it reads.
    fn problem(&self, file: &FileEntry, directory: &Path, progress: &dyn Fn(u64)) -> Option<String> {
        let wrong = problem(file, directory, progress);
        let mut graphs = self.variants.iter().flat_map(Variant::graphs);
        wrong.or_else(|| {
            let graph = graphs.find(|graph| graph.path == file.path)?;
            super::reads::problem(graph, directory)
        })
    }

    /// Hashes the small files, and compares what they say with the contract.
    pub(super) fn verify_small(&self, directory: &Path) -> Result<(), BundleError> {
        let mut problems = Vec::new();
        // What is compared is what was hashed.
        let mut compared = BTreeMap::new();
        for file in self.small_files() {
            let path = file.path.as_str();
            if file.bytes > MAX_SMALL {
                let bytes = file.bytes;
                problems.push(format!(
                    "`{path}` has {bytes} bytes and no weights, expected at most {MAX_SMALL}"
                ));
            } else if super::agree::FILES.contains(&path) {
                match file.contents(directory) {
                    Ok(bytes) => drop(compared.insert(path, bytes)),
                    Err(problem) => problems.push(problem),
                }
            } else {
                problems.extend(problem(file, directory, &|_| ()));
            }
        }
        if problems.is_empty() {
            self.check_agreement(&compared, &mut problems);
        }
        all_well(directory, problems)
    }
}

fn in_packages(packages: &[CoreMlPackages], path: &str) -> bool {
    let mut directories = packages.iter().flat_map(CoreMlPackages::directories);
    directories.any(|directory| is_inside(path, directory))
}

fn is_inside(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn all_well(directory: &Path, problems: Vec<String>) -> Result<(), BundleError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(BundleError::Broken {
        path: directory.to_owned(),
        problems,
    })
}

impl FileEntry {
    /// The entry of the file at `path` of `directory`, as it is now.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(directory: &Path, path: &str) -> io::Result<FileEntry> {
        let (bytes, sha256) = hash(&directory.join(path), &|_| ())?;
        Ok(FileEntry {
            path: path.to_owned(),
            bytes,
            sha256,
        })
    }

    /// The contents of the file, if they are those of the entry; otherwise what is wrong with them.
    fn contents(&self, directory: &Path) -> Result<Vec<u8>, String> {
        let FileEntry { path, bytes, sha256 } = self;
        let contents = crate::regular::bytes(&directory.join(path), *bytes);
        let contents = contents.map_err(|error| format!("`{path}`: {error}"))?;
        let length = u64::try_from(contents.len()).unwrap_or(u64::MAX);
        if length != *bytes {
            return Err(format!("`{path}` has {length} bytes, expected {bytes}"));
        }
        let found = hex(&Sha256::digest(&contents));
        if found != *sha256 {
            return Err(format!("`{path}` has SHA-256 {found}, expected {sha256}"));
        }
        Ok(contents)
    }
}

/// What is wrong with a file, if anything is.
fn problem(entry: &FileEntry, directory: &Path, progress: &dyn Fn(u64)) -> Option<String> {
    let FileEntry { path, bytes, sha256 } = entry;
    match hash(&directory.join(path), progress) {
        Ok((found, _)) if found != *bytes => Some(format!("`{path}` has {found} bytes, expected {bytes}")),
        Ok((_, found)) if found != *sha256 => {
            Some(format!("`{path}` has SHA-256 {found}, expected {sha256}"))
        }
        Ok(_) => None,
        Err(error) => Some(format!("`{path}`: {error}")),
    }
}

/// Length and SHA-256 of a file.
fn hash(path: &Path, progress: &dyn Fn(u64)) -> io::Result<(u64, String)> {
    let mut file = crate::regular::open(path)?;
    // A small file is read at once, into no more than it needs.
    let length = file.metadata().map_or(0, |found| found.len());
    let length = usize::try_from(length).unwrap_or(BLOCK).saturating_add(1);
    let mut block = vec![0; length.clamp(1, BLOCK)];
    let mut hash = Sha256::new();
    let mut bytes = 0_u64;
    loop {
        let count = match file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(block.get(..count).unwrap_or_default());
        let count = u64::try_from(count).unwrap_or(0);
        bytes = bytes.saturating_add(count);
        progress(count);
    }
    Ok((bytes, hex(&hash.finalize())))
}
