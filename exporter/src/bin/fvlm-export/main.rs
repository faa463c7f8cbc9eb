//! `fvlm-export`: turns a FastVLM checkpoint into a bundle.

mod cli;
mod manual;
mod output;
mod plan;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use cli::{Check, Cli};
use exporter::{ExportError, ExportPlan, ort_coreml};
use output::Progress;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too; a closed pipe is no failure of ours.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let plan = match plan::plan(&cli) {
        Ok(plan) => plan,
        Err(problem) => {
            let error = Cli::command().error(ErrorKind::ArgumentConflict, problem);
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    match run(&cli, &plan) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            output::complain(&error);
            match error {
                ExportError::Interrupted | ExportError::InterruptedDownload { .. } => ExitCode::from(130),
                _other => ExitCode::from(2),
            }
        }
    }
}

/// Whether the answer is yes: only a check can say no.
fn run(cli: &Cli, plan: &ExportPlan) -> Result<bool, ExportError> {
    if let Some(kind) = cli.generate {
        return output::write(&kind.text(Cli::command())).map(|()| true);
    }
    if let Some(Check::OrtCoreMl) = cli.check {
        return check(cli, plan);
    }
    export(cli, plan).map(|()| true)
}

fn check(cli: &Cli, plan: &ExportPlan) -> Result<bool, ExportError> {
    let fixed = !cli.dynamic_shapes;
    let verdicts = if cli.onnx.is_empty() {
        exporter::check_ort_coreml(plan, fixed)?
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

fn export(cli: &Cli, plan: &ExportPlan) -> Result<(), ExportError> {
    if cli.dump {
        return output::write(&exporter::dump(plan)?);
    }
    let mut progress = Progress::new(cli.quiet || cli.json);
    let interrupted = progress.interrupted_flag();
    // Where no handler can be set, Ctrl-C ends the program at once; the next export removes what it left.
    drop(ctrlc::set_handler(move || {
        interrupted.store(true, Ordering::Relaxed)
    }));
    let result = exporter::export(plan, &mut progress);
    progress.clear();
    let summary = result?;
    for warning in &summary.warnings {
        output::tell(&format!("warning: {warning}"));
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
