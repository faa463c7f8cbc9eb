//! `--verify`: has every file of the bundle, weights too, the SHA-256 that its contract states?

use crate::command::output::{self, Bar, VerifiedRecord};
use crate::command::plan::Plan;
use crate::{EngineError, Model};
use models::bundle::{Bundle, FileEntry};
use models::plain;
use std::io;

/// Hashes the bundle and does nothing else; what was found goes to stdout for programs.
///
/// # Errors
/// What of it is not as its contract states.
pub(crate) fn alone(plan: &Plan) -> Result<io::Result<()>, EngineError> {
    let bundle = Bundle::open(&plan.model)?;
    hash(plan, &bundle.files, |progress| {
        Ok(bundle.verify(&plan.model, progress)?)
    })?;
    if !plan.json {
        return Ok(Ok(()));
    }
    Ok(output::write_json(&VerifiedRecord {
        verified: plan.model.display().to_string(),
        verified_hex: plain::hex_of_odd(plan.model.as_os_str()),
        files: bundle.files.len(),
        bytes: bytes(&bundle.files),
    }))
}

/// Hashes the bundle before it answers; meanwhile it is opened.
///
/// # Errors
/// What of it is not as its contract states.
pub(crate) fn before_answers(plan: &Plan, model: &Model) -> Result<(), EngineError> {
    hash(plan, &model.bundle().files, |progress| model.verify(progress))
}

fn hash(
    plan: &Plan,
    files: &[FileEntry],
    verify: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let bar = Bar::new(plan.quiet, "verifying", bytes(files));
    let result = verify(&|count| bar.advance(count));
    drop(bar);
    result?;
    if !plan.quiet {
        output::tell(&format!(
            "{} files, {} bytes: every SHA-256 is as `bundle.json` states",
            files.len(),
            bytes(files)
        ));
    }
    Ok(())
}

fn bytes(files: &[FileEntry]) -> u64 {
    files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
}
