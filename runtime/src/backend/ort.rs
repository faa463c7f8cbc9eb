//! ONNX Runtime, on the CPU and with its CoreML execution provider. It and `ort/` are all that names the `ort` crate.
//!
//! The shared library is found at run time. It is loaded once per process, whoever asks first.

mod ending;
mod links;
mod operators;
mod version;

pub use ending::watch_thread;
use links::Linked;
use operators::Caches;

use super::session::{
    Description, EngineSession, Input, Placement, Port, Positions, Session, Tensor, UNWRITTEN,
    gather_positions, store_positions,
};
use super::{
    Backend, CoreMlFormat, CoreMlOptions, CoreMlUnits, Decoder, Form, Model, Options, Provider,
    TokenEmbedder, VisionEncoder, parts,
};
use crate::error::BackendError;
use crate::library;
use models::bundle::{Precision, Target, Variant};
use models::dtype::DType;
use ndarray::ArrayD;
use ort::environment::GlobalThreadPoolOptions;
use ort::ep::coreml::{ComputeUnits, ModelFormat, SpecializationStrategy};
use ort::ep::{CoreML, ExecutionProvider};
use ort::logging::LogLevel;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session as OrtGraph, SessionInputValue};
use ort::value::{
    DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorElementType, TensorRef, ValueType,
};
use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// ONNX Runtime as a backend: one for each provider that it has.
#[derive(Debug)]
pub(super) struct OnnxRuntime {
    /// `OrtCoreMl` or `Cpu`.
    pub(super) provider: Provider,
}

impl Backend for OnnxRuntime {
    fn provider(&self) -> Provider {
        self.provider
    }

    fn check(&self, options: &Options) -> Result<(), BackendError> {
        let unavailable = |reason: String| BackendError::Unavailable {
            provider: self.provider,
            reason,
        };
        let loaded = load(options).map_err(unavailable)?;
        let _inside = ending::enter().map_err(|reason| unavailable(reason.to_owned()))?;
        if self.provider != Provider::OrtCoreMl {
            return Ok(());
        }
        if !<CoreML as ExecutionProvider>::is_available().map_err(|error| unavailable(line(&error)))? {
            let path = loaded.display();
            return Err(unavailable(format!(
                "the ONNX Runtime at {path} has no CoreML execution provider"
            )));
        }
        Ok(())
    }

    fn check_form(&self, form: Option<&Form>, options: &Options) -> Result<(), BackendError> {
        let unavailable = |reason: String| BackendError::Unavailable {
            provider: self.provider,
            reason,
        };
        if let Some(form) = form {
            version::takes_precision(form.precision(), version::has_half_arithmetic())
                .map_err(unavailable)?;
        }
        if self.provider != Provider::OrtCoreMl
            || form.is_some_and(|form| !version::has_weights_outside(form))
        {
            return Ok(());
        }
        let loaded = load(options).map_err(unavailable)?;
        version::takes_external_weights(version::of(&loaded).as_deref(), &loaded).map_err(unavailable)
    }

    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError> {
        let manner = Manner {
            packed: true,
            fused: false,
            whole: false,
        };
        Ok(Box::new(OrtSession::open(
            self.provider,
            path,
            &[],
            manner,
            &[],
            options,
        )?))
    }

    fn targets(&self) -> &'static [Target] {
        match self.provider {
            Provider::Cpu => &[Target::Cpu, Target::Portable, Target::OrtCoreMl],
            _ => &[Target::OrtCoreMl, Target::Portable],
        }
    }

    fn runs_adopted(&self) -> bool {
        self.provider == Provider::Cpu
    }

    fn vision_encoder(&self, model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
        parts::vision_encoder(model, model.form.graphs(self.provider)?, &|path, fixed| {
            self.open_part(model, path, fixed)
        })
    }

    fn embedder(&self, model: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
        if self.provider != Provider::OrtCoreMl || model.form.graphs(self.provider)?.fixed.is_none() {
            return parts::embedder(model, model.form.graphs(self.provider)?, &|path, fixed| {
                self.open_part(model, path, fixed)
            });
        }
        // The embedding of fixed lengths is looked up outside: its length varies.
        let outside = OnnxRuntime {
            provider: Provider::Cpu,
        };
        parts::embedder(model, model.form.graphs(self.provider)?, &|path, fixed| {
            let mut session = outside.open_part(model, path, fixed)?;
            session.placement = Some(Placement {
                accelerated: 0,
                nodes: 0,
            });
            Ok(session)
        })
    }

    fn decoder(&self, model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
        parts::decoder(
            model,
            model.form.graphs(self.provider)?,
            // CoreML wants every length that can be known.
            self.provider == Provider::Cpu,
            &|path, fixed| self.open_part(model, path, fixed),
        )
    }
}

