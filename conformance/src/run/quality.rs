//! `fvlm-conform quality`: one form after the other, so that two are never in memory at once.

use crate::cli::quality::Quality;
use crate::output::{self, Complaint};
use crate::plan::quality::{Form, Plan, Reference};
use conformance::loaded::{Loaded, picture_name};
use conformance::quality::agreement::{self, Answer};
use conformance::quality::collect::{self, Compared};
use conformance::quality::script::Script;
use conformance::quality::{ExactMatch, Other, Recording, Report, Row, SCHEMA, demo, file, table};
use conformance::setup::error::CaseError;
use indicatif::ProgressBar;
use std::path::Path;
use std::process::ExitCode;

/// `fvlm-conform quality`
pub(crate) fn quality(flags: &Quality) -> Result<ExitCode, Complaint> {
    let plan = Plan::new(flags)?;
    if !flags.quiet {
        plan.remarks.iter().for_each(|remark| output::tell(remark));
    }
    let bar = output::progress(flags.quiet, "{pos}/{len} {elapsed} {msg}");
    let steps = 1 + plan.forms.len() + plan.files.len();
    bar.set_length(steps as u64);
    let report = Comparison {
        plan: &plan,
        bar: &bar,
    }
    .carry_out()
    .map_err(|error| Complaint::new(error.to_string()))?;
    bar.finish_and_clear();
    if let (Some((form, path)), false) = (&plan.dump, flags.quiet) {
        output::tell(&format!("{} is in {}", form.combination.name(), path.display()));
    }
    let text = match (flags.json, flags.markdown) {
        (true, _) => {
            let json = serde_json::to_string(&report);
            let json =
                json.map_err(|error| Complaint::new(format!("what was compared has no JSON form: {error}")))?;
            output::write_json(&(json + "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        // Nothing but a file was asked for.
        _ if report.results.is_empty() => String::new(),
        (_, true) => table::markdown(&report),
        _ => table::plain(&report),
    };
    output::write(&text)?;
    Ok(ExitCode::SUCCESS)
}

struct Comparison<'a> {
    plan: &'a Plan,
    bar: &'a ProgressBar,
}

/// The reference, and the script that it was made of.
struct Known {
    recording: Recording,
    demo_eval: Option<ExactMatch>,
    answers: Option<Vec<Answer>>,
}

impl Comparison<'_> {
    fn carry_out(&self) -> Result<Report, CaseError> {
        let plan = self.plan;
        let reference = self.reference()?;
        let mut results = Vec::new();
        for form in &plan.forms {
            results.push(self.form(form, &reference)?);
        }
        for path in &plan.files {
            results.push(self.file(path, &reference.recording)?);
        }
        let others = match &reference.answers {
            Some(answers) => self.others(answers)?,
            None => Vec::new(),
        };
        let settings = &plan.settings;
        Ok(Report {
            schema: SCHEMA,
            tool: concat!("fvlm-conform ", env!("CARGO_PKG_VERSION")),
            model: plan.bundle.model.name.clone(),
            image: (!settings.text_only).then(|| picture_name(settings.image.as_deref())),
            prompt: settings.prompt.clone(),
            prompt_tokens: reference.recording.prompt_ids.len(),
            positions: reference.recording.token_ids.len(),
            reference: reference.recording.name,
            reference_demo_eval: reference.demo_eval,
            results,
            others,
        })
    }

    /// How often other tools answered as the reference does.
    fn others(&self, reference: &[Answer]) -> Result<Vec<Other>, CaseError> {
        let mut others = Vec::new();
        if self.plan.answers.is_empty() {
            return Ok(others);
        }
        let weights = self.plan.weights.as_deref().ok_or_else(|| CaseError::Failed {
            context: "comparing with the answers of others".to_owned(),
            message: "the bundle's weights were in several files, expected one, by which they are told apart"
                .to_owned(),
        })?;
        for path in &self.plan.answers {
            for recorded in agreement::read(path)? {
                recorded.check(reference, weights)?;
                others.push(Other {
                    agreement: agreement::agreement(&recorded.answers, reference),
                    name: recorded.name,
                });
            }
        }
        Ok(others)
    }

    fn answers(&self, loaded: &Loaded) -> Result<Option<Vec<Answer>>, CaseError> {
        match self.plan.agreement {
            true => agreement::answers(&loaded.model).map(Some),
            false => Ok(None),
        }
    }

    /// Computes the reference, or reads it.
    fn reference(&self) -> Result<Known, CaseError> {
        match &self.plan.reference {
            Reference::File(path) => {
                self.bar.inc(1);
                Ok(Known {
                    recording: file::read(path)?,
                    demo_eval: None,
                    answers: None,
                })
            }
            Reference::Form(form) => {
                let (mut loaded, script) = self.open(form)?;
                let recording = collect::record(&form.combination.name(), &mut loaded, &script)?;
                self.dump(form, &recording, &script)?;
                let demo_eval = self.demo_eval(&loaded)?;
                let answers = self.answers(&loaded)?;
                self.bar.inc(1);
                Ok(Known {
                    recording,
                    demo_eval,
                    answers,
                })
            }
        }
    }

    fn open(&self, form: &Form) -> Result<(Loaded, Script), CaseError> {
        self.bar.set_message(form.combination.name());
        let loaded = Loaded::open(&form.directory, &form.combination, &self.plan.options)?;
        let script = Script::of(&self.plan.settings, &loaded.model)?;
        Ok((loaded, script))
    }

    fn demo_eval(&self, loaded: &Loaded) -> Result<Option<ExactMatch>, CaseError> {
        match self.plan.demo_eval {
            true => demo::exact_match(&loaded.model).map(Some),
            false => Ok(None),
        }
    }

    /// Writes what was computed of a form, where that is the one.
    fn dump(&self, form: &Form, recording: &Recording, script: &Script) -> Result<(), CaseError> {
        let settings = &self.plan.settings;
        let image = (!settings.text_only).then(|| picture_name(settings.image.as_deref()));
        match &self.plan.dump {
            Some((wanted, path)) if wanted == form => {
                file::write(path, recording, image.as_deref(), script.pixels.as_ref())
            }
            _ => Ok(()),
        }
    }

    fn form(&self, form: &Form, known: &Known) -> Result<Row, CaseError> {
        let reference = &known.recording;
        let (mut loaded, script) = self.open(form)?;
        reference.check(&script.facts(loaded.bundle()))?;
        if self.plan.dump.is_some() {
            let recording = collect::record(&form.combination.name(), &mut loaded, &script)?;
            self.dump(form, &recording, &script)?;
        }
        let compared = collect::compare(&mut loaded, &script, reference)?;
        let demo_eval = self.demo_eval(&loaded)?;
        let answers = self.answers(&loaded)?;
        let agreement = answers.zip(known.answers.as_ref());
        let agreement = agreement.map(|(found, reference)| agreement::agreement(&found, reference));
        self.bar.inc(1);
        let bundle = form.directory.file_name().unwrap_or(form.directory.as_os_str());
        let bundle = bundle.to_string_lossy().into_owned();
        let name = form.combination.name();
        Ok(row(
            if self.plan.several {
                format!("{bundle}: {name}")
            } else {
                name
            },
            Some((bundle, form)),
            compared,
            [demo_eval, agreement],
        ))
    }

    fn file(&self, path: &Path, reference: &Recording) -> Result<Row, CaseError> {
        self.bar.set_message(path.display().to_string());
        let found = file::read(path)?;
        found.check(&reference.facts())?;
        let compared = collect::compare_recorded(&found, reference)?;
        self.bar.inc(1);
        Ok(row(found.name, None, compared, [None, None]))
    }
}

fn row(
    name: String,
    form: Option<(String, &Form)>,
    compared: Compared,
    [demo_eval, agreement]: [Option<ExactMatch>; 2],
) -> Row {
    let (bundle, form) = form.unzip();
    Row {
        name,
        bundle,
        combination: form.map(|form| form.combination.clone()),
        features_relative_l2: compared.features,
        end_to_end: compared.end_to_end,
        decoder_alone: compared.decoder_alone,
        demo_eval,
        agreement,
    }
}
