//! How do messages and images become token ids with image slots?
//!
//! Messages are rendered by the chat template, the text is split at the image token, the pieces are
//! tokenized one by one, and every split becomes the place of an image: the ids of transformers' processor
//! for the layout whose vocabulary has the image token, and those of Apple's `tokenizer_image_token` for
//! the one whose has not.

pub mod catch;
mod special;
pub mod text;

use crate::text::{ChatTemplate, TemplateContent, TemplateMessage, TemplatePart, TextStream, Tokenizer};
use models::bundle::{Content, PromptSpec};
use special::{special_problems, special_words, trial};
use std::ops::Range;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A prompt that cannot be built, or files of the bundle that it needs and that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PromptError {
    /// A file of the bundle cannot be read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `tokenizer.json` is not a tokenizer.
    #[error("cannot use tokenizer `{}`: {reason}", .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        reason: String,
    },
    /// A text cannot be tokenized or ids cannot be turned into text.
    #[error("cannot tokenize: {reason}")]
    Tokenize {
        /// What the tokenizer library says.
        reason: String,
    },
    /// The chat template cannot be parsed or does not render these messages.
    #[error("cannot use chat template `{name}`: {reason}")]
    Template {
        /// The file.
        name: String,
        /// What the template engine says, with the line.
        reason: String,
    },
    /// The chat template itself refuses these messages (`raise_exception`).
    #[error("chat template `{name}` refuses these messages: {reason}")]
    Refused {
        /// The file.
        name: String,
        /// The template's words.
        reason: String,
    },
    /// The bundle's prompt spec cannot be followed. All its faults.
    #[error("the bundle's prompt spec is wrong: {}", .problems.join("; "))]
    Spec {
        /// One sentence a fault.
        problems: Vec<String>,
    },
    /// A message names an image more or less often than it has images.
    #[error(
        "message {index} has {found} images, expected {expected}: its text contains `{image_token}` {expected} times"
    )]
    Places {
        /// The message, from 0.
        index: usize,
        /// Images of the message.
        found: usize,
        /// Places in its text.
        expected: usize,
        /// The text that marks a place.
        image_token: String,
    },
    /// The rendered conversation has not as many places for images as there are images.
    #[error("chat template `{name}` made {found} places for images, expected {expected}")]
    Slots {
        /// The file.
        name: String,
        /// Places in the rendered text.
        found: usize,
        /// Images of all messages.
        expected: usize,
    },
}

/// Says whether two images are the same to the model: a hash of what the encoder sees. Equal within one run
/// of the program only; never written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub u64);

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates use.
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// Its images, in order. They stand before the text, unless the text marks their places with the image
    /// token.
    pub images: Vec<ImageId>,
    /// What is said. Special tokens in it are special, as they are to transformers.
    pub text: String,
}

impl Message {
    /// A message without images.
    pub fn new(role: Role, text: impl Into<String>) -> Message {
        Message {
            role,
            images: Vec::new(),
            text: text.into(),
        }
    }

    /// A question about images.
    pub fn user(images: impl Into<Vec<ImageId>>, text: impl Into<String>) -> Message {
        Message {
            role: Role::User,
            images: images.into(),
            text: text.into(),
        }
    }
}

/// A prompt: what is fed to the model, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    pieces: Vec<Piece>,
}

/// A part of a [`Prompt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Tokens(Vec<i64>),
    /// The place of an image.
    Image {
        /// Which.
        id: ImageId,
        /// Positions that it takes.
        tokens: usize,
    },
}

/// What stands at one position of the model's sequence. Equal positions after equal positions have equal KV
/// entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// A token.
    Token(i64),
    /// A feature of an image.
    Image {
        /// Which image.
        id: ImageId,
        /// Which of its features, from 0.
        offset: usize,
    },
}

