//! What of a `tokenizer.json` may cost all memory: steps that lengthen the text again and again, and long
//! tokens. Is it within bounds, before the tokenizers library reads it?

use serde::Deserialize;
use serde_json::Value;

/// How often all steps of a part together may lengthen a text: NFKC, bytes as letters and marks for spaces
/// come to 108.
const MAX_GROWTH: f64 = 256.0;
/// Longest text that a step writes, in bytes.
const MAX_WRITTEN: usize = 1024;
/// Longest added token, and all of them, in bytes: the automaton that finds them takes a hundred times as
/// much.
const MAX_TOKEN: usize = 4096;
const MAX_TOKENS: usize = 1 << 20;

/// The parts of a `tokenizer.json` that are bounded.
#[derive(Deserialize)]
pub(super) struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Value,
}

impl Parts {
    /// # Errors
    /// A part that is not within its bounds: its name, what was found, what is read.
    pub(super) fn check(&self) -> Result<(), String> {
        let text = growth("normalizer", &self.normalizer)? * growth("pre_tokenizer", &self.pre_tokenizer)?;
        let answer = growth("decoder", &self.decoder)?;
        for (part, found) in [("normalizer and pre_tokenizer", text), ("decoder", answer)] {
            if found > MAX_GROWTH {
                return Err(format!(
                    "its {part} may make a text {found:.0} times as long, at most {MAX_GROWTH} times is read"
                ));
            }
        }
        let tokens = self.added_tokens.as_array().map_or(&[][..], Vec::as_slice);
        let mut all = 0;
        for (index, token) in tokens.iter().enumerate() {
            let length = token.get("content").and_then(Value::as_str).map_or(0, str::len);
            all += length;
            if length > MAX_TOKEN {
                return Err(format!(
                    "added_tokens[{index}] is {length} bytes long, at most {MAX_TOKEN} are read"
                ));
            }
        }
        if all > MAX_TOKENS {
            return Err(format!(
                "its added_tokens are {all} bytes long together, at most {MAX_TOKENS} are read"
            ));
        }
        Ok(())
    }
}

/// How many times as long a step, or a sequence of steps, may make a text.
fn growth(part: &str, step: &Value) -> Result<f64, String> {
    let text = |name: &str| step.get(name).and_then(Value::as_str);
    let written = |name: &str| {
        let text = text(name).unwrap_or_default();
        if text.len() > MAX_WRITTEN {
            let found = text.len();
            return Err(format!(
                "its {part} has a `{name}` of {found} bytes, at most {MAX_WRITTEN} are read"
            ));
        }
        Ok(bytes(text))
    };
    Ok(match text("type").unwrap_or_default() {
        "Sequence" => {
            let mut all = 1.0;
            for list in ["normalizers", "pretokenizers", "decoders"] {
                for step in step.get(list).and_then(Value::as_array).into_iter().flatten() {
                    all *= growth(part, step)?;
                }
            }
            all
        }
        "Replace" => {
            let content = written("content")?;
            let pattern = step.get("pattern").and_then(|pattern| pattern.get("String"));
            match pattern.and_then(Value::as_str) {
                // An expression may match nothing, before each byte.
                None | Some("") => content + 1.0,
                Some(pattern) => (content / bytes(pattern)).max(1.0),
            }
        }
        "Prepend" => {
            written("prepend")?;
            2.0
        }
        // One letter becomes up to eighteen, of which some are shorter.
        "NFKC" | "NFKD" | "Precompiled" => 18.0,
        "NFC" | "NFD" | "Lowercase" | "Metaspace" | "ByteFallback" => 3.0,
        "BertNormalizer" => 9.0,
        "ByteLevel" => 2.0,
        _ => 1.0,
    })
}

fn bytes(text: &str) -> f64 {
    u32::try_from(text.len()).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(parts: Value) -> Result<(), String> {
        serde_json::from_value::<Parts>(parts).unwrap().check()
    }

    fn doubling(count: usize) -> Vec<Value> {
        vec![json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}); count]
    }

    #[test]
    fn published_steps_are_within_bounds() {
        let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        for part in [
            json!({}),
            json!({"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"}}),
            json!({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, marks]}}),
            json!({"normalizer": {"type": "NFKC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split"}, {"type": "Metaspace"}, {"type": "ByteLevel"}]}}),
            json!({"decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip"}]}}),
        ] {
            assert_eq!(check(part), Ok(()));
        }
    }

    #[test]
    fn steps_that_lengthen_again_and_again_are_refused() {
        for (part, list) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
            let steps = json!({"type": "Sequence", list: doubling(30)});
            let error = check(json!({part: steps})).unwrap_err();
            assert!(
                error.contains(part) && error.contains("1073741824 times"),
                "{error}"
            );
            let inner = json!({"type": "Sequence", list: doubling(5)});
            let outer = json!({"type": "Sequence", list: [inner, inner]});
            assert!(check(json!({part: outer})).is_err());
        }
        let letters = json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "ByteLevel"}); 9]});
        assert!(check(json!({"pre_tokenizer": letters})).is_err());
        let regex = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "a".repeat(300)});
        assert!(check(json!({"normalizer": regex})).is_err());
    }

    #[test]
    fn long_texts_are_refused() {
        let long = "a".repeat(MAX_WRITTEN + 1);
        let error = check(json!({"normalizer": {"type": "Prepend", "prepend": long}})).unwrap_err();
        assert!(error.contains("`prepend` of 1025 bytes"), "{error}");
        let error =
            check(json!({"added_tokens": [{"content": "a"}, {"content": "a".repeat(5000)}]})).unwrap_err();
        assert!(error.starts_with("added_tokens[1] is 5000 bytes"), "{error}");
        let many = vec![json!({"content": "a".repeat(4000)}); 300];
        assert!(check(json!({"added_tokens": many})).is_err());
    }
}
