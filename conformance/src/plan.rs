//! What is to be tried? The flags, checked against each other and against what is there; nothing is left open.

pub(crate) mod bench;
pub(crate) mod quality;

use crate::cli;
use crate::output::Complaint;
use conformance::golden::{Reference, Source};
use conformance::setup::case::{Case, Findings};
use conformance::setup::error::CaseError;
use conformance::setup::required;
use conformance::setup::subject::{self, Provider, Subject, Variant};
use conformance::setup::workspace::{self, Given};
use conformance::suite::{SUITES, end_to_end, references};
use models::bundle::{Bundle, BundleError};
use std::path::Path;
use std::sync::Arc;

/// Everything that a run needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order of running.
    pub(crate) cases: Vec<Case>,
    /// The columns.
    pub(crate) subjects: Vec<Subject>,
    /// What suites work on.
    pub(crate) given: Given,
    /// Engines that cannot run here and were not asked for.
    pub(crate) missing: Vec<(Provider, String)>,
    /// Remarks about the choice, a line each.
    pub(crate) remarks: Vec<String>,
}

impl Plan {
    /// Checks the flags.
    pub(crate) fn new(flags: &cli::Run) -> Result<Plan, Complaint> {
        let bundle = flags
            .bundle
            .as_deref()
            .map(|path| open_bundle("bundle", path))
            .transpose()?;
        if let Some(checkpoint) = flags.checkpoint.as_deref().filter(|path| !path.is_dir()) {
            return Err(Complaint::new(format!(
                "there is no checkpoint directory `{}`",
                checkpoint.display()
            )));
        }
        let given = bundle.is_some() || flags.reference.is_some();
        if flags.checkpoint.is_some() && !given {
            return Err(Complaint::new("--checkpoint is given alone, expected also --bundle or --reference")
                .hint("--reference names a recording of that checkpoint: conformance/reference/README.md says how to make one"));
        }
        let cases = if given {
            cases_of_given(flags, bundle.as_ref())?
        } else {
            cases_of_suites(flags)?
        };
        let cases = filter(cases, flags)?;
        let (subjects, missing, remarks) = subjects(flags, bundle.as_ref())?;
        let mut forms: Vec<Variant> = Vec::new();
        for subject in subjects.iter().filter(|subject| subject.is_engine()) {
            if !forms.contains(&subject.form) {
                forms.push(subject.form);
            }
        }
        if forms.is_empty() {
            // The interpreter needs a bundle's contract, whatever the form.
            forms.push(Variant::PORTABLE);
        }
        let given = Given {
            bundle: flags.bundle.clone(),
            checkpoint: flags.checkpoint.clone(),
            forms,
        };
        Ok(Plan {
            cases,
            subjects,
            given,
            missing,
            remarks,
        })
    }
}

/// Opens the bundle that a flag names.
fn open_bundle(flag: &str, path: &Path) -> Result<Bundle, Complaint> {
    Bundle::open(path).map_err(|error| {
        Complaint::new(error.to_string()).hint(format!("--{flag} takes a directory that fvlm-export wrote"))
    })
}

/// The suites that are asked for; without a name, those that are not on request.
fn cases_of_suites(flags: &cli::Run) -> Result<Vec<Case>, Complaint> {
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    let unknown: Vec<String> = flags
        .suite
        .iter()
        .filter(|name| !names.contains(&name.as_str()))
        .map(|name| format!("`{name}`"))
        .collect();
    if !unknown.is_empty() {
        return Err(Complaint::new(format!(
            "no suite is named {}, expected one of {}",
            unknown.join(", "),
            names.join(", ")
        )));
    }
    let wanted = SUITES.iter().filter(|suite| match flags.suite.len() {
        0 => !suite.on_request,
        _ => flags.suite.iter().any(|name| name == suite.name),
    });
    Ok(wanted.flat_map(|suite| (suite.cases)()).collect())
}

