//! What do all engines share? Named tensors in, named tensors out.
//!
//! An engine implements [`EngineSession`], whose values stay in the engine's own form, so that a KV cache goes from
//! one step to the next without a copy. Everybody else uses [`Session`], which every engine session is.

use crate::error::BackendError;
use half::f16;
use models::dtype::DType;
use ndarray::{Array4, ArrayD, ArrayViewD, ArrayViewMutD, Axis, Ix4, Slice, s};
use std::ops::Range;
use std::path::PathBuf;

/// A tensor outside any engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// float32
    F32(ArrayD<f32>),
    /// float16
    F16(ArrayD<f16>),
    /// int64
    I64(ArrayD<i64>),
    /// bool
    Bool(ArrayD<bool>),
}

/// The same of a tensor, whatever its elements are.
macro_rules! of_any {
    ($tensor:expr, $array:ident => $value:expr) => {
        match $tensor {
            Tensor::F32($array) => $value,
            Tensor::F16($array) => $value,
            Tensor::I64($array) => $value,
            Tensor::Bool($array) => $value,
        }
    };
}

impl Tensor {
    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        of_any!(self, array => array.shape())
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        match self {
            Tensor::F32(_) => DType::Float32,
            Tensor::F16(_) => DType::Float16,
            Tensor::I64(_) => DType::Int64,
            Tensor::Bool(_) => DType::Bool,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        of_any!(self, array => array.len())
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its values as float32; `None` if it holds no real numbers.
    pub fn into_f32(self) -> Option<ArrayD<f32>> {
        match self {
            Tensor::F32(array) => Some(array),
            Tensor::F16(array) => Some(array.mapv(f16::to_f32)),
            Tensor::I64(_) | Tensor::Bool(_) => None,
        }
    }

    /// A tensor of zeros; `None` for a type that no graph here has.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Option<Tensor> {
        match dtype {
            DType::Float32 => Some(Tensor::F32(ArrayD::zeros(shape))),
            DType::Float16 => Some(Tensor::F16(ArrayD::from_elem(shape, f16::ZERO))),
            DType::Int64 => Some(Tensor::I64(ArrayD::zeros(shape))),
            DType::Bool => Some(Tensor::Bool(ArrayD::from_elem(shape, false))),
            DType::BFloat16 | DType::UInt8 | DType::Int8 => None,
        }
    }

    /// The first `length` entries along `axis`; all of it if there are not more.
    #[must_use]
    pub fn keep(self, axis: usize, length: usize) -> Tensor {
        fn part<T: Clone>(array: &ArrayD<T>, axis: usize, length: usize) -> ArrayD<T> {
            array.slice_axis(Axis(axis), Slice::from(..length)).to_owned()
        }
        if self.shape().get(axis).is_none_or(|&whole| whole <= length) {
            return self;
        }
        match &self {
            Tensor::F32(array) => Tensor::F32(part(array, axis, length)),
            Tensor::F16(array) => Tensor::F16(part(array, axis, length)),
            Tensor::I64(array) => Tensor::I64(part(array, axis, length)),
            Tensor::Bool(array) => Tensor::Bool(part(array, axis, length)),
        }
    }
}

