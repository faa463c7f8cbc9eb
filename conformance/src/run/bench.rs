//! `fvlm-conform bench`: the processes take turns, then all is told.

use crate::cli::bench::Bench;
use crate::output::{self, Complaint};
use crate::plan::bench::Plan;
use conformance::bench::chart::{self, Record};
use conformance::bench::machine::Machine;
use conformance::bench::{Report, SCHEMA, child, measure, plot, rounds, table};
use conformance::loaded::picture_name;
use std::path::Path;
use std::process::ExitCode;

/// `fvlm-conform bench`
pub(crate) fn bench(flags: &Bench) -> Result<ExitCode, Complaint> {
    if flags.child {
        return be_child(flags);
    }
    if let Some(record) = &flags.chart {
        return draw(record);
    }
    let plan = Plan::new(flags)?;
    if !flags.quiet {
        for (_, reason) in &plan.missing {
            output::tell(&format!("left out: {reason}"));
        }
    }
    let report = carry_out(plan, flags.quiet)?;
    for failure in &report.failed {
        let named = flags.provider.contains(&failure.combination.provider);
        if named || !flags.quiet {
            output::tell(&format!(
                "left out: {}: {}",
                failure.combination.name(),
                failure.reason
            ));
        }
    }
    if report.results.is_empty() {
        return Err(Complaint::new("nothing could be measured"));
    }
    if let Some(path) = &flags.plot {
        write_file(path, &plot::svg(&report))?;
    }
    match (flags.json, flags.markdown) {
        (true, _) => output::write_json(&(json(&report)? + "\n"))?,
        (_, true) => output::write(&table::markdown(&report))?,
        _ => output::write(&table::plain(&report))?,
    }
    let broken = report
        .failed
        .iter()
        .filter(|failure| flags.provider.contains(&failure.combination.provider))
        .count();
    match broken {
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Complaint::new(format!(
            "{count} of {} combinations could not be measured",
            count + report.results.len()
        ))
        .hint("--target and --precision choose those that the provider can compute")),
    }
}

/// Draws what was recorded.
fn draw(path: &Path) -> Result<ExitCode, Complaint> {
    let failed = |problem: String| {
        Complaint::new(format!("{}: {problem}", path.display()))
            .hint("--chart takes a file that scripts/bench_peers --record wrote")
    };
    let text = models::regular::text(path, u64::MAX).map_err(|error| failed(error.to_string()))?;
    output::write(&chart::svg(&Record::parse(&text).map_err(failed)?))?;
    Ok(ExitCode::SUCCESS)
}

/// Measures in this process.
fn be_child(flags: &Bench) -> Result<ExitCode, Complaint> {
    let (settings, combination) = Plan::of_child(flags)?;
    let sample =
        measure::measure(&settings, &combination).map_err(|error| Complaint::new(error.to_string()))?;
    output::write_json(&(json(&sample)? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn carry_out(plan: Plan, quiet: bool) -> Result<Report, Complaint> {
    let program = std::env::current_exe()
        .map_err(|error| Complaint::new(format!("cannot find this program again: {error}")))?;
    let settings = plan.settings;
    let bar = output::progress(quiet, "{pos}/{len} {elapsed} {msg}");
    bar.set_length((plan.combinations.len() * settings.repeat) as u64);
    let (results, failed) = rounds(&plan.combinations, settings.repeat, &mut |combination| {
        bar.set_message(combination.name());
        let sample = child::run(&program, &settings, combination);
        bar.inc(1);
        sample
    });
    bar.finish_and_clear();
    Ok(Report {
        schema: SCHEMA,
        tool: concat!("fvlm-conform ", env!("CARGO_PKG_VERSION")),
        model: plan.model,
        machine: Machine::here(),
        threads: settings.options().thread_count(),
        image: picture_name(settings.image.as_deref()),
        image_size: plan.image_size,
        prompt: settings.prompt,
        warm_up: settings.warm_up,
        repeat: settings.repeat,
        decode_tokens: settings.decode_tokens,
        results,
        failed,
    })
}

fn json(value: &impl serde::Serialize) -> Result<String, Complaint> {
    serde_json::to_string(value)
        .map_err(|error| Complaint::new(format!("what was measured has no JSON form: {error}")))
}

fn write_file(path: &Path, text: &str) -> Result<(), Complaint> {
    std::fs::write(path, text)
        .map_err(|error| Complaint::new(format!("cannot write `{}`: {error}", path.display())))
}
