//! What do all engines share? Named tensors in, named tensors out.
//!
//! An engine implements [`EngineSession`], whose values stay in the engine's own form, so that a KV cache goes from
//! one step to the next without a copy. Everybody else uses [`Session`], which every engine session is.

use crate::error::BackendError;
use half::f16;
use models::dtype::DType;
use std::path::PathBuf;

/// A tensor outside any engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// float32
    F32 {
        /// Outermost first.
        shape: Vec<usize>,
        /// Row by row.
        data: Vec<f32>,
    },
    /// float16
    F16 {
        /// Outermost first.
        shape: Vec<usize>,
        /// Row by row.
        data: Vec<f16>,
    },
    /// int64
    I64 {
        /// Outermost first.
        shape: Vec<usize>,
        /// Row by row.
        data: Vec<i64>,
    },
    /// bool
    Bool {
        /// Outermost first.
        shape: Vec<usize>,
        /// Row by row.
        data: Vec<bool>,
    },
}

impl Tensor {
    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Tensor::F32 { shape, .. }
            | Tensor::F16 { shape, .. }
            | Tensor::I64 { shape, .. }
            | Tensor::Bool { shape, .. } => shape,
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Tensor::F32 { .. } => DType::Float32,
            Tensor::F16 { .. } => DType::Float16,
            Tensor::I64 { .. } => DType::Int64,
            Tensor::Bool { .. } => DType::Bool,
        }
    }

    /// Number of values that are stored, which a right tensor has as many of as its shape says.
    pub fn len(&self) -> usize {
        match self {
            Tensor::F32 { data, .. } => data.len(),
            Tensor::F16 { data, .. } => data.len(),
            Tensor::I64 { data, .. } => data.len(),
            Tensor::Bool { data, .. } => data.len(),
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its values as float32; `None` if it holds no real numbers.
    pub fn into_f32(self) -> Option<Vec<f32>> {
        match self {
            Tensor::F32 { data, .. } => Some(data),
            Tensor::F16 { data, .. } => Some(data.into_iter().map(f16::to_f32).collect()),
            Tensor::I64 { .. } | Tensor::Bool { .. } => None,
        }
    }

    /// A tensor of zeros; `None` for a type that no graph here has.
    pub fn zeros(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
        let length = shape.iter().product();
        match dtype {
            DType::Float32 => Some(Tensor::F32 {
                data: vec![0.0; length],
                shape,
            }),
            DType::Float16 => Some(Tensor::F16 {
                data: vec![f16::ZERO; length],
                shape,
            }),
            DType::Int64 => Some(Tensor::I64 {
                data: vec![0; length],
                shape,
            }),
            DType::Bool => Some(Tensor::Bool {
                data: vec![false; length],
                shape,
            }),
            DType::BFloat16 | DType::UInt8 => None,
        }
    }

    /// The first `length` entries along `axis`; all of it if there are not more.
    #[must_use]
    pub fn keep(self, axis: usize, length: usize) -> Tensor {
        fn part<T: Copy>(
            mut shape: Vec<usize>,
            data: &[T],
            axis: usize,
            length: usize,
        ) -> (Vec<usize>, Vec<T>) {
            let whole = shape[axis];
            let inner: usize = shape[axis + 1..].iter().product();
            let mut kept = Vec::with_capacity(data.len() / whole.max(1) * length);
            for block in data.chunks_exact((whole * inner).max(1)) {
                kept.extend_from_slice(&block[..length * inner]);
            }
            shape[axis] = length;
            (shape, kept)
        }
        if self.shape().get(axis).is_none_or(|&whole| whole <= length) {
            return self;
        }
        match self {
            Tensor::F32 { shape, data } => {
                let (shape, data) = part(shape, &data, axis, length);
                Tensor::F32 { shape, data }
            }
            Tensor::F16 { shape, data } => {
                let (shape, data) = part(shape, &data, axis, length);
                Tensor::F16 { shape, data }
            }
            Tensor::I64 { shape, data } => {
                let (shape, data) = part(shape, &data, axis, length);
                Tensor::I64 { shape, data }
            }
            Tensor::Bool { shape, data } => {
                let (shape, data) = part(shape, &data, axis, length);
                Tensor::Bool { shape, data }
            }
        }
    }
}

/// A declared input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its element type; `None` for one that bundles do not have.
    pub dtype: Option<DType>,
    /// Its dimensions, `None` where they vary.
    pub dims: Vec<Option<usize>>,
}

