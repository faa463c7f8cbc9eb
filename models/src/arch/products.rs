//! Products of the fused networks: linear layers and feed-forward blocks with their weights, biases, norms
//! and residuals.

use crate::dtype::DType;
use crate::fused::{Encoding, Fused, Norm, TableEncoding};
use crate::graph::{Builder, Rows, ValueId, WeightForm};
use std::collections::BTreeMap;

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

/// Encodings of single operators that are not those of their part, by the canonical name of the first weight
/// that the operator multiplies with: `language_model.layers.0.self_attn.q_proj.weight`.
pub type Exceptions = BTreeMap<String, Encoding>;

/// The encoding of a part's products, but for exceptions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) usual: Encoding,
    pub(super) exceptions: &'a Exceptions,
}

impl Stored<'_> {
    /// The encoding of the operator whose first weight is that of `layer` in the current scope.
    fn of(self, b: &Builder, layer: &str) -> Encoding {
        let name = b.weight_name(&format!("{layer}.weight"));
        self.exceptions.get(&name).copied().unwrap_or(self.usual)
    }
}

/// A product in words of its scope; [`Linear::add`] adds it.
pub(super) struct Linear<'a> {
    pub(super) inputs: u64,
    /// Names of the linear layers whose outputs follow one another, with their lengths.
    pub(super) parts: &'a [(&'a str, u64)],
    pub(super) encoding: Stored<'a>,
    pub(super) bias: bool,
    pub(super) gelu: bool,
    /// Full canonical name of the factors of the outputs.
    pub(super) gain: Option<String>,
    pub(super) norm: Norm,
    pub(super) norm_name: Option<String>,
}

impl Linear<'_> {
    /// `x [..,K] -> [..,N]`, `residual` added.
    pub(super) fn add(&self, b: &mut Builder, x: ValueId, residual: Option<ValueId>) -> ValueId {
        let outputs = self.parts.iter().map(|(_, length)| length).sum();
        let mut inputs = vec![x];
        inputs.extend(residual);
        inputs.extend(norm(b, self.norm, self.norm_name.as_deref(), self.inputs));
        let names: Vec<&str> = self.parts.iter().map(|(name, _)| *name).collect();
        let encoding = self.encoding.of(b, names.first().copied().unwrap_or_default());
        inputs.extend(matrix(
            b,
            &names,
            encoding,
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
            encoding,
            bias: self.bias,
            gelu: self.gelu,
            residual: residual.is_some(),
        };
        let b = &mut b.scope(names.join("+"));
        first(&b.fused(fused, &inputs), x)
    }
}

/// Names of the linear layers of a feed-forward block in its scope.
pub(super) struct Names<'a> {
    pub(super) gate: Option<&'a str>,
    pub(super) up: &'a str,
    pub(super) down: &'a str,
}

/// Two products with an activation between them; [`FeedForward::add`] adds them.
pub(super) struct FeedForward<'a> {
    pub(super) inputs: u64,
    pub(super) hidden: u64,
    pub(super) outputs: u64,
    pub(super) norm: Norm,
    pub(super) encoding: Stored<'a>,
    pub(super) bias: bool,
    pub(super) names: Names<'a>,
    pub(super) norm_name: Option<String>,
    /// Full canonical name of the factors of the outputs.
    pub(super) gain: Option<String>,
}

impl FeedForward<'_> {
    /// `x [..,K] -> [..,N]`, `residual` added.
    pub(super) fn add(&self, b: &mut Builder, x: ValueId, residual: Option<ValueId>) -> ValueId {
        let mut inputs = vec![x];
        inputs.extend(residual);
        inputs.extend(norm(b, self.norm, self.norm_name.as_deref(), self.inputs));
        let encoding = self.encoding.of(b, self.names.gate.unwrap_or(self.names.up));
        if let Some(gate) = self.names.gate {
            inputs.extend(matrix(b, &[gate], encoding, self.hidden, self.inputs, None));
        }
        for (name, outputs, width, gain) in [
            (self.names.up, self.hidden, self.inputs, None),
            (self.names.down, self.outputs, self.hidden, self.gain.as_ref()),
        ] {
            inputs.extend(matrix(b, &[name], encoding, outputs, width, gain));
            if self.bias {
                inputs.push(vector(b, &[name], "bias", outputs, gain));
            }
        }
        let fused = Fused::FeedForward {
            inputs: self.inputs,
            hidden: self.hidden,
            outputs: self.outputs,
            norm: self.norm,
            encoding,
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

/// The elements, and scales if there are any, of `[outputs, inputs]` made of the named linear layers of this
/// scope.
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
pub(super) fn first(values: &[ValueId], otherwise: ValueId) -> ValueId {
    values.first().copied().unwrap_or(otherwise)
}
