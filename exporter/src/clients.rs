//! What do other people's clients want to know about an export before they open it?

use crate::error::ExportError;
use crate::{Lowered, card};
use models::bundle::Variant;
use models::checkpoint::{Asset, Assets};
use serde_json::{Map, Value};

/// The field of `config.json` that transformers.js reads.
const FIELD: &str = "transformers.js_config";

/// Tells transformers.js which precision to take unless it is told, and which graphs have their weights in a file beside
/// them: from a hub it brings only what it knows of.
///
/// # Errors
/// None that a config of ours has.
pub(crate) fn announce(assets: &mut Assets, variants: &[(Variant, &Lowered)]) -> Result<(), ExportError> {
    let mut dtypes = variants.iter().filter_map(|(variant, _)| card::dtype(variant));
    let Some(dtype) = dtypes.next() else {
        return Ok(());
    };
    let with_data = variants
        .iter()
        .filter(|(variant, _)| card::dtype(variant).is_some())
        .flat_map(|(_, lowered)| &lowered.graphs)
        .filter(|graph| graph.data.length > 0);
    let with_data: Map<String, Value> = with_data
        .map(|graph| (graph.file_name.clone(), Value::Bool(true)))
        .collect();
    let internal = |what: &str| ExportError::Internal {
        what: format!("config.json {what}"),
    };
    let config = assets.files.iter_mut().find(|asset| asset.path == "config.json");
    let Asset { contents, .. } = config.ok_or_else(|| internal("is not written"))?;
    let mut fields: Map<String, Value> =
        serde_json::from_slice(contents).map_err(|error| internal(&error.to_string()))?;
    fields.insert(
        FIELD.to_owned(),
        serde_json::json!({"dtype": dtype, "use_external_data_format": with_data}),
    );
    *contents = format!("{:#}\n", Value::Object(fields)).into_bytes();
    Ok(())
}
