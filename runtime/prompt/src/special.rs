//! Special tokens of a bundle: do tokenizer, template and contract mean the same?

use crate::text::Tokenizer;
use crate::{ImageId, Message};
use models::bundle::PromptSpec;

/// A question without special tokens of its own.
pub(crate) fn trial(image: bool) -> Message {
    let images = if image { vec![ImageId(0)] } else { Vec::new() };
    Message::user(images, "What is it?")
}

/// What the spec says of special tokens, and the tokenizer has not.
pub(crate) fn special_problems(tokenizer: &Tokenizer, spec: &PromptSpec) -> Vec<String> {
    let mut problems = Vec::new();
    let known = tokenizer.id_of(&spec.image_token);
    if spec.image_token_id.is_some() && !spec.image_token.is_empty() && known != spec.image_token_id {
        let found = known.map_or("no such token".to_owned(), |id| format!("id {id}"));
        problems.push(format!(
            "`image_token_id` is {}, the tokenizer has {found} for `{}`",
            spec.image_token_id.unwrap_or_default(),
            spec.image_token
        ));
    }
    for id in spec.stop_ids.iter().filter(|id| !tokenizer.is_added(**id)) {
        problems.push(format!(
            "`stop_ids` has {id}, which is not the id of a special token of the tokenizer"
        ));
    }
    problems
}

/// What is written as special tokens are: `<|im_start|>`, or with full-width bars.
pub(crate) fn special_words(text: &str) -> impl Iterator<Item = &str> {
    const LONGEST: usize = 64;
    [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>")]
        .into_iter()
        .flat_map(move |(open, close)| {
            text.match_indices(open).filter_map(move |(start, _)| {
                let rest = text.get(start + open.len()..)?;
                let name = rest.get(..rest.find(close)?)?;
                let plain =
                    !name.is_empty() && name.len() <= LONGEST && !name.contains(['<', '>', '|', ' ', '\n']);
                let end = start + open.len() + name.len() + close.len();
                plain.then(|| text.get(start..end)).flatten()
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_look_like_special_tokens() {
        let text = "<|im_start|>a <| b |> <||> <|c d|> <|x|><\u{ff5c}User\u{ff5c}> <image> <|y";
        let found: Vec<&str> = special_words(text).collect();
        assert_eq!(found, ["<|im_start|>", "<|x|>", "<\u{ff5c}User\u{ff5c}>"]);
    }
}
