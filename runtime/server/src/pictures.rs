//! Images of a request: from base64 or an address to pixels, within bounds of number, size, time and memory.

use crate::app::App;
use crate::budget::Taken;
use crate::error::{ApiError, clipped};
use crate::work::Turn;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::Role;
use runtime::image::{self, Picture};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where an image comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The file itself.
    File(Vec<u8>),
    /// `http://` or `https://`.
    Address(String),
}

/// An image that a request shows, and by which field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) field: String,
    pub(crate) source: Source,
}

/// A message whose images are not decoded yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) role: Role,
    pub(crate) images: Vec<Shown>,
    pub(crate) text: String,
}

/// Turns, the memory that their images take, and the time that it took to get them.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) turns: Vec<Turn>,
    pub(crate) taken: Taken,
    pub(crate) took: Duration,
}

/// An image's field, that is refused.
fn refused(field: &str, message: String) -> ApiError {
    ApiError::about(field, message).with_code("invalid_image")
}

/// An address as OpenAI's interface has it: `data:image/png;base64,...`, or that of a file elsewhere.
pub(crate) fn from_address(app: &App, address: &str, field: String) -> Result<Shown, ApiError> {
    let scheme = address.split(':').next().unwrap_or_default().to_ascii_lowercase();
    match scheme.as_str() {
        "data" => {
            let rest = address.get(5..).unwrap_or_default();
            let Some((kind, data)) = rest.split_once(',') else {
                let message =
                    format!("`{field}` is a data URL without a comma, expected `data:image/...;base64,...`");
                return Err(refused(&field, message));
            };
            let kind = kind.to_ascii_lowercase();
            let (_, coding) = kind.rsplit_once(';').unwrap_or_default();
            if coding.trim() != "base64" {
                let message = format!(
                    "`{field}` is a data URL of `{}`, expected `...;base64`",
                    clipped(&kind)
                );
                return Err(refused(&field, message));
            }
            from_base64(&unescaped(data), field)
        }
        "http" | "https" if app.settings.fetch_images => Ok(Shown {
            field,
            source: Source::Address(address.to_owned()),
        }),
        "http" | "https" => {
            let message = format!(
                "`{field}` is an address, and this server fetches no images: send a data URL, or start it with --fetch-images"
            );
            Err(ApiError::about(field, message).with_code("unsupported_value"))
        }
        _ => {
            let expected = "a data URL of an image in base64";
            let message = format!("`{field}` is `{}`, expected {expected}", clipped(address));
            Err(refused(&field, message))
        }
    }
}

/// The text of a part of an address, where anything may be written as `%3D`.
fn unescaped(data: &str) -> Cow<'_, str> {
    if !data.contains('%') {
        return Cow::Borrowed(data);
    }
    let mut plain = String::with_capacity(data.len());
    let mut parts = data.split('%');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let code = part.split_at_checked(2);
        let code = code.and_then(|(code, rest)| Some((escape(code)?, rest)));
        match code {
            Some((letter, rest)) => {
                plain.push(letter);
                plain.push_str(rest);
            }
            // It is no base64 then, which is said with its place.
            None => {
                plain.push('%');
                plain.push_str(part);
            }
        }
    }
    Cow::Owned(plain)
}

/// The letter of ASCII that two digits stand for.
fn escape(digits: &str) -> Option<char> {
    let digits = digits
        .bytes()
        .all(|digit| digit.is_ascii_hexdigit())
        .then_some(digits)?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    byte.is_ascii().then(|| char::from(byte))
}

/// A file in base64, as Ollama's interface has it. It may be broken into lines, as mail has it and many tools write it.
pub(crate) fn from_base64(data: &str, field: String) -> Result<Shown, ApiError> {
    let is_break = |letter: char| matches!(letter, '\r' | '\n');
    let data = if data.contains(is_break) {
        Cow::Owned(data.replace(is_break, ""))
    } else {
        Cow::Borrowed(data)
    };
    let bytes = STANDARD.decode(data.as_bytes()).map_err(|error| {
        let error = error.to_string().to_ascii_lowercase();
        refused(&field, format!("`{field}` is not base64: {error}"))
    })?;
    if bytes.is_empty() {
        let message = format!("`{field}` is empty, expected an image in base64");
        return Err(refused(&field, message));
    }
    Ok(Shown {
        field,
        source: Source::File(bytes),
    })
}

/// Bytes of a decoded pixel: three of colour and one of transparency.
pub(crate) const BYTES: u64 = 4;

