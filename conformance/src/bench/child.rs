//! How does a process measure for another? The program starts itself again with the flags of one combination and a hidden
//! one; a line of JSON comes back.

use super::Settings;
use super::measure::Sample;
use crate::loaded::Combination;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// The hidden flag that makes a process measure and say so in a line.
pub const FLAG: &str = "--child";

/// The arguments of a process that measures a combination once.
pub fn arguments(settings: &Settings, combination: &Combination) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["bench".into(), FLAG.into()];
    // One word each, so that a value that begins with a dash stays a value.
    let mut add = |name: &str, value: OsString| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        arguments.push(argument);
    };
    add("model", settings.model.clone().into());
    add("provider", combination.provider.name().into());
    add("target", combination.target.name().into());
    add("precision", combination.precision.name().into());
    add("prompt", settings.prompt.clone().into());
    add("warm-up", settings.warm_up.to_string().into());
    add("decode-tokens", settings.decode_tokens.to_string().into());
    add("scenes", settings.scenes.to_string().into());
    add("batch", settings.batch.to_string().into());
    if let Some(image) = &settings.image {
        add("image", image.clone().into());
    }
    if let Some(side) = settings.image_size {
        add("image-size", side.to_string().into());
    }
    if let Some(threads) = settings.threads {
        add("threads", threads.to_string().into());
    }
    if let Some(path) = &settings.onnxruntime {
        add("onnxruntime", path.clone().into());
    }
    arguments
}

/// Measures a combination once in a process of its own.
///
/// # Errors
/// What the process said, or how it ended.
pub fn run(program: &Path, settings: &Settings, combination: &Combination) -> Result<Sample, String> {
    let output = Command::new(program)
        .args(arguments(settings, combination))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start `{}`: {error}", program.display()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(complaint(&stderr).unwrap_or_else(|| format!("the process ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("the process said what is no sample: {error}"))
}

/// The error among what a process says on stderr; libraries talk there too.
fn complaint(stderr: &str) -> Option<String> {
    let lines = stderr.lines().skip_while(|line| !line.starts_with("error: "));
    let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let text = lines.join(" ");
    text.strip_prefix("error: ").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{Precision, Provider, Target};

    #[test]
    fn the_error_is_found_among_what_libraries_say() {
        let stderr = "W: slow\nerror: opening cpu: no\nand more\n\nhint: try\n";
        assert_eq!(complaint(stderr).as_deref(), Some("opening cpu: no and more"));
        assert_eq!(complaint("W: slow\n"), None);
    }

    #[test]
    fn values_stay_values() {
        let settings = Settings {
            model: "-b".into(),
            image: None,
            prompt: "--what".to_owned(),
            image_size: Some(512),
            threads: Some(3),
            onnxruntime: None,
            warm_up: 1,
            repeat: 5,
            decode_tokens: 2,
            scenes: 64,
            batch: 4,
        };
        let combination = Combination {
            provider: Provider::Tract,
            target: Target::Portable,
            precision: Precision::Fp32,
        };
        let arguments = arguments(&settings, &combination);
        assert_eq!(arguments[..2], ["bench", FLAG]);
        for expected in [
            "--model=-b",
            "--prompt=--what",
            "--image-size=512",
            "--threads=3",
            "--precision=fp32",
            "--scenes=64",
            "--batch=4",
        ] {
            assert!(
                arguments.iter().any(|argument| argument == expected),
                "{expected}"
            );
        }
        assert!(
            !arguments
                .iter()
                .any(|argument| argument.to_string_lossy().starts_with("--image="))
        );
    }
}
