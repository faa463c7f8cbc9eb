//! `adapter`: what a fine-tune left behind, merged into the demo model as `fvlm-export --adapter` does.
//!
//! It is refused, or every weight can be read, in blocks as in one piece, and something of the model changed.

use crate::folder::Folder;
use crate::words;
use arbitrary::{Result, Unstructured};
use models::checkpoint::{Adapter, Checkpoint, canonical_with};
use models::weights::Weights as _;
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::path::Path;

/// Modules of the demo model in both layouts, and others.
const MODULES: [&str; 10] = [
    "model.language_model.layers.0.self_attn.k_proj",
    "model.layers.0.self_attn.k_proj",
    "language_model.model.layers.1.self_attn.k_proj",
    "model.language_model.embed_tokens",
    "model.language_model.norm",
    "model.multi_modal_projector.linear_2",
    "model.vision_tower.timm_model.stages.0.blocks.0.mlp.fc1",
    "model.vision_tower.timm_model.stem.0.conv_kxk.0.conv",
    "lm_head",
    "x",
];
const PARTS: [&str; 14] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.default.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_diag",
    "weight",
    "bias",
    "base_layer.weight",
    "modules_to_save.weight",
    "running_mean",
    "",
];
const SIDES: [u64; 10] = [0, 1, 2, 16, 64, 192, 512, 1024, 1 << 20, u64::MAX];
const DTYPES: [(&str, u64); 4] = [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8)];
const FIELDS: [&str; 12] = [
    "r",
    "lora_alpha",
    "use_dora",
    "use_rslora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_modules",
    "init_lora_weights",
    "peft_type",
    "unknown",
];
/// Bytes that tensors of one input may have.
const MOST_BYTES: u64 = 1 << 20;

thread_local! {
    /// The adapter, and the model that it is made for.
    static FOLDERS: OnceCell<[Folder; 2]> = const { OnceCell::new() };
}

/// An adapter that is about right.
pub fn run(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    FOLDERS.with(|folders| {
        let [folder, base] = folders.get_or_init(|| {
            let base = Folder::new("adapter-base");
            exporter::demo::extract(base.path()).expect("the demo model can be written");
            [Folder::new("adapter"), base]
        });
        let _ = adapter(folder, base.path(), data, u);
    });
}

fn adapter(folder: &Folder, base: &Path, data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    while !u.is_empty() && u.ratio(1, 2)? {
        config[*u.choose(&FIELDS)?] = value(u)?;
    }
    let mut config = config.to_string();
    if u.ratio(1, 8)? {
        let mut at = u.int_in_range(0..=config.len())?;
        while !config.is_char_boundary(at) {
            at -= 1;
        }
        config.truncate(at);
        config.push_str(&crate::edit::text(u)?);
    }
    folder.put(
        "adapter_config.json",
        u.ratio(9, 10)?.then_some(config.as_bytes()),
    );
    let mut tensors = Vec::new();
    for name in [
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
        "mm_projector.bin",
    ] {
        let there = u.ratio(if tensors.is_empty() { 3 } else { 1 }, 4)?;
        let file = if there { Some(file(u, &mut tensors)?) } else { None };
        folder.put(name, file.as_deref());
    }
    let weight = *u.choose(&[1.0, 0.5, -3.0, 0.0, f64::NAN])?;
    let brought = [
        data,
        config.as_bytes(),
        tensors.join(" ").as_bytes(),
        MODULES.concat().as_bytes(),
    ]
    .concat();
    let base = Checkpoint::open(base).expect("the demo model is a checkpoint");
    let merged = Adapter::open(folder.path(), weight).and_then(|adapter| {
        let (canonical, accounting) = canonical_with(&base, None, [adapter].into())?;
        let changed = accounting.merged.iter().map(|merged| merged.tensor.clone());
        let changed: Vec<String> = changed.collect();
        for spec in canonical.specs() {
            let used = accounting.used.iter().find(|used| used.weight == spec.name);
            if !used.is_some_and(|used| changed.contains(&used.tensor)) {
                continue;
            }
            let whole = canonical.read(&spec.name)?;
            let (rows, columns) = spec.matrix();
            let (row, column) = (rows / 2, columns / 2);
            let mut block = vec![0.0; columns - column];
            canonical.read_block(&spec.name, row..row + 1, column..columns, &mut block)?;
            let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
            let at = row * columns;
            assert!(
                bits(&block) == bits(&whole[at + column..at + columns]),
                "{}",
                spec.name
            );
        }
        Ok(changed.len())
    });
    match merged {
        Ok(changed) => assert!(changed > 0 && weight != 0.0, "nothing was merged: {config}"),
        Err(error) => words::check(&error.to_string(), &brought),
    }
    Ok(())
}

/// A value of a field.
fn value(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.int_in_range(0..=7)? {
        0 => json!(null),
        1 => json!(u.arbitrary::<bool>()?),
        2 => json!(u.int_in_range(-1..=3)?),
        3 => json!(u.arbitrary::<f64>()?),
        4 => json!(crate::edit::text(u)?),
        5 => json!([*u.choose(&MODULES)?]),
        6 => json!({crate::edit::text(u)?: u.int_in_range(0..=4)?}),
        _ => json!({"k_proj": u.int_in_range(1..=4)?, ".*(?=x)?": 2}),
    })
}

/// A file of tensors, most of which fit.
fn file(u: &mut Unstructured<'_>, names: &mut Vec<String>) -> Result<Vec<u8>> {
    let (mut header, mut data) = (Map::new(), 0);
    while !u.is_empty() && u.ratio(5, 6)? {
        let module = *u.choose(&MODULES)?;
        let part = *u.choose(&PARTS)?;
        let prefix = *u.choose(&["base_model.model.", ""])?;
        let name = format!("{prefix}{module}.{part}");
        let mut shape: Vec<u64> = Vec::new();
        for _ in 0..u.int_in_range(0..=4)? {
            shape.push(*u.choose(&SIDES)?);
        }
        if u.ratio(2, 3)? {
            shape = match part {
                "lora_A.weight" | "lora_A.default.weight" => vec![2, 192],
                "lora_B.weight" => vec![64, 2],
                "lora_embedding_A" => vec![2, 1024],
                "lora_embedding_B" => vec![192, 2],
                _ => vec![192],
            };
        }
        let (dtype, size) = *u.choose(&DTYPES)?;
        let bytes = shape
            .iter()
            .try_fold(size, |product: u64, side| product.checked_mul(*side));
        let Some(bytes) = bytes.filter(|bytes| data + bytes <= MOST_BYTES) else {
            continue;
        };
        names.push(name.clone());
        header.insert(
            name,
            json!({"dtype": dtype, "shape": shape, "data_offsets": [data, data + bytes]}),
        );
        data += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = u64::try_from(header.len()).unwrap_or(0).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    // Ones, or whatever bytes: NaN among them.
    let fill: u8 = if u.ratio(4, 5)? { 0x3c } else { u.arbitrary()? };
    file.resize(file.len() + usize::try_from(data).unwrap_or(0), fill);
    Ok(file)
}
