//! Adopting: a bundle of graphs that another program exported, in the layout of transformers.js.
//!
//! Graphs and data files are copied as they are; a link would change with the file that it leads to, and a bundle is what
//! its hashes say. What is written new is the contract, and the small files as every bundle has them. Each graph is
//! looked at without its weights ([`scan`]), its inputs and outputs get the roles that the contract has ([`ports`]), and
//! what it states is compared with `config.json` before anything is written (`models::bundle`, `adopted.rs`).

mod copy;
mod found;
mod ports;
mod scan;
mod wire;

use crate::error::ExportError;
use crate::files;
use crate::forms::parameters;
use crate::hub;
use crate::onnx;
use crate::report::{Phase, Report};
use crate::staging::Staging;
use crate::summary::{GraphSummary, Summary, VariantSummary, file};
use crate::{clients, target, trial, write};
use found::{Found, Inside};
use models::arch::{self, Network};
use models::bundle::{
    Bundle, FILE_NAME, FileEntry, GraphEntry, KvSpec, ModelInfo, Precision, SCHEMA, Target, Variant,
};
use models::checkpoint::{self, Accounting, Assets, SMALL_FILES};
use models::config::ModelConfig;
use models::dtype::DType;
use ports::Ports;
use scan::Scanned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is adopted.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptPlan {
    /// The directory with `config.json`, the tokenizer's and the processor's files, and `onnx/`.
    pub directory: PathBuf,
    /// The bundle's directory.
    pub output: PathBuf,
    /// The precisions; every complete one where none is named.
    pub precisions: Vec<Precision>,
    /// Whether an existing bundle is replaced. Anything else that exists is never touched.
    pub overwrite: bool,
    /// Look at everything but write nothing.
    pub dry_run: bool,
}

/// Layout of what was adopted, in the contract.
const LAYOUT: &str = "onnx";

/// Writes the bundle of a directory with another program's graphs: whole, or nothing.
///
/// # Errors
/// A directory without such graphs, one that contradicts itself, a target that may not be written, or a system that
/// refuses. Nothing that was written stays, and nothing in the directory is touched.
pub fn adopt(plan: &AdoptPlan, report: &mut dyn Report) -> Result<Summary, ExportError> {
    if !plan.dry_run {
        target::look(&plan.output, plan.overwrite)?;
    }
    if plan.directory.join(models::bundle::FILE_NAME).is_file() {
        return Err(ExportError::NoGraphs {
            path: plan.directory.clone(),
            problem: "it is a bundle already, which `fvlm-run --model` takes as it is".to_owned(),
        });
    }
    let mut source = Source::open(&plan.directory)?;
    let mut chosen = source.choose(&plan.precisions)?;
    let mut bundle = source.contract()?;
    let mut warnings = std::mem::take(&mut chosen.left_out);
    let mut adopted = Vec::new();
    let mut first = None;
    for precision in &chosen.precisions {
        match source.variant(&bundle, *precision) {
            Ok(variant) => adopted.push(variant),
            // Who names a precision wants that one.
            Err(error) if !error.is_unfit() || !plan.precisions.is_empty() => return Err(error),
            Err(error) => {
                warnings.push(format!("precision {precision} is left out: {error}"));
                first.get_or_insert(error);
            }
        }
    }
    if let (true, Some(error)) = (adopted.is_empty(), first) {
        return Err(error);
    }
    for one in &adopted {
        warnings.extend(one.notes.iter().cloned());
    }
    bundle.model.stored = stored(&adopted);
    bundle.variants = adopted.iter().map(|one| one.variant.clone()).collect();
    clients::transformers_js::announce(&mut source.assets, &bundle.variants)?;
    let mut summary = source.summary(&bundle, &adopted, warnings);
    if plan.dry_run {
        return Ok(summary);
    }
    let bundle = source.write(plan, bundle, &adopted, report)?;
    summary.output = Some(plan.output.clone());
    summary.output_hex = models::plain::hex_of_odd(plan.output.as_os_str());
    summary.bytes = bundle.files.iter().map(|file| file.bytes).sum();
    Ok(summary)
}