/// A graph as the engine read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The `.onnx` file.
    pub path: PathBuf,
    /// Inputs in the graph's order.
    pub inputs: Vec<Port>,
    /// Outputs in the graph's order.
    pub outputs: Vec<Port>,
}

/// How many nodes of a graph an accelerator took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Placement {
    /// Nodes on the accelerator.
    pub accelerated: usize,
    /// Nodes of the graph, after the engine's own rewriting.
    pub nodes: usize,
}

impl Placement {
    /// Of several graphs; `None` where not all of them say.
    pub(crate) fn sum(parts: &[Option<Placement>]) -> Option<Placement> {
        let none = Placement {
            accelerated: 0,
            nodes: 0,
        };
        parts.iter().try_fold(none, |sum, part| {
            let part = (*part)?;
            Some(Placement {
                accelerated: sum.accelerated + part.accelerated,
                nodes: sum.nodes + part.nodes,
            })
        })
    }
}

/// A graph prepared by an engine. Values are in the engine's own form.
pub trait EngineSession: Send {
    /// A tensor as the engine holds it.
    type Value: Send;

    /// What the graph declares.
    fn description(&self) -> &Description;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// Takes a tensor over into the engine.
    ///
    /// # Errors
    /// What the engine says.
    fn upload(&self, tensor: Tensor) -> Result<Self::Value, BackendError>;

    /// A copy of a value.
    ///
    /// # Errors
    /// What the engine says, for example an element type that bundles do not have.
    fn download(&self, value: &Self::Value) -> Result<Tensor, BackendError>;

    /// Writes positions of `new` `[1, heads, n, d]`, those from `from` on, into `cache` `[1, heads, c, d]` from position
    /// `at` on.
    ///
    /// # Errors
    /// Tensors that do not fit, or what the engine says.
    fn store(
        &self,
        cache: &mut Self::Value,
        at: usize,
        new: &Self::Value,
        from: usize,
    ) -> Result<(), BackendError> {
        let (mut tensor, new) = (self.download(cache)?, self.download(new)?);
        let stored = match (&mut tensor, &new) {
            (Tensor::F32 { shape, data }, Tensor::F32 { shape: of, data: new }) => {
                store_positions((data, shape), at, (new, of), from)
            }
            (Tensor::F16 { shape, data }, Tensor::F16 { shape: of, data: new }) => {
                store_positions((data, shape), at, (new, of), from)
            }
            _ => None,
        };
        stored.ok_or_else(|| BackendError::Run {
            path: self.description().path.clone(),
            reason: "new positions do not fit the cache".to_owned(),
        })?;
        *cache = self.upload(tensor)?;
        Ok(())
    }

    /// Computes every output, in the order of the description.
    ///
    /// # Errors
    /// What the engine says.
    fn compute(&mut self, inputs: &[(&str, &Self::Value)]) -> Result<Vec<Self::Value>, BackendError>;
}

/// Copies positions of `new`, of `[heads, n, d]` elements, from `from` on into `cache`, of `[heads, c, d]`, from `at` on.
/// `None` where they do not fit.
pub(crate) fn store_positions<T: Copy>(
    cache: (&mut [T], &[usize]),
    at: usize,
    new: (&[T], &[usize]),
    from: usize,
) -> Option<()> {
    let ((cache, cache_shape), (new, new_shape)) = (cache, new);
    let ([1, heads, slots, width], [1, same_heads, count, same_width]) = (cache_shape, new_shape) else {
        return None;
    };
    if heads != same_heads || width != same_width || *width == 0 {
        return None;
    }
    let rows = cache
        .chunks_exact_mut(slots * width)
        .zip(new.chunks_exact(count * width));
    for (cache, new) in rows {
        let new = new.get(from * width..)?;
        cache
            .get_mut(at * width..)?
            .get_mut(..new.len())?
            .copy_from_slice(new);
    }
    Some(())
}

