//! Clients: what other people's programs, and people, read of a bundle beside its graphs.
//!
//! `transformers_js` is a field of `config.json`, `genai` the file of onnxruntime-genai, `card` the model card for
//! people. They are made from the contract. `page` runs the bundle in a browser.

pub(crate) mod card;
pub(crate) mod genai;
pub(crate) mod page;
pub(crate) mod transformers_js;

use models::bundle::GraphEntry;

/// The data file that is a graph's own.
fn own_data(graph: &GraphEntry) -> String {
    format!("{}_data", graph.path)
}