/// A directory with another program's graphs, understood but for the graphs.
struct Source {
    directory: PathBuf,
    name: String,
    inside: Inside,
    config: ModelConfig,
    assets: Assets,
    found: Found,
}

/// The precisions that are looked at.
struct Chosen {
    precisions: Vec<Precision>,
    /// What is not, one sentence each.
    left_out: Vec<String>,
}

/// A precision that fits.
struct Adopted {
    variant: Variant,
    /// In the order of [`Network::ALL`].
    scans: Vec<Scanned>,
    /// Files that the graphs are and read, relative to the directory, each once, with their lengths.
    files: BTreeMap<String, u64>,
    /// What the user should know.
    notes: Vec<String>,
}

impl Source {
    fn open(directory: &Path) -> Result<Source, ExportError> {
        let inside = Inside::of(directory)?;
        for name in SMALL_FILES {
            inside.check(name)?;
        }
        let found = found::look(directory)?;
        let (config, mut assets) = checkpoint::assets_of_graphs(directory)?;
        for asset in &assets.files {
            inside.check(&asset.path)?;
        }
        trial::settle_content(directory, &mut assets)?;
        let whole = directory
            .canonicalize()
            .map_err(ExportError::io("resolve", directory))?;
        Ok(Source {
            directory: directory.to_owned(),
            name: name_of(&whole),
            inside,
            config,
            assets,
            found,
        })
    }

    /// The precisions to adopt, of those that are asked for.
    fn choose(&self, asked: &[Precision]) -> Result<Chosen, ExportError> {
        let Found {
            complete,
            lacking,
            others,
        } = &self.found;
        let in_folder = |files: &[String]| -> String {
            let files: Vec<String> = files
                .iter()
                .map(|file| format!("`{}`", onnx::in_bundle(file)))
                .collect();
            files.join(" and ")
        };
        let no_graphs = |problem: String| ExportError::NoGraphs {
            path: self.directory.clone(),
            problem,
        };
        for precision in asked {
            if let Some(files) = lacking.get(precision) {
                let files = in_folder(files);
                return Err(no_graphs(format!(
                    "has not all of precision {precision}: {files} is missing"
                )));
            }
            if !complete.contains(precision) {
                let all = Network::ALL.map(|network| found::file_name(network, *precision));
                let found: Vec<&str> = complete.iter().map(|one| one.name()).collect();
                return Err(no_graphs(format!(
                    "has no precision {precision}: expected {}, found precisions: {}",
                    in_folder(&all),
                    if found.is_empty() {
                        "none".to_owned()
                    } else {
                        found.join(", ")
                    }
                )));
            }
        }
        let mut left_out: Vec<String> = lacking
            .iter()
            .filter(|_| asked.is_empty())
            .map(|(precision, files)| {
                format!(
                    "precision {precision} is left out: {} is missing",
                    in_folder(files)
                )
            })
            .collect();
        if !others.is_empty() && asked.is_empty() {
            let files = in_folder(others);
            left_out.push(format!(
                "left out, as graphs of no network or precision that is known here: {files}"
            ));
        }
        let precisions = if asked.is_empty() { complete } else { asked };
        let mut once: Vec<Precision> = Vec::new();
        for precision in precisions {
            if !once.contains(precision) {
                once.push(*precision);
            }
        }
        if once.is_empty() {
            let all = Network::ALL.map(|network| found::file_name(network, Precision::Fp32));
            let first = left_out
                .first()
                .map_or(String::new(), |first| format!("; {first}"));
            let expected = in_folder(&all);
            return Err(no_graphs(format!(
                "has no precision with all three graphs, such as {expected}{first}"
            )));
        }
        Ok(Chosen {
            precisions: once,
            left_out,
        })
    }

