//! How are verdicts told? As a table for people, as JSON for programs. Text only: who calls decides where it goes.

use crate::setup::case::{Leaf, Outcome, Report};
use crate::setup::subject::Subject;
use serde::Serialize;
use std::fmt;

/// Version of the JSON form; a change of meaning raises it.
pub const SCHEMA: u32 = 1;

/// How many differences of one leaf people are shown.
const SHOWN: usize = 4;

/// The columns of the table: one for claims without an engine, one for each engine in each precision. Targets are rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    row: usize,
    names: Vec<Option<String>>,
}

impl Columns {
    /// Columns for these leaves.
    pub fn new(leaves: &[Leaf<'_>]) -> Columns {
        let rows = leaves.iter().map(|leaf| leaf.row().chars().count());
        let row = rows.chain(["case".len()]).max().unwrap_or_default();
        let mut subjects: Vec<&Subject> = leaves.iter().filter_map(|leaf| leaf.subject).collect();
        subjects.sort_by_key(|subject| (subject.provider, subject.precision()));
        let mut names: Vec<Option<String>> = Vec::new();
        if leaves.iter().any(|leaf| leaf.subject.is_none()) {
            names.push(None);
        }
        names.extend(subjects.into_iter().map(|subject| Some(subject.column())));
        names.dedup();
        Columns { row, names }
    }

    /// The line above the table.
    pub fn header(&self) -> String {
        let titles = self
            .names
            .iter()
            .map(|name| name.as_deref().unwrap_or("no engine").to_owned());
        self.line("case", titles)
    }

    /// The line of a case, or of a case in a target.
    pub fn row(&self, row: &str, reports: &[Report]) -> String {
        let cells = self.names.iter().map(|name| {
            reports
                .iter()
                .find(|report| report.column == *name)
                .map(cell)
                .unwrap_or_default()
        });
        self.line(row, cells)
    }

    fn line(&self, row: &str, cells: impl Iterator<Item = String>) -> String {
        let mut line = format!("{row:<width$}", width = self.row);
        for (name, cell) in self.names.iter().zip(cells) {
            let width = name.as_ref().map_or(0, |name| name.chars().count()).max(CELL);
            line.push_str(&format!("  {cell:<width$}"));
        }
        line.trim_end().to_owned()
    }
}

/// Width of the widest verdict: `DIFFERS 1e-12`.
const CELL: usize = 13;

fn cell(report: &Report) -> String {
    let word = match report.outcome {
        Outcome::Passed => "ok",
        Outcome::Mismatch(_) => "DIFFERS",
        Outcome::Failed(_) => "FAILED",
        Outcome::Skipped(_) => "skipped",
        Outcome::Known(_) => "known",
        Outcome::Healed(_) => "HEALED",
    };
    match report.worst {
        Some(worst) if worst > 0.0 => format!("{word} {worst:.0e}"),
        _ => word.to_owned(),
    }
}

/// What is to be said about a leaf beyond its cell: the first differences in network order, reasons, notes. Empty where
/// there is nothing.
pub fn details(report: &Report) -> String {
    let (word, lines) = match &report.outcome {
        Outcome::Passed => ("ok", Vec::new()),
        Outcome::Mismatch(problems) => ("differs", first(problems)),
        Outcome::Failed(problem) => ("failed", vec![problem.clone()]),
        Outcome::Skipped(reason) => ("skipped", vec![reason.clone()]),
        Outcome::Known(reason) => ("known exception", vec![reason.clone()]),
        Outcome::Healed(reason) => (
            "healed",
            vec![format!("this exception is no longer needed: {reason}")],
        ),
    };
    if lines.is_empty() && report.notes.is_empty() {
        return String::new();
    }
    let mut text = format!("{}: {word}\n", leaf(report));
    for line in lines.iter().chain(&report.notes) {
        text.push_str(&format!("  {line}\n"));
    }
    models::plain::text(&text).into_owned()
}

fn first(problems: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = problems.iter().take(SHOWN).cloned().collect();
    if let Some(rest) = problems.len().checked_sub(SHOWN).filter(|&rest| rest > 0) {
        shown.push(format!("and {rest} more"));
    }
    shown
}

fn leaf(report: &Report) -> String {
    match &report.subject {
        Some(subject) => format!("{} [{subject}]", report.case),
        None => report.case.clone(),
    }
}

/// How many leaves ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// The claim holds.
    pub passed: usize,
    /// It does not.
    pub mismatch: usize,
    /// It could not be tried because something broke.
    pub failed: usize,
    /// It cannot be tried here.
    pub skipped: usize,
    /// It does not hold, as is known.
    pub known: usize,
    /// It holds although it is listed as an exception.
    pub healed: usize,
}

