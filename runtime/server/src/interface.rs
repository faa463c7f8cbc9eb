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
    use crate::http::ROUTES;
    use std::collections::BTreeSet;

    /// Every path and its method is described, and nothing else.
    #[test]
    fn the_document_has_every_path() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(move |method| (path.replace("{model}", "*"), method.to_uppercase()))
            })
            .collect();
        let routed = ROUTES.map(|(path, route)| (path.to_owned(), route.method().to_string()));
        assert_eq!(described, BTreeSet::from(routed));
    }
}
