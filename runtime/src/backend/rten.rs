//! rten: pure Rust too, written by others than tract; float32 only. Only this file names it. Its use is a second opinion:
//! what two engines of different hands agree on is the graph's doing.

use super::session::{Description, EngineSession, Input, Port, Session, Tensor, UNWRITTEN};
use super::{Backend, Decoder, Model, Options, Provider, TokenEmbedder, VisionEncoder, catch, parts};
use crate::error::BackendError;
use ::rten::{DataType, Dimension, NodeId, RunOptions, ThreadPool, Value, ValueType};
use models::bundle::{Precision, Target};
use models::dtype::DType;
use ndarray::ArrayD;
use rten_tensor::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// rten as a backend.
#[derive(Debug)]
pub(super) struct Rten;

impl Backend for Rten {
    fn provider(&self) -> Provider {
        Provider::Rten
    }

    fn check(&self, _: &Options) -> Result<(), BackendError> {
        Ok(())
    }

    fn open_session(&self, path: &Path, options: &Options) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(RtenSession::open(path, options)?))
    }

    fn targets(&self) -> &'static [Target] {
        &[Target::Portable]
    }

    fn runs(&self, target: Target, precision: Precision) -> bool {
        // Of rounded weights in standard operators, rten lacks blocks of bytes, and int8 is not tried.
        target == Target::Portable && matches!(precision, Precision::Fp32 | Precision::Fp16)
    }

    fn vision_encoder(&self, model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
        parts::vision_encoder(model, model.form.graphs(Provider::Rten)?, &|path, _fixed| {
            RtenSession::open(path, model.options)
        })
    }

    fn embedder(&self, model: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
        parts::embedder(model, model.form.graphs(Provider::Rten)?, &|path, _fixed| {
            RtenSession::open(path, model.options)
        })
    }

    fn decoder(&self, model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
        // A second opinion answers one at a time.
        parts::decoder(
            model,
            model.form.graphs(Provider::Rten)?,
            false,
            &|path, _fixed| RtenSession::open(path, model.options),
        )
    }
}

/// A graph that rten has optimised.
#[derive(Debug)]
struct RtenSession {
    description: Description,
    model: ::rten::Model,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    threads: Arc<ThreadPool>,
}

impl RtenSession {
    fn open(path: &Path, options: &Options) -> Result<RtenSession, BackendError> {
        let refuse = |reason: String| BackendError::Graph {
            provider: Provider::Rten,
            path: path.to_owned(),
            reason,
        };
        let model = catch(|| ::rten::Model::load_file(path))
            .map_err(|words| refuse(format!("rten gave up: {words}")))?
            .map_err(|error| refuse(error.to_string()))?;
        let inputs = model.input_ids().to_vec();
        let outputs = model.output_ids().to_vec();
        let ports = |ids: &[NodeId]| ids.iter().map(|id| port(&model, *id)).collect();
        Ok(RtenSession {
            description: Description {
                path: path.to_owned(),
                inputs: ports(&inputs),
                outputs: ports(&outputs),
            },
            inputs,
            outputs,
            model,
            threads: Arc::new(ThreadPool::with_num_threads(options.thread_count())),
        })
    }

    fn failed(&self, reason: String) -> BackendError {
        BackendError::Run {
            path: self.description.path.clone(),
            reason,
        }
    }
}

/// An array as rten's tensor.
fn tensor_of<T: Copy>(array: &ArrayD<T>) -> rten_tensor::Tensor<T> {
    rten_tensor::Tensor::from_data(array.shape(), array.iter().copied().collect::<Vec<T>>())
}

