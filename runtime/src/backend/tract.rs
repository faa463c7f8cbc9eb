//! tract: pure Rust, no shared library. Only this file and those below it name it.

mod links;
mod operators;

use super::session::{
    Description, EngineSession, Input, Port, Positions, Session, Tensor, UNWRITTEN, gather_positions,
    store_positions,
};
use super::{Backend, Decoder, Model, Options, Provider, TokenEmbedder, VisionEncoder, catch, parts};
use crate::error::BackendError;
use kernels::pool::Pool;
use models::bundle::{Precision, Target};
use models::dtype::DType;
use ndarray::ArrayD;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tract_onnx::model::ParseResult;
use tract_onnx::prelude::{
    Datum, DatumType, Framework, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, IntoTensor,
    SymbolScope, TDim, TractError, TractResult, TypedModel, TypedRunnableModel, f16, multithread, onnx,
};
use tract_onnx::tract_core::floats::FloatPrecisionTranslator;
use tract_onnx::tract_core::transform::ModelTransform as _;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::OutletId;

type TractTensor = tract_onnx::prelude::Tensor;

/// tract as a backend.
#[derive(Debug)]
pub(super) struct Tract;

impl Backend for Tract {
    fn provider(&self) -> Provider {
        Provider::Tract
    }

    fn check(&self, _: &Options) -> Result<(), BackendError> {
        Ok(())
    }

    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError> {
        use_threads(options.thread_count());
        Ok(Box::new(TractSession::open(path, &[], options.thread_count())?))
    }

    fn targets(&self) -> &'static [Target] {
        &[Target::Cpu, Target::Portable, Target::OrtCoreMl]
    }

    fn runs(&self, target: Target, precision: Precision) -> bool {
        // Of rounded weights in standard operators, tract lacks blocks of bytes, and int8 is not tried.
        let plain = matches!(precision, Precision::Fp32 | Precision::Fp16);
        self.targets().contains(&target) && (target != Target::Portable || plain)
    }

    fn vision_encoder(&self, model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
        let threads = model.options.thread_count();
        use_threads(threads);
        parts::vision_encoder(model, model.form.graphs(Provider::Tract)?, &|path, fixed| {
            TractSession::open(path, fixed, threads)
        })
    }

    fn embedder(&self, model: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
        let threads = model.options.thread_count();
        use_threads(threads);
        parts::embedder(model, model.form.graphs(Provider::Tract)?, &|path, fixed| {
            TractSession::open(path, fixed, threads)
        })
    }

    fn decoder(&self, model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
        let threads = model.options.thread_count();
        use_threads(threads);
        let variant = model.form.graphs(Provider::Tract)?;
        parts::decoder(model, variant, true, &|path, fixed| {
            TractSession::open(path, fixed, threads)
        })
    }
}

/// Sets the threads of all tract sessions of this process; they share one pool.
fn use_threads(count: usize) {
    // Of which process: a child of `fork` has none of its parent's threads.
    static CURRENT: Mutex<(usize, u32)> = Mutex::new((1, 0));
    let mut current = CURRENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wanted = (count, std::process::id());
    if *current != wanted {
        if current.1 != wanted.1 {
            // Dropped, it would wait for its threads.
            std::mem::forget(multithread::current_tract_executor());
        }
        // A pool that cannot be built (no more threads allowed) panics; one thread is slower, not wrong.
        let executor = if count == 1 {
            multithread::Executor::SingleThread
        } else {
            catch(|| multithread::Executor::multithread(count)).unwrap_or_default()
        };
        multithread::set_default_executor(executor);
        *current = wanted;
    }
}

/// A graph that tract has optimised.
///
/// A graph in float16 is computed in float32 where the processor has no arithmetic for halves, which tract would do one
/// number at a time in software. What goes in and out keeps the type that the graph declares.
#[derive(Debug)]
struct TractSession {
    description: Description,
    model: Arc<TypedRunnableModel>,
    /// Whether it computes in float32 what the description says is float16.
    widened: bool,
}

