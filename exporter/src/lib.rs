#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod clients;
pub mod demo;
mod error;
pub mod files;
mod hub;
pub mod mlpackage;
pub mod onnx;
pub mod ort_coreml;
pub mod passes;
pub mod plan;
pub mod report;
mod source;
mod summary;

pub use error::{ExportError, HubProblem};
pub use plan::{ExportPlan, Precision, Source, Target, Variant};
pub use report::{Phase, Report, Silent};
pub use summary::{FileOrigin, FileSummary, GraphSummary, PackageSummary, Summary, VariantSummary};

use files::Staging;
use mlpackage::Packages;
use models::arch::fixed::{self, Lengths};
use models::arch::{self, Network};
use models::bundle::{
    self, Bundle, CoreMlPackages, EmbeddingRows, FILE_NAME, FileEntry, FixedDecoder, GraphEntry, ImageSpec,
    Io, IoDim, KvSpec, ModelInfo, Parameters, Prefill, SCHEMA, SizedEncoder,
};
use models::checkpoint::{self, Accounting, Assets, Canonical, Checkpoint};
use models::config::ModelConfig;
use models::error::BundleError;
use models::graph::{Graph, GraphError};
use models::weights::Weights;
use onnx::Prepared;
use onnx::external::Pool;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The directory of the graphs inside a bundle.
const ONNX: &str = "onnx";

/// The directory of Core ML packages inside a bundle.
const COREML: &str = "coreml";

/// Carries out an export: a bundle appears at the plan's output, whole, or nothing does.
///
/// # Errors
/// A checkpoint that is not a FastVLM, a target that may not be written, or a system that refuses. Nothing that was
/// written stays.
pub fn export(plan: &ExportPlan, report: &mut dyn Report) -> Result<Summary, ExportError> {
    if !plan.dry_run {
        files::check_target(&plan.output, plan.overwrite)?;
    }
    let source = source::resolve(&plan.source, !plan.dry_run, report)?;
    let mut opened = Opened::open(source.directory(), plan)?;
    let mut variants = Vec::with_capacity(plan.variants.len());
    for &variant in &plan.variants {
        variants.push(Lowered::new(&opened, variant)?);
    }
    let info = opened.info(source.name);
    let mut packages = Vec::with_capacity(plan.packages.len());
    for &precision in &plan.packages {
        packages.push(opened.packages(precision, plan, &info.name)?);
    }
    let forms = Forms { variants, packages };
    opened.announce(&forms)?;
    let mut summary = Summary::new(&opened, info, &forms);
    summary.warnings.extend(source.warnings);
    summary.warnings.extend(opened.assets.warnings.iter().cloned());
    if plan.dry_run {
        return Ok(summary);
    }
    let bundle = write(plan, &opened, &summary, &forms, report)?;
    summary.output = Some(plan.output.clone());
    summary.bytes = bundle.files.iter().map(|file| file.bytes).sum();
    let not_finite = opened.weights.non_finite();
    if !not_finite.is_empty() {
        let names: Vec<String> = not_finite.iter().map(|name| format!("`{name}`")).collect();
        summary.warnings.push(format!(
            "NaN or infinite values in {}: answers cannot be right",
            names.join(", ")
        ));
    }
    Ok(summary)
}

/// The graphs of a plan as stable text, passes included: what `--dump` prints.
///
/// # Errors
/// As [`export`], as far as it reads.
pub fn dump(plan: &ExportPlan) -> Result<String, ExportError> {
    let source = source::resolve(&plan.source, false, &mut Silent)?;
    let opened = Opened::open(source.directory(), plan)?;
    let mut text = String::new();
    for &variant in &plan.variants {
        let graphs = opened.graphs(variant)?.into_iter();
        let further = opened
            .prefill(variant)?
            .into_iter()
            .chain(opened.further_encoders(variant)?);
        for graph in graphs.chain(further) {
            text.push_str(&passes::run(graph, variant)?.to_string());
        }
    }
    Ok(text)
}

