//! The bodies of `POST /api/chat` and `/api/generate`.

use crate::app::App;
use crate::asked::{self, Asked, NO_TOOLS, is_empty, is_false, is_one, is_zero, only};
use crate::error::ApiError;
use crate::json::Fields;
use crate::pictures::{self, Draft, Shown};
use runtime::{Constraint, Request, Role, Sampling};
use serde_json::Value;

/// What is asked, if anything: with an empty question clients load a model, or let it go.
#[derive(Debug)]
pub(crate) enum Question {
    Asked(Box<Asked>),
    /// Nothing, with the reason that the answer has.
    Nothing(&'static str),
}

/// The body of `/api/chat`.
pub(crate) fn chat(app: &App, body: &Value) -> Result<Question, ApiError> {
    let fields = Fields::root(body)?;
    asked::model(app, &fields)?;
    only(&fields, "tools", is_empty, NO_TOOLS)?;
    let list = fields.list("messages")?.unwrap_or_default();
    let drafts = asked::messages(list, message)?;
    question(app, &fields, drafts)
}

/// The body of `/api/generate`.
pub(crate) fn generate(app: &App, body: &Value) -> Result<Question, ApiError> {
    let fields = Fields::root(body)?;
    asked::model(app, &fields)?;
    only(&fields, "suffix", is_empty, "nothing")?;
    only(
        &fields,
        "template",
        is_empty,
        "nothing: the template is the model's",
    )?;
    only(
        &fields,
        "context",
        is_empty,
        "nothing: /api/chat has what was said before",
    )?;
    only(&fields, "raw", is_false, "false: the template is the model's")?;
    let text = fields.text("prompt")?.unwrap_or_default();
    let images = images(&fields)?;
    let mut drafts = Vec::new();
    if !text.is_empty() || !images.is_empty() {
        let system = fields.text("system")?.filter(|text| !text.is_empty());
        drafts.extend(system.map(|text| Draft {
            role: Role::System,
            images: Vec::new(),
            text: text.to_owned(),
        }));
        drafts.push(Draft {
            role: Role::User,
            images,
            text: text.to_owned(),
        });
    }
    question(app, &fields, drafts)
}

/// What both have.
fn question(app: &App, fields: &Fields<'_>, drafts: Vec<Draft>) -> Result<Question, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(true);
    only(
        fields,
        "think",
        is_false,
        "false: this model does not think aloud",
    )?;
    keep_alive(fields)?;
    only(
        fields,
        "logprobs",
        is_false,
        "false: /v1/chat/completions has them",
    )?;
    only(
        fields,
        "top_logprobs",
        is_zero,
        "0: /v1/chat/completions has them",
    )?;
    let (request, beside) = request(app, fields)?;
    if drafts.is_empty() {
        let leave = fields.get("keep_alive").is_some_and(is_no_time);
        return Ok(Question::Nothing(if leave { "unload" } else { "load" }));
    }
    Ok(Question::Asked(Box::new(Asked {
        drafts,
        request,
        stream,
        constrained_by: None,
        user: None,
        beside,
    })))
}

/// The model stays loaded, whatever is asked; that it is a time is checked.
fn keep_alive(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.get("keep_alive") {
        None | Some(Value::String(_) | Value::Number(_)) => Ok(()),
        Some(other) => Err(fields.wrong("keep_alive", other, "a duration or seconds")),
    }
}

/// Whether a duration is none: a number of seconds, or a text as Go's clients write it, `0s`.
fn is_no_time(value: &Value) -> bool {
    let none = |text: &str| {
        let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        number.parse() == Ok(0.0)
    };
    value.as_f64() == Some(0.0) || value.as_str().is_some_and(none)
}

/// How to answer, and bytes of what the answer keeps to.
fn request(app: &App, fields: &Fields<'_>) -> Result<(Request, usize), ApiError> {
    let constraint = format(fields)?;
    let empty = serde_json::Map::new();
    let none = Value::Object(empty);
    let options = match fields.object("options")? {
        Some(options) => options,
        None => Fields::of(&none, "options".to_owned())?,
    };
    only(&options, "mirostat", is_zero, "0")?;
    only(&options, "min_p", is_zero, "0")?;
    only(&options, "tfs_z", is_one, "1")?;
    only(&options, "typical_p", is_one, "1")?;
    let sampling = asked::sampling(&options, "repeat_penalty", 100.0)?;
    let most = options.whole("num_predict", -2, asked::MAX_TOKENS)?;
    let most = match most {
        None => app.settings.max_tokens,
        // -1 and -2: as long as the context has room. 0 is the same to Ollama.
        Some(count) if count <= 0 => app.about.context,
        Some(count) => usize::try_from(count).unwrap_or(app.about.context),
    };
    let request = Request::default()
        .with_sampling(within_window(app, &options, sampling)?)
        .with_max_tokens(most)
        .with_stops(asked::stops(&options, asked::OLLAMA_STOPS)?);
    asked::constrained(request, constraint, None)
}

/// Penalties look at the whole sequence. Ollama's window says over how many tokens: 0 is none of them, -1 all, and what is
/// longer than the context is all too. Without penalties it means nothing.
fn within_window(app: &App, options: &Fields<'_>, sampling: Sampling) -> Result<Sampling, ApiError> {
    let Some(window) = options.whole("repeat_last_n", -1, i64::MAX)? else {
        return Ok(sampling);
    };
    let free = Sampling {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        ..sampling
    };
    let whole = usize::try_from(window).map_or(true, |window| window >= app.about.context);
    match window {
        0 => Ok(free),
        _ if whole || free == sampling => Ok(sampling),
        _part => {
            let expected = format!(
                "0, -1 or at least {}: penalties look at all tokens or at none",
                app.about.context
            );
            Err(ApiError::unsupported(options.name("repeat_last_n"), &expected))
        }
    }
}

/// Structured answers: any JSON object, or a schema.
fn format(fields: &Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    let Some(value) = fields.get("format") else {
        return Ok(None);
    };
    match value {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) if text == "json" => Ok(Some(Constraint::JsonObject)),
        Value::Object(_) => Ok(Some(Constraint::JsonSchema(value.clone()))),
        other => Err(fields.wrong("format", other, "\"json\", or a JSON schema")),
    }
}

fn message(fields: &Fields<'_>) -> Result<Draft, ApiError> {
    let role = asked::role(fields)?;
    only(fields, "tool_calls", is_empty, NO_TOOLS)?;
    let images = images(fields)?;
    if role != Role::User && !images.is_empty() {
        let name = fields.name("images");
        let message = format!(
            "`{name}` is of {}, expected images in messages of the user",
            role.name()
        );
        return Err(ApiError::about(name, message));
    }
    Ok(Draft {
        role,
        images,
        text: fields.text("content")?.unwrap_or_default().to_owned(),
    })
}

/// The field `images`: files in base64.
fn images(fields: &Fields<'_>) -> Result<Vec<Shown>, ApiError> {
    let list = fields.list("images")?.unwrap_or_default();
    let read = |(index, value): (usize, &Value)| {
        let name = format!("{}[{index}]", fields.name("images"));
        match value.as_str() {
            Some(data) => pictures::from_base64(data, name),
            None => Err(ApiError::field(name, value, "an image in base64")),
        }
    };
    list.iter().enumerate().map(read).collect()
}
