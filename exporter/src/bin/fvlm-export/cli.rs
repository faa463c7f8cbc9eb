//! Which flags are there, and which export do they mean?

use crate::manual::Generate;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use exporter::{ExportPlan, Precision, Source, Target, Variant, plan};
use models::bundle::UnknownWord;
use models::checkpoint::Layout;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Turns a FastVLM checkpoint into a bundle that fvlm-run answers with
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-export",
    version,
    before_help = "\
Examples:
  fvlm-export                                            the demo model, into ./fastvlm-bundle
  fvlm-export --model apple/FastVLM-0.5B -o bundle       a model of the Hugging Face hub
  fvlm-export --model FastVLM-0.5B --precision fp16 -o b a checkpoint directory, half precision
  fvlm-export --model FastVLM-0.5B --precision q4 -o b   for the fastest first token on a CPU
  fvlm-export --model FastVLM-0.5B --image-size 512 -o b also for smaller images, a quarter of the work
  fvlm-export --model FastVLM-0.5B --target coreml -o b  for Apple silicon: ONNX Runtime with Core ML
  fvlm-export --check coreml --onnx FILE                 what Core ML would take of any ONNX model
  fvlm-export --model FastVLM-0.5B --dry-run             what would be read and written
",
    after_help = "\
A bundle appears whole or not at all. What exists is replaced only with --overwrite, and only if it is a bundle.
Exit codes: 0 done, 1 a --check that fails, 2 an error, 130 after Ctrl-C."
)]
pub(crate) struct Cli {
    /// A checkpoint directory, `demo`, or a model of the Hugging Face hub: ORG/NAME, also ORG/NAME@REVISION. What the local
    /// cache lacks of it is downloaded; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere
    #[arg(long, value_name = "DIR|demo|ORG/NAME", default_value = "demo")]
    pub(crate) model: String,

    /// The form to write; can be given several times
    #[arg(long, value_enum, value_name = "FORM", default_value = "onnx")]
    pub(crate) to: Vec<Form>,

    /// Beside the packages of --to coreml, which need iOS 18 or macOS 15, an encoder for iOS 16 and macOS 13
    #[arg(long)]
    pub(crate) ios16_encoder: bool,

    /// The encoder's packages as Apple asks for the Neural Engine: linear layers as convolutions, float16 throughout
    #[arg(long)]
    pub(crate) neural_engine: bool,

    /// For which engines; can be given several times [default: portable, or cpu for int8 and q4]
    #[arg(long, value_parser = target(), value_name = "TARGET")]
    pub(crate) target: Vec<Target>,

    /// How weights are stored; can be given several times, each is a variant of the bundle [default: fp32, fp16 for coreml]
    #[arg(long, value_parser = precision(), value_name = "PRECISION")]
    pub(crate) precision: Vec<Precision>,

    /// Side of square images, in pixels, to add an encoder for beside the model's own size; can be given several times
    #[arg(long, value_name = "N")]
    pub(crate) image_size: Vec<u64>,

    /// Every graph with all its weights in a data file of its own, as browsers need; weights that several graphs read, such
    /// as a tied embedding, are then written several times
    #[arg(long)]
    pub(crate) self_contained: bool,

    /// Slots of the KV cache of Core ML: the longest sequence, image and answer included; at most the model's context
    /// [default: 1024]
    #[arg(long, value_name = "N")]
    pub(crate) max_context: Option<u64>,

    /// New positions of a prefill graph of Core ML, at most the cache's; can be given several times [default: 64 and 320]
    #[arg(long, value_name = "N")]
    pub(crate) prefill: Vec<u64>,

    /// Say which nodes an execution provider of ONNX Runtime would leave to the CPU and why, and write nothing; exit
    /// code 1 unless it would take each graph whole
    #[arg(long, value_enum, value_name = "PROVIDER", conflicts_with_all = ["dry_run", "dump"])]
    pub(crate) check: Option<Check>,

    /// Check this ONNX file, of whatever origin, instead of the model's graphs; can be given several times
    #[arg(long, value_name = "FILE", requires = "check", conflicts_with_all = ["target", "precision", "image_size"])]
    pub(crate) onnx: Vec<PathBuf>,

