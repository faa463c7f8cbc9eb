//! How does `fvlm-export` talk? Accounts on stdout, everything else on stderr.

use crate::{ExportError, FileOrigin, HubProblem, Phase, Report, Summary};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use models::checkpoint::CheckpointError;
use models::plain;
use programs::stdout;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Says what went wrong, all of it, and what would help.
pub(crate) fn complain(error: &ExportError) {
    let problem = error.to_string();
    // One line, whatever names in it say; but for the verdicts, whose names are made plain one by one.
    match error {
        ExportError::NotWhole { .. } => tell(&format!("error: {problem}")),
        _other => tell(&format!("error: {}", plain::line(&problem))),
    }
    if let ExportError::Checkpoint(CheckpointError::Adapter { problems, .. }) = error
        && problems.len() > 1
    {
        for problem in problems {
            tell(&format!("  {}", plain::line(problem)));
        }
    }
    if let ExportError::Checkpoint(CheckpointError::Weights { problems, .. }) = error {
        // The first line names a few of each kind; here is the whole list.
        for (kind, names) in [
            ("missing", &problems.missing),
            ("not in any rule", &problems.unmapped),
            ("wrong", &problems.misshapen),
        ] {
            for name in names {
                tell(&format!("  {kind}: {}", plain::line(name)));
            }
        }
    }
    if let Some(hint) = hint(error) {
        tell(&format!("\nhint: {hint}"));
    }
}

/// Says something on stderr, if it is open: a lost message must not lose work.
pub(crate) fn tell(text: &str) {
    drop(writeln!(io::stderr(), "{}", plain::text(text)));
}

/// What a user of this program could do; the library knows no flags.
fn hint(error: &ExportError) -> Option<&'static str> {
    match error {
        ExportError::Exists { .. } => Some("--overwrite replaces it, --output names another directory"),
        ExportError::NotABundle { .. } | ExportError::ForeignFiles { .. } => {
            Some("--output names another directory; this one is left as it is")
        }
        ExportError::CurrentDirectory { .. } => {
            Some("--output names another directory, or go to one outside of it first")
        }
        ExportError::SourceChanged { .. } => Some("export again when nobody writes there any more"),
        ExportError::NotCached { .. } => {
            Some("without HF_HUB_OFFLINE it is downloaded; --model and --adapter also take a directory")
        }
        ExportError::NotDownloaded { .. } => {
            Some("only an export downloads: not --dry-run, --dump or --check")
        }
        ExportError::DamagedCache { .. } => Some("remove that file; the same command downloads it again"),
        ExportError::InterruptedDownload { .. } => Some("the same command goes on from there"),
        ExportError::Hub { problem, .. } => hub_hint(problem),
        ExportError::NoModel { .. } => {
            Some("--model takes a directory, `demo`, or ORG/NAME; --from-onnx a directory with graphs")
        }
        ExportError::NoGraphs { .. } => Some(
            "--from-onnx takes what `hf download ORG/NAME --local-dir DIR` brings of a repository with graphs for transformers.js",
        ),
        ExportError::Unfit { .. } => Some(
            "--precision takes those that fit; --model makes graphs of the checkpoint that these were made of",
        ),
        ExportError::LinkOutside { .. } => Some("put the file itself there, if it is what it should be"),
        ExportError::NoBase { .. } => Some("--model names the model that adapters are merged into"),
        ExportError::Checkpoint(CheckpointError::HasAdapter { .. }) => {
            Some("--adapter names that directory, and --model the one with the weights that it was made from")
        }
        ExportError::Checkpoint(CheckpointError::Adapter { .. }) => Some(
            "--model names the model that adapters are merged into; --dry-run lists what each of them changes",
        ),
        ExportError::NoSpace { .. } => Some(
            "--output names a directory on another disk, --precision fp16 halves the bytes; HF_HOME moves the cache of downloads",
        ),
        ExportError::Float16Range { .. }
        | ExportError::Float16Scales { .. }
        | ExportError::ConstantRange { .. } => Some("export with --precision fp32"),
        ExportError::TooLargeInside { .. } => {
            Some("without --weights inside they lie in a file beside the graph; --precision fp16 halves them")
        }
        ExportError::Lengths { .. } => Some("--max-context and --prefill are lengths of target coreml"),
        ExportError::ImageSize { .. } => Some("without --image-size the encoder has the model's own size"),
        ExportError::Checkpoint(CheckpointError::Layout { .. } | CheckpointError::Weights { .. }) => {
            Some("--layout forces a layout; --dry-run shows the accounting of a checkpoint that loads")
        }
        _other => None,
    }
}

