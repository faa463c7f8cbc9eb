//! The body of `POST /v1/chat/completions`: every field that is known is checked, others are left alone.

use super::others;
use super::say::Form;
use crate::app::App;
use crate::asked::{self, Asked, NO_TOOLS, is_empty, only};
use crate::error::ApiError;
use crate::json::Fields;
use crate::pictures::{self, Draft, Shown};
use runtime::{Constraint, MAX_LOGPROBS, Request, Role};
use serde_json::Value;

/// Most bytes of `user`.
const USER_BYTES: usize = 1024;

/// A whole body.
pub(crate) fn chat(app: &App, body: &Value) -> Result<(Asked, Form), ApiError> {
    let fields = Fields::root(body)?;
    asked::model(app, &fields)?;
    others::refuse(&fields)?;
    let drafts = messages(app, &fields)?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let (constraint, constrained_by) = constraint(&fields)?.unzip();
    let (request, beside) = request(app, &fields, constraint, constrained_by)?;
    let form = Form {
        usage: usage(&fields, stream)?,
        logprobs: request.logprobs.is_some(),
    };
    let asked = Asked {
        drafts,
        request,
        stream,
        constrained_by,
        user: user(&fields)?,
        beside,
    };
    Ok((asked, form))
}

/// Whom the client speaks for.
fn user(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let user = fields.text("user")?;
    if let Some(found) = user.map(str::len).filter(|found| *found > USER_BYTES) {
        let message = format!("`user` has {found} bytes, expected at most {USER_BYTES}");
        return Err(ApiError::about("user", message));
    }
    Ok(user.map(str::to_owned))
}

/// How to answer, and bytes of what the answer keeps to.
fn request(
    app: &App,
    fields: &Fields<'_>,
    constraint: Option<Constraint>,
    constrained_by: Option<&str>,
) -> Result<(Request, usize), ApiError> {
    let sampling = asked::sampling(fields, "repetition_penalty", 2.0)?;
    let request = Request::default()
        .with_sampling(sampling)
        .with_max_tokens(max_tokens(app, fields)?)
        .with_stops(asked::stops(fields, asked::OPENAI_STOPS)?);
    let (request, beside) = asked::constrained(request, constraint, constrained_by)?;
    let request = match logprobs(fields)? {
        Some(count) => request.with_logprobs(count),
        None => request,
    };
    Ok((request, beside))
}

/// How many alternatives come with each token, where log-probabilities are asked for.
fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let asked = fields.flag("logprobs")?.unwrap_or(false);
    let most = i64::try_from(MAX_LOGPROBS).unwrap_or(i64::MAX);
    let count = fields.whole("top_logprobs", 0, most)?;
    if count.is_some_and(|count| count > 0) && !asked {
        let message = "`top_logprobs` is given, expected it only where `logprobs` is true";
        return Err(ApiError::about("top_logprobs", message));
    }
    let count = count.and_then(|count| usize::try_from(count).ok());
    Ok(asked.then_some(count.unwrap_or_default()))
}

/// What the answer keeps to, and the field that says it.
type Stated = (Constraint, &'static str);

/// OpenAI's `response_format`, or `structured_outputs` as vLLM has it.
fn constraint(fields: &Fields<'_>) -> Result<Option<Stated>, ApiError> {
    let format = match fields.object("response_format")? {
        Some(format) => response_format(&format)?,
        None => None,
    };
    let structured = match fields.object("structured_outputs")? {
        Some(structured) => structured_outputs(&structured)?,
        None => None,
    };
    if format.is_some() && structured.is_some() {
        let message = "`response_format` and `structured_outputs` are given, expected one of them";
        return Err(ApiError::about("structured_outputs", message));
    }
    Ok(format.or(structured))
}

fn response_format(format: &Fields<'_>) -> Result<Option<Stated>, ApiError> {
    let expected = "\"text\", \"json_object\" or \"json_schema\"";
    let value = format.needed("type", expected)?;
    others::refuse_format(format, value.as_str().unwrap_or_default())?;
    match value.as_str() {
        Some("text") => Ok(None),
        // With a schema, as llama.cpp, Together and Fireworks have it.
        Some("json_object") => Ok(Some(match format.get("schema") {
            Some(schema) => (Constraint::JsonSchema(schema.clone()), "response_format.schema"),
            None => (Constraint::JsonObject, "response_format"),
        })),
        Some("json_schema") => {
            let expected = "an object with the field `schema`";
            format.needed("json_schema", expected)?;
            let Some(described) = format.object("json_schema")? else {
                return Ok(None);
            };
            described.text("name")?;
            described.flag("strict")?;
            let schema = described.needed("schema", "a JSON schema")?;
            let constraint = Constraint::JsonSchema(schema.clone());
            Ok(Some((constraint, "response_format.json_schema.schema")))
        }
        _other => Err(format.wrong("type", value, expected)),
    }
}

fn structured_outputs(structured: &Fields<'_>) -> Result<Option<Stated>, ApiError> {
    let mut found = Vec::new();
    if let Some(schema) = structured.get("json") {
        let constraint = Constraint::JsonSchema(schema.clone());
        found.push((constraint, "structured_outputs.json"));
    }
    if let Some(true) = structured.flag("json_object")? {
        found.push((Constraint::JsonObject, "structured_outputs.json_object"));
    }
    if let Some(regex) = structured.text("regex")? {
        found.push((Constraint::Regex(regex.to_owned()), "structured_outputs.regex"));
    }
    if let Some(list) = structured.list("choice")? {
        let expected = "an array of texts";
        let text = |value: &Value| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| structured.wrong("choice", value, expected))
        };
        let texts: Result<Vec<String>, ApiError> = list.iter().map(text).collect();
        found.push((Constraint::Choices(texts?), "structured_outputs.choice"));
    }
    others::refuse_structured(structured)?;
    if found.len() > 1 {
        let message =
            "`structured_outputs` has several of `json`, `json_object`, `regex` and `choice`, expected one";
        return Err(ApiError::about("structured_outputs", message));
    }
    Ok(found.pop())
}

