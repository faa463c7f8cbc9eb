#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod adopt;
mod balance;
pub mod calibration;
mod clients;
pub mod command;
mod contract;
pub mod demo;
mod error;
pub mod files;
mod forms;
mod hub;
mod marked;
pub mod mlpackage;
pub mod onnx;
pub mod ort_coreml;
pub mod passes;
pub mod plan;
pub mod report;
mod source;
mod staging;
mod summary;
mod target;
mod trial;
mod write;

pub use adopt::{AdoptPlan, adopt};
pub use error::{ExportError, HubProblem};
pub use plan::{AdapterPlace, AdapterSource, ExportPlan, Precision, Source, Target, Variant};
pub use report::{Phase, Report, Silent};
pub use summary::{FileOrigin, FileSummary, GraphSummary, PackageSummary, Summary, VariantSummary};

use forms::{Forms, Lowered, Opened};
use models::checkpoint::Adapter;
use source::Resolved;
use std::sync::Arc;

/// Carries out an export: a bundle appears at the plan's output, whole, or nothing does.
///
/// # Errors
/// A checkpoint that is not a FastVLM, a target that may not be written, or a system that refuses. Nothing that was
/// written stays.
pub fn export(plan: &ExportPlan, report: &mut dyn Report) -> Result<Summary, ExportError> {
    if !plan.dry_run {
        target::look(&plan.output, plan.overwrite)?;
    }
    let (adapters, warnings) = adapters(plan, !plan.dry_run, report)?;
    let source = source::resolve(&plan.source, &adapters, !plan.dry_run, report)?;
    let mut opened = Opened::open(source.directory(), plan, adapters)?;
    trial::settle(source.directory(), &mut opened.assets)?;
    let info = opened.info(source.name);
    let forms = Forms::new(&opened, &info.name)?;
    let variants = contract::variants(&opened, &forms);
    clients::transformers_js::announce(&mut opened.assets, &variants)?;
    let mut summary = Summary::new(&opened, info, &forms);
    summary.warnings.extend(warnings);
    summary.warnings.extend(source.warnings);
    summary.warnings.extend(opened.assets.warnings.iter().cloned());
    if plan.dry_run {
        return Ok(summary);
    }
    let bundle = write::write(&opened, source.hub.as_deref(), &summary, &forms, report)?;
    summary.output = Some(plan.output.clone());
    summary.output_hex = models::plain::hex_of_odd(plan.output.as_os_str());
    summary.bytes = bundle.files.iter().map(|file| file.bytes).sum();
    let not_finite = opened.weights.non_finite();
    if !not_finite.is_empty() {
        let names: Vec<String> = not_finite.iter().map(|name| format!("`{name}`")).collect();
        summary.warnings.push(format!(
            "NaN or infinite values in {}: answers cannot be right",
            names.join(", ")
        ));
    }
    Ok(summary)
}

/// Opens the adapters of a plan; what the user should know comes with them.
fn adapters(
    plan: &ExportPlan,
    download: bool,
    report: &mut dyn Report,
) -> Result<(Arc<[Adapter]>, Vec<String>), ExportError> {
    let mut warnings = Vec::new();
    let mut adapters = Vec::new();
    for adapter in &plan.adapters {
        let (adapter, more) = source::adapter(adapter, download, report)?;
        adapters.push(adapter);
        warnings.extend(more);
    }
    Ok((adapters.into(), warnings))
}

/// A plan's checkpoint for what only looks: nothing is downloaded.
fn look(plan: &ExportPlan) -> Result<(Resolved, Arc<[Adapter]>), ExportError> {
    let (adapters, _) = adapters(plan, false, &mut Silent)?;
    let source = source::resolve(&plan.source, &adapters, false, &mut Silent)?;
    Ok((source, adapters))
}

/// Removes what exports of this process have begun to write: for a program that ends in the middle of one without
/// returning from it. What was published stays.
pub fn abandon() {
    marked::abandon();
}

/// The graphs of a plan as stable text, passes included: what `--dump` prints.
///
/// # Errors
/// As [`export`], as far as it reads.
pub fn dump(plan: &ExportPlan) -> Result<String, ExportError> {
    let (source, adapters) = look(plan)?;
    let opened = Opened::open(source.directory(), plan, adapters)?;
    let mut text = String::new();
    for &variant in &plan.variants {
        let graphs = opened.graphs(variant)?.into_iter();
        let further = opened
            .prefill(variant)?
            .into_iter()
            .chain(opened.further_encoders(variant)?);
        for graph in graphs.chain(further) {
            text.push_str(&passes::run(graph, variant)?.to_string());
        }
    }
    Ok(text)
}

/// What ONNX Runtime's CoreML execution provider would do with the graphs of a plan; the token embedding of target
/// `coreml` is left out, which is looked up outside. `fixed` as in [`ort_coreml::check`].
///
/// # Errors
/// As [`export`], as far as it reads.
pub fn check_ort_coreml(plan: &ExportPlan, fixed: bool) -> Result<Vec<ort_coreml::Verdict>, ExportError> {
    let (source, adapters) = look(plan)?;
    let opened = Opened::open(source.directory(), plan, adapters)?;
    let mut verdicts = Vec::new();
    for &variant in &plan.variants {
        verdicts.extend(Lowered::prepare(&opened, variant)?.verdicts(&opened, fixed)?);
    }
    Ok(verdicts)
}
