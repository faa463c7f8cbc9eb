//! Forms: a checkpoint that is understood, and its networks as a plan asks for them, every weight with its place.

use crate::calibration::Calibration;
use crate::error::ExportError;
use crate::mlpackage::{self, Packages};
use crate::onnx::external::Pool;
use crate::onnx::{self, Prepared};
use crate::ort_coreml;
use crate::plan::{ExportPlan, FixedLengths, Precision, Target, Variant};
use crate::write::{self, Stamp};
use models::arch::fixed::{self, Lengths};
use models::arch::{self, Network};
use models::bundle::{ModelInfo, Parameters};
use models::checkpoint::{self, Accounting, Adapter, Assets, Canonical, Checkpoint};
use models::config::ModelConfig;
use models::graph::{Graph, GraphError};
use models::weights::{WeightSpec, Weights};
use std::path::Path;
use std::sync::Arc;

/// A checkpoint, understood.
pub(crate) struct Opened<'a> {
    /// What is asked for.
    pub(crate) plan: &'a ExportPlan,
    pub(crate) checkpoint: Checkpoint,
    /// What is merged into its weights.
    pub(crate) adapters: Arc<[Adapter]>,
    pub(crate) weights: Canonical,
    pub(crate) accounting: Accounting,
    pub(crate) assets: Assets,
    /// Statistics of its activations, where the plan has some.
    calibration: Option<Calibration>,
    /// The same model for further image sizes, ascending.
    pub(crate) further: Vec<ModelConfig>,
    /// Those of the plan, as far as the model goes.
    pub(crate) lengths: FixedLengths,
    /// Of the files that are read for weights, as they were opened.
    pub(crate) stamps: Vec<Stamp>,
}

impl<'a> Opened<'a> {
    pub(crate) fn open(
        directory: &Path,
        plan: &'a ExportPlan,
        adapters: Arc<[Adapter]>,
    ) -> Result<Self, ExportError> {
        let mut checkpoint = Checkpoint::open(directory)?;
        let stamps = write::stamps(&checkpoint, &adapters);
        let beside = checkpoint.adapt(&adapters)?;
        let (weights, mut accounting) =
            checkpoint::canonical_with(&checkpoint, plan.layout, Arc::clone(&adapters))?;
        accounting.warnings.extend(beside);
        let assets = checkpoint::assets(&checkpoint, weights.config())?;
        let calibration = match &plan.calibration {
            Some(path) => Some(Calibration::open(path, &checkpoint, &weights)?),
            None => None,
        };
        if calibration.is_some() && !adapters.is_empty() {
            let warning = "the statistics are of the model without its adapters: by them the merged weights \
                are rounded, as well as the activations stay alike";
            accounting.warnings.push(warning.to_owned());
        }
        let further = plan.further_sizes(weights.config())?;
        let lengths = plan.fixed_lengths(&weights.config().decoder)?;
        Ok(Opened {
            plan,
            checkpoint,
            adapters,
            weights,
            accounting,
            assets,
            calibration,
            further,
            lengths,
            stamps,
        })
    }

