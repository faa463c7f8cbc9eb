//! Writing: a bundle beside its target, read back and compared, then published in one step.

use crate::clients::{card, genai, page};
use crate::contract::{self, Sources, contract};
use crate::error::ExportError;
use crate::files;
use crate::forms::{Forms, Opened};
use crate::hub;
use crate::mlpackage::{self, Packages};
use crate::onnx;
use crate::report::{Phase, Report};
use crate::staging::Staging;
use crate::summary::Summary;
use models::bundle::BundleError;
use models::bundle::{AdapterEntry, Bundle, FILE_NAME, FileEntry};
use models::checkpoint::{Adapter, Checkpoint, SourceFile};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Writes everything into a sibling directory, reads it back, and makes it the target. `base` is the model of the hub that is
/// exported.
///
/// # Errors
/// A target that may not be written, a system that refuses, or an interruption. Nothing that was written stays.
pub(crate) fn write(
    opened: &Opened<'_>,
    base: Option<&str>,
    summary: &Summary,
    forms: &Forms,
    report: &mut dyn Report,
) -> Result<Bundle, ExportError> {
    let plan = opened.plan;
    let staging = Staging::create(&plan.output, plan.overwrite)?;
    staging.check_space(summary.bytes)?;
    report.start(Phase::Write, forms.data_bytes());
    let stop = AtomicBool::new(false);
    let (written, hashed) = std::thread::scope(|scope| {
        // Beside the writing, so that a second core does it while the pages are in memory anyway.
        let thread = std::thread::Builder::new().name("hashing".to_owned());
        let hashing = thread.spawn_scoped(scope, || hash_sources(opened, &|| stop.load(Ordering::Relaxed)));
        let hashing = match hashing {
            Ok(hashing) => hashing,
            Err(error) => {
                let path = opened.checkpoint.path();
                let error = ExportError::io("start a thread to hash", path)(error);
                let nothing = Sources {
                    source: Vec::new(),
                    adapters: Vec::new(),
                };
                return (Err(error), Ok(nothing));
            }
        };
        let written = write_files(opened, forms, &staging, report);
        stop.store(written.is_err(), Ordering::Relaxed);
        while !hashing.is_finished() {
            if report.interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let panicked = |_| {
            Err(ExportError::Internal {
                what: "the hashing thread panicked".to_owned(),
            })
        };
        (written, hashing.join().unwrap_or_else(panicked))
    });
    let files = written?;
    check_unchanged(opened)?;
    let mut bundle = contract(opened, summary.model.clone(), forms, hashed?, files);
    if plan.card {
        let text = card::render(&bundle, base, &summary.files);
        let file = files::write(staging.path(), card::FILE_NAME, text.as_bytes())?;
        bundle.files.push(file);
        bundle.files.sort();
    }
    files::write(staging.path(), FILE_NAME, bundle.to_json().as_bytes())?;
    read_back(staging.path(), &bundle)?;
    if report.interrupted() {
        return Err(ExportError::Interrupted);
    }
    staging.publish()?;
    Ok(bundle)
}

fn write_files(
    opened: &Opened<'_>,
    forms: &Forms,
    staging: &Staging,
    report: &mut dyn Report,
) -> Result<Vec<FileEntry>, ExportError> {
    let mut files = Vec::new();
    for asset in &opened.assets.files {
        files.push(files::write(staging.path(), &asset.path, &asset.contents)?);
    }
    let decoder = &opened.weights.config().decoder;
    if let Some(text) = genai::config(decoder, &opened.assets.prompt, &contract::variants(opened, forms)) {
        files.push(files::write(staging.path(), genai::FILE_NAME, text.as_bytes())?);
    }
    let directory = staging.path().join(onnx::DIRECTORY);
    if !forms.variants.is_empty() {
        std::fs::create_dir(&directory).map_err(ExportError::io("create", &directory))?;
    }
    for variant in &forms.variants {
        let weights = opened.weights_of(variant.variant)?;
        for graph in variant.all() {
            let written = onnx::write(graph, &*weights, &variant.pool, &directory, report)?;
            files.extend(written.into_iter().map(|file| FileEntry {
                path: onnx::in_bundle(&file.path),
                ..file
            }));
        }
    }
    let directory = staging.path().join(mlpackage::DIRECTORY);
    for package in forms.packages.iter().flat_map(Packages::all) {
        let written = mlpackage::write(package, &opened.weights, &directory, report)?;
        files.extend(written.into_iter().map(|file| FileEntry {
            path: mlpackage::in_bundle(&file.path),
            ..file
        }));
    }
    if opened.plan.page {
        files.extend(page::write(staging.path())?);
    }
    files.sort();
    Ok(files)
}

/// The files that are read for weights, of the checkpoint and of adapters.
fn sources<'a>(checkpoint: &'a Checkpoint, adapters: &'a [Adapter]) -> impl Iterator<Item = &'a SourceFile> {
    let files = checkpoint.files().iter();
    files.chain(adapters.iter().flat_map(Adapter::files))
}

/// When a file was written last, and its length; `None` where the system does not say.
pub(crate) type Stamp = Option<(u64, SystemTime)>;

/// The stamps of what is read for weights: to be taken as soon as they are open.
pub(crate) fn stamps(checkpoint: &Checkpoint, adapters: &[Adapter]) -> Vec<Stamp> {
    let stamp = |file: &SourceFile| {
        let found = std::fs::metadata(&file.path).ok()?;
        Some((found.len(), found.modified().ok()?))
    };
    sources(checkpoint, adapters).map(stamp).collect()
}

/// Whether what was read, here and there at different times, is what was hashed.
///
/// # Errors
/// [`ExportError::SourceChanged`].
fn check_unchanged(opened: &Opened<'_>) -> Result<(), ExportError> {
    let (checkpoint, adapters) = (&opened.checkpoint, &opened.adapters);
    let after = stamps(checkpoint, adapters);
    let mut files = sources(checkpoint, adapters).zip(opened.stamps.iter().zip(&after));
    let changed = files.find(|(file, (before, after))| {
        before != after || after.is_some_and(|(length, _)| length != file.bytes)
    });
    match changed {
        None => Ok(()),
        Some((file, _)) => Err(ExportError::SourceChanged {
            path: file.path.clone(),
        }),
    }
}

fn hash_sources(opened: &Opened<'_>, stop: &dyn Fn() -> bool) -> Result<Sources, ExportError> {
    let adapters = opened.adapters.iter().map(|adapter| {
        Ok(AdapterEntry {
            name: adapter.name().to_owned(),
            weight: adapter.weight(),
            files: hash_files(adapter.files(), stop)?,
        })
    });
    Ok(Sources {
        adapters: adapters.collect::<Result<_, ExportError>>()?,
        source: hash_files(opened.checkpoint.files(), stop)?,
    })
}

fn hash_files(files: &[SourceFile], stop: &dyn Fn() -> bool) -> Result<Vec<FileEntry>, ExportError> {
    let mut entries = Vec::new();
    for file in files {
        let (bytes, sha256) = files::hash_file(&file.path, stop)?;
        hub::check_hash(&file.path, &sha256)?;
        let name = file
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        entries.push(FileEntry {
            path: name,
            bytes,
            sha256,
        });
    }
    entries.sort();
    Ok(entries)
}

/// What is written is what was meant: the contract as a reader reads and checks it, and every file but the data files
/// by its hash. Data files were hashed on their way out; their lengths are in the contract's check.
///
/// # Errors
/// A difference.
pub(crate) fn read_back(directory: &Path, bundle: &Bundle) -> Result<(), ExportError> {
    let mut found = Bundle::open(directory)?;
    if found != *bundle {
        let problem = format!("`{FILE_NAME}` reads differently from what was written");
        return Err(BundleError::Broken {
            path: directory.to_owned(),
            problems: vec![problem],
        }
        .into());
    }
    let data = |path: &str| path.ends_with(".onnx_data") || path.ends_with(mlpackage::WEIGHT_FILE);
    found.files.retain(|file| !data(&file.path));
    Ok(found.verify(directory, &|_| ())?)
}
