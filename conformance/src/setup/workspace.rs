//! What do cases work on? Checkpoints and bundles, made when they are first asked for, in a directory that goes away
//! with the run.

use crate::golden::{RecordedImage, Reference, Source};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::Deployed;
use crate::setup::subject::{Precision, Target, Variant};
use crate::synth;
use models::bundle::Bundle;
use models::checkpoint::SINGLE;
use runtime::image::Picture;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use tempfile::TempDir;

mod assets {
    include!(concat!(env!("OUT_DIR"), "/assets.rs"));
}

/// What suites run on beyond what they make themselves.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// A bundle to put to the test instead of those that references name.
    pub bundle: Option<PathBuf>,
    /// The checkpoint behind that bundle, for the interpreter; without a bundle, it is exported first.
    pub checkpoint: Option<PathBuf>,
    /// The forms to export; all where none is named.
    pub forms: Vec<Variant>,
}

/// Lazily made things.
#[derive(Debug)]
pub struct Workspace {
    root: TempDir,
    given: Given,
    made: Mutex<BTreeMap<String, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    lock: Mutex<()>,
    deployed: OnceLock<Arc<Deployed>>,
}

impl Workspace {
    /// An empty workspace in the system's temporary directory.
    ///
    /// # Errors
    /// No directory can be made there.
    pub fn new(given: Given) -> std::io::Result<Workspace> {
        let root = tempfile::Builder::new().prefix("fvlm-conform-").tempdir()?;
        Ok(Workspace {
            root,
            given,
            made: Mutex::default(),
        })
    }

    /// The directory that goes away with the workspace.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A new directory that goes away when it is dropped.
    ///
    /// # Errors
    /// A full disk.
    pub fn scratch(&self) -> Result<TempDir, CaseError> {
        TempDir::new_in(self.root.path()).during(|| "making a temporary directory".to_owned())
    }

