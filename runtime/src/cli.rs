//! Flags that the commands have in common: who computes, with which of a bundle's graphs, and how.

use crate::backend::{CoreMlFormat, CoreMlOptions, CoreMlUnits};
use crate::{Options, Precision, Provider, Target, UnknownWord};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;

/// Who computes, with which graphs, and how: to be flattened into a command's flags.
#[derive(Debug, Clone, Args)]
pub struct EngineFlags {
    /// Who computes: coreml, cpu (ONNX Runtime), tract, or the first of them that works here
    #[arg(long, value_name = "PROVIDER", default_value = "auto")]
    provider: Provider,

    /// Fail when the provider cannot run here, instead of taking the next
    #[arg(long)]
    no_fallback: bool,

    /// Which of the bundle's precisions, for example fp16 [default: the first of the target]
    #[arg(long, value_name = "PRECISION", value_parser = one_of::<Precision>(Precision::ALL.map(Precision::name)))]
    precision: Option<Precision>,

    /// Which of the bundle's targets, for example portable [default: the best that the provider takes]
    #[arg(long, value_name = "TARGET", value_parser = one_of::<Target>(Target::ALL.map(Target::name)))]
    target: Option<Target>,

    /// Side of the square that images become, in pixels: smaller is faster [default: the model's own]
    #[arg(long, value_name = "N")]
    image_size: Option<u32>,

    /// ONNX Runtime's shared library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,

    /// Threads that compute [default: the physical cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads: Option<usize>,

    /// What Core ML may compute on
    #[arg(long, value_name = "UNITS", value_enum, default_value_t = Units::All)]
    coreml_units: Units,

    /// In which format Core ML is given the graphs
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::MlProgram)]
    coreml_format: Format,

    /// Let Core ML prepare for the fastest answers: a longer first start, more disk
    #[arg(long)]
    coreml_fast_prediction: bool,

    /// Keep models that Core ML has compiled here, so that the next start does not compile them again
    #[arg(long, value_name = "DIR")]
    coreml_cache: Option<PathBuf>,

    /// Let nodes of target coreml stay on the CPU, instead of failing
    #[arg(long)]
    coreml_partial: bool,
}

/// What Core ML may compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Units {
    /// Whatever is best
    All,
    /// The CPU and the Neural Engine
    CpuAndNe,
    /// The CPU and the GPU
    CpuAndGpu,
    /// The CPU
    Cpu,
}

/// In which format Core ML is given the graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What our graphs are written for
    MlProgram,
    /// The older one, which knows fewer operators
    NeuralNetwork,
}

/// A member of a closed set by its name, which help and completions list.
fn one_of<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|word| word.parse())
}

impl EngineFlags {
    /// What the flags mean.
    pub fn options(&self) -> Options {
        Options::default()
            .with_provider(self.provider)
            .with_fallback(!self.no_fallback)
            .with_precision(self.precision)
            .with_target(self.target)
            .with_image_size(self.image_size)
            .with_onnxruntime(self.onnxruntime.clone())
            .with_threads(self.threads)
            .with_coreml(self.coreml())
    }

    /// What is out of range, in words.
    pub fn problem(&self) -> Option<String> {
        let most = Options::MAX_THREADS;
        let threads = self.threads.filter(|threads| !(1..=most).contains(threads))?;
        Some(format!("--threads is {threads}, expected 1 to {most}"))
    }

    /// Whether ONNX Runtime is pointed to although nobody will use it.
    pub fn ignores_library(&self) -> bool {
        self.provider == Provider::Tract && self.onnxruntime.is_some()
    }

    /// What the flags about Core ML mean.
    fn coreml(&self) -> CoreMlOptions {
        CoreMlOptions::default()
            .with_units(match self.coreml_units {
                Units::All => CoreMlUnits::All,
                Units::CpuAndNe => CoreMlUnits::CpuAndNe,
                Units::CpuAndGpu => CoreMlUnits::CpuAndGpu,
                Units::Cpu => CoreMlUnits::Cpu,
            })
            .with_format(match self.coreml_format {
                Format::MlProgram => CoreMlFormat::MlProgram,
                Format::NeuralNetwork => CoreMlFormat::NeuralNetwork,
            })
            .with_fast_prediction(self.coreml_fast_prediction)
            .with_cache(self.coreml_cache.clone())
            .with_partial(self.coreml_partial)
    }
}