impl OnnxRuntime {
    fn open_part(
        &self,
        model: &Model<'_>,
        path: &Path,
        fixed: &[(&str, usize)],
    ) -> Result<OrtSession, BackendError> {
        let variant = model.form.graphs(self.provider)?;
        let manner = Manner {
            // Packed copies of float32 weights cost as much memory and more time than they save until the first words.
            packed: variant.precision != Precision::Fp32,
            fused: variant.target == Target::Cpu,
            whole: variant.fixed.is_some(),
        };
        let mut options = model.options.clone();
        if let Some(cache) = &mut options.coreml.cache {
            cache.push(contents(model, variant, path));
        }
        let open = |linked: &[Linked]| OrtSession::open(self.provider, path, fixed, manner, linked, &options);
        match open(&[]) {
            Err(refused @ BackendError::Graph { .. }) => {
                let linked = links::linked(model.directory, variant, path);
                if linked.is_empty() {
                    Err(refused)
                } else {
                    open(&linked)
                }
            }
            opened => opened,
        }
    }
}

/// A folder's name that says what a graph computes: ONNX Runtime tells what it compiled for Core ML apart by the graph's
/// path alone, and a bundle may be replaced.
fn contents(model: &Model<'_>, variant: &Variant, path: &Path) -> String {
    let graph = variant
        .graphs()
        .find(|graph| model.directory.join(&graph.path) == path);
    let names = graph
        .into_iter()
        .flat_map(|graph| std::iter::once(&graph.path).chain(&graph.data));
    let entries = names.filter_map(|name| model.bundle.files.iter().find(|file| file.path == *name));
    // Of hashes: this one need not be strong.
    let mut all = DefaultHasher::new();
    entries.for_each(|file| all.write(file.sha256.as_bytes()));
    format!("{:016x}", all.finish())
}

/// How a graph is run.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Whether ONNX Runtime's kernels may keep copies of weights in an order of their own; otherwise weights stay where
    /// they are mapped.
    packed: bool,
    /// Whether all that takes time are our kernels, which bring their own threads: ONNX Runtime's would only wait for
    /// work, awake, on the same cores.
    fused: bool,
    /// Whether an accelerator is to take the graph whole: all lengths are fixed.
    whole: bool,
}

