//! Which input and output of another program's graph is what? By the contract's names where it has them, else by the
//! form that only one role has.

use super::scan::Scanned;
use crate::onnx::proto::{TensorTypeProto, ValueInfoProto};
use models::arch::Network;
use models::bundle::{Adopted, Given, Io, IoDim, KvSpec, Told};
use models::dtype::DType;
use std::collections::BTreeMap;

/// Inputs that the contract does not know, and what they are given.
const GIVEN: [(&str, Given); 3] = [
    // One position's logits are all that an answer needs.
    ("num_logits_to_keep", Given::Number(1)),
    ("logits_to_keep", Given::Number(1)),
    ("use_cache_branch", Given::Told(Told::HasPast)),
];

/// Inputs and outputs of a graph, and how they are fed.
#[derive(Debug, PartialEq)]
pub(super) struct Ports {
    pub(super) inputs: Vec<Io>,
    pub(super) outputs: Vec<Io>,
    pub(super) adopted: Adopted,
    /// Outputs that nobody looks at.
    pub(super) unused: Vec<String>,
}

/// Finds the roles of a graph's inputs and outputs.
///
/// # Errors
/// What has no type or role, or two that have one role: each is a sentence that goes on after the file's name.
pub(super) fn ports(network: Network, scanned: &Scanned, kv: &KvSpec) -> Result<Ports, Vec<String>> {
    let mut problems = Vec::new();
    let mut read = |kind: &str, list: &[ValueInfoProto]| -> Vec<Io> {
        let ports = list.iter().map(|port| io(kind, port));
        let (good, bad): (Vec<_>, Vec<_>) = ports.partition(Result::is_ok);
        problems.extend(bad.into_iter().filter_map(Result::err));
        good.into_iter().filter_map(Result::ok).collect()
    };
    let inputs = read("input", &scanned.inputs);
    let outputs = read("output", &scanned.outputs);
    if !problems.is_empty() {
        return Err(problems);
    }
    if network == Network::Decoder {
        problems.extend(layers_differ(&inputs, kv));
    }
    let mut roles = Roles {
        names: BTreeMap::new(),
        problems,
    };
    let mut adopted = Adopted::default();
    for io in &inputs {
        if let Some((_, given)) = GIVEN.iter().find(|(name, _)| *name == io.name)
            && network == Network::Decoder
        {
            adopted.given.insert(io.name.clone(), *given);
        } else if let Some(role) = input_role(network, io) {
            roles.play("input", role, &io.name);
        } else {
            roles.problems.push(format!(
                "has the input {io}, expected no others than {}",
                known_inputs(network)
            ));
        }
    }
    let mut unused = Vec::new();
    for io in &outputs {
        match output_role(network, io, &outputs) {
            Some(role) => roles.play("output", role, &io.name),
            None => unused.push(io.name.clone()),
        }
    }
    let Roles { names, problems } = roles;
    if !problems.is_empty() {
        return Err(problems);
    }
    adopted.names = names.into_iter().filter(|(role, name)| role != name).collect();
    Ok(Ports {
        inputs,
        outputs,
        adopted,
        unused,
    })
}

/// Who plays which role.
struct Roles {
    names: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Roles {
    fn play(&mut self, kind: &str, role: String, name: &str) {
        if let Some(other) = self.names.get(&role) {
            let problem = format!("has the {kind}s `{other}` and `{name}` for `{role}`, expected one");
            self.problems.push(problem);
        } else {
            self.names.insert(role, name.to_owned());
        }
    }
}

/// What a graph's input is, in the contract's words.
fn input_role(network: Network, io: &Io) -> Option<String> {
    let Io { name, dtype, dims } = io;
    let (real, rank) = (dtype.is_float(), dims.len());
    let named = |word: &str| name.to_ascii_lowercase().contains(word);
    let role = match network {
        Network::VisionEncoder => (real && rank == 4).then_some("pixel_values"),
        Network::EmbedTokens => (!real && rank == 2).then_some("input_ids"),
        Network::Decoder if real && rank == 4 => return slot(name).map(|slot| slot.named("past_key_values")),
        Network::Decoder if real && rank == 3 => Some("inputs_embeds"),
        Network::Decoder if !real && named("mask") => Some("attention_mask"),
        Network::Decoder if !real && named("position_ids") => Some("position_ids"),
        Network::Decoder => None,
    };
    role.map(str::to_owned)
}

/// What a graph's output is, in the contract's words: the one that is called so, or the only one of that form.
fn output_role(network: Network, io: &Io, all: &[Io]) -> Option<String> {
    let the_one = |role: &str, fits: &dyn Fn(&Io) -> bool| {
        let named = all.iter().any(|other| other.name == role);
        let alone = fits(io) && all.iter().filter(|other| fits(other)).count() == 1;
        let is = if named { io.name == role } else { alone };
        is.then(|| role.to_owned())
    };
    let real = |io: &Io| io.dtype.is_float();
    match network {
        Network::VisionEncoder => the_one("image_features", &|io| real(io) && matches!(io.dims.len(), 2 | 3)),
        Network::EmbedTokens => the_one("inputs_embeds", &|io| real(io) && io.dims.len() == 3),
        Network::Decoder if io.dims.len() == 4 => slot(&io.name).map(|slot| slot.named("present")),
        Network::Decoder => the_one("logits", &|io| real(io) && io.dims.len() == 3),
    }
}

/// A tensor of the cache.
#[derive(Debug, PartialEq)]
struct Slot {
    layer: usize,
    part: &'static str,
}

impl Slot {
    fn named(&self, prefix: &str) -> String {
        format!("{prefix}.{}.{}", self.layer, self.part)
    }
}

/// Layer and part that a name speaks of: `past_key_values.3.key`, `present_3_value`, `key_cache.3`. The last such word
/// counts, for `past_key_values` has both.
fn slot(name: &str) -> Option<Slot> {
    let lower = name.to_ascii_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let mut numbers = words.iter().filter_map(|word| word.parse::<usize>().ok());
    let (layer, None) = (numbers.next()?, numbers.next()) else {
        return None;
    };
    let part = words.iter().rev().find_map(|word| match *word {
        "key" | "keys" | "k" => Some("key"),
        "value" | "values" | "v" => Some("value"),
        _ => None,
    })?;
    Some(Slot { layer, part })
}

/// Whether a decoder has a cache of as many layers as the config states.
fn layers_differ(inputs: &[Io], kv: &KvSpec) -> Option<String> {
    let slots = inputs.iter().filter(|io| io.dims.len() == 4);
    let last = slots.filter_map(|io| slot(&io.name)).map(|slot| slot.layer).max();
    let found = last.map_or(0, |layer| layer.saturating_add(1));
    let expected = kv.layers;
    let problem = || {
        format!("has keys and values of {found} layers as inputs, expected {expected}, as config.json states")
    };
    (found != expected).then(problem)
}

/// For messages.
fn known_inputs(network: Network) -> &'static str {
    match network {
        Network::VisionEncoder => "`pixel_values`",
        Network::EmbedTokens => "`input_ids`",
        Network::Decoder => {
            "`inputs_embeds`, `attention_mask`, `position_ids`, `past_key_values.N.key` and `.value`, `num_logits_to_keep` and \
             `use_cache_branch`"
        }
    }
}