/// The claims about a given bundle, or of a given reference.
fn cases_of_given(flags: &cli::Run, bundle: Option<&Bundle>) -> Result<Vec<Case>, Complaint> {
    let references = match (&flags.reference, bundle) {
        (Some(path), _) => {
            let reference = Reference::open(path).map_err(|error| {
                Complaint::new(error.to_string())
                    .hint("--reference takes the .json file that record.py wrote; the .safetensors file lies beside it")
            })?;
            if matches!(reference.checkpoint, Source::External { .. })
                && bundle.is_none()
                && flags.checkpoint.is_none()
            {
                return Err(Complaint::new(
                    "the reference is of a checkpoint that is not part of this program",
                )
                .hint("--bundle names its bundle, or --checkpoint the checkpoint itself"));
            }
            vec![Arc::new(reference)]
        }
        (None, Some(bundle)) => embedded_references(bundle)?,
        (None, None) => Vec::new(),
    };
    let mut cases = Vec::new();
    if let Some(directory) = flags.bundle.clone() {
        let claim = "every file of the bundle has the length and SHA-256 that its contract states";
        cases.push(Case::once("bundle/integrity", claim, move |_| {
            verified(&directory, |bundle| bundle.verify(&directory, &|_| ()))
        }));
    }
    // The source of an adopted bundle is its graphs.
    let adopted = bundle.is_some_and(|bundle| bundle.variants.iter().any(|variant| variant.is_adopted()));
    let both = flags.bundle.clone().zip(flags.checkpoint.clone());
    if let Some((directory, checkpoint)) = both.filter(|_| !adopted) {
        let claim = "the checkpoint's files are those that the bundle's contract says it was exported from";
        cases.push(Case::once("bundle/source", claim, move |_| {
            verified(&directory, |bundle| bundle.verify_source(&checkpoint))
        }));
    }
    cases.extend(references::of("references", &references, |_| true));
    cases.extend(end_to_end::of("end_to_end", &references, Subject::is_engine));
    cases.retain(|case| {
        flags.suite.is_empty()
            || flags
                .suite
                .iter()
                .any(|name| case.name.split('/').next() == Some(name))
    });
    let known = ["bundle", "references", "end_to_end"];
    let mut unknown = flags.suite.clone();
    unknown.retain(|name| !known.contains(&name.as_str()));
    if cases.is_empty() || !unknown.is_empty() {
        let named = if unknown.is_empty() {
            &flags.suite
        } else {
            &unknown
        };
        return Err(Complaint::new(format!(
            "no suite about a given bundle is named {}",
            quoted(named)
        ))
        .hint("with --bundle or --reference there are bundle, references and end_to_end"));
    }
    Ok(cases)
}

/// What is wrong with a bundle, as a case finds it.
fn verified(
    directory: &Path,
    verify: impl FnOnce(&Bundle) -> Result<(), BundleError>,
) -> Result<Findings, CaseError> {
    let failed = |error: BundleError| CaseError::failed("checking the bundle", &error);
    let mut findings = Findings::default();
    match verify(&Bundle::open(directory).map_err(failed)?) {
        Ok(()) => {}
        Err(BundleError::Broken { problems, .. }) => findings.problems = problems,
        Err(error) => return Err(failed(error)),
    }
    Ok(findings)
}

/// The compiled-in references of the weights that a bundle was exported from.
fn embedded_references(bundle: &Bundle) -> Result<Vec<Arc<Reference>>, Complaint> {
    let mut references = workspace::references().map_err(|error| Complaint::new(error.to_string()))?;
    references.retain(|reference| match &reference.checkpoint {
        Source::Directory {
            sha256: Some(sha256), ..
        } => bundle.adapters.is_empty() && bundle.source.iter().any(|file| file.sha256 == *sha256),
        _ => false,
    });
    if references.is_empty() {
        return Err(Complaint::new(format!(
            "no compiled-in reference is of the weights of this bundle, `{}`",
            bundle.model.name
        ))
        .hint("record one with conformance/reference/record.py and give it with --reference"));
    }
    Ok(references)
}

fn quoted(names: &[String]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn filter(mut cases: Vec<Case>, flags: &cli::Run) -> Result<Vec<Case>, Complaint> {
    let Some(pattern) = &flags.case else {
        return Ok(cases);
    };
    let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
    cases.retain(|case| matches(pattern, &case.name));
    if cases.is_empty() {
        let example = names
            .first()
            .map(|name| format!(", for example `{name}`"))
            .unwrap_or_default();
        return Err(Complaint::new(format!(
            "no case matches `{pattern}`, there are {}{example}",
            names.len()
        ))
        .hint("`fvlm-conform list` shows all; suites on request must be named with --suite"));
    }
    Ok(cases)
}

/// Whether the name contains the pattern; with `*` for anything in it, whether the whole name is like it.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let (Some(first), true) = (parts.next(), pattern.contains('*')) else {
        return name.contains(pattern);
    };
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(place) = rest.find(part) else {
            return false;
        };
        rest = &rest[place + part.len()..];
    }
    rest.ends_with(last)
}

type Subjects = (Vec<Subject>, Vec<(Provider, String)>, Vec<String>);

