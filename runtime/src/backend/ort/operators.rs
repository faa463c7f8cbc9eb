//! How does ONNX Runtime come to run our kernels? As custom operators of the domain that the fused functions live in:
//! a registered operator goes before a function's body.

use crate::backend::fused::{self, Data, Input, Means, Open, Outputs};
use crate::backend::isa;
use half::slice::HalfFloatSliceExt as _;
use kernels::Isa;
use kernels::pool::Pool;
use models::fused::{Attributes, DOMAIN, Fused, Kind};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{
    DynValue, PrimitiveTensorElementType, TensorElementType, TensorValueType, ValueRef, ValueRefMut,
    ValueType,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The fused operators for a session with this many threads, whose weights are in bytes or less, or not.
pub(super) fn domain(threads: usize, words: bool, caches: &Arc<Caches>) -> ort::Result<OperatorDomain> {
    let mut domain = OperatorDomain::new(DOMAIN)?;
    let pool = Pool::shared(threads);
    for kind in Kind::ALL {
        domain = domain.add(FusedOperator {
            kind,
            pool: Arc::clone(&pool),
            words,
            caches: Arc::clone(caches),
        })?;
    }
    Ok(domain)
}

/// The caches of a session's decoder.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// Names of the nodes that have keys and values.
    nodes: Mutex<BTreeSet<String>>,
    /// In a run that writes them where they lie: addresses of those that no node has taken yet, and their lengths.
    open: Mutex<Option<BTreeMap<usize, usize>>>,
}

impl Caches {
    /// How many tensors of keys or of values nodes of ours have.
    pub(super) fn count(&self) -> usize {
        2 * self.nodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Until what is returned is dropped, nodes write these tensors where they lie, each one of them, and no others.
    ///
    /// # Errors
    /// A tensor that is not float32.
    ///
    /// # Safety
    /// Until then, all that is computed is one run, and nobody else reads or writes the tensors.
    #[expect(unsafe_code, reason = "the caller promises what no type says")]
    pub(super) unsafe fn open<'a>(
        &self,
        tensors: impl Iterator<Item = &'a DynValue>,
    ) -> ort::Result<Opened<'_>> {
        let found =
            tensors.map(|tensor| place(&tensor.view()).map(|(_, start, count)| (start.addr(), count)));
        let found = found.collect::<ort::Result<_>>()?;
        *self.places() = Some(found);
        Ok(Opened(self))
    }

    fn places(&self) -> MutexGuard<'_, Option<BTreeMap<usize, usize>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That caches are written where they lie.
#[derive(Debug)]
pub(super) struct Opened<'a>(&'a Caches);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        *self.0.places() = None;
    }
}

/// One operator; its inputs have any types, which the kernel checks.
struct FusedOperator {
    kind: Kind,
    pool: Arc<Pool>,
    words: bool,
    caches: Arc<Caches>,
}

impl Operator for FusedOperator {
    type Kernel<'attr> = FusedKernel<'attr>;

    fn name(&self) -> &str {
        self.kind.name()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(1)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        (0..self.kind.outputs()).map(|_| OperatorOutput::required(TensorElementType::Float32))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<FusedKernel<'attr>> {
        let fused = Fused::read(self.kind, &OfNode(context)).map_err(ort::Error::new)?;
        let caches = if self.kind == Kind::DecoderAttention {
            let mut nodes = self.caches.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.insert(context.node_name()?);
            Some(Arc::clone(&self.caches))
        } else {
            None
        };
        Ok(FusedKernel {
            caches,
            constants: (0..fused.inputs())
                .map(|index| context.constant_input(index).ok())
                .collect(),
            fused,
            pool: Arc::clone(&self.pool),
            words: self.words,
            isa: isa::set().map_err(|error| ort::Error::new(error.to_string()))?,
        })
    }
}

/// The attributes of a node.
struct OfNode<'a, 'attr>(&'a KernelContext<'attr>);

impl Attributes for OfNode<'_, '_> {
    fn int(&self, name: &str) -> Option<i64> {
        self.0.get::<i64>(name)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.0.get::<f32>(name)
    }
}

/// What ONNX Runtime calls.
struct FusedKernel<'attr> {
    fused: Fused,
    /// Where the node has keys and values.
    caches: Option<Arc<Caches>>,
    /// The inputs that are the same in every call, the weights: the library is asked once what they are.
    constants: Vec<Option<ValueRef<'attr>>>,
    pool: Arc<Pool>,
    words: bool,
    isa: Isa,
}

