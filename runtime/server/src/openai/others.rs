//! Fields that are known elsewhere, and not offered here: OpenAI's own, and those of vLLM, SGLang and llama.cpp. Each is an
//! error, where leaving it alone would give another answer than was asked for.

use crate::asked::{NO_TOOLS, is_empty, is_false, is_one, is_zero, only};
use crate::error::ApiError;
use crate::json::Fields;
use serde_json::Value;

/// A field, which of its values change nothing, and what is expected instead of the others. `null` changes nothing.
type Other = (&'static str, fn(&Value) -> bool, &'static str);

/// Of OpenAI's interface.
const OPENAI: [Other; 9] = [
    ("tools", is_empty, NO_TOOLS),
    ("functions", is_empty, NO_TOOLS),
    ("tool_choice", is_auto, "\"none\" or \"auto\""),
    ("function_call", is_auto, "\"none\" or \"auto\""),
    ("logit_bias", is_empty, "an empty object"),
    ("audio", never, "nothing: answers are text"),
    ("prediction", never, "nothing"),
    ("web_search_options", never, "nothing"),
    ("modalities", is_text, "[\"text\"]"),
];

const STRUCTURED: &str = "nothing: `structured_outputs` has `json`, `regex` and `choice`";
const SCHEMA: &str = "nothing: `response_format` has a schema";
const LENGTH: &str = "nothing: `max_tokens` is the length of an answer";

/// What an answer keeps to and how long it is, by names that others have for it.
const OTHER_NAMES: [Other; 12] = [
    ("regex", is_empty, "nothing: `structured_outputs` has `regex`"),
    ("ebnf", is_empty, STRUCTURED),
    ("grammar", is_empty, STRUCTURED),
    ("structural_tag", never, STRUCTURED),
    ("json_schema", never, SCHEMA),
    ("max_new_tokens", never, LENGTH),
    ("max_output_tokens", never, LENGTH),
    ("max_tokens_to_sample", never, LENGTH),
    ("max_length", never, LENGTH),
    ("n_predict", never, LENGTH),
    ("num_predict", never, LENGTH),
    (
        "repeat_penalty",
        is_one,
        "1: `repetition_penalty` is its name here",
    ),
];

/// How tokens are chosen, and what becomes of a prompt and of an answer.
const ELSEWHERE: [Other; 45] = [
    // vLLM's, some of them SGLang's too.
    ("min_tokens", is_zero, "0"),
    ("min_new_tokens", is_zero, "0"),
    ("min_p", is_zero, "0"),
    ("length_penalty", is_one, "1"),
    ("best_of", is_one, "1"),
    ("ignore_eos", is_false, "false"),
    ("echo", is_false, "false"),
    ("use_beam_search", is_false, "false"),
    ("continue_final_message", is_false, "false"),
    ("add_generation_prompt", is_true, "true"),
    ("skip_special_tokens", is_true, "true"),
    ("spaces_between_special_tokens", is_true, "true"),
    ("include_stop_str_in_output", is_false, "false"),
    ("no_stop_trim", is_false, "false"),
    ("chat_template", never, "nothing: the bundle has its own"),
    (
        "chat_template_kwargs",
        is_empty,
        "an empty object: the template is given messages alone",
    ),
    ("documents", is_empty, "an empty array"),
    ("stop_token_ids", is_empty, "an empty array: `stop` has texts"),
    ("stop_regex", is_empty, "nothing: `stop` has texts"),
    ("bad_words", is_empty, "an empty array"),
    (
        "allowed_token_ids",
        never,
        "nothing: `structured_outputs` has `choice`",
    ),
    (
        "truncate_prompt_tokens",
        never,
        "nothing: a prompt that is too long is refused",
    ),
    (
        "prompt_logprobs",
        is_false,
        "nothing: `logprobs` has those of the answer",
    ),
    ("return_tokens_as_token_ids", is_false, "false"),
    ("return_token_ids", is_false, "false"),
    ("logits_processors", is_empty, "an empty array"),
    ("custom_logit_processor", is_empty, "nothing"),
    (
        "mm_processor_kwargs",
        is_empty,
        "an empty object: the bundle says how images are prepared",
    ),
    ("lora_path", is_empty, "nothing"),
    // llama.cpp's.
    ("lora", is_empty, "an empty array"),
    ("typical_p", is_one, "1"),
    ("typ_p", is_one, "1"),
    ("tfs_z", is_one, "1"),
    ("top_a", is_zero, "0"),
    ("mirostat", is_zero, "0"),
    ("dynatemp_range", is_zero, "0"),
    ("xtc_probability", is_zero, "0"),
    ("dry_multiplier", is_zero, "0"),
    ("epsilon_cutoff", is_zero, "0"),
    ("eta_cutoff", is_zero, "0"),
    ("top_n_sigma", is_not_above_zero, "0"),
    ("n_probs", is_zero, "0: `top_logprobs` has how likely tokens were"),
    ("samplers", never, "nothing"),
    ("n_indent", is_zero, "0"),
    ("t_max_predict_ms", is_not_above_zero, "0"),
];

