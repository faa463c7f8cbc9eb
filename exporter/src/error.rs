//! What can go wrong in an export.

use models::bundle::{BundleError, CoreMlPackages, Precision};
use models::checkpoint::CheckpointError;
use models::graph::GraphError;
use prompt::PromptError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// An export that did not happen. Whatever it had begun to write is gone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The checkpoint cannot be read, or is not the model that its config declares.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Tokenizer or chat template of the checkpoint make no prompt, so no runtime could ask the model anything.
    #[error("the bundle could not be asked anything: {0}")]
    Prompt(#[from] PromptError),
    /// A network cannot be built from the config.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// What is to be verified is no bundle.
    #[error("{0}")]
    NoBundle(BundleError),
    /// The bundle that was written is not what its contract says.
    #[error("the bundle that was written does not pass its own check: {0}")]
    Bundle(#[from] BundleError),
    /// Images of a size that the network does not take.
    #[error("image size {asked}: expected a multiple of {multiple} from {multiple} to {largest}")]
    ImageSize {
        /// The side that was asked for, in pixels.
        asked: u64,
        /// What it must be a multiple of, so that the maps of all stages are whole.
        multiple: u64,
        /// The largest.
        largest: u64,
    },
    /// A network uses an operator that the form has no word for.
    #[error("node `{node}`: {op} has no {form} form")]
    NoForm {
        /// The node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// `ONNX` or `Core ML`.
        form: &'static str,
    },
    /// A precision that Core ML packages do not have.
    #[error(
        "Core ML packages have no precision `{precision}`, expected one of {}",
        CoreMlPackages::PRECISIONS.map(Precision::name).join(", ")
    )]
    NoPackages {
        /// The precision.
        precision: Precision,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `create`, `write`, `rename`, ...
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The source is a directory that is not there.
    #[error("there is no model directory `{}`", path.display())]
    NoModel {
        /// The directory.
        path: PathBuf,
    },
    /// Adapters that do not lead to a model to merge them into.
    #[error("{problem}")]
    NoBase {
        /// What they say.
        problem: String,
    },
    /// A hub id whose files are not in the local cache.
    #[error("`{id}` at revision `{revision}` is not in the local Hugging Face cache, looked for `{}`", looked.display())]
    NotCached {
        /// `org/name`.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The directory that was expected.
        looked: PathBuf,
    },
    /// The hub did not give what was asked of it. What had arrived by then stays in the cache.
    #[error("`{id}` at revision `{revision}`: {endpoint} {problem}")]
    Hub {
        /// `org/name`.
        id: String,
        /// The revision asked for.
        revision: String,
        /// Who was asked.
        endpoint: String,
        /// What it did instead.
        problem: HubProblem,
    },
    /// A model that would have to be downloaded by something that only looks.
    #[error("`{id}` is not in the local Hugging Face cache: {} to download, {bytes} bytes: {}", plural(files.len()), files.join(", "))]
    NotDownloaded {
        /// `org/name`.
        id: String,
        /// Bytes of the files, as far as the hub says.
        bytes: u64,
        /// What is missing.
        files: Vec<String>,
    },
    /// A file of the cache that is not what its name says.
    #[error("`{}` is damaged: its name states SHA-256 {stated}, found {found}", path.display())]
    DamagedCache {
        /// The blob.
        path: PathBuf,
        /// The hash in its name.
        stated: String,
        /// The hash of its contents.
        found: String,
    },
    /// The caller asked to stop while a model was downloaded.
    #[error("interrupted; what was downloaded stays in `{}`", cache.display())]
    InterruptedDownload {
        /// The cache.
        cache: PathBuf,
    },
    /// The target exists and is something else than a bundle.
    #[error("`{}` exists and is not a bundle: {found}", path.display())]
    NotABundle {
        /// The target.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The target is a bundle with files that no export wrote; replacing it would lose them.
    #[error("the bundle `{}` holds files that are not part of it: {}", path.display(), files.join(", "))]
    ForeignFiles {
        /// The target.
        path: PathBuf,
        /// The files, relative to the target.
        files: Vec<String>,
    },
    /// The target is the current directory or one above it: replaced, it would leave whoever works there in a directory
    /// that is gone.
    #[error("`{}` is the current directory or holds it, expected one that can be replaced", path.display())]
    CurrentDirectory {
        /// The target.
        path: PathBuf,
    },
    /// The target is a bundle and replacing it was forbidden.
    #[error("the bundle `{}` exists", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The bundle, or the download, would not fit.
    #[error("not enough space for `{}`: found {available} bytes free, {needed} are needed", path.display())]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// Bytes free for this user.
        available: u64,
        /// Bytes that are to be written.
        needed: u64,
    },
    /// Finite weights that float16 cannot hold, all of them.
    #[error("float16 holds values up to 65504 but found {}", weights.join(", "))]
    Float16Range {
        /// Name and largest magnitude of each: "`lm_head.weight` up to 70000".
        weights: Vec<String>,
    },
    /// Weights whose scales float16 cannot hold, all of them.
    #[error("scales in float16 do not hold {}", weights.join("; "))]
    Float16Scales {
        /// Name, found and expected of each.
        weights: Vec<String>,
    },
    /// A file of the checkpoint that somebody wrote while it was read.
    #[error("`{}` was changed while it was exported, expected a file that stays as it is", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// Statistics of another checkpoint.
    #[error(
        "`{}` has statistics of a checkpoint with fingerprint {found}, expected {expected}, that of the model",
        path.display()
    )]
    OtherCheckpoint {
        /// The file of statistics.
        path: PathBuf,
        /// The fingerprint in it.
        found: String,
        /// That of the checkpoint.
        expected: String,
    },
    /// Statistics of inputs that no inputs have.
    #[error("the second moments of the inputs of `{name}` are unusable: {what}")]
    Moments {
        /// The weight that the inputs are multiplied with.
        name: String,
        /// What is wrong with them.
        what: String,
    },
    /// Lengths that no decoder of fixed lengths has.
    #[error(
        "a cache of {context} slots and prefill graphs for {prefill:?} positions: expected 2 to {largest} slots, the model's \
         context, and 2 positions or more that fit into the slots"
    )]
    Lengths {
        /// Slots of the cache.
        context: u64,
        /// New positions of each prefill graph.
        prefill: Vec<u64>,
        /// The model's context.
        largest: u64,
    },
    /// A file that is no ONNX model.
    #[error("`{}` is not an ONNX model: {problem}", path.display())]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A directory that has not the graphs to adopt.
    #[error("`{}` {problem}", path.display())]
    NoGraphs {
        /// The directory.
        path: PathBuf,
        /// What is missing; reads on after its name.
        problem: String,
    },
    /// A graph to adopt that does not fit the contract, or what `config.json` states.
    #[error("`{}` {}", path.display(), few(problems))]
    Unfit {
        /// The graph, or the directory that it lies in.
        path: PathBuf,
        /// What was found and what was expected, one sentence each.
        problems: Vec<String>,
    },
    /// A file to adopt that is a link to somewhere else.
    #[error("`{}` is a link to `{}`, expected a file of the directory itself", path.display(), to.display())]
    LinkOutside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// A graph of target `coreml` that the CoreML execution provider would not take whole. A bug of ours, or a geometry
    /// that no test has.
    #[error("Core ML would not take these graphs whole:\n{}", verdicts.join("\n"))]
    NotWhole {
        /// What it would do with each.
        verdicts: Vec<String>,
    },
    /// A graph whose weights are to stand inside it, and do not fit.
    #[error(
        "`{graph}` would hold {bytes} bytes of weights, expected at most {most}, as a file of protobuf can"
    )]
    TooLargeInside {
        /// Its file name.
        graph: String,
        /// Bytes of its weights.
        bytes: u64,
        /// Most bytes of weights.
        most: u64,
    },
    /// A literal of a network that float16 cannot hold.
    #[error("constant `{value}` is {found}, float16 holds values up to 65504")]
    ConstantRange {
        /// The value in the graph.
        value: String,
        /// The literal.
        found: f32,
    },
    /// The caller asked to stop.
    #[error("interrupted, nothing was written")]
    Interrupted,
    /// A bug: the graph and the writer disagree.
    #[error("internal error: {what}")]
    Internal {
        /// What does not fit.
        what: String,
    },
}

