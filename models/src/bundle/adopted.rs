//! Adopted graphs: how is a graph fed that another program wrote, and does it fit a bundle?
//!
//! Its inputs and outputs are those of the contract by what they mean, not by name, type and length alone.
//! What it may do otherwise is here, and nothing else: other names, float16 where ours have float32, lengths
//! that it does not state, no `position_ids`, features of all images in one list, logits of every position,
//! and inputs that the contract does not know (see [`Given`]).

#![deny(clippy::as_conversions)]

use super::{Bundle, GraphEntry, Io, IoDim, Target, Variant};
use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a graph is fed that another program wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// The contract's name of an input or output, and the graph's, where they differ.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, String>,
    /// What inputs are given that the contract does not know, by their names: of type int64 or bool, one
    /// number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, Given>,
}

/// What an input is given that the contract does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Given {
    /// The same in every call: `num_logits_to_keep` is 1.
    Number(i64),
    /// What follows from the call.
    Told(Told),
}

/// What follows from a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Whether there is a cache: 0 in the first call, then 1. Decoders that have it, Optimum's
    /// `use_cache_branch`, take one new position in a call with a cache.
    HasPast,
}

impl Adopted {
    /// The graph's name of what the contract calls `name`.
    pub fn name<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// Whether, with a cache, the graph takes one new position in a call.
    pub fn steps(&self) -> bool {
        let mut given = self.given.values();
        given.any(|given| *given == Given::Told(Told::HasPast))
    }
}

impl Variant {
    /// Whether its graphs are another program's.
    pub fn is_adopted(&self) -> bool {
        self.graphs().any(|graph| graph.adopted.is_some())
    }
}

impl Bundle {
    /// What is wrong with a variant of another program's graphs, one sentence each: what they cannot be in this
    /// bundle, whose variants and files are not looked at.
    pub fn adopted_problems(&self, variant: &Variant) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_adopted(variant, &mut problems);
        problems
    }

    /// Whether the graphs of an adopted variant can play their roles; all problems.
    pub(super) fn check_adopted(&self, variant: &Variant, problems: &mut Vec<String>) {
        let name = format!("{} {}", variant.target, variant.precision);
        let others = variant.fixed.is_some() || !variant.further_encoders.is_empty();
        let graphs = variant.graphs();
        let some = graphs.filter(|graph| graph.adopted.is_none()).count();
        if others || some > 0 || variant.target != Target::Portable {
            problems.push(format!(
                "variant {name} has adopted graphs and other ones, expected three adopted ones of target portable"
            ));
            return;
        }
        for (graph, expected) in [
            (&variant.vision_encoder, self.adopted_encoder()),
            (&variant.embed_tokens, self.adopted_embedding()),
            (&variant.decoder, self.adopted_decoder(variant.kv_dtype)),
        ] {
            if let Some(adopted) = &graph.adopted {
                compare(graph, adopted, &expected, problems);
            }
        }
    }

    fn adopted_encoder(&self) -> Expected {
        let image = &self.image;
        let sides = [3, image.height, image.width].map(|side| Dim::Known(side.into()));
        let [channels, height, width] = sides;
        let list = vec![stated(image.tokens), self.hidden()];
        let features = std::iter::once(Dim::One).chain(list.iter().copied());
        Expected {
            inputs: vec![Port::real(
                "pixel_values",
                vec![Dim::One, channels, height, width],
            )],
            outputs: vec![Port {
                list: Some(list.clone()),
                ..Port::real("image_features", features.collect())
            }],
        }
    }

    fn adopted_embedding(&self) -> Expected {
        let embeds = vec![Dim::One, Dim::Varies, self.hidden()];
        Expected {
            inputs: vec![Port::whole("input_ids")],
            outputs: vec![Port::real("inputs_embeds", embeds)],
        }
    }

    fn adopted_decoder(&self, kv_dtype: DType) -> Expected {
        let kv = &self.kv;
        let cache = |prefix: &str| -> Vec<Port> {
            let names = (0..kv.layers)
                .flat_map(|layer| ["key", "value"].map(|part| format!("{prefix}.{layer}.{part}")));
            let dims = [Dim::One, number(kv.kv_heads), Dim::Varies, number(kv.head_dim)];
            let port = |name: String| Port {
                dtypes: vec![kv_dtype],
                ..Port::real(&name, dims.to_vec())
            };
            names.map(port).collect()
        };
        let embeds = vec![Dim::One, Dim::Varies, self.hidden()];
        let logits = vec![Dim::One, Dim::Any, stated(self.prompt.vocab_size)];
        let positions = Port {
            optional: true,
            ..Port::whole("position_ids")
        };
        let mut inputs = vec![
            Port::real("inputs_embeds", embeds),
            Port::whole("attention_mask"),
            positions,
        ];
        inputs.extend(cache("past_key_values"));
        let mut outputs = vec![Port::real("logits", logits)];
        outputs.extend(cache("present"));
        Expected { inputs, outputs }
    }

    fn hidden(&self) -> Dim {
        stated(self.prompt.hidden_size)
    }
}

