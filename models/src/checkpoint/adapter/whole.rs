//! What can only be said of an adapter's tensors together: that they change something, that what its config
//! names is there.

use super::config::LoraConfig;
use super::fit::{Fit, Parts};
use super::names::Role;
use super::{Kind, file_name};
use crate::arch::EMBED_TOKENS;
use crate::checkpoint::StoredTensor;
use crate::checkpoint::tensor_file::TensorId;
use std::collections::BTreeMap;

/// Where the projector's tensors are, by unified name.
const PROJECTOR: &str = "multi_modal_projector.";

impl<'a> Fit<'a> {
    /// What can only be said of all tensors together.
    pub(super) fn look_at_the_whole(&mut self, targets: &BTreeMap<String, Parts<'a>>) {
        let adapter = self.adapter;
        let lora = adapter.files.iter().any(|file| file.kind == Kind::Lora);
        for file in &adapter.files {
            let needed = !lora || file.kind != Kind::Trainables;
            if needed && file.tensors.tensors().is_empty() {
                let file = file_name(file.tensors.path());
                self.problems.push(format!("`{file}` has no tensors"));
            }
        }
        if self.problems.is_empty() && !self.effect {
            let why = if targets.is_empty() {
                "it has no tensor that changes one of the base"
            } else {
                "what it adds to the base is 0 throughout, as before training or with `lora_alpha` 0"
            };
            self.problems.push(format!("changes nothing: {why}"));
        }
        self.look_for_the_projector(targets);
        self.look_for_statistics(targets);
        if let Some(config) = adapter.config.as_ref().filter(|_| self.problems.is_empty()) {
            self.look_for_modules(config, targets);
        }
    }

    /// Whether the adapter has the embedding table itself, and not one of a module that PEFT put beside it
    /// (`modules_to_save`). A model whose head is that table has one parameter, which `named_parameters` names once.
    pub(super) fn has_the_shared_table(&self, targets: &BTreeMap<String, Parts<'a>>) -> bool {
        let Some(parts) = targets.get(EMBED_TOKENS) else {
            return false;
        };
        let config = self.adapter.config.as_ref();
        let in_memory = |(_, tensor): &(_, &StoredTensor)| {
            let own = config
                .is_some_and(|config| config.modules_to_save.iter().any(|module| is_of(tensor, module)));
            !own && !tensor.name.contains(".modules_to_save.")
        };
        let alone = parts.by_role.keys().all(|role| *role == Role::Instead);
        alone && parts.by_role.values().all(in_memory)
    }

    /// Says which names of the config are of nothing.
    fn look_for_modules(&mut self, config: &LoraConfig, targets: &BTreeMap<String, Parts<'a>>) {
        let all = || self.adapter.files.iter().flat_map(|file| file.tensors.tensors());
        for module in config
            .modules_to_save
            .iter()
            .filter(|module| !all().any(|tensor| is_of(tensor, module)))
        {
            self.problems.push(format!(
                "`modules_to_save` names `{module}`, of which the adapter has no tensor"
            ));
        }
        for module in config
            .target_modules
            .iter()
            .filter(|module| !all().any(|tensor| is_of(tensor, module)))
        {
            self.warnings.push(format!(
                "`target_modules` names `{module}`, of which the adapter has no tensor"
            ));
        }
        let modules: Vec<&str> = targets.values().map(|parts| parts.module.as_str()).collect();
        for (field, key) in config.unused_patterns(&modules) {
            self.warnings
                .push(format!("no module takes its value from `{key}` of `{field}`"));
        }
    }

    /// A file of a projector has all of it.
    fn look_for_the_projector(&mut self, targets: &BTreeMap<String, Parts<'a>>) {
        let mut files = self.adapter.files.iter();
        let Some(file) = files.find(|file| file.kind == Kind::Projector) else {
            return;
        };
        for (name, TensorId(at, index)) in self.base.unified {
            let replaced = targets
                .get(name)
                .is_some_and(|parts| parts.by_role.contains_key(&Role::Instead));
            if name.starts_with(PROJECTOR) && !replaced {
                let base = self
                    .base
                    .files
                    .get(*at)
                    .and_then(|file| file.tensors().get(*index));
                let base = base.map_or(name.as_str(), |tensor| tensor.name.as_str());
                let file = file_name(file.tensors.path());
                self.problems
                    .push(format!("`{file}` has no tensor for the base's `{base}`"));
            }
        }
    }

    /// Says where normalisations are replaced without what they measured.
    fn look_for_statistics(&mut self, targets: &BTreeMap<String, Parts<'a>>) {
        let mut without = Vec::new();
        for (name, parts) in targets {
            let Some(norm) = name.strip_suffix(".weight") else {
                continue;
            };
            let statistics = ["running_mean", "running_var"].map(|part| format!("{norm}.{part}"));
            let has = |name: &String| targets.contains_key(name);
            let of_base = statistics.iter().any(|name| self.base.find(name).is_some());
            if parts.by_role.contains_key(&Role::Instead) && of_base && !statistics.iter().all(has) {
                without.push(norm);
            }
        }
        if let [first, rest @ ..] = without.as_slice() {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" and {} more", rest.len())
            };
            self.warnings.push(format!(
                "batch normalisation `{first}`{more} comes without its statistics: those of the base are \
                 used, as LLaVA's builder does"
            ));
        }
    }
}

/// Whether a tensor is of a module of that name, which may be a part of a longer one.
fn is_of(tensor: &StoredTensor, module: &str) -> bool {
    let module: Vec<&str> = module.split('.').collect();
    let segments: Vec<&str> = tensor.name.split('.').collect();
    segments.windows(module.len()).any(|window| window == module)
}
