//! The body of a request: of the right kind, not too long, not too slow, and within what all bodies may take.

use crate::app::App;
use crate::budget::Taken;
use crate::error::{ApiError, clipped};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a client that is refused may go on sending, so that it sees why.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes that a body takes of the budget at first, if it is not shorter; from then on it doubles, as far as it may come to.
const STEP: usize = 64 << 10;

/// A body, and the memory that it holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Vec<u8>,
    pub(crate) taken: Taken,
}

/// Reads the body of a request that must be JSON.
pub(crate) async fn read(app: &App, request: Request) -> Result<Held, ApiError> {
    let (head, mut body) = request.into_parts();
    let read = match announced(app, &head.headers) {
        Ok(length) => collect(app, &mut body, length).await,
        Err(error) => Err(error),
    };
    if read.is_err() {
        drain(body).await;
    }
    read
}

/// Takes what still comes, for a while: who is cut off while it sends does not read an answer.
pub(crate) async fn drain(mut body: Body) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    drop(timeout(LINGER, rest).await);
}

/// The kind as the head says must be right; how long the body may become: as the head says, or as long as any may.
fn announced(app: &App, headers: &HeaderMap) -> Result<usize, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
    let essence = kind.as_deref().unwrap_or_default().split(';').next();
    let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
    if essence != "application/json" {
        let found = kind.map_or_else(|| "missing".to_owned(), |kind| format!("`{}`", clipped(&kind)));
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the header Content-Type is {found}, expected `application/json`"),
        ));
    }
    let coding = headers.get(header::CONTENT_ENCODING);
    let coding = coding.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if let Some(coding) = coding {
        let coding = clipped(&String::from_utf8_lossy(coding.as_bytes()));
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the header Content-Encoding is `{coding}`, expected a body without one"),
        ));
    }
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let Some(length) = length else {
        return Ok(app.settings.max_body);
    };
    match usize::try_from(length) {
        Ok(length) if length <= app.settings.max_body => Ok(length),
        _too_long => Err(too_long(app)),
    }
}

/// Room for `more` bytes behind those that are there, taken from the budget before from the system: what came decides how
/// much, not what was announced.
fn grow(
    app: &App,
    bytes: &mut Vec<u8>,
    more: usize,
    longest: usize,
    taken: &mut Taken,
) -> Result<(), ApiError> {
    let room = bytes.capacity();
    let needed = bytes.len().saturating_add(more);
    if needed <= room {
        return Ok(());
    }
    let wanted = room.saturating_mul(2).max(STEP).min(longest).max(needed);
    let step = u64::try_from(wanted - room).unwrap_or(u64::MAX);
    app.bodies.take(step, taken).ok_or_else(|| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many bodies are being read; try again",
        )
        .with_retry_after(Duration::from_secs(1))
    })?;
    bytes.reserve_exact(wanted - bytes.len());
    Ok(())
}

async fn collect(app: &App, body: &mut Body, longest: usize) -> Result<Held, ApiError> {
    let deadline = Instant::now() + app.settings.body_timeout;
    let mut taken = Taken::default();
    let mut bytes = Vec::new();
    loop {
        let frame = timeout_at(deadline, body.frame()).await;
        let frame = frame.map_err(|_| {
            let seconds = app.settings.body_timeout.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let Some(frame) = frame else {
            return Ok(Held { bytes, taken });
        };
        let frame = frame.map_err(|_| ApiError::bad("the body ended before it was complete"))?;
        let data: Bytes = frame.into_data().unwrap_or_default();
        if data.len() > app.settings.max_body.saturating_sub(bytes.len()) {
            return Err(too_long(app));
        }
        grow(app, &mut bytes, data.len(), longest, &mut taken)?;
        bytes.extend_from_slice(&data);
    }
}

fn too_long(app: &App) -> ApiError {
    let most = app.settings.max_body;
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body has over {most} bytes, the most that it may (--max-body)"),
    )
}
