//! The same three networks for target `cpu`, in fused operators and channels last.
//!
//! Every function here has its counterpart in the portable network beside it, which is the one to read first; the two
//! are held equal by the conformance suites. Norms, biases, activations, residuals and layer scales are parts of the
//! products that they stand next to, so that activations are read and written once.

pub mod body;
mod fastvithd;
mod qwen2;

use super::Network;
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::fused::{Encoding, Fused, Norm, TableEncoding};
use crate::graph::{Builder, Dim, Graph, GraphError, Rows, ValueId, WeightForm};

/// How the weights of each part are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encodings {
    /// Products of the image encoder and the projector.
    pub vision: Encoding,
    /// Products of the decoder's layers.
    pub decoder: Encoding,
    /// The embedding table and the head.
    pub table: TableEncoding,
}

/// Builds a network's graph from fused operators: the same inputs, outputs and canonical weights as [`super::build`].
///
/// # Errors
/// As [`super::build`].
pub fn build(network: Network, config: &ModelConfig, encodings: Encodings) -> Result<Graph, GraphError> {
    let mut b = Builder::new(network.name());
    match network {
        Network::VisionEncoder => {
            let side = Dim::Fixed(config.vision.image_size);
            let pixels = b.input(
                "pixel_values",
                DType::Float32,
                &[Dim::Batch, Dim::Fixed(3), side, side],
            );
            let tokens = fastvithd::fastvithd(&mut b, &config.vision, encodings.vision, pixels);
            let features = projector(&mut b, config, encodings.vision, tokens);
            b.output("image_features", features);
        }
        Network::EmbedTokens => {
            let ids = b.input("input_ids", DType::Int64, &[Dim::Batch, Dim::New]);
            let embeds = qwen2::embed_tokens(&mut b, &config.decoder, encodings.table, ids);
            b.output("inputs_embeds", embeds);
        }
        Network::Decoder => qwen2::decoder(&mut b, &config.decoder, encodings),
    }
    b.finish()
}

/// `tokens [B,N,C] -> features [B,N,D]`
fn projector(b: &mut Builder, config: &ModelConfig, encoding: Encoding, tokens: ValueId) -> ValueId {
    let config = &config.projector;
    let b = &mut b.scope("multi_modal_projector");
    let feed_forward = FeedForward {
        inputs: config.input,
        hidden: config.hidden,
        outputs: config.hidden,
        norm: Norm::None,
        encoding,
        bias: config.bias,
        names: Names {
            gate: None,
            up: "linear_1",
            down: "linear_2",
        },
        norm_name: None,
        gain: None,
    };
    feed_forward.add(b, tokens, None)
}

/// A product in words of its scope; [`Linear::add`] adds it.
struct Linear<'a> {
    inputs: u64,
    /// Names of the linear layers whose outputs follow one another, with their lengths.
    parts: &'a [(&'a str, u64)],
    encoding: Encoding,
    bias: bool,
    gelu: bool,
    /// Full canonical name of the factors of the outputs.
    gain: Option<String>,
    norm: Norm,
    norm_name: Option<String>,
}

impl Linear<'_> {
    /// `x [..,K] -> [..,N]`, `residual` added.
    fn add(&self, b: &mut Builder, x: ValueId, residual: Option<ValueId>) -> ValueId {
        let outputs = self.parts.iter().map(|(_, length)| length).sum();
        let mut inputs = vec![x];
        inputs.extend(residual);
        inputs.extend(norm(b, self.norm, self.norm_name.as_deref(), self.inputs));
        let names: Vec<&str> = self.parts.iter().map(|(name, _)| *name).collect();
        inputs.extend(matrix(
            b,
            &names,
            self.encoding,
            outputs,
            self.inputs,
            self.gain.as_ref(),
        ));
        if self.bias {
            inputs.push(vector(b, &names, "bias", outputs, self.gain.as_ref()));
        }
        let fused = Fused::Linear {
            inputs: self.inputs,
            outputs,
            norm: self.norm,
            encoding: self.encoding,
            bias: self.bias,
            gelu: self.gelu,
            residual: residual.is_some(),
        };
        let b = &mut b.scope(names.join("+"));
        first(&b.fused(fused, &inputs), x)
    }
}

/// Names of the linear layers of a feed-forward block in its scope.
struct Names<'a> {
    gate: Option<&'a str>,
    up: &'a str,
    down: &'a str,
}