/// The library of this process and its environment.
struct Loaded {
    path: PathBuf,
    /// Threads of the pool that sessions share.
    threads: usize,
    environment: ort::environment::Environment,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// An ONNX model that returns its input.
const IDENTITY: &[u8] = b"\x08\x08:7\x0a\x10\x0a\x01x\x12\x01y\x22\x08Identity\x12\x01gZ\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01b\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01B\x04\x0a\x00\x10\x0d";

/// Makes the domain of our operators known: the first session that names it does, and two at once would collide in
/// ONNX Runtime.
fn introduce_operators(environment: &ort::environment::Environment) -> ort::Result<()> {
    OrtGraph::builder(environment)?
        .with_operators(operators::domain(1, false, &Arc::default())?)?
        .commit_from_memory(IDENTITY)?;
    Ok(())
}

/// Loads ONNX Runtime unless that was done; says from where, or why it cannot be.
fn load(options: &Options) -> Result<PathBuf, String> {
    // Before the lock, as everywhere: nobody who holds it waits at the gate.
    let _inside = ending::enter_to_open()?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let candidates = library::candidates(options.onnxruntime.as_deref());
    if let Some(loaded) = &*loaded {
        // A path that was named must be the one in use; well-known places are as good as each other.
        if let Some(asked) = &options.onnxruntime {
            let candidates = candidates?;
            let same = |path: &PathBuf| path.canonicalize().ok() == loaded.path.canonicalize().ok();
            if !candidates.iter().any(same) {
                let other = loaded.path.display();
                return Err(format!(
                    "{} was asked for, but {other} is already loaded",
                    asked.display()
                ));
            }
        }
        return Ok(loaded.path.clone());
    }
    let named = options.onnxruntime.is_some() || std::env::var_os(library::VARIABLE).is_some();
    let mut problems = Vec::new();
    for path in candidates? {
        if !named && let Err(problem) = library::check_trust(&path) {
            problems.push(problem);
            continue;
        }
        match ort::init_from(&path) {
            Ok(builder) => {
                ending::watch();
                // Messages are returned as errors; what else the library has to say goes nowhere.
                let builder = builder.with_name("fvlm").with_telemetry(false);
                let builder =
                    builder.with_logger(Arc::new(|_: LogLevel, _: &str, _: &str, _: &str, _: &str| {}));
                // One pool for all sessions: threads of a session that has nothing to do, which wait for a while on a
                // core before they sleep, are the threads of the session that has.
                let threads = options.thread_count();
                let pool = GlobalThreadPoolOptions::default();
                let pool = pool.with_intra_threads(threads).map_err(|error| line(&error))?;
                // Nodes follow one another. Threads for nodes side by side would have no work, and wait for it awake
                // while graphs are opened.
                let pool = pool.with_inter_threads(1).map_err(|error| line(&error))?;
                let builder = builder.with_global_thread_pool(pool);
                let environment = builder.build().map_err(|error| line(&error))?;
                introduce_operators(&environment).map_err(|error| line(&error))?;
                ending::watch();
                *loaded = Some(Loaded {
                    path: path.clone(),
                    threads,
                    environment,
                });
                return Ok(path);
            }
            // A bare name is for the system's loader, whose failure is the common case.
            Err(ort::LoadDynamicError::Dlopen { path, .. }) if !named && path.is_relative() => {}
            Err(ort::LoadDynamicError::Dlopen { error, path }) => {
                // The system's words are in the cause.
                let cause =
                    std::error::Error::source(&error).map_or_else(|| line(&error), |cause| line(&cause));
                problems.push(format!("{}: {cause}", path.display()));
            }
            Err(error) => problems.push(line(&error)),
        }
    }
    Err(match problems.first() {
        Some(problem) => format!("ONNX Runtime cannot be loaded: {problem}"),
        None => "no ONNX Runtime library was found".to_owned(),
    })
}

fn line(error: &dyn std::fmt::Display) -> String {
    error.to_string().replace('\n', " ")
}

/// A graph that ONNX Runtime has prepared.
///
/// Runs of one graph follow one another. ONNX Runtime itself lets several threads run a graph at once; the `ort` crate does
/// not, for some of its execution providers do not bear it. A run takes all cores, so that little is lost, and two at once
/// would take the memory of two.
#[derive(Debug)]
struct OrtSession {
    description: Description,
    /// There until the session is dropped.
    graph: Option<Mutex<OrtGraph>>,
    /// Of a decoder whose attention our kernels compute.
    caches: Arc<Caches>,
    placement: Option<Placement>,
}

impl Drop for OrtSession {
    fn drop(&mut self) {
        // Where the process ends, the system takes it back.
        match ending::enter() {
            Ok(_inside) => drop(self.graph.take()),
            Err(_) => std::mem::forget(self.graph.take()),
        }
    }
}

impl OrtSession {
    /// `fixed`: dimension symbols whose length is known. `linked`: data files that are read here and given in memory.
    fn open(
        provider: Provider,
        path: &Path,
        fixed: &[(&str, usize)],
        manner: Manner,
        linked: &[Linked],
        options: &Options,
    ) -> Result<OrtSession, BackendError> {
        let refuse = |reason: String| BackendError::Graph {
            provider,
            path: path.to_owned(),
            reason,
        };
        load(options).map_err(|reason| BackendError::Unavailable { provider, reason })?;
        let _inside = ending::enter_to_open().map_err(|reason| refuse(reason.to_owned()))?;
        let (builder, shared) = {
            let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(loaded) = &*loaded else {
                let reason = "ONNX Runtime is not loaded".to_owned();
                return Err(BackendError::Unavailable { provider, reason });
            };
            let builder = OrtGraph::builder(&loaded.environment).map_err(|error| refuse(line(&error)))?;
            (builder, loaded.threads)
        };
        let threads = options.thread_count();
        let caches: Arc<Caches> = Arc::default();
        let own = if manner.fused { 1 } else { threads };
        let builder = if own == shared {
            builder
        } else {
            builder
                .with_independent_thread_pool()
                .map_err(|error| refuse(line(&error)))?
                .with_intra_threads(own)
                .map_err(|error| refuse(line(&error)))?
        };
        let mut builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|error| refuse(line(&error)))?
            .with_prepacking(manner.packed)
            .map_err(|error| refuse(line(&error)))?
            // A plan of all buffers would be allocated beside the first run's, which stay: more memory and no less time.
            .with_memory_pattern(false)
            .map_err(|error| refuse(line(&error)))?
            .with_operators(
                operators::domain(threads, manner.fused && manner.packed, &caches)
                    .map_err(|error| refuse(line(&error)))?,
            )
            .map_err(|error| refuse(line(&error)))?
            .with_log_level(if provider == Provider::OrtCoreMl {
                LogLevel::Info
            } else {
                LogLevel::Error
            })
            .map_err(|error| refuse(line(&error)))?;
        for (name, length) in fixed {
            let length = i64::try_from(*length).unwrap_or(i64::MAX);
            builder = builder
                .with_dimension_override(name, length)
                .map_err(|error| refuse(line(&error)))?;
        }
        for Linked { name, path } in linked {
            let bytes = models::regular::bytes(path, u64::MAX)
                .map_err(|error| refuse(format!("{}: {error}", path.display())))?;
            builder = builder
                .with_external_initializer_file_in_memory(name, bytes.into())
                .map_err(|error| refuse(line(&error)))?;
        }
        let placed: Arc<Mutex<Option<Placement>>> = Arc::default();
        if provider == Provider::OrtCoreMl {
            let heard = Arc::clone(&placed);
            builder = builder
                .with_logger(Arc::new(
                    move |_: LogLevel, _: &str, _: &str, _: &str, message: &str| {
                        if let Some(found) = placement(message) {
                            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                        }
                    },
                ))
                .map_err(|error| refuse(line(&error)))?;
            let coreml = coreml(&options.coreml, manner.whole)
                .map_err(|reason| BackendError::Unavailable { provider, reason })?
                .build()
                .error_on_failure();
            // Not the graph's fault: another provider can still run it.
            builder =
                builder
                    .with_execution_providers([coreml])
                    .map_err(|error| BackendError::Unavailable {
                        provider,
                        reason: format!(
                            "the CoreML execution provider cannot be registered: {}",
                            line(&error)
                        ),
                    })?;
        }
        let graph = builder
            .commit_from_file(path)
            .map_err(|error| refuse(line(&error)))?;
        ending::watch();
        let ports = |outlets: &[ort::value::Outlet]| outlets.iter().map(port).collect();
        let description = Description {
            path: path.to_owned(),
            inputs: ports(graph.inputs()),
            outputs: ports(graph.outputs()),
        };
        let placement = *placed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Placement { accelerated, nodes }) = placement
            && manner.whole
            && accelerated < nodes
            && !options.coreml.partial
        {
            return Err(BackendError::NotWhole {
                provider,
                path: path.to_owned(),
                accelerated,
                nodes,
            });
        }
        Ok(OrtSession {
            description,
            graph: Some(Mutex::new(graph)),
            caches,
            placement,
        })
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> BackendError {
        BackendError::Run {
            path: self.description.path.clone(),
            reason: line(reason),
        }
    }