/// The newer name, or the older.
fn max_tokens(app: &App, fields: &Fields<'_>) -> Result<usize, ApiError> {
    let newer = fields.whole("max_completion_tokens", 1, asked::MAX_TOKENS)?;
    let older = fields.whole("max_tokens", 1, asked::MAX_TOKENS)?;
    if let (Some(newer), Some(older)) = (newer, older)
        && newer != older
    {
        let message =
            format!("`max_tokens` is {older} and `max_completion_tokens` {newer}, expected one of them");
        return Err(ApiError::about("max_tokens", message));
    }
    let asked = newer.or(older).and_then(|count| usize::try_from(count).ok());
    Ok(asked.unwrap_or(app.settings.max_tokens))
}

/// Whether a stream ends with what it took.
fn usage(fields: &Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let message = "`stream_options` is given, expected it only where `stream` is true";
        return Err(ApiError::about("stream_options", message));
    }
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

fn messages(app: &App, fields: &Fields<'_>) -> Result<Vec<Draft>, ApiError> {
    let expected = "an array of at least one message";
    let value = fields.needed("messages", expected)?;
    let list = fields.list("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(fields.wrong("messages", value, expected));
    }
    asked::messages(list, |fields| message(app, fields))
}

fn message(app: &App, fields: &Fields<'_>) -> Result<Draft, ApiError> {
    let role = asked::role(fields)?;
    only(fields, "tool_calls", is_empty, NO_TOOLS)?;
    only(fields, "function_call", |_| false, NO_TOOLS)?;
    only(
        fields,
        "audio",
        |_| false,
        "nothing: conversations are text and images",
    )?;
    let expected = "a text, or an array of parts";
    let mut draft = Draft {
        role,
        images: Vec::new(),
        text: String::new(),
    };
    match fields.needed("content", expected)? {
        Value::String(text) => draft.text.clone_from(text),
        Value::Array(parts) if !parts.is_empty() => {
            let mut texts = Vec::new();
            for (index, value) in parts.iter().enumerate() {
                let part = Fields::of(value, format!("{}[{index}]", fields.name("content")))?;
                match part_of(app, &part, role)? {
                    Part::Text(text) => texts.push(text),
                    Part::Image(image) => draft.images.push(image),
                }
            }
            draft.text = texts.join("\n");
        }
        other => return Err(fields.wrong("content", other, expected)),
    }
    Ok(draft)
}

enum Part<'a> {
    Text(&'a str),
    Image(Shown),
}

fn part_of<'a>(app: &App, part: &Fields<'a>, role: Role) -> Result<Part<'a>, ApiError> {
    let expected = "\"text\" or \"image_url\"";
    let value = part.needed("type", expected)?;
    match value.as_str() {
        Some("text") => {
            part.needed("text", "a text")?;
            Ok(Part::Text(part.text("text")?.unwrap_or_default()))
        }
        Some("image_url") if role == Role::User => image(app, part).map(Part::Image),
        Some("image_url") => {
            let message = format!(
                "`{}` is an image, expected images in messages of the user",
                part.name("type")
            );
            Err(ApiError::about(part.name("type"), message))
        }
        _other => Err(part.wrong("type", value, expected)),
    }
}

/// `image_url`: an object with the field `url`, or, as some clients send it, the address itself.
fn image(app: &App, part: &Fields<'_>) -> Result<Shown, ApiError> {
    let expected = "an object with the field `url`";
    let value = part.needed("image_url", expected)?;
    if let Value::String(address) = value {
        return pictures::from_address(app, address, part.name("image_url"));
    }
    let fields = Fields::of(value, part.name("image_url"))?;
    // Every image is seen at the model's one size.
    fields.text("detail")?;
    let expected = "a data URL of an image in base64";
    fields.needed("url", expected)?;
    let address = fields.text("url")?.unwrap_or_default();
    pictures::from_address(app, address, fields.name("url"))
}