/// Beginning of vLLM's older names for what `structured_outputs` has, and the one of them that changes no answer.
const GUIDED: &str = "guided_";
const GUIDED_BACKEND: &str = "guided_decoding_backend";

/// # Errors
/// A field that would change the answer, by its name.
pub(super) fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    if fields.whole("n", 1, 128)?.is_some_and(|count| count != 1) {
        return Err(ApiError::unsupported("n", "1: ask several times"));
    }
    let all = OPENAI.iter().chain(&OTHER_NAMES).chain(&ELSEWHERE);
    all.into_iter()
        .try_for_each(|(field, neutral, expected)| only(fields, field, neutral, expected))?;
    let guided = |name: &&str| name.starts_with(GUIDED) && *name != GUIDED_BACKEND;
    fields
        .names()
        .filter(guided)
        .try_for_each(|field| only(fields, field, never, STRUCTURED))
}

/// What `response_format` has of others' fields, beside that of its own type.
pub(super) fn refuse_format(format: &Fields<'_>, kind: &str) -> Result<(), ApiError> {
    let schema = "a schema only where `type` is \"json_object\"";
    let described = "it only where `type` is \"json_schema\"";
    if kind != "json_object" {
        only(format, "schema", never, schema)?;
    }
    if kind != "json_schema" {
        only(format, "json_schema", never, described)?;
    }
    Ok(())
}

/// Fields of `structured_outputs` that are offered, and some that change no answer.
const STRUCTURED_FIELDS: [&str; 7] = [
    "json",
    "json_object",
    "regex",
    "choice",
    "disable_fallback",
    "_backend",
    "_backend_was_auto",
];

/// What `structured_outputs` has beside what is offered: whatever it is, an answer would keep to it.
pub(super) fn refuse_structured(structured: &Fields<'_>) -> Result<(), ApiError> {
    let space = "nothing: white space between the parts of JSON is as the server has it";
    let all: [Other; 3] = [
        ("disable_any_whitespace", is_false, "false"),
        (
            "disable_additional_properties",
            is_false,
            "false: the schema says `additionalProperties`",
        ),
        ("whitespace_pattern", never, space),
    ];
    all.iter()
        .try_for_each(|(field, neutral, expected)| only(structured, field, neutral, expected))?;
    let offered =
        |name: &&str| STRUCTURED_FIELDS.contains(name) || all.iter().any(|(known, ..)| known == name);
    structured
        .names()
        .filter(|name| !offered(name))
        .try_for_each(|field| {
            only(
                structured,
                field,
                never,
                "`json`, `json_object`, `regex` or `choice`",
            )
        })
}

fn never(_value: &Value) -> bool {
    false
}

fn is_true(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn is_auto(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "auto"))
}

/// Whether a value is `["text"]`.
fn is_text(value: &Value) -> bool {
    matches!(value.as_array().map(Vec::as_slice), Some([Value::String(text)]) if text == "text")
}

fn is_not_above_zero(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number <= 0.0)
}
