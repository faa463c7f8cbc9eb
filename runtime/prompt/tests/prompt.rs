//! Ids of texts and conversations against what transformers makes of them (`data/record_prompts.py`), with the demo
//! checkpoint's tokenizer and, on request (`--ignored`, with `FVLM_QWEN_TOKENIZER`), with Qwen's.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use models::bundle::{Content, PromptSpec};

use prompt::{ImageId, Message, Piece, Prompter, Role};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Recorded {
    demo: Cases,
    qwen: Cases,
}

#[derive(Deserialize)]
struct Cases {
    texts: Vec<TextCase>,
    conversations: Vec<ConversationCase>,
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<i64>,
    decoded: String,
}

#[derive(Deserialize)]
struct ConversationCase {
    messages: Vec<RecordedMessage>,
    rendered: String,
    ids: Vec<i64>,
}

#[derive(Deserialize)]
struct RecordedMessage {
    role: String,
    #[serde(default)]
    images: u64,
    text: String,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("../../tests/data/prompts.json")).unwrap()
}

fn check(tokenizer: &Path, template: &Path, content: Content, cases: &Cases) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(tokenizer, directory.path().join("tokenizer.json")).unwrap();
    std::fs::copy(template, directory.path().join("chat_template.jinja")).unwrap();
    let spec = PromptSpec {
        tokenizer: "tokenizer.json".to_owned(),
        chat_template: "chat_template.jinja".to_owned(),
        content,
        image_token: "<image>".to_owned(),
        image_token_id: None,
        stop_ids: Vec::new(),
        special_tokens: BTreeMap::new(),
        vocab_size: 1 << 20,
        hidden_size: 1,
    };
    let prompter = Prompter::open(directory.path(), &spec, 16).unwrap();
    let mut failures = Vec::new();
    for case in &cases.texts {
        let ids = prompter.tokenizer().encode(&case.text).unwrap();
        if ids != case.ids {
            failures.push(format!("{:?}: ids {ids:?}, expected {:?}", case.text, case.ids));
        }
        let mut stream = prompter.stream(&[]);
        let mut streamed: String = case.ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        if streamed != case.decoded {
            failures.push(format!(
                "{:?}: streamed {streamed:?}, expected {:?}",
                case.text, case.decoded
            ));
        }
    }
    for case in &cases.conversations {
        let mut next = 0;
        let messages: Vec<Message> = case
            .messages
            .iter()
            .map(|message| {
                let role = match message.role.as_str() {
                    "system" => Role::System,
                    "user" => Role::User,
                    _ => Role::Assistant,
                };
                let images = (next..next + message.images).map(ImageId).collect();
                next += message.images;
                Message {
                    role,
                    images,
                    text: message.text.clone(),
                }
            })
            .collect();
        let rendered = prompter.render(&messages).unwrap();
        if rendered != case.rendered {
            failures.push(format!("rendered {rendered:?}, expected {:?}", case.rendered));
        }
        let mut ids = Vec::new();
        let mut images = 0;
        for piece in prompter.build(&messages).unwrap().pieces() {
            match piece {
                Piece::Tokens(tokens) => ids.extend_from_slice(tokens),
                Piece::Image { id, tokens } => {
                    assert_eq!((*id, *tokens), (ImageId(images), 16));
                    images += 1;
                    ids.push(-200);
                }
            }
        }
        if ids != case.ids {
            failures.push(format!("{rendered:?}: ids {ids:?}, expected {:?}", case.ids));
        }
    }
    assert!(
        failures.is_empty(),
        "{} cases differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn demo() -> PathBuf {
    match std::env::var_os("FVLM_DEMO_CHECKPOINT") {
        Some(directory) => directory.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/checkpoint"),
    }
}

#[test]
fn the_demo_checkpoint_prompts_as_in_transformers() {
    let demo = demo();
    let template = demo.join("chat_template.jinja");
    check(
        &demo.join("tokenizer.json"),
        &template,
        Content::Parts,
        &recorded().demo,
    );
}

#[test]
#[ignore = "FVLM_QWEN_TOKENIZER must name a directory with Qwen's tokenizer.json, which is not here"]
fn a_real_qwen_tokenizer_prompts_as_in_llava() {
    let directory = std::env::var_os("FVLM_QWEN_TOKENIZER").expect("FVLM_QWEN_TOKENIZER is set");
    let directory = PathBuf::from(directory);
    let template = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        template.path(),
        "{% for message in messages %}{% if loop.first and message.role != 'system' %}\
         {{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
         {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    )
    .unwrap();
    check(
        &directory.join("tokenizer.json"),
        template.path(),
        Content::Text,
        &recorded().qwen,
    );
}
