//! How is a FastVLM computed, network by network, on any subject? No state: the caller holds the cache, so that every
//! tensor that a reference records can be looked at.

use crate::array::Array;
use crate::setup::error::{CaseError, Context};
use crate::setup::subject::{Session, Subject, form_name};
use models::arch::{self, Network};
use models::bundle::{Bundle, KvSpec, Variant};
use models::checkpoint::{Canonical, Checkpoint, canonical};
use models::graph::{Graph, ValueId};
use ndarray::{Array3, s};
use runtime::backend::DecoderState;
use std::path::{Path, PathBuf};

/// A checkpoint as graphs and weights, for the interpreter.
pub struct Described {
    /// Vision encoder, embedding, decoder.
    graphs: [Graph; 3],
    /// The canonical weights.
    weights: Canonical,
}

impl std::fmt::Debug for Described {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Described").finish_non_exhaustive()
    }
}

impl Described {
    /// Opens a checkpoint, for images of another size where one is given.
    ///
    /// # Errors
    /// A checkpoint that is not a FastVLM, or a size that its encoder does not take.
    pub fn open(directory: &Path, image_size: Option<u32>) -> Result<Described, CaseError> {
        let opening = || "opening the checkpoint".to_owned();
        let checkpoint = Checkpoint::open(directory).during(opening)?;
        let (weights, _) = canonical(&checkpoint, None).during(opening)?;
        let mut config = weights.config().clone();
        if let Some(side) = image_size {
            config = config
                .at_image_size(side.into())
                .ok_or_else(|| CaseError::Failed {
                    context: opening(),
                    message: format!("its encoder takes no images of {side} x {side}"),
                })?;
        }
        let build = |network| arch::build(network, &config).during(|| "building a network".to_owned());
        let graphs = [
            build(Network::VisionEncoder)?,
            build(Network::EmbedTokens)?,
            build(Network::Decoder)?,
        ];
        Ok(Described { graphs, weights })
    }

    /// A network's graph.
    pub fn graph(&self, network: Network) -> &Graph {
        match network {
            Network::VisionEncoder => &self.graphs[0],
            Network::EmbedTokens => &self.graphs[1],
            Network::Decoder => &self.graphs[2],
        }
    }

    /// The canonical weights.
    pub fn weights(&self) -> &Canonical {
        &self.weights
    }
}

/// A model that is ready to be run: its bundle and, where it is known, the checkpoint behind it.
#[derive(Debug)]
pub struct Deployed {
    /// The bundle's directory.
    pub directory: PathBuf,
    /// Its contract; where references have another image size than its default, as if that were its only one.
    pub bundle: Bundle,
    /// That size.
    pub image_size: Option<u32>,
    /// The checkpoint, which the interpreter needs.
    pub described: Option<Described>,
    /// Where that lies, to be exported for other targets too.
    pub checkpoint: Option<PathBuf>,
}

impl Deployed {
    /// Opens a bundle and, for the interpreter, the checkpoint that it was exported from.
    ///
    /// # Errors
    /// A bundle that breaks its contract, or a checkpoint that cannot be read; a skip where the bundle has no encoder for
    /// that image size.
    pub fn open(
        directory: &Path,
        checkpoint: Option<&Path>,
        image_size: Option<u32>,
    ) -> Result<Deployed, CaseError> {
        let mut bundle = Bundle::open(directory).during(|| "opening the bundle".to_owned())?;
        if let Some(side) = image_size {
            bundle =
                runtime::at_image_size(&bundle, side).map_err(|error| CaseError::Skip(error.to_string()))?;
        }
        let described = checkpoint
            .map(|checkpoint| Described::open(checkpoint, image_size))
            .transpose()?;
        Ok(Deployed {
            directory: directory.to_owned(),
            bundle,
            image_size,
            described,
            checkpoint: checkpoint.map(Path::to_owned),
        })
    }

    /// The exported form of a subject.
    ///
    /// # Errors
    /// A skip where the bundle does not have it.
    pub fn variant(&self, subject: &Subject) -> Result<&Variant, CaseError> {
        self.bundle
            .variants
            .iter()
            .find(|variant| variant.target == subject.target() && variant.precision == subject.precision())
            .ok_or_else(|| CaseError::Skip(format!("the bundle has no {} variant", form_name(subject.form))))
    }

