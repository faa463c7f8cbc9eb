//! A tokenizer as Qwen2's, but small: every byte is a token, a few pairs are, and four special ones.

use serde_json::{Map, Value, json};

/// Pairs that are tokens.
const MERGES: [&str; 6] = ["t h", "th e", "Ġ the", "i n", "Ã ©", "ð Ł"];
const SPECIAL: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"];

/// One more than the last id.
pub(crate) const TOKENS: i64 = 266;

/// The contents of its `tokenizer.json`.
pub(crate) fn json() -> Value {
    // GPT-2's table of printable stand-ins for bytes.
    let mut next = 256;
    let letters = (0..256_u32).map(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
        _ => {
            next += 1;
            next - 1
        }
    });
    let letters = letters.filter_map(char::from_u32).map(String::from);
    let pairs = MERGES.map(|pair| pair.replace(' ', ""));
    let vocabulary: Map<String, Value> = letters
        .chain(pairs)
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .zip(vocabulary.len()..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let words = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false}, level]},
        "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                  "merges": MERGES},
    })
}
