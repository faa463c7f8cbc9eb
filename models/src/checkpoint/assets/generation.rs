//! What does a checkpoint say of generating that a bundle does not carry? Answers there are greedy, and as long as
//! one asks for.

use super::text::GENERATION;
use crate::checkpoint::error::short;
use crate::config::CONFIG;
use serde_json::Value;

/// Fields that change what is likeliest, or where an answer ends, with the number that changes nothing.
const CHANGES: [(&str, f64); 18] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("bad_words_ids", 0.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("sequence_bias", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("forced_bos_token_id", -1.0),
    ("exponential_decay_length_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("watermarking_config", 0.0),
    ("stop_strings", 0.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("dola_layers", 0.0),
];

/// Whether a field is one of them.
pub(super) fn changes(field: &str) -> bool {
    CHANGES.iter().any(|(name, _)| *name == field)
}

/// What the user should know, one sentence at most. Without a `generation_config.json` transformers looks into
/// `config.json`, and there into the decoder's fields.
pub(super) fn left_out(generation: Option<&Value>, declared: &Value) -> Option<String> {
    let (file, places) = match generation {
        Some(generation) => (GENERATION, [Some(generation), None]),
        None => (CONFIG, [Some(declared), declared.get("text_config")]),
    };
    let set = |(name, nothing): (&str, f64)| {
        let value = places.into_iter().flatten().find_map(|place| {
            let value = place.get(name)?;
            (!changes_nothing(value, nothing)).then_some(value)
        })?;
        Some(format!("`{name}` is {}", short(value)))
    };
    let fields: Vec<String> = CHANGES.into_iter().filter_map(set).collect();
    (!fields.is_empty()).then(|| {
        format!(
            "{file}: {}, which a bundle does not carry: transformers' greedy answers may be others than those here",
            fields.join(", ")
        )
    })
}

/// Whether a field says that it is not used.
fn changes_nothing(value: &Value, nothing: f64) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(nothing),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_changes_answers_is_said() {
        let neutral = json!({"repetition_penalty": 1, "num_beams": 1, "suppress_tokens": null, "bad_words_ids": [],
            "min_new_tokens": 0, "do_sample": true, "temperature": 0.7, "top_k": 20, "max_new_tokens": 64});
        assert_eq!(left_out(Some(&neutral), &json!({"repetition_penalty": 2})), None);
        let set = json!({"repetition_penalty": 1.1, "suppress_tokens": [32], "stop_strings": "crab"});
        let said = left_out(Some(&set), &json!({})).unwrap();
        assert!(
            said.starts_with(
                "generation_config.json: `repetition_penalty` is 1.1, `suppress_tokens` is [32], `stop_strings` is \
                 \"crab\", which a bundle does not carry"
            ),
            "{said}"
        );
        let config = json!({"text_config": {"no_repeat_ngram_size": 3}, "num_beams": 2});
        let said = left_out(None, &config).unwrap();
        assert!(
            said.starts_with("config.json: `no_repeat_ngram_size` is 3, `num_beams` is 2, which"),
            "{said}"
        );
        let long = json!({"suppress_tokens": vec![1; 100]});
        assert!(left_out(Some(&long), &config).unwrap().contains("1..., which"));
    }
}
