//! `fvlm-serve`: answers questions about images over HTTP, as OpenAI's and Ollama's servers do.

mod cli;
mod output;
mod plan;
mod run;

use clap::{CommandFactory as _, Parser as _};
use cli::Cli;
use plan::Plan;
use programs::{faults, flags, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::backend::silence_caught_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // `--help` and `--version` come as errors too.
        Err(error) => return flags::answer(&error),
    };
    if let Some(kind) = cli.generate {
        return match stdout::write(&kind.text(Cli::command())) {
            Err(error) if !stdout::is_had_enough(&error) => {
                output::complain(&format!("cannot write to stdout: {error}"), None);
                ExitCode::from(2)
            }
            _written_or_had_enough => ExitCode::SUCCESS,
        };
    }
    let key = std::env::var_os("FVLM_API_KEY");
    let plan = match Plan::new(cli, key) {
        Ok(plan) => plan,
        Err(problems) => {
            output::complain(&problems.join("; "), None);
            return ExitCode::from(2);
        }
    };
    faults::report(|| ());
    programs::leave(run::run(&plan))
}
