//! `fvlm-conform sensitivity` and `fvlm-conform calibrate`.

use crate::cli::sensitivity::{Calibrate, Sensitivity};
use crate::output::{self, Complaint};
use crate::plan::bench::{check_apart, check_file};
use conformance::quality::calibrate::{self, Calibrated};
use conformance::quality::sensitivity;
use conformance::setup::subject::{Precision, Provider};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::TempDir;

/// The directory of a checkpoint; that of the demo model is made in `scratch`.
fn checkpoint(named: &Path, scratch: &Path) -> Result<PathBuf, Complaint> {
    if named != Path::new("demo") {
        return Ok(named.to_owned());
    }
    let complaint =
        |error: &dyn std::error::Error| Complaint::new(format!("cannot write the demo model: {error}"));
    let made = scratch.join("demo");
    std::fs::create_dir(&made).map_err(|error| complaint(&error))?;
    exporter::demo::extract(&made).map_err(|error| complaint(&error))?;
    Ok(made)
}

/// Works in a directory for what is made meanwhile, which a signal removes.
fn in_scratch<T>(work: impl FnOnce(&Path) -> Result<T, Complaint>) -> Result<T, Complaint> {
    let make = || tempfile::Builder::new().prefix("fvlm-conform-").tempdir();
    let (scratch, came) = super::in_temporary(make, TempDir::path)?;
    let result = work(scratch.path());
    super::wait_if_abandoned(&came);
    result
}

/// How the engine is opened, if it works here.
fn options(provider: Provider, onnxruntime: Option<&PathBuf>) -> Result<runtime::Options, Complaint> {
    if provider == Provider::Interpreter {
        return Err(Complaint::new(
            "--provider interpreter has no kernels, expected cpu, tract or rten",
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
    in_scratch(|scratch| measured(flags, precisions, scratch))?;
    Ok(ExitCode::SUCCESS)
}

/// Measures in each precision, and writes the tables.
fn measured(flags: &Sensitivity, precisions: &[Precision], scratch: &Path) -> Result<(), Complaint> {
    let checkpoint = checkpoint(&flags.checkpoint, scratch)?;
    let options = options(flags.provider, flags.onnxruntime.as_ref())?;
    let bar = output::progress(flags.quiet, "{elapsed} {msg}");
    for precision in precisions {
        let settings = sensitivity::Settings {
            checkpoint: checkpoint.clone(),
            calibration: flags.calibration.clone(),
            precision: *precision,
            scenes: flags.scenes,
            provider: flags.provider,
            options: options.clone(),
            scratch: scratch.to_owned(),
        };
        let mut tell = |what: &str| bar.set_message(format!("{precision}: {what}"));
        let rows = sensitivity::measure(&settings, &mut tell);
        let rows = rows.map_err(|error| Complaint::new(error.to_string()))?;
        let table = sensitivity::table(&rows, flags.markdown);
        bar.suspend(|| output::write(&format!("{table}\n")))?;
    }
    bar.finish_and_clear();
    Ok(())
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
    let read = images.iter().chain([&flags.checkpoint]);
    check_apart("output", &flags.output, read.map(PathBuf::as_path))?;
    let found = in_scratch(|scratch| calibrated(flags, images, scratch))?;
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

/// Runs over the images, and writes what was seen.
fn calibrated(flags: &Calibrate, images: Vec<PathBuf>, scratch: &Path) -> Result<Calibrated, Complaint> {
    let settings = calibrate::Settings {
        checkpoint: checkpoint(&flags.checkpoint, scratch)?,
        images,
        prompts: flags.prompt.clone(),
        answer_tokens: flags.answer_tokens,
        provider: flags.provider,
        options: options(flags.provider, flags.onnxruntime.as_ref())?,
        scratch: scratch.to_owned(),
    };
    let bar = output::progress(flags.quiet, "{elapsed} {msg}");
    let found = calibrate::calibrate(&settings, &mut |what| bar.set_message(what.to_owned()))
        .and_then(|found| found.write(&flags.output).map(|()| found));
    bar.finish_and_clear();
    found.map_err(|error| Complaint::new(error.to_string()))
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