    /// The contract, still without graphs and files.
    fn contract(&self) -> Result<Bundle, ExportError> {
        let decoder = &self.config.decoder;
        let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Bundle {
            schema: SCHEMA,
            tool: concat!("fvlm-export ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: ModelInfo {
                name: self.name.clone(),
                layout: LAYOUT.to_owned(),
                stored: DType::Float32,
                parameters: parameters(&arch::specs(&self.config)?),
                license: self.assets.license.clone(),
            },
            source: Vec::new(),
            adapters: Vec::new(),
            kv: KvSpec {
                layers: whole(decoder.layers),
                kv_heads: whole(decoder.kv_heads),
                head_dim: whole(decoder.head_dim),
                max_context: whole(decoder.max_position_embeddings),
            },
            image: self.assets.image.clone(),
            prompt: self.assets.prompt.clone(),
            variants: Vec::new(),
            packages: Vec::new(),
            files: Vec::new(),
            unknown: Vec::new(),
        })
    }

    /// The graphs of a precision, each checked against the contract.
    fn variant(&self, bundle: &Bundle, precision: Precision) -> Result<Adopted, ExportError> {
        let (mut entries, mut scans) = (Vec::new(), Vec::new());
        let (mut files, mut notes) = (BTreeMap::new(), Vec::new());
        for network in Network::ALL {
            let path = onnx::in_bundle(&found::file_name(network, precision));
            self.inside.check(&path)?;
            let file = self.directory.join(&path);
            files.insert(path.clone(), length(&file)?);
            let scanned = scan::scan(&file)?;
            let unfit = |problems| ExportError::Unfit {
                path: file.clone(),
                problems,
            };
            check_operators(&scanned).map_err(|problem| unfit(vec![problem]))?;
            let data = self.data_files(&file, &scanned)?;
            let mut ports = ports::ports(network, &scanned, &bundle.kv).map_err(unfit)?;
            let (tokens, prompt) = (bundle.image.tokens, &bundle.prompt);
            ports::state_lengths(&mut ports, tokens, prompt.hidden_size, prompt.vocab_size);
            if !ports.unused.is_empty() {
                let unused: Vec<String> = ports.unused.iter().map(|name| format!("`{name}`")).collect();
                let unused = unused.join(", ");
                notes.push(format!("`{path}` computes {unused}, which nothing here needs"));
            }
            entries.push(entry(path, &data, ports));
            files.extend(data);
            scans.push(scanned);
        }
        let Ok([vision_encoder, embed_tokens, decoder]) = <[GraphEntry; 3]>::try_from(entries) else {
            let what = "three networks have not three graphs".to_owned();
            return Err(ExportError::Internal { what });
        };
        let cache = decoder
            .adopted
            .as_ref()
            .map(|adopted| adopted.name("past_key_values.0.key"));
        let cache = decoder.inputs.iter().find(|io| Some(io.name.as_str()) == cache);
        let opset = scans.last().and_then(|scanned| scanned.opsets.get("")).copied();
        let variant = Variant {
            target: Target::Portable,
            precision,
            opset: opset.unwrap_or(0),
            kv_dtype: cache.map_or(DType::Float32, |io| io.dtype),
            vision_encoder,
            further_encoders: Vec::new(),
            embed_tokens,
            decoder,
            fixed: None,
        };
        let problems = bundle.adopted_problems(&variant);
        if !problems.is_empty() {
            return Err(self.unfit(&variant, problems));
        }
        Ok(Adopted {
            variant,
            scans,
            files,
            notes,
        })
    }

    /// The error of a variant with such problems: about the first graph that has some.
    fn unfit(&self, variant: &Variant, problems: Vec<String>) -> ExportError {
        let of_graph = variant.graphs().find_map(|graph| {
            let name = format!("`{}` ", graph.path);
            let own = problems.iter().filter_map(|problem| problem.strip_prefix(&name));
            let own: Vec<String> = own.map(str::to_owned).collect();
            (!own.is_empty()).then(|| (self.directory.join(&graph.path), own))
        });
        let (path, problems) = of_graph.unwrap_or_else(|| (self.directory.clone(), problems));
        ExportError::Unfit { path, problems }
    }

    /// The data files of a graph, relative to the directory, with their lengths: there, and as long as it says.
    fn data_files(&self, graph: &Path, scanned: &Scanned) -> Result<BTreeMap<String, u64>, ExportError> {
        let mut data = BTreeMap::new();
        for (location, (tensor, end)) in &scanned.data {
            let path = onnx::in_bundle(location);
            self.inside.check(&path)?;
            let unfit = |found: String| ExportError::Unfit {
                path: graph.to_owned(),
                problems: vec![format!(
                    "has tensor `{tensor}` in `{path}`, {found}, expected a file of at least {end} bytes"
                )],
            };
            match std::fs::metadata(self.directory.join(&path)) {
                Ok(file) if !file.is_file() => return Err(unfit("which is no file".to_owned())),
                Ok(file) if file.len() < *end => {
                    return Err(unfit(format!("which has {} bytes", file.len())));
                }
                Ok(file) => {
                    data.insert(path, file.len());
                }
                Err(error) => return Err(unfit(format!("which cannot be read ({error})"))),
            }
        }
        Ok(data)
    }

    fn summary(&self, bundle: &Bundle, adopted: &[Adopted], warnings: Vec<String>) -> Summary {
        let mut files: BTreeMap<&String, u64> = BTreeMap::new();
        files.extend(
            adopted
                .iter()
                .flat_map(|one| one.files.iter().map(|(path, bytes)| (path, *bytes))),
        );
        let small: usize = self.assets.files.iter().map(|asset| asset.contents.len()).sum();
        Summary {
            output: None,
            output_hex: None,
            bytes: files.values().sum::<u64>() + u64::try_from(small).unwrap_or(u64::MAX),
            model: bundle.model.clone(),
            variants: adopted.iter().map(variant_summary).collect(),
            packages: Vec::new(),
            files: self.assets.files.iter().map(file).collect(),
            accounting: Accounting::default(),
            warnings: warnings
                .into_iter()
                .chain(self.assets.warnings.iter().cloned())
                .collect(),
        }
    }

    /// Copies everything into a sibling of the target, reads it back, and makes it the target.
    fn write(
        &self,
        plan: &AdoptPlan,
        mut bundle: Bundle,
        adopted: &[Adopted],
        report: &mut dyn Report,
    ) -> Result<Bundle, ExportError> {
        let graphs: BTreeMap<&String, &u64> = adopted.iter().flat_map(|one| &one.files).collect();
        let staging = Staging::create(&plan.output, plan.overwrite)?;
        let bytes: u64 = graphs.values().copied().sum();
        staging.check_space(bytes)?;
        report.start(Phase::Write, bytes);
        let folder = staging.path().join(onnx::DIRECTORY);
        std::fs::create_dir(&folder).map_err(ExportError::io("create", &folder))?;
        for (path, bytes) in graphs {
            let entry = copy::copy(&self.directory, staging.path(), (path.as_str(), *bytes), report)?;
            // Of a snapshot in the hub's cache: damage there must not become a bundle that is whole.
            hub::check_hash(&self.directory.join(path), &entry.sha256)?;
            bundle.source.push(entry.clone());
            bundle.files.push(entry);
        }
        for asset in &self.assets.files {
            bundle
                .files
                .push(files::write(staging.path(), &asset.path, &asset.contents)?);
        }
        for name in SMALL_FILES
            .into_iter()
            .filter(|name| self.directory.join(name).exists())
        {
            let path = self.directory.join(name);
            bundle
                .source
                .push(FileEntry::of(&self.directory, name).map_err(ExportError::io("read", &path))?);
        }
        bundle.source.sort();
        bundle.files.sort();
        // What was looked at is what was copied.
        for one in adopted {
            let graphs = one.variant.graphs().zip(&one.scans);
            for (graph, scanned) in graphs {
                if scan::scan(&staging.path().join(&graph.path))? != *scanned {
                    let path = self.directory.join(&graph.path);
                    return Err(ExportError::SourceChanged { path });
                }
            }
        }
        files::write(staging.path(), FILE_NAME, bundle.to_json().as_bytes())?;
        write::read_back(staging.path(), &bundle)?;
        if report.interrupted() {
            return Err(ExportError::Interrupted);
        }
        staging.publish()?;
        Ok(bundle)
    }
}

