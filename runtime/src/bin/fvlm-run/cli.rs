//! Which flags are there? Only the flags: what they mean together is decided in `plan`.

use crate::newest::Every;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use programs::manual::Generate;
use runtime::backend::{CoreMlFormat, CoreMlOptions, CoreMlUnits};
use runtime::{DEFAULT_MAX_TOKENS, DEFAULT_PROMPT, Precision, Provider, Target, UnknownWord};
use std::path::PathBuf;
use std::str::FromStr;

/// Answers questions about images with a FastVLM bundle
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-run",
    version,
    before_help = "\
Examples:
  fvlm-run image.png                                    describe it
  fvlm-run --prompt \"How many cats?\" --stats image.png  ask, and say what it took
  cat image.png | fvlm-run --json -                     one JSON object per answer
  fvlm-run --interactive image.png                      a chat about it
  ffmpeg ... -f image2pipe - | fvlm-run --frames -      what a camera sees, frame by frame
",
    after_help = "\
Answers go to stdout, everything else to stderr. Exit codes: 0 done, 2 an error, 130 after Ctrl-C.
In a chat: /image PATH adds an image to the next question, /reset forgets everything, /quit ends.
FVLM_ISA names the instruction set that kernels of target cpu use, for measurements and bug reports: portable, avx2, \
or what else --stats or an error names [default: the best of this processor]."
)]
pub(crate) struct Cli {
    /// Images: PNG, JPEG, WebP, GIF, BMP or TIFF; `-` is stdin. Each is described in turn
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,

    /// The bundle, a directory that fvlm-export wrote
    #[arg(long, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) model: PathBuf,

    /// Compare the SHA-256 of every file of the bundle, weights too, with bundle.json before it answers; without an image
    /// and a question do nothing else
    #[arg(long)]
    pub(crate) verify: bool,

    /// Who computes: coreml, cpu (ONNX Runtime), tract, or the first of them that works here
    #[arg(long, value_name = "PROVIDER", default_value = "auto")]
    pub(crate) provider: Provider,

    /// Fail when the provider cannot run here, instead of taking the next
    #[arg(long)]
    pub(crate) no_fallback: bool,

    /// Which of the bundle's precisions, for example fp16 [default: the first of the target]
    #[arg(long, value_name = "PRECISION", value_parser = one_of::<Precision>(Precision::ALL.map(Precision::name)))]
    pub(crate) precision: Option<Precision>,

    /// Which of the bundle's targets, for example portable [default: the best that the provider takes]
    #[arg(long, value_name = "TARGET", value_parser = one_of::<Target>(Target::ALL.map(Target::name)))]
    pub(crate) target: Option<Target>,

    /// Side of the square that images become, in pixels: smaller is faster [default: the model's own]
    #[arg(long, value_name = "N")]
    pub(crate) image_size: Option<u32>,

    /// ONNX Runtime's shared library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// Threads that compute [default: the physical cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// What Core ML may compute on
    #[arg(long, value_name = "UNITS", value_enum, default_value_t = Units::All)]
    pub(crate) coreml_units: Units,

    /// In which format Core ML is given the graphs
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::MlProgram)]
    pub(crate) coreml_format: Format,

    /// Let Core ML prepare for the fastest answers: a longer first start, more disk
    #[arg(long)]
    pub(crate) coreml_fast_prediction: bool,

    /// Keep models that Core ML has compiled here, so that the next start does not compile them again
    #[arg(long, value_name = "DIR")]
    pub(crate) coreml_cache: Option<PathBuf>,

    /// Let nodes of target coreml stay on the CPU, instead of failing
    #[arg(long)]
    pub(crate) coreml_partial: bool,

    /// The question [default: "Describe the image."]
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Instructions before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// 0 takes the likeliest token; above 0 draws, the higher the wilder
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// Draw only from the K likeliest tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) top_k: usize,

    /// Draw only from the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f32,

    /// Above 1 makes tokens that were there less likely
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,

    /// Makes tokens less likely that the answer has already, from -2 to 2
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,

    /// As --presence-penalty, for each time that the answer has them
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,

    /// Seed of the draws [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,

    /// Ends an answer where this text would come; can be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,

    /// Answer with the likeliest of these, separated by commas (one inside is written `\,`), or given several times; with
    /// --json the probability of each
    #[arg(long, value_name = "A,B,...", allow_hyphen_values = true, conflicts_with_all = ["json_schema", "regex", "batch"])]
    pub(crate) choices: Vec<String>,

    /// Answer with JSON that is valid against the JSON schema in this file
    #[arg(long, value_name = "FILE", conflicts_with = "regex")]
    pub(crate) json_schema: Option<PathBuf>,

    /// Answer with a text that as a whole matches this regular expression
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,

    /// With --json, how likely the model found each token, and so many others in its place, up to 20
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", require_equals = true, requires = "json")]
    pub(crate) logprobs: Option<usize>,

    /// All images in one prompt
    #[arg(long, conflicts_with = "interactive")]
    pub(crate) together: bool,

    /// How many of several images are described at once: each further one costs less, and memory for what the model
    /// remembers of it [default: 8, or as many as that memory stays under 1 GiB]
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with_all = ["together", "interactive"])]
    pub(crate) batch: Option<usize>,

    /// The question about frames as they come: JPEGs, PNGs or y4m one behind the other, from a pipe or a file; `-` is stdin.
    /// The newest frame of a pipe wins, those before it are dropped and counted; a file waits
    #[arg(long, value_name = "STREAM", conflicts_with_all = ["images", "together", "batch", "interactive"])]
    pub(crate) frames: Option<PathBuf>,

    /// Ask about each Nth frame, or once in a time: 5, 2s, 500ms
    #[arg(long, value_name = "N|TIME")]
    pub(crate) every: Option<Every>,

    /// Ask about a frame only if it differs so much from the last one that was asked about, from 0 (equal) to 1 (black
    /// against white)
    #[arg(long, value_name = "DIFFERENCE", allow_negative_numbers = true)]
    pub(crate) on_change: Option<f32>,

    /// Drop no frame: a pipe waits for answers, too
    #[arg(long)]
    pub(crate) no_drop: bool,

    /// A chat about the images, a line a question; follow-ups reuse what is computed
    #[arg(long, short)]
    pub(crate) interactive: bool,

    /// When the context of a chat is full, leave out its oldest turns; the system message and images stay
    #[arg(long, requires = "interactive")]
    pub(crate) context_shift: bool,

    /// Say on stderr what an answer took, and when what happened
    #[arg(long)]
    pub(crate) stats: bool,

    /// One JSON object per answer on stdout, a line each
    #[arg(long)]
    pub(crate) json: bool,

    /// Nothing on stderr but errors
    #[arg(long, short, conflicts_with = "stats")]
    pub(crate) quiet: bool,

    /// Largest image, in megapixels
    #[arg(long, value_name = "MP", default_value_t = 100, allow_negative_numbers = true)]
    pub(crate) max_pixels: u64,

    /// Print a manual page or completions for a shell, and do nothing else
    #[arg(long, value_enum, value_name = "KIND", exclusive = true)]
    pub(crate) generate: Option<Generate>,
}

/// What Core ML may compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Units {
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
pub(crate) enum Format {
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

impl Cli {
    /// What the flags about Core ML mean.
    pub(crate) fn coreml(&self) -> CoreMlOptions {
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

/// The default question, which `--help` names.
pub(crate) const QUESTION: &str = DEFAULT_PROMPT;