    /// Prepares a network on a subject.
    ///
    /// # Errors
    /// A skip where the subject needs what is not there; a graph that the engine refuses.
    pub fn session(&self, subject: &Subject, network: Network) -> Result<Box<dyn Session + '_>, CaseError> {
        if subject.is_interpreter() {
            let described = self.described.as_ref().ok_or_else(|| {
                CaseError::Skip("the interpreter needs the checkpoint behind the bundle".to_owned())
            })?;
            return Ok(subject.interpret(described.graph(network), described.weights()));
        }
        let path = self.directory.join(self.graph_path(subject, network)?);
        let session: Box<dyn Session + '_> = subject.open(&path)?;
        Ok(session)
    }

    /// A sequence of nothing in a subject's decoder, in the role that the runtime gives it: graphs of fixed lengths are
    /// not run otherwise.
    ///
    /// # Errors
    /// A skip where the bundle does not have the subject's form; a graph that the engine refuses.
    pub fn sequence(&self, subject: &Subject) -> Result<Box<dyn DecoderState>, CaseError> {
        let variant = self.variant(subject)?;
        let opening = || format!("opening the networks on {}", subject.name());
        let options = subject
            .options
            .clone()
            .with_fallback(false)
            .with_target(variant.target)
            .with_precision(variant.precision);
        let model = runtime::Model::open(&self.directory, &options).during(opening)?;
        model.decoder().during(opening)?.start().during(opening)
    }

    /// Runs the vision encoder on `pixels [n,3,H,W]`, and shows the values inside it that `inner` names
    /// (`vision_tower.stages.2`), in that order, before its `image_features`.
    ///
    /// The features are those of the bundle's own graph. An engine gives inner values out of a second graph, written to
    /// `scratch` for that purpose; it is left out where the checkpoint behind the bundle is not known, and with it the inner values.
    ///
    /// # Errors
    /// As [`Deployed::session`].
    pub fn encode(
        &self,
        subject: &Subject,
        scratch: &Path,
        pixels: &Array,
        inner: &[&str],
    ) -> Result<Vec<(String, Array)>, CaseError> {
        let inputs = [("pixel_values", pixels.clone())];
        let mut found = Vec::new();
        if let Some(described) = self.described.as_ref().filter(|_| !inner.is_empty()) {
            let mut graph = described.graph(Network::VisionEncoder).clone();
            let ids = inner
                .iter()
                .map(|value| value_inside(&graph, value))
                .collect::<Result<Vec<ValueId>, _>>()?;
            graph.outputs.splice(0..0, ids);
            let outputs = subject
                .session(&graph, described.weights(), scratch)?
                .run(&inputs)?;
            let names = inner.iter().copied().chain(["image_features"]).map(str::to_owned);
            found = names.zip(outputs.into_iter().map(|(_, tensor)| tensor)).collect();
            if subject.is_interpreter() {
                return Ok(found);
            }
            // Only what the bundle's own graph gives counts.
            found.pop();
        }
        found.extend(self.session(subject, Network::VisionEncoder)?.run(&inputs)?);
        Ok(found)
    }

    /// Path of a network's file in the bundle.
    ///
    /// # Errors
    /// A skip where the bundle does not have the subject's form.
    pub fn graph_path(&self, subject: &Subject, network: Network) -> Result<&str, CaseError> {
        let variant = self.variant(subject)?;
        Ok(match network {
            Network::VisionEncoder => &variant.vision_encoder.path,
            Network::EmbedTokens => &variant.embed_tokens.path,
            Network::Decoder => &variant.decoder.path,
        })
    }
}

/// The last value that is computed in a scope: `vision_tower.stages.2`.
fn value_inside(graph: &Graph, scope: &str) -> Result<ValueId, CaseError> {
    let prefix = format!("/{}/", scope.replacen('.', "/", 1));
    let node = graph
        .nodes
        .iter()
        .rev()
        .find(|node| node.name.starts_with(&prefix));
    node.and_then(|node| node.outputs.first().copied())
        .ok_or_else(|| CaseError::Failed {
            context: format!("looking into `{}`", graph.name),
            message: format!("no node is in scope `{scope}`"),
        })
}

/// A decoder between two calls.
pub struct Decoder<'a> {
    session: Box<dyn Session + 'a>,
    kv: KvSpec,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("kv", &self.kv)
            .finish_non_exhaustive()
    }
}

/// The cache of a batch: what it holds, and which slots are padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// Per layer key and value, `[batch, kv_heads, past, head_dim]`.
    pub layers: Vec<[Array; 2]>,
    /// `[batch][slot]`: 1 where a slot is real.
    pub mask: Vec<Vec<i64>>,
}

impl Cache {
    /// The cache before the first call.
    pub fn empty(kv: &KvSpec, batch: usize) -> Cache {
        let empty = || Array::float(&[batch, kv.kv_heads, 0, kv.head_dim], Vec::new());
        Cache {
            layers: (0..kv.layers).map(|_| [empty(), empty()]).collect(),
            mask: vec![Vec::new(); batch],
        }
    }