/// What a graph must have.
struct Expected {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

/// An input or output by its role.
struct Port {
    /// The contract's name.
    name: String,
    /// Types that will do.
    dtypes: Vec<DType>,
    dims: Vec<Dim>,
    /// Other dimensions that will do.
    list: Option<Vec<Dim>>,
    /// Whether a graph may lack it.
    optional: bool,
}

/// A length, where a graph states one.
#[derive(Debug, Clone, Copy)]
enum Dim {
    /// Of the batch: 1, or it varies.
    One,
    /// It must vary.
    Varies,
    /// This one.
    Known(u64),
    /// This one, and the contract must state it, for a runtime compares it with what comes.
    Stated(u64),
    /// Whatever it is.
    Any,
}

fn number(length: usize) -> Dim {
    Dim::Known(u64::try_from(length).unwrap_or(u64::MAX))
}

fn stated(length: usize) -> Dim {
    Dim::Stated(u64::try_from(length).unwrap_or(u64::MAX))
}

impl Port {
    fn real(name: &str, dims: Vec<Dim>) -> Port {
        Port {
            name: name.to_owned(),
            dtypes: vec![DType::Float32, DType::Float16],
            dims,
            list: None,
            optional: false,
        }
    }

    /// `[batch, positions]` of whole numbers.
    fn whole(name: &str) -> Port {
        Port {
            dtypes: vec![DType::Int64],
            ..Port::real(name, vec![Dim::One, Dim::Varies])
        }
    }

    fn takes(&self, io: &Io) -> bool {
        let all = |dims: &[Dim]| {
            let same = dims.len() == io.dims.len();
            same && dims.iter().zip(&io.dims).all(|(dim, found)| dim.takes(found))
        };
        self.dtypes.contains(&io.dtype) && (all(&self.dims) || self.list.as_deref().is_some_and(all))
    }

    /// For messages: ``float32 or float16 [1 or any,any,64]``.
    fn words(&self) -> String {
        let dtypes: Vec<&str> = self.dtypes.iter().map(|dtype| dtype.name()).collect();
        let list = |dims: &[Dim]| {
            let dims: Vec<String> = dims.iter().map(|dim| dim.words()).collect();
            format!("[{}]", dims.join(","))
        };
        let lists: Vec<String> = std::iter::once(&self.dims)
            .chain(&self.list)
            .map(|dims| list(dims))
            .collect();
        format!("{} {}", dtypes.join(" or "), lists.join(" or "))
    }
}

impl Dim {
    fn takes(self, found: &IoDim) -> bool {
        match (self, found) {
            (Dim::Varies, IoDim::Fixed(_)) | (Dim::Stated(_), IoDim::Symbol(_)) => false,
            (Dim::Any, _) | (_, IoDim::Symbol(_)) => true,
            (Dim::One, IoDim::Fixed(length)) => *length == 1,
            (Dim::Known(expected) | Dim::Stated(expected), IoDim::Fixed(length)) => *length == expected,
        }
    }

    fn words(self) -> String {
        match self {
            Dim::One => "batch".to_owned(),
            Dim::Varies | Dim::Any => "any".to_owned(),
            Dim::Known(length) | Dim::Stated(length) => length.to_string(),
        }
    }
}

/// Compares the inputs and outputs of an adopted graph with the roles; all differences.
fn compare(graph: &GraphEntry, adopted: &Adopted, expected: &Expected, problems: &mut Vec<String>) {
    let path = &graph.path;
    let mut roles = Vec::new();
    for (kind, ports, found) in [
        ("input", &expected.inputs, &graph.inputs),
        ("output", &expected.outputs, &graph.outputs),
    ] {
        for port in ports {
            roles.push(port.name.as_str());
            let name = adopted.name(&port.name);
            match found.iter().find(|io| io.name == name) {
                Some(io) if port.takes(io) => {}
                Some(io) => {
                    let (as_what, words) = (named(name, &port.name), port.words());
                    problems.push(format!("`{path}` has the {kind} {io}{as_what}, expected {words}"));
                }
                None if port.optional => {}
                None => problems.push(format!(
                    "`{path}` has no {kind} `{}`, expected {}",
                    port.name,
                    port.words()
                )),
            }
        }
    }
    for io in &graph.inputs {
        let fed = expected
            .inputs
            .iter()
            .any(|port| adopted.name(&port.name) == io.name);
        match (fed, adopted.given.get(&io.name)) {
            (true, None) => {}
            (false, Some(_)) if is_number(io) => {}
            (false, Some(_)) => problems.push(format!(
                "`{path}` has the input {io}, which is given a number, expected int64 or bool [] or [1]"
            )),
            (_, given) => {
                let what = given.map_or("no role and no number", |_| "a role and a number");
                problems.push(format!(
                    "`{path}` has the input {io} with {what}, expected either"
                ));
            }
        }
    }
    // A name that leads nowhere would be a role that nobody plays.
    let stray = adopted
        .names
        .keys()
        .filter(|role| !roles.contains(&role.as_str()));
    problems.extend(stray.map(|role| format!("`{path}` names `{role}`, which is no role of its")));
    let inputs = |name: &&String| graph.inputs.iter().any(|io| io.name == **name);
    let nowhere = adopted.given.keys().filter(|name| !inputs(name));
    problems.extend(nowhere.map(|name| format!("`{path}` gives a number to `{name}`, which it has not")));
}

/// Whether an input is one number.
fn is_number(io: &Io) -> bool {
    let one = matches!(io.dims.as_slice(), [] | [IoDim::Fixed(1)]);
    one && matches!(io.dtype, DType::Int64 | DType::Bool)
}

/// What an input is, where its name does not say it.
fn named(name: &str, role: &str) -> String {
    if name == role {
        String::new()
    } else {
        format!(" as `{role}`")
    }
}
