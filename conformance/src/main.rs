//! `fvlm-conform`: compares what runs here with what was published.

mod cli;
mod output;
mod plan;
mod run;

use clap::Parser as _;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::backend::silence_caught_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too.
            return ExitCode::from(programs::flags::answer(&error));
        }
    };
    programs::faults::report(|| ());
    let result = match &cli.command {
        Command::List(flags) => run::list(flags),
        Command::Run(flags) => run::run(flags),
        Command::Bench(flags) => run::bench::bench(flags),
        Command::Quality(flags) => run::quality::quality(flags),
        Command::Sensitivity(flags) => run::sensitivity::sensitivity(flags),
        Command::Calibrate(flags) => run::sensitivity::calibrate(flags),
        Command::Synth(flags) => run::synth(flags),
        Command::Generate(flags) => run::generate(flags),
    };
    result.unwrap_or_else(|complaint| {
        complaint.tell();
        ExitCode::from(2)
    })
}
