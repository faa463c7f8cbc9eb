//! How does `fvlm-serve` talk? Its address on stdout, everything else on stderr.

use models::plain;
use std::io::{self, Write};

/// Says what went wrong, and what would help.
pub(crate) fn complain(problem: &str, hint: Option<&str>) {
    tell(&format!("error: {problem}"));
    if let Some(hint) = hint {
        say(&format!("\nhint: {}", plain::line(hint)));
    }
}

/// Says something that is not an error.
pub(crate) fn tell(text: &str) {
    say(&plain::line(text));
}

/// A line on stderr, if it is open: a lost message must not lose work.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}
