//! What is put to the test? A way of computing a graph: an engine of the runtime, or the interpreter, on an
//! exported form: a target in a precision.
//!
//! The only file here that opens engines.

use crate::array::Array;
use crate::interpreter::Interpreter;
use crate::setup::error::{CaseError, Context};
pub use exporter::{Precision, Target, Variant};
use half::f16;
use models::dtype::DType;
use models::graph::Graph;
use models::weights::Weights;
use runtime::backend::session;
use std::path::Path;
use tempfile::TempDir;

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Provider {
    /// The naive evaluator of this crate.
    Interpreter,
    /// ONNX Runtime on the CPU.
    Cpu,
    /// tract.
    Tract,
    /// rten.
    Rten,
}

impl Provider {
    /// Every provider, the referee first.
    pub const ALL: [Provider; 4] = [
        Provider::Interpreter,
        Provider::Cpu,
        Provider::Tract,
        Provider::Rten,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Interpreter => "interpreter",
            Provider::Cpu => "cpu",
            Provider::Tract => "tract",
            Provider::Rten => "rten",
        }
    }

    /// What it is, for people.
    pub const fn about(self) -> &'static str {
        match self {
            Provider::Interpreter => "the graph evaluated by the book, in float64 sums: the referee",
            Provider::Cpu => "ONNX Runtime on the CPU",
            Provider::Tract => "tract, pure Rust",
            Provider::Rten => "rten, pure Rust by other hands, float32 only",
        }
    }

    /// Whether it can run here.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(self, options: &runtime::Options) -> Result<(), runtime::BackendError> {
        match self.engine() {
            None => Ok(()),
            Some(engine) => engine.usable(options),
        }
    }

    /// The forms that it runs, portable float32 first: the interpreter evaluates what is exported as that, rten has no
    /// halves and none of our kernels, and tract takes the `Gemm` of halves of target `coreml` for float32 and does not
    /// run rounded weights of standard operators.
    pub fn forms(self) -> Vec<Variant> {
        let all = Target::ALL.into_iter().flat_map(|target| {
            Precision::ALL
                .into_iter()
                .filter_map(move |precision| Variant::new(target, precision))
        });
        all.filter(|form| match self {
            Provider::Interpreter | Provider::Rten => *form == Variant::PORTABLE,
            Provider::Cpu => true,
            Provider::Tract => match form.target() {
                Target::Cpu => true,
                Target::Portable => matches!(form.precision(), Precision::Fp32 | Precision::Fp16),
                Target::OrtCoreMl => form.precision() != Precision::Fp16,
            },
        })
        .collect()
    }

    /// The runtime's name for it; the interpreter is not the runtime's.
    pub const fn engine(self) -> Option<runtime::Provider> {
        match self {
            Provider::Interpreter => None,
            Provider::Cpu => Some(runtime::Provider::Cpu),
            Provider::Tract => Some(runtime::Provider::Tract),
            Provider::Rten => Some(runtime::Provider::Rten),
        }
    }
}

/// A form as verdicts name it: `fp16` where it is portable, `cpu int8` where it is not.
pub fn form_name(form: Variant) -> String {
    match form.target() {
        Target::Portable => form.precision().name().to_owned(),
        target => format!("{} {}", target.name(), form.precision().name()),
    }
}

/// A provider on an exported form.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Who computes.
    pub provider: Provider,
    /// From which form.
    pub form: Variant,
    /// How engines are opened: where ONNX Runtime is, how many threads.
    pub options: runtime::Options,
}

impl Subject {
    /// `tract fp16`, and `tract cpu int8` where the form is not portable.
    pub fn name(&self) -> String {
        format!("{} {}", self.provider.name(), form_name(self.form))
    }

    /// `tract int8`, whatever the target.
    pub fn column(&self) -> String {
        format!("{} {}", self.provider.name(), self.precision().name())
    }

    /// For which engines its graphs are made.
    pub fn target(&self) -> Target {
        self.form.target()
    }

    /// How its weights are stored.
    pub fn precision(&self) -> Precision {
        self.form.precision()
    }

    /// Whether weights of standard operators are rounded: an engine may then make activations bytes too.
    pub fn rounds(&self) -> bool {
        let plain = matches!(self.precision(), Precision::Fp32 | Precision::Fp16);
        self.target() == Target::Portable && !plain
    }

    /// Whether it is the interpreter, the referee.
    pub fn is_interpreter(&self) -> bool {
        self.provider == Provider::Interpreter
    }

    /// Whether an engine of the runtime computes.
    pub fn is_engine(&self) -> bool {
        self.provider.engine().is_some()
    }

