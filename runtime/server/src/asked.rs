//! What a request asks for, in nobody's words: what both interfaces read their fields into.

use crate::answer::INVALID_CONSTRAINT;
use crate::app::App;
use crate::error::ApiError;
use crate::json::Fields;
use crate::pictures::Draft;
use axum::http::StatusCode;
use runtime::{Constraint, Request, Role, Sampling};
use serde_json::Value;
use std::hash::{BuildHasher as _, RandomState};

/// Most stop texts, as OpenAI has it.
pub(crate) const OPENAI_STOPS: usize = 4;

/// Most stop texts of Ollama's interface, which knows no bound.
pub(crate) const OLLAMA_STOPS: usize = 64;

/// Most bytes of a stop text: as much of an answer may be held back because it could be one.
const STOP_BYTES: usize = 4096;

/// Most tokens that may be asked for, as JSON's numbers are read.
#[expect(clippy::cast_possible_wrap, reason = "it is small")]
pub(crate) const MAX_TOKENS: i64 = runtime::MAX_TOKENS as i64;

/// A conversation that is to be answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) request: Request,
    pub(crate) stream: bool,
    /// The field that says what the answer keeps to.
    pub(crate) constrained_by: Option<&'static str>,
    /// Whom the client speaks for, in its own words.
    pub(crate) user: Option<String>,
    /// Bytes of what it keeps to, which wait with its texts.
    pub(crate) beside: usize,
}

/// The model that a request names must be the one that there is; `name` and `name:latest` are the same.
pub(crate) fn check_model(app: &App, name: &str, param: Option<&str>) -> Result<(), ApiError> {
    let ours = &app.about.name;
    if name == ours || name.strip_suffix(":latest") == Some(ours) {
        return Ok(());
    }
    let found = crate::error::clipped(name);
    let message = format!("there is no model `{found}`, this server has `{ours}`");
    let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
    Err(match param {
        Some(param) => error.with_param(param),
        None => error,
    })
}

/// The field `model`, which may be left out: there is one.
pub(crate) fn model(app: &App, fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(name) => check_model(app, name, Some("model")),
        None => Ok(()),
    }
}

/// What tools there may be, and calls of them.
pub(crate) const NO_TOOLS: &str = "nothing: this model calls no functions";

/// The field `role` of a message; `developer` is OpenAI's newer word for `system`.
pub(crate) fn role(fields: &Fields<'_>) -> Result<Role, ApiError> {
    let expected = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let value = fields.needed("role", expected)?;
    match value.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        _other => Err(fields.wrong("role", value, expected)),
    }
}

/// The field `messages`, each read by `message`; the last of them must not be the assistant's.
pub(crate) fn messages(
    list: &[Value],
    message: impl Fn(&Fields<'_>) -> Result<Draft, ApiError>,
) -> Result<Vec<Draft>, ApiError> {
    let read = |(index, value)| message(&Fields::of(value, format!("messages[{index}]"))?);
    let drafts: Result<Vec<Draft>, ApiError> = list.iter().enumerate().map(read).collect();
    let drafts = drafts?;
    if drafts.last().is_some_and(|draft| draft.role == Role::Assistant) {
        let message = "the last of `messages` is the assistant's, expected the user's: an answer that has begun is not continued";
        return Err(ApiError::about("messages", message));
    }
    Ok(drafts)
}

/// The field `stop`: a text or several, at most `most`.
pub(crate) fn stops(fields: &Fields<'_>, most: usize) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.get("stop") else {
        return Ok(Vec::new());
    };
    let expected = format!("a text, or an array of up to {most} texts, none of them empty");
    let texts = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(texts) if texts.len() <= most => texts,
        other => return Err(fields.wrong("stop", other, &expected)),
    };
    let text = |value: &Value| match value.as_str() {
        Some(text) if text.len() > STOP_BYTES => {
            let name = fields.name("stop");
            let found = text.len();
            let message = format!("`{name}` has a text of {found} bytes, expected at most {STOP_BYTES}");
            Err(ApiError::about(name, message))
        }
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _other => Err(fields.wrong("stop", value, &expected)),
    };
    texts.iter().map(text).collect()
}

/// How tokens are chosen: fields that both interfaces have, by the same names but for one.
pub(crate) fn sampling(fields: &Fields<'_>, repetition: &str, hottest: f64) -> Result<Sampling, ApiError> {
    let mut sampling = Sampling::default();
    if let Some(temperature) = fields.number("temperature", 0.0, hottest)? {
        sampling.temperature = small(temperature);
    }
    if let Some(top_p) = fields.number("top_p", 0.0, 1.0)? {
        // 0 stands for the likeliest token alone.
        sampling.top_p = small(top_p).max(f32::MIN_POSITIVE);
    }
    if let Some(top_k) = fields.whole("top_k", -1, i64::MAX)? {
        sampling.top_k = usize::try_from(top_k).unwrap_or(0);
    }
    if let Some(penalty) = fields.number(repetition, 0.01, 100.0)? {
        sampling.repetition_penalty = small(penalty);
    }
    if let Some(penalty) = fields.number("presence_penalty", -2.0, 2.0)? {
        sampling.presence_penalty = small(penalty);
    }
    if let Some(penalty) = fields.number("frequency_penalty", -2.0, 2.0)? {
        sampling.frequency_penalty = small(penalty);
    }
    let seed = fields.whole("seed", i64::MIN, i64::MAX)?;
    // Who names no seed wants another answer each time.
    sampling.seed = seed.map_or_else(
        || RandomState::new().hash_one(0u8),
        |seed| u64::from_ne_bytes(seed.to_ne_bytes()),
    );
    Ok(sampling)
}

/// With something that the answer keeps to, if any, and how many bytes that is. What is too large to be compiled is refused
/// before it waits.
pub(crate) fn constrained(
    request: Request,
    constraint: Option<Constraint>,
    field: Option<&str>,
) -> Result<(Request, usize), ApiError> {
    let Some(constraint) = constraint else {
        return Ok((request, 0));
    };
    let size = constraint.size().map_err(|error| {
        let error = ApiError::bad(error.to_string()).with_code(INVALID_CONSTRAINT);
        match field {
            Some(field) => error.with_param(field),
            None => error,
        }
    })?;
    Ok((request.with_constraint(constraint), size))
}

/// A number that is within the range of the smaller type.
pub(crate) fn small(number: f64) -> f32 {
    number as f32
}

/// A field of others' interfaces that would change the answer, and is not offered here, may only have one of these values.
pub(crate) fn only(
    fields: &Fields<'_>,
    field: &str,
    allowed: impl Fn(&Value) -> bool,
    expected: &str,
) -> Result<(), ApiError> {
    match fields.get(field) {
        Some(value) if !allowed(value) => Err(ApiError::unsupported(fields.name(field), expected)),
        _absent_or_allowed => Ok(()),
    }
}

/// Whether a value is the number 0.
pub(crate) fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

/// Whether a value is the number 1.
pub(crate) fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

/// Whether a value is `false`.
pub(crate) fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

/// Whether a value is an array, an object or a text with nothing in it.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
