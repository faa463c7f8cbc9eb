//! Where does a reference lead? RFC 3986, section 5.2: what a redirect leaves out stays as it was.

use std::fmt::Write as _;
use ureq::http::Uri;

/// The parts of a reference, without its fragment, which no server is told.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(reference: &'a str) -> Parts<'a> {
        let rest = reference.split('#').next().unwrap_or_default();
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            _none => (None, rest),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                (Some(authority), path)
            }
            None => (None, rest),
        };
        Parts {
            scheme,
            authority,
            path,
            query,
        }
    }
}

/// Whether this is a scheme: what stands before the first colon may be part of a path, or of a query.
fn is_scheme(text: &str) -> bool {
    let rest = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.');
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.chars().all(rest)
}

/// A header's bytes as a reference: what none may have is escaped, as browsers do it.
pub(super) fn escaped(target: &[u8]) -> String {
    let mut reference = String::with_capacity(target.len());
    for &byte in target.trim_ascii() {
        if byte.is_ascii_graphic() {
            reference.push(char::from(byte));
        } else {
            // A text takes whatever is written.
            let _ = write!(reference, "%{byte:02X}");
        }
    }
    reference
}

/// The address to which `reference` leads from `base`, which has a scheme and an authority.
pub(super) fn resolved(base: &Uri, reference: &str) -> String {
    let base_scheme = base.scheme_str().unwrap_or("https");
    let base_authority = base.authority().map(|authority| authority.as_str());
    let parts = Parts::of(reference);
    let kept = parts.scheme.is_none() && parts.authority.is_none();
    let (path, query) = match parts.path {
        "" if kept => (base.path().to_owned(), parts.query.or(base.query())),
        path if kept && !path.starts_with('/') => {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            (without_dots(&format!("{folder}/{path}")), parts.query)
        }
        path => (without_dots(path), parts.query),
    };
    let authority = match parts.authority {
        None if parts.scheme.is_none() => base_authority,
        own => own,
    };
    let scheme = parts.scheme.unwrap_or(base_scheme);
    let authority = authority.map_or_else(String::new, |authority| format!("//{authority}"));
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}:{authority}{path}{query}")
}

/// A path without `.` and `..`, which lead no higher than to its beginning (section 5.2.4).
fn without_dots(path: &str) -> String {
    let Some(inside) = path.strip_prefix('/') else {
        return path.to_owned();
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = inside.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                // It names a folder, and so ends with a slash.
                if segments.peek().is_none() {
                    kept.push("");
                }
            }
            name => kept.push(name),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(base: &str, reference: &str) -> String {
        resolved(&base.parse().unwrap(), reference)
    }

    /// Sections 5.4.1 and 5.4.2, without fragments.
    #[test]
    fn references_of_the_standard() {
        for (reference, expected) in [
            ("g:h", "g:h"),
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            ("g?y#s", "http://a/b/c/g?y"),
            (";x", "http://a/b/c/;x"),
            ("g;x", "http://a/b/c/g;x"),
            ("g;x?y#s", "http://a/b/c/g;x?y"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("../../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            (".g", "http://a/b/c/.g"),
            ("g..", "http://a/b/c/g.."),
            ("..g", "http://a/b/c/..g"),
            ("./../g", "http://a/b/g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/./h", "http://a/b/c/g/h"),
            ("g/../h", "http://a/b/c/h"),
            ("g;x=1/./y", "http://a/b/c/g;x=1/y"),
            ("g;x=1/../y", "http://a/b/c/y"),
            ("g?y/./x", "http://a/b/c/g?y/./x"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("g#s/../x", "http://a/b/c/g"),
            ("http:g", "http:g"),
        ] {
            assert_eq!(from("http://a/b/c/d;p?q", reference), expected, "{reference}");
        }
    }

    #[test]
    fn references_that_hold_addresses() {
        for (reference, expected) in [
            (
                "/img?src=https://cdn.example/x.png",
                "https://a:8/img?src=https://cdn.example/x.png",
            ),
            (
                "img?src=https://cdn.example/../x",
                "https://a:8/b/img?src=https://cdn.example/../x",
            ),
            ("?src=http://x", "https://a:8/b/c?src=http://x"),
            ("/x/http://y/z", "https://a:8/x/http://y/z"),
            ("//y//z", "https://y//z"),
            ("HTTP://y/./z?", "HTTP://y/z?"),
            ("//y?z", "https://y?z"),
        ] {
            assert_eq!(from("https://a:8/b/c?d", reference), expected, "{reference}");
        }
        assert_eq!(from("https://a", "b?c"), "https://a/b?c");
    }

    #[test]
    fn bytes_that_no_reference_has_are_escaped() {
        assert_eq!(escaped(" /a b/\u{e9}%20?x ".as_bytes()), "/a%20b/%C3%A9%20?x");
        assert_eq!(escaped(b"\xff"), "%FF");
    }
}
