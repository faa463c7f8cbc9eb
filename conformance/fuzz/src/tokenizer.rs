//! `tokenizer`: a `tokenizer.json`, opened, and a text that becomes ids and text again.
//!
//! Ids are below the size that the tokenizer says it has and become text; the small tokenizer of every byte
//! gives back the text that it was given.

use crate::edit::edit;
use crate::folder::Folder;
use crate::{tokens, words};
use arbitrary::Unstructured;
use runtime::text::Tokenizer;
use serde_json::Value;
use std::cell::OnceCell;

/// Parts of tokenizers of other kinds than Qwen2's, to be put where such a part stands.
const PARTS: &str = include_str!("../base/tokenizer-parts.json");

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// The first byte says how the tokenizer is made; a part of the rest is the text.
pub fn run(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let kind: u8 = u.arbitrary().unwrap_or_default();
    let length = usize::from(u.arbitrary::<u8>().unwrap_or_default()).min(u.len());
    let text = String::from_utf8_lossy(u.bytes(length).unwrap_or_default()).into_owned();
    let exact = kind % 4 == 1;
    let file = match kind % 4 {
        0 => u.take_rest_of().to_vec(),
        1 => tokens::json().to_string().into_bytes(),
        _ => changed(u).to_string().into_bytes(),
    };
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| Folder::new("tokenizer"));
        let path = folder.put("tokenizer.json", Some(&file));
        match Tokenizer::open(&path) {
            Ok(tokenizer) => use_it(&tokenizer, &text, exact, &[data, &file].concat()),
            Err(error) => words::check(&error.to_string(), &[data, &file].concat()),
        }
    });
}

fn use_it(tokenizer: &Tokenizer, text: &str, exact: bool, input: &[u8]) {
    let size = i64::try_from(tokenizer.vocabulary()).expect("a size");
    let ids = match tokenizer.encode(text) {
        Ok(ids) => ids,
        Err(error) => return words::check(&error.to_string(), input),
    };
    assert_eq!(
        tokenizer.encode(text).ok().as_ref(),
        Some(&ids),
        "encoded twice, not the same"
    );
    assert!(ids.iter().all(|id| (0..size).contains(id)), "{ids:?} of {size}");
    match tokenizer.decode(&ids) {
        // NFC may have changed it, and special tokens are silent.
        Ok(found) if exact && text.is_ascii() && !text.contains("<|") && !text.contains("<image>") => {
            assert_eq!(found, text);
        }
        Ok(_) => {}
        Err(error) => words::check(&error.to_string(), input),
    }
    for id in [-1, 0, size - 1, size, i64::MAX, i64::MIN] {
        if let Err(error) = tokenizer.decode(&[id]) {
            words::check(&error.to_string(), input);
        }
    }
}

/// The small tokenizer with other parts and changes.
fn changed(u: &mut Unstructured<'_>) -> Value {
    let mut tokenizer = tokens::json();
    let parts: Vec<(String, Value)> = serde_json::from_str(PARTS).expect("the parts are JSON");
    for _ in 0..u.int_in_range(0..=3).unwrap_or_default() {
        if let Ok((place, part)) = u.choose(&parts) {
            tokenizer[place] = part.clone();
        }
    }
    // Changes to a part are not lost among the words of a vocabulary.
    let place = [
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "added_tokens",
        "model",
        "",
    ];
    let _ = match *u.choose(&place).unwrap_or(&"") {
        "" => edit(&mut tokenizer, u),
        place => edit(&mut tokenizer[place], u),
    };
    tokenizer
}

/// What is left of an input.
trait Rest<'d> {
    fn take_rest_of(&mut self) -> &'d [u8];
}

impl<'d> Rest<'d> for Unstructured<'d> {
    fn take_rest_of(&mut self) -> &'d [u8] {
        let length = self.len();
        self.bytes(length).unwrap_or_default()
    }
}
