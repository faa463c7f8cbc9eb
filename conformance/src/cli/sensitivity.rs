//! The flags of `fvlm-conform sensitivity` and `fvlm-conform calibrate`.

use clap::Args;
use conformance::setup::subject::{Precision, Provider};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    before_help = "\
Examples:
  fvlm-conform sensitivity --checkpoint DIR                     where int8 and q4 lose it
  fvlm-conform sensitivity --checkpoint DIR --calibration FILE  what calibration leaves
",
    after_help = "\
KL is the divergence of the next token's distribution from fp32's, in nats, the mean over all positions of
greedy answers about unseen scenes. \"its weights\": they alone are rounded, and multiplied in float32; what
\"alone\" has beyond that is lost by activations that become bytes. Operators are named by their first weight."
)]
pub(crate) struct Sensitivity {
    /// A checkpoint directory, or `demo`
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    pub(crate) checkpoint: PathBuf,

    /// Round by these statistics, a file of `fvlm-conform calibrate`
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) calibration: Option<PathBuf>,

    /// Only this precision; can be given several times [default: int8 and q4]
    #[arg(long, value_name = "PRECISION", value_parser = super::precisions())]
    pub(crate) precision: Vec<Precision>,

    /// Scenes that are described, three answers each, at most 100
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub(crate) scenes: usize,

    /// Who computes
    #[arg(long, value_enum, value_name = "PROVIDER", default_value = "cpu")]
    pub(crate) provider: Provider,

    /// ONNX Runtime's library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// The tables in Markdown
    #[arg(long)]
    pub(crate) markdown: bool,

    /// Nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
#[command(
    before_help = "\
Examples:
  fvlm-conform calibrate --checkpoint FastVLM-0.5B photos/ -o statistics.safetensors
  fvlm-export --model FastVLM-0.5B --precision q4 --calibration statistics.safetensors -o bundle
",
    after_help = "\
Images should be like those that will be asked about; some dozens are enough. The model answers each prompt
about each image in fp32, and the second moments of what its products multiply with are written."
)]
pub(crate) struct Calibrate {
    /// Image files, and folders of PNG and JPEG files
    #[arg(value_name = "IMAGES", required = true)]
    pub(crate) images: Vec<PathBuf>,

    /// A checkpoint directory, or `demo`
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    pub(crate) checkpoint: PathBuf,

    /// What is asked about each image; can be given several times
    #[arg(long, value_name = "TEXT", default_value = runtime::DEFAULT_PROMPT)]
    pub(crate) prompt: Vec<String>,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) answer_tokens: usize,

    /// Who computes
    #[arg(long, value_enum, value_name = "PROVIDER", default_value = "cpu")]
    pub(crate) provider: Provider,

    /// ONNX Runtime's library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// The file that is written
    #[arg(long, short, value_name = "FILE.safetensors")]
    pub(crate) output: PathBuf,

    /// Nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
