//! Paths: which there are, who answers them, and what is said about every request.

use crate::app::App;
use crate::body;
use crate::error::{ApiError, Dialect, clipped, json_response};
use crate::guard::{self, Admitted};
use crate::{ollama, openai, page};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, body::HttpBody as _};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use serde_json::json;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// An answer that is there as a whole.
pub(crate) fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
    (status, kind, body.into()).into_response()
}

/// An answer that comes in parts. Where nobody reads them any more, the stream is dropped.
pub(crate) fn streamed(kind: &'static str, parts: impl Stream<Item = String> + Send + 'static) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
    (kind, Body::from_stream(parts.map(Ok::<_, Infallible>))).into_response()
}

/// Whose connection it is: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client(pub(crate) IpAddr);

impl Client {
    /// The name under which clients take turns. On this machine all have one address, and may say more.
    pub(crate) fn name(self, user: Option<&str>) -> String {
        match user {
            Some(user) if self.0.to_canonical().is_loopback() => format!("{} {user}", self.0),
            _other => self.0.to_string(),
        }
    }
}

/// Every path but those of the page, and who answers it.
pub(crate) fn routes() -> [(&'static str, MethodRouter<Arc<App>>); 12] {
    [
        ("/health", get(health)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(interface)),
        ("/v1/models", get(openai::models)),
        ("/v1/models/{*model}", get(openai::model)),
        ("/v1/chat/completions", post(openai::chat)),
        ("/api/chat", post(ollama::chat)),
        ("/api/generate", post(ollama::generate)),
        ("/api/tags", get(ollama::tags)),
        ("/api/show", post(ollama::show)),
        ("/api/ps", get(ollama::ps)),
        ("/api/version", get(ollama::version)),
    ]
}

/// What answers a request, whatever it is; the request carries its [`Client`].
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for (path, methods) in routes() {
        router = router.route(path, methods);
    }
    for file in page::FILES {
        router = router.route(file.path, get(move |headers: HeaderMap| page_file(file, headers)));
    }
    router
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guarded))
        .with_state(app)
}

/// Around every request: who may ask, what an error looks like, and what is counted.
async fn guarded(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let cors = guard::cors_headers(&app, request.headers());
    let admitted = guard::admit(&app, &method, request.uri(), request.headers());
    let mut response = match admitted {
        Ok(Admitted::Yes) => {
            let work = AssertUnwindSafe(next.run(request)).catch_unwind();
            work.await.unwrap_or_else(|_panic| {
                let message = "this is a bug of the server";
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
            })
        }
        Ok(Admitted::Preflight) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            refuse(request).await;
            error.into_response()
        }
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = error.render(Dialect::of(&path));
    }
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.extend(cors);
    let status = response.status().as_u16();
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    app.metrics.request(route, status);
    if app.settings.verbose {
        let path = clipped(&path);
        let millis = begun.elapsed().as_millis();
        crate::log(&format!("{} {method} {path} {status} {millis} ms", client.0));
    }
    response
}

/// Takes what a refused client still sends.
async fn refuse(request: Request) {
    if !request.body().is_end_stream() {
        body::drain(request.into_body()).await;
    }
}

/// A path that is none.
async fn nothing(request: Request) -> ApiError {
    let path = clipped(request.uri().path());
    refuse(request).await;
    let message = format!("there is nothing at `{path}`");
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

/// A path that takes other methods. Which ones axum adds, in the answer's header.
async fn wrong_method(request: Request) -> ApiError {
    let (path, method) = (clipped(request.uri().path()), clipped(request.method().as_str()));
    refuse(request).await;
    let message = format!("`{path}` does not take {method}, expected what the header Allow says");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// A file of the page; a client of Ollama's that asks for `/` whether somebody is there is no browser.
async fn page_file(file: &'static page::File, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if file.path == "/" && !accept.contains("text/html") {
        return response(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            "fvlm-serve is running\n",
        );
    }
    let mut response = response(StatusCode::OK, file.kind, file.bytes);
    response.headers_mut().extend(page::headers());
    response
}

/// `GET /health`: 200 while questions are taken in.
async fn health(State(app): State<Arc<App>>) -> Response {
    let ending = app.ending.load(Ordering::Relaxed);
    let counts = app.worker.counts();
    let body = json!({
        "status": if ending { "ending" } else { "ok" },
        "version": env!("CARGO_PKG_VERSION"),
        "model": app.about.name,
        "waiting": counts.waiting,
        "running": counts.running,
        "slots": counts.slots,
    });
    let status = if ending {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    json_response(status, &body)
}

/// `GET /metrics`.
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text(&app.worker.counts());
    response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// `GET /openapi.json`.
async fn interface(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &app.interface)
}