impl TractSession {
    /// `fixed`: dimension symbols whose length is known.
    fn open(path: &Path, fixed: &[(&str, usize)], threads: usize) -> Result<TractSession, BackendError> {
        let refuse = |reason: String| BackendError::Graph {
            provider: Provider::Tract,
            path: path.to_owned(),
            reason,
        };
        // tract has assertions that a corrupt graph can reach.
        catch(|| Self::prepare(path, fixed, threads))
            .map_err(|words| refuse(format!("tract gave up: {words}")))?
            .map_err(|error| refuse(chain(&error)))
    }

    fn prepare(path: &Path, fixed: &[(&str, usize)], threads: usize) -> TractResult<TractSession> {
        // Inner shapes are tract's to infer; the file's annotations would only be a second opinion.
        let mut framework = onnx()
            .with_ignore_value_info(true)
            .with_ignore_output_shapes(true);
        let mut proto = framework.proto_model_for_path(path)?;
        let weights = operators::prepare(&mut framework, &mut proto, path)?;
        let directory = links::resolve(&mut proto, path)?;
        let ParseResult {
            mut model,
            unresolved_inputs,
            ..
        } = framework.parse(&proto, directory.to_str())?;
        drop(proto);
        if !unresolved_inputs.is_empty() {
            return Err(TractError::msg(format!("nothing computes {unresolved_inputs:?}")));
        }
        let fused = !weights.is_empty();
        operators::complete(&mut model, weights, &Pool::shared(threads))?;
        let inputs = inputs(&model)?;
        let names = output_names(&model)?;
        let symbols: SymbolScope = model.symbols.clone();
        let mut known: HashMap<_, TDim> = HashMap::new();
        // `total` is not a symbol of its own: tract has to know that a mask of `total` fits a cache of `past + new`.
        known.insert(
            symbols.sym("total"),
            TDim::from(symbols.sym("past")) + TDim::from(symbols.sym("new")),
        );
        for (name, length) in fixed {
            known.insert(
                symbols.sym(name),
                TDim::Val(i64::try_from(*length).unwrap_or(i64::MAX)),
            );
        }
        model.set_symbols(&known)?;
        let mut model = model.into_typed()?;
        let types: Vec<_> = (0..names.len())
            .map(|index| Ok(dtype_of(model.output_fact(index)?.datum_type)))
            .collect::<TractResult<_>>()?;
        // Fused operators read the halves among their weights themselves. Of other graphs tract would add up in float16 where the
        // processor can (AArch64): logits were 0.0068 from float32's there (relative L2), 0.0004 in sums of float32.
        let widened = !fused && has_halves(&model);
        if widened {
            FloatPrecisionTranslator::new(DatumType::F16, DatumType::F32).transform(&mut model)?;
        }
        let model = model.into_optimized()?;
        let outputs = names
            .into_iter()
            .zip(types)
            .enumerate()
            .map(|(index, (name, dtype))| {
                let fact = model.output_fact(index)?;
                let dims = fact.shape.iter().map(length).collect();
                Ok(Port { name, dtype, dims })
            })
            .collect::<TractResult<_>>()?;
        let model = model.into_runnable()?;
        Ok(TractSession {
            description: Description {
                path: path.to_owned(),
                inputs,
                outputs,
            },
            model,
            widened,
        })
    }

    fn cast(&self, value: &TractTensor, to: DatumType) -> Result<Arc<TractTensor>, BackendError> {
        let cast = value.cast_to_dt(to).map_err(|error| self.failed(chain(&error)))?;
        Ok(Arc::new(cast.into_owned()))
    }

    fn failed(&self, reason: String) -> BackendError {
        BackendError::Run {
            path: self.description.path.clone(),
            reason,
        }
    }
}