/// Two products with an activation between them; [`FeedForward::add`] adds them.
struct FeedForward<'a> {
    inputs: u64,
    hidden: u64,
    outputs: u64,
    norm: Norm,
    encoding: Encoding,
    bias: bool,
    names: Names<'a>,
    norm_name: Option<String>,
    /// Full canonical name of the factors of the outputs.
    gain: Option<String>,
}

impl FeedForward<'_> {
    /// `x [..,K] -> [..,N]`, `residual` added.
    fn add(&self, b: &mut Builder, x: ValueId, residual: Option<ValueId>) -> ValueId {
        let mut inputs = vec![x];
        inputs.extend(residual);
        inputs.extend(norm(b, self.norm, self.norm_name.as_deref(), self.inputs));
        if let Some(gate) = self.names.gate {
            inputs.extend(matrix(b, &[gate], self.encoding, self.hidden, self.inputs, None));
        }
        for (name, outputs, width, gain) in [
            (self.names.up, self.hidden, self.inputs, None),
            (self.names.down, self.outputs, self.hidden, self.gain.as_ref()),
        ] {
            inputs.extend(matrix(b, &[name], self.encoding, outputs, width, gain));
            if self.bias {
                inputs.push(vector(b, &[name], "bias", outputs, gain));
            }
        }
        let fused = Fused::FeedForward {
            inputs: self.inputs,
            hidden: self.hidden,
            outputs: self.outputs,
            norm: self.norm,
            encoding: self.encoding,
            bias: self.bias,
            gated: self.names.gate.is_some(),
            residual: residual.is_some(),
        };
        first(&b.fused(fused, &inputs), x)
    }
}

/// The weights of a norm, by its full canonical name.
fn norm(b: &mut Builder, norm: Norm, name: Option<&str>, width: u64) -> Vec<ValueId> {
    let parameters: &[&str] = match norm {
        Norm::None => &[],
        Norm::Rms { .. } => &["weight"],
        Norm::Layer { .. } => &["weight", "bias"],
    };
    let name = name.unwrap_or_default();
    let named = |parameter: &&str| b.weight_named(&format!("{name}.{parameter}"), &[width], false);
    parameters.iter().map(named).collect()
}

/// The elements, and scales if there are any, of `[outputs, inputs]` made of the named linear layers of this scope.
fn matrix(
    b: &mut Builder,
    names: &[&str],
    encoding: Encoding,
    outputs: u64,
    inputs: u64,
    gain: Option<&String>,
) -> Vec<ValueId> {
    let (first, rows, label) = stacked(b, names, "weight", gain);
    let (dtype, shape) = encoding.elements(outputs, inputs);
    let form = WeightForm::Panels(encoding, rows.clone());
    let mut values = vec![b.weight_in(form, &first, &format!("{label}.panels"), dtype, &shape)];
    if let Some((dtype, shape)) = encoding.scales(outputs, inputs) {
        let form = WeightForm::PanelScales(encoding, rows);
        values.push(b.weight_in(form, &first, &format!("{label}.scales"), dtype, &shape));
    }
    values
}

/// A parameter of the named layers of this scope, one after the other.
fn vector(b: &mut Builder, names: &[&str], parameter: &str, length: u64, gain: Option<&String>) -> ValueId {
    let (first, rows, label) = stacked(b, names, parameter, gain);
    if rows == Rows::default() {
        return b.weight_named(&first, &[length], false);
    }
    b.weight_in(
        WeightForm::Vector(rows),
        &first,
        &label,
        DType::Float32,
        &[length],
    )
}

/// Canonical name of the first, what lies below it, and a name for all together.
fn stacked(b: &Builder, names: &[&str], parameter: &str, gain: Option<&String>) -> (String, Rows, String) {
    let mut full = names
        .iter()
        .map(|name| b.weight_name(&format!("{name}.{parameter}")));
    let first = full.next().unwrap_or_default();
    let rows = Rows {
        below: full.collect(),
        gain: gain.cloned(),
    };
    let mut label = b.weight_name(&format!("{}.{parameter}", names.join("+")));
    if gain.is_some() {
        label.push_str(".scaled");
    }
    (first, rows, label)
}

/// The first value, or `otherwise` after an error that the builder keeps.
fn first(values: &[ValueId], otherwise: ValueId) -> ValueId {
    values.first().copied().unwrap_or(otherwise)
}
