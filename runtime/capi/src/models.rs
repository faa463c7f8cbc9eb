//! Models: one that is opened once, and any number of conversations with it.

use crate::calls::{guarded, internal, opened, optional_place, owned, place};
use crate::types::{Conversation, Engine, Failure, Model, Options, Status};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Opens the bundle in a directory for any number of conversations; `options` may be null. It returns early, as
/// `fvlm_open` does. Any thread may use the model, several at once. Free it with `fvlm_model_free`.
///
/// # Safety
/// `bundle` is a text, `model` a place to write to; all texts of `options` are texts or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_model_open(
    bundle: *const c_char,
    options: *const Options,
    model: *mut *mut Model,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `model` is null or a place to write to, as the caller promises.
        let place = unsafe { place(model, "model") }?;
        // SAFETY: of texts and options the caller promises the same.
        let opened = unsafe { opened(bundle, options, runtime::Model::open) }?;
        place.write(Box::into_raw(Box::new(Model(opened))));
        Ok(())
    })
}

/// Waits until everything is open.
///
/// # Safety
/// `model` came from `fvlm_model_open` and is not freed, here and below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_model_ready(model: *const Model, error: *mut *mut c_char) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `model` is null or open, as the caller promises.
        let model = unsafe { shared(model) }?;
        Ok(model.0.ready()?)
    })
}

/// Reads every file of the bundle, weights too, and compares its SHA-256 with the bundle's contract, on all
/// processors. Graphs and small files are compared whenever a bundle is opened; weights only here. The status is
/// `FVLM_STATUS_BUNDLE` where a file is not as it was exported; the text names all of them.
///
/// # Safety
/// As `fvlm_model_ready`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_model_verify(model: *const Model, error: *mut *mut c_char) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `model` is null or open, as the caller promises.
        let model = unsafe { shared(model) }?;
        Ok(model.0.verify(&|_| ())?)
    })
}

/// Who computes, and with which graphs, as JSON; waits for them. Free the text with `fvlm_string_free`.
///
/// # Safety
/// `json` is a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_model_provider(
    model: *const Model,
    json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `json` is null or a place to write to, as the caller promises.
        let place = unsafe { place(json, "json") }?;
        // SAFETY: `model` is null or open, as the caller promises.
        let model = unsafe { shared(model) }?;
        let report = model.0.provider()?;
        let text = serde_json::to_string(&report).map_err(|error| internal(&error.to_string()))?;
        place.write(owned(text));
        Ok(())
    })
}

/// A conversation of nothing with a model, which it keeps alive. It is used as an engine is, in every function that
/// takes one, by one thread at a time; close it with `fvlm_close`. Any number of them live beside each other, and
/// nothing is loaded again.
///
/// # Safety
/// `conversation` is a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_conversation_new(
    model: *const Model,
    conversation: *mut *mut Conversation,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `conversation` is null or a place to write to, as the caller promises.
        let place = unsafe { place(conversation, "conversation") }?;
        // SAFETY: `model` is null or open, as the caller promises.
        let model = unsafe { shared(model) }?;
        let begun = runtime::Engine::from(model.0.conversation());
        place.write(Box::into_raw(Box::new(Engine(begun))));
        Ok(())
    })
}

/// Bytes that a conversation remembers the past with, its KV cache: 0 before the first prompt, and for null.
///
/// # Safety
/// `conversation` came from `fvlm_conversation_new` or `fvlm_open` and is not closed, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_conversation_cache_bytes(conversation: *mut Conversation) -> usize {
    // SAFETY: it is null or open, and nobody else uses it, as the caller promises.
    let conversation = unsafe { conversation.as_mut() };
    conversation.map_or(0, |engine| engine.0.conversation().cache_bytes())
}

/// Whether `fvlm_chat` may leave out the oldest turns of its messages where they leave no room for an answer, instead
/// of failing with `FVLM_STATUS_PROMPT`. Messages of the system before the first turn stay, and so do all images. Off
/// at first; null does nothing.
///
/// # Safety
/// As `fvlm_conversation_cache_bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_conversation_context_shift(conversation: *mut Conversation, allowed: bool) {
    // SAFETY: it is null or open, and nobody else uses it, as the caller promises.
    if let Some(engine) = unsafe { conversation.as_mut() } {
        engine.0.conversation().set_context_shift(allowed);
    }
}

/// Frees a model; null does nothing. Conversations with it go on; what of it is still being opened is waited for when
/// the last of them is closed.
///
/// # Safety
/// `model` came from `fvlm_model_open`, is freed once and not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_model_free(model: *mut Model) {
    if !model.is_null() {
        // SAFETY: it is the box of `fvlm_model_open`, freed once, as the caller promises.
        let model = unsafe { Box::from_raw(model) };
        // A panic must not pass into C.
        drop(catch_unwind(AssertUnwindSafe(|| drop(model))));
    }
}

/// A model, unless it is null.
///
/// # Safety
/// As `fvlm_model_ready`.
unsafe fn shared<'a>(model: *const Model) -> Result<&'a Model, Failure> {
    // SAFETY: it is null or open, as the caller promises.
    unsafe { model.as_ref() }.ok_or_else(|| Failure::argument("`model` is null"))
}
