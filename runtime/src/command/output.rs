//! How does `fvlm-run` talk? Answers on stdout, everything else on stderr.

use crate::backend::session::Placement;
use crate::command::plan::Name;
use crate::timeline::Step;
use crate::{
    Choice, ConstraintError, EngineError, Finish, ImageSize, KernelReport, LogprobRecord, Precision,
    Provider, ProviderReport, Stats,
};
use indicatif::{ProgressBar, ProgressStyle};
use models::plain;
use programs::stdout;
use serde::{Serialize, Serializer};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Says what went wrong, and what would help.
pub(crate) fn complain(problem: &str, hint: Option<&str>) {
    say(&format!("error: {}", plain::line(problem)));
    if let Some(hint) = hint {
        say(&format!("\nhint: {}", plain::line(hint)));
    }
}

/// A line on stderr, if it is open: a lost message must not lose work.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Says something that is not an error.
pub(crate) fn tell(text: &str) {
    say(&plain::line(text));
}

/// An answer for programs. The fields are stable.
#[derive(Debug, Serialize)]
pub(crate) struct Record<'a> {
    #[serde(flatten)]
    pub(crate) question: Question<'a>,
    /// The answer.
    pub(crate) text: &'a str,
    /// Its token ids.
    pub(crate) tokens: &'a [i64],
    /// How likely the model found each of them, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<LogprobRecord>>,
    /// Why it ended.
    pub(crate) finish: Option<Finish>,
    #[serde(flatten)]
    pub(crate) work: Work<'a>,
}

/// The likeliest of several answers, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct ChoicesRecord<'a> {
    #[serde(flatten)]
    pub(crate) question: Question<'a>,
    /// The likeliest.
    pub(crate) text: &'a str,
    /// All of them, with their probabilities, in the order in which they were given.
    pub(crate) choices: &'a [Choice],
    /// Whether the end of the answer counts too: one is the beginning of another.
    pub(crate) end_counts: bool,
    #[serde(flatten)]
    pub(crate) work: Work<'a>,
}

/// What was asked.
#[derive(Debug, Serialize)]
pub(crate) struct Question<'a> {
    /// The images of the prompt.
    #[serde(serialize_with = "texts")]
    images: &'a [Name],
    /// The bytes of their names in hex, where one of them is no Unicode.
    #[serde(skip_serializing_if = "Option::is_none")]
    images_hex: Option<Vec<String>>,
    prompt: &'a str,
}

impl<'a> Question<'a> {
    pub(crate) fn new(images: &'a [Name], prompt: &'a str) -> Question<'a> {
        Question {
            images,
            images_hex: images_hex(images),
            prompt,
        }
    }
}

/// Who computed an answer, and what it took.
#[derive(Debug, Serialize)]
pub(crate) struct Work<'a> {
    /// Who computed.
    provider: ProviderRecord,
    /// With which graphs.
    precision: Precision,
    /// Made for which engine.
    target: &'a str,
    /// Which instruction set our kernels use; null where the engine's own run all of it.
    kernels: Option<KernelReport>,
    /// What images became, and the positions that each took.
    image_size: ImageSize,
    /// What it took, in seconds and bytes.
    stats: &'a Stats,
    /// What happened when, in seconds since the program began.
    timeline: &'a [Step],
    /// Most memory that was resident so far; null where the system does not say.
    peak_rss_bytes: Option<u64>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(provider: &'a ProviderReport, stats: &'a Stats) -> Work<'a> {
        Work {
            provider: provider.into(),
            precision: provider.precision,
            target: provider.target_name(),
            kernels: provider.kernels,
            image_size: provider.image,
            stats,
            timeline: &stats.timeline,
            peak_rss_bytes: stats.peak_memory,
        }
    }
}

/// Who computed, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct ProviderRecord {
    asked: Provider,
    used: Provider,
    /// For CoreML only: nodes that it took; null where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    coreml: Option<Option<Placement>>,
}

impl From<&ProviderReport> for ProviderRecord {
    fn from(report: &ProviderReport) -> ProviderRecord {
        let coreml = (report.used == Provider::OrtCoreMl).then_some(report.placement);
        ProviderRecord {
            asked: report.asked,
            used: report.used,
            coreml,
        }
    }
}

/// A failure for programs.
#[derive(Debug, Serialize)]
pub(crate) struct FailureRecord<'a> {
    /// The images of the prompt.
    #[serde(serialize_with = "texts")]
    pub(crate) images: &'a [Name],
    /// As in [`Record`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) images_hex: Option<Vec<String>>,
    /// What went wrong.
    pub(crate) error: String,
}

/// The frame of a stream that a record is about, for programs: fields before its own. Times are in seconds since the
/// program began.
#[derive(Debug, Serialize)]
pub(crate) struct FrameRecord {
    /// Its place in the stream, from 1 on.
    pub(crate) frame: u64,
    /// When its last byte was there; null where it is broken.
    pub(crate) arrived: Option<f64>,
    /// When the first token of its answer was there; null where there is none.
    pub(crate) first_token: Option<f64>,
    /// When the record was written.
    pub(crate) answered: f64,
    /// Frames since the last record that a newer one replaced.
    pub(crate) dropped: u64,
    /// Frames since the last record that were not to be asked about.
    pub(crate) passed_over: u64,
    /// Frames since the last record that are broken, one that this record is about too.
    pub(crate) broken: u64,
    /// Bytes since the last record that are of no whole frame.
    pub(crate) skipped_bytes: u64,
}

/// A record of a frame, or of something else.
#[derive(Debug, Serialize)]
pub(crate) struct OfFrame<R> {
    #[serde(flatten)]
    pub(crate) frame: Option<FrameRecord>,
    #[serde(flatten)]
    pub(crate) record: R,
}

