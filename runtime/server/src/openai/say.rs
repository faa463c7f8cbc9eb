//! The body of an answer: whole, or as server-sent events.

use crate::answer::{Answering, Said, Summary, text};
use crate::app::App;
use crate::error::Dialect;
use crate::http::streamed;
use axum::response::Response;
use futures_util::stream;
use runtime::{Finish, Piece};
use serde_json::{Value, json};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a stream is silent at most, so that nobody between takes it for dead.
const SILENCE: Duration = Duration::from_secs(15);

/// What stands for the logarithm of 0, as in OpenAI's interface.
const LEAST_LOGPROB: f64 = -9999.0;

/// What a client wants to see beside the answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Form {
    /// Whether a stream ends with what it took.
    pub(crate) usage: bool,
    /// Whether tokens come with how likely they were.
    pub(crate) logprobs: bool,
}

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(crate) struct Speaker {
    app: Arc<App>,
    id: String,
    created: u64,
    form: Form,
}

impl Speaker {
    pub(crate) fn new(app: &Arc<App>, form: Form) -> Speaker {
        Speaker {
            id: format!("chatcmpl-{:016x}", RandomState::new().hash_one(0u8)),
            created: super::seconds(SystemTime::now()),
            app: Arc::clone(app),
            form,
        }
    }

    fn record(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.app.about.name,
            "system_fingerprint": concat!("fvlm-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// The answer as one object.
    pub(crate) fn whole(&self, pieces: &[Piece], summary: &Summary) -> Value {
        let message = json!({"role": "assistant", "content": text(pieces), "refusal": null});
        let choice = json!({
            "index": 0,
            "message": message,
            "logprobs": self.logprobs(pieces),
            "finish_reason": reason(summary.finish),
        });
        let mut record = self.record("chat.completion", json!([choice]));
        add_usage(&mut record, summary);
        record
    }

    /// A part of a stream.
    fn chunk(&self, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        let mut record = self.record("chat.completion.chunk", json!([choice]));
        if self.form.usage
            && let Some(record) = record.as_object_mut()
        {
            record.insert("usage".to_owned(), Value::Null);
        }
        record
    }

    /// How likely tokens were, where that was asked for.
    fn logprobs(&self, pieces: &[Piece]) -> Value {
        if !self.form.logprobs {
            return Value::Null;
        }
        let likely = pieces.iter().filter_map(|piece| piece.logprob.as_ref());
        let content: Vec<Value> = likely
            .map(|likely| {
                let mut token = self.token(likely.id, likely.logprob);
                let top = likely.top.iter().map(|(id, logprob)| self.token(*id, *logprob));
                let top: Vec<Value> = top.collect();
                if let Some(token) = token.as_object_mut() {
                    token.insert("top_logprobs".to_owned(), top.into());
                }
                token
            })
            .collect();
        json!({"content": content, "refusal": null})
    }

    /// A token, which may be a part of a character.
    fn token(&self, id: i64, logprob: f64) -> Value {
        let bytes = self.app.words.bytes(id);
        json!({
            "token": String::from_utf8_lossy(&bytes),
            // What JSON has no number for is as unlikely as clients expect.
            "logprob": logprob.max(LEAST_LOGPROB),
            "bytes": bytes,
        })
    }

    /// The end of a stream.
    fn last(&self, summary: &Summary) -> String {
        let mut end = self.chunk(json!({}), Value::Null, Some(reason(summary.finish)));
        if !self.form.usage {
            if let Some(end) = end.as_object_mut() {
                end.insert("fvlm".to_owned(), summary.details());
            }
            return event(&end) + DONE;
        }
        let mut usage = self.record("chat.completion.chunk", json!([]));
        add_usage(&mut usage, summary);
        event(&end) + &event(&usage) + DONE
    }

    /// The answer as it comes.
    pub(crate) fn stream(self, answering: Answering) -> Response {
        let first = event(&self.chunk(json!({"role": "assistant", "content": ""}), Value::Null, None));
        let parts = stream::unfold(Some((self, answering, Some(first))), |state| async {
            let (speaker, mut answering, mut first) = state?;
            if let Some(first) = first.take() {
                return Some((first, Some((speaker, answering, None))));
            }
            let (text, goes_on) = speaker.next(&mut answering).await;
            Some((text, goes_on.then_some((speaker, answering, None))))
        });
        streamed("text/event-stream", parts)
    }

    /// The next part that says something, and whether more comes.
    async fn next(&self, answering: &mut Answering) -> (String, bool) {
        loop {
            let said = tokio::time::timeout(SILENCE, answering.next()).await;
            match said {
                Err(_silent) => return (": still there\n\n".to_owned(), true),
                Ok(Some(Said::Piece(piece))) if piece.text.is_empty() && piece.logprob.is_none() => {}
                Ok(Some(Said::Piece(piece))) => {
                    let logprobs = self.logprobs(std::slice::from_ref(&piece));
                    let chunk = self.chunk(json!({"content": piece.text}), logprobs, None);
                    return (event(&chunk), true);
                }
                Ok(Some(Said::Ended(summary))) => return (self.last(&summary), false),
                // Without the end that a complete answer has.
                Ok(Some(Said::Failed(error))) => return (event(&error.body(Dialect::OpenAi)), false),
                Ok(None) => return (String::new(), false),
            }
        }
    }
}

/// The end of every stream that is complete.
const DONE: &str = "data: [DONE]\n\n";

/// A server-sent event. JSON in one line has no line breaks.
fn event(record: &Value) -> String {
    format!("data: {record}\n\n")
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::MaxTokens | Finish::MaxContext => "length",
        Finish::Stop | Finish::StopString | Finish::Cancelled => "stop",
    }
}

fn add_usage(record: &mut Value, summary: &Summary) {
    let tokens = summary.stats.tokens;
    let usage = json!({
        "prompt_tokens": summary.prompt_positions,
        "completion_tokens": tokens,
        "total_tokens": summary.prompt_positions + tokens,
        "prompt_tokens_details": {"cached_tokens": summary.reused_positions},
    });
    if let Some(record) = record.as_object_mut() {
        record.insert("usage".to_owned(), usage);
        record.insert("fvlm".to_owned(), summary.details());
    }
}
