//! Which tensors of the base does an adapter change, and how? Every tensor of an adapter fits one of the
//! base, is ignored by a rule of the layouts, or is an error.

use super::config::Scale;
use super::merge::{Change, Factors, LowRank, Place};
use super::names::{Named, Role, parse};
use super::scan::{Scanned, scan};
use super::{Adapter, Kind, Patch, file_name};
use crate::checkpoint::accounting::Ignored;
use crate::checkpoint::layout::Unified;
use crate::checkpoint::tensor_file::TensorId;
use crate::checkpoint::{CheckpointError, Layout, StoredTensor, TensorFile};
use crate::config::VisionConfig;
use serde::Serialize;
use std::collections::BTreeMap;

/// The layouts in which adapters name modules. A base of one takes an adapter of the other: what is meant is
/// the same.
const LAYOUTS: [Layout; 2] = [Layout::Llava, Layout::Transformers];

/// What an adapter made of a tensor of the base.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Merged {
    /// The base's tensor.
    pub tensor: String,
    /// The adapter: the name of its directory or file.
    pub adapter: String,
    /// The adapter's tensors.
    pub from: Vec<String>,
    /// How: `LoRA of rank 16, scale 2`, `replaced`.
    pub how: String,
}

/// What adapters make of a base.
#[derive(Debug, Default)]
pub(in crate::checkpoint) struct Fitted {
    /// By the unified name of the base's tensor.
    pub(in crate::checkpoint) patches: BTreeMap<String, Patch>,
    /// One for each tensor and adapter, sorted.
    pub(in crate::checkpoint) merged: Vec<Merged>,
    /// Tensors of adapters that are not needed.
    pub(in crate::checkpoint) ignored: Vec<Ignored>,
    /// What the user should know.
    pub(in crate::checkpoint) warnings: Vec<String>,
    /// Whether an adapter says that a head which is the embedding stays so.
    pub(in crate::checkpoint) stays_tied: bool,
    /// The embedding table that is put in the place of the base's is the head of a base that declares one table for both.
    pub(in crate::checkpoint) table_is_shared: bool,
}

/// The tensors of a base by their unified names.
#[derive(Debug, Clone, Copy)]
pub(in crate::checkpoint) struct Target<'a> {
    pub(in crate::checkpoint) unified: &'a BTreeMap<String, TensorId>,
    pub(in crate::checkpoint) files: &'a [TensorFile],
    pub(in crate::checkpoint) tower: &'a VisionConfig,
    /// Names of the head and of the embedding that is the head too, where it is.
    pub(in crate::checkpoint) tied: Option<(&'a str, &'a str)>,
    /// Name of the head that is the embedding too, whether it is stored as a copy or not at all.
    pub(in crate::checkpoint) follows: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn find(&self, name: &str) -> Option<&'a StoredTensor> {
        let name = match self.tied {
            Some((head, embedding)) if name == head => embedding,
            _ => name,
        };
        let TensorId(file, index) = self.unified.get(name)?;
        self.files.get(*file)?.tensors().get(*index)
    }
}

/// Fits adapters to a base.
///
/// # Errors
/// Everything that is wrong with the first adapter that does not fit: tensors without a place, without their
/// other half, of another shape, with values that are no numbers; an adapter that changes nothing.
pub(in crate::checkpoint) fn fit(adapters: &[Adapter], base: Target<'_>) -> Result<Fitted, CheckpointError> {
    let mut fitted = Fitted::default();
    for (index, adapter) in adapters.iter().enumerate() {
        let mut one = Fit {
            adapter,
            index,
            base,
            problems: Vec::new(),
            warnings: adapter.warnings.clone(),
            effect: false,
        };
        let targets = one.targets(&mut fitted.ignored);
        for (name, parts) in &targets {
            if let Some((change, merged)) = one.change(name, parts)? {
                fitted.patches.entry(name.clone()).or_default().push(change);
                fitted.merged.push(merged);
            }
        }
        one.look_at_the_whole(&targets);
        if !one.problems.is_empty() {
            return Err(CheckpointError::Adapter {
                path: adapter.path.clone(),
                problems: one.problems,
            });
        }
        let shares_table = one.has_the_shared_table(&targets);
        let said = one.warnings.into_iter();
        fitted
            .warnings
            .extend(said.map(|warning| format!("adapter `{}`: {warning}", adapter.name)));
        fitted.stays_tied |= adapter.config.as_ref().is_some_and(|config| config.stays_tied);
        fitted.table_is_shared |= shares_table;
    }
    fitted.merged.sort();
    Ok(fitted)
}

