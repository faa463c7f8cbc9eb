//! OpenAI's interface: `/v1/chat/completions` and `/v1/models`.

mod ask;
mod others;
mod say;
#[cfg(test)]
mod tests;

use crate::answer::{Answering, INVALID_CONSTRAINT};
use crate::app::App;
use crate::asked;
use crate::body;
use crate::error::{ApiError, json_response};
use crate::http::Client;
use crate::json;
use crate::pictures;
use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = Instant::now();
    let held = body::read(&app, request).await?;
    let reader = Arc::clone(&app);
    let asked = pictures::blocking(move || {
        let body = json::parse(&held.bytes)?;
        let asked = ask::chat(&reader, &body)?;
        // What is held now is the images' files, for which the body's share stands.
        Ok::<_, ApiError>((asked, held.taken))
    });
    let ((asked, form), taken) = asked.await??;
    let decoded = pictures::decode(&app, asked.drafts, asked.beside).await?;
    drop(taken);
    let client = client.name(asked.user.as_deref());
    let answering = Answering::begin(&app, decoded, asked.request, client, received);
    let answering = answering.await.map_err(|error| match asked.constrained_by {
        Some(field) if error.code == Some(INVALID_CONSTRAINT) => error.with_param(field),
        _ => error,
    })?;
    let speaker = say::Speaker::new(&app, form);
    if asked.stream {
        Ok(speaker.stream(answering))
    } else {
        let (pieces, summary) = answering.whole().await?;
        Ok(json_response(StatusCode::OK, &speaker.whole(&pieces, &summary)))
    }
}

/// `GET /v1/models`.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    let list = json!({"object": "list", "data": [one(&app)]});
    json_response(StatusCode::OK, &list)
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::bad(error.body_text()))?;
    asked::check_model(&app, &id, Some("model"))?;
    Ok(json_response(StatusCode::OK, &one(&app)))
}

fn one(app: &App) -> Value {
    json!({
        "id": app.about.name,
        "object": "model",
        "created": seconds(app.about.modified),
        "owned_by": "fvlm-serve",
    })
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
