//! What is to be compared? The flags of `quality`, checked against each other and against the bundles.

use crate::cli::quality::Quality;
use crate::output::Complaint;
use crate::plan::bench::{check_apart, check_file};
use crate::plan::{embedded_references, open_bundle};
use conformance::loaded::{self, Combination};
use conformance::quality::Settings;
use models::bundle::Bundle;
use models::checkpoint::SINGLE;
use runtime::{Options, Precision, Provider, Target};
use std::path::{Path, PathBuf};

/// The form that is the reference where no other is named.
const REFERENCE: (Target, Precision) = (Target::Portable, Precision::Fp32);

/// What files of weights end with.
const WEIGHTS: [&str; 4] = [".safetensors", ".bin", ".pt", ".pth"];

/// Most positions: more than any model holds.
const MAX_POSITIONS: usize = 10_000_000;

/// A form of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form {
    /// The bundle's directory.
    pub(crate) directory: PathBuf,
    /// Which of its variants, and on which engine.
    pub(crate) combination: Combination,
}

/// Whom everything is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// What another tool computed.
    File(PathBuf),
    /// A form of ours.
    Form(Form),
}

/// Everything that a comparison needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is fed.
    pub(crate) settings: Settings,
    /// How engines are opened.
    pub(crate) options: Options,
    /// The first bundle, whose shape all have.
    pub(crate) bundle: Bundle,
    /// Whom everything is compared with.
    pub(crate) reference: Reference,
    /// SHA-256 of the weights that the reference's bundle was exported from, where they are in one file.
    pub(crate) weights: Option<String>,
    /// What is compared, without the reference.
    pub(crate) forms: Vec<Form>,
    /// Whether several bundles are compared, so that a form alone says too little.
    pub(crate) several: bool,
    /// What other tools computed.
    pub(crate) files: Vec<PathBuf>,
    /// Of which form everything is written, and where.
    pub(crate) dump: Option<(Form, PathBuf)>,
    /// Whether the demo model's questions are asked.
    pub(crate) demo_eval: bool,
    /// Whether greedy answers are compared.
    pub(crate) agreement: bool,
    /// What other tools answered.
    pub(crate) answers: Vec<PathBuf>,
    /// Remarks about the choice, a line each.
    pub(crate) remarks: Vec<String>,
}

impl Plan {
    /// Checks the flags.
    pub(crate) fn new(flags: &Quality) -> Result<Plan, Complaint> {
        check_numbers(flags)?;
        // Not clap's `requires` alone, which is silent beside --reference, with which --agreement conflicts.
        if !flags.answers.is_empty() && !flags.agreement {
            return Err(
                Complaint::new("--answers is about --agreement, which is not given")
                    .hint("--agreement asks the reference, so it is a bundle: without --reference"),
            );
        }
        let options = Options::default()
            .with_fallback(false)
            .with_onnxruntime(flags.onnxruntime.clone())
            .with_threads(flags.threads);
        let mut bundles = Vec::new();
        for path in &flags.model {
            bundles.push((path.as_path(), open_bundle("model", path)?));
        }
        let all: Vec<&Bundle> = bundles.iter().map(|(_, bundle)| bundle).collect();
        let named = loaded::forms(&all, &flags.target, &flags.precision).map_err(|problem| {
            Complaint::new(problem).hint("fvlm-export --target and --precision can be given several times")
        })?;
        let against = match &flags.against {
            Some(path) => Some((path.as_path(), open_bundle("against", path)?)),
            None => None,
        };
        let mut remarks = Vec::new();
        check_shapes(&bundles, against.as_ref(), &mut remarks)?;
        if flags.demo_eval {
            for (path, bundle) in &bundles {
                embedded_references(bundle).map_err(|_| {
                    Complaint::new(format!(
                        "--demo-eval is given, but `{}` is of `{}`, expected the demo model",
                        path.display(),
                        bundle.model.name
                    ))
                    .hint("fvlm-export without --model exports the demo model")
                })?;
            }
        }
        for path in flags.compare.iter().chain(&flags.reference).chain(&flags.answers) {
            // Read when its turn comes; that it can be is known now.
            models::regular::open(path)
                .map_err(|error| Complaint::new(format!("cannot read `{}`: {error}", path.display())))?;
        }
        loaded::picture(flags.image.as_deref()).map_err(|error| Complaint::new(error.to_string()))?;
        if let Some(path) = &flags.dump {
            check_file("dump", path)?;
            let read = flags
                .model
                .iter()
                .chain(&flags.against)
                .chain(&flags.compare)
                .chain(&flags.answers);
            let read = read.chain(&flags.reference).chain(&flags.image);
            check_apart("dump", path, read.map(PathBuf::as_path))?;
        }
        let provider = provider(flags.provider, &options)?;
        let form = |directory: &Path, (target, precision): (Target, Precision)| Form {
            directory: directory.to_owned(),
            combination: Combination {
                provider,
                target,
                precision,
            },
        };
        let reference = match (&flags.reference, &against, bundles.first()) {
            (Some(path), _, _) => Reference::File(path.clone()),
            (None, Some((path, bundle)), _) | (None, None, Some((path, bundle))) => {
                check_reference(path, bundle)?;
                Reference::Form(form(path, REFERENCE))
            }
            (None, None, None) => return Err(Complaint::new("no bundle is given, expected --model")),
        };
        let mut forms: Vec<Form> = named
            .iter()
            .filter_map(|(number, target, precision)| {
                let (directory, _) = bundles.get(*number)?;
                Some(form(directory, (*target, *precision)))
            })
            .collect();
        let dump = dump(flags, &forms)?;
        forms.retain(|form| reference != Reference::Form(form.clone()));
        if forms.is_empty() && flags.compare.is_empty() && flags.answers.is_empty() && dump.is_none() {
            return Err(Complaint::new(
                "there is nothing to compare with the reference: no other form and no file",
            )
            .hint("fvlm-export --precision can be given several times; --compare names what other tools computed"));
        }
        let bundle = bundles.swap_remove(0).1;
        let compared_with = against.as_ref().map_or(&bundle, |(_, against)| against);
        let weights = compared_with.source.iter().find(|file| file.path == SINGLE);
        // Of a model with adapters, nobody else has a name.
        let weights = weights.filter(|_| compared_with.adapters.is_empty());
        Ok(Plan {
            settings: Settings {
                image: flags.image.clone(),
                text_only: flags.text_only,
                prompt: flags.prompt.clone(),
                positions: flags.positions,
            },
            options,
            weights: weights.map(|file| file.sha256.clone()),
            bundle,
            reference,
            forms,
            several: flags.model.len() > 1,
            files: flags.compare.clone(),
            dump,
            demo_eval: flags.demo_eval,
            agreement: flags.agreement,
            answers: flags.answers.clone(),
            remarks,
        })
    }
}

