//! What is compared with what? The tables of the READMEs in Markdown, read off suites, recorded references and known
//! exceptions, so that they cannot claim more than `run` tries; the same on every machine.
//!
//! [`matrix`] has a row for each form (target x precision) and a column for each engine; [`references`] has what was
//! recorded, network by network.

use crate::golden::{RecordedCase, Reference, ReferenceError, Source};
use crate::setup::case::Case;
use crate::setup::known;
use crate::setup::subject::{Precision, Provider, Subject, Target, Variant};
use crate::setup::workspace;
use crate::suite::SUITES;
use models::bundle::CoreMlPackages;
use std::sync::Arc;

/// A column of the matrix: an engine that can be given a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// One that the suites put to the test.
    Tried(Provider),
    /// ONNX Runtime's CoreML execution provider.
    OrtCoreMl,
    /// Core ML itself.
    CoreMl,
}

impl Engine {
    const ALL: [Engine; 5] = [
        Engine::Tried(Provider::Cpu),
        Engine::Tried(Provider::Tract),
        Engine::Tried(Provider::Rten),
        Engine::OrtCoreMl,
        Engine::CoreMl,
    ];

    const fn name(self) -> &'static str {
        match self {
            Engine::Tried(provider) => match provider {
                Provider::Interpreter => "the interpreter",
                Provider::Cpu => "ONNX Runtime, CPU",
                Provider::Tract => "tract",
                Provider::Rten => "rten",
            },
            Engine::OrtCoreMl => "ONNX Runtime, CoreML",
            Engine::CoreMl => "Core ML",
        }
    }
}

/// A row of the matrix: what an engine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// ONNX graphs.
    Graphs(Variant),
    /// Core ML packages.
    Packages(Precision),
}

impl Form {
    fn all() -> Vec<Form> {
        let variants = Target::ALL.into_iter().flat_map(|target| {
            let of_target = move |precision| Variant::new(target, precision);
            Precision::ALL.into_iter().filter_map(of_target)
        });
        let packages = CoreMlPackages::PRECISIONS.into_iter().map(Form::Packages);
        variants.map(Form::Graphs).chain(packages).collect()
    }

    fn name(self) -> String {
        match self {
            Form::Graphs(form) => format!("`{}` | {}", form.target().name(), form.precision().name()),
            Form::Packages(precision) => format!("packages | {}", precision.name()),
        }
    }
}

/// How it is known that an engine computes a form rightly, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The engine is compared with recorded tensors and answers.
    Recorded,
    /// The same where it is asked for: too long for every day.
    OnRequest,
    /// An interpreter of ours evaluates what the engine would be given, and that is compared; the engine itself never ran
    /// it.
    Interpreter,
    /// It is said to run it, and was never asked.
    NeverRun,
    /// It does not run it.
    None,
}

impl Proof {
    const fn word(self) -> &'static str {
        match self {
            Proof::Recorded => "recorded",
            Proof::OnRequest => "on request",
            Proof::Interpreter => "interpreter",
            Proof::NeverRun => "never run",
            Proof::None => "–",
        }
    }
}

/// Forms x engines, and how each is proven.
pub fn matrix() -> String {
    let cases: Vec<(bool, Case)> = SUITES
        .iter()
        .flat_map(|suite| (suite.cases)().into_iter().map(|case| (suite.on_request, case)))
        .collect();
    let mut text = "| target | precision |".to_owned();
    for engine in Engine::ALL {
        text.push_str(&format!(" {} |", engine.name()));
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(Engine::ALL.len()));
    text.push('\n');
    for form in Form::all() {
        text.push_str(&format!("| {} |", form.name()));
        for engine in Engine::ALL {
            text.push_str(&format!(" {} |", matrix_cell(form, engine, &cases)));
        }
        text.push('\n');
    }
    text
}

fn matrix_cell(form: Form, engine: Engine, cases: &[(bool, Case)]) -> String {
    let proof = match (form, engine) {
        (Form::Graphs(form), Engine::Tried(provider)) => return tried(form, provider, cases),
        // Its rules are checked by `fvlm-export --check coreml`; it is a Mac's.
        (Form::Graphs(form), Engine::OrtCoreMl) if form.target() != Target::Cpu => Proof::NeverRun,
        // `scripts/check_coreml` evaluates the programs of these packages.
        (Form::Packages(_), Engine::CoreMl) => Proof::Interpreter,
        (Form::Graphs(_), Engine::OrtCoreMl | Engine::CoreMl)
        | (Form::Packages(_), Engine::Tried(_) | Engine::OrtCoreMl) => Proof::None,
    };
    proof.word().to_owned()
}