/// A run of positions of a prompt that is to be fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span<'a> {
    /// Token ids, never empty.
    Tokens(&'a [i64]),
    /// Rows of an image's features, never empty.
    Image {
        /// Which image.
        id: ImageId,
        /// Which of its features.
        rows: Range<usize>,
    },
}

impl Span<'_> {
    /// Positions in the span.
    pub fn len(&self) -> usize {
        match self {
            Span::Tokens(ids) => ids.len(),
            Span::Image { rows, .. } => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Prompt {
    /// A prompt of `pieces`, in order.
    pub fn new(pieces: Vec<Piece>) -> Prompt {
        Prompt { pieces }
    }

    /// Its pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Its positions, in order: what the KV cache holds after it was fed.
    pub fn positions(&self) -> Vec<Position> {
        let mut positions = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Tokens(ids) => positions.extend(ids.iter().map(|&id| Position::Token(id))),
                Piece::Image { id, tokens } => {
                    positions.extend((0..*tokens).map(|offset| Position::Image { id: *id, offset }));
                }
            }
        }
        positions
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Tokens(ids) => ids.len(),
                Piece::Image { tokens, .. } => *tokens,
            })
            .sum()
    }

    /// Whether it has no position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What remains to be fed when the first `skip` positions are in the KV cache.
    pub fn spans(&self, skip: usize) -> Vec<Span<'_>> {
        let mut skip = skip;
        let mut spans = Vec::new();
        for piece in &self.pieces {
            let span = match piece {
                Piece::Tokens(ids) => Span::Tokens(&ids[skip.min(ids.len())..]),
                Piece::Image { id, tokens } => Span::Image {
                    id: *id,
                    rows: skip.min(*tokens)..*tokens,
                },
            };
            let length = match piece {
                Piece::Tokens(ids) => ids.len(),
                Piece::Image { tokens, .. } => *tokens,
            };
            skip = skip.saturating_sub(length);
            if !span.is_empty() {
                spans.push(span);
            }
        }
        spans
    }

    /// All token ids, without images: what a repetition penalty looks at.
    pub fn token_ids(&self) -> Vec<i64> {
        token_ids(&self.spans(0))
    }
}

