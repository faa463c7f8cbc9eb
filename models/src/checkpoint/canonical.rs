//! From the tensors of a checkpoint to canonical weights: every tensor used, ignored by a rule or an error;
//! every weight filled once. Weights are read a block at a time from the mapped files.

#![deny(clippy::as_conversions)]

mod tie;

use super::accounting::{Accounting, Ignored, Used, skipped};
use super::adapter::{Adapter, Applied, Fitted, Reading};
use super::branches::{Branch, Kind, Take, branches};
use super::fold::{BranchValues, KernelSize, fold};
use super::grouped::{Grouped, Quantization};
use super::layout::Unified;
use super::tensor_file::{StoredTensor, StoredType, TensorFile, TensorId};
use super::{Checkpoint, Layout, mlx};
use crate::arch;
use crate::arch::{EMBED_TOKENS, HEAD};
use crate::checkpoint::{CheckpointError, WeightProblems};
use crate::config::ModelConfig;
use crate::weights::{WeightSpec, Weights};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The canonical weights of a checkpoint. Nothing is held in memory: a block is converted when it is read.
#[derive(Debug)]
pub struct Canonical {
    files: Arc<Vec<TensorFile>>,
    applied: Applied,
    layout: Layout,
    config: ModelConfig,
    specs: Vec<WeightSpec>,
    index: BTreeMap<String, usize>,
    /// One for each spec.
    sources: Vec<Source>,
    /// Branches of the folded convolutions.
    sites: Vec<Site>,
    /// Matrices in groups of few bits.
    grouped: Vec<Grouped>,
    /// The convolution folded last: its bias is read after its weight.
    folded: Mutex<Option<(usize, Arc<Folded>)>>,
    non_finite: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Stored(TensorId, Reading),
    FoldedWeight(usize),
    FoldedBias(usize),
    Grouped(usize),
}

#[derive(Debug)]
struct Site {
    size: KernelSize,
    branches: Vec<Branch>,
}

/// Weight and bias.
type Folded = (Vec<f32>, Vec<f32>);

/// Applies a layout's rules to a checkpoint; `forced` overrides what the config and the tensors declare.
///
/// # Errors
/// Markers that contradict each other, or every tensor that is missing, unmapped or misshapen.
pub fn canonical(
    checkpoint: &Checkpoint,
    forced: Option<Layout>,
) -> Result<(Canonical, Accounting), CheckpointError> {
    canonical_with(checkpoint, forced, Arc::from([]))
}

/// The same with adapters merged into the checkpoint's tensors, each tensor when it is read.
///
/// # Errors
/// As [`canonical()`], and everything of an adapter that does not fit the checkpoint.
pub fn canonical_with(
    checkpoint: &Checkpoint,
    forced: Option<Layout>,
    adapters: Arc<[Adapter]>,
) -> Result<(Canonical, Accounting), CheckpointError> {
    let layout = match forced {
        Some(layout) => layout,
        None => checkpoint.detect()?,
    };
    let mut config = checkpoint.config().clone();
    let files = Arc::clone(&checkpoint.files);
    let quantization = Quantization::of(&checkpoint.declared.fields, checkpoint.path())?;
    let mut assembly = Assembly::new(&files, quantization);
    assembly.unify(layout, &config);
    assembly.one_table(&config);
    // What is wrong with the checkpoint itself is said first.
    let fitted = assembly.fit(&adapters, &config);
    let (mut fitted, misfit) = match fitted {
        Ok(fitted) => (fitted, None),
        Err(error) => (Fitted::default(), Some(error)),
    };
    assembly.resolve_tie(&mut config, &fitted);
    let specs = arch::specs(&config)?;
    for spec in &specs {
        let source = assembly.source(spec, &config);
        assembly.sources.push(source);
    }
    let Assembly {
        mut accounting,
        problems,
        sources,
        sites,
        grouped,
        unified,
        used,
        ..
    } = assembly;
    let mut problems = problems;
    for id in unified.values() {
        if !used.contains_key(id) {
            problems.unmapped.push(tensor(&files, *id).name.clone());
        }
    }
    for name in &mut problems.missing {
        *name = layout.spell(name, &config.vision);
    }
    problems.missing.sort();
    problems.missing.dedup();
    problems.unmapped.sort();
    problems.misshapen.sort();
    let sources: Option<Vec<Source>> = sources.into_iter().collect();
    let (true, Some(sources)) = (problems.is_empty(), sources) else {
        return Err(CheckpointError::Weights {
            path: checkpoint.path().to_owned(),
            layout: layout.name(),
            problems: Box::new(problems),
        });
    };
    if let Some(error) = misfit {
        return Err(error);
    }
    accounting.merged = fitted.merged;
    accounting.ignored.extend(fitted.ignored);
    accounting.warnings.extend(fitted.warnings);
    // A head that was the embedding has no tensor of its own.
    let of_embedding = unified.get(HEAD) == unified.get(EMBED_TOKENS);
    let head = fitted.patches.remove(HEAD);
    let (head, own_head) = if of_embedding { (head, None) } else { (None, head) };
    let patches = fitted
        .patches
        .into_iter()
        .chain(own_head.map(|patch| (HEAD.to_owned(), patch)));
    let patches = patches.filter_map(|(name, patch)| Some((*unified.get(&name)?, patch)));
    let applied = Applied::new(adapters, patches.collect(), head);
    accounting.used = used
        .into_iter()
        .map(|(id, weight)| Used {
            tensor: tensor(&files, id).name.clone(),
            weight,
        })
        .collect();
    accounting.used.sort();
    accounting.ignored.sort();
    accounting.warnings.extend(files.iter().filter_map(skipped));
    let index = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| (spec.name.clone(), index))
        .collect();
    let canonical = Canonical {
        files,
        applied,
        layout,
        config,
        specs,
        index,
        sources,
        sites,
        grouped,
        folded: Mutex::new(None),
        non_finite: Mutex::new(BTreeSet::new()),
    };
    Ok((canonical, accounting))
}

