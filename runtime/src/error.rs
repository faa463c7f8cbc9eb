//! What can go wrong between a bundle and an answer?

use crate::backend::provider::Provider;
use crate::choose::ChoicesError;
use crate::constrain::ConstraintError;
use crate::image::ImageError;
use crate::prompt::PromptError;
use crate::sample::SampleError;
use crate::splice::SpliceError;
use models::bundle::BundleError;
use models::bundle::{Precision, Target};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// An engine that cannot run here, or that refuses a graph or its inputs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The provider is part of this program but cannot run on this machine.
    #[error("provider `{provider}` cannot run here: {reason}")]
    Unavailable {
        /// Which provider.
        provider: Provider,
        /// What is missing.
        reason: String,
    },
    /// The provider was left out when this program was built.
    #[error("provider `{provider}` is not in this program: it was built without the feature `{feature}`")]
    NotCompiled {
        /// Which provider.
        provider: Provider,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The bundle has no graphs for the provider, in what is asked for.
    #[error(
        "provider `{provider}` finds no {}",
        if takes.is_empty() {
            format!("Core ML packages{asked} in the bundle")
        } else {
            format!("graphs{asked} in the bundle, it takes target {}", list(takes))
        }
    )]
    NoGraphs {
        /// Which provider.
        provider: Provider,
        /// What is asked for, in words.
        asked: String,
        /// Targets that it takes; none where it takes packages.
        takes: &'static [Target],
    },
    /// The instruction set that the environment asks the kernels to use cannot be used.
    #[error("{variable}: {reason}")]
    InstructionSet {
        /// The environment variable.
        variable: &'static str,
        /// What was found, and what was expected.
        reason: String,
    },
    /// This program was built without any engine.
    #[error("this program was built without any engine: neither feature `ort` nor feature `tract`")]
    NoBackend,
    /// A graph or a package is not the one that was exported.
    #[error(transparent)]
    Altered(#[from] BundleError),
    /// A graph file cannot be used.
    #[error("cannot use graph `{}` on {provider}: {reason}", path.display())]
    Graph {
        /// Who refuses it.
        provider: Provider,
        /// The `.onnx` file.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// An accelerator was to take all of a graph, as graphs of its target are written for, and leaves nodes to the CPU.
    #[error(
        "cannot use graph `{}` on {provider}: Core ML takes {accelerated} of its {nodes} nodes, expected all",
        path.display()
    )]
    NotWhole {
        /// Who was to take it.
        provider: Provider,
        /// The `.onnx` file.
        path: PathBuf,
        /// Nodes that it takes.
        accelerated: usize,
        /// Nodes of the graph.
        nodes: usize,
    },
    /// A graph's inputs and outputs are not those of the contract, all differences.
    #[error("graph `{}` does not keep the bundle's contract: {}", path.display(), problems.join("; "))]
    Contract {
        /// The `.onnx` file.
        path: PathBuf,
        /// Name, found, expected, one sentence each.
        problems: Vec<String>,
    },
    /// The given tensors are not those that the graph takes, all differences.
    #[error("wrong inputs for graph `{}`: {}", path.display(), problems.join("; "))]
    Inputs {
        /// The `.onnx` file.
        path: PathBuf,
        /// Name, found, expected, one sentence each.
        problems: Vec<String>,
    },
    /// The cache of a graph with fixed lengths has no room for that many more positions. Nothing was computed.
    #[error(
        "no room in the cache of graph `{}`: {count} more positions after {len} are more than its {context}",
        path.display()
    )]
    Full {
        /// The decoder.
        path: PathBuf,
        /// Positions that were to be added.
        count: usize,
        /// Positions in it.
        len: usize,
        /// Positions that it holds.
        context: usize,
    },
    /// The engine failed while it computed.
    #[error("graph `{}` failed: {reason}", path.display())]
    Run {
        /// The `.onnx` file.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
}

impl BackendError {
    /// Whether another provider might do what this one could not: it is missing, or the bundle has nothing for it.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            BackendError::Unavailable { .. }
                | BackendError::NotCompiled { .. }
                | BackendError::NoGraphs { .. }
        )
    }

    /// Whether another provider may be tried where this one could not open a model: it is missing, or refuses a graph
    /// that another may take.
    pub fn is_of_engine(&self) -> bool {
        self.is_unavailable() || matches!(self, BackendError::Graph { .. })
    }

    /// What the error is about, if it is a file.
    pub fn subject(&self) -> Option<&Path> {
        match self {
            BackendError::Graph { path, .. }
            | BackendError::NotWhole { path, .. }
            | BackendError::Contract { path, .. }
            | BackendError::Inputs { path, .. }
            | BackendError::Full { path, .. }
            | BackendError::Run { path, .. } => Some(path),
            BackendError::Altered(error) => Some(error.subject()),
            BackendError::Unavailable { .. }
            | BackendError::NotCompiled { .. }
            | BackendError::NoGraphs { .. }
            | BackendError::InstructionSet { .. }
            | BackendError::NoBackend => None,
        }
    }
}