/// A graph prepared by an engine: named tensors in, named tensors out.
pub trait Session: Send {
    /// Inputs that the graph declares, in its order.
    fn inputs(&self) -> &[Port];

    /// Outputs that the graph declares, in its order.
    fn outputs(&self) -> &[Port];

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement>;

    /// Computes every output, in the graph's order. Every declared input must be given, in any order.
    ///
    /// # Errors
    /// Inputs that do not fit, all of them; or what the engine says.
    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError>;
}

impl<S: EngineSession> Session for S {
    fn inputs(&self) -> &[Port] {
        &self.description().inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.description().outputs
    }

    fn placement(&self) -> Option<Placement> {
        EngineSession::placement(self)
    }

    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError> {
        check_inputs(self.description(), inputs)?;
        let values = inputs
            .iter()
            .map(|(_, tensor)| self.upload(tensor.clone()))
            .collect::<Result<Vec<S::Value>, BackendError>>()?;
        let named: Vec<(&str, &S::Value)> = inputs.iter().map(|(name, _)| *name).zip(&values).collect();
        let outputs = self.compute(&named)?;
        let names = self.description().outputs.iter().map(|port| port.name.clone());
        names
            .zip(&outputs)
            .map(|(name, value)| Ok((name, self.download(value)?)))
            .collect()
    }
}

