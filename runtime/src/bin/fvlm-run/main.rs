//! `fvlm-run`: answers questions about images with a FastVLM bundle.

mod captions;
mod cli;
mod lines;
mod newest;
mod output;
mod plan;
mod run;
mod structure;
mod verify;

use clap::{CommandFactory as _, Parser as _};
use cli::Cli;
use plan::Plan;
use programs::{faults, flags, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let timeline = runtime::Timeline::begin();
    runtime::backend::silence_caught_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too.
            return flags::answer(&error);
        }
    };
    // Before the work whose answer has no place to go.
    if let Err(error) = stdout::check() {
        output::complain(&format!("cannot write the answer: {error}"), None);
        return ExitCode::from(2);
    }
    if let Some(kind) = cli.generate {
        return match stdout::write(&kind.text(Cli::command())) {
            Err(error) if !stdout::is_had_enough(&error) => {
                output::complain(&format!("cannot write to stdout: {error}"), None);
                ExitCode::from(2)
            }
            _written_or_had_enough => ExitCode::SUCCESS,
        };
    }
    let plan = match Plan::new(cli) {
        Ok(plan) => plan,
        Err(error) => {
            output::complain(&error.problems.join("; "), error.hint.as_deref());
            return ExitCode::from(2);
        }
    };
    faults::report(|| ());
    programs::leave(run::run(plan, &timeline))
}