fn check_numbers(flags: &Quality) -> Result<(), Complaint> {
    let mut problems = Vec::new();
    if flags.positions == 0 || flags.positions > MAX_POSITIONS {
        problems.push(format!(
            "--positions is {}, expected 1 to {MAX_POSITIONS}",
            flags.positions
        ));
    }
    if let Some(threads) = flags
        .threads
        .filter(|threads| !(1..=Options::MAX_THREADS).contains(threads))
    {
        problems.push(format!(
            "--threads is {threads}, expected 1 to {}",
            Options::MAX_THREADS
        ));
    }
    if flags.prompt.trim().is_empty() {
        problems.push("--prompt is empty, expected a question".to_owned());
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Complaint::new(problems.join("; "))),
    }
}

/// Whether all bundles have the shape of the first; different weights are remarked on.
fn check_shapes(
    bundles: &[(&Path, Bundle)],
    against: Option<&(&Path, Bundle)>,
    remarks: &mut Vec<String>,
) -> Result<(), Complaint> {
    let shape = |bundle: &Bundle| {
        (
            bundle.prompt.vocab_size,
            bundle.prompt.hidden_size,
            bundle.image.tokens,
        )
    };
    let weights = |bundle: &Bundle| -> Vec<String> {
        let adapters = bundle.adapters.iter().flat_map(|adapter| &adapter.files);
        let files = bundle.source.iter().chain(adapters);
        let files = files.filter(|file| WEIGHTS.iter().any(|ending| file.path.ends_with(ending)));
        files.map(|file| file.sha256.clone()).collect()
    };
    let Some((first, expected)) = bundles.first() else {
        return Ok(());
    };
    for (path, bundle) in bundles.iter().skip(1).chain(against) {
        let (a, b) = (shape(bundle), shape(expected));
        if a != b {
            return Err(Complaint::new(format!(
                "`{}` has {} tokens of length {} and {} features an image, expected {}, {} and {} as `{}`",
                path.display(),
                a.0,
                a.1,
                a.2,
                b.0,
                b.1,
                b.2,
                first.display()
            )));
        }
        if weights(bundle) != weights(expected) {
            remarks.push(format!(
                "`{}` and `{}` were exported from different files of weights",
                path.display(),
                first.display()
            ));
        }
    }
    Ok(())
}

/// Whether a bundle has the form that is the reference.
fn check_reference(path: &Path, bundle: &Bundle) -> Result<(), Complaint> {
    let (target, precision) = REFERENCE;
    let has = bundle
        .variants
        .iter()
        .any(|variant| variant.target == target && variant.precision == precision);
    if has {
        return Ok(());
    }
    let found: Vec<String> = bundle
        .variants
        .iter()
        .map(|variant| format!("{} {}", variant.target, variant.precision))
        .collect();
    Err(Complaint::new(format!(
        "`{}` has no {target} {precision} to compare with, found {}",
        path.display(),
        found.join(", ")
    ))
    .hint("--against names a bundle that has, --reference what another tool computed"))
}

/// Who computes.
fn provider(asked: Provider, options: &Options) -> Result<Provider, Complaint> {
    let (providers, _) = loaded::providers(&[asked], options).map_err(|error| {
        Complaint::new(error.to_string()).hint("leave out --provider to take what works here")
    })?;
    providers
        .first()
        .copied()
        .ok_or_else(|| Complaint::new("no engine works here"))
}

/// The form whose results are written: there must be one only.
fn dump(flags: &Quality, forms: &[Form]) -> Result<Option<(Form, PathBuf)>, Complaint> {
    match (&flags.dump, forms) {
        (None, _) => Ok(None),
        (Some(path), [form]) => Ok(Some((form.clone(), path.clone()))),
        (Some(_), several) => Err(
            Complaint::new(format!("--dump writes one form, found {}", several.len()))
                .hint("--target and --precision choose it"),
        ),
    }
}