/// Who is put to the test: what is asked for must be there, what is not asked for may be missing.
fn subjects(flags: &cli::Run, bundle: Option<&Bundle>) -> Result<Subjects, Complaint> {
    let options = runtime::Options::default().with_onnxruntime(flags.onnxruntime.clone());
    let asked = |provider: Provider| flags.provider.contains(&provider);
    let mut providers = Provider::ALL.to_vec();
    providers.retain(|&provider| flags.provider.is_empty() || asked(provider));
    let (mut subjects, missing) = subject::available(&providers, &options);
    if let Some((_, reason)) = missing.iter().find(|(provider, _)| asked(*provider)) {
        return Err(Complaint::new(reason.clone()).hint("leave out --provider to take what works here"));
    }
    required::check(&missing).map_err(Complaint::new)?;
    let mut remarks = Vec::new();
    let wanted = |form: Variant| {
        (flags.target.is_empty() || flags.target.contains(&form.target()))
            && (flags.precision.is_empty() || flags.precision.contains(&form.precision()))
    };
    subjects.retain(|subject| wanted(subject.form));
    if let Some(bundle) = bundle {
        let held = |form: Variant| {
            let mut variants = bundle.variants.iter();
            variants.any(|variant| variant.target == form.target() && variant.precision == form.precision())
        };
        check_held(flags, bundle)?;
        subjects.retain(|subject| subject.is_interpreter() || held(subject.form));
        if flags.checkpoint.is_none() {
            if asked(Provider::Interpreter) {
                return Err(
                    Complaint::new("the interpreter needs the checkpoint behind the bundle")
                        .hint("--checkpoint names it"),
                );
            }
            subjects.retain(|subject| !subject.is_interpreter());
            remarks.push(
                "the interpreter and tensors inside the encoder are left out: --checkpoint is not given"
                    .to_owned(),
            );
        }
    }
    if subjects.is_empty() {
        let reasons: Vec<&str> = missing.iter().map(|(_, reason)| reason.as_str()).collect();
        let reasons = if reasons.is_empty() {
            String::new()
        } else {
            format!(": {}", reasons.join("; "))
        };
        return Err(
            Complaint::new(format!("there is nothing to put to the test{reasons}"))
                .hint("the interpreter computes in fp32 only; --onnxruntime names ONNX Runtime's library"),
        );
    }
    Ok((subjects, missing, remarks))
}

/// What is asked for by name must be in the bundle.
fn check_held(flags: &cli::Run, bundle: &Bundle) -> Result<(), Complaint> {
    let precisions: Vec<&str> = bundle
        .variants
        .iter()
        .map(|variant| variant.precision.name())
        .collect();
    let targets: Vec<&str> = bundle
        .variants
        .iter()
        .map(|variant| variant.target.name())
        .collect();
    let absent = |asked: &[&str], found: &[&str], flag: &str| {
        let absent = asked.iter().find(|name| !found.contains(name))?;
        let problem = format!("the bundle has no {absent} variant, found {}", found.join(", "));
        let hint = format!("fvlm-export --{flag} can be given several times");
        Some(Complaint::new(problem).hint(hint))
    };
    let asked: Vec<&str> = flags.precision.iter().map(|precision| precision.name()).collect();
    let problem = absent(&asked, &precisions, "precision");
    let asked: Vec<&str> = flags.target.iter().map(|target| target.name()).collect();
    if let Some(complaint) = problem.or_else(|| absent(&asked, &targets, "target")) {
        return Err(complaint);
    }
    // Each word may be that of another variant.
    let both = !flags.target.is_empty() && !flags.precision.is_empty();
    let mut variants = bundle.variants.iter();
    let is_asked = |target, precision| flags.target.contains(&target) && flags.precision.contains(&precision);
    if both && !variants.any(|variant| is_asked(variant.target, variant.precision)) {
        let held: Vec<String> = targets
            .iter()
            .zip(&precisions)
            .map(|(target, precision)| format!("{target} {precision}"))
            .collect();
        return Err(Complaint::new(format!(
            "the bundle has no variant of these targets in these precisions, found {}",
            held.join(", ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("add", "ops/add/plain", true),
            ("ops/add", "ops/add/plain", true),
            ("sub", "ops/add/plain", false),
            ("ops/*/plain", "ops/add/plain", true),
            ("ops/*/broadcast", "ops/add/plain", false),
            ("*plain", "ops/add/plain", true),
            ("*add", "ops/add/plain", false),
            ("ops/*", "ops/add/plain", true),
            ("add/*", "ops/add/plain", false),
            ("*", "ops/add/plain", true),
            ("ops/*d*/pl*n", "ops/add/plain", true),
            ("a*a", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