fn tensor(files: &[TensorFile], TensorId(file, index): TensorId) -> &StoredTensor {
    &files[file].tensors()[index]
}

/// A tensor with its file.
fn placed(files: &[TensorFile], id: TensorId) -> (&TensorFile, &StoredTensor) {
    (&files[id.0], tensor(files, id))
}

/// The work of [`canonical()`] while it is done.
struct Assembly<'a> {
    files: &'a [TensorFile],
    quantization: Quantization,
    unified: BTreeMap<String, TensorId>,
    /// The canonical weight that each tensor goes into.
    used: BTreeMap<TensorId, String>,
    /// The canonical weight that tensors are taken for at the moment.
    current: String,
    sources: Vec<Option<Source>>,
    sites: Vec<Site>,
    grouped: Vec<Grouped>,
    /// The site of a convolution whose weight came first.
    site_of: BTreeMap<String, Option<usize>>,
    problems: WeightProblems,
    accounting: Accounting,
}

impl<'a> Assembly<'a> {
    fn new(files: &'a [TensorFile], quantization: Quantization) -> Self {
        Assembly {
            files,
            quantization,
            unified: BTreeMap::new(),
            used: BTreeMap::new(),
            current: String::new(),
            sources: Vec::new(),
            sites: Vec::new(),
            grouped: Vec::new(),
            site_of: BTreeMap::new(),
            problems: WeightProblems::default(),
            accounting: Accounting::default(),
        }
    }

    /// Gives every tensor its unified name, its rule or its place among the unmapped.
    fn unify(&mut self, layout: Layout, config: &ModelConfig) {
        for (file, opened) in self.files.iter().enumerate() {
            for (index, tensor) in opened.tensors().iter().enumerate() {
                let name = &tensor.name;
                match layout.unify(name, &config.vision) {
                    Unified::Unknown => self.problems.unmapped.push(name.clone()),
                    Unified::Ignored(rule) => {
                        self.accounting.ignored.push(Ignored {
                            tensor: name.clone(),
                            rule: rule.to_owned(),
                        });
                    }
                    Unified::Name(unified) => {
                        if self
                            .unified
                            .insert(unified.clone(), TensorId(file, index))
                            .is_some()
                        {
                            let problem = format!("{name} is a second tensor for {unified}");
                            self.problems.misshapen.push(problem);
                        }
                    }
                }
            }
        }
    }

