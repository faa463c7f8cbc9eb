//! The plan of an export: which one the flags mean, and what is wrong with them.

use crate::command::cli::{Cli, Form, LayoutFlag, Place};
use crate::plan::{targets as targets_of, usual_precision};
use crate::{AdoptPlan, ExportPlan, Precision, Source, Target, Variant};
use models::bundle::CoreMlPackages;
use models::checkpoint::Layout;

/// The export that the flags mean.
///
/// # Errors
/// A target that has none of the precisions, or the other way round.
pub(crate) fn plan(cli: &Cli) -> Result<ExportPlan, String> {
    // Not clap's `requires` alone, which is silent where something else is given that conflicts with --check.
    for (given, flag) in [
        (!cli.onnx.is_empty(), "--onnx"),
        (cli.dynamic_shapes, "--dynamic-shapes"),
    ] {
        if given && cli.check.is_none() {
            return Err(format!("{flag} is about --check, which is not given"));
        }
    }
    let onnx = cli.to.contains(&Form::Onnx);
    let packages = packages(cli);
    for (given, flag) in [
        (cli.ios16_encoder, "--ios16-encoder"),
        (cli.neural_engine, "--neural-engine"),
    ] {
        if given && packages.is_empty() {
            return Err(format!("{flag} is about --to coreml, found --to onnx"));
        }
    }
    let mut asked = packages.iter();
    if let Some(none) = asked.find(|precision| !CoreMlPackages::PRECISIONS.contains(precision)) {
        return Err(format!(
            "--to coreml has --precision {}, found {none}",
            CoreMlPackages::PRECISIONS.map(Precision::name).join(", ")
        ));
    }
    if cli.neural_engine && packages.contains(&Precision::Fp32) {
        return Err("--neural-engine is float16 throughout, found --precision fp32".to_owned());
    }
    if !cli.image_size.is_empty() && !packages.is_empty() {
        return Err("--image-size is about --to onnx alone: packages have the model's own size".to_owned());
    }
    for (given, flag) in [
        (!cli.target.is_empty(), "--target"),
        (cli.self_contained, "--self-contained"),
        (cli.page, "--page"),
        (cli.weights == Place::Inside, "--weights inside"),
        (cli.check.is_some(), "--check"),
        (cli.dump, "--dump"),
    ] {
        if given && !onnx {
            return Err(format!("{flag} is about --to onnx, found --to coreml"));
        }
    }
    let plan = ExportPlan {
        source: source(cli),
        adapters: cli.adapter.clone(),
        output: cli.output.clone(),
        variants: if onnx { variants(cli)? } else { Vec::new() },
        packages,
        older_encoder: cli.ios16_encoder,
        neural_engine: cli.neural_engine,
        card: cli.card,
        page: cli.page,
        image_sizes: cli.image_size.clone(),
        self_contained: cli.self_contained,
        weights_inside: cli.weights == Place::Inside,
        max_context: cli.max_context,
        prefill: cli.prefill.clone(),
        layout: match cli.layout {
            LayoutFlag::Auto => None,
            LayoutFlag::Llava => Some(Layout::Llava),
            LayoutFlag::Transformers => Some(Layout::Transformers),
            LayoutFlag::Mlx => Some(Layout::Mlx),
        },
        calibration: cli.calibration.clone(),
        overwrite: cli.overwrite,
        dry_run: cli.dry_run,
    };
    if cli.page {
        page(&plan)?;
    }
    if cli.calibration.is_some() {
        calibrated(&plan.variants)?;
    }
    for (given, flag) in [
        (cli.max_context.is_some(), "--max-context"),
        (!cli.prefill.is_empty(), "--prefill"),
    ] {
        if given && !plan.has_fixed_lengths() {
            return Err(format!(
                "{flag} is about --target coreml and --to coreml, found neither"
            ));
        }
    }
    Ok(plan)
}

/// What the flags adopt instead, if they do.
pub(crate) fn adoption(cli: &Cli) -> Option<AdoptPlan> {
    let directory = cli.from_onnx.clone()?;
    Some(AdoptPlan {
        directory,
        output: cli.output.clone(),
        precisions: cli.precision.clone(),
        overwrite: cli.overwrite,
        dry_run: cli.dry_run,
    })
}