    /// A file that is compiled in, by its path in the repository, as a file.
    ///
    /// # Errors
    /// No such file.
    pub fn asset(&self, path: &str) -> Result<PathBuf, CaseError> {
        let contents = asset(path).ok_or_else(|| CaseError::Failed {
            context: "looking for a file".to_owned(),
            message: format!("`{path}` is not part of this program"),
        })?;
        let target = self.root.path().join("repository").join(path);
        let slot = self.slot(path);
        let _guard = slot.lock.lock();
        if !target.exists() {
            let writing = || format!("writing `{path}`");
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).during(writing)?;
            }
            std::fs::write(&target, contents).during(writing)?;
        }
        Ok(target)
    }

    /// An image of a reference, which must be the one that was recorded.
    ///
    /// # Errors
    /// No such file, another file, or no image.
    pub fn picture(&self, reference: &Reference, image: &RecordedImage) -> Result<Picture, CaseError> {
        let failed = |message: String| CaseError::Failed {
            context: "opening an image of the reference".to_owned(),
            message,
        };
        let same = |name: &str, bytes: &[u8], expected: &str| {
            let found = hex(bytes);
            let problem = || failed(format!("`{name}` has SHA-256 {found}, recorded was {expected}"));
            if found == expected { Ok(()) } else { Err(problem()) }
        };
        match image {
            RecordedImage::Scene {
                width,
                height,
                seed,
                sha256,
            } => {
                let size = |edge: &usize| {
                    u32::try_from(*edge)
                        .ok()
                        .filter(|edge| (1..=MAX_EDGE).contains(edge))
                };
                let name = format!("scene {width} x {height}");
                let (Some(width), Some(height)) = (size(width), size(height)) else {
                    return Err(failed(format!("{name}: expected edges of 1 to {MAX_EDGE}")));
                };
                let pixels = synth::image::scene(width, height, *seed);
                same(&name, &pixels, sha256)?;
                Picture::new(width, height, pixels).ok_or_else(|| failed(format!("{name} has no pixels")))
            }
            RecordedImage::File { path, sha256 } => {
                let reading = || format!("reading image `{path}` of the reference");
                let bytes = match asset(path) {
                    Some(bytes) => bytes.to_vec(),
                    None => {
                        let path = find(path, &reference.directory);
                        models::regular::bytes(&path, u64::MAX).during(reading)?
                    }
                };
                same(path, &bytes, sha256)?;
                runtime::image::decode(&bytes, path, &runtime::image::Limits::default()).during(reading)
            }
        }
    }

    /// Whether a bundle was given to be put to the test.
    pub fn has_given_bundle(&self) -> bool {
        self.given.bundle.is_some()
    }

    /// For claims about models that we make ourselves.
    ///
    /// # Errors
    /// A skip where a bundle was given: they say nothing about it.
    pub fn require_ours(&self) -> Result<(), CaseError> {
        if self.has_given_bundle() {
            return Err(CaseError::Skip(
                "it says nothing about the given bundle".to_owned(),
            ));
        }
        Ok(())
    }

    /// The model that a reference was recorded with, exported as portable in every precision; or the bundle that was given.
    ///
    /// # Errors
    /// A checkpoint that cannot be made, or an export that fails.
    pub fn deployed(&self, source: &Source) -> Result<Arc<Deployed>, CaseError> {
        self.deployed_at(source, None, Target::Portable)
    }

    /// As [`Workspace::deployed`], for any target.
    ///
    /// # Errors
    /// As [`Workspace::deployed`].
    pub fn deployed_on(&self, source: &Source, target: Target) -> Result<Arc<Deployed>, CaseError> {
        self.deployed_at(source, None, target)
    }

    /// As [`Workspace::deployed`], for the images that a reference was recorded with and for any target.
    ///
    /// # Errors
    /// As [`Workspace::deployed`]; a skip where a bundle that was given has no encoder for their size.
    pub fn deployed_for(&self, reference: &Reference, target: Target) -> Result<Arc<Deployed>, CaseError> {
        self.deployed_at(&reference.checkpoint, reference.image_size, target)
    }

    fn deployed_at(
        &self,
        source: &Source,
        image_size: Option<u32>,
        target: Target,
    ) -> Result<Arc<Deployed>, CaseError> {
        // A bundle that was given has what it has.
        if target != Target::Portable && self.given.bundle.is_none() {
            return self.deployed_also(source, image_size, target);
        }
        let mut key = match source {
            Source::Directory { path, .. } => path.clone(),
            other => format!("{other:?}"),
        };
        if let Some(side) = image_size {
            key.push_str(&format!(" at {side}"));
        }
        let slot = self.slot(&key);
        // A panic in another case does not spoil what this one makes itself.
        let _guard = slot.lock.lock();
        let deployed = match slot.deployed.get() {
            Some(deployed) => Arc::clone(deployed),
            None => {
                let deployed = Arc::new(match (&self.given.bundle, &self.given.checkpoint) {
                    (Some(bundle), checkpoint) => Deployed::open(bundle, checkpoint.as_deref(), image_size)?,
                    (None, Some(checkpoint)) => {
                        let bundle = self.scratch()?.keep().join("bundle");
                        self.deploy_directory(checkpoint, &bundle, image_size, Target::Portable)?;
                        Deployed::open(&bundle, Some(checkpoint), image_size)?
                    }
                    (None, None) => self.deploy(source, image_size)?,
                });
                Arc::clone(slot.deployed.get_or_init(|| deployed))
            }
        };
        check_weights(source, &deployed.bundle)?;
        Ok(deployed)
    }

    /// The embedded demo model.
    ///
    /// # Errors
    /// An export that fails.
    pub fn demo(&self) -> Result<Arc<Deployed>, CaseError> {
        self.deployed(&Source::Directory {
            path: DEMO.to_owned(),
            sha256: None,
        })
    }

    fn deploy(&self, source: &Source, image_size: Option<u32>) -> Result<Deployed, CaseError> {
        let directory = self.scratch()?.keep();
        let checkpoint = directory.join("checkpoint");
        match source {
            Source::Synth {
                size,
                layout,
                dtype,
                seed,
                outliers,
                tokenizer: None,
            } => {
                let options = synth_options(size, layout, dtype, *seed, *outliers, &checkpoint)?;
                synth::write(&options, &mut |_, _| ControlFlow::Continue(()))
                    .during(|| "writing a synthetic checkpoint".to_owned())?;
            }
            Source::Synth {
                tokenizer: Some(tokenizer),
                ..
            } => {
                return Err(CaseError::Skip(format!(
                    "the reference needs the tokenizer {tokenizer}"
                )));
            }
            Source::Directory { path, .. } if path == DEMO => {
                let writing = || "writing the demo checkpoint".to_owned();
                std::fs::create_dir(&checkpoint).during(writing)?;
                exporter::demo::extract(&checkpoint).during(writing)?;
            }
            Source::Directory { path, .. } => {
                return Err(CaseError::Skip(format!("the checkpoint `{path}` is not here")));
            }
            Source::External { id } => {
                return Err(CaseError::Skip(format!(
                    "the reference is of `{id}`: give its bundle with --bundle"
                )));
            }
        }
        let bundle = directory.join("bundle");
        self.deploy_directory(&checkpoint, &bundle, image_size, Target::Portable)?;
        Deployed::open(&bundle, Some(&checkpoint), image_size)
    }

    /// The same weights for another target, in a bundle of its own: who looks at portable graphs does not wait for it.
    fn deployed_also(
        &self,
        source: &Source,
        image_size: Option<u32>,
        target: Target,
    ) -> Result<Arc<Deployed>, CaseError> {
        let portable = self.deployed_at(source, image_size, Target::Portable)?;
        let slot = self.slot(&format!("{} for {}", portable.directory.display(), target.name()));
        let _guard = slot.lock.lock();
        if let Some(deployed) = slot.deployed.get() {
            return Ok(Arc::clone(deployed));
        }
        let Some(checkpoint) = &portable.checkpoint else {
            return Err(CaseError::Skip(
                "the checkpoint behind the bundle is not here".to_owned(),
            ));
        };
        let bundle = self.scratch()?.keep().join("bundle");
        self.deploy_directory(checkpoint, &bundle, image_size, target)?;
        let deployed = Arc::new(Deployed::open(&bundle, None, image_size)?);
        Ok(Arc::clone(slot.deployed.get_or_init(|| deployed)))
    }

    /// Exports a checkpoint for a target, in every precision that was asked for.
    fn deploy_directory(
        &self,
        checkpoint: &Path,
        bundle: &Path,
        image_size: Option<u32>,
        target: Target,
    ) -> Result<(), CaseError> {
        let of_target = |form: &Variant| form.target() == target;
        let mut forms: Vec<Variant> = self.given.forms.iter().copied().filter(of_target).collect();
        if forms.is_empty() {
            let all = Precision::ALL.into_iter();
            forms = all
                .filter_map(|precision| Variant::new(target, precision))
                .collect();
            // Of what was not asked for, the contract is needed and no more.
            forms.truncate(if self.given.forms.is_empty() {
                forms.len()
            } else {
                1
            });
        }
        export_sizes(checkpoint, bundle, &forms, image_size)
    }

    fn slot(&self, key: &str) -> Arc<Slot> {
        let mut made = self
            .made
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(made.entry(key.to_owned()).or_default())
    }
}