/// Positions of a prompt that is too long: far beyond the limit it is not counted to its end.
fn of_prompt(found: usize, expected: usize) -> String {
    let twice = expected.saturating_mul(2);
    if found > twice {
        format!("more than {twice}")
    } else {
        found.to_string()
    }
}

fn list(names: &[Target]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// The forms that a bundle has, in words.
fn held(variants: &[(Target, Precision)], packages: &[Precision], unknown: &[String]) -> String {
    let variants = variants.iter();
    let variants = variants.map(|(target, precision)| format!("{target} `{precision}`"));
    let packages = packages.iter();
    let packages = packages.map(|precision| format!("{} `{precision}`", Provider::CoreMlNative));
    let unknown = unknown
        .iter()
        .map(|form| format!("one of a newer program ({form})"));
    let all: Vec<String> = variants.chain(packages).chain(unknown).collect();
    all.join(", ")
}

impl EngineError {
    /// Whether it is about the model or about what all answers are to be, not about one question or image: no other will fare
    /// better.
    pub fn is_about_model(&self) -> bool {
        match self {
            EngineError::Bundle(_)
            | EngineError::NoVariant { .. }
            | EngineError::NoImageSize { .. }
            | EngineError::Thread { .. } => true,
            EngineError::Backend(error) => !matches!(
                error,
                BackendError::Run { .. } | BackendError::Inputs { .. } | BackendError::Full { .. }
            ),
            EngineError::Constraint(error) => !error.is_about_answer(),
            EngineError::Choices(_) => true,
            EngineError::Prompt(error) => matches!(
                error,
                PromptError::Read { .. } | PromptError::Tokenizer { .. } | PromptError::Spec { .. }
            ),
            _ => false,
        }
    }

    /// Whether it is about the question, whatever the image: no other image can be asked it.
    pub fn is_about_question(&self) -> bool {
        matches!(
            self,
            EngineError::TooLong { .. } | EngineError::EmptyPrompt | EngineError::Prompt(_)
        )
    }
}

/// A model that cannot be opened, or a question that it cannot answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The directory is not a bundle that can be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No engine can run it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The tokenizer, the template or the messages.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Embeddings and features do not fit together.
    #[error("cannot join text and image: {0}")]
    Splice(#[from] SpliceError),
    /// Logits that give no token, or sampling parameters that make no sense.
    #[error("cannot choose a token: {0}")]
    Sample(#[from] SampleError),
    /// A constraint that cannot be kept, or an answer that cannot go on within it.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Choices that cannot be compared.
    #[error(transparent)]
    Choices(#[from] ChoicesError),
    /// The bundle has no graphs of what was asked for that the provider, or one that may replace it, can run.
    #[error(
        "the bundle has no graphs{asked} that provider `{provider}` runs, it has {}",
        held(variants, packages, unknown)
    )]
    NoVariant {
        /// What was asked for, in words.
        asked: String,
        /// For whom.
        provider: Provider,
        /// Targets and precisions of the graphs that there are.
        variants: Vec<(Target, Precision)>,
        /// Precisions of the Core ML packages that there are.
        packages: Vec<Precision>,
        /// What this build has no word for, one sentence each.
        unknown: Vec<String>,
    },
    /// The bundle has no image encoder for the size that was asked for.
    #[error("the bundle has no encoder for images of {asked} x {asked}, it has {}", found.join(", "))]
    NoImageSize {
        /// The side that was asked for, in pixels.
        asked: u32,
        /// Width and height of what there is.
        found: Vec<String>,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt takes {} positions, the model can hold {expected} with at least one for the answer",
        of_prompt(*found, *expected)
    )]
    TooLong {
        /// Positions of the prompt; of one that is more than twice too long, some that are more than that.
        found: usize,
        /// `max_context` of the bundle.
        expected: usize,
    },
    /// [`Request::cancel`](crate::Request::cancel) was set before the answer began; the conversation is as it was.
    #[error("cancelled before the answer began")]
    Cancelled,
    /// The prompt renders to nothing.
    #[error("the prompt is empty: the chat template renders nothing")]
    EmptyPrompt,
    /// A message names an image that was never added.
    #[error("a message names an image that was not added to this conversation")]
    UnknownImage,
    /// The engine gave a tensor that the contract does not allow.
    #[error("the {network} gave an array of shape {found:?}, expected {expected:?}")]
    Output {
        /// Which network.
        network: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the contract.
        expected: Vec<usize>,
    },
    /// The engine panicked while it computed. The conversation is as it was before.
    #[error("the {network} panicked: {reason}; this is a bug")]
    Panic {
        /// Which network.
        network: &'static str,
        /// The words of the panic.
        reason: String,
    },
    /// A thread that opens a part of the model ended without an answer.
    #[error("opening the {network} ended without an answer; this is a bug")]
    Thread {
        /// Which part.
        network: &'static str,
    },
}