/// What ONNX Runtime's CoreML execution provider would do with the graphs of a plan; the token embedding of target
/// `coreml` is left out, which is looked up outside. `fixed` as in [`ort_coreml::check`].
///
/// # Errors
/// As [`export`], as far as it reads.
pub fn check_coreml(plan: &ExportPlan, fixed: bool) -> Result<Vec<ort_coreml::Verdict>, ExportError> {
    let source = source::resolve(&plan.source, false, &mut Silent)?;
    let opened = Opened::open(source.directory(), plan)?;
    let mut verdicts = Vec::new();
    for &variant in &plan.variants {
        verdicts.extend(Lowered::prepare(&opened, variant)?.verdicts(&opened, fixed)?);
    }
    Ok(verdicts)
}

/// A checkpoint, understood.
struct Opened {
    checkpoint: Checkpoint,
    weights: Canonical,
    accounting: Accounting,
    assets: Assets,
    /// The same model for further image sizes, ascending.
    further: Vec<ModelConfig>,
    /// Slots of a cache of fixed length.
    context: u64,
    /// New positions of prefill graphs of fixed length, ascending.
    prefill: Vec<u64>,
    /// Whether graphs share no weights.
    self_contained: bool,
}

impl Opened {
    fn open(directory: &Path, plan: &ExportPlan) -> Result<Self, ExportError> {
        let checkpoint = Checkpoint::open(directory)?;
        let (weights, accounting) = checkpoint::canonical(&checkpoint, plan.layout)?;
        let assets = checkpoint::assets(&checkpoint, weights.config())?;
        let further = further_sizes(weights.config(), &plan.image_sizes)?;
        let context = plan
            .max_context
            .min(weights.config().decoder.max_position_embeddings);
        let prefill: BTreeSet<u64> = plan.prefill.iter().map(|new| *new.min(&context)).collect();
        if plan.has_fixed_lengths() && (context == 0 || prefill.iter().any(|new| *new < 2)) {
            return Err(ExportError::Lengths {
                context: plan.max_context,
                prefill: plan.prefill.clone(),
            });
        }
        Ok(Opened {
            checkpoint,
            weights,
            accounting,
            assets,
            further,
            context,
            prefill: prefill.into_iter().collect(),
            self_contained: plan.self_contained,
        })
    }

    /// The networks of a variant before the passes, in the order of [`Network::ALL`].
    fn graphs(&self, variant: Variant) -> Result<[Graph; 3], ExportError> {
        let config = self.weights.config();
        let [vision_encoder, embed_tokens, decoder] =
            Network::ALL.map(|network| build(network, config, variant, self.context));
        Ok([vision_encoder?, embed_tokens?, decoder?])
    }

    /// The decoder for several new positions, where lengths are fixed.
    fn prefill(&self, variant: Variant) -> Result<Vec<Graph>, ExportError> {
        if variant.target() != Target::OrtCoreMl {
            return Ok(Vec::new());
        }
        let context = self.context;
        let graph = |&new| fixed::decoder(self.weights.config(), Lengths { context, new });
        Ok(self.prefill.iter().map(graph).collect::<Result<_, _>>()?)
    }

    /// The vision encoders of a variant for further image sizes, before the passes; `vision_encoder_512`.
    fn further_encoders(&self, variant: Variant) -> Result<Vec<Graph>, ExportError> {
        let encoder = |config: &ModelConfig| {
            let mut graph = build(Network::VisionEncoder, config, variant, self.context)?;
            graph.name = format!("{}_{}", graph.name, config.vision.image_size);
            Ok(graph)
        };
        self.further.iter().map(encoder).collect()
    }