/// Where the demo checkpoint lies in the repository.
const DEMO: &str = "models/demo/checkpoint";

/// Longest edge of a scene: a reference is a file, and files lie.
const MAX_EDGE: u32 = 8192;

/// A file that a reference names: as the recorder wrote it, relative to where it ran; or beside the reference.
fn find(path: &str, reference: &Path) -> PathBuf {
    let named = Path::new(path);
    let beside = [
        reference.join(named),
        reference.join(named.file_name().unwrap_or_default()),
    ];
    let found = beside.into_iter().find(|path| !named.exists() && path.is_file());
    found.unwrap_or_else(|| named.to_owned())
}

/// Whether a bundle is of the weights that a source names.
fn check_weights(source: &Source, bundle: &Bundle) -> Result<(), CaseError> {
    let Source::Directory {
        path,
        sha256: Some(expected),
    } = source
    else {
        return Ok(());
    };
    if let Some(adapter) = bundle.adapters.first() {
        return Err(CaseError::Failed {
            context: format!("comparing with a reference of `{path}`"),
            message: format!("adapter `{}` is merged into the bundle's weights", adapter.name),
        });
    }
    let found = bundle
        .source
        .iter()
        .find(|file| file.path == SINGLE)
        .map(|file| &file.sha256);
    match found {
        Some(found) if found != expected => Err(CaseError::Failed {
            context: format!("comparing with a reference of `{path}`"),
            message: format!("`{SINGLE}` has SHA-256 {found}, the reference was recorded with {expected}"),
        }),
        _ => Ok(()),
    }
}

