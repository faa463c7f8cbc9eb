//! What passes between C and us. Zero means "as usual" wherever something may be left out.

use runtime::prompt::PromptError;
use runtime::sample::SampleError;
use runtime::{BackendError, ConstraintError, EngineError};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Changes whenever a function or a struct of this header does, so that what worked would not any more.
pub const ABI: u32 = 1;

/// A bundle that answers, and one conversation. It may move between threads, one at a time may use it.
#[derive(Debug)]
pub struct Engine(pub(crate) runtime::Engine);

/// A conversation with a model. Every function that takes an engine takes it: an engine is a model and one conversation.
pub type Conversation = Engine;

/// A bundle that is opened once, for any number of conversations. Any thread may use it, several at once.
#[derive(Debug)]
pub struct Model(pub(crate) runtime::Model);

/// Ends answers from another thread. Free it after the last answer that has it.
#[derive(Debug)]
pub struct Cancel(pub(crate) Arc<AtomicBool>);

/// An image that was added to an engine.
pub type ImageId = u64;

/// Gets the words of an answer as they come: whole characters in UTF-8, `length` bytes and a zero after them, valid during the
/// call. An answer ends where this returns false.
pub type OnText = Option<unsafe extern "C" fn(text: *const c_char, length: usize, user: *mut c_void) -> bool>;

/// What became of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It did what it says.
    Ok = 0,
    /// A pointer that is null where none may be, text that is not UTF-8, a value that means nothing.
    Argument = 1,
    /// The directory is no bundle, one of its files cannot be used, or it has not what the options ask for.
    Bundle = 2,
    /// No engine can run it here.
    Provider = 3,
    /// An image cannot be read or used.
    Image = 4,
    /// Messages that make no prompt, or one that is too long.
    Prompt = 5,
    /// Cancelled before the answer began; the conversation is as it was, but `fvlm_choose` may have read its prompt.
    Cancelled = 6,
    /// An engine failed while it computed.
    Failed = 7,
    /// A bug of ours. Close the engine.
    Internal = 8,
}

/// Who speaks.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one who asks.
    User = 0,
    /// The model.
    Assistant = 1,
    /// Instructions before the conversation.
    System = 2,
}

/// Why an answer ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop = 0,
    /// One of the request's stop texts came.
    StopString = 1,
    /// It has as many tokens as were allowed.
    MaxTokens = 2,
    /// The model can hold no more positions.
    MaxContext = 3,
    /// It was cancelled, or its words were not wanted any more.
    Cancelled = 4,
}

/// Who computes, and with which graphs. `{0}` is as usual.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `coreml`, `cpu`, `tract` or `auto`, `coreml-native` where it was built in; null is `auto`.
    pub provider: *const c_char,
    /// Fail where the provider cannot run, instead of taking another.
    pub no_fallback: bool,
    /// `fp32`, `fp16`, `int8`, `q8`, `q4`, `q4f16`; null is the first of the target.
    pub precision: *const c_char,
    /// `portable`, `cpu`, `coreml`; null is the best that the provider takes.
    pub target: *const c_char,
    /// ONNX Runtime's shared library, or a directory with it; null is well-known places.
    pub onnxruntime: *const c_char,
    /// A directory for models that Core ML has compiled; null is none.
    pub coreml_cache: *const c_char,
    /// Side of the square that images become, in pixels; 0 is the model's own.
    pub image_size: u32,
    /// Threads that compute; 0 is the physical cores.
    pub threads: u32,
}

/// How to answer. `{0}` is greedy.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Most tokens of the answer; 0 is 256.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; above 0 draws, the higher the wilder.
    pub temperature: f32,
    /// Draw only from the likeliest tokens that together reach this probability; 0 is all.
    pub top_p: f32,
    /// Draw only from so many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Above 1 makes tokens that were there less likely; 0 is 1.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Texts that end the answer and are not part of it.
    pub stops: *const *const c_char,
    /// How many.
    pub stop_count: usize,
    /// Ends the answer as soon as it is set; null is never.
    pub cancel: *const Cancel,
}

/// What an answer keeps to, and what is told of its tokens. `{0}` is nothing.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    /// A JSON schema, as JSON: the answer is JSON that is valid against it; null is none.
    pub json_schema: *const c_char,
    /// A regular expression, which the answer matches as a whole; null is none.
    pub regex: *const c_char,
    /// How many of the likeliest tokens in the place of each of the answer's are told, at most 20.
    pub top_logprobs: u32,
}

/// One turn of a conversation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Who speaks: an `fvlm_role`.
    pub role: u32,
    /// What is said, in UTF-8.
    pub text: *const c_char,
    /// Images that are shown with it.
    pub images: *const ImageId,
    /// How many.
    pub image_count: usize,
}