    /// The weights that a variant is written from: where it rounds them and there are statistics, with those.
    ///
    /// # Errors
    /// Weights that can no longer be read.
    pub(crate) fn weights_of(&self, variant: Variant) -> Result<Box<dyn Weights + '_>, ExportError> {
        let rounds = matches!(variant.precision(), Precision::Int8 | Precision::Q4);
        match (&self.calibration, variant.encodings().filter(|_| rounds)) {
            (Some(calibration), Some(encodings)) => Ok(Box::new(calibration.over(&self.weights, encodings)?)),
            _ => Ok(Box::new(&self.weights)),
        }
    }

    /// The networks of a variant before the passes, in the order of [`Network::ALL`].
    pub(crate) fn graphs(&self, variant: Variant) -> Result<[Graph; 3], ExportError> {
        let config = self.weights.config();
        let [vision_encoder, embed_tokens, decoder] =
            Network::ALL.map(|network| build(network, config, variant, self.lengths.context));
        Ok([vision_encoder?, embed_tokens?, decoder?])
    }

    /// The decoder for several new positions, where lengths are fixed.
    pub(crate) fn prefill(&self, variant: Variant) -> Result<Vec<Graph>, ExportError> {
        if variant.target() != Target::OrtCoreMl {
            return Ok(Vec::new());
        }
        let context = self.lengths.context;
        let graph = |&new| fixed::decoder(self.weights.config(), Lengths { context, new });
        Ok(self.lengths.prefill.iter().map(graph).collect::<Result<_, _>>()?)
    }

    /// The vision encoders of a variant for further image sizes, before the passes; `vision_encoder_512`.
    pub(crate) fn further_encoders(&self, variant: Variant) -> Result<Vec<Graph>, ExportError> {
        let encoder = |config: &ModelConfig| {
            let mut graph = build(Network::VisionEncoder, config, variant, self.lengths.context)?;
            graph.name = format!("{}_{}", graph.name, config.vision.image_size);
            Ok(graph)
        };
        self.further.iter().map(encoder).collect()
    }

    /// The networks in Core ML's own form.
    pub(crate) fn packages(&self, precision: Precision, name: &str) -> Result<Packages, ExportError> {
        mlpackage::prepare(mlpackage::Recipe {
            config: self.weights.config(),
            precision,
            context: self.lengths.context,
            prefill: &self.lengths.prefill,
            older: self.plan.older_encoder,
            neural_engine: self.plan.neural_engine,
            name,
        })
    }

    /// What is exported; `name` is the checkpoint's, to which those of adapters are added.
    pub(crate) fn info(&self, name: String) -> ModelInfo {
        let adapters = self.adapters.iter().map(Adapter::name);
        let name = adapters.fold(name, |name, adapter| format!("{name}+{adapter}"));
        ModelInfo {
            name,
            // What a reader makes of it is about the config; one that was forced is about names of tensors.
            layout: if self.weights.layout().dialect() == self.checkpoint.dialect() {
                self.weights.layout().name().to_owned()
            } else {
                self.checkpoint.dialect().name().to_owned()
            },
            stored: self.checkpoint.stored(),
            parameters: parameters(self.weights.specs()),
            license: self.assets.license.clone(),
        }
    }
}

/// A network's graph before the passes; the decoder of fixed lengths for one new position.
fn build(
    network: Network,
    config: &ModelConfig,
    variant: Variant,
    context: u64,
) -> Result<Graph, GraphError> {
    match (variant.target(), variant.encodings()) {
        (Target::OrtCoreMl, _) => match network {
            Network::VisionEncoder => fixed::vision_encoder(config),
            Network::EmbedTokens => fixed::embed_tokens(config),
            Network::Decoder => fixed::decoder(config, Lengths { context, new: 1 }),
        },
        (_, None) => arch::build(network, config),
        (_, Some(encodings)) => arch::fused::build(network, config, encodings),
    }
}

/// The networks in one form, each weight with its place.
pub(crate) struct Lowered {
    pub(crate) variant: Variant,
    /// In the order of [`Network::ALL`].
    pub(crate) graphs: [Prepared; 3],
    /// Decoders for several new positions, in the order of the plan's lengths.
    pub(crate) prefill: Vec<Prepared>,
    /// Vision encoders for further image sizes, in the order of [`Opened::further`].
    pub(crate) further: Vec<Prepared>,
    /// Its own, so that each variant is complete without the others.
    pub(crate) pool: Pool,
}

impl Lowered {
    /// What is written: of target `coreml` only what Core ML would take whole.
    pub(crate) fn new(opened: &Opened<'_>, variant: Variant) -> Result<Self, ExportError> {
        let lowered = Lowered::prepare(opened, variant)?;
        if variant.target() == Target::OrtCoreMl {
            let verdicts = lowered.verdicts(opened, true)?;
            let broken = verdicts.iter().filter(|verdict| !verdict.whole());
            let broken: Vec<String> = broken.map(ort_coreml::Verdict::to_string).collect();
            if !broken.is_empty() {
                return Err(ExportError::NotWhole { verdicts: broken });
            }
        }
        Ok(lowered)
    }

