//! What is to be measured? The flags of `bench`, checked against each other and against the bundle.

use crate::cli::bench::Bench;
use crate::output::Complaint;
use crate::plan::open_bundle;
use conformance::bench::Settings;
use conformance::loaded::{self, Combination, Missing};
use runtime::{MAX_TOKENS, Options};
use std::path::Path;

/// Most rounds, and runs before the one that counts.
const MAX_RUNS: usize = 1000;
/// Most scenes that are described.
const MAX_SCENES: usize = 100_000;
/// Most scenes that are described at once.
const MAX_BATCH: usize = 64;

/// Everything that a bench needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What each process is told.
    pub(crate) settings: Settings,
    /// The model's name.
    pub(crate) model: String,
    /// Height and width of `pixel_values`.
    pub(crate) image_size: [u32; 2],
    /// In the order of a round.
    pub(crate) combinations: Vec<Combination>,
    /// Engines that cannot run here and were not asked for.
    pub(crate) missing: Vec<Missing>,
}

impl Plan {
    /// Checks the flags; all problems with numbers at once.
    pub(crate) fn new(flags: &Bench) -> Result<Plan, Complaint> {
        check_numbers(flags)?;
        let settings = Settings {
            model: flags.model.clone(),
            image: flags.image.clone(),
            prompt: flags.prompt.clone(),
            image_size: flags.image_size,
            threads: flags.threads,
            onnxruntime: flags.onnxruntime.clone(),
            warm_up: flags.warm_up,
            repeat: flags.repeat,
            decode_tokens: flags.decode_tokens,
            scenes: flags.scenes,
            batch: flags.batch,
        };
        let mut bundle = open_bundle("model", &flags.model)?;
        if let Some(side) = flags.image_size {
            bundle = runtime::at_image_size(&bundle, side).map_err(|error| {
                Complaint::new(error.to_string()).hint("fvlm-export --image-size adds one")
            })?;
        }
        let forms = loaded::forms(&[&bundle], &flags.target, &flags.precision).map_err(|problem| {
            Complaint::new(problem).hint("fvlm-export --target and --precision can be given several times")
        })?;
        if let Some(plot) = &flags.plot {
            check_file("plot", plot)?;
            check_apart(
                "plot",
                plot,
                flags.image.as_deref().into_iter().chain([flags.model.as_path()]),
            )?;
        }
        // Better now than in every process.
        loaded::picture(flags.image.as_deref()).map_err(|error| Complaint::new(error.to_string()))?;
        let (providers, missing) =
            loaded::providers(&flags.provider, &settings.options()).map_err(|error| {
                Complaint::new(error.to_string()).hint("leave out --provider to take what works here")
            })?;
        let combinations = providers.iter().flat_map(|&provider| {
            forms.iter().map(move |(_, target, precision)| Combination {
                provider,
                target: *target,
                precision: *precision,
            })
        });
        Ok(Plan {
            combinations: combinations.collect(),
            model: bundle.model.name,
            image_size: [bundle.image.height, bundle.image.width],
            settings,
            missing,
        })
    }

    /// What a child measures: its parent checked the flags.
    pub(crate) fn of_child(flags: &Bench) -> Result<(Settings, Combination), Complaint> {
        let plan = Plan::new(flags)?;
        match <[Combination; 1]>::try_from(plan.combinations) {
            Ok([combination]) => Ok((plan.settings, combination)),
            Err(several) => Err(Complaint::new(format!(
                "{} combinations, expected one of a process that measures",
                several.len()
            ))),
        }
    }
}

fn check_numbers(flags: &Bench) -> Result<(), Complaint> {
    let mut problems = Vec::new();
    let mut range = |flag: &str, found: usize, least: usize, most: usize| {
        if found < least || found > most {
            problems.push(format!("--{flag} is {found}, expected {least} to {most}"));
        }
    };
    range("warm-up", flags.warm_up, 0, MAX_RUNS);
    range("repeat", flags.repeat, 1, MAX_RUNS);
    range("decode-tokens", flags.decode_tokens, 1, MAX_TOKENS);
    range("scenes", flags.scenes, 0, MAX_SCENES);
    range("batch", flags.batch, 1, MAX_BATCH);
    if let Some(threads) = flags.threads {
        range("threads", threads, 1, Options::MAX_THREADS);
    }
    if flags.prompt.trim().is_empty() {
        problems.push("--prompt is empty, expected a question".to_owned());
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Complaint::new(problems.join("; "))),
    }
}

/// Whether a file that is written is none that is read: not an input itself, nor in a folder that is one.
pub(crate) fn check_apart<'a>(
    flag: &str,
    path: &Path,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Complaint> {
    let Ok(whole) = path.canonicalize() else {
        return Ok(());
    };
    let holds = |input: &&Path| input.canonicalize().is_ok_and(|input| whole.starts_with(input));
    match inputs.into_iter().find(holds) {
        Some(input) => Err(Complaint::new(format!(
            "--{flag} is `{}`, which is read as `{}`, expected another file",
            path.display(),
            input.display()
        ))),
        None => Ok(()),
    }
}

/// Whether a file can be written there: known before minutes of work.
pub(crate) fn check_file(flag: &str, path: &Path) -> Result<(), Complaint> {
    if path.is_dir() {
        return Err(Complaint::new(format!(
            "--{flag} is `{}`, which is a directory, expected the name of a file",
            path.display()
        )));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent.filter(|parent| !parent.is_dir()) {
        Some(parent) => Err(Complaint::new(format!(
            "--{flag} is `{}`, but there is no directory `{}`",
            path.display(),
            parent.display()
        ))),
        None => Ok(()),
    }
}