/// What a graph is given for one of its inputs.
#[derive(Debug)]
pub enum Input<'a, V> {
    /// A value that the engine holds.
    Held(&'a V),
    /// A cache that the engine holds and writes where it lies, where it [can](EngineSession::writes_caches): all caches of
    /// a computation are given so, or none.
    Open(&'a mut V),
    /// float32 numbers where they lie, row by row without gaps. An engine that can reads them there.
    Lent(ArrayViewD<'a, f32>),
}

/// What an engine says of [`Input::Open`] that writes no caches.
pub(crate) const UNWRITTEN: &str = "the engine does not write caches where they lie";

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

/// Some positions of one sequence in a tensor of caches `[batch, heads, slots, d]`.
#[derive(Debug)]
pub struct Positions<'a, V> {
    /// The tensor; `None` for a sequence of nothing.
    pub cache: Option<&'a V>,
    /// The sequence's place along the first axis.
    pub row: usize,
    /// The slot of its first position.
    pub from: usize,
    /// The slot behind its last position.
    pub to: usize,
}

impl<V> Clone for Positions<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Positions<'_, V> {}

/// A graph prepared by an engine. Values are in the engine's own form; they are all that a computation remembers, so that
/// any number of conversations can use one graph at once.
pub trait EngineSession: Send + Sync {
    /// A tensor as the engine holds it.
    type Value: Send;

    /// What the graph declares.
    fn description(&self) -> &Description;

    /// How many nodes an accelerator took, where one was asked for and says so.
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// Whether computations write new positions into all `count` caches where they lie, [`Input::Open`]: tensors
    /// `[batch, heads, slots, d]` of at least as many slots as the mask is long. Outputs `present.*` then have no slots.
    fn writes_caches(&self, count: usize) -> bool {
        let _ = count;
        false
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
            (Tensor::F32(cache), Tensor::F32(new)) => store_positions(cache.view_mut(), at, new.view(), from),
            (Tensor::F16(cache), Tensor::F16(new)) => store_positions(cache.view_mut(), at, new.view(), from),
            _ => None,
        };
        stored.ok_or_else(|| BackendError::Run {
            path: self.description().path.clone(),
            reason: "new positions do not fit the cache".to_owned(),
        })?;
        *cache = self.upload(tensor)?;
        Ok(())
    }

    /// A tensor `[rows, heads, slots, d]` of the sequences `rows`, whose last positions are in slot `end - 1`; what is in
    /// front of a shorter sequence, and behind all of them, is zero. `shape` is `[heads, slots, d]`.
    ///
    /// # Errors
    /// Tensors that do not fit, or what the engine says.
    fn gather(
        &self,
        rows: &[Positions<'_, Self::Value>],
        dtype: DType,
        shape: [usize; 3],
        end: usize,
    ) -> Result<Self::Value, BackendError> {
        let download =
            |row: &Positions<'_, Self::Value>| row.cache.map(|cache| self.download(cache)).transpose();
        let tensors: Vec<Option<Tensor>> = rows.iter().map(download).collect::<Result<_, _>>()?;
        let tensors = tensors.iter().zip(rows);
        let tensor = match dtype {
            DType::Float16 => {
                let rows = tensors.map(|(tensor, row)| match tensor {
                    Some(Tensor::F16(array)) => (Some(array.view()), row.row, row.from..row.to),
                    _ => (None, row.row, 0..0),
                });
                gather_positions(rows, shape, end, f16::ZERO).map(Tensor::F16)
            }
            _ => {
                let rows = tensors.map(|(tensor, row)| match tensor {
                    Some(Tensor::F32(array)) => (Some(array.view()), row.row, row.from..row.to),
                    _ => (None, row.row, 0..0),
                });
                gather_positions(rows, shape, end, 0.0).map(Tensor::F32)
            }
        };
        let tensor = tensor.ok_or_else(|| BackendError::Run {
            path: self.description().path.clone(),
            reason: "caches do not fit each other".to_owned(),
        })?;
        self.upload(tensor)
    }

    /// Computes every output, in the order of the description.
    ///
    /// # Errors
    /// What the engine says.
    fn compute(
        &self,
        inputs: &mut [(&str, Input<'_, Self::Value>)],
    ) -> Result<Vec<Self::Value>, BackendError>;
}

/// Copies positions of `new` `[1, heads, n, d]` from `from` on into `cache` `[1, heads, c, d]` from `at` on. `None` where
/// they do not fit.
pub(crate) fn store_positions<T: Clone>(
    cache: ArrayViewMutD<'_, T>,
    at: usize,
    new: ArrayViewD<'_, T>,
    from: usize,
) -> Option<()> {
    let mut cache = cache.into_dimensionality::<Ix4>().ok()?;
    let new = new.into_dimensionality::<Ix4>().ok()?;
    let ((1, heads, slots, width), (1, same_heads, count, same_width)) = (cache.dim(), new.dim()) else {
        return None;
    };
    let end = at.checked_add(count.checked_sub(from)?)?;
    if heads != same_heads || width != same_width || width == 0 || end > slots {
        return None;
    }
    cache
        .slice_mut(s![.., .., at..end, ..])
        .assign(&new.slice(s![.., .., from.., ..]));
    Some(())
}

/// For each sequence a tensor `[batch, heads, slots, d]`, its row there and its slots: all of them `[rows, heads, slots,
/// d]`, up to slot `end`, and `empty` in front and behind. `shape` is `[heads, slots, d]`. `None` where they do not fit.
pub(crate) fn gather_positions<'a, T: Copy + 'a>(
    rows: impl ExactSizeIterator<Item = (Option<ArrayViewD<'a, T>>, usize, Range<usize>)>,
    [heads, slots, width]: [usize; 3],
    end: usize,
    empty: T,
) -> Option<ArrayD<T>> {
    let mut all = Array4::from_elem((rows.len(), heads, slots, width), empty);
    for (mut to, (cache, row, filled)) in all.outer_iter_mut().zip(rows) {
        let Some(cache) = cache else { continue };
        let cache = cache.into_dimensionality::<Ix4>().ok()?;
        let (batch, same_heads, held, same_width) = cache.dim();
        let start = end.checked_sub(filled.len())?;
        if row >= batch || heads != same_heads || width != same_width || filled.end > held || end > slots {
            return None;
        }
        to.slice_mut(s![.., start..end, ..])
            .assign(&cache.slice(s![row, .., filled, ..]));
    }
    Some(all.into_dyn())
}

/// A graph prepared by an engine: named tensors in, named tensors out.
pub trait Session: Send + Sync {
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
    fn run(&self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError>;
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

    fn run(&self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError> {
        check_inputs(self.description(), inputs)?;
        let values = inputs
            .iter()
            .map(|(_, tensor)| match tensor {
                Tensor::F32(array) if array.is_standard_layout() && !array.is_empty() => Ok(None),
                other => self.upload(other.clone()).map(Some),
            })
            .collect::<Result<Vec<Option<S::Value>>, BackendError>>()?;
        let mut given = Vec::with_capacity(inputs.len());
        for ((name, tensor), value) in inputs.iter().zip(&values) {
            match (value, tensor) {
                (Some(value), _) => given.push((*name, Input::Held(value))),
                (None, Tensor::F32(array)) => given.push((*name, Input::Lent(array.view()))),
                (None, _) => {}
            }
        }
        let outputs = self.compute(&mut given)?;
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
        let tensor = Tensor::F32(ArrayD::from_shape_vec(vec![2, 3, 2], data).unwrap());
        let kept = tensor.clone().keep(1, 2);
        assert_eq!(kept.shape(), [2, 2, 2]);
        let kept: Vec<f32> = kept.into_f32().unwrap().into_iter().collect();
        assert_eq!(kept, [0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(tensor.clone().keep(1, 3), tensor);
        assert_eq!(tensor.clone().keep(1, 0).len(), 0);
        assert_eq!(tensor.keep(0, 1).len(), 6);
    }

    #[test]
    fn positions_of_every_head_are_stored() {
        let mut cache = ArrayD::<i32>::zeros(vec![1, 2, 4, 2]);
        let new = ArrayD::from_shape_vec(vec![1, 2, 3, 2], (1..=12).collect()).unwrap();
        assert_eq!(store_positions(cache.view_mut(), 1, new.view(), 1), Some(()));
        assert_eq!(
            cache.as_slice().unwrap(),
            [0, 0, 3, 4, 5, 6, 0, 0, 0, 0, 9, 10, 11, 12, 0, 0]
        );
        for (at, from) in [(3, 1), (4, 2), (9, 0), (0, 9)] {
            let mut cache = cache.clone();
            let fits = store_positions(cache.view_mut(), at, new.view(), from);
            assert_eq!(fits, None, "{at} {from}");
        }
        let other = new.into_shape_with_order(vec![1, 3, 2, 2]).unwrap();
        assert_eq!(store_positions(cache.view_mut(), 0, other.view(), 0), None);
    }

    #[test]
    fn sequences_are_gathered_at_the_end_of_the_slots() {
        // Two rows of two heads with three slots.
        let cache = ArrayD::from_shape_vec(vec![2, 2, 3, 1], (1..=12).collect()).unwrap();
        let other = ArrayD::from_shape_vec(vec![1, 2, 1, 1], vec![20, 21]).unwrap();
        let rows = || {
            let cache = Some(cache.view());
            [(cache, 1, 1..3), (None, 0, 0..0), (Some(other.view()), 0, 0..1)].into_iter()
        };
        let all = gather_positions(rows(), [2, 2, 1], 2, 0).unwrap();
        assert_eq!(all.shape(), [3, 2, 2, 1]);
        assert_eq!(all.as_slice().unwrap(), [8, 9, 11, 12, 0, 0, 0, 0, 0, 20, 0, 21]);
        for shape in [[2, 1, 1], [3, 2, 1], [2, 2, 2]] {
            assert_eq!(gather_positions(rows(), shape, shape[1], 0), None, "{shape:?}");
        }
        // With room behind them.
        let all = gather_positions(rows(), [2, 4, 1], 3, 0).unwrap();
        assert_eq!(
            all.as_slice().unwrap(),
            [
                0, 8, 9, 0, 0, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 21, 0
            ]
        );
        for (row, filled, end) in [(2, 0..3, 3), (0, 1..4, 3), (0, 0..3, 2), (0, 0..3, 4)] {
            let wrong = [(Some(cache.view()), row, filled)];
            assert_eq!(gather_positions(wrong.into_iter(), [2, 3, 1], end, 0), None);
        }
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
        let inputs = [
            ("a", Tensor::F32(ArrayD::zeros(vec![1, 3]))),
            ("b", Tensor::I64(ArrayD::zeros(vec![1]))),
            ("d", Tensor::F32(ArrayD::zeros(vec![1]))),
        ];
        let Err(BackendError::Inputs { problems, .. }) = check_inputs(&description, &inputs) else {
            panic!("accepted")
        };
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert_eq!(problems[0], "`a` has the shape [1, 3], expected [?, 2]");
    }
}
