//! Adopted graphs: a session of a graph that another program wrote, as one that keeps our contract.
//!
//! Everything else knows the contract's names, float32 and one set of inputs; what such a graph has otherwise is
//! made good here, in [`EngineSession::compute`].

use super::session::{Description, EngineSession, Input, Placement, Port, Positions, Tensor, UNWRITTEN};
use crate::error::BackendError;
use half::f16;
use models::bundle::{Adopted, Given, GraphEntry, Io, IoDim, Told};
use models::dtype::DType;
use ndarray::{ArrayD, ArrayViewD};

/// The graph's contract with our names, and without what only this file feeds.
pub fn as_ours(entry: &GraphEntry, adopted: &Adopted) -> GraphEntry {
    let ours = |ios: &[Io]| -> Vec<Io> {
        let kept = ios.iter().filter(|io| !adopted.given.contains_key(&io.name));
        let renamed = kept.map(|io| Io {
            name: our_name(adopted, &io.name),
            ..io.clone()
        });
        renamed.collect()
    };
    GraphEntry {
        inputs: ours(&entry.inputs),
        outputs: ours(&entry.outputs),
        ..entry.clone()
    }
}

/// What the contract calls what the graph calls `name`.
fn our_name(adopted: &Adopted, name: &str) -> String {
    let mut names = adopted.names.iter();
    let found = names.find(|(_, theirs)| *theirs == name);
    found.map_or(name, |(ours, _)| ours).to_owned()
}

/// The lengths of a port: those that the engine knows, and those that the contract states beside.
fn lengths(port: &Port, stated: &[Io]) -> Vec<Option<usize>> {
    let io = stated.iter().find(|io| io.name == port.name);
    let stated = io.map_or(&[][..], |io| &io.dims).iter().map(|dim| match dim {
        IoDim::Fixed(length) => usize::try_from(*length).ok(),
        IoDim::Symbol(_) => None,
    });
    let stated = stated.chain(std::iter::repeat(None));
    let dims = port.dims.iter().zip(stated);
    dims.map(|(found, stated)| found.or(stated)).collect()
}

/// A session of an adopted graph.
#[derive(Debug)]
pub struct AdoptedSession<S> {
    session: S,
    /// In our names.
    description: Description,
    /// In the graph's order: our name of each of its inputs, its own, and whether it takes float16.
    inputs: Vec<Fed>,
    /// Inputs that are fed here: the graph's name, its type and rank, and what it is given.
    given: Vec<(Port, Given)>,
    /// Which of the graph's outputs comes first here: the one, where a role has one.
    first: usize,
}

/// An input that is fed from outside.
#[derive(Debug)]
struct Fed {
    ours: String,
    theirs: String,
    half: bool,
}

impl<S: EngineSession> AdoptedSession<S> {
    /// `entry` is the contract of the session's graph, which it keeps.
    pub fn new(session: S, entry: &GraphEntry, adopted: &Adopted) -> AdoptedSession<S> {
        // Types are those of the contract, which was compared with the engine's.
        let dtype = |name: &str| {
            let io = entry.inputs.iter().find(|io| io.name == name);
            io.map(|io| io.dtype)
        };
        let found = session.description();
        let (mut inputs, mut given) = (Vec::new(), Vec::new());
        for port in &found.inputs {
            match adopted.given.get(&port.name) {
                Some(what) => given.push((
                    Port {
                        dtype: dtype(&port.name),
                        ..port.clone()
                    },
                    *what,
                )),
                None => inputs.push(Fed {
                    ours: our_name(adopted, &port.name),
                    theirs: port.name.clone(),
                    half: dtype(&port.name) == Some(DType::Float16),
                }),
            }
        }
        let renamed = |ports: &[Port], stated: &[Io]| -> Vec<Port> {
            let ports = ports
                .iter()
                .filter(|port| !adopted.given.contains_key(&port.name));
            let port = |port: &Port| Port {
                name: our_name(adopted, &port.name),
                dims: lengths(port, stated),
                ..port.clone()
            };
            ports.map(port).collect()
        };
        let mut outputs = renamed(&found.outputs, &entry.outputs);
        let is_the_one = |port: &Port| ["image_features", "inputs_embeds"].contains(&port.name.as_str());
        let first = outputs.iter().position(is_the_one).unwrap_or(0);
        if first > 0 {
            outputs.swap(0, first);
        }
        let description = Description {
            path: found.path.clone(),
            inputs: renamed(&found.inputs, &entry.inputs),
            outputs,
        };
        AdoptedSession {
            session,
            description,
            inputs,
            given,
            first,
        }
    }

