//! Ollama's interface: `/api/chat`, `/api/generate`, and what clients ask first: `/api/tags`, `/api/show`, `/api/version`.

mod ask;
mod say;
#[cfg(test)]
mod tests;

use crate::answer::Answering;
use crate::app::App;
use crate::asked::{self, Asked};
use crate::body;
use crate::error::{ApiError, json_response};
use crate::http::Client;
use crate::json::{self, Fields};
use crate::pictures;
use ask::Question;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use say::Speaker;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// The release of Ollama whose interface this is; clients look at it to know what they may ask for.
const RELEASE: &str = "0.9.0";

/// `POST /api/chat`.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, client, request, Form::Chat).await
}

/// `POST /api/generate`.
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(app, client, request, Form::Generate).await
}

/// In which field an answer's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `message.content`.
    Chat,
    /// `response`.
    Generate,
}

async fn answer(app: Arc<App>, client: Client, request: Request, form: Form) -> Result<Response, ApiError> {
    let received = Instant::now();
    let held = body::read(&app, request).await?;
    let reader = Arc::clone(&app);
    let asked = pictures::blocking(move || {
        let body = json::parse(&held.bytes)?;
        let asked = match form {
            Form::Chat => ask::chat(&reader, &body)?,
            Form::Generate => ask::generate(&reader, &body)?,
        };
        Ok::<_, ApiError>((asked, held.taken))
    });
    let (asked, taken) = asked.await??;
    let speaker = Speaker::new(&app, form);
    let Asked {
        drafts,
        request,
        stream,
        beside,
        ..
    } = match asked {
        Question::Asked(asked) => *asked,
        Question::Nothing(reason) => return Ok(json_response(StatusCode::OK, &speaker.nothing(reason))),
    };
    let decoded = pictures::decode(&app, drafts, beside).await?;
    drop(taken);
    let answering = Answering::begin(&app, decoded, request, client.name(None), received).await?;
    if stream {
        Ok(speaker.stream(answering))
    } else {
        let (pieces, summary) = answering.whole().await?;
        Ok(json_response(StatusCode::OK, &speaker.whole(&pieces, &summary)))
    }
}

/// `GET /api/version`.
pub(crate) async fn version() -> Response {
    json_response(StatusCode::OK, &json!({"version": RELEASE}))
}

/// `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let mut model = one(&app);
    if let Some(model) = model.as_object_mut() {
        let modified = say::timestamp(app.about.modified);
        model.insert("modified_at".to_owned(), modified.into());
    }
    json_response(StatusCode::OK, &json!({"models": [model]}))
}

/// `GET /api/ps`: the model is always loaded.
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    let mut model = one(&app);
    if let Some(model) = model.as_object_mut() {
        let far = app.begun + std::time::Duration::from_secs(100 * 365 * 24 * 3600);
        model.insert("expires_at".to_owned(), say::timestamp(far).into());
        model.insert("size_vram".to_owned(), 0.into());
    }
    json_response(StatusCode::OK, &json!({"models": [model]}))
}

/// `POST /api/show`.
pub(crate) async fn show(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let held = body::read(&app, request).await?;
    let body = pictures::blocking(move || json::parse(&held.bytes)).await??;
    let fields = Fields::root(&body)?;
    let name = match fields.text("model")? {
        Some(name) => name,
        // What older clients call it.
        None => fields.text("name")?.unwrap_or(&app.about.name),
    };
    asked::check_model(&app, name, Some("model"))?;
    let about = &app.about;
    let shown = json!({
        "license": about.license.as_deref().unwrap_or("unknown"),
        "modelfile": format!("FROM {}", about.name),
        "parameters": "",
        "template": "",
        "modified_at": say::timestamp(about.modified),
        "details": details(&app),
        "model_info": {
            "general.architecture": "fastvlm",
            "general.basename": about.name,
            "general.parameter_count": about.parameters,
            "fastvlm.context_length": about.context,
            "fastvlm.embedding_length": about.width,
        },
        "capabilities": ["completion", "vision"],
    });
    Ok(json_response(StatusCode::OK, &shown))
}

fn one(app: &App) -> Value {
    let name = tagged(&app.about.name);
    json!({
        "name": name,
        "model": name,
        "size": app.about.bytes,
        "digest": app.about.digest,
        "details": details(app),
    })
}

/// A name with its tag, as Ollama lists models: `latest` where it has none.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

fn details(app: &App) -> Value {
    let millions = app.about.parameters / 1_000_000;
    let size = if millions < 1000 {
        format!("{millions}M")
    } else {
        format!("{}.{}B", millions / 1000, millions % 1000 / 100)
    };
    json!({
        "parent_model": "",
        "format": "onnx",
        "family": "fastvlm",
        "families": ["fastvlm"],
        "parameter_size": size,
        "quantization_level": app.about.precision.to_uppercase(),
    })
}

/// Now, as `created_at`.
pub(crate) fn now() -> String {
    say::timestamp(SystemTime::now())
}
