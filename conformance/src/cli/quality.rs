//! The flags of `fvlm-conform quality`.

use clap::Args;
use runtime::{DEFAULT_PROMPT, Precision, Provider, Target};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    before_help = "\
Examples:
  fvlm-conform quality                                                  ./fastvlm-bundle, against its own portable fp32
  fvlm-conform quality --model B --demo-eval --markdown                 with the demo model's questions, for a README
  fvlm-conform quality --model B --agreement                            with the share of greedy answers that stay
  fvlm-conform quality --model B --precision fp32 --dump ours.safetensors
                                                                        the script and what came out, for other tools
  fvlm-conform quality --model B --reference theirs.safetensors --compare other.safetensors
                                                                        against what other tools computed of that script
",
    after_help = "\
KL is the divergence of the next token's distribution from the reference's, in nats. \"decoder\" is the decoder fed the image
features of the reference. Files are safetensors; conformance/README.md says what is in them."
)]
pub(crate) struct Quality {
    /// A bundle, a directory that fvlm-export wrote; can be given several times, all of the same weights
    #[arg(long, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) model: Vec<PathBuf>,

    /// The reference is what another tool computed, instead of the first bundle's portable fp32
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "against")]
    pub(crate) reference: Option<PathBuf>,

    /// The reference is this bundle's portable fp32
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) against: Option<PathBuf>,

    /// Also compare what another tool computed; can be given several times
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) compare: Vec<PathBuf>,

    /// Tokens that are fed after the prompt, one by one, and compared
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true)]
    pub(crate) positions: usize,

    /// Who computes
    #[arg(long, value_name = "PROVIDER", default_value = "auto")]
    pub(crate) provider: Provider,

    /// Only this target of the bundles, for example portable; can be given several times [default: all]
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Vec<Target>,

    /// Only this precision of the bundles, for example fp16; can be given several times [default: all]
    #[arg(long, value_name = "PRECISION")]
    pub(crate) precision: Vec<Precision>,

    /// The image [default: a painted scene of 1280 x 960]
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,

    /// No image: for tools that take token ids only
    #[arg(long, conflicts_with = "image")]
    pub(crate) text_only: bool,

    /// The question
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_PROMPT)]
    pub(crate) prompt: String,

    /// Also ask the demo model's 500 held-out questions
    #[arg(long)]
    pub(crate) demo_eval: bool,

    /// Also ask 300 questions about unseen scenes, and count greedy answers that are the reference's word for word
    #[arg(long, conflicts_with = "reference")]
    pub(crate) agreement: bool,

    /// Count the same in what other tools answered; can be given several times
    #[arg(long, value_name = "FILE.json", requires = "agreement")]
    pub(crate) answers: Vec<PathBuf>,

    /// Write what was computed, of the one form that is chosen
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) dump: Option<PathBuf>,

    /// Threads that compute [default: the physical cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// ONNX Runtime's shared library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// One JSON object on stdout instead of the table
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,

    /// The table in Markdown
    #[arg(long)]
    pub(crate) markdown: bool,

    /// Nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
