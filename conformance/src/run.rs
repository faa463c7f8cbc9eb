//! The work behind each subcommand.

pub(crate) mod bench;
pub(crate) mod quality;
pub(crate) mod sensitivity;

use crate::cli;
use crate::output::{self, Complaint};
use crate::plan::Plan;
use clap::CommandFactory as _;
use conformance::report::{self, Columns, Totals};
use conformance::setup::case::{Leaf, Outcome, Report, leaves};
use conformance::setup::subject::{Provider, Subject};
use conformance::setup::workspace::Workspace;
use conformance::status;
use conformance::suite::SUITES;
use conformance::synth::{self, SynthError};
use indicatif::HumanBytes;
use programs::signals::{self, Signal};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// `fvlm-conform list`
pub(crate) fn list(flags: &cli::List) -> Result<ExitCode, Complaint> {
    if flags.markdown {
        output::write(&status::matrix())?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.references {
        let table = status::references().map_err(|error| Complaint::new(error.to_string()))?;
        output::write(&table)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for suite in SUITES {
        let cases = (suite.cases)();
        let request = if suite.on_request { ", on request" } else { "" };
        let _ = writeln!(text, "{} ({}{request}): {}", suite.name, cases.len(), suite.about);
        for case in cases {
            let _ = writeln!(text, "  {}\n      {}", case.name, case.claim);
        }
    }
    output::write(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `fvlm-conform generate`
pub(crate) fn generate(flags: &cli::Manual) -> Result<ExitCode, Complaint> {
    output::write(&flags.kind.text(cli::Cli::command()))?;
    Ok(ExitCode::SUCCESS)
}

/// The signal that came, once one has.
type Came = Arc<Mutex<Option<Signal>>>;

/// The signal that came, and what is done when one comes. Without a handler it would end the program at once, and leave
/// a temporary directory.
fn on_signal(then: impl Fn(Signal) + Send + 'static) -> Came {
    let came = Arc::new(Mutex::new(None));
    let set = Arc::clone(&came);
    signals::on(&Signal::ALL, move |signal| {
        *set.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
        then(signal);
    });
    came
}

fn which(came: &Mutex<Option<Signal>>) -> Option<Signal> {
    *came.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the program, and leaves nothing behind: what a signal does to a run of cases, which cannot be asked to stop.
fn abandon(root: &Path, signal: Signal) {
    // Whoever is still writing there may make a directory once more before it fails: until none is made for a while.
    let (mut gone, most) = (0, 400);
    for _ in 0..most {
        let _ = std::fs::remove_dir_all(root);
        std::thread::sleep(Duration::from_millis(5));
        gone = if root.exists() { 0 } else { gone + 1 };
        if gone == 20 {
            break;
        }
    }
    signal.end();
}

/// What came of work in a temporary directory means nothing once a signal has come: it is being removed, and then the
/// program ends.
fn wait_if_abandoned(came: &Mutex<Option<Signal>>) {
    while which(came).is_some() {
        std::thread::park();
    }
}

/// Makes a temporary directory, or what has one; a signal removes it before it ends the program. Beside it stands the signal
/// that came.
fn in_temporary<T>(
    make: impl FnOnce() -> std::io::Result<T>,
    root: impl FnOnce(&T) -> &Path,
) -> Result<(T, Came), Complaint> {
    // Ctrl-C in the very moment when the directory is made waits until it is known.
    let shared = Arc::new(Mutex::new(PathBuf::new()));
    let mut unknown = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let known = Arc::clone(&shared);
    let abandoned =
        on_signal(move |signal| abandon(&known.lock().unwrap_or_else(PoisonError::into_inner), signal));
    let made = make().map_err(|error| {
        Complaint::new(format!("cannot make a temporary directory: {error}"))
            .hint("TMPDIR names another place")
    })?;
    root(&made).clone_into(&mut unknown);
    drop(unknown);
    Ok((made, abandoned))
}

/// `fvlm-conform run`
pub(crate) fn run(flags: &cli::Run) -> Result<ExitCode, Complaint> {
    let plan = Plan::new(flags)?;
    if !flags.quiet {
        for (_, reason) in &plan.missing {
            output::tell(&format!("left out: {reason}"));
        }
        plan.remarks.iter().for_each(|remark| output::tell(remark));
    }
    let (workspace, abandoned) = in_temporary(|| Workspace::new(plan.given.clone()), Workspace::root)?;
    let leaves = leaves(&plan.cases, &plan.subjects);
    if leaves.is_empty() {
        return Err(
            Complaint::new("none of these cases is about any of these engines").hint(
                "`fvlm-conform list` shows the claims; not all are about the interpreter or about halves",
            ),
        );
    }
    let table = (!flags.json && !flags.quiet).then(|| Columns::new(&leaves));
    if let Some(columns) = &table {
        output::write(&format!("{}\n", columns.header()))?;
    }
    let reports = carry_out(
        &leaves,
        &workspace,
        table.as_ref(),
        &abandoned,
        flags.quiet || flags.json,
    )?;
    let totals = Totals::of(&reports);
    if flags.json {
        let run = report::Run::new(&reports, &plan.missing);
        let text = serde_json::to_string(&run)
            .map_err(|error| Complaint::new(format!("the verdicts have no JSON form: {error}")))?;
        output::write_json(&(text + "\n"))?;
    } else {
        let mut text = String::new();
        for report in reports
            .iter()
            .filter(|report| !(flags.quiet && report.outcome.is_fine()))
        {
            text.push_str(&report::details(report));
        }
        if !text.is_empty() && !flags.quiet {
            text.insert(0, '\n');
        }
        output::write(&format!(
            "{text}{}{totals}\n",
            if flags.quiet { "" } else { "\n" }
        ))?;
    }
    if totals.tried() == 0 {
        return Err(Complaint::new("nothing could be tried: all claims were skipped"));
    }
    // The interpreter computes what the checkpoint says, and looks at no graph of the bundle.
    let computed = || {
        leaves
            .iter()
            .zip(&reports)
            .filter(|(leaf, _)| leaf.subject.is_some())
    };
    let compared = |(leaf, report): (&Leaf<'_>, &Report)| {
        leaf.subject.is_some_and(Subject::is_engine) && !matches!(report.outcome, Outcome::Skipped(_))
    };
    let interpreter_alone = flags.provider == [Provider::Interpreter];
    if plan.given.bundle.is_some()
        && !interpreter_alone
        && computed().next().is_some()
        && !computed().any(compared)
    {
        return Err(Complaint::new(
            "the bundle was compared with nothing: no engine computes a form of it, or all claims about that were skipped",
        ));
    }
    Ok(ExitCode::from(totals.exit_code()))
}

/// Tries all leaves, and writes a row of the table after the last leaf of a case.
fn carry_out(
    leaves: &[Leaf<'_>],
    workspace: &Workspace,
    table: Option<&Columns>,
    abandoned: &Mutex<Option<Signal>>,
    quiet: bool,
) -> Result<Vec<Report>, Complaint> {
    let bar = output::progress(quiet, "{pos}/{len} {elapsed} {msg}");
    bar.set_length(leaves.len() as u64);
    let mut reports: Vec<Report> = Vec::with_capacity(leaves.len());
    for row in leaves.chunk_by(|a, b| a.row() == b.row()) {
        let first = reports.len();
        for leaf in row {
            bar.set_message(leaf.name());
            reports.push(leaf.run(workspace));
            wait_if_abandoned(abandoned);
            bar.inc(1);
        }
        if let (Some(columns), Some(leaf)) = (table, row.first()) {
            let row = columns.row(&leaf.row(), &reports[first..]);
            bar.suspend(|| output::write(&format!("{row}\n")))?;
        }
    }
    bar.finish_and_clear();
    Ok(reports)
}

/// `fvlm-conform synth`
pub(crate) fn synth(flags: &cli::Synth) -> Result<ExitCode, Complaint> {
    let came = on_signal(|_| {});
    let bar = output::progress(
        flags.quiet,
        "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
    );
    let result = synth::write(&flags.options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if which(&came).is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    bar.finish_and_clear();
    if let Err(SynthError::Interrupted) = result {
        output::tell("interrupted, nothing was written");
        match which(&came) {
            Some(signal) => signal.end(),
            None => return Ok(ExitCode::from(programs::INTERRUPTED)),
        }
    }
    let summary = result.map_err(|error| {
        let hint = match &error {
            SynthError::OutputNotEmpty { .. } | SynthError::OutputName { .. } => {
                Some("--output names another directory; this one is left as it is")
            }
            SynthError::Tokenizer { .. } => {
                Some("without --tokenizer there is a stand-in that serves every size")
            }
            _ => None,
        };
        let complaint = Complaint::new(error.to_string());
        match hint {
            Some(hint) => complaint.hint(hint),
            None => complaint,
        }
    })?;
    if !flags.quiet {
        output::tell(&format!(
            "{} has {} parameters in {} tensors and {} files, {}",
            flags.options.output.display(),
            summary.parameters,
            summary.tensors,
            summary.files,
            HumanBytes(summary.bytes)
        ));
    }
    Ok(ExitCode::SUCCESS)
}