    /// Check as the provider does without RequireStaticInputShapes: lengths may vary where its builders allow it
    #[arg(long, requires = "check")]
    pub(crate) dynamic_shapes: bool,

    /// A model card in the bundle, README.md: what, from where with hashes, precisions, how to run it, license
    #[arg(long)]
    pub(crate) card: bool,

    /// The bundle's directory
    #[arg(long, short, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) output: PathBuf,

    /// Replace an existing bundle; anything else that exists is never touched
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// How the checkpoint names its tensors
    #[arg(long, value_enum, value_name = "LAYOUT", default_value = "auto")]
    pub(crate) layout: LayoutFlag,

    /// Say what would be read and written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print the graphs as text, and write nothing
    #[arg(long, conflicts_with_all = ["dry_run", "json"])]
    pub(crate) dump: bool,

    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,

    /// Nothing on stderr but errors and warnings
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Print a manual page or completions for a shell, and do nothing else
    #[arg(long, value_enum, value_name = "KIND", exclusive = true)]
    pub(crate) generate: Option<Generate>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Graphs for ONNX Runtime and every other engine that reads ONNX
    Onnx,
    /// Packages for Core ML itself, the cache as its state: fp16, fp32, int8, q4
    #[value(name = "coreml")]
    CoreMl,
}

/// Whose rules are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// The CoreML execution provider, ML Program format
    #[value(name = "coreml")]
    CoreMl,
}

/// A target by its name; help and completions list them.
fn target() -> impl TypedValueParser<Value = Target> {
    let help = |target| match target {
        Target::Portable => "Standard ONNX operators, for every engine: fp32, fp16",
        Target::Cpu => {
            "Fused operators with kernels in fvlm-run, for the fastest first token on a CPU: fp32, int8, q4"
        }
        Target::OrtCoreMl => {
            "Fixed lengths, for ONNX Runtime's CoreML execution provider, which takes each graph whole: fp16, fp32"
        }
    };
    one_of(Target::ALL.map(|target| PossibleValue::new(target.name()).help(help(target))))
}

/// A precision by its name; help and completions list them.
fn precision() -> impl TypedValueParser<Value = Precision> {
    let help = |precision| match precision {
        Precision::Fp32 => "float32",
        Precision::Fp16 => "float16 weights and cache",
        Precision::Int8 => "8-bit weights, 8-bit activations in products",
        Precision::Q4 => "4-bit weights in the decoder, 8-bit elsewhere",
    };
    one_of(Precision::ALL.map(|precision| PossibleValue::new(precision.name()).help(help(precision))))
}

