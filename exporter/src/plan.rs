//! What exactly will be exported? Everything decided, nothing optional left.

use crate::error::ExportError;
use models::arch::fused::Encodings;
pub use models::bundle::{Precision, Target};
use models::checkpoint::Layout;
use models::config::{DecoderConfig, ModelConfig};
use models::dtype::DType;
use models::fused::{Encoding, TableEncoding};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An export, ready to be carried out by [`crate::export`].
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPlan {
    /// Where the checkpoint comes from.
    pub source: Source,
    /// Fine-tunes to merge into the checkpoint's weights.
    pub adapters: Vec<AdapterSource>,
    /// The bundle's directory.
    pub output: PathBuf,
    /// What the bundle will hold, in this order, each once.
    pub variants: Vec<Variant>,
    /// Sides of square images, in pixels, that every variant gets an image encoder for beside the model's own size.
    pub image_sizes: Vec<u64>,
    /// Whether every graph has all its weights in a data file of its own, as browsers need, and not once for all graphs
    /// that read them.
    pub self_contained: bool,
    /// Whether every graph has all its weights inside its `.onnx` file, and no data file.
    pub weights_inside: bool,
    /// Slots of the cache of target `coreml` and of Core ML packages; without, [`ExportPlan::MAX_CONTEXT`], or the model's context if that is shorter.
    pub max_context: Option<u64>,
    /// New positions that prefill is compiled for, in target `coreml` and in Core ML packages, any order; without, [`ExportPlan::PREFILL`], each cut to the cache.
    pub prefill: Vec<u64>,
    /// Precisions of Core ML packages, each once.
    pub packages: Vec<Precision>,
    /// Whether there is a package of the encoder for iOS 16 and macOS 13 too.
    pub older_encoder: bool,
    /// Whether packages of the encoder are laid out for the Neural Engine.
    pub neural_engine: bool,
    /// Whether the bundle gets a model card, its README.md.
    pub card: bool,
    /// Whether the bundle gets a page, `index.html`, that runs it in a browser. A browser opens graphs that are self-contained, of
    /// target `portable` or of int8 and q4.
    pub page: bool,
    /// The checkpoint's layout, where it must not be detected.
    pub layout: Option<Layout>,
    /// A file of statistics of the checkpoint's activations, by which int8 and q4 graphs of target `cpu` are rounded.
    pub calibration: Option<PathBuf>,
    /// Whether an existing bundle is replaced. Anything else that exists is never touched.
    pub overwrite: bool,
    /// Account for everything but write nothing.
    pub dry_run: bool,
}

impl ExportPlan {
    /// Slots of a cache of fixed length unless something else is asked for.
    pub const MAX_CONTEXT: u64 = 1024;
    /// New positions that prefill of fixed lengths is compiled for unless something else is asked for: a follow-up question,
    /// and a question about one image of 256 tokens.
    pub const PREFILL: [u64; 2] = [64, 320];

    /// Whether there are decoders of fixed lengths, which [`ExportPlan::max_context`] and [`ExportPlan::prefill`] are about.
    pub fn has_fixed_lengths(&self) -> bool {
        let fixed = |variant: &Variant| variant.target() == Target::OrtCoreMl;
        !self.packages.is_empty() || self.variants.iter().any(fixed)
    }

    /// The lengths that the decoders of fixed lengths of a model have.
    ///
    /// # Errors
    /// Lengths that no such decoder has, where there is one.
    pub fn fixed_lengths(&self, decoder: &DecoderConfig) -> Result<FixedLengths, ExportError> {
        let largest = decoder.max_position_embeddings;
        let context = self.max_context.unwrap_or(Self::MAX_CONTEXT.min(largest));
        let prefill: BTreeSet<u64> = if self.prefill.is_empty() {
            Self::PREFILL.iter().map(|new| *new.min(&context)).collect()
        } else {
            self.prefill.iter().copied().collect()
        };
        let fit = (2..=largest).contains(&context) && prefill.iter().all(|new| (2..=context).contains(new));
        let prefill = prefill.into_iter().collect();
        if self.has_fixed_lengths() && !fit {
            return Err(ExportError::Lengths {
                context,
                prefill,
                largest,
            });
        }
        Ok(FixedLengths { context, prefill })
    }

    /// The model for each of the image sizes beside its own, ascending, each once.
    ///
    /// # Errors
    /// A size that the model cannot have.
    pub fn further_sizes(&self, config: &ModelConfig) -> Result<Vec<ModelConfig>, ExportError> {
        let own = config.vision.image_size;
        let further: BTreeSet<u64> = self
            .image_sizes
            .iter()
            .copied()
            .filter(|side| *side != own)
            .collect();
        let at_size = |asked| {
            let (multiple, largest) = config.image_sizes();
            config.at_image_size(asked).ok_or(ExportError::ImageSize {
                asked,
                multiple,
                largest,
            })
        };
        further.into_iter().map(at_size).collect()
    }