    /// Whether a call of these inputs has a cache: its mask is longer than what is new.
    fn has_past(&self, inputs: &[(&str, Input<'_, S::Value>)]) -> Result<bool, BackendError> {
        let find = |name: &str| inputs.iter().find(|(given, _)| *given == name);
        let (Some((_, Input::Lent(embeds))), Some((_, Input::Held(mask)))) =
            (find("inputs_embeds"), find("attention_mask"))
        else {
            return Err(self.failed("neither embeddings nor a mask tell whether there is a cache"));
        };
        let total = self.session.download(mask)?.shape().last().copied();
        Ok(total > embeds.shape().get(1).copied())
    }

    /// What an input is given that only this file feeds.
    fn number(
        &self,
        port: &Port,
        given: Given,
        inputs: &[(&str, Input<'_, S::Value>)],
    ) -> Result<S::Value, BackendError> {
        let number = match given {
            Given::Number(number) => number,
            Given::Told(Told::HasPast) => i64::from(self.has_past(inputs)?),
        };
        let shape = vec![1; port.dims.len()];
        let tensor = match port.dtype {
            Some(DType::Bool) => Tensor::Bool(ArrayD::from_elem(shape, number != 0)),
            _ => Tensor::I64(ArrayD::from_elem(shape, number)),
        };
        self.session.upload(tensor)
    }

    fn failed(&self, reason: &str) -> BackendError {
        BackendError::Run {
            path: self.description.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

impl<S: EngineSession> EngineSession for AdoptedSession<S> {
    type Value = S::Value;

    fn description(&self) -> &Description {
        &self.description
    }

    fn placement(&self) -> Option<Placement> {
        self.session.placement()
    }

    fn upload(&self, tensor: Tensor) -> Result<S::Value, BackendError> {
        self.session.upload(tensor)
    }

    fn download(&self, value: &S::Value) -> Result<Tensor, BackendError> {
        self.session.download(value)
    }

    fn store(
        &self,
        cache: &mut S::Value,
        at: usize,
        new: &S::Value,
        from: usize,
    ) -> Result<(), BackendError> {
        self.session.store(cache, at, new, from)
    }

    fn gather(
        &self,
        rows: &[Positions<'_, S::Value>],
        dtype: DType,
        shape: [usize; 3],
        end: usize,
    ) -> Result<S::Value, BackendError> {
        self.session.gather(rows, dtype, shape, end)
    }

    /// Inputs that the graph does not take are left out: `position_ids`, which it then makes itself.
    fn compute(&self, inputs: &mut [(&str, Input<'_, S::Value>)]) -> Result<Vec<S::Value>, BackendError> {
        let halves = |array: &ArrayViewD<'_, f32>| Tensor::F16(array.mapv(f16::from_f32));
        let mut made: Vec<(&str, S::Value)> = Vec::new();
        let mut fed: Vec<(&str, Input<'_, S::Value>)> = Vec::new();
        for port in &self.inputs {
            match inputs.iter().find(|(name, _)| *name == port.ours) {
                Some((_, Input::Lent(array))) if port.half => {
                    made.push((&port.theirs, self.session.upload(halves(array))?));
                }
                Some((_, Input::Lent(array))) => fed.push((&port.theirs, Input::Lent(array.view()))),
                Some((_, Input::Held(value))) => fed.push((&port.theirs, Input::Held(value))),
                Some((_, Input::Open(_))) => return Err(self.failed(UNWRITTEN)),
                None => return Err(self.failed(&format!("nothing is given for input `{}`", port.theirs))),
            }
        }
        for (port, given) in &self.given {
            made.push((&port.name, self.number(port, *given, inputs)?));
        }
        fed.extend(made.iter().map(|(name, value)| (*name, Input::Held(value))));
        let mut outputs = self.session.compute(&mut fed)?;
        if self.first < outputs.len() {
            outputs.swap(0, self.first);
        }
        Ok(outputs)
    }
}
