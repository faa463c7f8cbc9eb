//! Special tokens: whatever file of a checkpoint has them, they get the ids that transformers gives them
//! (`data/special-tokens.json`), or the checkpoint is refused.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use models::checkpoint::{Checkpoint, assets};
use prompt::text::Tokenizer;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/demo/checkpoint/{name}"))
}

/// The demo checkpoint with the tokens of a case where it has them.
fn checkpoint(case: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo("")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    if let Some(added) = case["added"].as_array() {
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| added.contains(&token["content"]));
        fs::write(&path, tokenizer.to_string()).unwrap();
    } else {
        fs::remove_file(&path).unwrap();
        let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
        let merges: Vec<String> = merges
            .map(|merge| match merge.as_str() {
                Some(merge) => merge.to_owned(),
                None => format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
            })
            .collect();
        let merges = format!("#version: 0.2\n{}\n", merges.join("\n"));
        fs::write(folder.path().join("merges.txt"), merges).unwrap();
        let vocabulary = tokenizer["model"]["vocab"].to_string();
        fs::write(folder.path().join("vocab.json"), vocabulary).unwrap();
    }
    for (name, contents) in case["files"].as_object().unwrap() {
        fs::write(folder.path().join(name), contents.to_string()).unwrap();
    }
    folder
}

/// What an export makes of it: ids by token, a text's ids, and their text again.
fn read(folder: &Path, text: &str, tokens: &Value) -> Result<Value, String> {
    let checkpoint = Checkpoint::open(folder).map_err(|error| error.to_string())?;
    let assets = assets(&checkpoint, checkpoint.config()).map_err(|error| error.to_string())?;
    let made = assets.files.iter().find(|file| file.path == "tokenizer.json");
    let path = folder.join("exported.json");
    fs::write(&path, &made.unwrap().contents).unwrap();
    let tokenizer = Tokenizer::open(&path).unwrap();
    let ids = tokens.as_object().unwrap().keys();
    let ids: serde_json::Map<_, _> = ids
        .map(|token| (token.clone(), json!(tokenizer.id_of(token))))
        .collect();
    assert_eq!(json!(assets.prompt.image_token_id), tokens["<image>"]);
    assert_eq!(
        json!(assets.prompt.stop_ids),
        json!([tokens["<|endoftext|>"], tokens["<|im_end|>"]])
    );
    let encoded = tokenizer.encode(text).unwrap();
    let decoded = tokenizer.decode(&encoded).unwrap();
    Ok(json!({"ids": ids, "encoded": encoded, "decoded": decoded}))
}

#[test]
fn tokens_have_the_ids_that_transformers_gives_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/special-tokens.json");
    let recorded: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let text = recorded["text"].as_str().unwrap();
    let cases = recorded["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 14);
    let mut failures = Vec::new();
    for case in cases {
        let found = read(checkpoint(case).path(), text, &case["ids"]);
        let same = match (&found, case["refused"].as_str()) {
            (Err(message), Some(expected)) => message.contains(expected),
            (Ok(found), None) => ["ids", "encoded", "decoded"]
                .iter()
                .all(|part| found[part] == case[part]),
            _ => false,
        };
        if !same {
            failures.push(format!("{}: {found:?}", case["name"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