/// The tensors that an adapter has for one of the base.
pub(super) struct Parts<'a> {
    pub(super) module: String,
    pub(super) by_role: BTreeMap<Role, (Place, &'a StoredTensor)>,
}

/// The work of [`fit`] for one adapter.
pub(super) struct Fit<'a> {
    pub(super) adapter: &'a Adapter,
    index: usize,
    pub(super) base: Target<'a>,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Whether anything of the base becomes another number.
    pub(super) effect: bool,
}

impl<'a> Fit<'a> {
    /// The adapter's tensors by the unified name of the base's tensor.
    fn targets(&mut self, ignored: &mut Vec<Ignored>) -> BTreeMap<String, Parts<'a>> {
        let mut targets: BTreeMap<String, Parts<'a>> = BTreeMap::new();
        let adapter = self.adapter;
        for (file, opened) in adapter.files.iter().enumerate() {
            for (index, tensor) in opened.tensors.tensors().iter().enumerate() {
                let name = &tensor.name;
                let Named { module, target, role } = match parse(name) {
                    Ok(named) => named,
                    Err(problem) => {
                        self.problems.push(problem);
                        continue;
                    }
                };
                if role != Role::Instead && opened.kind != Kind::Lora {
                    let file = file_name(opened.tensors.path());
                    self.problems.push(format!(
                        "`{name}` of `{file}` is a part of LoRA, which is expected in `adapter_model`"
                    ));
                    continue;
                }
                // Before expressions are matched with a name that may be anything.
                let known = match self.unify(&target) {
                    Unified::Name(unified) => Ok(unified),
                    Unified::Ignored(rule) => Err(rule),
                    Unified::Unknown => {
                        self.problems.push(format!(
                            "`{name}` (shape {:?}) fits nothing: the base has no tensor `{target}`",
                            tensor.shape
                        ));
                        continue;
                    }
                };
                if role != Role::Instead && !self.follows(&target) && !self.reaches(name, &module) {
                    continue;
                }
                let unified = match known {
                    Ok(unified) => unified,
                    Err(rule) => {
                        ignored.push(Ignored {
                            tensor: format!("{}: {name}", adapter.name),
                            rule: rule.to_owned(),
                        });
                        continue;
                    }
                };
                let parts = targets.entry(unified).or_insert_with(|| Parts {
                    module,
                    by_role: BTreeMap::new(),
                });
                let place = Place {
                    adapter: self.index,
                    file,
                    index,
                };
                let Some(&(at, other)) = parts.by_role.get(&role) else {
                    parts.by_role.insert(role, (place, tensor));
                    continue;
                };
                // LLaVA saves trained biases in both of its files.
                let first = &adapter.files[at.file].tensors;
                if at.file != file && TensorFile::same((first, other), (&opened.tensors, tensor)) {
                    ignored.push(Ignored {
                        tensor: format!("{}: {name} of {}", adapter.name, file_name(opened.tensors.path())),
                        rule: format!("byte for byte that of {}", file_name(first.path())),
                    });
                    continue;
                }
                let (role, other) = (role.name(), &other.name);
                self.problems
                    .push(format!("`{name}` is {role} of what `{other}` is {role} of"));
            }
        }
        targets
    }

    /// Whether a tensor of the base is the head that peft adapts along with the embedding, of which the config then
    /// names one alone: `ensure_weight_tying` of a base that has one table for both.
    fn follows(&self, target: &str) -> bool {
        let tied = self
            .adapter
            .config
            .as_ref()
            .is_some_and(|config| config.stays_tied);
        match (self.base.follows, self.unify(target)) {
            (Some(head), Unified::Name(name)) => tied && name == head,
            _ => false,
        }
    }

    /// Whether peft would put LoRA around a module; otherwise says that it would not.
    fn reaches(&mut self, name: &str, module: &str) -> bool {
        let Some(config) = &self.adapter.config else {
            return true;
        };
        match config.reach.leaves_out(module) {
            Ok(None) => return true,
            Ok(Some(field)) => self.problems.push(format!(
                "`{name}` is of a module that `{field}` of `adapter_config.json` leaves out: peft would not load it, \
                 expected no such tensor"
            )),
            Err(problem) => self.problems.push(problem),
        }
        false
    }

    fn unify(&self, target: &str) -> Unified {
        let spelled = LAYOUTS.iter().map(|layout| layout.unify(target, self.base.tower));
        spelled
            .into_iter()
            .find(|unified| match unified {
                Unified::Name(name) => self.base.find(name).is_some(),
                Unified::Ignored(_) => true,
                Unified::Unknown => false,
            })
            .unwrap_or(Unified::Unknown)
    }

    /// What becomes of one tensor of the base; `None` where something is wrong with it.
    fn change(&mut self, name: &str, parts: &Parts<'a>) -> Result<Option<(Change, Merged)>, CheckpointError> {
        let Some(base) = self.base.find(name) else {
            return Ok(None);
        };
        let before = self.problems.len();
        if !base.dtype.is_weight() {
            let part = parts
                .by_role
                .values()
                .next()
                .map_or("", |(_, tensor)| tensor.name.as_str());
            self.problems.push(format!(
                "`{part}` changes the base's `{}`, which is stored as {}: adapters are merged into float32, \
                 float16 or bfloat16, so name the model that was quantised",
                base.name,
                base.dtype.name()
            ));
            return Ok(None);
        }
        let mut how = Vec::new();
        let mut change = Change::new(self.adapter.weight);
        if let Some(&(place, tensor)) = parts.by_role.get(&Role::Instead) {
            self.expect_shape(tensor, &base.shape, base, "");
            change.instead = Some(place);
            self.effect = true;
            how.push("replaced".to_owned());
        }
        let low = self.low_rank(parts, base, &mut how);
        let scanned = self.scan(parts)?;
        if let Some(low) = &low {
            let adds = low.scale != 0.0 && !scanned.zero;
            self.effect |= low.magnitude.is_some() || adds;
        }
        change.low = low;
        if let Some(&(place, tensor)) = parts.by_role.get(&Role::BiasOfB) {
            self.expect_shape(tensor, &base.shape, base, "");
            match self.scale(&parts.module) {
                Some(scale)
                    if self
                        .adapter
                        .config
                        .as_ref()
                        .is_some_and(|config| config.bias_of_b) =>
                {
                    change.add = Some((place, scale.factor));
                    how.push(format!("bias of lora_B, scale {}", scale.factor));
                    self.effect |= scale.factor != 0.0 && !scanned.zero;
                }
                _ => self.problems.push(format!(
                    "`{}` is a bias of lora_B, and `lora_bias` is not true",
                    tensor.name
                )),
            }
        }
        if self.problems.len() > before {
            return Ok(None);
        }
        if self.adapter.weight != 1.0 {
            how.push(format!("weight {}", self.adapter.weight));
        }
        let merged = Merged {
            tensor: base.name.clone(),
            adapter: self.adapter.name.clone(),
            from: parts
                .by_role
                .values()
                .map(|(_, tensor)| tensor.name.clone())
                .collect(),
            how: how.join(", "),
        };
        Ok(Some((change, merged)))
    }

    /// The pair of a tensor, complete and of the right shapes.
    fn low_rank(&mut self, parts: &Parts<'a>, base: &StoredTensor, how: &mut Vec<String>) -> Option<LowRank> {
        let get = |role| parts.by_role.get(&role).copied();
        let embedding = get(Role::EmbeddingA).is_some() || get(Role::EmbeddingB).is_some();
        let roles = if embedding {
            [Role::EmbeddingA, Role::EmbeddingB]
        } else {
            [Role::A, Role::B]
        };
        let magnitude = get(Role::Magnitude);
        let [a, b] = roles.map(get);
        let any = a.or(b).or(magnitude)?;
        if embedding && (get(Role::A).is_some() || get(Role::B).is_some()) {
            self.problems.push(format!(
                "`{}` is of an embedding, and the adapter has a pair for a linear layer of the same name",
                any.1.name
            ));
            return None;
        }
        let (Some((a, a_tensor)), Some((b, b_tensor))) = (a, b) else {
            let missing = if a.is_none() { roles[0] } else { roles[1] };
            self.problems
                .push(format!("`{}` has no {} beside it", any.1.name, missing.name()));
            return None;
        };
        let dora = self.adapter.config.as_ref().is_some_and(|config| config.dora);
        match (dora, magnitude) {
            (true, None) => self.problems.push(format!(
                "`{}` has no {} beside it, and `use_dora` is true",
                a_tensor.name,
                Role::Magnitude.name()
            )),
            (false, Some((_, tensor))) => self.problems.push(format!(
                "`{}` is a magnitude of DoRA, and `use_dora` is not true",
                tensor.name
            )),
            _ => {}
        }
        let scale = self.scale(&parts.module)?;
        let factors = self.factors(embedding, base, [a_tensor, b_tensor], scale.rank)?;
        if let Some((_, tensor)) = magnitude {
            let along = if embedding { 1 } else { 0 };
            let length = base.shape.get(along).copied().unwrap_or(0);
            if tensor.elements() != length || !tensor.shape.contains(&length) {
                let expected = format!("a number for each of {length}");
                self.misshapen(tensor, &expected, base, "");
            }
        }
        let kind = if magnitude.is_some() { "DoRA" } else { "LoRA" };
        how.push(format!("{kind} of rank {}, scale {}", scale.rank, scale.factor));
        Some(LowRank {
            a,
            b,
            factors,
            rank: usize::try_from(scale.rank).ok()?,
            scale: scale.factor,
            magnitude: magnitude.map(|(place, _)| place),
        })
    }

    /// Checks the shapes of a pair against the base's.
    fn factors(
        &mut self,
        embedding: bool,
        base: &StoredTensor,
        [a, b]: [&StoredTensor; 2],
        rank: u64,
    ) -> Option<Factors> {
        let (factors, shape_a, shape_b) = match (embedding, base.shape.as_slice()) {
            (true, &[rows, columns]) => (Factors::Embedding, vec![rank, rows], vec![columns, rank]),
            (false, &[rows, columns]) => (Factors::Matrix, vec![rank, columns], vec![rows, rank]),
            (false, &[rows, channels, height, width]) => (
                Factors::Matrix,
                vec![rank, channels, height, width],
                vec![rows, rank, 1, 1],
            ),
            (_, shape) => {
                self.problems.push(format!(
                    "`{}` (shape {:?}) is of LoRA, which changes matrices and kernels: the base's `{}` has \
                     shape {shape:?}",
                    a.name, a.shape, base.name
                ));
                return None;
            }
        };
        // A convolution whose channels are in groups.
        let grouped = match (base.shape.as_slice(), a.shape.as_slice()) {
            (&[_, channels, ..], &[_, all, _, _]) => channels < all && all.is_multiple_of(channels.max(1)),
            _ => false,
        };
        let why = if grouped {
            "; a convolution in groups, whose LoRA is no change of its kernel: peft does not merge it either"
                .to_owned()
        } else {
            format!("; rank {rank} by `adapter_config.json`")
        };
        let fits = self.expect_shape(a, &shape_a, base, &why);
        (self.expect_shape(b, &shape_b, base, &why) && fits).then_some(factors)
    }

    fn scale(&mut self, module: &str) -> Option<Scale> {
        let Some(config) = &self.adapter.config else {
            self.problems.push(format!(
                "`{module}` has LoRA, and there is no `adapter_config.json`"
            ));
            return None;
        };
        match config.scale(module) {
            Ok(scale) => Some(scale),
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }

    /// Whether a tensor is of a weight's type and of this shape.
    fn expect_shape(
        &mut self,
        tensor: &StoredTensor,
        expected: &[u64],
        base: &StoredTensor,
        why: &str,
    ) -> bool {
        if tensor.shape == expected {
            return true;
        }
        self.misshapen(tensor, &format!("{expected:?}"), base, why);
        false
    }

    fn misshapen(&mut self, tensor: &StoredTensor, expected: &str, base: &StoredTensor, why: &str) {
        let empty = if tensor.elements() == 0 {
            "; it is empty, as DeepSpeed's ZeRO-3 saves what it does not gather"
        } else {
            why
        };
        self.problems.push(format!(
            "`{}` has shape {:?}, expected {expected} for the base's `{}` of shape {:?}{empty}",
            tensor.name, tensor.shape, base.name, base.shape
        ));
    }

    /// Reads the values once: none may be something else than a number.
    fn scan(&mut self, parts: &Parts<'a>) -> Result<Scanned, CheckpointError> {
        let mut all = Scanned::default();
        for (role, (place, tensor)) in &parts.by_role {
            if !tensor.dtype.is_weight() {
                self.problems.push(format!(
                    "`{}` has dtype {}, expected float32, float16 or bfloat16",
                    tensor.name,
                    tensor.dtype.name()
                ));
                continue;
            }
            let Some(file) = self.adapter.files.get(place.file) else {
                continue;
            };
            let found = scan(&file.tensors, tensor)?;
            if let Some(at) = found.not_finite {
                self.problems.push(format!(
                    "`{}` has NaN or infinity at element {at}: its training failed, or the file is damaged",
                    tensor.name
                ));
            }
            // A product with zeros is zeros.
            all.zero |= found.zero && !matches!(role, Role::Instead | Role::Magnitude);
        }
        Ok(all)
    }
}