    fn enter(&self) -> Result<ending::Inside, BackendError> {
        ending::enter().map_err(|reason| self.failed(&reason))
    }
}

/// The provider as asked for. `whole`: all lengths are fixed, so that it need not look at others.
fn coreml(options: &CoreMlOptions, whole: bool) -> Result<CoreML, String> {
    let provider = CoreML::default()
        .with_static_input_shapes(whole)
        .with_compute_units(match options.units {
            CoreMlUnits::All => ComputeUnits::All,
            CoreMlUnits::CpuAndNe => ComputeUnits::CPUAndNeuralEngine,
            CoreMlUnits::CpuAndGpu => ComputeUnits::CPUAndGPU,
            CoreMlUnits::Cpu => ComputeUnits::CPUOnly,
        })
        .with_model_format(match options.format {
            CoreMlFormat::MlProgram => ModelFormat::MLProgram,
            CoreMlFormat::NeuralNetwork => ModelFormat::NeuralNetwork,
        })
        .with_specialization_strategy(if options.fast_prediction {
            SpecializationStrategy::FastPrediction
        } else {
            SpecializationStrategy::Default
        });
    let Some(cache) = &options.cache else {
        return Ok(provider);
    };
    std::fs::create_dir_all(cache)
        .map_err(|error| format!("the cache of compiled models, {}: {error}", cache.display()))?;
    Ok(provider.with_model_cache_dir(cache.display()))
}

