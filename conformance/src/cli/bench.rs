//! The flags of `fvlm-conform bench`.

use clap::Args;
use runtime::{DEFAULT_PROMPT, Precision, Provider, Target};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    before_help = "\
Examples:
  fvlm-conform bench                                               every form of ./fastvlm-bundle, on every engine
  fvlm-conform bench --provider cpu --precision fp32 --repeat 9    one combination
  fvlm-conform bench --json --plot timeline.svg > times.json       for programs, and as a picture
  fvlm-conform bench --chart conformance/benches/results/R.json    what was recorded of others, as a picture
",
    after_help = "\
Combinations take turns, each run in a process of its own. Times of a machine that does other things mean little; ratios
within one run mean more. What cannot be measured is said on stderr; it is an error where its provider was named."
)]
pub(crate) struct Bench {
    /// The bundle, a directory that fvlm-export wrote
    #[arg(long, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) model: PathBuf,

    /// Only on this provider; can be given several times [default: all that work here]
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) provider: Vec<Provider>,

    /// Only this target of the bundle, for example portable; can be given several times [default: all]
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Vec<Target>,

    /// Only this precision of the bundle, for example fp32; can be given several times [default: all]
    #[arg(long, value_name = "PRECISION")]
    pub(crate) precision: Vec<Precision>,

    /// The image [default: a painted scene of 1280 x 960]
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,

    /// Side of the square that the image becomes, in pixels [default: the model's own]
    #[arg(long, value_name = "N")]
    pub(crate) image_size: Option<u32>,

    /// The question
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_PROMPT)]
    pub(crate) prompt: String,

    /// Threads that compute [default: the physical cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,

    /// Runs of each process before the one that counts
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) warm_up: usize,

    /// Rounds: how often each combination is measured
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    pub(crate) repeat: usize,

    /// Tokens that are decoded after the first
    #[arg(long, value_name = "N", default_value_t = 32, allow_negative_numbers = true)]
    pub(crate) decode_tokens: usize,

    /// Describe so many painted scenes too, and say how many a second
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) scenes: usize,

    /// How many of the scenes at once
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true)]
    pub(crate) batch: usize,

    /// ONNX Runtime's shared library, or a directory with it [default: ORT_DYLIB_PATH, then well-known places]
    #[arg(long, value_name = "PATH")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// One JSON object on stdout instead of the table
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,

    /// The table in Markdown
    #[arg(long)]
    pub(crate) markdown: bool,

    /// Write the timeline as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,

    /// Measure nothing: the chart of a record of scripts/bench_peers, as SVG on stdout
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["json", "markdown", "plot", "child"])]
    pub(crate) chart: Option<PathBuf>,

    /// Nothing on stderr but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// Measure once, in this process, and say it in a line of JSON
    #[arg(long, hide = true)]
    pub(crate) child: bool,
}