    fn source(&mut self, spec: &WeightSpec, config: &ModelConfig) -> Option<Source> {
        let (base, part) = spec.name.rsplit_once('.').unwrap_or((&spec.name, ""));
        let Some(kind) = Kind::of(base, &config.vision) else {
            self.current.clone_from(&spec.name);
            let of_embedding = spec.name == HEAD && self.unified.get(HEAD) == self.unified.get(EMBED_TOKENS);
            let reading = if of_embedding { Reading::Head } else { Reading::Own };
            return match part == "weight" && self.unified.contains_key(&format!("{base}.scales")) {
                true => self.grouped(base, &spec.shape).map(Source::Grouped),
                false => self
                    .take(&spec.name, &spec.shape)
                    .map(|id| Source::Stored(id, reading)),
            };
        };
        self.current = format!("{base}.weight");
        let train_time = kind == Kind::ConvNorm
            || kind
                .markers()
                .iter()
                .any(|marker| self.any(&format!("{base}{marker}")));
        if !train_time {
            self.current.clone_from(&spec.name);
            return self
                .take(&format!("{base}.reparam_conv.{part}"), &spec.shape)
                .map(|id| Source::Stored(id, Reading::Own));
        }
        if part == "weight" {
            let site = self.site(kind, base, &spec.shape, config.vision.layer_scale);
            self.site_of.insert(base.to_owned(), site);
            site.map(Source::FoldedWeight)
        } else {
            self.site_of.get(base).copied().flatten().map(Source::FoldedBias)
        }
    }

    /// A matrix in groups: codes, scales and biases.
    fn grouped(&mut self, base: &str, shape: &[u64]) -> Option<usize> {
        let weight = format!("{base}.weight");
        let module = match self.unified.get(&weight) {
            Some(&id) => tensor(self.files, id).name.trim_end_matches(".weight").to_owned(),
            None => base.to_owned(),
        };
        for part in ["weight", "scales", "biases"] {
            if let Some(&id) = self.unified.get(&format!("{base}.{part}")) {
                self.used.insert(id, self.current.clone());
            }
        }
        let (Some(groups), &[rows, width]) = (self.quantization.groups(&module), shape) else {
            let problem = format!("{module} has scales, but config.json has no `quantization` for it");
            self.problems.misshapen.push(problem);
            return None;
        };
        if width % groups.size != 0 {
            let size = groups.size;
            let problem = format!("{module} has {width} inputs, expected whole groups of {size}");
            self.problems.misshapen.push(problem);
            return None;
        }
        let words = [rows, width * groups.bits / 32];
        let codes = self.take_as(&weight, &words, |dtype| dtype.name() == "U32", "U32");
        let parts = [rows, width / groups.size];
        let scales = self.take(&format!("{base}.scales"), &parts);
        let biases = self.take(&format!("{base}.biases"), &parts);
        self.grouped.push(Grouped {
            codes: codes?,
            scales: scales?,
            biases: biases?,
            groups,
        });
        Some(self.grouped.len() - 1)
    }

    /// The tensor of that name, shape and a type that fits.
    fn take_as(
        &mut self,
        name: &str,
        shape: &[u64],
        fits: fn(StoredType) -> bool,
        expected: &str,
    ) -> Option<TensorId> {
        let Some(&id) = self.unified.get(name) else {
            self.problems.missing.push(name.to_owned());
            return None;
        };
        // An embedding that is the head too is said to be the embedding.
        self.used.entry(id).or_insert_with(|| self.current.clone());
        let stored = tensor(self.files, id);
        if !fits(stored.dtype) {
            let dtype = stored.dtype.name();
            let problem = format!("{} has dtype {dtype}, expected {expected}", stored.name);
            self.problems.misshapen.push(problem);
            return None;
        }
        if stored.shape != shape {
            let [found, expected] =
                [&stored.shape[..], shape].map(|shape| mlx::as_in_file(&stored.name, shape));
            let problem = format!("{} has shape {found:?}, expected {expected:?}", stored.name);
            self.problems.misshapen.push(problem);
            return None;
        }
        Some(id)
    }

    fn site(&mut self, kind: Kind, base: &str, shape: &[u64], layer_scale: bool) -> Option<usize> {
        let &[output, per_group, side, _] = shape else {
            return None;
        };
        let branches = branches(self, kind, base, [output, per_group, side], layer_scale)?;
        let whole = |length: u64| usize::try_from(length).ok();
        let size = KernelSize {
            output: whole(output)?,
            per_group: whole(per_group)?,
            side: whole(side)?,
        };
        self.sites.push(Site { size, branches });
        Some(self.sites.len() - 1)
    }
}

