//! Every suite that is not on request, one named test for each claim on each subject: what `fvlm-conform run` does, as
//! `cargo test`. Filters are those of the test harness: `cargo test -p conformance --test suite -- cache/`.

#![expect(clippy::print_stdout, reason = "a test harness talks on stdout")]

use conformance::report;
use conformance::setup::case::{Case, Outcome, leaves};
use conformance::setup::required;
use conformance::setup::subject::{self, Provider};
use conformance::setup::workspace::{Given, Workspace};
use conformance::suite::SUITES;
use std::process::ExitCode;
use std::time::Instant;

/// What the command line asks for; flags that are about threads or capturing mean nothing here.
#[derive(Default)]
struct Arguments {
    wanted: Vec<String>,
    unwanted: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
}

impl Arguments {
    fn read() -> Arguments {
        let mut arguments = Arguments::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.unwanted.extend(words.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(words.next()),
                flag if flag.starts_with('-') => {}
                _ => arguments.wanted.push(word),
            }
        }
        arguments
    }

    fn want(&self, name: &str) -> bool {
        let is = |filter: &String| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        };
        // No claim is ignored: those on request are not even listed.
        !self.ignored
            && (self.wanted.is_empty() || self.wanted.iter().any(is))
            && !self.unwanted.iter().any(is)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::read();
    let (subjects, missing) = subject::available(&Provider::ALL, &runtime::Options::default());
    let suites = SUITES.iter().filter(|suite| !suite.on_request);
    let cases: Vec<Case> = suites.flat_map(|suite| (suite.cases)()).collect();
    let mut chosen = leaves(&cases, &subjects);
    let all = chosen.len();
    chosen.retain(|leaf| arguments.want(&leaf.name()));
    if arguments.list {
        for leaf in &chosen {
            println!("{}: test", leaf.name());
        }
        return ExitCode::SUCCESS;
    }
    for (_, reason) in &missing {
        println!("left out: {reason}");
    }
    if let Err(problem) = required::check(&missing) {
        println!("error: {problem}");
        return ExitCode::FAILURE;
    }
    println!("\nrunning {} tests", chosen.len());
    let workspace = Workspace::new(Given::default()).expect("a temporary directory");
    let start = Instant::now();
    let (mut failures, mut skipped) = (Vec::new(), 0);
    for leaf in &chosen {
        let report = leaf.run(&workspace);
        let word = match &report.outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Known(_) => "ok (known exception)".to_owned(),
            Outcome::Skipped(reason) => {
                skipped += 1;
                format!("ignored, {reason}")
            }
            Outcome::Mismatch(_) | Outcome::Failed(_) | Outcome::Healed(_) => "FAILED".to_owned(),
        };
        println!("test {} ... {word} ({:.1?})", leaf.name(), report.took);
        if !report.outcome.is_fine() {
            failures.push(report::details(&report));
        }
    }
    for failure in &failures {
        println!("\n{failure}");
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out; finished in {:.2?}\n",
        chosen.len() - failures.len() - skipped,
        failures.len(),
        all - chosen.len(),
        start.elapsed()
    );
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