fn hub_hint(problem: &HubProblem) -> Option<&'static str> {
    match problem {
        HubProblem::Status {
            code: 401,
            token: false,
            ..
        } => Some("`hf auth login`, or a token in HF_TOKEN; ORG/NAME@REVISION names a revision"),
        HubProblem::Status { code: 401 | 403, .. } => {
            Some("accept the model's terms on its page with the account of that token")
        }
        HubProblem::Status { code: 404, .. } => Some("ORG/NAME@REVISION names a branch, tag or commit"),
        HubProblem::Status { code: 429, .. } => {
            Some("wait some minutes, or set HF_TOKEN; the same command goes on")
        }
        HubProblem::Unreachable { reason } if reason.contains("certificate") => Some(
            "only Mozilla's list of authorities is believed, not a proxy's own: `hf download ORG/NAME` fills the same cache, \
             HF_HUB_OFFLINE=1 uses it",
        ),
        HubProblem::Unreachable { .. } | HubProblem::BrokenOff { .. } | HubProblem::Silent { .. } => Some(
            "the same command goes on from where it was; HF_ENDPOINT names another hub, HTTPS_PROXY a proxy, \
             and --model and --adapter take a directory",
        ),
        HubProblem::NoCheckpoint { .. } | HubProblem::NoAdapter { .. } => {
            Some("ORG/NAME@REVISION names another revision; --model takes a model, --adapter a fine-tune")
        }
        _other => None,
    }
}

/// Writes to stdout, for people; a reader who has had enough is no error.
pub(crate) fn write(text: &str) -> Result<(), ExportError> {
    write_exactly(&plain::text(text))
}

fn write_exactly(text: &str) -> Result<(), ExportError> {
    match stdout::write(text) {
        Err(error) if !stdout::is_had_enough(&error) => Err(lost(error)),
        _written_or_had_enough => Ok(()),
    }
}

/// An answer that has not arrived.
pub(crate) fn lost(source: io::Error) -> ExportError {
    ExportError::Io {
        action: "write",
        path: "stdout".into(),
        source,
    }
}

/// What Core ML would take, for people.
pub(crate) fn verdicts(verdicts: &[crate::ort_coreml::Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        let _ = writeln!(text, "{verdict}");
    }
    let _ = writeln!(
        text,
        "rules of ONNX Runtime {}, ML Program format; nothing was run on Core ML",
        crate::ort_coreml::VERSION
    );
    text
}

/// An account for programs.
pub(crate) fn write_json(account: &impl serde::Serialize) -> Result<(), ExportError> {
    let json = serde_json::to_string(account).map_err(|error| ExportError::Internal {
        what: format!("the account has no JSON form: {error}"),
    })?;
    write_exactly(&(plain::json(&json) + "\n"))
}

/// A finished export in a few lines: where it is, what the checkpoint lacked, under which terms it comes.
pub(crate) fn result(summary: &Summary) -> String {
    let variants = summary.variants.iter().map(|variant| variant.precision.name());
    let packages = summary.packages.iter().map(|package| package.precision.name());
    let mut precisions: Vec<&str> = Vec::new();
    for precision in variants.chain(packages) {
        if !precisions.contains(&precision) {
            precisions.push(precision);
        }
    }
    let output = summary.output.as_deref().unwrap_or_else(|| "".as_ref());
    let mut text = String::new();
    for file in &summary.files {
        if file.origin == FileOrigin::Derived {
            let _ = writeln!(
                text,
                "derived {}: {}",
                plain::line(&file.path),
                plain::line(&file.how)
            );
        }
    }
    let mut merged: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &summary.accounting.merged {
        *merged.entry(&one.adapter).or_default() += 1;
    }
    for (adapter, count) in merged {
        let _ = writeln!(text, "merged {} into {count} tensors", plain::line(adapter));
    }
    if let Some(license) = &summary.model.license {
        let _ = writeln!(text, "license {}", plain::line(license));
    }
    let _ = write!(
        text,
        "{} ({}) is in {}, {}",
        plain::line(&summary.model.name),
        precisions.join(", "),
        plain::line(&output.display().to_string()),
        HumanBytes(summary.bytes)
    );
    text
}