    /// Prepares one graph, which need not be one of a FastVLM; what an engine reads is written to a directory in
    /// `scratch`, and gone when the session is open.
    ///
    /// # Errors
    /// A graph that cannot be written or that the engine refuses.
    pub fn session<'a>(
        &self,
        graph: &'a Graph,
        weights: &'a dyn Weights,
        scratch: &Path,
    ) -> Result<Box<dyn Session + 'a>, CaseError> {
        if self.is_interpreter() {
            return Ok(self.interpret(graph, weights));
        }
        let directory = TempDir::new_in(scratch).during(|| "making a temporary directory".to_owned())?;
        let path = exporter::onnx::write_graph(graph, weights, self.form, directory.path())
            .during(|| format!("writing graph `{}`", graph.name))?;
        let session = self.open(&path)?;
        Ok(session)
    }

    /// A session of the interpreter.
    pub fn interpret<'a>(&self, graph: &'a Graph, weights: &'a dyn Weights) -> Box<dyn Session + 'a> {
        Box::new(InterpreterSession(Interpreter::new(graph, weights)))
    }

    /// Opens an exported graph.
    ///
    /// # Errors
    /// A graph that the engine refuses; the interpreter does not read files.
    pub fn open(&self, path: &Path) -> Result<Box<dyn Session>, CaseError> {
        let Some(engine) = self.provider.engine() else {
            return Err(CaseError::Skip(
                "the interpreter reads checkpoints, not exported graphs".to_owned(),
            ));
        };
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let session = runtime::backend::open_session(engine, path, &self.options)
            .during(|| format!("opening `{name}` on {}", self.provider.name()))?;
        Ok(Box::new(EngineSession { session, graph: name }))
    }
}

/// Those of `providers` that work here, on every form, target by target; and those that do not, with the reason. Engines
/// that are not among them are not loaded.
pub fn available(
    providers: &[Provider],
    options: &runtime::Options,
) -> (Vec<Subject>, Vec<(Provider, String)>) {
    let (mut subjects, mut missing) = (Vec::new(), Vec::new());
    for &provider in providers {
        match provider.usable(options) {
            Ok(()) => subjects.extend(provider.forms().into_iter().map(|form| {
                Subject {
                    provider,
                    form,
                    options: options
                        .clone()
                        .with_provider(provider.engine().unwrap_or_default())
                        .with_fallback(false)
                        .with_target(form.target())
                        .with_precision(form.precision()),
                }
            })),
            Err(error) => missing.push((provider, error.to_string())),
        }
    }
    subjects.sort_by_key(Subject::target);
    (subjects, missing)
}

/// A prepared graph: named tensors in, named tensors out.
pub trait Session {
    /// Computes every output.
    ///
    /// # Errors
    /// Inputs that do not fit, or an engine that gives up.
    fn run(&mut self, inputs: &[(&str, Array)]) -> Result<Vec<(String, Array)>, CaseError>;
}

struct InterpreterSession<'a>(Interpreter<'a>);

impl Session for InterpreterSession<'_> {
    fn run(&mut self, inputs: &[(&str, Array)]) -> Result<Vec<(String, Array)>, CaseError> {
        self.0.run(inputs).during(|| "interpreting".to_owned())
    }
}

struct EngineSession {
    session: Box<dyn session::Session>,
    /// For errors.
    graph: String,
}

impl Session for EngineSession {
    fn run(&mut self, inputs: &[(&str, Array)]) -> Result<Vec<(String, Array)>, CaseError> {
        let mut given = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let half = self
                .session
                .inputs()
                .iter()
                .any(|port| port.name == *name && port.dtype == Some(DType::Float16));
            given.push((*name, to_engine(tensor, half)));
        }
        let outputs = self
            .session
            .run(&given)
            .during(|| format!("running `{}`", self.graph))?;
        let array = |(name, tensor): (String, session::Tensor)| (name, from_engine(tensor));
        Ok(outputs.into_iter().map(array).collect())
    }
}

fn to_engine(array: &Array, half: bool) -> session::Tensor {
    match array {
        Array::Float(data) if half => session::Tensor::F16(data.mapv(f16::from_f32)),
        Array::Float(data) => session::Tensor::F32(data.as_standard_layout().into_owned()),
        Array::Int(data) => session::Tensor::I64(data.as_standard_layout().into_owned()),
        Array::Bool(data) => session::Tensor::Bool(data.as_standard_layout().into_owned()),
    }
}

fn from_engine(tensor: session::Tensor) -> Array {
    match tensor {
        session::Tensor::F32(array) => array.into(),
        session::Tensor::F16(array) => array.mapv(f16::to_f32).into(),
        session::Tensor::I64(array) => array.into(),
        session::Tensor::Bool(array) => array.into(),
    }
}
