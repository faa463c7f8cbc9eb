//! The page: files of `page/`, which are part of the program, and what a browser is told about them.

use axum::http::header::{self, HeaderName, HeaderValue};

/// A file of the page.
#[derive(Debug)]
pub(crate) struct File {
    /// Where it is served.
    pub(crate) path: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// A file of `page/`.
macro_rules! of_page {
    ($name:literal, $kind:literal) => {
        File {
            path: concat!("/page/", $name),
            kind: $kind,
            bytes: include_bytes!(concat!("../page/", $name)),
        }
    };
}

/// A sample picture.
macro_rules! sample {
    ($name:literal, $kind:literal) => {
        File {
            path: concat!("/page/samples/", $name),
            kind: $kind,
            bytes: include_bytes!(concat!("../../../models/demo/scenes/", $name)),
        }
    };
}

/// Every file; nothing else is served.
pub(crate) const FILES: &[File] = &[
    File {
        path: "/",
        kind: "text/html; charset=utf-8",
        bytes: include_bytes!("../page/index.html"),
    },
    of_page!("app.js", "text/javascript; charset=utf-8"),
    of_page!("chart.js", "text/javascript; charset=utf-8"),
    of_page!("history.js", "text/javascript; charset=utf-8"),
    of_page!("prompts.js", "text/javascript; charset=utf-8"),
    of_page!("samples.js", "text/javascript; charset=utf-8"),
    of_page!("server.js", "text/javascript; charset=utf-8"),
    of_page!("sources.js", "text/javascript; charset=utf-8"),
    of_page!("speech.js", "text/javascript; charset=utf-8"),
    of_page!("style.css", "text/css; charset=utf-8"),
    of_page!("icon.svg", "image/svg+xml"),
    sample!("scene_1.png", "image/png"),
    sample!("scene_2.png", "image/png"),
    sample!("scene_3.png", "image/png"),
    sample!("scene_4.png", "image/png"),
    sample!("scene_5.png", "image/png"),
    sample!("scene_6.png", "image/png"),
    sample!("scene_7.png", "image/png"),
    sample!("scene_8.png", "image/png"),
    sample!("astronaut.jpg", "image/jpeg"),
    sample!("chelsea.jpg", "image/jpeg"),
    sample!("coffee.jpg", "image/jpeg"),
    sample!("README.md", "text/markdown; charset=utf-8"),
];

/// What a browser may do with the page: load from here alone, be in nobody's frame, use camera and screen.
pub(crate) fn headers() -> [(HeaderName, HeaderValue); 5] {
    let policy = "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            HeaderName::from_static("permissions-policy"),
            HeaderValue::from_static("camera=(self), display-capture=(self), microphone=(), geolocation=()"),
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ]
}
