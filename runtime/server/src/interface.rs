//! `/openapi.json`: the interface, for programs.

use serde_json::Value;

/// The document, without the version.
const DOCUMENT: &str = include_str!("openapi.json");

/// The document.
pub(crate) fn document() -> Value {
    // A test parses it.
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    if let Some(version) = document.pointer_mut("/info/version") {
        *version = env!("CARGO_PKG_VERSION").into();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::routes;
    use std::collections::BTreeSet;

    /// Every path is described, and nothing else; `tests::attacks` asks for each by its method.
    #[test]
    fn the_document_has_every_path() {
        let document = document();
        let described: BTreeSet<&str> = document["paths"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let routed = routes().map(|(path, _)| {
            if path == "/v1/models/{*model}" {
                "/v1/models/{model}"
            } else {
                path
            }
        });
        assert_eq!(described, BTreeSet::from(routed));
    }
}
