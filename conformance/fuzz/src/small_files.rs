//! `small_files`: what lies beside the weights of a checkpoint, read as `fvlm-export` reads it.
//!
//! What is exported is what a program can open: files that are JSON are, ids are of the vocabulary, and the
//! tokenizer and the template that were made open and give a prompt.

use crate::edit::{edit, text};
use crate::folder::Folder;
use crate::{config, tokens, words};
use arbitrary::{Result, Unstructured};
use models::checkpoint::{Assets, Checkpoint, assets};
use serde_json::{Value, json};
use std::cell::OnceCell;

/// Templates and terms, of which one may be put in.
const TEXTS: [&str; 8] = [
    include_str!("../../../models/demo/checkpoint/chat_template.jinja"),
    "{% for m in messages %}{{ m.content }}\r\n{% endfor %}",
    "{{ raise_exception('no') }}",
    "---\nlicense: apache-2.0\nlicense_name: x\n---\n# x\n",
    "---\nlicense: [\n",
    "#version: 0.2\nt h\r\nth e\n",
    "\u{feff}{}",
    "",
];
const NAMES: [&str; 13] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "README.md",
    "LICENSE",
];

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// Changes to the files of a checkpoint of either layout.
pub fn run(data: &[u8]) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let folder = Folder::new("small_files");
            let header = br#"{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
            let weights = [&(header.len() as u64).to_le_bytes()[..], header].concat();
            folder.put("model.safetensors", Some(&weights));
            folder
        });
        let _ = checkpoint(folder, data, &mut Unstructured::new(data));
    });
}

fn checkpoint(folder: &Folder, data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let apple: bool = u.arbitrary()?;
    let mut files: Vec<Option<Vec<u8>>> = NAMES.iter().map(|name| base(name, apple)).collect();
    for _ in 0..u.int_in_range(0..=4)? {
        let file = u.int_in_range(0..=NAMES.len() - 1)?;
        files[file] = match u.int_in_range(0..=7)? {
            0 => None,
            1 => Some(text(u)?.into_bytes()),
            2 => Some(u.choose(&TEXTS)?.as_bytes().to_vec()),
            _ => changed(NAMES[file], apple, files[file].take(), u)?,
        };
    }
    let mut input = data.to_vec();
    for (name, contents) in NAMES.iter().zip(&files) {
        folder.put(name, contents.as_deref());
        input.extend(contents.iter().flatten());
    }
    let found =
        Checkpoint::open(folder.path()).and_then(|checkpoint| assets(&checkpoint, checkpoint.config()));
    match found {
        Ok(assets) => sound(&assets),
        Err(error) => words::check(&error.to_string(), &input),
    }
    Ok(())
}

/// A file with other values, or one that the layout does not have.
fn changed(
    name: &str,
    apple: bool,
    contents: Option<Vec<u8>>,
    u: &mut Unstructured<'_>,
) -> Result<Option<Vec<u8>>> {
    let value = contents.or_else(|| base(name, !apple)).unwrap_or_default();
    match serde_json::from_slice::<Value>(&value) {
        Ok(mut value) => {
            edit(&mut value, u)?;
            Ok(Some(value.to_string().into_bytes()))
        }
        Err(_) => Ok(Some(value)),
    }
}

/// A file of a good checkpoint.
fn base(name: &str, apple: bool) -> Option<Vec<u8>> {
    let processor = include_str!("../../../models/demo/checkpoint/preprocessor_config.json");
    let tokenizer = || {
        let mut tokenizer = tokens::json();
        if apple && let Some(added) = tokenizer["added_tokens"].as_array_mut() {
            added.pop();
        }
        tokenizer
    };
    let small = |text: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap_or_default();
        value["image_token_index"] = json!(265);
        value["eos_token_id"] = json!(264);
        if !apple {
            value["text_config"]["eos_token_id"] = json!(264);
            value["text_config"]["pad_token_id"] = json!(262);
        }
        value.to_string()
    };
    let text = match name {
        "config.json" if apple => small(config::APPLE),
        "config.json" => small(config::DEMO),
        "tokenizer.json" if !apple => tokenizer().to_string(),
        "vocab.json" if apple => tokenizer()["model"]["vocab"].to_string(),
        "merges.txt" if apple => "#version: 0.2\nt h\nth e\n".to_owned(),
        "added_tokens.json" if apple => {
            let added = tokenizer()["added_tokens"].take();
            let added = added.as_array().into_iter().flatten();
            let added =
                added.filter_map(|token| Some((token["content"].as_str()?.to_owned(), token["id"].clone())));
            Value::Object(added.collect()).to_string()
        }
        "tokenizer_config.json" => {
            r#"{"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}}"#.to_owned()
        }
        "generation_config.json" if !apple => {
            r#"{"eos_token_id": [264, 262], "pad_token_id": 262}"#.to_owned()
        }
        "preprocessor_config.json" if !apple => processor.to_owned(),
        "chat_template.jinja" if !apple => TEXTS[0].to_owned(),
        "LICENSE" => "Do what you like.\n".to_owned(),
        _ => return None,
    };
    Some(text.into_bytes())
}

/// What an export would write.
fn sound(assets: &Assets) {
    for file in &assets.files {
        if file.path.ends_with(".json") {
            serde_json::from_slice::<Value>(&file.contents).expect("JSON that is written is JSON");
        }
    }
    let prompt = &assets.prompt;
    assert!(!prompt.stop_ids.is_empty(), "nothing ends an answer");
    assert!(prompt.stop_ids.is_sorted(), "{:?}", prompt.stop_ids);
    assert!(assets.image.tokens > 0 && assets.image.height > 0);
}
