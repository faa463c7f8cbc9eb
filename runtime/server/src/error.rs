//! An error as clients of OpenAI's and of Ollama's interface know it: a status, and a body that names the field.

use crate::http::response;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// Whose words a path speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `/v1/...`, and everything that is not Ollama's.
    OpenAi,
    /// `/api/...`.
    Ollama,
}

impl Dialect {
    /// The dialect of a path.
    pub(crate) fn of(path: &str) -> Dialect {
        if path.starts_with("/api/") {
            Dialect::Ollama
        } else {
            Dialect::OpenAi
        }
    }
}

/// Characters of a client's own words that an error repeats.
const SHOWN: usize = 80;

/// What is wrong with a request, or with us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// A word for programs, where there is one.
    pub(crate) code: Option<&'static str>,
    /// The field that is at fault: `messages[0].content`.
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    /// A header that goes with the status: `Retry-After`, `Allow`, `WWW-Authenticate`.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            code: None,
            param: None,
            message: message.into(),
            header: None,
        }
    }

    /// 400: the request as a whole.
    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a field has a value that is none.
    pub(crate) fn field(name: impl Into<String>, found: &Value, expected: &str) -> ApiError {
        let name = name.into();
        let message = format!("`{name}` is {}, expected {expected}", shown(found));
        ApiError {
            param: Some(name),
            code: Some("invalid_value"),
            ..ApiError::bad(message)
        }
    }

    /// 400: a field is at fault, in these words.
    pub(crate) fn about(name: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(name.into()),
            code: Some("invalid_value"),
            ..ApiError::bad(message)
        }
    }

    /// 400: a field asks for something that is known, and not offered here.
    pub(crate) fn unsupported(name: impl Into<String>, expected: &str) -> ApiError {
        let name = name.into();
        let message = format!("`{name}` is not supported here, expected {expected}");
        ApiError {
            param: Some(name),
            code: Some("unsupported_value"),
            ..ApiError::bad(message)
        }
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    pub(crate) fn with_param(mut self, name: impl Into<String>) -> ApiError {
        self.param = Some(name.into());
        self
    }

    /// When to try again, in whole seconds, at least one.
    pub(crate) fn with_retry_after(self, after: Duration) -> ApiError {
        let seconds = after.as_millis().div_ceil(1000).clamp(1, 3600);
        let value = HeaderValue::from_str(&seconds.to_string());
        self.with_header(
            header::RETRY_AFTER,
            value.unwrap_or(HeaderValue::from_static("1")),
        )
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// OpenAI's word for this kind of error.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body, for answers whose status is sent already.
    pub(crate) fn body(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": self.message,
                "type": self.kind(),
                "param": self.param,
                "code": self.code,
            }}),
            Dialect::Ollama => json!({"error": self.message}),
        }
    }

    /// The whole answer.
    pub(crate) fn render(self, dialect: Dialect) -> Response {
        let mut response = json_response(self.status, &self.body(dialect));
        if let Some((name, value)) = self.header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// The error as an extension: [`crate::http::router`] renders it, since it knows whose words the path speaks.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A body of JSON.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    response(status, "application/json", body.to_string())
}

/// A value, shortened to what an error should repeat.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("\"{}\"", clipped(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The beginning of a text, in one line.
pub(crate) fn clipped(text: &str) -> String {
    let begin: String = text.chars().take(SHOWN).collect();
    let more = if begin.len() < text.len() { "..." } else { "" };
    format!("{}{more}", models::plain::line(&begin))
}