/// The first of some sentences, and how many there are beside it.
fn few(problems: &[String]) -> String {
    let more = problems.len().saturating_sub(1);
    let first = problems.first().map_or("", String::as_str);
    if more == 0 {
        first.to_owned()
    } else {
        format!("{first}; {more} more of its inputs and outputs do not fit")
    }
}

fn plural(files: usize) -> String {
    if files == 1 {
        "1 file".to_owned()
    } else {
        format!("{files} files")
    }
}

/// What a hub did instead of giving a file; reads on after its address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// No connection.
    #[error("cannot be reached: {reason}")]
    Unreachable {
        /// The last error.
        reason: String,
    },
    /// Connections that break off, again and again.
    #[error("breaks off: {reason}")]
    BrokenOff {
        /// The last error.
        reason: String,
    },
    /// An HTTP status that is no success.
    #[error("answers {code} for {what}, {}", meaning(*code, *token))]
    Status {
        /// The status.
        code: u16,
        /// What was asked for.
        what: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// It was not asked, because of a variable of the environment.
    #[error("was not asked: {variable} {problem}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What it is, and what is expected.
        problem: String,
    },
    /// A connection on which nothing arrives.
    #[error("sent nothing of {what} for {seconds} seconds")]
    Silent {
        /// What was asked for.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Two lengths for one file.
    #[error("announces `{file}` with {announced} bytes and serves it with {found}")]
    Size {
        /// The file.
        file: String,
        /// In the list of files.
        announced: u64,
        /// In the answer for the file.
        found: u64,
    },
    /// An answer that is not in the hub's protocol.
    #[error("does not answer as a hub does: {what}")]
    Protocol {
        /// What is wrong.
        what: String,
    },
    /// A repository without config or weights.
    #[error("has no checkpoint there: expected config.json and model.safetensors, pytorch_model.bin or an index of shards, found {}", found.join(", "))]
    NoCheckpoint {
        /// What it has.
        found: Vec<String>,
    },
    /// A repository without an adapter.
    #[error("has no adapter there: the repository {problem}")]
    NoAdapter {
        /// What it has or lacks; reads on after who has it.
        problem: String,
    },
    /// Another program downloads the same file.
    #[error("is being asked for the same file by another program, which holds `{}`", lock.display())]
    Busy {
        /// The lock.
        lock: PathBuf,
    },
}