/// SHA-256 in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Exports a checkpoint directory in portable form.
///
/// # Errors
/// What the exporter says.
pub fn export(checkpoint: &Path, bundle: &Path, precisions: &[Precision]) -> Result<(), CaseError> {
    let forms = precisions
        .iter()
        .map(|&precision| Variant::new(Target::Portable, precision));
    export_sizes(checkpoint, bundle, &forms.flatten().collect::<Vec<_>>(), None)
}

/// Exports a checkpoint directory in forms, with an encoder for another image size where one is named.
fn export_sizes(
    checkpoint: &Path,
    bundle: &Path,
    forms: &[Variant],
    image_size: Option<u32>,
) -> Result<(), CaseError> {
    let mut plan = exporter::ExportPlan::new(
        exporter::Source::Directory(checkpoint.to_owned()),
        bundle.to_owned(),
    );
    plan.variants = forms.to_vec();
    plan.image_sizes = image_size.map(u64::from).into_iter().collect();
    exporter::export(&plan, &mut exporter::report::Silent).during(|| "exporting".to_owned())?;
    Ok(())
}

/// The generator's options for what a reference says about its checkpoint.
///
/// # Errors
/// A word that the generator does not know.
pub fn synth_options(
    size: &str,
    layout: &str,
    dtype: &str,
    seed: u64,
    outliers: bool,
    output: &Path,
) -> Result<synth::Options, CaseError> {
    fn word<T: clap::ValueEnum>(kind: &str, word: &str) -> Result<T, CaseError> {
        T::from_str(word, false).map_err(|_| CaseError::Failed {
            context: "reading a reference".to_owned(),
            message: format!("unknown {kind} `{word}`"),
        })
    }
    Ok(synth::Options {
        size: word("size", size)?,
        layout: word("layout", layout)?,
        dtype: word("dtype", dtype)?,
        seed,
        outliers,
        shard_bytes: synth::DEFAULT_SHARD_BYTES,
        tokenizer: None,
        output: output.to_owned(),
    })
}

/// A small synthetic model.
pub fn small(layout: &str, seed: u64) -> Source {
    Source::Synth {
        size: "demo".to_owned(),
        layout: layout.to_owned(),
        dtype: "fp32".to_owned(),
        seed,
        outliers: false,
        tokenizer: None,
    }
}

/// Contents of a compiled-in file.
pub fn asset(path: &str) -> Option<&'static [u8]> {
    let place = assets::ASSETS
        .binary_search_by_key(&path, |(name, _)| name)
        .ok()?;
    Some(assets::ASSETS[place].1)
}

/// The recorded references that are compiled in, in order of their names.
///
/// # Errors
/// One that is not what its schema says, which is a mistake in the repository.
pub fn references() -> Result<Vec<Arc<Reference>>, crate::golden::ReferenceError> {
    let mut references = Vec::new();
    for (path, contents) in assets::ASSETS {
        let Some(name) = path
            .strip_prefix("conformance/golden/")
            .and_then(|name| name.strip_suffix(".json"))
        else {
            continue;
        };
        // Check values for real weights, and of the tokenizer alone, have other forms.
        if matches!(name, "published" | "qwen2-text") {
            continue;
        }
        let tensors = asset(&format!("conformance/golden/{name}.safetensors")).unwrap_or_default();
        references.push(Arc::new(Reference::parse(Path::new(path), contents, tensors)?));
    }
    Ok(references)
}