impl Take for Assembly<'_> {
    fn take(&mut self, name: &str, shape: &[u64]) -> Option<TensorId> {
        let expected = "float32, float16 or bfloat16";
        self.take_as(name, shape, StoredType::is_weight, expected)
    }

    fn any(&self, prefix: &str) -> bool {
        let next = self
            .unified
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .next();
        next.is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

impl Canonical {
    /// The config, with `tie_word_embeddings` as the tensors have it.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The layout whose rules were applied.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Canonical weights in which NaN or infinite values were seen, among the blocks read so far, sorted.
    pub fn non_finite(&self) -> Vec<String> {
        let names = self.non_finite.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().cloned().collect()
    }

    fn whole(&self, id: TensorId) -> Result<Vec<f32>, CheckpointError> {
        self.applied.whole(&self.files, id)
    }

    fn values(&self, branch: &Branch) -> Result<BranchValues, CheckpointError> {
        let whole = |id: Option<TensorId>| id.map(|id| self.whole(id)).transpose();
        Ok(BranchValues {
            kernel: match branch.kernel {
                Some((id, side)) => Some((self.whole(id)?, usize::try_from(side).unwrap_or(usize::MAX))),
                None => None,
            },
            bias: whole(branch.bias)?,
            norm: match branch.norm {
                Some([gamma, beta, mean, variance]) => Some([
                    self.whole(gamma)?,
                    self.whole(beta)?,
                    self.whole(mean)?,
                    self.whole(variance)?,
                ]),
                None => None,
            },
            factor: whole(branch.factor)?,
            negative: branch.negative,
        })
    }

    fn fold_site(&self, index: usize) -> Result<Arc<Folded>, CheckpointError> {
        let mut cache = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cached, folded)) = &*cache
            && *cached == index
        {
            return Ok(Arc::clone(folded));
        }
        let site = &self.sites[index];
        let values = site.branches.iter().map(|branch| self.values(branch));
        let values = values.collect::<Result<Vec<BranchValues>, CheckpointError>>()?;
        let folded = Arc::new(fold(site.size, &values));
        *cache = Some((index, Arc::clone(&folded)));
        Ok(folded)
    }
}

impl Weights for Canonical {
    fn specs(&self) -> &[WeightSpec] {
        &self.specs
    }

    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let unknown = || CheckpointError::UnknownWeight {
            name: name.to_owned(),
        };
        let &index = self.index.get(name).ok_or_else(unknown)?;
        let (height, width) = self.specs[index].matrix();
        let count = rows.len().checked_mul(columns.len());
        if rows.end > height || columns.end > width || rows.start > rows.end || columns.start > columns.end {
            return Err(unknown());
        }
        if count != Some(out.len()) {
            return Err(unknown());
        }
        if out.is_empty() {
            return Ok(());
        }
        match self.sources[index] {
            Source::Stored(id, reading) => {
                self.applied.read(&self.files, id, reading, rows, columns, out)?;
            }
            Source::Grouped(grouped) => {
                // Whole rows lie one after the other.
                let run = if columns.len() == width {
                    out.len()
                } else {
                    columns.len()
                };
                for (row, out) in rows.zip(out.chunks_exact_mut(run)) {
                    self.grouped[grouped].read(&self.files, row * width + columns.start, out)?;
                }
            }
            Source::FoldedWeight(site) | Source::FoldedBias(site) => {
                let folded = self.fold_site(site)?;
                let values = if matches!(self.sources[index], Source::FoldedBias(_)) {
                    &folded.1
                } else {
                    &folded.0
                };
                let length = columns.len();
                for (row, out) in rows.zip(out.chunks_exact_mut(length)) {
                    let from = row * width + columns.start;
                    out.copy_from_slice(values.get(from..from + length).ok_or_else(unknown)?);
                }
            }
        }
        if has_non_finite(out) {
            self.non_finite
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.to_owned());
        }
        Ok(())
    }
}

/// Whether a value is NaN or infinite; branch-free, so that it costs next to nothing.
fn has_non_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.chunks(4096).any(|values| {
        values.iter().fold(0, |found, value| {
            found | u32::from(value.to_bits() & EXPONENT == EXPONENT)
        }) != 0
    })
}
