//! How does `fvlm-serve` talk? Its address on stdout, everything else on stderr.

use models::bundle::BundleError;
use models::plain;
use runtime::{BackendError, EngineError};
use std::io::{self, Write};
use std::path::Path;

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

/// What a user of this program could do about an error of the library, which knows no flags.
pub(crate) fn hint(error: &EngineError, model: &Path) -> Option<String> {
    match error {
        EngineError::Bundle(BundleError::NotABundle { .. }) => Some(format!(
            "`fvlm-export --output {}` makes one of the demo model; --model names another",
            model.display()
        )),
        EngineError::Bundle(BundleError::Schema { .. }) => {
            Some("export it again with the fvlm-export of this version".to_owned())
        }
        EngineError::Bundle(BundleError::Broken { .. })
        | EngineError::Backend(BackendError::Altered(_)) => Some(
            "`fvlm-export --verify` names every file that is not as it was written; copy the bundle, or export it, again"
                .to_owned(),
        ),
        EngineError::Backend(BackendError::Unavailable { .. }) => {
            Some("without --no-fallback another provider is used; --onnxruntime PATH names the library".to_owned())
        }
        EngineError::NoVariant { .. } => {
            Some("leave --precision and --target out, or export what is missing: `fvlm-export --precision ...`".to_owned())
        }
        EngineError::NoImageSize { .. } => {
            Some("leave --image-size out, or export it: `fvlm-export --image-size ...`".to_owned())
        }
        EngineError::Backend(BackendError::NotWhole { .. }) => {
            Some("--coreml-partial allows the rest on the CPU".to_owned())
        }
        _ => None,
    }
}