    /// What file names of a variant's graphs end with in this bundle: [`Variant::suffix`], but for graphs of target `cpu`
    /// beside portable ones of the same precision. The standard ones then have the ecosystem's name, by which other
    /// people's clients find them, and ours say `_cpu` first; whoever reads the contract finds both by their target.
    pub fn suffix(&self, variant: Variant) -> &'static str {
        let standard = Variant {
            target: Target::Portable,
            ..variant
        };
        let beside = variant.target == Target::Cpu && self.variants.contains(&standard);
        match variant.precision {
            Precision::Int8 if beside => "_cpu_int8",
            Precision::Q4 if beside => "_cpu_q4",
            _ => variant.suffix(),
        }
    }

    /// The default export of a model: portable, float32, layout detected, nothing replaced.
    pub fn new(source: Source, output: PathBuf) -> Self {
        ExportPlan {
            source,
            adapters: Vec::new(),
            output,
            variants: vec![Variant::PORTABLE],
            image_sizes: Vec::new(),
            self_contained: false,
            weights_inside: false,
            max_context: None,
            prefill: Vec::new(),
            packages: Vec::new(),
            older_encoder: false,
            neural_engine: false,
            card: false,
            page: false,
            layout: None,
            calibration: None,
            overwrite: false,
            dry_run: false,
        }
    }
}

/// The lengths of a model's decoders of fixed lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedLengths {
    /// Slots of the cache.
    pub context: u64,
    /// New positions of the prefill graphs, ascending, each at least 2 and at most `context`.
    pub prefill: Vec<u64>,
}

/// A fine-tune of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// Where it is.
    pub place: AdapterPlace,
    /// What it makes of the weights is multiplied by this.
    pub weight: f64,
}

/// Where a fine-tune comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterPlace {
    /// A directory of PEFT's or of LLaVA's training script, or a file of tensors.
    Path(PathBuf),
    /// A repository of the Hugging Face hub with the files of one. What the local cache lacks is downloaded, by an export only.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl AdapterPlace {
    /// The place that a name means: what exists is a directory or a file; `a/b` is a repository of the hub, `a/b@c` one at a
    /// revision.
    pub fn named(name: &str) -> AdapterPlace {
        match on_hub(name).filter(|_| !Path::new(name).exists()) {
            Some((id, revision)) => AdapterPlace::Hub { id, revision },
            None => AdapterPlace::Path(name.into()),
        }
    }
}

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory on this machine.
    Directory(PathBuf),
    /// The embedded demo model.
    Demo,
    /// The model that the plan's adapters say they were made from.
    OfAdapters,
    /// A model of the Hugging Face hub. What the local cache lacks is downloaded, by an export only.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl Source {
    /// The source that a name means: `demo` is the demo model (a directory of that name is `./demo`); what exists is a
    /// directory; `a/b` is a model of the hub.
    pub fn named(model: &str) -> Source {
        if model == "demo" {
            return Source::Demo;
        }
        let directory = || Source::Directory(PathBuf::from(model));
        if Path::new(model).exists() {
            return directory();
        }
        match on_hub(model) {
            Some((id, revision)) => Source::Hub { id, revision },
            None => directory(),
        }
    }
}

/// The id and the revision of what a name means on the hub: `a/b` is at `main`.
fn on_hub(name: &str) -> Option<(String, String)> {
    let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
    let word = |text: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && !text.starts_with('.') && text.chars().all(legal)
    };
    let (organisation, repository) = id.split_once('/')?;
    let legal = word(organisation) && word(repository) && revision.split('/').all(word);
    legal.then(|| (id.to_owned(), revision.to_owned()))
}

/// The precision that a target has unless another is asked for.
pub const fn usual_precision(target: Target) -> Precision {
    match target {
        Target::Portable | Target::Cpu => Precision::Fp32,
        Target::OrtCoreMl => Precision::Fp16,
    }
}

/// The targets that have a precision, the one that is taken unless another is asked for first.
pub const fn targets(precision: Precision) -> &'static [Target] {
    match precision {
        Precision::Fp32 => &[Target::Portable, Target::Cpu, Target::OrtCoreMl],
        Precision::Fp16 => &[Target::Portable, Target::OrtCoreMl],
        Precision::Int8 | Precision::Q4 => &[Target::Cpu, Target::Portable],
        Precision::Q8 | Precision::Q4F16 => &[Target::Portable],
    }
}

/// One form of the three networks: a target in a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    target: Target,
    precision: Precision,
}

impl Variant {
    /// The default: standard operators in float32.
    pub const PORTABLE: Variant = Variant {
        target: Target::Portable,
        precision: Precision::Fp32,
    };

    /// A target in a precision, if there is such a form.
    pub fn new(target: Target, precision: Precision) -> Option<Variant> {
        let variant = Variant { target, precision };
        targets(precision).contains(&target).then_some(variant)
    }

