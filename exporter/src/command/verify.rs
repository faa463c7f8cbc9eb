//! `--verify`: has every file of a bundle, weights too, the SHA-256 that its contract states?

use crate::command::output::{self, Progress};
use crate::{ExportError, Phase, Report as _};
use indicatif::HumanBytes;
use models::bundle::{Bundle, BundleError};
use models::plain;
use serde::Serialize;
use std::path::Path;

/// What was found, for programs.
#[derive(Debug, Serialize)]
struct Verified<'a> {
    /// The directory.
    bundle: String,
    /// Whether every file is as the contract states.
    whole: bool,
    /// Files that were read; none where the contract itself is wrong.
    files: usize,
    /// Their bytes.
    bytes: u64,
    /// What is wrong, one sentence each.
    problems: &'a [String],
}

/// Whether the bundle in `directory` is as it was written.
///
/// # Errors
/// No bundle there, or a stdout that cannot be written to.
pub(crate) fn verify(directory: &Path, json: bool, quiet: bool) -> Result<bool, ExportError> {
    let (mut files, mut bytes, mut problems) = (0, 0, Vec::new());
    match hashed(directory, json || quiet) {
        Ok(found) => (files, bytes) = found,
        Err(BundleError::Broken { problems: found, .. }) => problems = found,
        Err(error @ BundleError::NotABundle { .. }) => return Err(ExportError::NoBundle(error)),
        Err(error) => problems = vec![error.to_string()],
    }
    let whole = problems.is_empty();
    if json {
        output::write_json(&Verified {
            bundle: directory.display().to_string(),
            whole,
            files,
            bytes,
            problems: &problems,
        })?;
    } else if whole && !quiet {
        output::write(&format!(
            "{} is whole: {files} files, {}, every SHA-256 is as bundle.json states\n",
            plain::line(&directory.display().to_string()),
            HumanBytes(bytes)
        ))?;
    }
    for problem in problems.iter().filter(|_| !json) {
        let line = format!("error: {}: {problem}", directory.display());
        output::tell(&plain::line(&line));
    }
    Ok(whole)
}

/// Files and bytes that were read.
fn hashed(directory: &Path, quiet: bool) -> Result<(usize, u64), BundleError> {
    let bundle = Bundle::open(directory)?;
    let bytes = bundle.files.iter().map(|file| file.bytes);
    let bytes = bytes.fold(0, u64::saturating_add);
    let mut progress = Progress::new(quiet);
    progress.start(Phase::Write, bytes);
    progress.file("verifying");
    let result = bundle.verify(directory, &|count| progress.read(count));
    progress.clear();
    result.map(|()| (bundle.files.len(), bytes))
}