impl Kernel for FusedKernel<'_> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input of a fused operator is missing");
        let constant = |index| self.constants.get(index).and_then(Option::as_ref);
        let values = (0..context.num_inputs()?).map(|index| match constant(index) {
            Some(_) => Ok(None),
            None => context.input(index)?.ok_or_else(missing).map(Some),
        });
        let values: Vec<Option<ValueRef<'_>>> = values.collect::<ort::Result<_>>()?;
        let caches = self.caches.as_ref();
        let mut places = caches.map(|caches| caches.places());
        let mut places = places.as_mut().and_then(|places| places.as_mut());
        let inputs = values.iter().enumerate();
        let inputs = inputs.map(|(index, value)| {
            let value = value.as_ref().or_else(|| constant(index)).ok_or_else(missing)?;
            match &mut places {
                Some(places) if CACHES.contains(&index) => open_input(value, places),
                _ => input(value),
            }
        });
        let inputs: Vec<Input<'_>> = inputs.collect::<ort::Result<_>>()?;
        let mut outputs = OfCall {
            context,
            values: Vec::new(),
        };
        let means = Means {
            isa: self.isa,
            pool: &*self.pool,
            words: self.words,
        };
        fused::run(&self.fused, means, &inputs, &mut outputs).map_err(ort::Error::new)
    }
}

/// Which inputs of attention are keys and values.
const CACHES: std::ops::Range<usize> = 1..3;

/// A tensor of float32: its shape, where it lies, and how many numbers it has.
fn place(value: &ValueRef<'_>) -> ort::Result<(Vec<usize>, *mut f32, usize)> {
    let tensor = value.view().downcast::<TensorValueType<f32>>()?;
    let shape: Vec<usize> = tensor.shape().iter().map(length).collect();
    let count = shape.iter().product();
    Ok((shape, tensor.data_ptr().cast_mut().cast(), count))
}

/// Keys or values that are written where they lie: one of those that may be, once.
fn open_input<'v>(value: &'v ValueRef<'_>, places: &mut BTreeMap<usize, usize>) -> ort::Result<Input<'v>> {
    let (shape, start, count) = place(value)?;
    if places.remove(&start.addr()) != Some(count) {
        return Err(ort::Error::new(
            "keys and values are not the caches that the graph is given",
        ));
    }
    // SAFETY: the tensor has as many numbers, and by the promise to `Caches::open` nobody else reads or writes them.
    #[expect(unsafe_code, reason = "the library knows no input that is written")]
    let open = unsafe { Open::new(start, count) };
    Ok(Input {
        shape,
        data: Data::Open(open),
    })
}

fn length(length: &i64) -> usize {
    usize::try_from(*length).unwrap_or(0)
}

/// A tensor's numbers. Weights lie in a mapped file where the graph says.
fn numbers<'v, T: PrimitiveTensorElementType + std::fmt::Debug>(
    value: &'v ValueRef<'_>,
) -> ort::Result<&'v [T]> {
    let start = value.view().downcast::<TensorValueType<T>>()?.data_ptr().addr();
    if !start.is_multiple_of(align_of::<T>()) {
        return Err(ort::Error::new(
            "a weight of a fused operator is not aligned in its file",
        ));
    }
    Ok(value.try_extract_tensor()?.1)
}

/// A tensor as kernels take it.
fn input<'v>(value: &'v ValueRef<'_>) -> ort::Result<Input<'v>> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(ort::Error::new("an input of a fused operator is not a tensor"));
    };
    let data = match ty {
        TensorElementType::Float32 => Data::F32(numbers(value)?),
        TensorElementType::Float16 => Data::F16(numbers::<half::f16>(value)?.reinterpret_cast()),
        TensorElementType::Uint8 => Data::U8(numbers(value)?),
        TensorElementType::Int64 => Data::I64(numbers(value)?),
        other => {
            return Err(ort::Error::new(format!(
                "an input of a fused operator is {other}, which no kernel takes"
            )));
        }
    };
    Ok(Input {
        shape: shape.iter().map(length).collect(),
        data,
    })
}

/// The outputs of a call.
struct OfCall<'c> {
    context: &'c ComputeContext,
    values: Vec<ValueRefMut<'c>>,
}

impl Outputs for OfCall<'_> {
    fn make(&mut self, shapes: &[&[usize]]) -> Result<Vec<&mut [f32]>, String> {
        let words = |error: ort::Error| error.to_string();
        for (index, shape) in shapes.iter().enumerate() {
            let length = |length: &usize| i64::try_from(*length).unwrap_or(i64::MAX);
            let shape: Vec<i64> = shape.iter().map(length).collect();
            let made = self.context.output(index, shape).map_err(words)?;
            self.values
                .push(made.ok_or("an output of a fused operator is missing")?);
        }
        let data = |value| {
            Ok(ValueRefMut::try_extract_tensor_mut::<f32>(value)
                .map_err(words)?
                .1)
        };
        self.values.iter_mut().map(data).collect()
    }
}
