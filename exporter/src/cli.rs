//! Which flags are there, and which export do they mean?

use clap::{Parser, ValueEnum};
use exporter::{ExportPlan, Precision, Source};
use models::checkpoint::Layout;
use std::path::{Path, PathBuf};

/// Turns a FastVLM checkpoint into a bundle that fvlm-run answers with
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-export",
    version,
    before_help = "\
Examples:
  fvlm-export                                            the demo model, into ./fastvlm-bundle
  fvlm-export --model FastVLM-0.5B --precision fp16 -o b a checkpoint directory, half precision
  fvlm-export --model FastVLM-0.5B --dry-run             what would be read and written
",
    after_help = "\
A bundle appears whole or not at all. What exists is replaced only with --overwrite, and only if it is a bundle.
Exit codes: 0 done, 2 an error, 130 after Ctrl-C."
)]
pub(crate) struct Cli {
    /// A checkpoint directory, `demo`, or ORG/NAME, also ORG/NAME@REVISION, in the local Hugging Face cache
    #[arg(long, value_name = "DIR|demo|ORG/NAME", default_value = "demo")]
    pub(crate) model: String,

    /// The form to write
    #[arg(long, value_enum, value_name = "FORM", default_value = "onnx")]
    pub(crate) to: Vec<Form>,

    /// For which engines: portable is standard ONNX operators only
    #[arg(long, value_enum, value_name = "TARGET", default_value = "portable")]
    pub(crate) target: Vec<Target>,

    /// How weights are stored; can be given several times, each is a variant of the bundle
    #[arg(long, value_enum, value_name = "PRECISION", default_value = "fp32")]
    pub(crate) precision: Vec<PrecisionFlag>,

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
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Onnx,
}

/// For which engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Portable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionFlag {
    Fp32,
    Fp16,
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
    pub(crate) fn plan(&self) -> ExportPlan {
        let mut precisions = Vec::new();
        for flag in &self.precision {
            let precision = match flag {
                PrecisionFlag::Fp32 => Precision::Fp32,
                PrecisionFlag::Fp16 => Precision::Fp16,
            };
            if !precisions.contains(&precision) {
                precisions.push(precision);
            }
        }
        ExportPlan {
            source: source(&self.model),
            output: self.output.clone(),
            precisions,
            layout: match self.layout {
                LayoutFlag::Auto => None,
                LayoutFlag::Llava => Some(Layout::Llava),
                LayoutFlag::Transformers => Some(Layout::Transformers),
            },
            overwrite: self.overwrite,
            dry_run: self.dry_run,
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
        Some((organisation, name)) if word(organisation) && word(name) && word(revision) => Source::Hub {
            id: id.to_owned(),
            revision: revision.to_owned(),
        },
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
        ];
        for (model, expected) in cases {
            assert_eq!(source(model), expected, "{model}");
        }
    }

    #[test]
    fn a_precision_counts_once() {
        let plan = |arguments: &[&str]| Cli::try_parse_from(arguments).unwrap().plan();
        assert_eq!(plan(&["x"]).precisions, [Precision::Fp32]);
        let twice = [
            "x",
            "--precision",
            "fp16",
            "--precision",
            "fp32",
            "--precision",
            "fp16",
        ];
        assert_eq!(plan(&twice).precisions, [Precision::Fp16, Precision::Fp32]);
    }

    #[test]
    fn definition() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