/// Whether an engine may have the operators of a graph: those of ONNX, of ONNX Runtime, and functions of its own.
fn check_operators(scanned: &Scanned) -> Result<(), String> {
    if scanned.opsets.get("").is_none_or(|opset| *opset < 1) {
        return Err("states no opset of ONNX, expected a number".to_owned());
    }
    if let Some(operator) = scanned.domains.get("fvlm") {
        return Err(format!(
            "has operator `{operator}` of domain `fvlm`, expected standard ones: it is of a bundle of target cpu, which needs \
             no adopting"
        ));
    }
    let known = |domain: &str| {
        let runtime = domain == "com.microsoft" || domain.starts_with("com.microsoft.");
        matches!(domain, "" | "ai.onnx" | "ai.onnx.ml") || runtime || scanned.functions.contains(domain)
    };
    match scanned.domains.iter().find(|(domain, _)| !known(domain)) {
        None => Ok(()),
        Some((domain, operator)) => Err(format!(
            "has operator `{operator}` of domain `{domain}`, expected ai.onnx, ai.onnx.ml, com.microsoft or functions of the file"
        )),
    }
}

fn entry(path: String, data: &BTreeMap<String, u64>, ports: Ports) -> GraphEntry {
    GraphEntry {
        path,
        data: data.keys().cloned().collect(),
        inputs: ports.inputs,
        outputs: ports.outputs,
        adopted: Some(ports.adopted),
    }
}

