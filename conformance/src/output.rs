//! How does `fvlm-conform` talk? Verdicts on stdout, everything else on stderr.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use models::plain;
use programs::stdout;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

/// A command that cannot be carried out, and what would help.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) problem: String,
    pub(crate) hint: Option<String>,
}

impl Complaint {
    pub(crate) fn new(problem: impl Into<String>) -> Complaint {
        Complaint {
            problem: problem.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Complaint {
        self.hint = Some(hint.into());
        self
    }

    /// Says it on stderr.
    pub(crate) fn tell(&self) {
        tell(&format!("error: {}", self.problem));
        if let Some(hint) = &self.hint {
            tell(&format!("\nhint: {hint}"));
        }
    }
}

/// Says something on stderr, if it is open: a lost message must not lose work.
pub(crate) fn tell(text: &str) {
    drop(writeln!(io::stderr(), "{}", plain::text(text)));
}

/// Writes to stdout at once, for people; a reader who has had enough is no error.
pub(crate) fn write(text: &str) -> Result<(), Complaint> {
    write_exactly(&plain::text(text))
}

/// Writes JSON to stdout, exactly: what drives a terminal is escaped.
pub(crate) fn write_json(text: &str) -> Result<(), Complaint> {
    write_exactly(&plain::json(text))
}

fn write_exactly(text: &str) -> Result<(), Complaint> {
    match stdout::write(text) {
        Err(error) if !stdout::is_had_enough(&error) => {
            Err(Complaint::new(format!("cannot write to stdout: {error}")))
        }
        _written_or_had_enough => Ok(()),
    }
}

/// A bar on stderr, on a terminal only.
pub(crate) fn progress(quiet: bool, template: &str) -> ProgressBar {
    let visible = !quiet && io::stderr().is_terminal();
    let target = if visible {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if visible {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}