/// Whether statistics of activations are used by every form that rounds.
///
/// # Errors
/// No such form, or one that is rounded without them.
fn calibrated(variants: &[Variant]) -> Result<(), String> {
    let rounds = |variant: &&Variant| !matches!(variant.precision(), Precision::Fp32 | Precision::Fp16);
    let mut rounded = variants.iter().filter(rounds).peekable();
    if rounded.peek().is_none() {
        return Err("--calibration is about --precision int8 and q4 of --to onnx, found neither".to_owned());
    }
    match rounded.find(|variant| variant.target() != Target::Cpu) {
        None => Ok(()),
        Some(variant) => Err(format!(
            "--calibration is about --target cpu, found {variant}, which is rounded to nearest"
        )),
    }
}

/// Whether a browser opens what the page is to run.
///
/// # Errors
/// Graphs that share data files, or none of a form that transformers.js opens.
fn page(plan: &ExportPlan) -> Result<(), String> {
    if !plan.self_contained {
        return Err(
            "--page wants --self-contained: a browser gives each graph its own data file and no other"
                .to_owned(),
        );
    }
    let opens = |variant: &Variant| match variant.target() {
        Target::Portable => true,
        Target::Cpu => variant.precision() != Precision::Fp32,
        Target::OrtCoreMl => false,
    };
    if plan.variants.iter().any(opens) {
        return Ok(());
    }
    let found: Vec<String> = plan.variants.iter().map(Variant::to_string).collect();
    Err(format!(
        "--page runs target portable, int8 or q4, found {} alone",
        found.join(" and ")
    ))
}

/// Precisions of Core ML packages, each once.
fn packages(cli: &Cli) -> Vec<Precision> {
    if !cli.to.contains(&Form::CoreMl) {
        return Vec::new();
    }
    let mut precisions: Vec<Precision> = Vec::new();
    for precision in cli.precision.iter().copied() {
        if !precisions.contains(&precision) {
            precisions.push(precision);
        }
    }
    if precisions.is_empty() {
        precisions.push(Precision::Fp16);
    }
    precisions
}

