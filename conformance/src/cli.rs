//! Which flags are there? Only the flags: what they mean together is decided in `plan`.

pub(crate) mod bench;
pub(crate) mod quality;
pub(crate) mod sensitivity;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use conformance::setup::subject::{Precision, Provider, Target};
use conformance::synth;
use programs::manual::Generate;
use std::path::PathBuf;

/// Compares what runs here with what was published
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-conform",
    version,
    before_help = "\
Examples:
  fvlm-conform run                                           every suite, on every engine that works here
  fvlm-conform run --bundle B --reference R.json             a bundle of yours against a recording of yours
  fvlm-conform bench                                         how long ./fastvlm-bundle takes, step by step
  fvlm-conform quality                                       how much each precision of it loses
  fvlm-conform sensitivity --checkpoint DIR                  which operators lose it
  fvlm-conform calibrate photos/ -o S.safetensors            statistics by which fvlm-export rounds with less loss
  fvlm-conform synth --size demo --layout llava -o DIR       a checkpoint made of noise, with every tensor
",
    after_help = "\
Verdicts go to stdout, everything else to stderr. Exit codes: 0 all is as it should be, 1 something differs, 2 an error."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists suites and claims, or the tables of what is compared with what
    List(List),
    /// Tries claims: suites x engines x precisions
    Run(Run),
    /// Measures time and memory: providers x targets x precisions
    Bench(bench::Bench),
    /// Measures what precisions lose: image features and logits against a reference
    Quality(quality::Quality),
    /// Measures which operators lose what int8 and q4 lose
    Sensitivity(sensitivity::Sensitivity),
    /// Writes statistics of a checkpoint's activations, for fvlm-export --calibration
    Calibrate(sensitivity::Calibrate),
    /// Writes a synthetic checkpoint
    Synth(Synth),
    /// Prints a manual page or completions for a shell
    Generate(Manual),
}

#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// What to print
    #[arg(value_enum, value_name = "KIND")]
    pub(crate) kind: Generate,
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fvlm-conform list                every suite and its claims
  fvlm-conform list --markdown     targets x precisions x engines, as in the README
  fvlm-conform list --references   networks x layouts, as in this program's README
")]
pub(crate) struct List {
    /// The table of targets, precisions and engines, in Markdown: how each is proven
    #[arg(long, conflicts_with = "references")]
    pub(crate) markdown: bool,

    /// The table of networks and layouts, in Markdown: what was recorded
    #[arg(long)]
    pub(crate) references: bool,
}

#[derive(Debug, Args)]
#[command(
    before_help = "\
Examples:
  fvlm-conform run                                                    every suite
  fvlm-conform run --suite references --provider tract                one suite on one engine
  fvlm-conform run --suite end_to_end --target cpu --precision q4     the recorded answers, by our kernels in 4 bits
  fvlm-conform run --bundle B --reference R.json --checkpoint DIR     a recording of yours; the checkpoint is
                                                                      needed to look inside the encoder
  fvlm-conform run --suite full-size --precision fp32                 the geometry of FastVLM-0.5B, minutes
",
    after_help = "\
A cell of the table is a verdict and the largest relative L2 distance that was measured. Differences are listed in
network order, the first one first. The interpreter evaluates the graphs by the book: where it is right and an engine is
not, the engine or the export is wrong; where both are wrong, the network is."
)]
pub(crate) struct Run {
    /// A bundle to compare, instead of those that references name
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) bundle: Option<PathBuf>,

    /// A recording of conformance/reference/record.py, instead of the compiled-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) reference: Option<PathBuf>,

    /// The checkpoint behind the bundle; without --bundle, it is exported first
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Only on this engine; can be given several times [default: all that work here]
    #[arg(long, value_enum, value_name = "PROVIDER")]
    pub(crate) provider: Vec<Provider>,

    /// Only graphs made for these engines; can be given several times [default: all]
    #[arg(long, value_name = "TARGET", value_parser = targets())]
    pub(crate) target: Vec<Target>,

    /// Only in this precision; can be given several times [default: all]
    #[arg(long, value_name = "PRECISION", value_parser = precisions())]
    pub(crate) precision: Vec<Precision>,

    /// Only this suite; can be given several times. Some are run only when named, see `list`
    #[arg(long, value_name = "NAME")]
    pub(crate) suite: Vec<String>,

    /// Only cases whose name contains this; `*` stands for anything, then the whole name must match
    #[arg(long, value_name = "PATTERN")]
    pub(crate) case: Option<String>,

    /// ONNX Runtime's shared library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// One JSON object on stdout instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// On stdout only what is not as it should be and the last line, on stderr only errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

fn targets() -> impl TypedValueParser<Value = Target> {
    PossibleValuesParser::new(Target::ALL.map(Target::name)).try_map(|word| word.parse::<Target>())
}

pub(super) fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name)).try_map(|word| word.parse::<Precision>())
}

#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fvlm-conform synth --size demo --layout transformers-train -o DIR            13 MB, at once
  fvlm-conform synth --size 0.5b --layout llava --dtype bf16 --seed 7 -o DIR   1.2 GB, seconds
")]
pub(crate) struct Synth {
    #[command(flatten)]
    pub(crate) options: synth::Options,

    /// Nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
