//! Which flags are there? Only the flags: what they mean together is decided in `plan`.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use programs::manual::Generate;
use runtime::backend::{CoreMlFormat, CoreMlOptions, CoreMlUnits};
use runtime::{DEFAULT_MAX_TOKENS, Precision, Provider, Target, UnknownWord};
use server::schedule;
use std::path::PathBuf;
use std::str::FromStr;

/// Answers questions about images over HTTP, as OpenAI's and Ollama's servers do
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-serve",
    version,
    before_help = "\
Examples:
  fvlm-serve --model fastvlm-bundle                 a page with a camera, at http://127.0.0.1:8000
  FVLM_API_KEY=secret fvlm-serve --host 0.0.0.0     for others who know the key
  fvlm-serve --port 0 --queue 8                     any free port, which stdout names
",
    after_help = "\
stdout has one line, the address; everything else goes to stderr. SIGTERM and Ctrl-C end the server after --grace, a second \
one at once. Exit codes: 2 an error, 130 after Ctrl-C, that of the signal otherwise.
FVLM_API_KEY is as --api-key, and is not shown to others on this machine."
)]
pub(crate) struct Cli {
    /// The bundle, a directory that fvlm-export wrote
    #[arg(long, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) model: PathBuf,

    /// The model's name for clients [default: that of the bundle's directory]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// The address to listen on, or a name that has one
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// The port to listen on; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(crate) port: u16,

    /// What clients must know: `Authorization: Bearer KEY`. Others on this machine may see it here
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,

    /// A file with the key in its first line
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Another name by which the server may be called; can be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,

    /// A page of another server that may use this one, `https://example.org`; can be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,

    /// A certificate, with those that vouch for it, in PEM: HTTPS instead of HTTP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Fetch images that a request names by http:// or https://, from the public internet alone
    #[arg(long)]
    pub(crate) fetch_images: bool,

    /// Most answers at once
    #[arg(long, value_name = "N", default_value_t = schedule::Limits::default().slots, allow_negative_numbers = true)]
    pub(crate) slots: usize,

    /// Most requests that wait; those beyond are refused with status 429
    #[arg(long, value_name = "N", default_value_t = schedule::Limits::default().queue, allow_negative_numbers = true)]
    pub(crate) queue: usize,

    /// Most positions that the KV caches of all conversations have, those kept for a next turn included
    #[arg(long, value_name = "N", default_value_t = schedule::Limits::default().cache_positions, allow_negative_numbers = true)]
    pub(crate) cache_positions: usize,

    /// Most conversations that are kept for a next turn
    #[arg(long, value_name = "N", default_value_t = schedule::Limits::default().kept, allow_negative_numbers = true)]
    pub(crate) keep: usize,

    /// Positions of a prompt that are read between two steps of the answers that run
    #[arg(long, value_name = "N", default_value_t = schedule::Limits::default().prefill_piece, allow_negative_numbers = true)]
    pub(crate) prefill_piece: usize,

    /// Most tokens of an answer where a request does not say how many
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// When the context is full, leave out the oldest turns; the system message and images stay
    #[arg(long)]
    pub(crate) context_shift: bool,

    /// Longest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, allow_negative_numbers = true)]
    pub(crate) max_body: usize,

    /// Most images of a request
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true)]
    pub(crate) max_images: usize,

    /// Largest image, and all images of a request together, in megapixels
    #[arg(long, value_name = "MP", default_value_t = 50, allow_negative_numbers = true)]
    pub(crate) max_pixels: u64,

    /// Most connections at once; others wait
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub(crate) connections: usize,

    /// Seconds that running answers have when the server is to end
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        allow_negative_numbers = true
    )]
    pub(crate) grace: u64,

    /// Compare the SHA-256 of every file of the bundle, weights too, with bundle.json before it answers
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

    /// A line on stderr for every request and every answer: addresses, paths, times, never what was said
    #[arg(long)]
    pub(crate) verbose: bool,

    /// Nothing on stderr but errors
    #[arg(long, short, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

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