fn one_of<T, const N: usize>(values: [PossibleValue; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values).try_map(|word| word.parse())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutFlag {
    /// As config.json and the tensors' names declare
    Auto,
    /// Apple's (LlavaQwen2ForCausalLM)
    Llava,
    /// FastVlmForConditionalGeneration
    Transformers,
}

impl Cli {
    /// The export that the flags mean.
    ///
    /// # Errors
    /// A target that has none of the precisions, or the other way round.
    pub(crate) fn plan(&self) -> Result<ExportPlan, String> {
        let onnx = self.to.contains(&Form::Onnx);
        let packages = self.packages();
        for (given, flag) in [
            (self.ios16_encoder, "--ios16-encoder"),
            (self.neural_engine, "--neural-engine"),
        ] {
            if given && packages.is_empty() {
                return Err(format!("{flag} is about --to coreml, found --to onnx"));
            }
        }
        if self.neural_engine && packages.contains(&Precision::Fp32) {
            return Err("--neural-engine is float16 throughout, found --precision fp32".to_owned());
        }
        if !self.image_size.is_empty() && !packages.is_empty() {
            return Err(
                "--image-size is about --to onnx alone: packages have the model's own size".to_owned(),
            );
        }
        for (given, flag) in [
            (!self.target.is_empty(), "--target"),
            (self.self_contained, "--self-contained"),
            (self.check.is_some(), "--check"),
            (self.dump, "--dump"),
        ] {
            if given && !onnx {
                return Err(format!("{flag} is about --to onnx, found --to coreml"));
            }
        }
        let plan = ExportPlan {
            source: source(&self.model),
            output: self.output.clone(),
            variants: if onnx { self.variants()? } else { Vec::new() },
            packages,
            older_encoder: self.ios16_encoder,
            neural_engine: self.neural_engine,
            card: self.card,
            image_sizes: self.image_size.clone(),
            self_contained: self.self_contained,
            max_context: self.max_context.unwrap_or(ExportPlan::MAX_CONTEXT),
            prefill: if self.prefill.is_empty() {
                ExportPlan::PREFILL.to_vec()
            } else {
                self.prefill.clone()
            },
            layout: match self.layout {
                LayoutFlag::Auto => None,
                LayoutFlag::Llava => Some(Layout::Llava),
                LayoutFlag::Transformers => Some(Layout::Transformers),
            },
            overwrite: self.overwrite,
            dry_run: self.dry_run,
        };
        for (given, flag) in [
            (self.max_context.is_some(), "--max-context"),
            (!self.prefill.is_empty(), "--prefill"),
        ] {
            if given && !plan.has_fixed_lengths() {
                return Err(format!(
                    "{flag} is about --target coreml and --to coreml, found neither"
                ));
            }
        }
        Ok(plan)
    }

    /// Precisions of Core ML packages, each once.
    fn packages(&self) -> Vec<Precision> {
        if !self.to.contains(&Form::CoreMl) {
            return Vec::new();
        }
        let mut precisions: Vec<Precision> = Vec::new();
        for precision in self.precision.iter().copied() {
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
    fn variants(&self) -> Result<Vec<Variant>, String> {
        let targets = &self.target;
        let mut variants: Vec<Variant> = Vec::new();
        if self.precision.is_empty() {
            // Each target in the precision that is its own.
            let targets = if targets.is_empty() {
                &[Target::Portable][..]
            } else {
                targets
            };
            for variant in targets
                .iter()
                .filter_map(|target| Variant::new(*target, plan::usual_precision(*target)))
            {
                if !variants.contains(&variant) {
                    variants.push(variant);
                }
            }
            return Ok(variants);
        }
        for precision in self.precision.iter().copied() {
            let wanted = if targets.is_empty() {
                plan::targets(precision).get(..1).unwrap_or_default()
            } else {
                &targets[..]
            };
            let found: Vec<Variant> = wanted
                .iter()
                .filter_map(|target| Variant::new(*target, precision))
                .collect();
            if found.is_empty() {
                let has: Vec<&str> = plan::targets(precision)
                    .iter()
                    .map(|target| target.name())
                    .collect();
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
}

/// `demo` is the demo model (a directory of that name is `./demo`); what exists is a directory; `a/b` is a hub id.
fn source(model: &str) -> Source {
    if model == "demo" {
        return Source::Demo;
    }
    let directory = || Source::Directory(PathBuf::from(model));
    if Path::new(model).exists() {
        return directory();
    }
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    let word = |text: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && !text.starts_with('.') && text.chars().all(legal)
    };
    match id.split_once('/') {
        Some((organisation, name)) if word(organisation) && word(name) && revision.split('/').all(word) => {
            Source::Hub {
                id: id.to_owned(),
                revision: revision.to_owned(),
            }
        }
        _other => directory(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(source(model), expected, "{model}");
        }
    }

    #[test]
    fn variants_of_flags() {
        let variants = |flags: &str| -> Result<Vec<String>, String> {
            let arguments = std::iter::once("x").chain(flags.split_whitespace());
            let variants = Cli::try_parse_from(arguments).unwrap().variants()?;
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
            (
                "--target portable --target cpu --precision fp32 --precision q4",
                "portable fp32, cpu fp32, cpu q4",
            ),
        ];
        for (flags, expected) in cases {
            assert_eq!(variants(flags).unwrap().join(", "), expected, "{flags}");
        }
        let message = variants("--target portable --precision q4").unwrap_err();
        assert_eq!(
            message,
            "--precision q4 is a form of target cpu, found --target portable"
        );
        let message = variants("--target cpu --target portable --precision q4").unwrap_err();
        assert_eq!(message, "--target portable has none of the given --precision");
    }

    #[test]
    fn definition() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