/// The inputs that the graph declares, before anything is known about its symbols.
fn inputs(model: &InferenceModel) -> TractResult<Vec<Port>> {
    let port = |outlet: &OutletId| {
        let fact = model.outlet_fact(*outlet)?;
        let dtype = fact.datum_type.concretize().and_then(dtype_of);
        let dims = fact
            .shape
            .dims()
            .map(|dim| dim.concretize().as_ref().and_then(length))
            .collect();
        Ok(Port {
            name: model.node(outlet.node).name.clone(),
            dtype,
            dims,
        })
    };
    model.input_outlets()?.iter().map(port).collect()
}

fn has_halves(model: &TypedModel) -> bool {
    let mut facts = model.nodes.iter().flat_map(|node| &node.outputs);
    facts.any(|outlet| outlet.fact.datum_type == DatumType::F16)
}

fn output_names(model: &InferenceModel) -> TractResult<Vec<String>> {
    let name = |outlet: &OutletId| {
        let label = model.outlet_label(*outlet);
        label.unwrap_or(&model.node(outlet.node).name).to_owned()
    };
    Ok(model.output_outlets()?.iter().map(name).collect())
}

fn length(dim: &TDim) -> Option<usize> {
    dim.as_i64().and_then(|length| usize::try_from(length).ok())
}

fn dtype_of(datum: DatumType) -> Option<DType> {
    match datum {
        DatumType::F32 => Some(DType::Float32),
        DatumType::F16 => Some(DType::Float16),
        // Lengths have a type of their own.
        DatumType::I64 | DatumType::TDim => Some(DType::Int64),
        DatumType::Bool => Some(DType::Bool),
        _ => None,
    }
}

impl EngineSession for TractSession {
    type Value = Arc<TractTensor>;

    fn description(&self) -> &Description {
        &self.description
    }

    fn upload(&self, tensor: Tensor) -> Result<Arc<TractTensor>, BackendError> {
        Ok(Arc::new(match tensor {
            Tensor::F32(array) => array.into(),
            Tensor::F16(array) => array.into(),
            Tensor::I64(array) => array.into(),
            Tensor::Bool(array) => array.into(),
        }))
    }

    fn download(&self, value: &Arc<TractTensor>) -> Result<Tensor, BackendError> {
        fn array<T: Datum>(value: &TractTensor) -> TractResult<ArrayD<T>> {
            Ok(value.to_plain_array_view::<T>()?.to_owned())
        }
        // tract computes lengths in its own integer type; to the outside they are int64.
        let value = if value.datum_type() == DatumType::TDim {
            value
                .cast_to::<i64>()
                .map_err(|error| self.failed(chain(&error)))?
        } else {
            std::borrow::Cow::Borrowed(&**value)
        };
        let tensor = match value.datum_type() {
            DatumType::F32 => array(&value).map(Tensor::F32),
            DatumType::F16 => array(&value).map(Tensor::F16),
            DatumType::I64 => array(&value).map(Tensor::I64),
            DatumType::Bool => array(&value).map(Tensor::Bool),
            other => return Err(self.failed(format!("an output is {other:?}, which no bundle has"))),
        };
        tensor.map_err(|error| self.failed(chain(&error)))
    }

    fn store(
        &self,
        cache: &mut Arc<TractTensor>,
        at: usize,
        new: &Arc<TractTensor>,
        from: usize,
    ) -> Result<(), BackendError> {
        fn parts<T: Datum>(
            cache: &mut TractTensor,
            at: usize,
            new: &TractTensor,
            from: usize,
        ) -> TractResult<Option<()>> {
            let new = new.to_plain_array_view::<T>()?;
            Ok(store_positions(
                cache.to_plain_array_view_mut::<T>()?,
                at,
                new,
                from,
            ))
        }
        // Nobody else holds the cache between two computations.
        let cache = Arc::make_mut(cache);
        let stored = match cache.datum_type() {
            DatumType::F16 => parts::<f16>(cache, at, new, from),
            _ => parts::<f32>(cache, at, new, from),
        };
        let stored = stored.map_err(|error| self.failed(chain(&error)))?;
        stored.ok_or_else(|| self.failed("new positions do not fit the cache".to_owned()))
    }