    /// Keeps the first slots only.
    pub fn truncate(&mut self, length: usize) {
        for array in self.layers.iter_mut().flatten() {
            if let &[_, _, past, _] = array.shape() {
                *array = array.part(2, 0..length.min(past));
            }
        }
        for mask in &mut self.mask {
            mask.truncate(length);
        }
    }
}

impl<'a> Decoder<'a> {
    /// The decoder of a model on a subject.
    ///
    /// # Errors
    /// As [`Deployed::session`].
    pub fn open(deployed: &'a Deployed, subject: &Subject) -> Result<Decoder<'a>, CaseError> {
        let session = deployed.session(subject, Network::Decoder)?;
        Ok(Decoder {
            session,
            kv: deployed.bundle.kv.clone(),
        })
    }

    /// A decoder over a session of its graph.
    pub fn over(session: Box<dyn Session + 'a>, kv: KvSpec) -> Decoder<'a> {
        Decoder { session, kv }
    }

    /// The cache before the first call.
    pub fn empty(&self, batch: usize) -> Cache {
        Cache::empty(&self.kv, batch)
    }

    /// Feeds `embeds [batch, new, hidden]`, of which `real [batch][new]` says what is not padding, and returns
    /// `logits [batch, vocab]`; the cache grows.
    ///
    /// # Errors
    /// An engine that gives up, or outputs that the contract does not have.
    pub fn feed(&mut self, cache: &mut Cache, embeds: &Array, real: &[Vec<i64>]) -> Result<Array, CaseError> {
        let (batch, new) = (embeds.shape()[0], embeds.shape()[1]);
        let mut positions = Vec::with_capacity(batch * new);
        for (mask, real) in cache.mask.iter_mut().zip(real) {
            for &one in real {
                // Positions count real slots; padding has position 0.
                let before: i64 = mask.iter().sum();
                positions.push(if one == 1 { before } else { 0 });
                mask.push(one);
            }
        }
        let total = cache.mask.first().map_or(0, Vec::len);
        let mask = Array::int(&[batch, total], cache.mask.concat());
        let mut names = Vec::new();
        for layer in 0..cache.layers.len() {
            for part in ["key", "value"] {
                names.push(format!("past_key_values.{layer}.{part}"));
            }
        }
        let mut inputs = vec![
            ("inputs_embeds", embeds.clone()),
            ("attention_mask", mask),
            ("position_ids", Array::int(&[batch, new], positions)),
        ];
        let past = cache.layers.iter().flatten().cloned();
        inputs.extend(names.iter().map(String::as_str).zip(past));
        let mut outputs = self.session.run(&inputs)?;
        let mut take = |name: &str| {
            let place = outputs.iter().position(|(found, _)| found == name);
            place
                .map(|place| outputs.swap_remove(place).1)
                .ok_or_else(|| CaseError::Failed {
                    context: "running the decoder".to_owned(),
                    message: format!("there is no output `{name}`"),
                })
        };
        let logits = take("logits")?;
        for (layer, tensors) in cache.layers.iter_mut().enumerate() {
            *tensors = [
                take(&format!("present.{layer}.key"))?,
                take(&format!("present.{layer}.value"))?,
            ];
        }
        let shape = logits.shape();
        let &[_, 1, width] = shape else {
            return Err(CaseError::Failed {
                context: "running the decoder".to_owned(),
                message: format!("logits have shape {shape:?}, expected [{batch}, 1, vocab]"),
            });
        };
        logits
            .reshaped(&[batch, width])
            .during(|| "running the decoder".to_owned())
    }
}

/// The first output of a graph with one.
///
/// # Errors
/// An engine that gives up, or gives nothing.
pub fn run_one(session: &mut dyn Session, name: &str, input: Array) -> Result<Array, CaseError> {
    let outputs = session.run(&[(name, input)])?;
    outputs
        .into_iter()
        .next()
        .map(|(_, tensor)| tensor)
        .ok_or_else(|| CaseError::Failed {
            context: "running a graph".to_owned(),
            message: "there is no output".to_owned(),
        })
}

/// Rows of `[new, hidden]` as one batch, padded on the left with zeros, and which positions are real.
pub fn left_pad(rows: &[Array]) -> (Array, Vec<Vec<i64>>) {
    let longest = rows.iter().map(|row| row.shape()[0]).max().unwrap_or(0);
    let width = rows.first().map_or(0, |row| row.shape()[1]);
    let mut batch = Array3::zeros((rows.len(), longest, width));
    let mut real = Vec::with_capacity(rows.len());
    for (mut place, row) in batch.outer_iter_mut().zip(rows) {
        let padding = longest - row.shape()[0];
        place.slice_mut(s![padding.., ..]).assign(&row.to_float());
        real.push((0..longest).map(|slot| i64::from(slot >= padding)).collect());
    }
    (Array::from(batch), real)
}
