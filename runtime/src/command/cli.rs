//! Which flags are there? Only the flags: what they mean together is decided in `plan`.

use crate::DEFAULT_MAX_TOKENS;
use crate::cli::EngineFlags;
use crate::command::captions::shard::Shard;
use crate::command::newest::Every;
use clap::Parser;
use programs::manual::Generate;
use std::path::PathBuf;

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
  fvlm-run --output captions.jsonl photos/              a folder, a line an image; goes on where it was
",
    after_help = "\
Answers go to stdout, everything else to stderr. Exit codes: 0 done, 2 an error, 130 after Ctrl-C; with --output 1 \
where all is done and some images have an error.
In a chat: /image PATH adds an image to the next question, /reset forgets all but the images of the command line, /quit ends.
FVLM_ISA names the instruction set that kernels of target cpu use, and pictures are resized with, for measurements and bug reports: portable, avx2, \
or what else --stats or an error names [default: the best of this processor]."
)]
pub(crate) struct Cli {
    /// Images: PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC or AVIF; `-` is stdin. Each is described in turn
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,

    /// The bundle, a directory that fvlm-export wrote
    #[arg(long, value_name = "BUNDLE", default_value = "fastvlm-bundle")]
    pub(crate) model: PathBuf,

    /// Compare the SHA-256 of every file of the bundle, weights too, with bundle.json before it answers; without an image
    /// and a question do nothing else
    #[arg(long)]
    pub(crate) verify: bool,

    #[command(flatten)]
    pub(crate) engine: EngineFlags,

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
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", require_equals = true,
        requires = "json", conflicts_with = "output")]
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

    /// Append a line for each of many images to this file: {"image", "prompt", "text", "finish"} as JSON, or an "error" in the place of
    /// an answer. IMAGE is then also a folder, a pattern ("*.png", "**/*.jpg"), or a list of images (a .txt file; `-` is one on
    /// stdin). Images that have a line are not asked again: what was interrupted goes on
    #[arg(long, short, value_name = "FILE",
        conflicts_with_all = ["together", "interactive", "frames", "json", "stats"])]
    pub(crate) output: Option<PathBuf>,

    /// Only a part of the images, by their names: 2/8 is the second of eight. Each part needs an --output of its own
    #[arg(long, value_name = "N/OF")]
    pub(crate) shard: Option<Shard>,

    /// A chat about the images, a line a question; follow-ups reuse what is computed
    #[arg(long, short)]
    pub(crate) interactive: bool,

    /// When the context of a chat is full, leave out its oldest turns; the system message and images stay
    #[arg(long, requires = "interactive", conflicts_with_all = ["together", "batch", "frames", "output"])]
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
