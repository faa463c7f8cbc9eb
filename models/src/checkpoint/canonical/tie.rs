//! The embedding table and the head: one table or two? And what adapters do to either, and to all other
//! tensors.

use super::{Assembly, EMBED_TOKENS, HEAD, placed, tensor};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::accounting::Ignored;
use crate::checkpoint::adapter::{self, Adapter, Fitted, Target};
use crate::checkpoint::tensor_file::TensorFile;
use crate::config::ModelConfig;

/// What is said where adapters tell the two apart.
const APART: &str = "an adapter changes the embedding table or the head, which are one table in the \
    checkpoint: they are two now, as they were while it was trained";

impl Assembly<'_> {
    /// Takes the head for the embedding table where the config ties the two and the checkpoint has the head alone,
    /// as `safetensors.torch.save_model` writes it: of two names of a tensor it keeps one.
    pub(super) fn one_table(&mut self, config: &ModelConfig) {
        let parts = [".weight", ".scales", ".biases"].map(|part| {
            let of = |name: &str| name.replace(".weight", part);
            (of(HEAD), of(EMBED_TOKENS))
        });
        let has_table = parts.iter().any(|(_, table)| self.unified.contains_key(table));
        if !config.decoder.tie_word_embeddings || has_table {
            return;
        }
        for (head, table) in parts {
            if let Some(id) = self.unified.remove(&head) {
                self.unified.insert(table, id);
            }
        }
    }

    /// What adapters do to the tensors.
    pub(super) fn fit(&self, adapters: &[Adapter], config: &ModelConfig) -> Result<Fitted, CheckpointError> {
        let tied = config.decoder.tie_word_embeddings && !self.unified.contains_key(HEAD);
        adapter::fit(
            adapters,
            Target {
                unified: &self.unified,
                files: self.files,
                tower: &config.vision,
                tied: tied.then_some((HEAD, EMBED_TOKENS)),
                follows: config.decoder.tie_word_embeddings.then_some(HEAD),
            },
        )
    }

    /// The tensors win over the config: a head of its own is untied, a copy of the table is tied. Where
    /// adapters change one of the two, they are two, as they were while the adapter was trained.
    pub(super) fn resolve_tie(&mut self, config: &mut ModelConfig, fitted: &Fitted) {
        let changed = |name| fitted.patches.contains_key(name);
        let declared = config.decoder.tie_word_embeddings;
        let stays_tied = fitted.stays_tied || (declared && fitted.table_is_shared);
        let apart = changed(HEAD) || (changed(EMBED_TOKENS) && !stays_tied);
        let embedding = self.unified.get(EMBED_TOKENS).copied();
        let Some(&head) = self.unified.get(HEAD) else {
            if let Some(embedding) = embedding.filter(|_| declared && apart) {
                self.unified.insert(HEAD.to_owned(), embedding);
                config.decoder.tie_word_embeddings = false;
                self.accounting.warnings.push(APART.to_owned());
            }
            return;
        };
        // Of a matrix in groups all three parts.
        let same = |part: &str| {
            let of = |weight: &str| self.unified.get(&weight.replace(".weight", part));
            match (of(HEAD), of(EMBED_TOKENS)) {
                (Some(&head), Some(&embedding)) => {
                    TensorFile::same(placed(self.files, head), placed(self.files, embedding))
                }
                (head, embedding) => head.is_none() && embedding.is_none(),
            }
        };
        let copy = [".weight", ".scales", ".biases"].into_iter().all(same);
        if copy && apart {
            config.decoder.tie_word_embeddings = false;
            self.accounting.warnings.push(APART.to_owned());
            return;
        }
        config.decoder.tie_word_embeddings = copy;
        if copy {
            self.unified.remove(HEAD);
            let parts =
                [".scales", ".biases"].map(|part| self.unified.remove(&HEAD.replace(".weight", part)));
            for id in [Some(head)].into_iter().chain(parts).flatten() {
                let rule = "byte for byte the embedding table".to_owned();
                let tensor = tensor(self.files, id).name.clone();
                self.accounting.ignored.push(Ignored { tensor, rule });
            }
        }
        if declared != copy {
            let warning = if copy {
                "`tie_word_embeddings` is false, but the head is a copy of the embedding table: stored once"
            } else {
                "`tie_word_embeddings` is true, but the checkpoint has a head of its own: it is used"
            };
            self.accounting.warnings.push(warning.to_owned());
        }
    }
}
