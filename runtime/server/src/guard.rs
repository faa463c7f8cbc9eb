//! Who may ask: names of the server (DNS rebinding), pages of others (CORS), and the key.

use crate::app::App;
use crate::error::{ApiError, clipped};
use crate::serve::HEAD;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;
use subtle::ConstantTimeEq as _;

/// Most bytes of the names of headers that a page asks for.
const ASKED_HEADERS: usize = 4 << 10;

/// The headers that a page may send without having asked for them by name.
const OWN_HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type");

/// What a client must know. Only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A key.
    pub fn new(text: &str) -> Key {
        Key(Sha256::digest(text.as_bytes()).into())
    }

    /// Whether this is it; in a time that does not depend on how much of it is right.
    fn is(&self, text: &[u8]) -> bool {
        let found: [u8; 32] = Sha256::digest(text).into();
        self.0.ct_eq(&found).into()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(...)")
    }
}

/// By which names the server may be called. A page of somebody else, whose name is made to lead here (DNS rebinding), calls
/// it by that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// It listens on loopback: by addresses of loopback, by `localhost` and names under it, and by these.
    Loopback(Vec<String>),
    /// It listens elsewhere, without a key: by any address, by `localhost`, and by these names.
    Addresses(Vec<String>),
    /// Whoever asks knows the key.
    Any,
}

impl Hosts {
    /// Whether a host, without its port, is one of them.
    fn allow(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address: Option<IpAddr> = bare.unwrap_or(&host).parse().ok();
        let local = host == "localhost" || host.ends_with(".localhost");
        let listed = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(&host));
        match self {
            Hosts::Loopback(names) => {
                local || listed(names) || address.is_some_and(|address| address.is_loopback())
            }
            Hosts::Addresses(names) => local || listed(names) || address.is_some(),
            Hosts::Any => true,
        }
    }
}

/// Paths that anybody may read: the page, which asks for the key, and whether the server lives.
fn is_open(path: &str) -> bool {
    path == "/health" || path == "/openapi.json" || crate::page::FILES.iter().any(|file| file.path == path)
}

/// What becomes of a request before its path is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It goes on.
    Yes,
    /// A browser asks whether a page may ask.
    Preflight,
}

/// Looks at the head of a request.
pub(crate) fn admit(
    app: &App,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Admitted, ApiError> {
    let lines = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4);
    let head = lines.sum::<usize>() + uri.to_string().len();
    if head > HEAD {
        let message = format!("the head of the request has {head} bytes, expected at most {HEAD}");
        return Err(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            message,
        ));
    }
    let host = host(uri, headers)?;
    let name = without_port(&host);
    if !app.settings.hosts.allow(name) {
        let message = format!(
            "the server is called `{}`, which is none of its names: --allow-host NAME, or an address",
            clipped(name)
        );
        return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, message).with_code("host_not_allowed"));
    }
    let foreign = foreign_origin(app, &host, headers)?;
    if *method == Method::OPTIONS && foreign && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return Ok(Admitted::Preflight);
    }
    if let Some(key) = &app.settings.key
        && !is_open(uri.path())
        && !bearer(headers).is_some_and(|found| key.is(found))
    {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "the key is missing or wrong, expected the header `Authorization: Bearer KEY`",
        )
        .with_code("invalid_api_key")
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    }
    if app.ending.load(Ordering::Relaxed) && *method == Method::POST {
        return Err(ending());
    }
    Ok(Admitted::Yes)
}

/// 503: no more is taken in.
pub(crate) fn ending() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
        .with_retry_after(Duration::from_secs(5))
}

/// The one host that a request names.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<String, ApiError> {
    let mut named = headers.get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    let first = first.and_then(|host| host.to_str().ok());
    match (first, second) {
        (Some(host), None) if uri.authority().is_none_or(|of_uri| of_uri.as_str() == host) => {
            Ok(host.to_owned())
        }
        _other => Err(ApiError::bad(
            "expected one header Host, with the name of the server",
        )),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _none => host,
    }
}