impl Totals {
    /// Counts reports.
    pub fn of(reports: &[Report]) -> Totals {
        let mut totals = Totals::default();
        for report in reports {
            *match report.outcome {
                Outcome::Passed => &mut totals.passed,
                Outcome::Mismatch(_) => &mut totals.mismatch,
                Outcome::Failed(_) => &mut totals.failed,
                Outcome::Skipped(_) => &mut totals.skipped,
                Outcome::Known(_) => &mut totals.known,
                Outcome::Healed(_) => &mut totals.healed,
            } += 1;
        }
        totals
    }

    /// 0 where all is fine, 1 where something differs, 2 where something broke.
    pub fn exit_code(&self) -> u8 {
        match (self.failed, self.mismatch + self.healed) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 2,
        }
    }

    /// Leaves that came to a verdict.
    pub fn tried(&self) -> usize {
        self.passed + self.mismatch + self.failed + self.known + self.healed
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.passed, "ok"),
            (self.mismatch, "differ"),
            (self.failed, "failed"),
            (self.known, "known exceptions"),
            (self.healed, "healed exceptions"),
            (self.skipped, "skipped"),
        ];
        let parts = parts.iter().filter(|(count, word)| *count > 0 || *word == "ok");
        let words: Vec<String> = parts.map(|(count, word)| format!("{count} {word}")).collect();
        f.write_str(&words.join(", "))
    }
}

/// A run for programs. The fields are stable; `schema` is raised when one changes its meaning.
#[derive(Debug, Serialize)]
pub struct Run<'a> {
    schema: u32,
    tool: &'static str,
    /// Whether all is as it should be.
    fine: bool,
    totals: Totals,
    /// Engines that cannot run here, with the reason.
    missing: Vec<Missing<'a>>,
    /// In the order of running.
    results: Vec<Entry<'a>>,
}

#[derive(Debug, Serialize)]
struct Missing<'a> {
    provider: &'a str,
    reason: &'a str,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    case: &'a str,
    /// Provider and precision; null for claims without an engine.
    subject: Option<&'a str>,
    outcome: &'static str,
    /// Differences in network order; or the one reason why not.
    details: &'a [String],
    /// Largest relative L2 distance; null where none was measured, or where it is not finite.
    worst_relative_l2: Option<f64>,
    notes: &'a [String],
    seconds: f64,
}

impl<'a> Run<'a> {
    /// A run of which these are the reports.
    pub fn new(reports: &'a [Report], missing: &'a [(crate::setup::subject::Provider, String)]) -> Run<'a> {
        let totals = Totals::of(reports);
        Run {
            schema: SCHEMA,
            tool: concat!("fvlm-conform ", env!("CARGO_PKG_VERSION")),
            fine: totals.exit_code() == 0,
            totals,
            missing: missing
                .iter()
                .map(|(provider, reason)| Missing {
                    provider: provider.name(),
                    reason,
                })
                .collect(),
            results: reports.iter().map(Entry::new).collect(),
        }
    }
}