/// What the CoreML provider logs about a graph: `... number of nodes in the graph: 450 number of nodes supported by
/// CoreML: 449`. Its interface has no other way to tell.
fn placement(message: &str) -> Option<Placement> {
    let number = |after: &str| -> Option<usize> {
        let (_, rest) = message.split_once(after)?;
        let digits = rest.trim_start();
        let end = digits
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    let nodes = number("number of nodes in the graph:")?;
    let accelerated = number("number of nodes supported by CoreML:")?;
    Some(Placement { accelerated, nodes })
}

fn port(outlet: &ort::value::Outlet) -> Port {
    let (dtype, dims) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => (
            dtype_of(*ty),
            shape.iter().map(|&dim| usize::try_from(dim).ok()).collect(),
        ),
        _ => (None, Vec::new()),
    };
    Port {
        name: outlet.name().to_owned(),
        dtype,
        dims,
    }
}

fn dtype_of(element: TensorElementType) -> Option<DType> {
    match element {
        TensorElementType::Float32 => Some(DType::Float32),
        TensorElementType::Float16 => Some(DType::Float16),
        TensorElementType::Int64 => Some(DType::Int64),
        TensorElementType::Bool => Some(DType::Bool),
        _ => None,
    }
}

impl EngineSession for OrtSession {
    type Value = DynValue;

    fn description(&self) -> &Description {
        &self.description
    }

    fn placement(&self) -> Option<Placement> {
        self.placement
    }

    fn writes_caches(&self, count: usize) -> bool {
        self.caches.count() == count
    }

