//! Clients: what other people's programs, and people, read of a bundle beside its graphs.
//!
//! `transformers_js` is a field of `config.json`, `genai` the file of onnxruntime-genai, `card` the model card for
//! people. They are made from the contract. `page` runs the bundle in a browser.

pub(crate) mod card;
pub(crate) mod genai;
pub(crate) mod page;
pub(crate) mod transformers_js;

use models::bundle::{GraphEntry, Precision, Target, Variant};

/// The data file that is a graph's own.
fn own_data(graph: &GraphEntry) -> String {
    format!("{}_data", graph.path)
}

/// The variants that other people's clients find by the ecosystem's names, in order: all but those with rounded weights
/// of target `cpu` that stand beside portable ones of the same precision.
fn found_by_others(variants: &[Variant]) -> impl Iterator<Item = &Variant> {
    let standard = move |variant: &Variant| {
        let mut others = variants.iter();
        others.any(|other| other.target == Target::Portable && other.precision == variant.precision)
    };
    variants.iter().filter(move |variant| {
        let rounded = variant.precision != Precision::Fp32;
        variant.target != Target::Cpu || !rounded || !standard(variant)
    })
}