/// An input or output in the contract's form; otherwise what is wrong with it.
fn io(kind: &str, port: &ValueInfoProto) -> Result<Io, String> {
    let name = port.name.clone().unwrap_or_default();
    let tensor = port.r#type.as_ref().and_then(|found| found.tensor_type.as_ref());
    let Some(TensorTypeProto { elem_type, shape }) = tensor else {
        return Err(format!(
            "has the {kind} `{name}`, which is not a tensor, expected tensors alone"
        ));
    };
    let number = elem_type.unwrap_or(0);
    let Some(dtype) = dtype(number) else {
        return Err(format!(
            "has the {kind} `{name}` of type {}, expected float32, float16, int64 or bool",
            type_name(number)
        ));
    };
    let Some(shape) = shape else {
        return Err(format!(
            "has the {kind} `{name}` without a shape, expected one, of symbols where lengths vary"
        ));
    };
    let dims = shape.dim.iter().map(|dim| {
        let length = dim.dim_value.and_then(|length| u64::try_from(length).ok());
        match (length, &dim.dim_param) {
            (Some(length), _) => IoDim::Fixed(length),
            (None, Some(symbol)) if !symbol.is_empty() => IoDim::Symbol(symbol.clone()),
            _ => IoDim::Symbol("?".to_owned()),
        }
    });
    Ok(Io {
        name,
        dtype,
        dims: dims.collect(),
    })
}

fn dtype(number: i32) -> Option<DType> {
    match number {
        1 => Some(DType::Float32),
        7 => Some(DType::Int64),
        9 => Some(DType::Bool),
        10 => Some(DType::Float16),
        _ => None,
    }
}

/// ONNX's name of an element type.
fn type_name(number: i32) -> String {
    let name = match number {
        0 => "none",
        2 => "uint8",
        3 => "int8",
        4 => "uint16",
        5 => "int16",
        6 => "int32",
        8 => "string",
        11 => "float64",
        12 => "uint32",
        13 => "uint64",
        16 => "bfloat16",
        other => return format!("{other}"),
    };
    name.to_owned()
}

/// States the lengths that the contract has to state and a graph may leave open: of an image's features, an embedding,
/// and the logits of a position.
pub(super) fn state_lengths(ports: &mut Ports, tokens: usize, hidden: usize, vocab: usize) {
    let Ports {
        inputs,
        outputs,
        adopted,
        ..
    } = ports;
    for (role, lengths) in [
        ("inputs_embeds", &[hidden][..]),
        ("image_features", &[hidden, tokens]),
        ("logits", &[vocab]),
    ] {
        let name = adopted.name(role);
        let mut all = inputs.iter_mut().chain(outputs.iter_mut());
        let Some(port) = all.find(|io| io.name == name) else {
            continue;
        };
        // The last dimension first.
        for (dim, length) in port.dims.iter_mut().rev().zip(lengths) {
            if matches!(dim, IoDim::Symbol(_)) {
                *dim = IoDim::Fixed(u64::try_from(*length).unwrap_or(u64::MAX));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_caches() {
        let of = |layer, part| Some(Slot { layer, part });
        for (name, expected) in [
            ("past_key_values.3.key", of(3, "key")),
            ("past_key_values.11.value", of(11, "value")),
            ("present_0_key", of(0, "key")),
            ("past_value_7", of(7, "value")),
            ("k_cache.2", of(2, "key")),
            ("past_key_values", None),
            ("past_key_values.0.1.key", None),
            ("layer.5", None),
        ] {
            assert_eq!(slot(name), expected, "{name}");
        }
    }
}