/// An answer; `fvlm_answer_free` frees what it points to.
#[repr(C)]
#[derive(Debug)]
pub struct Answer {
    /// All of it, in UTF-8.
    pub text: *mut c_char,
    /// Its token ids, without the one that stopped it.
    pub tokens: *mut i64,
    /// How many.
    pub token_count: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Positions of the prompt.
    pub prompt_positions: usize,
    /// How many of them were in the conversation already, and were not computed again.
    pub reused_positions: usize,
    /// Seconds from the call, image preparation included, to the first token; 0 if there is none.
    pub time_to_first_token: f64,
    /// Tokens a second after the first; 0 if there are fewer than two.
    pub tokens_per_second: f64,
}

/// Why a call did not do what it says.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn argument(message: impl Into<String>) -> Failure {
        Failure {
            status: Status::Argument,
            message: message.into(),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let status = match &error {
            EngineError::Bundle(_)
            | EngineError::NoVariant { .. }
            | EngineError::NoImageSize { .. }
            | EngineError::Backend(
                BackendError::Altered(_)
                | BackendError::Graph { .. }
                | BackendError::NotWhole { .. }
                | BackendError::Contract { .. },
            )
            | EngineError::Prompt(
                PromptError::Read { .. } | PromptError::Tokenizer { .. } | PromptError::Spec { .. },
            ) => Status::Bundle,
            EngineError::Backend(
                BackendError::Run { .. } | BackendError::Inputs { .. } | BackendError::Full { .. },
            )
            | EngineError::Sample(
                SampleError::Length { .. } | SampleError::NotFinite { .. } | SampleError::NothingAllowed,
            ) => Status::Failed,
            EngineError::Backend(_) => Status::Provider,
            EngineError::Image(_) => Status::Image,
            EngineError::Prompt(_)
            | EngineError::TooLong { .. }
            | EngineError::EmptyPrompt
            | EngineError::UnknownImage => Status::Prompt,
            EngineError::Constraint(ConstraintError::Stuck { .. }) => Status::Failed,
            EngineError::Constraint(ConstraintError::Tokenizer { .. }) => Status::Bundle,
            EngineError::Sample(_) | EngineError::Constraint(_) | EngineError::Choices(_) => Status::Argument,
            EngineError::Cancelled => Status::Cancelled,
            EngineError::Thread { .. } => Status::Internal,
            _other => Status::Failed,
        };
        Failure {
            status,
            message: error.to_string(),
        }
    }
}

impl From<runtime::image::ImageError> for Failure {
    fn from(error: runtime::image::ImageError) -> Failure {
        EngineError::from(error).into()
    }
}

impl From<runtime::Finish> for Finish {
    fn from(finish: runtime::Finish) -> Finish {
        match finish {
            runtime::Finish::Stop => Finish::Stop,
            runtime::Finish::StopString => Finish::StopString,
            runtime::Finish::MaxTokens => Finish::MaxTokens,
            runtime::Finish::MaxContext => Finish::MaxContext,
            runtime::Finish::Cancelled => Finish::Cancelled,
        }
    }
}

impl From<Role> for runtime::Role {
    fn from(role: Role) -> runtime::Role {
        match role {
            Role::User => runtime::Role::User,
            Role::Assistant => runtime::Role::Assistant,
            Role::System => runtime::Role::System,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_status_says_whose_fault_it_is() {
        let path = PathBuf::from("file");
        let reason = String::from("reason");
        let graph = BackendError::Graph {
            provider: runtime::Provider::Cpu,
            path: path.clone(),
            reason: reason.clone(),
        };
        let contract = BackendError::Contract {
            path: path.clone(),
            problems: Vec::new(),
        };
        let run = BackendError::Run {
            path: path.clone(),
            reason: reason.clone(),
        };
        let tokenizer = PromptError::Tokenizer { path, reason };
        let parameters = SampleError::Parameters { problems: Vec::new() };
        let not_finite = SampleError::NotFinite {
            id: 0,
            value: f32::NAN,
        };
        for (error, expected) in [
            (EngineError::from(graph), Status::Bundle),
            (contract.into(), Status::Bundle),
            (run.into(), Status::Failed),
            (BackendError::NoBackend.into(), Status::Provider),
            (tokenizer.into(), Status::Bundle),
            (parameters.into(), Status::Argument),
            (not_finite.into(), Status::Failed),
            (EngineError::EmptyPrompt, Status::Prompt),
            (EngineError::Cancelled, Status::Cancelled),
            (EngineError::Thread { network: "decoder" }, Status::Internal),
        ] {
            let words = error.to_string();
            assert_eq!(Failure::from(error).status, expected, "{words}");
        }
    }
}