impl<'a> Entry<'a> {
    fn new(report: &'a Report) -> Entry<'a> {
        let (outcome, details) = match &report.outcome {
            Outcome::Passed => ("passed", [].as_slice()),
            Outcome::Mismatch(problems) => ("mismatch", problems.as_slice()),
            Outcome::Failed(problem) => ("failed", std::slice::from_ref(problem)),
            Outcome::Skipped(reason) => ("skipped", std::slice::from_ref(reason)),
            Outcome::Known(reason) => ("known", std::slice::from_ref(reason)),
            Outcome::Healed(reason) => ("healed", std::slice::from_ref(reason)),
        };
        Entry {
            case: &report.case,
            subject: report.subject.as_deref(),
            outcome,
            details,
            worst_relative_l2: report.worst.filter(|worst| worst.is_finite()),
            notes: &report.notes,
            seconds: (report.took.as_secs_f64() * 1e3).round() / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::case::{Case, Findings, leaves};
    use crate::setup::subject::{Precision, Provider, Target, Variant};
    use std::time::Duration;

    fn report(subject: Option<&str>, outcome: Outcome, worst: Option<f64>) -> Report {
        let subject = subject.map(str::to_owned);
        Report {
            case: "a/b".to_owned(),
            column: subject.clone(),
            subject,
            outcome,
            worst,
            notes: Vec::new(),
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn the_exit_code_tells_a_difference_from_a_failure() {
        let differs = || report(None, Outcome::Mismatch(vec!["x".to_owned()]), None);
        let failed = || report(None, Outcome::Failed("x".to_owned()), None);
        let healed = report(None, Outcome::Healed("x".to_owned()), None);
        let fine = || {
            vec![
                report(None, Outcome::Passed, None),
                report(None, Outcome::Known("x".to_owned()), None),
                report(None, Outcome::Skipped("x".to_owned()), None),
            ]
        };
        let with = |more: Report| fine().into_iter().chain([more]).collect::<Vec<_>>();
        assert_eq!(Totals::of(&fine()).exit_code(), 0);
        assert_eq!(Totals::of(&with(differs())).exit_code(), 1);
        assert_eq!(Totals::of(&with(healed)).exit_code(), 1);
        assert_eq!(Totals::of(&with(failed())).exit_code(), 2);
        assert_eq!(Totals::of(&[differs(), failed()]).exit_code(), 2);
        assert_eq!(
            Totals::of(&with(differs())).to_string(),
            "1 ok, 1 differ, 1 known exceptions, 1 skipped"
        );
    }

    #[test]
    fn a_row_has_a_cell_for_every_column() {
        let subject = |target, precision| Subject {
            provider: Provider::Cpu,
            form: Variant::new(target, precision).unwrap(),
            options: runtime::Options::default(),
        };
        let subjects = [
            subject(Target::Portable, Precision::Fp32),
            subject(Target::Portable, Precision::Fp16),
            subject(Target::OrtCoreMl, Precision::Fp32),
        ];
        let cases = [Case::on_each_form(
            "a/b",
            "claim",
            |_| true,
            |_, _| Ok(Findings::default()),
        )];
        let leaves = leaves(&cases, &subjects);
        let rows: Vec<String> = leaves.iter().map(Leaf::row).collect();
        assert_eq!(rows, ["a/b", "a/b", "a/b, target coreml"]);
        assert_eq!(leaves[2].name(), "a/b [cpu coreml fp32]");
        let columns = Columns::new(&leaves);
        assert_eq!(columns.header(), "case                cpu fp32       cpu fp16");
        let reports = [
            report(Some("cpu fp32"), Outcome::Passed, Some(2.6e-7)),
            report(Some("cpu fp16"), Outcome::Mismatch(Vec::new()), Some(0.5)),
        ];
        let row = columns.row("a/b", &reports);
        assert_eq!(row, "a/b                 ok 3e-7        DIFFERS 5e-1");
    }

    #[test]
    fn details_show_the_first_differences() {
        let problems = (0..6).map(|i| format!("`t{i}`: \u{1b}[31m")).collect();
        let text = details(&report(Some("cpu fp32"), Outcome::Mismatch(problems), None));
        assert!(text.starts_with("a/b [cpu fp32]: differs\n  `t0`: "), "{text}");
        assert!(
            text.contains("and 2 more") && !text.contains("`t4`") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert_eq!(details(&report(None, Outcome::Passed, None)), "");
    }

    #[test]
    fn json_is_stable() {
        let reports = [report(
            Some("cpu fp32"),
            Outcome::Mismatch(vec!["`x`: y".to_owned()]),
            Some(f64::INFINITY),
        )];
        let missing = [(Provider::Tract, "left out".to_owned())];
        let json = serde_json::to_value(Run::new(&reports, &missing)).unwrap();
        let expected = serde_json::json!({
            "schema": 1,
            "tool": concat!("fvlm-conform ", env!("CARGO_PKG_VERSION")),
            "fine": false,
            "totals": {"passed": 0, "mismatch": 1, "failed": 0, "skipped": 0, "known": 0, "healed": 0},
            "missing": [{"provider": "tract", "reason": "left out"}],
            "results": [{
                "case": "a/b", "subject": "cpu fp32", "outcome": "mismatch", "details": ["`x`: y"],
                "worst_relative_l2": null, "notes": [], "seconds": 1.5,
            }],
        });
        assert_eq!(json, expected);
    }
}