/// A bundle that was verified, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct VerifiedRecord {
    /// The bundle.
    pub(crate) verified: String,
    /// The bytes of its path in hex, where that is no Unicode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verified_hex: Option<String>,
    /// Its files.
    pub(crate) files: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Names as text; what is no Unicode in them is shown as U+FFFD.
fn texts<S: Serializer>(names: &[Name], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(Name::text))
}

/// The bytes of names in hex, where one of them is no Unicode: then text does not hold them all.
pub(crate) fn images_hex(names: &[Name]) -> Option<Vec<String>> {
    let odd = names.iter().any(|name| plain::hex_of_odd(&name.0).is_some());
    odd.then(|| {
        names
            .iter()
            .map(|name| plain::hex(name.0.as_encoded_bytes()))
            .collect()
    })
}

/// Writes one JSON object on a line of its own.
pub(crate) fn write_json(record: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(record)?;
    stdout::write(&(plain::json(&text) + "\n"))
}

/// Writes a part of an answer at once. What drives a terminal is not shown; JSON has it.
pub(crate) fn write_text(text: &str) -> io::Result<()> {
    stdout::write(&plain::text(text))
}

/// The line above an answer about one of several images.
pub(crate) fn title(name: &Name, gap: bool) -> String {
    let gap = if gap { "\n" } else { "" };
    format!("{gap}==> {} <==\n", plain::line(&name.text()))
}

/// What an answer took, for people.
pub(crate) fn tell_stats(stats: &Stats, report: &ProviderReport) {
    let placement = match report.placement {
        _ if report.used != Provider::OrtCoreMl => String::new(),
        Some(Placement { accelerated, nodes }) => format!(", {accelerated} of {nodes} nodes on CoreML"),
        None => ", nodes on CoreML unknown".to_owned(),
    };
    tell(&format!(
        "provider    {} (asked for {}), {} {}{placement}",
        report.used,
        report.asked,
        report.target_name(),
        report.precision
    ));
    match report.kernels {
        Some(kernels) => tell(&format!("kernels     {kernels}")),
        None if std::env::var_os(crate::backend::isa::VARIABLE).is_some() => tell(&format!(
            "kernels     those of {}, for which {} changes nothing",
            report.used,
            crate::backend::isa::VARIABLE
        )),
        None => (),
    }
    let ImageSize {
        height,
        width,
        tokens,
    } = report.image;
    tell(&format!("image size  {width} x {height}, {tokens} positions"));
    for line in stats.lines() {
        tell(&line);
    }
}

/// Shows on a terminal that something takes its time, until dropped.
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub(crate) fn new(quiet: bool, message: &str) -> Spinner {
        if quiet || !io::stderr().is_terminal() {
            return Spinner(None);
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Spinner(Some(bar))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Shows on a terminal how many bytes or images of so many are done, until dropped. Any thread may advance it.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// As [`Bar::new`], of so many images.
    pub(crate) fn images(quiet: bool, count: usize) -> Bar {
        Bar::of(
            quiet,
            count as u64,
            "{wide_bar} {pos} of {len} images, {per_sec}, {eta} left",
        )
    }

    pub(crate) fn new(quiet: bool, message: &str, bytes: u64) -> Bar {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        let bar = Bar::of(quiet, bytes, template);
        if let Some(bar) = &bar.0 {
            bar.set_message(message.to_owned());
        }
        bar
    }

    fn of(quiet: bool, length: u64, template: &str) -> Bar {
        if quiet || !io::stderr().is_terminal() {
            return Bar(None);
        }
        let bar = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Bar(Some(bar))
    }

    pub(crate) fn advance(&self, by: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(by);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What to do where a prompt is too long.
const ROOM: &str = "fewer images, or a shorter question; in a chat /reset forgets what was said, --context-shift leaves out \
                    the oldest turns";

/// What a user of this program could do about an error of the library, which knows no flags.
pub(crate) fn hint(error: &EngineError, model: &std::path::Path) -> Option<String> {
    use crate::BackendError;
    let words = match error {
        EngineError::Backend(BackendError::Full { .. }) => {
            return Some(format!("{ROOM}; `fvlm-export --max-context ...` makes room"));
        }
        EngineError::TooLong { .. } => ROOM,
        EngineError::Constraint(ConstraintError::Schema { .. }) => {
            "--json-schema names the file; runtime/README.md says which schemas can be kept to"
        }
        EngineError::Constraint(ConstraintError::Regex { .. }) => {
            "--regex takes the syntax of Rust's crate regex, without anchors and look-around"
        }
        EngineError::Image(crate::image::ImageError::TooManyPixels { .. }) => {
            "--max-pixels raises the limit, in megapixels"
        }
        error => return crate::cli::hint(error, model),
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BackendError;
    use std::path::Path;

    #[test]
    fn hints_name_the_flags_that_the_library_does_not_know() {
        let path = || Path::new("decoder.onnx").to_owned();
        let provider = Provider::OrtCoreMl;
        let errors = [
            (
                "--max-context",
                BackendError::Full {
                    path: path(),
                    count: 1,
                    len: 12,
                    context: 12,
                },
            ),
            (
                "--coreml-partial",
                BackendError::NotWhole {
                    provider,
                    path: path(),
                    accelerated: 1,
                    nodes: 2,
                },
            ),
            (
                "--onnxruntime",
                BackendError::Unavailable {
                    provider,
                    reason: "it is missing".to_owned(),
                },
            ),
        ];
        for (flag, error) in errors {
            let said = error.to_string();
            assert!(!said.contains("--"), "{said}");
            let hint = hint(&error.into(), Path::new("bundle")).unwrap();
            assert!(hint.contains(flag), "{hint}");
        }
    }
}
