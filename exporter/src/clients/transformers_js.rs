//! transformers.js: which precision it takes, and which graphs have their weights in a file beside them.

use super::{found_by_others, own_data};
use crate::error::ExportError;
use models::bundle::{GraphEntry, Precision, Target, Variant};
use models::checkpoint::{Asset, Assets};
use models::dtype::DType;
use serde_json::{Map, Value};

/// The field of `config.json` that transformers.js reads.
const FIELD: &str = "transformers.js_config";

/// The part of it that says which graphs have a file of data, or how many.
const DATA: &str = "use_external_data_format";

/// The part of it that says what a cache is made of.
const CACHE: &str = "kv_cache_dtype";

/// The dtype of transformers.js that means a variant, where it can open one.
pub(crate) fn dtype(variant: &Variant) -> Option<Precision> {
    match (variant.target, variant.precision) {
        (Target::OrtCoreMl, _) | (Target::Cpu, Precision::Fp32) => None,
        (Target::Portable | Target::Cpu, precision) => Some(precision),
    }
}

/// Tells transformers.js which precision to take unless it is told, and which graphs have their weights in a file beside
/// them: from a hub it brings only what it knows of.
///
/// # Errors
/// None that a config of ours has.
pub(crate) fn announce(assets: &mut Assets, variants: &[Variant]) -> Result<(), ExportError> {
    let Some(first) = found_by_others(variants).find_map(dtype) else {
        return Ok(());
    };
    let graphs = found_by_others(variants)
        .filter(|variant| dtype(variant).is_some())
        .flat_map(|variant| [&variant.vision_encoder, &variant.embed_tokens, &variant.decoder]);
    // `true` is one file; more of them have a number behind the name of the first.
    let files = |graph: &GraphEntry| {
        let own = own_data(graph);
        let more = (1..).take_while(|number| graph.data.contains(&format!("{own}_{number}")));
        match more.count() {
            0 => Value::Bool(true),
            more => (more + 1).into(),
        }
    };
    let with_data: Map<String, Value> = graphs
        .filter(|graph| graph.data.contains(&own_data(graph)))
        .filter_map(|graph| Some((graph.path.rsplit('/').next()?.to_owned(), files(graph))))
        .collect();
    // Before 4 reads it from the graph, transformers.js is told what a cache is made of.
    let halves: Map<String, Value> = found_by_others(variants)
        .filter(|variant| variant.kv_dtype == DType::Float16)
        .filter_map(|variant| Some((dtype(variant)?.name().to_owned(), "float16".into())))
        .collect();
    let internal = |what: &str| ExportError::Internal {
        what: format!("config.json {what}"),
    };
    let config = assets.files.iter_mut().find(|asset| asset.path == "config.json");
    let Asset { contents, .. } = config.ok_or_else(|| internal("is not written"))?;
    let mut fields: Map<String, Value> =
        serde_json::from_slice(contents).map_err(|error| internal(&error.to_string()))?;
    // Of graphs of others, what their config says besides stays.
    let mut told = match fields.shift_remove(FIELD) {
        Some(Value::Object(told)) if variants.iter().all(Variant::is_adopted) => told,
        _ => Map::new(),
    };
    told.insert("dtype".to_owned(), first.name().into());
    told.insert(DATA.to_owned(), Value::Object(with_data));
    told.shift_remove(CACHE);
    if !halves.is_empty() {
        told.insert(CACHE.to_owned(), Value::Object(halves));
    }
    fields.insert(FIELD.to_owned(), Value::Object(told));
    *contents = format!("{:#}\n", Value::Object(fields)).into_bytes();
    Ok(())
}