/// Whether `inputs` are what the graph takes: engines differ in what they do about wrong ones, some panic.
fn check_inputs(description: &Description, inputs: &[(&str, Tensor)]) -> Result<(), BackendError> {
    let mut problems = Vec::new();
    for port in &description.inputs {
        let given: Vec<&Tensor> = inputs
            .iter()
            .filter(|(name, _)| *name == port.name)
            .map(|(_, tensor)| tensor)
            .collect();
        let &[tensor] = given.as_slice() else {
            problems.push(format!(
                "`{}` is given {} times, expected once",
                port.name,
                given.len()
            ));
            continue;
        };
        if tensor
            .shape()
            .iter()
            .copied()
            .try_fold(1_usize, usize::checked_mul)
            != Some(tensor.len())
        {
            problems.push(format!(
                "`{}` has {} values for the shape {:?}",
                port.name,
                tensor.len(),
                tensor.shape()
            ));
        }
        if let Some(dtype) = port.dtype
            && dtype != tensor.dtype()
        {
            problems.push(format!("`{}` is {}, expected {dtype}", port.name, tensor.dtype()));
        }
        let fits = port.dims.len() == tensor.shape().len()
            && port
                .dims
                .iter()
                .zip(tensor.shape())
                .all(|(dim, found)| dim.is_none_or(|dim| dim == *found));
        if !fits {
            let expected: Vec<String> = port
                .dims
                .iter()
                .map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string()))
                .collect();
            problems.push(format!(
                "`{}` has the shape {:?}, expected [{}]",
                port.name,
                tensor.shape(),
                expected.join(", ")
            ));
        }
    }
    for (name, _) in inputs {
        if description.inputs.iter().all(|port| port.name != *name) {
            problems.push(format!("`{name}` is not an input"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(BackendError::Inputs {
        path: description.path.clone(),
        problems,
    })
}

/// Whether a graph's inputs and outputs are those that the bundle's contract declares.
///
/// # Errors
/// All differences.
pub fn check_contract(
    description: &Description,
    entry: &models::bundle::GraphEntry,
) -> Result<(), BackendError> {
    use models::bundle::IoDim;
    let mut problems = Vec::new();
    for (kind, ports, declared) in [
        ("input", &description.inputs, &entry.inputs),
        ("output", &description.outputs, &entry.outputs),
    ] {
        for io in declared {
            let Some(port) = ports.iter().find(|port| port.name == io.name) else {
                problems.push(format!("{kind} `{}` is missing", io.name));
                continue;
            };
            if port.dtype.is_some_and(|dtype| dtype != io.dtype) {
                let found = port.dtype.map_or("unknown", DType::name);
                problems.push(format!("{kind} `{}` is {found}, expected {}", io.name, io.dtype));
            }
            let same = port.dims.len() == io.dims.len()
                && port
                    .dims
                    .iter()
                    .zip(&io.dims)
                    .all(|(found, declared)| match (found, declared) {
                        (Some(found), IoDim::Fixed(declared)) => u64::try_from(*found) == Ok(*declared),
                        // An engine may have lost a length that the contract knows, or know that `batch` is 1.
                        (None, _) | (Some(_), IoDim::Symbol(_)) => true,
                    });
            if !same {
                problems.push(format!(
                    "{kind} `{}` has other dimensions than the contract says",
                    io.name
                ));
            }
        }
        for port in ports {
            if declared.iter().all(|io| io.name != port.name) {
                problems.push(format!("{kind} `{}` is not in the contract", port.name));
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(BackendError::Contract {
        path: description.path.clone(),
        problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, dims: Vec<Option<usize>>) -> Port {
        Port {
            name: name.to_owned(),
            dtype: Some(DType::Float32),
            dims,
        }
    }

    #[test]
    fn a_part_along_an_axis() {
        let data: Vec<f32> = (0..12_u8).map(f32::from).collect();
        let tensor = Tensor::F32 {
            shape: vec![2, 3, 2],
            data,
        };
        let kept = tensor.clone().keep(1, 2);
        assert_eq!(kept.shape(), [2, 2, 2]);
        assert_eq!(kept.into_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(tensor.clone().keep(1, 3), tensor);
        assert_eq!(tensor.clone().keep(1, 0).len(), 0);
        assert_eq!(tensor.keep(0, 1).len(), 6);
    }

    #[test]
    fn positions_of_every_head_are_stored() {
        let mut cache = vec![0; 2 * 4 * 2];
        let new: Vec<i32> = (1..=12).collect();
        let shapes: (&[usize], &[usize]) = (&[1, 2, 4, 2], &[1, 2, 3, 2]);
        assert_eq!(
            store_positions((&mut cache, shapes.0), 1, (&new, shapes.1), 1),
            Some(())
        );
        assert_eq!(cache, [0, 0, 3, 4, 5, 6, 0, 0, 0, 0, 9, 10, 11, 12, 0, 0]);
        for (at, from) in [(3, 1), (4, 2), (9, 0), (0, 9)] {
            let mut cache = cache.clone();
            let fits = store_positions((&mut cache, shapes.0), at, (&new, shapes.1), from);
            assert_eq!(fits, None, "{at} {from}");
        }
        let other: &[usize] = &[1, 3, 2, 2];
        assert_eq!(store_positions((&mut cache, shapes.0), 0, (&new, other), 0), None);
    }

    #[test]
    fn wrong_inputs_are_reported_all_at_once() {
        let description = Description {
            path: PathBuf::from("graph.onnx"),
            inputs: vec![
                port("a", vec![None, Some(2)]),
                port("b", vec![Some(1)]),
                port("c", vec![Some(1)]),
            ],
            outputs: Vec::new(),
        };
        let right = Tensor::F32 {
            shape: vec![1],
            data: vec![0.0],
        };
        let inputs = [
            (
                "a",
                Tensor::F32 {
                    shape: vec![1, 3],
                    data: vec![0.0; 2],
                },
            ),
            (
                "b",
                Tensor::I64 {
                    shape: vec![1],
                    data: vec![0],
                },
            ),
            ("d", right),
        ];
        let Err(BackendError::Inputs { problems, .. }) = check_inputs(&description, &inputs) else {
            panic!("accepted")
        };
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert_eq!(problems[1], "`a` has the shape [1, 3], expected [?, 2]");
    }
}
