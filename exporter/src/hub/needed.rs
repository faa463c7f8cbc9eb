//! What of a repository is needed? Not the other formats of the weights, nor the pictures.

use super::Sibling;
use models::checkpoint::{self, MAX_INDEX};
use models::regular;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which shard has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The small files, the config first, and the index of shards if the weights are sharded.
pub(crate) fn small(siblings: &[Sibling]) -> Vec<&Sibling> {
    let sharded = !has(siblings, SINGLE);
    let spelled = has(siblings, "tokenizer.json");
    let mut wanted: Vec<&Sibling> = siblings
        .iter()
        .filter(|sibling| match sibling.name.as_str() {
            INDEX => sharded,
            // A tokenizer.json says the same in one file.
            "vocab.json" | "merges.txt" | "added_tokens.json" => !spelled,
            name => checkpoint::SMALL_FILES.contains(&name) || checkpoint::is_license(name),
        })
        .collect();
    wanted.sort_by_key(|sibling| sibling.name != "config.json");
    wanted
}

/// The files of the weights, as far as can be told: the shards that the index in `directory` names, or without it all
/// that look like shards. Empty where there are no safetensors.
///
/// # Errors
/// An index that cannot be read, or names what the repository does not have.
pub(crate) fn weights<'a>(siblings: &'a [Sibling], directory: &Path) -> Result<Vec<&'a Sibling>, String> {
    if let Some(single) = siblings.iter().find(|sibling| sibling.name == SINGLE) {
        return Ok(vec![single]);
    }
    if !has(siblings, INDEX) {
        return Ok(Vec::new());
    }
    let Ok(text) = regular::text(&directory.join(INDEX), MAX_INDEX) else {
        let shard =
            |sibling: &&Sibling| sibling.name.ends_with(".safetensors") && !sibling.name.contains('/');
        return Ok(siblings.iter().filter(shard).collect());
    };
    let index: Index = serde_json::from_str(&text).map_err(|error| format!("`{INDEX}`: {error}"))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let found = |name: &String| {
        let plain = name.ends_with(".safetensors") && !name.contains(['/', '\\']);
        let sibling = siblings.iter().find(|sibling| plain && sibling.name == *name);
        sibling.ok_or_else(|| format!("`{INDEX}` names `{name}`, which the repository does not have"))
    };
    names.into_iter().map(found).collect()
}

/// Whether a snapshot has all that an export cannot do without.
pub(crate) fn is_whole(directory: &Path) -> bool {
    let there = |name: &str| directory.join(name).is_file();
    let shards = || {
        let text = regular::text(&directory.join(INDEX), MAX_INDEX).ok()?;
        let index: Index = serde_json::from_str(&text).ok()?;
        Some(!index.weight_map.is_empty() && index.weight_map.values().all(|name| there(name)))
    };
    there("config.json") && (there(SINGLE) || shards().unwrap_or(false))
}

fn has(siblings: &[Sibling], name: &str) -> bool {
    siblings.iter().any(|sibling| sibling.name == name)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siblings(names: &[&str]) -> Vec<Sibling> {
        let sibling = |name: &&str| Sibling {
            name: (*name).to_owned(),
            size: None,
        };
        names.iter().map(sibling).collect()
    }

    fn names(found: &[&Sibling]) -> Vec<String> {
        found.iter().map(|sibling| sibling.name.clone()).collect()
    }

    #[test]
    fn other_formats_and_pictures_stay_there() {
        let repository = siblings(&[
            ".gitattributes",
            "LICENSE",
            "README.md",
            "acc_vs_latency.png",
            "added_tokens.json",
            "config.json",
            "merges.txt",
            "model.gguf",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer_config.json",
            "vocab.json",
        ]);
        let nowhere = Path::new("/nowhere");
        assert_eq!(
            names(&small(&repository)),
            [
                "config.json",
                "LICENSE",
                "README.md",
                "added_tokens.json",
                "merges.txt",
                "tokenizer_config.json",
                "vocab.json"
            ]
        );
        assert_eq!(
            names(&weights(&repository, nowhere).unwrap()),
            ["model.safetensors"]
        );

        let repository = siblings(&["config.json", "merges.txt", "tokenizer.json", "vocab.json"]);
        assert_eq!(names(&small(&repository)), ["config.json", "tokenizer.json"]);
        assert!(weights(&repository, nowhere).unwrap().is_empty());
    }

    #[test]
    fn shards_by_their_index() {
        let repository = siblings(&[
            INDEX,
            "a.safetensors",
            "b.safetensors",
            "c.safetensors",
            "x/d.safetensors",
        ]);
        let directory = tempfile::tempdir().unwrap();
        let weights = |index: &str| {
            std::fs::write(directory.path().join(INDEX), index).unwrap();
            weights(&repository, directory.path()).map(|found| names(&found))
        };
        let all = super::weights(&repository, directory.path()).unwrap();
        assert_eq!(names(&all), ["a.safetensors", "b.safetensors", "c.safetensors"]);
        let two = r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        assert_eq!(weights(two).unwrap(), ["a.safetensors", "b.safetensors"]);
        for (index, says) in [
            (
                r#"{"weight_map": {"x": "x/d.safetensors"}}"#,
                "names `x/d.safetensors`",
            ),
            (
                r#"{"weight_map": {"x": "e.safetensors"}}"#,
                "names `e.safetensors`",
            ),
            ("{", "model.safetensors.index.json`: EOF"),
        ] {
            let error = weights(index).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