/// Each precision for each target that has it.
fn variants(cli: &Cli) -> Result<Vec<Variant>, String> {
    let targets = &cli.target;
    let mut variants: Vec<Variant> = Vec::new();
    if cli.precision.is_empty() {
        // Each target in the precision that is its own.
        let targets = if targets.is_empty() {
            &[Target::Portable][..]
        } else {
            targets
        };
        for variant in targets
            .iter()
            .filter_map(|target| Variant::new(*target, usual_precision(*target)))
        {
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
        return Ok(variants);
    }
    for precision in cli.precision.iter().copied() {
        let wanted = if targets.is_empty() {
            targets_of(precision).get(..1).unwrap_or_default()
        } else {
            &targets[..]
        };
        let found: Vec<Variant> = wanted
            .iter()
            .filter_map(|target| Variant::new(*target, precision))
            .collect();
        if found.is_empty() {
            let has: Vec<&str> = targets_of(precision).iter().map(|target| target.name()).collect();
            return Err(format!(
                "--precision {} is a form of target {}, found --target {}",
                precision.name(),
                has.join(" and "),
                targets
                    .iter()
                    .map(|target| target.name())
                    .collect::<Vec<_>>()
                    .join(" and "),
            ));
        }
        for variant in found {
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
    }
    match targets
        .iter()
        .find(|target| !variants.iter().any(|variant| variant.target() == **target))
    {
        None => Ok(variants),
        Some(target) => Err(format!(
            "--target {} has none of the given --precision",
            target.name()
        )),
    }
}

/// The source that the flags name.
fn source(cli: &Cli) -> Source {
    match &cli.model {
        Some(model) => Source::named(model),
        None if cli.adapter.is_empty() => Source::Demo,
        None => Source::OfAdapters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn models_by_name() {
        let hub = |id: &str, revision: &str| Source::Hub {
            id: id.to_owned(),
            revision: revision.to_owned(),
        };
        let cases = [
            ("demo", Source::Demo),
            ("./demo", Source::Directory("./demo".into())),
            ("src", Source::Directory("src".into())),
            ("apple/FastVLM-0.5B", hub("apple/FastVLM-0.5B", "main")),
            ("apple/FastVLM-0.5B@v1", hub("apple/FastVLM-0.5B", "v1")),
            ("/no/such", Source::Directory("/no/such".into())),
            ("a/b/c", Source::Directory("a/b/c".into())),
            ("../b", Source::Directory("../b".into())),
            ("a/b@../c", Source::Directory("a/b@../c".into())),
            ("a/b@refs/pr/1", hub("a/b", "refs/pr/1")),
            ("a/b@v1/", Source::Directory("a/b@v1/".into())),
        ];
        for (model, expected) in cases {
            assert_eq!(Source::named(model), expected, "{model}");
        }
    }

    #[test]
    fn variants_of_flags() {
        let named = |flags: &str| -> Result<Vec<String>, String> {
            let arguments = std::iter::once("x").chain(flags.split_whitespace());
            let variants = variants(&Cli::try_parse_from(arguments).unwrap())?;
            Ok(variants.iter().map(Variant::to_string).collect())
        };
        let cases = [
            ("", "portable fp32"),
            (
                "--precision fp16 --precision fp32 --precision fp16",
                "portable fp16, portable fp32",
            ),
            ("--precision q4 --precision int8", "cpu q4, cpu int8"),
            ("--target cpu", "cpu fp32"),
            ("--target coreml", "coreml fp16"),
            ("--target coreml --target portable", "coreml fp16, portable fp32"),
            (
                "--target coreml --precision fp32 --precision fp16",
                "coreml fp32, coreml fp16",
            ),
            (
                "--precision fp16 --target portable --target coreml",
                "portable fp16, coreml fp16",
            ),
            ("--target cpu --target portable", "cpu fp32, portable fp32"),
            ("--target portable --precision q4", "portable q4"),
            (
                "--target portable --target cpu --precision q4 --precision q8",
                "portable q4, cpu q4, portable q8",
            ),
            ("--precision q8 --precision q4f16", "portable q8, portable q4f16"),
            (
                "--target portable --target cpu --precision fp32 --precision q4",
                "portable fp32, cpu fp32, portable q4, cpu q4",
            ),
        ];
        for (flags, expected) in cases {
            assert_eq!(named(flags).unwrap().join(", "), expected, "{flags}");
        }
        let message = named("--target coreml --precision q4").unwrap_err();
        assert_eq!(
            message,
            "--precision q4 is a form of target cpu and portable, found --target coreml"
        );
        let message = named("--target cpu --precision q4f16").unwrap_err();
        assert_eq!(
            message,
            "--precision q4f16 is a form of target portable, found --target cpu"
        );
        let message = named("--target cpu --target coreml --precision q4").unwrap_err();
        assert_eq!(message, "--target coreml has none of the given --precision");
    }

    #[test]
    fn what_makes_no_sense_is_said_in_a_sentence() {
        let refused = |flags: &str| {
            let arguments = std::iter::once("x").chain(flags.split_whitespace());
            plan(&Cli::try_parse_from(arguments).unwrap()).unwrap_err()
        };
        for (flags, expected) in [
            (
                "--to coreml --precision q8",
                "--to coreml has --precision fp32, fp16, int8, q4, found q8",
            ),
            (
                "--to onnx --to coreml --precision q4 --precision q4f16",
                "--to coreml has --precision fp32, fp16, int8, q4, found q4f16",
            ),
            (
                "--calibration x --target portable --precision q4",
                "--calibration is about --target cpu, found portable q4, which is rounded to nearest",
            ),
            (
                "--calibration x --target cpu --target portable --precision int8",
                "--calibration is about --target cpu, found portable int8, which is rounded to nearest",
            ),
            (
                "--calibration x --precision fp16",
                "--calibration is about --precision int8 and q4 of --to onnx, found neither",
            ),
        ] {
            assert_eq!(refused(flags), expected, "{flags}");
        }
    }
}
