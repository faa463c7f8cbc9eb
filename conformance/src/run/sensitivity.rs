//! `fvlm-conform sensitivity` and `fvlm-conform calibrate`.

use crate::cli::sensitivity::{Calibrate, Sensitivity};
use crate::output::{self, Complaint};
use crate::plan::bench::check_file;
use conformance::quality::{calibrate, sensitivity};
use conformance::setup::subject::{Precision, Provider};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::TempDir;

/// A checkpoint that is a directory now; the demo model's goes away with the value.
struct Source {
    directory: PathBuf,
    _made: Option<TempDir>,
}

impl Source {
    fn of(named: &Path) -> Result<Source, Complaint> {
        if named != Path::new("demo") {
            return Ok(Source {
                directory: named.to_owned(),
                _made: None,
            });
        }
        let complaint =
            |error: &dyn std::error::Error| Complaint::new(format!("cannot write the demo model: {error}"));
        let made = tempfile::tempdir().map_err(|error| complaint(&error))?;
        exporter::demo::extract(made.path()).map_err(|error| complaint(&error))?;
        Ok(Source {
            directory: made.path().to_owned(),
            _made: Some(made),
        })
    }
}

/// How the engine is opened, if it works here.
fn options(provider: Provider, onnxruntime: Option<&PathBuf>) -> Result<runtime::Options, Complaint> {
    if provider == Provider::Interpreter {
        return Err(Complaint::new(
            "--provider interpreter has no kernels, expected cpu or tract",
        ));
    }
    let options = runtime::Options::default()
        .with_fallback(false)
        .with_onnxruntime(onnxruntime.cloned());
    provider
        .usable(&options)
        .map_err(|error| Complaint::new(error.to_string()))?;
    Ok(options)
}

/// `fvlm-conform sensitivity`
pub(crate) fn sensitivity(flags: &Sensitivity) -> Result<ExitCode, Complaint> {
    if !(1..=100).contains(&flags.scenes) {
        return Err(Complaint::new(format!(
            "--scenes is {}, expected 1 to 100",
            flags.scenes
        )));
    }
    let rounded = [Precision::Int8, Precision::Q4];
    let precisions = if flags.precision.is_empty() {
        &rounded[..]
    } else {
        &flags.precision
    };
    if let Some(other) = precisions.iter().find(|precision| !rounded.contains(precision)) {
        return Err(Complaint::new(format!(
            "--precision {other} rounds no products, expected int8 or q4"
        )));
    }
    let source = Source::of(&flags.checkpoint)?;
    let options = options(flags.provider, flags.onnxruntime.as_ref())?;
    let bar = output::progress(flags.quiet, "{elapsed} {msg}");
    for precision in precisions {
        let settings = sensitivity::Settings {
            checkpoint: source.directory.clone(),
            calibration: flags.calibration.clone(),
            precision: *precision,
            scenes: flags.scenes,
            provider: flags.provider,
            options: options.clone(),
        };
        let mut tell = |what: &str| bar.set_message(format!("{precision}: {what}"));
        let rows = sensitivity::measure(&settings, &mut tell);
        let rows = rows.map_err(|error| Complaint::new(error.to_string()))?;
        let table = sensitivity::table(&rows, flags.markdown);
        bar.suspend(|| output::write(&format!("{table}\n")))?;
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// `fvlm-conform calibrate`
pub(crate) fn calibrate(flags: &Calibrate) -> Result<ExitCode, Complaint> {
    check_file("output", &flags.output)?;
    if !(1..=4096).contains(&flags.answer_tokens) {
        return Err(Complaint::new(format!(
            "--answer-tokens is {}, expected 1 to 4096",
            flags.answer_tokens
        )));
    }
    let images = images(&flags.images)?;
    let source = Source::of(&flags.checkpoint)?;
    let settings = calibrate::Settings {
        checkpoint: source.directory.clone(),
        images,
        prompts: flags.prompt.clone(),
        answer_tokens: flags.answer_tokens,
        provider: flags.provider,
        options: options(flags.provider, flags.onnxruntime.as_ref())?,
    };
    let bar = output::progress(flags.quiet, "{elapsed} {msg}");
    let found = calibrate::calibrate(&settings, &mut |what| bar.set_message(what.to_owned()))
        .and_then(|found| found.write(&flags.output).map(|()| found));
    bar.finish_and_clear();
    let found = found.map_err(|error| Complaint::new(error.to_string()))?;
    if !flags.quiet {
        output::tell(&format!(
            "statistics of {} images and {} positions are in {}",
            found.images,
            found.positions,
            flags.output.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that are named, and those in folders that are, sorted by name.
fn images(named: &[PathBuf]) -> Result<Vec<PathBuf>, Complaint> {
    let mut images = Vec::new();
    for path in named {
        let complaint =
            |error: std::io::Error| Complaint::new(format!("cannot read `{}`: {error}", path.display()));
        if !path.is_dir() {
            models::regular::open(path).map_err(complaint)?;
            images.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(complaint)? {
            let file = entry.map_err(complaint)?.path();
            let ending = file.extension().map(|ending| ending.to_ascii_lowercase());
            if ending.is_some_and(|ending| ["png", "jpg", "jpeg"].iter().any(|known| ending == *known)) {
                inside.push(file);
            }
        }
        if inside.is_empty() {
            return Err(Complaint::new(format!(
                "`{}` has no images, expected PNG or JPEG files",
                path.display()
            )));
        }
        inside.sort();
        images.extend(inside);
    }
    Ok(images)
}
