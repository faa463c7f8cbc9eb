//! `fvlm-run`: answers questions about images with a FastVLM bundle.

mod cli;
mod exit;
mod output;
mod plan;
mod run;

use clap::{CommandFactory as _, Parser as _};
use cli::Cli;
use plan::Plan;
use std::io::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let timeline = runtime::Timeline::begin();
    runtime::backend::silence_caught_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too; a closed pipe is no failure of ours.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    if let Some(kind) = cli.generate {
        return match output::write_text(&kind.text(Cli::command())) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                output::complain(&format!("cannot write to stdout: {error}"), None);
                ExitCode::from(2)
            }
            _written_or_closed => ExitCode::SUCCESS,
        };
    }
    let plan = match Plan::new(cli) {
        Ok(plan) => plan,
        Err(error) => {
            output::complain(&error.problems.join("; "), error.hint.as_deref());
            return ExitCode::from(2);
        }
    };
    exit::leave(run::run(plan, &timeline))
}
