//! Which flags are there? Only the flags: what they mean together is decided in `plan`.

use crate::{Settings, schedule};
use clap::Parser;
use programs::manual::Generate;
use runtime::cli::EngineFlags;
use std::path::PathBuf;

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
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_tokens, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// When the context is full, leave out the oldest turns; the system message and images stay
    #[arg(long)]
    pub(crate) context_shift: bool,

    /// Longest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = Settings::default().max_body >> 20, allow_negative_numbers = true)]
    pub(crate) max_body: usize,

    /// Most images of a request
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_images, allow_negative_numbers = true)]
    pub(crate) max_images: usize,

    /// Largest image, and all images of a request together, in megapixels
    #[arg(long, value_name = "MP", default_value_t = Settings::default().max_pixels / 1_000_000, allow_negative_numbers = true)]
    pub(crate) max_pixels: u64,

    /// Most connections at once; others wait
    #[arg(long, value_name = "N", default_value_t = Settings::default().connections, allow_negative_numbers = true)]
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

    #[command(flatten)]
    pub(crate) engine: EngineFlags,

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
