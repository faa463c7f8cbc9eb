//! The command `fvlm-serve`: its flags, its plan, what it says. The program and the Python wheel call [`main`].

mod cli;
mod output;
mod plan;
mod run;

use clap::{CommandFactory as _, Parser as _};
use cli::Cli;
use plan::Plan;
use programs::{faults, flags};
use std::ffi::OsString;

/// What `fvlm-serve` does with `arguments`, its name first; the exit code. It takes over the signals of the process, which
/// is to end then by [`programs::finish`].
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    runtime::backend::silence_caught_panics();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // `--help` and `--version` come as errors too.
        Err(error) => return flags::answer(&error),
    };
    if let Some(kind) = cli.generate {
        return flags::show(&kind.text(Cli::command()));
    }
    let key = std::env::var_os("FVLM_API_KEY");
    let plan = match Plan::new(cli, key) {
        Ok(plan) => plan,
        Err(problems) => {
            output::complain(&problems.join("; "), None);
            return 2;
        }
    };
    faults::report(|| ());
    run::run(&plan)
}
