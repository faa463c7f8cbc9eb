//! The command `fvlm-run`: its flags, its plan, what it says. The program and the Python wheel call [`main`].

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
use std::ffi::OsString;

/// What `fvlm-run` does with `arguments`, its name first; the exit code. It takes over the signals of the process, which
/// is to end then by [`programs::finish`].
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let timeline = crate::Timeline::begin();
    crate::backend::silence_caught_panics();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come as errors too.
            return flags::answer(&error);
        }
    };
    // Before the work whose answer has no place to go.
    if let Err(error) = stdout::check() {
        output::complain(&format!("cannot write the answer: {error}"), None);
        return 2;
    }
    if let Some(kind) = cli.generate {
        return flags::show(&kind.text(Cli::command()));
    }
    let plan = match Plan::new(cli) {
        Ok(plan) => plan,
        Err(error) => {
            output::complain(&error.problems.join("; "), error.hint.as_deref());
            return 2;
        }
    };
    faults::report(|| ());
    run::run(plan, &timeline)
}
