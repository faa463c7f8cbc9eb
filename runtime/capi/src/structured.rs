//! Answers that programs read: with a structure, with log-probabilities, one of several choices.

use crate::calls::{
    conversation, guarded, internal, open, optional, optional_place, optional_request, owned, required,
    slice, tell, written,
};
use crate::types::{Answer, Engine, Failure, Message, OnText, Request, Status, Structure};
use runtime::{Constraint, LogprobRecord};
use std::ffi::{c_char, c_void};

/// As `fvlm_chat`, for an answer that keeps to a `structure` (null is none), and whose tokens come with their log-probabilities where
/// `logprobs` is not null: then it becomes JSON, an array with an object for each token: `token` (its text), `bytes`, `id`, `logprob`,
/// and `top_logprobs` with as many of the likeliest tokens in its place as the structure asks for. Free that text with `fvlm_string_free`.
///
/// # Safety
/// As `fvlm_chat`; `structure` is null, or its texts are texts or null; `logprobs` is null or a place to write to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_chat_structured(
    engine: *mut Engine,
    messages: *const Message,
    message_count: usize,
    request: *const Request,
    structure: *const Structure,
    on_text: OnText,
    user: *mut c_void,
    answer: *mut Answer,
    logprobs: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: they are null or so many, with texts and images, as the caller promises.
        let turns = unsafe { conversation(messages, message_count) }?;
        // SAFETY: it is null or a request, whose pointers are null or what its fields say, as the caller promises.
        let mut request = unsafe { optional_request(request) }?;
        // SAFETY: `logprobs` is null or a place to write to, as the caller promises.
        let logprobs = unsafe { optional_place(logprobs) };
        let mut alternatives = 0;
        // SAFETY: `structure` is null or points to one, as the caller promises.
        if let Some(structure) = unsafe { structure.as_ref() } {
            // SAFETY: its texts are texts or null, as the caller promises.
            request.constraint = unsafe { constraint(structure) }?;
            alternatives = usize::try_from(structure.top_logprobs).unwrap_or(usize::MAX);
        }
        if logprobs.is_none() && alternatives > 0 {
            return Err(Failure::argument(
                "`logprobs` is null, expected a place for `top_logprobs`",
            ));
        }
        request.logprobs = logprobs.is_some().then_some(alternatives);
        let tokenizer = engine.0.prompter()?.tokenizer().clone();
        let mut found = engine.0.chat(&turns, &request)?;
        let mut likely: Vec<LogprobRecord> = Vec::new();
        let each = |piece: &runtime::Piece| {
            let record = piece.logprob.as_ref().map(|logprob| logprob.record(&tokenizer));
            likely.extend(record);
        };
        // SAFETY: `on_text` is null or a function as its type says, as the caller promises.
        let text = unsafe { tell(&mut found, on_text, user, each) }?;
        if let Some(place) = logprobs {
            let json = serde_json::to_string(&likely).map_err(|error| internal(&error.to_string()))?;
            place.write(owned(json));
        }
        // SAFETY: `answer` is null or a place to write to, as the caller promises.
        if let Some(place) = unsafe { optional_place(answer) } {
            place.write(written(&found, text));
        }
        Ok(())
    })
}

/// How likely each of `choices` is as the answer to `messages`: the natural logarithms of their probabilities, and their shares of the
/// probability of all of them, which add up to 1. The prompt is read once. Of `request` only `cancel` changes
/// anything.
///
/// # Safety
/// As `fvlm_chat`; `choices` points to `choice_count` texts; `logprobs` and `probabilities` are null or places for as many numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fvlm_choose(
    engine: *mut Engine,
    messages: *const Message,
    message_count: usize,
    choices: *const *const c_char,
    choice_count: usize,
    request: *const Request,
    logprobs: *mut f64,
    probabilities: *mut f64,
    error: *mut *mut c_char,
) -> Status {
    // SAFETY: `error` is null or a place to write to, as the caller promises.
    let error = unsafe { optional_place(error) };
    guarded(error, || {
        // SAFETY: `engine` is null or open, and nobody else uses it, as the caller promises.
        let engine = unsafe { open(engine) }?;
        // SAFETY: they are null or so many, with texts and images, as the caller promises.
        let turns = unsafe { conversation(messages, message_count) }?;
        // SAFETY: it is null or a request, whose pointers are null or what its fields say, as the caller promises.
        let request = unsafe { optional_request(request) }?;
        // SAFETY: `choices` is null or points to so many, as the caller promises.
        let texts = unsafe { slice(choices, choice_count, "choices") }?;
        let texts = texts
            .iter()
            // SAFETY: each of them is a text, or null, which is an error.
            .map(|text| unsafe { required(*text, "choices") })
            .collect::<Result<Vec<&str>, _>>()?;
        let found = engine.0.choose(&turns, &texts, &request)?;
        let numbers = [
            (
                logprobs,
                found
                    .choices
                    .iter()
                    .map(|choice| choice.logprob)
                    .collect::<Vec<f64>>(),
            ),
            (
                probabilities,
                found.choices.iter().map(|choice| choice.probability).collect(),
            ),
        ];
        for (place, numbers) in numbers {
            if !place.is_null() {
                // SAFETY: it is not null, and a place for as many numbers as there are choices, as the caller promises.
                unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), place, numbers.len()) };
            }
        }
        Ok(())
    })
}

/// The constraint that C means, if any.
///
/// # Safety
/// The texts are texts or null.
unsafe fn constraint(structure: &Structure) -> Result<Option<Constraint>, Failure> {
    // SAFETY: it is a text or null, as the caller promises.
    let schema = unsafe { optional(structure.json_schema, "json_schema") }?;
    // SAFETY: it is a text or null, as the caller promises.
    let regex = unsafe { optional(structure.regex, "regex") }?;
    match (schema, regex) {
        (Some(_), Some(_)) => Err(Failure::argument(
            "both `json_schema` and `regex`, expected one of them",
        )),
        (Some(schema), None) => {
            let schema = serde_json::from_str(schema);
            let schema =
                schema.map_err(|error| Failure::argument(format!("`json_schema` is no JSON: {error}")))?;
            Ok(Some(Constraint::JsonSchema(schema)))
        }
        (None, Some(pattern)) => Ok(Some(Constraint::Regex(pattern.to_owned()))),
        (None, None) => Ok(None),
    }
}