    /// The networks in Core ML's own form.
    fn packages(&self, precision: Precision, plan: &ExportPlan, name: &str) -> Result<Packages, ExportError> {
        mlpackage::prepare(mlpackage::Recipe {
            config: self.weights.config(),
            precision,
            context: self.context,
            prefill: &self.prefill,
            older: plan.older_encoder,
            neural_engine: plan.neural_engine,
            name,
        })
    }

    /// Says in the small files which forms there are.
    fn announce(&mut self, forms: &Forms) -> Result<(), ExportError> {
        let entries = variant_entries(self, forms);
        let variants: Vec<_> = entries.iter().zip(&forms.variants).collect();
        clients::announce(&mut self.assets, &variants)
    }

    fn info(&self, name: String) -> ModelInfo {
        ModelInfo {
            name,
            layout: self.weights.layout().name().to_owned(),
            stored: self.checkpoint.stored(),
            parameters: parameters(&self.weights),
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

/// The model for each of the sizes beside its own, ascending, each once.
fn further_sizes(config: &ModelConfig, sizes: &[u64]) -> Result<Vec<ModelConfig>, ExportError> {
    let own = config.vision.image_size;
    let further: BTreeSet<u64> = sizes.iter().copied().filter(|side| *side != own).collect();
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

/// The networks in one form, each weight with its place.
struct Lowered {
    variant: Variant,
    /// In the order of [`Network::ALL`].
    graphs: [Prepared; 3],
    /// Decoders for several new positions, in the order of [`Opened::prefill`].
    prefill: Vec<Prepared>,
    /// Vision encoders for further image sizes, in the order of [`Opened::further`].
    further: Vec<Prepared>,
    /// Its own, so that each variant is complete without the others.
    pool: Pool,
}

impl Lowered {
    /// What is written: of target `coreml` only what Core ML would take whole.
    fn new(opened: &Opened, variant: Variant) -> Result<Self, ExportError> {
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
    fn verdicts(&self, opened: &Opened, fixed: bool) -> Result<Vec<ort_coreml::Verdict>, ExportError> {
        let [_, embed_tokens, _] = &self.graphs;
        let outside = (self.variant.target() == Target::OrtCoreMl).then_some(&embed_tokens.file_name);
        let given = self.all().filter(|graph| Some(&graph.file_name) != outside);
        let verdict = |graph: &Prepared| {
            let model = onnx::described(graph, &opened.weights, &self.pool)?;
            Ok(ort_coreml::check(&model, &in_onnx(&graph.file_name), fixed))
        };
        given.map(verdict).collect()
    }

    fn prepare(opened: &Opened, variant: Variant) -> Result<Self, ExportError> {
        let [vision_encoder, embed_tokens, decoder] = opened.graphs(variant)?;
        let mut pool = if opened.self_contained {
            Pool::self_contained()
        } else {
            Pool::default()
        };
        let mut prepare = |graph: Graph| onnx::prepare(graph, variant, &mut pool);
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
    fn all(&self) -> impl Iterator<Item = &Prepared> {
        self.graphs.iter().chain(&self.prefill).chain(&self.further)
    }

    fn data_bytes(&self) -> u64 {
        self.all().map(|graph| graph.data.length).sum()
    }
}

/// Everything that a plan asks for, ready to be written.
struct Forms {
    variants: Vec<Lowered>,
    packages: Vec<Packages>,
}

impl Forms {
    fn data_bytes(&self) -> u64 {
        let graphs: u64 = self.variants.iter().map(Lowered::data_bytes).sum();
        let packages = self.packages.iter().flat_map(Packages::all);
        graphs + packages.map(|package| package.data.length).sum::<u64>()
    }
}

/// Writes everything into a sibling directory, reads it back, and makes it the target.
fn write(
    plan: &ExportPlan,
    opened: &Opened,
    summary: &Summary,
    forms: &Forms,
    report: &mut dyn Report,
) -> Result<Bundle, ExportError> {
    let staging = Staging::create(&plan.output, plan.overwrite)?;
    staging.check_space(summary.bytes)?;
    report.start(Phase::Write, forms.data_bytes());

    let stop = AtomicBool::new(false);
    let (written, hashed) = std::thread::scope(|scope| {
        // Beside the writing, so that a second core does it while the pages are in memory anyway.
        let hashing = scope.spawn(|| hash_source(&opened.checkpoint, &|| stop.load(Ordering::Relaxed)));
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
    let mut bundle = contract(opened, summary, forms, hashed?, files);
    if plan.card {
        let base = match &plan.source {
            Source::Hub { id, .. } => Some(id.as_str()),
            Source::Directory(_) | Source::Demo => None,
        };
        let text = clients::card::render(&bundle, base, &summary.files);
        let file = files::write(staging.path(), clients::card::FILE_NAME, text.as_bytes())?;
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
    opened: &Opened,
    forms: &Forms,
    staging: &Staging,
    report: &mut dyn Report,
) -> Result<Vec<FileEntry>, ExportError> {
    let mut files = Vec::new();
    for asset in &opened.assets.files {
        files.push(files::write(staging.path(), &asset.path, &asset.contents)?);
    }
    let decoder = &opened.weights.config().decoder;
    if let Some(text) = clients::genai(decoder, &opened.assets.prompt, &variant_entries(opened, forms)) {
        files.push(files::write(staging.path(), clients::GENAI, text.as_bytes())?);
    }
    let directory = staging.path().join(ONNX);
    if !forms.variants.is_empty() {
        std::fs::create_dir(&directory).map_err(ExportError::io("create", &directory))?;
    }
    for variant in &forms.variants {
        for graph in variant.all() {
            let written = onnx::write(graph, &opened.weights, &variant.pool, &directory, report)?;
            files.extend(written.into_iter().map(|file| FileEntry {
                path: in_onnx(&file.path),
                ..file
            }));
        }
    }
    let directory = staging.path().join(COREML);
    for package in forms.packages.iter().flat_map(Packages::all) {
        let written = mlpackage::write(package, &opened.weights, &directory, report)?;
        files.extend(written.into_iter().map(|file| FileEntry {
            path: in_coreml(&file.path),
            ..file
        }));
    }
    files.sort();
    Ok(files)
}

fn hash_source(checkpoint: &Checkpoint, stop: &dyn Fn() -> bool) -> Result<Vec<FileEntry>, ExportError> {
    let mut entries = Vec::new();
    for file in checkpoint.files() {
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
fn read_back(directory: &Path, bundle: &Bundle) -> Result<(), ExportError> {
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
    Ok(found.verify_hashes(directory, &mut |_| {})?)
}

fn contract(
    opened: &Opened,
    summary: &Summary,
    forms: &Forms,
    source: Vec<FileEntry>,
    files: Vec<FileEntry>,
) -> Bundle {
    let decoder = &opened.weights.config().decoder;
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Bundle {
        schema: SCHEMA,
        tool: concat!("fvlm-export ", env!("CARGO_PKG_VERSION")).to_owned(),
        model: summary.model.clone(),
        source,
        kv: KvSpec {
            layers: whole(decoder.layers),
            kv_heads: whole(decoder.kv_heads),
            head_dim: whole(decoder.head_dim),
            max_context: whole(decoder.max_position_embeddings),
        },
        image: opened.assets.image.clone(),
        prompt: opened.assets.prompt.clone(),
        variants: variant_entries(opened, forms),
        packages: forms
            .packages
            .iter()
            .map(|packages| packages_entry(opened, packages))
            .collect(),
        files,
        unknown: Vec::new(),
    }
}

/// The entries of all variants in the contract.
fn variant_entries(opened: &Opened, forms: &Forms) -> Vec<bundle::Variant> {
    let variants = forms.variants.iter();
    variants.map(|lowered| variant_entry(opened, lowered)).collect()
}

fn variant_entry(opened: &Opened, lowered: &Lowered) -> bundle::Variant {
    let [vision_encoder, embed_tokens, decoder] = lowered.graphs.each_ref().map(graph_entry);
    let image = &opened.assets.image;
    let sized = opened.further.iter().zip(&lowered.further);
    let further_encoders = sized.map(|(config, graph)| sized_encoder(image, config, graph));
    bundle::Variant {
        target: lowered.variant.target(),
        precision: lowered.variant.precision(),
        opset: models::graph::OPSET,
        kv_dtype: lowered.variant.kv_dtype(),
        vision_encoder,
        further_encoders: further_encoders.collect(),
        embed_tokens,
        decoder,
        fixed: (lowered.variant.target() == Target::OrtCoreMl).then(|| fixed_decoder(opened, lowered)),
    }
}

fn packages_entry(opened: &Opened, packages: &Packages) -> CoreMlPackages {
    let whole = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    let name = |package: &mlpackage::Package| in_coreml(&package.file_name);
    CoreMlPackages {
        precision: packages.precision,
        vision_encoder: name(&packages.vision_encoder),
        decoder: name(&packages.decoder),
        vision_encoder_ios16: packages.vision_encoder_ios16.as_ref().map(name),
        context: whole(opened.context),
        prefill: opened.prefill.iter().map(|new| whole(*new)).collect(),
        embedding: EmbeddingRows {
            path: in_coreml(&packages.embedding.path),
            ..packages.embedding.clone()
        },
    }
}

fn fixed_decoder(opened: &Opened, lowered: &Lowered) -> FixedDecoder {
    let whole = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    let graphs = opened.prefill.iter().zip(&lowered.prefill);
    FixedDecoder {
        context: whole(opened.context),
        prefill: graphs
            .map(|(new, graph)| Prefill {
                new: whole(*new),
                graph: graph_entry(graph),
            })
            .collect(),
    }
}

/// The entry of an encoder for another image size: the resize keeps its relation to the crop.
fn sized_encoder(image: &ImageSpec, config: &ModelConfig, graph: &Prepared) -> SizedEncoder {
    let side = config.vision.image_size;
    let own = u64::from(image.height).max(1);
    let edge = (u64::from(image.shortest_edge) * side + own / 2) / own;
    let pixels = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
    SizedEncoder {
        height: pixels(side),
        width: pixels(side),
        shortest_edge: pixels(edge),
        tokens: usize::try_from(config.image_tokens()).unwrap_or(usize::MAX),
        graph: graph_entry(graph),
    }
}

/// A graph's entry in the contract, from the graph that is written.
fn graph_entry(graph: &Prepared) -> GraphEntry {
    let list = |ids: &[models::graph::ValueId]| -> Vec<Io> {
        ids.iter()
            .map(|id| {
                let value = graph.graph.value(*id);
                let dims = value.shape.iter().map(|dim| match dim.fixed() {
                    Some(length) => IoDim::Fixed(length),
                    None => IoDim::Symbol(dim.to_string()),
                });
                Io {
                    name: value.name.clone(),
                    dtype: value.dtype,
                    dims: dims.collect(),
                }
            })
            .collect()
    };
    GraphEntry {
        path: in_onnx(&graph.file_name),
        data: graph.reads.iter().map(|name| in_onnx(name)).collect(),
        inputs: list(&graph.graph.inputs),
        outputs: list(&graph.graph.outputs),
    }
}

fn in_onnx(name: &str) -> String {
    format!("{ONNX}/{name}")
}

fn in_coreml(name: &str) -> String {
    format!("{COREML}/{name}")
}

/// Elements of the canonical weights, by network.
fn parameters(weights: &Canonical) -> Parameters {
    let mut counts = Parameters {
        vision: 0,
        projector: 0,
        embed: 0,
        decoder: 0,
    };
    for spec in weights.specs() {
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
