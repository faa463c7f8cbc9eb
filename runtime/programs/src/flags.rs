//! How is a command refused, or its help shown? As clap does, but a help that is lost is an error, and arguments, which
//! may be names of others' files, do not drive the terminal.

use crate::stdout;
use models::plain;
use std::io::{self, IsTerminal as _, Write as _};

/// Says what clap has to say: a refused command on stderr; help and version on stdout. The exit code: 2 for what is refused or lost.
pub fn answer(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if error.use_stderr() {
        if plain::text(&text) == text {
            drop(error.print());
        } else {
            drop(io::stderr().write_all(plain::text(&text).as_bytes()));
        }
        return 2;
    }
    let coloured = io::stdout().is_terminal();
    told(if coloured {
        error.print()
    } else {
        stdout::write(&text)
    })
}

/// Writes what was asked for to stdout: completions, a manual page. The exit code.
pub fn show(text: &str) -> u8 {
    told(stdout::write(text))
}

/// Says what kept something from being written, if it was more than a reader who had enough. The exit code.
fn told(written: io::Result<()>) -> u8 {
    match written {
        Err(error) if !stdout::is_had_enough(&error) => {
            drop(writeln!(io::stderr(), "error: cannot write to stdout: {error}"));
            2
        }
        _written_or_had_enough => 0,
    }
}
