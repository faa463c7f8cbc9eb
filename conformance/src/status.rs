//! What is compared with what? The table of the repository's README: networks x layouts x engines, read off the recorded
//! references and the known exceptions, so that it cannot claim more than `run` tries.

use crate::golden::{RecordedCase, Reference, ReferenceError, Source};
use crate::setup::known;
use crate::setup::subject::{Provider, Subject};
use crate::setup::workspace;
use crate::suite::recorded::is_full_size;
use std::sync::Arc;

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Encoder,
    Embedding,
    Decoder,
    Whole,
}

impl Part {
    const ALL: [Part; 4] = [Part::Encoder, Part::Embedding, Part::Decoder, Part::Whole];

    const fn name(self) -> &'static str {
        match self {
            Part::Encoder => "vision encoder with projector",
            Part::Embedding => "token embedding",
            Part::Decoder => "decoder",
            Part::Whole => "image and question to answer",
        }
    }

    /// What a recorded case has to say about the part.
    fn count(self, case: &RecordedCase) -> usize {
        let checks =
            |wanted: fn(&str) -> bool| case.checks.iter().filter(|check| wanted(&check.value)).count();
        match self {
            Part::Encoder => checks(|value| value.starts_with("vision_tower.") || value == "image_features"),
            Part::Embedding => case.rows.len(),
            Part::Decoder => checks(|value| value.starts_with("prefill.") || value.starts_with("steps.")),
            Part::Whole => case.rows.iter().filter(|row| row.question.is_some()).count(),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Part::Encoder | Part::Decoder => "tensors",
            Part::Embedding => "prompts",
            Part::Whole => "answers",
        }
    }
}

/// Checkpoint layouts as references name them, and as people know them.
const LAYOUTS: [(&str, &str); 3] = [
    ("llava", "Apple's (`llava`)"),
    ("transformers", "transformers, fused"),
    ("transformers-train", "transformers, train-time branches"),
];

fn layout_of(reference: &Reference) -> Option<&str> {
    match &reference.checkpoint {
        Source::Synth { layout, .. } => Some(layout),
        // The demo model keeps its branches.
        Source::Directory { .. } => Some("transformers-train"),
        Source::External { .. } => None,
    }
}

/// The table in Markdown; the same on every machine.
///
/// # Errors
/// A recorded reference that is not what its schema says.
pub fn markdown() -> Result<String, ReferenceError> {
    let references = workspace::references()?;
    let mut text = "| network | layout | recorded |".to_owned();
    for provider in Provider::ALL {
        text.push_str(&format!(" {} |", provider.name()));
    }
    text.push_str("\n|---|---|---|");
    text.push_str(&"---|".repeat(Provider::ALL.len()));
    text.push('\n');
    for part in Part::ALL {
        for (layout, title) in LAYOUTS {
            let of_layout: Vec<&Arc<Reference>> = references
                .iter()
                .filter(|reference| layout_of(reference) == Some(layout))
                .collect();
            let counts: Vec<(&Reference, usize)> = of_layout
                .iter()
                .map(|reference| {
                    (
                        &***reference,
                        reference.cases.iter().map(|case| part.count(case)).sum(),
                    )
                })
                .filter(|&(_, count)| count > 0)
                .collect();
            let recorded: Vec<String> = counts
                .iter()
                .map(|(reference, count)| format!("{count} in `{}`", reference.name))
                .collect();
            let recorded = match recorded.len() {
                0 => "nothing".to_owned(),
                _ => format!("{}: {}", part.unit(), recorded.join(", ")),
            };
            text.push_str(&format!("| {} | {title} | {recorded} |", part.name()));
            for provider in Provider::ALL {
                text.push_str(&format!(" {} |", cell(part, provider, &counts)));
            }
            text.push('\n');
        }
    }
    Ok(text)
}

/// In which precisions a provider is compared with these references.
fn cell(part: Part, provider: Provider, references: &[(&Reference, usize)]) -> String {
    let interpreter = provider.engine().is_none();
    let tried: Vec<&Reference> = references
        .iter()
        .map(|(reference, _)| *reference)
        .filter(|r| !(interpreter && is_full_size(r)))
        .collect();
    // The interpreter has no tokenizer: whole answers are the runtime's.
    if tried.is_empty() || (interpreter && part == Part::Whole) {
        return "–".to_owned();
    }
    let precisions = provider.precisions().iter().map(|&precision| {
        let subject = Subject {
            provider,
            precision,
            options: runtime::Options::default(),
        };
        let excepted = tried.iter().any(|reference| excepted(part, reference, &subject));
        format!(
            "{}{}",
            precision.name(),
            if excepted { " (known exception)" } else { "" }
        )
    });
    precisions.collect::<Vec<String>>().join(", ")
}

fn excepted(part: Part, reference: &Reference, subject: &Subject) -> bool {
    let full = is_full_size(reference);
    if part == Part::Whole {
        let suite = if full { "full-size" } else { "end_to_end" };
        return known::find(&format!("{suite}/{}/answers", reference.name), subject).is_some();
    }
    let suite = if full { "full-size" } else { "references" };
    let cases = reference.cases.iter().filter(|case| part.count(case) > 0);
    cases
        .map(|case| format!("{suite}/{}/{}", reference.name, case.name))
        .any(|name| known::find(&name, subject).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::subject::Precision;

    #[test]
    fn every_network_of_every_layout_is_compared_on_every_engine() {
        let table = markdown().unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows.len(), Part::ALL.len() * LAYOUTS.len());
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 3 + Provider::ALL.len(), "{row}");
            assert_ne!(cells[2], "nothing", "{row}");
            for (provider, cell) in Provider::ALL.iter().zip(&cells[3..]).skip(1) {
                let named = |precision: &Precision| cell.contains(precision.name());
                assert!(
                    provider.precisions().iter().all(named),
                    "{}: {row}",
                    provider.name()
                );
            }
        }
    }
}