/// A dry run for people.
pub(crate) fn account(summary: &Summary) -> String {
    let mut text = String::new();
    lines(&mut text, summary).unwrap_or_default();
    text
}

fn lines(text: &mut String, summary: &Summary) -> std::fmt::Result {
    let model = &summary.model;
    let count = &model.parameters;
    writeln!(
        text,
        "model       {}, {} layout, stored as {}",
        plain::line(&model.name),
        model.layout,
        model.stored
    )?;
    let total = count.vision + count.projector + count.embed + count.decoder;
    writeln!(
        text,
        "parameters  {} (vision {}, projector {}, embedding {}, decoder {})",
        HumanCount(total),
        HumanCount(count.vision),
        HumanCount(count.projector),
        HumanCount(count.embed),
        HumanCount(count.decoder)
    )?;
    let accounting = &summary.accounting;
    if !(accounting.used.is_empty() && accounting.ignored.is_empty()) {
        writeln!(
            text,
            "tensors     {} used, {} ignored",
            accounting.used.len(),
            accounting.ignored.len()
        )?;
    }
    let mut rules: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for ignored in &accounting.ignored {
        rules.entry(&ignored.rule).or_default().push(&ignored.tensor);
    }
    for (rule, tensors) in rules {
        let more = if tensors.len() > 1 {
            format!(" and {} more", tensors.len() - 1)
        } else {
            String::new()
        };
        writeln!(
            text,
            "  ignored   {}{more}: {rule}",
            plain::line(tensors.first().unwrap_or(&""))
        )?;
    }
    for merged in &accounting.merged {
        writeln!(
            text,
            "  merged    {} of {} -> {}: {}",
            plain::line(&merged.from.join(" and ")),
            plain::line(&merged.adapter),
            plain::line(&merged.tensor),
            merged.how
        )?;
    }
    for used in &accounting.used {
        writeln!(
            text,
            "  used      {} -> {}",
            plain::line(&used.tensor),
            used.weight
        )?;
    }
    writeln!(
        text,
        "license     {}",
        plain::line(model.license.as_deref().unwrap_or("not declared"))
    )?;
    for file in &summary.files {
        let origin = match file.origin {
            FileOrigin::Kept => "kept",
            FileOrigin::Adapted => "adapted",
            FileOrigin::Derived => "derived",
        };
        let how = if file.how.is_empty() { "" } else { ": " };
        writeln!(
            text,
            "  {origin:<9} {}{how}{}",
            plain::line(&file.path),
            plain::line(&file.how)
        )?;
    }
    for variant in &summary.variants {
        writeln!(
            text,
            "\n{} {}, opset {}",
            variant.target, variant.precision, variant.opset
        )?;
        for graph in &variant.graphs {
            writeln!(
                text,
                "  {}: {} nodes, {} of weights",
                graph.entry.path,
                graph.nodes,
                HumanBytes(graph.data_bytes)
            )?;
            for (kind, list) in [("in ", &graph.entry.inputs), ("out", &graph.entry.outputs)] {
                for io in list {
                    writeln!(text, "    {kind} {io}")?;
                }
            }
        }
    }
    for package in &summary.packages {
        writeln!(
            text,
            "\n{}, {}: functions {}, {} of weights",
            package.path,
            package.precision,
            package.functions.join(", "),
            HumanBytes(package.data_bytes)
        )?;
    }
    writeln!(
        text,
        "\nbytes       {} ({})",
        summary.bytes,
        HumanBytes(summary.bytes)
    )
}

/// A progress bar with bytes and time left, on a terminal only.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Before a file's name.
    prefix: &'static str,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let visible = !quiet && io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        Progress {
            bar,
            prefix: "",
            interrupted: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(crate) fn interrupted_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// Of a file that is read; from any thread.
    pub(crate) fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Report for Progress {
    fn start(&mut self, phase: Phase, bytes: u64) {
        self.bar.reset();
        self.bar.set_length(bytes);
        self.prefix = match phase {
            Phase::Download => "downloading ",
            Phase::Write => "",
        };
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }

    fn file(&mut self, name: &str) {
        self.bar
            .set_message(format!("{}{}", self.prefix, plain::line(name)));
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