    /// For which engines.
    pub const fn target(self) -> Target {
        self.target
    }

    /// How weights are stored.
    pub const fn precision(self) -> Precision {
        self.precision
    }

    /// What file names of graphs end with, before the extension: the ecosystem's suffixes where it has one. See
    /// [`ExportPlan::suffix`] for variants beside each other.
    pub const fn suffix(self) -> &'static str {
        match (self.target, self.precision) {
            (Target::Portable, Precision::Fp32) => "",
            (Target::Cpu, Precision::Fp32) => "_cpu",
            (Target::OrtCoreMl, Precision::Fp16) => "_coreml_fp16",
            (Target::OrtCoreMl, _) => "_coreml",
            (_, Precision::Fp16) => "_fp16",
            (_, Precision::Int8) => "_int8",
            (_, Precision::Q8) => "_quantized",
            (_, Precision::Q4) => "_q4",
            (_, Precision::Q4F16) => "_q4f16",
        }
    }

    /// Element type of the KV cache's inputs and outputs.
    pub const fn kv_dtype(self) -> DType {
        match self.precision {
            Precision::Fp32 | Precision::Int8 | Precision::Q8 | Precision::Q4 => DType::Float32,
            Precision::Fp16 | Precision::Q4F16 => DType::Float16,
        }
    }

    /// How fused operators store their weights; `None` for networks of standard operators.
    pub const fn encodings(self) -> Option<Encodings> {
        let (vision, decoder, table) = match (self.target, self.precision) {
            (Target::Portable | Target::OrtCoreMl, _) => return None,
            (Target::Cpu, Precision::Fp32 | Precision::Fp16) => {
                (Encoding::Float32, Encoding::Float32, TableEncoding::Float32)
            }
            (Target::Cpu, Precision::Int8 | Precision::Q8) => {
                (Encoding::Int8, Encoding::Int8, TableEncoding::Bytes)
            }
            (Target::Cpu, Precision::Q4 | Precision::Q4F16) => {
                (Encoding::Int8, Encoding::Int4, TableEncoding::Planes)
            }
        };
        Some(Encodings {
            vision,
            decoder,
            table,
        })
    }

    /// How networks of standard operators store what they round; `None` where they round nothing.
    pub(crate) const fn storage(self) -> Option<Storage> {
        let (vision, decoder, table) = match (self.target, self.precision) {
            (Target::Cpu | Target::OrtCoreMl, _) | (_, Precision::Fp32 | Precision::Fp16) => return None,
            (Target::Portable, Precision::Int8) => (Stored::Outputs, Stored::Outputs, Stored::Outputs),
            (Target::Portable, Precision::Q8) => (Stored::Outputs, Stored::Blocks(8), Stored::Blocks(8)),
            (Target::Portable, Precision::Q4) => (Stored::Outputs, Stored::Blocks(4), Stored::Blocks(8)),
            (Target::Portable, Precision::Q4F16) => (Stored::Plain, Stored::Blocks(4), Stored::Blocks(8)),
        };
        Some(Storage {
            vision,
            decoder,
            table,
        })
    }
}

/// How the weights of products of standard operators are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// As numbers.
    Plain,
    /// Signed bytes with a scale for each output, which `DequantizeLinear` makes numbers of.
    Outputs,
    /// Codes of so many bits in blocks, for `MatMulNBits`; tables have 8.
    Blocks(u64),
}

/// The same, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Products of the image encoder and the projector.
    pub(crate) vision: Stored,
    /// Products of the decoder's layers.
    pub(crate) decoder: Stored,
    /// The embedding table and the head.
    pub(crate) table: Stored,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.target, self.precision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_graphs_have_the_name_that_the_ecosystem_gives() {
        let mut plan = ExportPlan::new(Source::Demo, "bundle".into());
        let of = |target, precision| Variant::new(target, precision).unwrap();
        let (ours, standard) = (
            of(Target::Cpu, Precision::Q4),
            of(Target::Portable, Precision::Q4),
        );
        for (variants, expected) in [
            (vec![ours], ["_q4", "_q4"]),
            (vec![ours, of(Target::Portable, Precision::Q8)], ["_q4", "_q4"]),
            (vec![ours, standard], ["_cpu_q4", "_q4"]),
            (vec![standard, ours], ["_cpu_q4", "_q4"]),
        ] {
            plan.variants = variants;
            assert_eq!([plan.suffix(ours), plan.suffix(standard)], expected);
        }
        let mut seen = std::collections::BTreeSet::new();
        plan.variants.clear();
        for precision in Precision::ALL {
            plan.variants
                .extend(targets(precision).iter().map(|target| of(*target, precision)));
        }
        for variant in &plan.variants {
            assert!(seen.insert(plan.suffix(*variant)), "{variant}");
        }
        assert_eq!(seen.len(), 11);
    }
}