/// What the graph declares of a value. Integers of 64 bits and bools have 32 bits here, so that only float32 is told.
fn port(model: &::rten::Model, id: NodeId) -> Port {
    let info = model.node_info(id);
    let float = |kind| (kind == ValueType::Tensor(DataType::Float)).then_some(DType::Float32);
    let dims = info.as_ref().and_then(|info| info.shape()).unwrap_or_default();
    Port {
        name: info
            .as_ref()
            .and_then(|info| info.name())
            .unwrap_or_default()
            .to_owned(),
        dtype: info.as_ref().and_then(|info| info.dtype()).and_then(float),
        dims: dims
            .iter()
            .map(|dim| match dim {
                Dimension::Fixed(length) => Some(*length),
                Dimension::Symbolic(_) => None,
            })
            .collect(),
    }
}

impl EngineSession for RtenSession {
    type Value = Value;

    fn description(&self) -> &Description {
        &self.description
    }

    fn upload(&self, tensor: Tensor) -> Result<Value, BackendError> {
        let narrow = |number: i64| {
            i32::try_from(number)
                .map_err(|_| self.failed(format!("{number} is given, integers have 32 bits here")))
        };
        Ok(match tensor {
            Tensor::F32(array) => tensor_of(&array).into(),
            Tensor::I64(array) => {
                let shape = array.shape().to_vec();
                let data = array.into_iter().map(narrow).collect::<Result<Vec<i32>, _>>()?;
                rten_tensor::Tensor::from_data(&shape, data).into()
            }
            Tensor::Bool(array) => tensor_of(&array.mapv(i32::from)).into(),
            Tensor::F16(_) => {
                return Err(self.failed("an input is float16, which rten has not".to_owned()));
            }
        })
    }

    fn download(&self, value: &Value) -> Result<Tensor, BackendError> {
        let shape = value.shape().to_vec();
        let tensor = match value {
            Value::FloatTensor(tensor) => ArrayD::from_shape_vec(shape, tensor.to_vec()).map(Tensor::F32),
            Value::Int32Tensor(tensor) => {
                let numbers = tensor.iter().map(|number| i64::from(*number)).collect();
                ArrayD::from_shape_vec(shape, numbers).map(Tensor::I64)
            }
            other => return Err(self.failed(format!("an output is {}, which no bundle has", other.dtype()))),
        };
        tensor.map_err(|error| self.failed(error.to_string()))
    }

    fn compute(&self, inputs: &mut [(&str, Input<'_, Value>)]) -> Result<Vec<Value>, BackendError> {
        let mut given: Vec<(NodeId, ::rten::ValueOrView<'_>)> = Vec::with_capacity(inputs.len());
        for (id, port) in self.inputs.iter().zip(&self.description.inputs) {
            let found = inputs.iter().find(|(name, _)| *name == port.name);
            let (_, input) =
                found.ok_or_else(|| self.failed(format!("input `{}` is not given", port.name)))?;
            given.push((
                *id,
                match input {
                    Input::Held(value) => value.as_view().into(),
                    Input::Open(_) => return Err(self.failed(UNWRITTEN.to_owned())),
                    Input::Lent(array) => {
                        let gaps = || self.failed(format!("input `{}` has gaps", port.name));
                        let values = array.as_slice().ok_or_else(gaps)?;
                        rten_tensor::TensorView::from_data(array.shape(), values).into()
                    }
                },
            ));
        }
        let mut options = RunOptions::default();
        options.thread_pool = Some(Arc::clone(&self.threads));
        catch(|| self.model.run(given, &self.outputs, Some(options)))
            .map_err(|words| self.failed(format!("rten gave up: {words}")))?
            .map_err(|error| self.failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not every file: on some that are no protobuf at all, rten 0.24 reads forever. Bundles are checked by length, and by
    /// hash where that is asked for, before a graph is opened.
    #[test]
    fn a_file_that_is_no_graph_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph.onnx");
        std::fs::write(&path, b"GARBAGE").unwrap();
        let error = RtenSession::open(&path, &Options::default()).unwrap_err();
        assert!(error.to_string().contains("graph.onnx"), "{error}");
        assert!(RtenSession::open(&directory.path().join("missing.onnx"), &Options::default()).is_err());
    }
}