    /// What Core ML would do with each graph that it is given.
    pub(crate) fn verdicts(
        &self,
        opened: &Opened<'_>,
        fixed: bool,
    ) -> Result<Vec<ort_coreml::Verdict>, ExportError> {
        let [_, embed_tokens, _] = &self.graphs;
        let outside = (self.variant.target() == Target::OrtCoreMl).then_some(&embed_tokens.file_name);
        let given = self.all().filter(|graph| Some(&graph.file_name) != outside);
        let verdict = |graph: &Prepared| {
            let model = onnx::described(graph, &opened.weights, &self.pool)?;
            Ok(ort_coreml::check(
                &model,
                &onnx::in_bundle(&graph.file_name),
                fixed,
            ))
        };
        given.map(verdict).collect()
    }

    pub(crate) fn prepare(opened: &Opened<'_>, variant: Variant) -> Result<Self, ExportError> {
        let [vision_encoder, embed_tokens, decoder] = opened.graphs(variant)?;
        let mut pool = match (opened.plan.weights_inside, opened.plan.self_contained) {
            (true, _) => Pool::inside(),
            (false, true) => Pool::self_contained(),
            (false, false) => Pool::default(),
        };
        let suffix = opened.plan.suffix(variant);
        let mut prepare = |graph: Graph| onnx::prepare(graph, variant, suffix, &mut pool);
        // The order decides which data file holds a weight that two graphs read: a tied table lies with the embedding.
        let graphs = [
            prepare(vision_encoder)?,
            prepare(embed_tokens)?,
            prepare(decoder)?,
        ];
        let prefill = opened.prefill(variant)?.into_iter();
        let prefill = prefill.map(&mut prepare).collect::<Result<_, _>>()?;
        let further = opened.further_encoders(variant)?;
        let further = further.into_iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Lowered {
            variant,
            graphs,
            prefill,
            further,
            pool,
        })
    }

    /// All graphs, in the order in which they are written.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Prepared> {
        self.graphs.iter().chain(&self.prefill).chain(&self.further)
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.all().map(|graph| graph.data.length).sum()
    }
}

/// Everything that a plan asks for, ready to be written.
pub(crate) struct Forms {
    pub(crate) variants: Vec<Lowered>,
    pub(crate) packages: Vec<Packages>,
}

impl Forms {
    /// Builds, rewrites and lowers what the plan asks for; `name` is the model's, for people.
    ///
    /// # Errors
    /// A geometry that has no such form.
    pub(crate) fn new(opened: &Opened<'_>, name: &str) -> Result<Self, ExportError> {
        let variants = opened.plan.variants.iter();
        let packages = opened.plan.packages.iter();
        Ok(Forms {
            variants: variants
                .map(|variant| Lowered::new(opened, *variant))
                .collect::<Result<_, _>>()?,
            packages: packages
                .map(|precision| opened.packages(*precision, name))
                .collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        let graphs: u64 = self.variants.iter().map(Lowered::data_bytes).sum();
        let packages = self.packages.iter().flat_map(Packages::all);
        graphs + packages.map(|package| package.data.length).sum::<u64>()
    }
}

/// Elements of the canonical weights, by network.
pub(crate) fn parameters(specs: &[WeightSpec]) -> Parameters {
    let mut counts = Parameters {
        vision: 0,
        projector: 0,
        embed: 0,
        decoder: 0,
    };
    for spec in specs {
        let count: u64 = spec.shape.iter().product();
        let place = if spec.name.starts_with("vision_tower.") {
            &mut counts.vision
        } else if spec.name.starts_with("multi_modal_projector.") {
            &mut counts.projector
        } else if spec.name.starts_with("language_model.embed_tokens.") {
            &mut counts.embed
        } else {
            &mut counts.decoder
        };
        *place += count;
    }
    counts
}