fn length(path: &Path) -> Result<u64, ExportError> {
    let found = std::fs::metadata(path).map_err(ExportError::io("read", path))?;
    Ok(found.len())
}

/// A directory's name for people: `ORG/NAME` in the cache of the Hugging Face hub.
fn name_of(whole: &Path) -> String {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let repository = whole.parent().filter(|parent| parent.ends_with("snapshots"));
    let repository = repository.and_then(Path::parent).and_then(last);
    let cached = repository.and_then(|name| Some(name.strip_prefix("models--")?.replace("--", "/")));
    cached
        .or_else(|| last(whole))
        .unwrap_or_else(|| "model".to_owned())
}

/// Element type of most of the weights' bytes, among those that the contract has a word for.
fn stored(adopted: &[Adopted]) -> DType {
    let mut bytes: BTreeMap<DType, u64> = BTreeMap::new();
    let scans = adopted.iter().flat_map(|one| &one.scans);
    for (kind, count) in scans.flat_map(|scanned| &scanned.weights) {
        let dtype = match kind {
            1 => DType::Float32,
            2 => DType::UInt8,
            3 => DType::Int8,
            10 => DType::Float16,
            16 => DType::BFloat16,
            _ => continue,
        };
        let known = bytes.entry(dtype).or_default();
        *known = known.saturating_add(*count);
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or(DType::Float32, |(dtype, _)| dtype)
}

fn variant_summary(adopted: &Adopted) -> VariantSummary {
    let graphs = adopted.variant.graphs().zip(&adopted.scans);
    let graphs = graphs.map(|(entry, scanned)| GraphSummary {
        entry: entry.clone(),
        nodes: scanned.nodes,
        data_bytes: scanned.weights.values().sum(),
    });
    VariantSummary {
        target: adopted.variant.target,
        precision: adopted.variant.precision,
        opset: adopted.variant.opset,
        graphs: graphs.collect(),
    }
}