/// What the suites say about a provider on a form: about recorded tensors, and recorded answers.
fn tried(form: Variant, provider: Provider, cases: &[(bool, Case)]) -> String {
    let subject = Subject {
        provider,
        form,
        options: runtime::Options::default(),
    };
    if !provider.forms().contains(&form) {
        return Proof::None.word().to_owned();
    }
    let recorded = |name: &str| {
        let suites = ["references/", "end_to_end/", "full-size/"];
        suites.iter().any(|suite| name.starts_with(suite))
    };
    let mut found: Vec<&(bool, Case)> = cases
        .iter()
        .filter(|(_, case)| recorded(&case.name) && case.applies(&subject))
        .collect();
    let proof = if found.iter().any(|(on_request, _)| !on_request) {
        found.retain(|(on_request, _)| !on_request);
        Proof::Recorded
    } else if found.is_empty() {
        Proof::NeverRun
    } else {
        Proof::OnRequest
    };
    let exceptions = found
        .iter()
        .filter(|(_, case)| known::find(&case.name, &subject).is_some())
        .count();
    match exceptions {
        0 => proof.word().to_owned(),
        count => format!("{}, but {count} known exceptions", proof.word()),
    }
}

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

/// What was recorded from the published implementation: networks x checkpoint layouts.
///
/// # Errors
/// A recorded reference that is not what its schema says.
pub fn references() -> Result<String, ReferenceError> {
    let references = workspace::references()?;
    let mut text = "| network | layout | recorded |\n|---|---|---|\n".to_owned();
    for part in Part::ALL {
        for (layout, title) in LAYOUTS {
            let of_layout = references
                .iter()
                .filter(|reference| layout_of(reference) == Some(layout));
            let counts = of_layout.map(|reference: &Arc<Reference>| {
                let count: usize = reference.cases.iter().map(|case| part.count(case)).sum();
                (&reference.name, count)
            });
            let recorded: Vec<String> = counts
                .filter(|&(_, count)| count > 0)
                .map(|(name, count)| format!("{count} in `{name}`"))
                .collect();
            let recorded = match recorded.len() {
                0 => "nothing".to_owned(),
                _ => format!("{}: {}", part.unit(), recorded.join(", ")),
            };
            text.push_str(&format!("| {} | {title} | {recorded} |\n", part.name()));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(table: &str) -> Vec<Vec<&str>> {
        let rows = table.lines().skip(2);
        rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    #[test]
    fn every_network_of_every_layout_is_recorded() {
        let table = references().unwrap();
        let rows = rows(&table);
        assert_eq!(rows.len(), Part::ALL.len() * LAYOUTS.len());
        for row in rows {
            assert!(row.len() == 3 && row[2] != "nothing", "{row:?}");
        }
    }

    #[test]
    fn every_form_is_compared_on_every_engine_that_runs_it() {
        let table = matrix();
        let rows = rows(&table);
        assert_eq!(rows.len(), 11 + 4);
        let tried = [Provider::Cpu, Provider::Tract, Provider::Rten];
        for row in &rows {
            assert_eq!(row.len(), 2 + Engine::ALL.len(), "{row:?}");
            for (provider, cell) in tried.iter().zip(&row[2..]) {
                let runs = provider.forms().into_iter().any(|form| {
                    (row[0], row[1])
                        == (
                            format!("`{}`", form.target().name()).as_str(),
                            form.precision().name(),
                        )
                });
                let expected = if runs { "recorded" } else { "–" };
                assert_eq!(*cell, expected, "{}: {row:?}", provider.name());
            }
        }
        let cell = |target: &str, precision: &str, column: usize| {
            let row = rows.iter().find(|row| row[0] == target && row[1] == precision);
            row.map(|row| row[column])
        };
        assert_eq!(cell("`coreml`", "fp16", 3), Some("–"), "tract has no such Gemm");
        assert_eq!(cell("`coreml`", "fp16", 5), Some("never run"));
        assert_eq!(cell("packages", "q4", 6), Some("interpreter"));
    }

    /// What the matrix says of packages is done by a script, which is part of every check.
    #[test]
    fn packages_of_every_precision_are_evaluated() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let all = CoreMlPackages::PRECISIONS.map(Precision::name).join(" ");
        assert!(read("scripts/check_coreml").contains(&format!("forms='{all}'")));
        assert!(read("scripts/check").contains("scripts/check_coreml"));
    }
}