/// The key that a request carries.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Whether a page of another server asks, that may.
fn foreign_origin(app: &App, host: &str, headers: &HeaderMap) -> Result<bool, ApiError> {
    let refused = |what: &str| {
        let message = format!("{what} asks, which this server does not allow: --cors-origin ORIGIN");
        ApiError::new(StatusCode::FORBIDDEN, message).with_code("origin_not_allowed")
    };
    let Some(origin) = headers.get(header::ORIGIN) else {
        // A browser that sends no Origin says with this that another site asks; links to the page are harmless.
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
        return if matches!(site, Some(b"cross-site" | b"same-site")) && mode != Some(b"navigate") {
            Err(refused("a page of another site"))
        } else {
            Ok(false)
        };
    };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let own = origin
        .split_once("://")
        .is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && rest.eq_ignore_ascii_case(host));
    if own {
        Ok(false)
    } else if app.settings.origins.iter().any(|allowed| *allowed == origin) {
        Ok(true)
    } else {
        Err(refused(&format!("a page of `{}`", clipped(&origin))))
    }
}

/// What a page of another server, that may ask, is told.
pub(crate) fn cors_headers(app: &App, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let origin = headers.get(header::ORIGIN).filter(|origin| {
        let listed = app.settings.origins.iter();
        listed
            .into_iter()
            .any(|allowed| allowed.as_bytes() == origin.as_bytes())
    });
    let Some(origin) = origin else {
        return Vec::new();
    };
    vec![
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (header::VARY, HeaderValue::from_static("Origin")),
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, HEAD, POST"),
        ),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(headers)),
        (
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("retry-after"),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
    ]
}

/// The headers that a page may send: those that it asks for, whatever they are, since clients have many of their own
/// (`x-stainless-...`), and none gives it more than its origin and its key do.
fn allowed_headers(headers: &HeaderMap) -> HeaderValue {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let asked = asked.filter(|asked| asked.len() <= ASKED_HEADERS);
    let names = asked.and_then(|asked| asked.to_str().ok()).unwrap_or_default();
    let names: Option<Vec<HeaderName>> = names.split(',').map(|name| name.trim().parse().ok()).collect();
    let names = names.unwrap_or_default();
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    match HeaderValue::from_str(&names.join(", ")) {
        Ok(names) if !names.is_empty() => names,
        _none => OWN_HEADERS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_server() {
        let loopback = Hosts::Loopback(vec!["box.example".to_owned()]);
        let addresses = Hosts::Addresses(vec!["box.example".to_owned()]);
        for (host, local, remote) in [
            ("localhost", true, true),
            ("LOCALHOST.", true, true),
            ("page.localhost", true, true),
            ("127.0.0.1", true, true),
            ("127.9.9.9", true, true),
            ("[::1]", true, true),
            ("box.example", true, true),
            ("192.168.1.5", false, true),
            ("[fe80::1]", false, true),
            ("evil.example", false, false),
            ("localhost.evil.example", false, false),
            ("127.0.0.1.evil.example", false, false),
            ("notlocalhost", false, false),
            ("", false, false),
        ] {
            assert_eq!(loopback.allow(host), local, "{host}");
            assert_eq!(addresses.allow(host), remote, "{host}");
            assert!(Hosts::Any.allow(host));
        }
    }

    #[test]
    fn ports_are_no_part_of_a_name() {
        for (host, name) in [
            ("localhost:8000", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:8000", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn headers_that_a_page_asks_for() {
        let long = vec!["x-a"; 2000].join(",");
        let own = "authorization, content-type";
        for (asked, allowed) in [
            (None, own),
            (
                Some("X-Stainless-OS,authorization"),
                "x-stainless-os, authorization",
            ),
            (Some(" a , b "), "a, b"),
            // What is no list of names is not repeated.
            (Some(""), own),
            (Some("*, a b"), own),
            (Some("a,,b"), own),
            (Some("a: b"), own),
            (Some(&long), own),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(asked) = asked {
                let asked = HeaderValue::from_str(asked).unwrap();
                headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, asked);
            }
            assert_eq!(allowed_headers(&headers), allowed, "{asked:?}");
        }
    }

    #[test]
    fn keys() {
        let key = Key::new("secret");
        assert!(key.is(b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"Secret"] {
            assert!(!key.is(wrong));
        }
        assert!(!format!("{key:?}").contains("secret"));
    }
}
