//! Paths: which there are, who answers them, and what is said about every request.

use crate::app::App;
use crate::body;
use crate::error::{ApiError, Dialect, json_response};
use crate::guard::{self, Admitted};
use crate::{ollama, openai, page};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer.
pub(crate) type Response = hyper::Response<Body>;

/// An answer that is there as a whole.
pub(crate) fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer that comes in parts. Where nobody reads them any more, the stream is dropped.
pub(crate) fn streamed(kind: &'static str, parts: impl Stream<Item = String> + Send + 'static) -> Response {
    let frames = parts.map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Whose connection it is.
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

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Health,
    Metrics,
    Interface,
    Models,
    Model,
    ChatCompletions,
    OllamaChat,
    OllamaGenerate,
    OllamaTags,
    OllamaShow,
    OllamaPs,
    OllamaVersion,
}

/// Every path but those of the page; `*` stands for one part of it.
pub(crate) const ROUTES: [(&str, Route); 12] = [
    ("/health", Route::Health),
    ("/metrics", Route::Metrics),
    ("/openapi.json", Route::Interface),
    ("/v1/models", Route::Models),
    ("/v1/models/*", Route::Model),
    ("/v1/chat/completions", Route::ChatCompletions),
    ("/api/chat", Route::OllamaChat),
    ("/api/generate", Route::OllamaGenerate),
    ("/api/tags", Route::OllamaTags),
    ("/api/show", Route::OllamaShow),
    ("/api/ps", Route::OllamaPs),
    ("/api/version", Route::OllamaVersion),
];

impl Route {
    /// What asks for it.
    pub(crate) fn method(self) -> Method {
        match self {
            Route::ChatCompletions | Route::OllamaChat | Route::OllamaGenerate | Route::OllamaShow => {
                Method::POST
            }
            Route::Health
            | Route::Metrics
            | Route::Interface
            | Route::Models
            | Route::Model
            | Route::OllamaTags
            | Route::OllamaPs
            | Route::OllamaVersion => Method::GET,
        }
    }

    /// The route of a path, its name in `/metrics`, and what stands for `*`.
    fn of(path: &str) -> Option<(Route, &'static str, &str)> {
        ROUTES
            .iter()
            .find_map(|(pattern, route)| match pattern.strip_suffix('*') {
                Some(begin) => {
                    let rest = path.strip_prefix(begin)?;
                    (!rest.is_empty()).then_some((*route, *pattern, rest))
                }
                None => (path == *pattern).then_some((*route, *pattern, "")),
            })
    }
}

/// Answers a request, whatever it is.
pub(crate) async fn answer(app: Arc<App>, client: Client, request: Request<Incoming>) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let cors = guard::cors_headers(&app, request.headers());
    let admitted = guard::admit(&app, &method, request.uri(), request.headers());
    let answered = match admitted {
        Ok(Admitted::Yes) => {
            let work = AssertUnwindSafe(dispatch(&app, client, request)).catch_unwind();
            work.await.unwrap_or_else(|_panic| {
                let message = "this is a bug of the server";
                Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
            })
        }
        Ok(Admitted::Preflight) => Ok(empty(StatusCode::NO_CONTENT)),
        Err(error) => {
            refuse(request).await;
            Err(error)
        }
    };
    let mut response = answered.unwrap_or_else(|error| error.render(Dialect::of(&path)));
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.extend(cors);
    let known = Route::of(&path).map(|(_, name, _)| name);
    let name = known.or_else(|| page(&path).map(|file| file.path));
    let status = response.status().as_u16();
    app.metrics.request(name.unwrap_or("other"), status);
    if app.settings.verbose {
        let path = crate::error::clipped(&path);
        let millis = begun.elapsed().as_millis();
        crate::log(&format!("{} {method} {path} {status} {millis} ms", client.0));
    }
    response
}

/// Takes what a refused client still sends.
async fn refuse(request: Request<Incoming>) {
    if !request.body().is_end_stream() {
        body::drain(request.into_body()).await;
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}

fn page(path: &str) -> Option<&'static page::File> {
    page::FILES.iter().find(|file| file.path == path)
}

async fn dispatch(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let found = Route::of(&path);
    let allowed = match found {
        Some((route, _, _)) => route.method(),
        None if page(&path).is_some() => Method::GET,
        None => {
            refuse(request).await;
            let message = format!("there is nothing at `{}`", crate::error::clipped(&path));
            return Err(ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url"));
        }
    };
    let method = request.method();
    if *method != allowed && !(*method == Method::HEAD && allowed == Method::GET) {
        let methods = if allowed == Method::GET {
            "GET, HEAD"
        } else {
            "POST"
        };
        let message = format!(
            "`{path}` takes {methods}, not {}",
            crate::error::clipped(method.as_str())
        );
        refuse(request).await;
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
            .with_header(header::ALLOW, HeaderValue::from_static(methods)));
    }
    let app = Arc::clone(app);
    let Some((route, _, rest)) = found else {
        return Ok(serve_page(&path, &request));
    };
    match route {
        Route::Health => Ok(health(&app)),
        Route::Metrics => {
            let text = app.metrics.text(&app.worker.counts());
            Ok(response(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                text,
            ))
        }
        Route::Interface => Ok(json_response(StatusCode::OK, &app.interface)),
        Route::Models => Ok(openai::models(&app)),
        Route::Model => openai::model(&app, rest),
        Route::ChatCompletions => openai::chat(app, client, request).await,
        Route::OllamaChat => ollama::chat(app, client, request).await,
        Route::OllamaGenerate => ollama::generate(app, client, request).await,
        Route::OllamaTags => Ok(ollama::tags(&app)),
        Route::OllamaShow => ollama::show(app, request).await,
        Route::OllamaPs => Ok(ollama::ps(&app)),
        Route::OllamaVersion => Ok(ollama::version()),
    }
}

/// A file of the page; a client of Ollama's that asks for `/` whether somebody is there is no browser.
fn serve_page(path: &str, request: &Request<Incoming>) -> Response {
    let accept = request.headers().get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let Some(file) = page(path).filter(|file| file.path != "/" || accept.contains("text/html")) else {
        return response(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            "fvlm-serve is running\n",
        );
    };
    let mut response = response(StatusCode::OK, file.kind, file.bytes);
    response.headers_mut().extend(page::headers());
    response
}

/// `GET /health`: 200 while questions are taken in.
fn health(app: &App) -> Response {
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