    fn upload(&self, tensor: Tensor) -> Result<DynValue, BackendError> {
        fn value<T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
            array: ArrayD<T>,
        ) -> ort::Result<DynValue> {
            if array.is_empty() {
                // An empty vector has no address that the library would take.
                return OrtTensor::<T>::new(&Allocator::default(), array.shape().to_vec())
                    .map(OrtTensor::into_dyn);
            }
            OrtTensor::from_array(array).map(OrtTensor::into_dyn)
        }
        let _inside = self.enter()?;
        match tensor {
            Tensor::F32(array) => value(array),
            Tensor::F16(array) => value(array),
            Tensor::I64(array) => value(array),
            Tensor::Bool(array) => value(array),
        }
        .map_err(|error| self.failed(&error))
    }

    fn download(&self, value: &DynValue) -> Result<Tensor, BackendError> {
        fn array<T: PrimitiveTensorElementType + Clone>(value: &DynValue) -> ort::Result<ArrayD<T>> {
            Ok(value.try_extract_array::<T>()?.to_owned())
        }
        let _inside = self.enter()?;
        let ValueType::Tensor { ty, .. } = value.dtype() else {
            return Err(self.failed(&"an output is not a tensor"));
        };
        match ty {
            TensorElementType::Float32 => array(value).map(Tensor::F32),
            TensorElementType::Float16 => array(value).map(Tensor::F16),
            TensorElementType::Int64 => array(value).map(Tensor::I64),
            TensorElementType::Bool => array(value).map(Tensor::Bool),
            other => return Err(self.failed(&format!("an output is {other}, which no bundle has"))),
        }
        .map_err(|error| self.failed(&error))
    }

    fn store(
        &self,
        cache: &mut DynValue,
        at: usize,
        new: &DynValue,
        from: usize,
    ) -> Result<(), BackendError> {
        fn parts<T: PrimitiveTensorElementType + Clone>(
            cache: &mut DynValue,
            at: usize,
            new: &DynValue,
            from: usize,
        ) -> ort::Result<Option<()>> {
            let new = new.try_extract_array::<T>()?;
            Ok(store_positions(
                cache.try_extract_array_mut::<T>()?,
                at,
                new,
                from,
            ))
        }
        let _inside = self.enter()?;
        let half = matches!(
            cache.dtype(),
            ValueType::Tensor {
                ty: TensorElementType::Float16,
                ..
            }
        );
        let stored = if half {
            parts::<half::f16>(cache, at, new, from)
        } else {
            parts::<f32>(cache, at, new, from)
        };
        let stored = stored.map_err(|error| self.failed(&error))?;
        stored.ok_or_else(|| self.failed(&"new positions do not fit the cache"))
    }

    fn gather(
        &self,
        rows: &[Positions<'_, DynValue>],
        dtype: DType,
        shape: [usize; 3],
        end: usize,
    ) -> Result<DynValue, BackendError> {
        fn all<T: PrimitiveTensorElementType + Copy>(
            rows: &[Positions<'_, DynValue>],
            shape: [usize; 3],
            end: usize,
            empty: T,
        ) -> ort::Result<Option<ArrayD<T>>> {
            let views = rows.iter().map(|row| {
                let cache = row
                    .cache
                    .map(|cache| cache.try_extract_array::<T>())
                    .transpose()?;
                Ok((cache, row.row, row.from..row.to))
            });
            let views: Vec<_> = views.collect::<ort::Result<_>>()?;
            Ok(gather_positions(views.into_iter(), shape, end, empty))
        }
        let gathered = {
            let _inside = self.enter()?;
            match dtype {
                DType::Float16 => all(rows, shape, end, half::f16::ZERO).map(|all| all.map(Tensor::F16)),
                _ => all(rows, shape, end, 0.0_f32).map(|all| all.map(Tensor::F32)),
            }
        };
        let gathered = gathered.map_err(|error| self.failed(&error))?;
        self.upload(gathered.ok_or_else(|| self.failed(&"caches do not fit each other"))?)
    }

    fn compute(&self, inputs: &mut [(&str, Input<'_, DynValue>)]) -> Result<Vec<DynValue>, BackendError> {
        let _inside = self.enter()?;
        let inputs = &*inputs;
        let mut named: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, input) in inputs {
            let value = match input {
                Input::Held(value) => SessionInputValue::from(*value),
                Input::Open(value) => SessionInputValue::from(&**value),
                Input::Lent(array) => TensorRef::from_array_view(array.view())
                    .map_err(|error| self.failed(&format!("`{name}`: {error}")))?
                    .into(),
            };
            named.push((Cow::Borrowed(*name), value));
        }
        let gone = || self.failed(&"the graph is gone");
        let graph = self.graph.as_ref().ok_or_else(gone)?;
        let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let open = inputs.iter().filter_map(|(_, input)| match input {
            Input::Open(value) => Some(&**value),
            _ => None,
        });
        let count = open.clone().count();
        if count > 0 && !self.writes_caches(count) {
            return Err(self.failed(&UNWRITTEN));
        }
        // SAFETY: this run is the only one while the graph is locked, and the tensors are borrowed for it alone.
        #[expect(unsafe_code, reason = "the library knows no input that is written")]
        let opened = (count > 0).then(|| unsafe { self.caches.open(open) });
        let _opened = opened.transpose().map_err(|error| self.failed(&error))?;
        let mut outputs = graph.run(named).map_err(|error| self.failed(&error))?;
        let outputs = self.description.outputs.iter().map(|port| {
            let missing = || self.failed(&format!("there is no output `{}`", port.name));
            outputs.remove(port.name.as_str()).ok_or_else(missing)
        });
        outputs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_providers_own_words_about_placement() {
        let message = "CoreMLExecutionProvider::GetCapability, number of partitions supported by CoreML: 3 number of \
                       nodes in the graph: 450 number of nodes supported by CoreML: 449";
        assert_eq!(
            placement(message),
            Some(Placement {
                accelerated: 449,
                nodes: 450
            })
        );
        assert_eq!(placement("number of nodes in the graph: many"), None);
    }
}