/// Fetches and decodes all images.
///
/// `beside`: bytes of the request that wait with the texts.
pub(crate) async fn decode(app: &Arc<App>, drafts: Vec<Draft>, beside: usize) -> Result<Decoded, ApiError> {
    let begun = Instant::now();
    let count: usize = drafts.iter().map(|draft| draft.images.len()).sum();
    let most = app.settings.max_images;
    if count > most {
        let message =
            format!("the request shows {count} images, the most that it may is {most} (--max-images)");
        return Err(ApiError::about("messages", message).with_code("too_many_images"));
    }
    let mut taken = Taken::default();
    let mut pixels = 0;
    let mut turns = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let mut images = Vec::with_capacity(draft.images.len());
        for shown in draft.images {
            let picture = open(app, shown, &mut pixels, &mut taken).await?;
            images.push(Arc::new(picture));
        }
        turns.push(Turn {
            role: draft.role,
            images,
            text: draft.text,
        });
    }
    let text = turns
        .iter()
        .map(|turn| turn.text.len())
        .fold(beside, usize::saturating_add);
    let text = u64::try_from(text).unwrap_or(u64::MAX);
    app.bodies
        .take(text, &mut taken)
        .ok_or_else(|| busy("too much text waits; try again"))?;
    Ok(Decoded {
        turns,
        taken,
        took: begun.elapsed(),
    })
}

async fn open(
    app: &Arc<App>,
    shown: Shown,
    pixels: &mut u64,
    taken: &mut Taken,
) -> Result<Picture, ApiError> {
    let Shown { field, source } = shown;
    // A file that was fetched waits for the decoders beside the body, whose share is for those in it.
    let mut file = Taken::default();
    let bytes = match source {
        Source::File(bytes) => bytes,
        Source::Address(address) => fetch(app, &field, address, &mut file).await?,
    };
    let permit = app.decoders.acquire().await;
    let limits = app.image_limits();
    let name = field.clone();
    let decoded = blocking(move || image::decode(&bytes, &name, &limits)).await?;
    drop(permit);
    drop(file);
    let picture = decoded.map_err(|error| refused(&field, error.to_string()))?;
    let size = u64::from(picture.width()) * u64::from(picture.height());
    *pixels += size;
    let most = app.settings.max_pixels;
    if *pixels > most {
        let message =
            format!("images up to `{field}` have {pixels} pixels, expected at most {most} together");
        return Err(refused(&field, message));
    }
    app.pictures
        .take(size * BYTES, taken)
        .ok_or_else(|| busy("too many images wait; try again"))?;
    Ok(picture)
}

fn busy(problem: &'static str) -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, problem)
        .with_code("rate_limit_exceeded")
        .with_retry_after(Duration::from_secs(1))
}

async fn fetch(app: &Arc<App>, field: &str, address: String, taken: &mut Taken) -> Result<Vec<u8>, ApiError> {
    let permit = app.fetches.acquire().await;
    let fetcher = Arc::clone(app);
    let fetched = blocking(move || fetcher.fetcher.fetch(&address)).await?;
    let bytes =
        fetched.map_err(|problem| refused(field, format!("`{field}` cannot be fetched: {problem}")))?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    app.bodies
        .take(length, taken)
        .ok_or_else(|| busy("too many files wait to be decoded; try again"))?;
    drop(permit);
    Ok(bytes)
}

/// Work that takes a processor for long, on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "this is a bug of the server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(data: &str) -> Option<Vec<u8>> {
        match from_base64(data, "x".to_owned()).ok()?.source {
            Source::File(bytes) => Some(bytes),
            Source::Address(_) => None,
        }
    }

    #[test]
    fn base64_in_lines() {
        for data in ["aGVsbG8=", "aGVs\nbG8=\n", "aGVs\r\nbG8=", "\naGVsbG8\n="] {
            assert_eq!(file(data).as_deref(), Some(&b"hello"[..]), "{data:?}");
        }
        for data in ["", "\n", "aGVs bG8=", "aGVsbG8", "aGVs\u{2028}bG8="] {
            assert_eq!(file(data), None, "{data:?}");
        }
    }

    #[test]
    fn escapes_of_addresses() {
        for (data, plain) in [
            ("aGVsbG8=", "aGVsbG8="),
            ("aGVsbG8%3D", "aGVsbG8="),
            ("%61%2b%2F%0A", "a+/\n"),
            // What is none stays, and is no base64.
            ("%", "%"),
            ("a%3", "a%3"),
            ("%+3%zz%\u{e9}", "%+3%zz%\u{e9}"),
            ("%ff", "%ff"),
        ] {
            assert_eq!(unescaped(data), plain, "{data}");
        }
    }
}
