//! The body of an answer: whole, or a JSON object a line.

use super::{Form, now};
use crate::answer::{Answering, Said, Summary, text};
use crate::app::App;
use crate::error::Dialect;
use crate::http::streamed;
use axum::response::Response;
use futures_util::stream;
use runtime::{Finish, Piece};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(crate) struct Speaker {
    model: String,
    form: Form,
}

impl Speaker {
    pub(crate) fn new(app: &App, form: Form) -> Speaker {
        Speaker {
            model: app.about.name.clone(),
            form,
        }
    }

    fn record(&self, text: &str, done: bool) -> Value {
        let mut record = json!({"model": self.model, "created_at": now()});
        let (field, said) = match self.form {
            Form::Chat => ("message", json!({"role": "assistant", "content": text})),
            Form::Generate => ("response", text.into()),
        };
        if let Some(record) = record.as_object_mut() {
            record.insert(field.to_owned(), said);
            record.insert("done".to_owned(), done.into());
        }
        record
    }

    /// The answer to no question.
    pub(crate) fn nothing(&self, reason: &str) -> Value {
        let mut record = self.record("", true);
        if let Some(record) = record.as_object_mut() {
            record.insert("done_reason".to_owned(), reason.into());
        }
        record
    }

    /// The answer as one object.
    pub(crate) fn whole(&self, pieces: &[Piece], summary: &Summary) -> Value {
        self.last(&text(pieces), summary)
    }

    fn last(&self, text: &str, summary: &Summary) -> Value {
        let mut record = self.record(text, true);
        let seconds = |seconds: f64| nanos(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let reading = Duration::try_from_secs_f64(summary.stats.prefill + summary.stats.encode);
        let fields = [
            ("done_reason", reason(summary.finish).into()),
            ("total_duration", nanos(summary.total).into()),
            ("load_duration", seconds(summary.stats.preprocess).into()),
            ("prompt_eval_count", summary.prompt_positions.into()),
            ("prompt_eval_duration", nanos(reading.unwrap_or_default()).into()),
            ("eval_count", summary.stats.tokens.into()),
            ("eval_duration", nanos(summary.decoding()).into()),
            ("fvlm", summary.details()),
        ];
        if let Some(record) = record.as_object_mut() {
            record.extend(fields.map(|(name, value): (&str, Value)| (name.to_owned(), value)));
        }
        record
    }

    /// The answer as it comes.
    pub(crate) fn stream(self, answering: Answering) -> Response {
        let lines = stream::unfold(Some((self, answering)), |state| async {
            let (speaker, mut answering) = state?;
            loop {
                let record = match answering.next().await? {
                    Said::Piece(piece) if piece.text.is_empty() => continue,
                    Said::Piece(piece) => {
                        let line = format!("{}\n", speaker.record(&piece.text, false));
                        return Some((line, Some((speaker, answering))));
                    }
                    Said::Ended(summary) => speaker.last("", &summary),
                    Said::Failed(error) => error.body(Dialect::Ollama),
                };
                return Some((format!("{record}\n"), None));
            }
        });
        streamed("application/x-ndjson", lines)
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::MaxTokens | Finish::MaxContext => "length",
        Finish::Stop | Finish::StopString | Finish::Cancelled => "stop",
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A time as in RFC 3339, of UTC, to the microsecond.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of so many days after 1970-01-01. Years begin in March here, so that a leap day is their last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}
