#![doc = include_str!("../README.md")]
#![expect(unsafe_code, reason = "an interface for C is made of pointers")]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod calls;
#[cfg(all(feature = "ort", unix))]
mod ending;
mod models;
mod structured;
mod types;

pub use calls::{
    fvlm_abi, fvlm_add_image_bytes, fvlm_add_image_file, fvlm_add_image_rgb, fvlm_answer_free,
    fvlm_cancel_free, fvlm_cancel_new, fvlm_cancel_set, fvlm_chat, fvlm_close, fvlm_forget_images, fvlm_open,
    fvlm_provider, fvlm_ready, fvlm_reset, fvlm_string_free, fvlm_version,
};
pub use models::{
    fvlm_conversation_cache_bytes, fvlm_conversation_context_shift, fvlm_conversation_new, fvlm_model_free,
    fvlm_model_open, fvlm_model_provider, fvlm_model_ready, fvlm_model_verify,
};
pub use structured::{fvlm_chat_structured, fvlm_choose};
pub use types::{
    ABI, Answer, Cancel, Conversation, Engine, Finish, ImageId, Message, Model, OnText, Options, Request,
    Role, Status, Structure,
};