impl HubProblem {
    /// Whether the same question may get another answer a little later.
    pub fn passing(&self) -> bool {
        match self {
            HubProblem::Unreachable { .. } | HubProblem::BrokenOff { .. } | HubProblem::Silent { .. } => true,
            HubProblem::Status { code, .. } => *code == 429 || *code == 408 || *code >= 500,
            HubProblem::Size { .. }
            | HubProblem::Protocol { .. }
            | HubProblem::NoCheckpoint { .. }
            | HubProblem::NoAdapter { .. }
            | HubProblem::Setting { .. }
            | HubProblem::Busy { .. } => false,
        }
    }
}

/// What a hub means by a status.
fn meaning(code: u16, token: bool) -> &'static str {
    match (code, token) {
        (401, false) => "there is no such model, or it needs a token",
        (401, true) => "there is no such model, or the token is not valid",
        (403, _) => "the token does not give access to this model",
        (404, _) => "there is no such model, revision or file",
        (429, _) => "too many requests",
        (500.., _) => "the server has a problem",
        _other => "which was not expected",
    }
}

impl ExportError {
    /// Whether it is about one precision of a directory to adopt, whose others may be better.
    pub(crate) fn is_unfit(&self) -> bool {
        matches!(self, ExportError::Unfit { .. } | ExportError::NotAModel { .. })
    }

    /// Wraps an error of the operating system: `map_err(ExportError::io("write", &path))`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| ExportError::Io { action, path, source }
    }
}