    fn gather(
        &self,
        rows: &[Positions<'_, Arc<TractTensor>>],
        dtype: DType,
        shape: [usize; 3],
        end: usize,
    ) -> Result<Arc<TractTensor>, BackendError> {
        fn all<T: Datum + Copy>(
            rows: &[Positions<'_, Arc<TractTensor>>],
            shape: [usize; 3],
            end: usize,
            empty: T,
        ) -> TractResult<Option<ArrayD<T>>> {
            let views = rows.iter().map(|row| {
                let cache = row
                    .cache
                    .map(|cache| cache.to_plain_array_view::<T>())
                    .transpose()?;
                Ok((cache, row.row, row.from..row.to))
            });
            let views: Vec<_> = views.collect::<TractResult<_>>()?;
            Ok(gather_positions(views.into_iter(), shape, end, empty))
        }
        let gathered = match dtype {
            DType::Float16 => all(rows, shape, end, f16::ZERO).map(|all| all.map(Tensor::F16)),
            _ => all(rows, shape, end, 0.0_f32).map(|all| all.map(Tensor::F32)),
        };
        let gathered = gathered.map_err(|error| self.failed(chain(&error)))?;
        self.upload(gathered.ok_or_else(|| self.failed("caches do not fit each other".to_owned()))?)
    }

    fn compute(
        &self,
        inputs: &mut [(&str, Input<'_, Arc<TractTensor>>)],
    ) -> Result<Vec<Arc<TractTensor>>, BackendError> {
        let mut ordered = tract_onnx::prelude::tvec!();
        for port in &self.description.inputs {
            let given = inputs.iter().find(|(name, _)| *name == port.name);
            let (_, input) =
                given.ok_or_else(|| self.failed(format!("input `{}` is not given", port.name)))?;
            let value = match input {
                Input::Held(value) => Arc::clone(value),
                Input::Open(_) => return Err(self.failed(UNWRITTEN.to_owned())),
                // tract owns what it computes with.
                Input::Lent(array) => {
                    let gaps = || self.failed(format!("input `{}` has gaps", port.name));
                    let values = array.as_slice().ok_or_else(gaps)?;
                    let tensor = TractTensor::from_shape(array.shape(), values);
                    Arc::new(tensor.map_err(|error| self.failed(chain(&error)))?)
                }
            };
            let value = if self.widened && value.datum_type() == DatumType::F16 {
                self.cast(&value, DatumType::F32)?
            } else {
                value
            };
            ordered.push(value.into_tvalue());
        }
        // Kernels assert what shapes they get.
        let outputs = catch(|| self.model.run(ordered))
            .map_err(|words| self.failed(format!("tract gave up: {words}")))?
            .map_err(|error| self.failed(chain(&error)))?;
        let ports = &self.description.outputs;
        outputs
            .into_iter()
            .zip(ports)
            .map(|(value, port)| {
                let value = Arc::new(value.into_tensor());
                if self.widened && port.dtype == Some(DType::Float16) {
                    self.cast(&value, DatumType::F16)
                } else {
                    Ok(value)
                }
            })
            .collect()
    }
}

/// All of an error's causes on one line; the value of tract's errors is in the chain.
fn chain(error: &TractError) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(|cause| cause.to_string().replace('\n', " "))
        .collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_graph_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph.onnx");
        let garbage: [&[u8]; 4] = [
            b"",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x08\x08",
            &[0x3a, 0x00],
        ];
        for bytes in garbage {
            std::fs::write(&path, bytes).unwrap();
            let result = TractSession::open(&path, &[], 1);
            // A graph without nodes is legal; nothing panics.
            if let Err(error) = result {
                assert!(error.to_string().contains("graph.onnx"), "{error}");
            }
        }
        assert!(TractSession::open(&directory.path().join("missing.onnx"), &[], 1).is_err());
    }
}
