//! The command `fvlm-export`: its flags, its plan, what it says. The program and the Python wheel call [`main`].

mod cli;
mod interrupt;
mod output;
mod plan;
mod verify;

use crate::{ExportError, ExportPlan, Report, Summary, ort_coreml};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use cli::{Check, Cli};
use models::plain;
use output::Progress;
use programs::flags;
use std::ffi::OsString;

/// What `fvlm-export` does with `arguments`, its name first; the exit code. It takes over the signals of the process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    prompt::catch::silence_caught_panics();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too.
            return flags::answer(&error);
        }
    };
    let plan = match plan::plan(&cli) {
        Ok(plan) => plan,
        Err(problem) => {
            return flags::answer(&Cli::command().error(ErrorKind::ArgumentConflict, problem));
        }
    };
    match run(&cli, &plan) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            output::complain(&error);
            match error {
                // Cleaned up: now it ends as that signal ends a program.
                ExportError::Interrupted | ExportError::InterruptedDownload { .. } => interrupt::end(),
                _other => 2,
            }
        }
    }
}

/// Why [`export_as`] has no summary.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportAsError {
    /// Flags that mean no export, as the program would say it.
    #[error("{0}")]
    Flags(String),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// The export that `fvlm-export` would do with `flags` (without the program's name), told to `report` alone: signals,
/// stdout and stderr are left as they are.
///
/// # Errors
/// Flags that are wrong or ask for something else than an export, and what an export says.
pub fn export_as(
    flags: impl IntoIterator<Item = OsString>,
    report: &mut dyn Report,
) -> Result<Summary, ExportAsError> {
    let wrong = |error: clap::Error| {
        let text = error.render().to_string();
        let sentence = text.lines().next().unwrap_or_default();
        ExportAsError::Flags(sentence.trim_start_matches("error: ").to_owned())
    };
    let program = OsString::from("fvlm-export");
    let cli = Cli::try_parse_from(std::iter::once(program).chain(flags)).map_err(wrong)?;
    if cli.check.is_some() || cli.verify.is_some() || cli.generate.is_some() || cli.dump {
        let problem = "expected an export, found --check, --verify, --generate or --dump";
        return Err(ExportAsError::Flags(problem.to_owned()));
    }
    let plan = plan::plan(&cli).map_err(ExportAsError::Flags)?;
    Ok(carry_out(&cli, &plan, report)?)
}

/// Whether the answer is yes: only a check and a verification can say no.
fn run(cli: &Cli, plan: &ExportPlan) -> Result<bool, ExportError> {
    if cli.json
        || cli.dry_run
        || cli.dump
        || cli.check.is_some()
        || cli.verify.is_some()
        || cli.generate.is_some()
    {
        // Before the work whose account has no place to go.
        programs::stdout::check().map_err(output::lost)?;
    }
    if let Some(kind) = cli.generate {
        return output::write(&kind.text(Cli::command())).map(|()| true);
    }
    if let Some(directory) = &cli.verify {
        return verify::verify(directory, cli.json, cli.quiet);
    }
    if let Some(Check::OrtCoreMl) = cli.check {
        return check(cli, plan);
    }
    export(cli, plan).map(|()| true)
}

fn check(cli: &Cli, plan: &ExportPlan) -> Result<bool, ExportError> {
    let fixed = !cli.dynamic_shapes;
    let verdicts = if cli.onnx.is_empty() {
        crate::check_ort_coreml(plan, fixed)?
    } else {
        let files = cli.onnx.iter();
        files
            .map(|file| ort_coreml::check_file(file, fixed))
            .collect::<Result<_, _>>()?
    };
    if cli.json {
        output::write_json(&verdicts)?;
    } else {
        output::write(&output::verdicts(&verdicts))?;
    }
    Ok(verdicts.iter().all(ort_coreml::Verdict::whole))
}

fn carry_out(cli: &Cli, plan: &ExportPlan, report: &mut dyn Report) -> Result<Summary, ExportError> {
    match plan::adoption(cli) {
        Some(plan) => crate::adopt(&plan, report),
        None => crate::export(plan, report),
    }
}

fn export(cli: &Cli, plan: &ExportPlan) -> Result<(), ExportError> {
    if cli.dump {
        return output::write(&crate::dump(plan)?);
    }
    let mut progress = Progress::new(cli.quiet || cli.json);
    interrupt::install(progress.interrupted_flag());
    programs::faults::report(crate::abandon);
    let result = carry_out(cli, plan, &mut progress);
    progress.clear();
    let summary = result?;
    for warning in &summary.warnings {
        output::tell(&format!("warning: {}", plain::line(warning)));
    }
    if cli.json {
        return output::write_json(&summary);
    }
    if plan.dry_run {
        return output::write(&output::account(&summary));
    }
    if !cli.quiet {
        output::tell(&output::result(&summary));
    }
    Ok(())
}