/// The ids of all text spans one after another: what is to be embedded.
pub fn token_ids(spans: &[Span<'_>]) -> Vec<i64> {
    spans
        .iter()
        .filter_map(|span| {
            if let Span::Tokens(ids) = span {
                Some(*ids)
            } else {
                None
            }
        })
        .flatten()
        .copied()
        .collect()
}

/// How many positions at the start of both are equal.
pub fn common_prefix(a: &[Position], b: &[Position]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Builds prompts as a bundle says.
#[derive(Debug, Clone)]
pub struct Prompter {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    content: Content,
    /// Whether the template takes a string where it expects parts.
    takes_strings: bool,
    image_token: String,
    image_tokens: usize,
    /// Positions of the longest prompt that is wanted whole.
    most: usize,
}

impl Prompter {
    /// Opens tokenizer and chat template in the directory of the bundle. `image_tokens`: positions of one
    /// image ([`ImageSpec::tokens`](models::bundle::ImageSpec)).
    pub fn open(bundle: &Path, spec: &PromptSpec, image_tokens: usize) -> Result<Prompter, PromptError> {
        let tokenizer = Tokenizer::open(&bundle.join(&spec.tokenizer))?;
        let path = bundle.join(&spec.chat_template);
        let source = models::regular::text(&path, u64::MAX).map_err(|source| PromptError::Read {
            path: path.clone(),
            source,
        })?;
        Prompter::new(
            tokenizer,
            (&path.display().to_string(), &source),
            spec,
            image_tokens,
        )
    }

    /// As [`Prompter::open`], of what was read: a tokenizer, and the name and text of a template.
    ///
    /// # Errors
    /// A broken template, or a spec that tokenizer and template do not keep.
    pub fn new(
        tokenizer: Tokenizer,
        (name, source): (&str, &str),
        spec: &PromptSpec,
        image_tokens: usize,
    ) -> Result<Prompter, PromptError> {
        let template = ChatTemplate::parse(name, source, &spec.special_tokens)?;
        let mut problems = Vec::new();
        if spec.image_token.is_empty() {
            problems.push("`image_token` is empty".to_owned());
        }
        if image_tokens == 0 {
            problems.push("an image takes 0 positions, expected at least 1".to_owned());
        }
        if tokenizer.vocabulary() > spec.vocab_size {
            problems.push(format!(
                "`vocab_size` is {}, expected at least the tokenizer's {}",
                spec.vocab_size,
                tokenizer.vocabulary()
            ));
        }
        problems.extend(special_problems(&tokenizer, spec));
        if !problems.is_empty() {
            return Err(PromptError::Spec { problems });
        }
        let prompter = Prompter {
            tokenizer,
            template,
            content: spec.content,
            takes_strings: source.contains("is string"),
            image_token: spec.image_token.clone(),
            image_tokens,
            most: usize::MAX,
        };
        prompter.check_template()?;
        Ok(prompter)
    }

    /// For a model that holds `context` positions. A prompt of more than twice as many then need not be whole, so that it
    /// costs about as much as one that just fits: it ends somewhere beyond them.
    #[must_use]
    pub fn with_context(mut self, context: usize) -> Prompter {
        self.most = context.saturating_mul(2);
        self
    }

    /// Whether the template's special tokens are the tokenizer's: others would be read as letters. A
    /// template that refuses the question has none to say.
    fn check_template(&self) -> Result<(), PromptError> {
        let text = match self.render(&[trial(true)]) {
            Err(PromptError::Refused { .. }) => return Ok(()),
            rendered => rendered?,
        };
        let mut problems = Vec::new();
        for token in special_words(&text) {
            if self.tokenizer.encode(token)?.len() != 1 {
                let problem =
                    format!("the chat template writes `{token}`, which the tokenizer does not know");
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(PromptError::Spec { problems })
        }
    }

    /// Asks with an image and without, for whoever wrote the bundle: whether there will be prompts at all.
    ///
    /// # Errors
    /// A template that does not render one of the two, or makes no place for the image.
    pub fn try_out(&self) -> Result<(), PromptError> {
        for image in [false, true] {
            self.build(&[trial(image)])?;
        }
        Ok(())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt that asks for the assistant's answer to `messages`.
    ///
    /// Any number of messages and images is legal, none of either too. A message's images stand before its
    /// text, or where its text has the image token, then exactly as often as the message has images. See
    /// [`Prompter::with_context`] for what is much too long.
    pub fn build(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        let text = self.render(messages)?;
        let images: Vec<ImageId> = messages
            .iter()
            .flat_map(|message| message.images.iter().copied())
            .collect();
        let found = text.matches(&self.image_token).count();
        if found != images.len() {
            return Err(PromptError::Slots {
                name: self.template.name().to_owned(),
                found,
                expected: images.len(),
            });
        }
        let mut images = images.into_iter();
        let mut pieces = Vec::new();
        let mut left = self.most;
        for (index, text) in text.split(&self.image_token).enumerate() {
            if index > 0 {
                pieces.extend(images.next().map(|id| Piece::Image {
                    id,
                    tokens: self.image_tokens,
                }));
            }
            let ids = self.tokenizer.encode_at_most(text, left)?;
            let enough = ids.len() > left;
            left = left.saturating_sub(ids.len());
            if !ids.is_empty() {
                pieces.push(Piece::Tokens(ids));
            }
            if enough {
                break;
            }
        }
        Ok(Prompt { pieces })
    }

    /// The text of the conversation, one image token for each image, up to where the assistant's answer
    /// begins.
    pub fn render(&self, messages: &[Message]) -> Result<String, PromptError> {
        let messages: Result<Vec<TemplateMessage>, PromptError> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| self.for_template(index, message))
            .collect();
        self.template.render(&messages?, true)
    }

    fn for_template(&self, index: usize, message: &Message) -> Result<TemplateMessage, PromptError> {
        let Message { role, images, text } = message;
        let places = text.matches(&self.image_token).count();
        if places > 0 && places != images.len() {
            let image_token = self.image_token.clone();
            return Err(PromptError::Places {
                index,
                found: images.len(),
                expected: places,
                image_token,
            });
        }
        // Places in the text are explicit: then no image is put before it.
        let before = if places > 0 { 0 } else { images.len() };
        // The answer of an earlier turn, as a string, renders to the tokens that were generated; as a part,
        // templates put a line break before it. Not every template takes a string.
        let string = self.takes_strings && *role != Role::User && images.is_empty();
        let content = match self.content {
            Content::Parts if !string => {
                let mut parts = vec![TemplatePart::Image; before];
                if !text.is_empty() || parts.is_empty() {
                    parts.push(TemplatePart::Text { text: text.clone() });
                }
                TemplateContent::Parts(parts)
            }
            _ => TemplateContent::Text(format!("{}\n", self.image_token).repeat(before) + text),
        };
        Ok(TemplateMessage {
            role: role.name(),
            content,
        })
    }

    /// A detokenizer for one answer, which ends at the first of the `stops` strings.
    pub fn stream(&self, stops: &[String]) -> TextStream {
        TextStream::new(self.tokenizer.clone(), stops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::json_for_tests;
    use std::collections::BTreeMap;

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
        {% if m.content is string %}{{ m.content }}{% else %}\
        {% for c in m.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}\
        {% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ '\n' + c.text }}{% endfor %}{% endif %}\
        {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    const CAT: ImageId = ImageId(1);
    const DOG: ImageId = ImageId(2);

    fn open(content: Content, change: impl FnOnce(&mut PromptSpec)) -> Result<Prompter, PromptError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), json_for_tests()).unwrap();
        std::fs::write(directory.path().join("chat_template.jinja"), CHATML).unwrap();
        let mut spec = PromptSpec {
            tokenizer: "tokenizer.json".to_owned(),
            chat_template: "chat_template.jinja".to_owned(),
            content,
            image_token: "<image>".to_owned(),
            image_token_id: Some(259),
            stop_ids: vec![258],
            special_tokens: BTreeMap::new(),
            vocab_size: 264,
            hidden_size: 8,
        };
        change(&mut spec);
        Prompter::open(directory.path(), &spec, 3)
    }

    #[test]
    fn messages_render_for_both_kinds_of_content() {
        struct Case {
            messages: Vec<Message>,
            parts: &'static str,
            text: &'static str,
        }
        let cases = [
            Case {
                messages: vec![],
                parts: "",
                text: "",
            },
            Case {
                messages: vec![Message::user([], "Hi")],
                parts: "<|im_start|>user\n\nHi<|im_end|>\n",
                text: "<|im_start|>user\nHi<|im_end|>\n",
            },
            Case {
                messages: vec![Message::user([CAT], "What?")],
                parts: "<|im_start|>user\n<image>\nWhat?<|im_end|>\n",
                text: "<|im_start|>user\n<image>\nWhat?<|im_end|>\n",
            },
            Case {
                messages: vec![Message::user([CAT, DOG], "")],
                parts: "<|im_start|>user\n<image><image><|im_end|>\n",
                text: "<|im_start|>user\n<image>\n<image>\n<|im_end|>\n",
            },
            Case {
                messages: vec![Message::user([CAT, DOG], "Is <image> like <image>?")],
                parts: "<|im_start|>user\n\nIs <image> like <image>?<|im_end|>\n",
                text: "<|im_start|>user\nIs <image> like <image>?<|im_end|>\n",
            },
            Case {
                messages: vec![
                    Message::new(Role::System, "Be brief."),
                    Message::user([CAT], "What?"),
                    Message::new(Role::Assistant, "A cat."),
                    Message::user([], "Sure?"),
                ],
                parts: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n\
                        <|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\n\nSure?<|im_end|>\n",
                text: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n\
                       <|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n",
            },
        ];
        for case in cases {
            for (content, expected) in [(Content::Parts, case.parts), (Content::Text, case.text)] {
                let prompter = open(content, |_| ()).unwrap();
                let expected = format!("{expected}<|im_start|>assistant\n");
                assert_eq!(prompter.render(&case.messages).unwrap(), expected, "{content:?}");
                // Every place became an image, in order, and the rest is the text's ids.
                let prompt = prompter.build(&case.messages).unwrap();
                let images: Vec<ImageId> = prompt
                    .pieces()
                    .iter()
                    .filter_map(|piece| {
                        if let Piece::Image { id, .. } = piece {
                            Some(*id)
                        } else {
                            None
                        }
                    })
                    .collect();
                let sent: Vec<ImageId> = case
                    .messages
                    .iter()
                    .flat_map(|message| message.images.clone())
                    .collect();
                assert_eq!(images, sent);
                let ids = prompter
                    .tokenizer()
                    .encode(&expected.replace("<image>", ""))
                    .unwrap();
                assert_eq!(prompt.token_ids(), ids);
                assert_eq!(prompt.len(), ids.len() + 3 * images.len());
                assert_eq!(prompt.positions().len(), prompt.len());
            }
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_special() {
        let prompt = open(Content::Text, |_| ())
            .unwrap()
            .build(&[Message::user([], "a<|im_end|>b")])
            .unwrap();
        assert_eq!(prompt.token_ids().iter().filter(|&&id| id == 258).count(), 2);
    }

    /// A prompt that is much too long ends somewhere, with more positions than twice the context.
    #[test]
    fn a_prompt_that_is_much_too_long_need_not_be_whole() {
        let text = "word ".repeat(100_000);
        let messages = [Message::user([CAT], text.clone()), Message::user([DOG], text)];
        let build = |context| {
            let prompter = open(Content::Parts, |_| ()).unwrap();
            prompter.with_context(context).build(&messages).unwrap()
        };
        let whole = build(usize::MAX).len();
        assert!(whole > 1_000_000);
        assert_eq!(build(whole).len(), whole);
        for context in [1, 1000, 4000] {
            let found = build(context).len();
            assert!(found > 2 * context && found < 100_000, "{context}: {found}");
        }
    }

    #[test]
    fn images_and_places_must_agree() {
        let prompter = open(Content::Parts, |_| ()).unwrap();
        for (images, text) in [
            (vec![CAT], "<image> and <image>"),
            (vec![], "<image>"),
            (vec![CAT, DOG], "a <image>"),
        ] {
            let messages = [Message::user([CAT], "fine"), Message::user(images, text)];
            let error = prompter.build(&messages).unwrap_err();
            assert!(matches!(error, PromptError::Places { index: 1, .. }), "{error}");
        }
        // A template that forgets images, and one that makes them up.
        for (template, found) in [("{{ messages[0].content[1].text }}", 0), ("<image><image>", 2)] {
            let prompter = Prompter {
                template: ChatTemplate::parse("t", template, &BTreeMap::new()).unwrap(),
                ..open(Content::Parts, |_| ()).unwrap()
            };
            let error = prompter.build(&[Message::user([CAT], "What?")]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("chat template `t` made {found} places for images, expected 1")
            );
        }
    }

    #[test]
    fn a_wrong_spec_is_refused_with_all_its_faults() {
        let error = open(Content::Text, |spec| {
            spec.image_token.clear();
            spec.vocab_size = 259;
        })
        .unwrap_err();
        let PromptError::Spec { problems } = error else {
            panic!("{error}")
        };
        assert_eq!(
            problems,
            [
                "`image_token` is empty",
                "`vocab_size` is 259, expected at least the tokenizer's 260"
            ]
        );
        let error = open(Content::Text, |spec| spec.chat_template = "no.jinja".to_owned()).unwrap_err();
        assert!(matches!(error, PromptError::Read { .. }), "{error}");
    }

    #[test]
    fn special_tokens_mean_the_same_everywhere() {
        type Change = fn(&mut PromptSpec);
        let cases: [(Change, &str); 3] = [
            (
                |spec| spec.stop_ids = vec![65],
                "`stop_ids` has 65, which is not the id of a special token",
            ),
            (|spec| spec.stop_ids = vec![262], "`stop_ids` has 262"),
            (
                |spec| spec.image_token_id = Some(256),
                "`image_token_id` is 256, the tokenizer has id 259 for `<image>`",
            ),
        ];
        for (change, expected) in cases {
            let error = open(Content::Parts, change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let spec = |template: &str| {
            let tokenizer = crate::text::tokenizer::bytes_for_tests();
            let mut found = None;
            drop(open(Content::Parts, |spec| found = Some(spec.clone())));
            Prompter::new(tokenizer, ("t.jinja", template), &found.unwrap(), 4)
        };
        let error = spec("{{ '<|user|>' }}<image>").unwrap_err().to_string();
        assert!(
            error.contains("the chat template writes `<|user|>`, which the tokenizer does not know"),
            "{error}"
        );
        assert!(spec("<|im_start|><image>").unwrap().try_out().is_err());
        assert!(spec("{% if x %}").is_err());
        let transparent = "{% for m in messages %}{% generation %}{% for c in m.content %}{% if c.type == 'image' %}<image>\
            {% endif %}{% endfor %}{% endgeneration %}{% endfor %}";
        assert!(spec(transparent).unwrap().try_out().is_ok());
    }

    #[test]
    fn spans_continue_where_the_cache_ends() {
        let prompt = Prompt::new(vec![
            Piece::Tokens(vec![5, 6]),
            Piece::Image { id: CAT, tokens: 3 },
            Piece::Image { id: DOG, tokens: 2 },
            Piece::Tokens(vec![7]),
        ]);
        assert_eq!((prompt.len(), prompt.is_empty()), (8, false));
        assert_eq!(prompt.token_ids(), [5, 6, 7]);
        let positions = prompt.positions();
        for skip in 0..=9 {
            let mut fed = Vec::new();
            for span in prompt.spans(skip) {
                assert!(!span.is_empty());
                match span {
                    Span::Tokens(ids) => fed.extend(ids.iter().map(|&id| Position::Token(id))),
                    Span::Image { id, rows } => fed.extend(rows.map(|offset| Position::Image { id, offset })),
                }
            }
            assert_eq!(fed, positions[skip.min(8)..], "skip {skip}");
        }
        assert_eq!(token_ids(&prompt.spans(1)), [6, 7]);
    }

    #[test]
    fn a_common_prefix_ends_at_the_first_difference() {
        let prompt = |pieces: &[Piece]| Prompt::new(pieces.to_vec()).positions();
        let (text, cat, dog) = (
            Piece::Tokens(vec![1, 2]),
            Piece::Image { id: CAT, tokens: 4 },
            Piece::Image { id: DOG, tokens: 4 },
        );
        let first = prompt(&[text.clone(), cat.clone(), text.clone()]);
        let cases = [
            (
                prompt(&[text.clone(), cat.clone(), text.clone(), text.clone()]),
                8,
            ),
            (prompt(&[text.clone(), dog, text.clone()]), 2),
            (prompt(&[text.clone(), cat.clone(), Piece::Tokens(vec![1, 3])]), 7),
            (prompt(&[cat]), 0),
            (prompt(&[]), 0),
        ];
        for (second, expected) in cases {
            assert_eq!(common_prefix(&first, &second), expected);
            assert_eq!(common_prefix(&second, &first), expected);
        }
    }
}
