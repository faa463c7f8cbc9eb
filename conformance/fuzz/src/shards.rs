//! `shards`: a checkpoint in several files with an index, opened as `fvlm-export` opens it.
//!
//! It opens if the index and the files agree about every tensor, and only then.

use crate::folder::Folder;
use crate::words;
use arbitrary::{Result, Unstructured};
use models::checkpoint::{Checkpoint, canonical};
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::collections::BTreeMap;

const CONFIG: &[u8] = include_bytes!("../../../models/demo/checkpoint/config.json");
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 3] = ["a.safetensors", "b.safetensors", "c.safetensors"];
/// What is the name of no shard here.
const OTHERS: [&str; 7] = [
    "d.safetensors",
    "../a.safetensors",
    "/a.safetensors",
    "a",
    "",
    "x/a.safetensors",
    "a\\b.safetensors",
];
const TENSORS: [&str; 6] = [
    "model.language_model.embed_tokens.weight",
    "lm_head.weight",
    "model.multi_modal_projector.linear_1.weight",
    "x",
    "",
    "\u{1b}[31m",
];
const DTYPES: [(&str, usize); 4] = [("F32", 4), ("BF16", 2), ("I64", 8), ("BOOL", 1)];

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// Shards and an index that is about right.
pub fn run(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let folder = Folder::new("shards");
            folder.put("config.json", Some(CONFIG));
            folder
        });
        let _ = checkpoint(folder, data, u);
    });
}

fn checkpoint(folder: &Folder, data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    // Of each tensor, the shards that it lies in.
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut read = Vec::new();
    for shard in SHARDS {
        if !u.ratio(3, 4)? {
            folder.put(shard, None);
            continue;
        }
        read.push(shard);
        let tensors = tensors(u)?;
        for name in &tensors {
            places.entry(name).or_default().push(shard);
            map.insert((*name).to_owned(), shard.to_owned());
        }
        folder.put(shard, Some(&file(&tensors, u)?));
    }
    if u.ratio(1, 3)? {
        let to = if u.arbitrary()? {
            *u.choose(&OTHERS)?
        } else {
            *u.choose(&SHARDS)?
        };
        map.insert((*u.choose(&TENSORS)?).to_owned(), to.to_owned());
    }
    if u.ratio(1, 6)? {
        map.remove(*u.choose(&TENSORS)?);
    }
    let mut index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    let exact = !u.ratio(1, 6)?;
    if !exact {
        let at = u.int_in_range(0..=index.len())?;
        index.truncate(at);
        index.push_str(&crate::edit::text(u)?);
    }
    folder.put(INDEX, Some(index.as_bytes()));
    let sound = sound(&map, &places, &read);
    match Checkpoint::open(folder.path()) {
        Ok(checkpoint) => {
            assert!(
                sound || !exact,
                "opened, and the index does not fit: {index}, {places:?}"
            );
            checkpoint.fingerprint();
            checkpoint.stored();
            if let Err(error) = canonical(&checkpoint, None) {
                words::check(&error.to_string(), index.as_bytes());
            }
        }
        Err(error) => {
            let error = error.to_string();
            // Names of tensors and types may be refused too, whatever the index says.
            assert!(
                !sound || !exact || !error.contains(INDEX),
                "not opened: {error}: {index}"
            );
            let brought = [data, index.as_bytes(), TENSORS.concat().as_bytes()].concat();
            words::check(&error, &brought);
        }
    }
    Ok(())
}

/// Whether the shards that an index names are there, and have its tensors, each once and in its place, and no
/// other. A shard that it does not name is not read.
fn sound(map: &BTreeMap<String, String>, places: &BTreeMap<&str, Vec<&str>>, there: &[&str]) -> bool {
    let named = |shard: &str| map.values().any(|name| name == shard);
    let known = map.values().all(|shard| there.contains(&shard.as_str()));
    let placed = places.iter().all(|(tensor, shards)| {
        let mut shards = shards.iter().filter(|shard| named(shard));
        match (shards.next(), shards.next()) {
            (None, _) => true,
            (Some(only), None) => map.get(*tensor).is_some_and(|shard| shard == only),
            _ => false,
        }
    });
    let found = map.iter().all(|(tensor, shard)| {
        places
            .get(tensor.as_str())
            .is_some_and(|shards| shards.contains(&shard.as_str()))
    });
    !map.is_empty() && known && placed && found
}

fn tensors(u: &mut Unstructured<'_>) -> Result<Vec<&'static str>> {
    let mut tensors = Vec::new();
    for name in TENSORS {
        if u.ratio(1, 3)? {
            tensors.push(name);
        }
    }
    Ok(tensors)
}

/// A safetensors file of small tensors.
fn file(tensors: &[&str], u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    let mut end = 0;
    for name in tensors {
        let (dtype, size) = *u.choose(&DTYPES)?;
        let shape = [u.int_in_range(0..=3_usize)?, u.int_in_range(1..=3_usize)?];
        let start = end;
        end += shape[0] * shape[1] * size;
        let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), tensor);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    Ok(file)
}
