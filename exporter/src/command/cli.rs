//! The flags, and nothing but the flags: `plan.rs` says which export they mean.

use crate::{AdapterPlace, AdapterSource, Precision, Target};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use models::bundle::UnknownWord;
use programs::manual::Generate;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Turns a FastVLM checkpoint into a bundle that fvlm-run answers with
#[derive(Debug, Parser)]
#[command(
    name = "fvlm-export",
    version,
    before_help = "\
Examples:
  fvlm-export                                            the demo model, into ./fastvlm-bundle
  fvlm-export --model apple/FastVLM-0.5B -o bundle       a model of the Hugging Face hub
  fvlm-export --adapter my-lora -o bundle                a fine-tune, merged into the model that it was made from
  fvlm-export --model FastVLM-0.5B --precision fp16 -o b a checkpoint directory, half precision
  fvlm-export --model FastVLM-0.5B --precision q4 -o b   for the fastest first token on a CPU
  fvlm-export --model FastVLM-0.5B --image-size 512 -o b also for smaller images, a quarter of the work
  fvlm-export --model FastVLM-0.5B --target coreml -o b  for Apple silicon: ONNX Runtime with Core ML
  fvlm-export --target portable --precision q4 -o b      4-bit graphs for other people's engines
  fvlm-export --self-contained --page -o site            a page that runs the model in a browser
  fvlm-export --from-onnx FastVLM-0.5B-ONNX -o bundle    graphs that others exported, for fvlm-run
  fvlm-export --check coreml --onnx FILE                 what Core ML would take of any ONNX model
  fvlm-export --model FastVLM-0.5B --dry-run             what would be read and written
  fvlm-export --verify bundle                            whether every file is as it was written
",
    after_help = "\
A bundle appears whole or not at all. What exists is replaced only with --overwrite, and only if it is a bundle.
Exit codes: 0 done, 1 a --check or --verify that fails, 2 an error, 130 after Ctrl-C. SIGTERM and SIGHUP clean up and end it too."
)]
pub(crate) struct Cli {
    /// A checkpoint directory, `demo`, or a model of the Hugging Face hub: ORG/NAME, also ORG/NAME@REVISION. What the local
    /// cache lacks of it is downloaded; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere
    /// [default: demo; with --adapter the model that it was made from]
    #[arg(long, value_name = "DIR|demo|ORG/NAME")]
    pub(crate) model: Option<String>,

    /// A fine-tune to merge into the model's weights: a directory that PEFT (LoRA, DoRA) or LLaVA's or ml-fastvlm's training
    /// script wrote, their file of a projector, or such a repository of the Hugging Face hub: ORG/NAME, also ORG/NAME@REVISION,
    /// downloaded as a model is. Can be given several times; =WEIGHT multiplies what it changes
    #[arg(long, value_name = "DIR|ORG/NAME[=WEIGHT]", value_parser = adapter)]
    pub(crate) adapter: Vec<AdapterSource>,

    /// Make a bundle of graphs that another program exported, as transformers.js reads them: a directory with config.json, the
    /// tokenizer's and the processor's files, and onnx/. Each graph is checked against what config.json states, and copied as
    /// it is; fvlm-run runs it on ONNX Runtime. --precision takes some of those that are there
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = [
            "model", "adapter", "to", "ios16_encoder", "neural_engine", "target", "calibration", "image_size",
            "self_contained", "weights", "max_context", "prefill", "check", "onnx", "verify", "dynamic_shapes", "card", "page",
            "layout", "dump",
        ]
    )]
    pub(crate) from_onnx: Option<PathBuf>,

    /// The form to write; can be given several times
    #[arg(long, value_enum, value_name = "FORM", default_value = "onnx")]
    pub(crate) to: Vec<Form>,

    /// Beside the packages of --to coreml, which need iOS 18 or macOS 15, an encoder for iOS 16 and macOS 13
    #[arg(long)]
    pub(crate) ios16_encoder: bool,

    /// The encoder's packages as Apple asks for the Neural Engine: linear layers as convolutions, float16 throughout
    #[arg(long)]
    pub(crate) neural_engine: bool,

    /// For which engines; can be given several times [default: portable, or cpu for int8 and q4]
    #[arg(long, value_parser = target(), value_name = "TARGET")]
    pub(crate) target: Vec<Target>,

    /// How weights are stored; can be given several times, each is a variant of the bundle [default: fp32, fp16 for coreml]
    #[arg(long, value_parser = precision(), value_name = "PRECISION")]
    pub(crate) precision: Vec<Precision>,

    /// Statistics of this checkpoint's activations, by which int8 and q4 are rounded with less loss: a file that
    /// `fvlm-conform calibrate` wrote
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) calibration: Option<PathBuf>,

    /// Side of square images, in pixels, to add an encoder for beside the model's own size; can be given several times
    #[arg(long, value_name = "N")]
    pub(crate) image_size: Vec<u64>,

    /// Every graph with all its weights in a data file of its own, as browsers need; weights that several graphs read, such
    /// as a tied embedding, are then written several times
    #[arg(long)]
    pub(crate) self_contained: bool,

    /// Where weights are, in graphs of --to onnx
    #[arg(
        long,
        value_enum,
        value_name = "PLACE",
        default_value = "beside",
        conflicts_with = "self_contained"
    )]
    pub(crate) weights: Place,

    /// Slots of the KV cache of Core ML: the longest sequence, image and answer included; at most the model's context
    /// [default: 1024]
    #[arg(long, value_name = "N")]
    pub(crate) max_context: Option<u64>,

    /// New positions of a prefill graph of Core ML, at most the cache's; can be given several times [default: 64 and 320]
    #[arg(long, value_name = "N")]
    pub(crate) prefill: Vec<u64>,

    /// Say which nodes an execution provider of ONNX Runtime would leave to the CPU and why, and write nothing; exit
    /// code 1 unless it would take each graph whole
    #[arg(long, value_enum, value_name = "PROVIDER", conflicts_with_all = ["dry_run", "dump"])]
    pub(crate) check: Option<Check>,

    /// Check this ONNX file, of whatever origin, instead of the model's graphs; can be given several times
    #[arg(long, value_name = "FILE", requires = "check", conflicts_with_all = ["target", "precision", "image_size"])]
    pub(crate) onnx: Vec<PathBuf>,

    /// Read every file of this bundle and compare its SHA-256 with bundle.json, and do nothing else; exit code 1 unless all
    /// are as they were written
    #[arg(
        long,
        value_name = "BUNDLE",
        conflicts_with_all = [
            "model", "adapter", "to", "ios16_encoder", "neural_engine", "target", "precision", "calibration", "image_size",
            "self_contained", "weights", "max_context", "prefill", "check", "onnx", "card", "page", "output",
            "overwrite", "layout",
            "dry_run", "dump",
        ]
    )]
    pub(crate) verify: Option<PathBuf>,

    /// Check as the provider does without RequireStaticInputShapes: lengths may vary where its builders allow it
    #[arg(long, requires = "check")]
    pub(crate) dynamic_shapes: bool,

    /// A model card in the bundle, README.md: what, from where with hashes, precisions, how to run it, license
    #[arg(long)]
    pub(crate) card: bool,

    /// A page in the bundle, index.html, that runs it in a browser: with it the folder is a demo on any web host. Wants
    /// --self-contained
    #[arg(long)]
    pub(crate) page: bool,

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

    /// Print a manual page or completions for a shell, and do nothing else
    #[arg(long, value_enum, value_name = "KIND", exclusive = true)]
    pub(crate) generate: Option<Generate>,
}

/// A fine-tune, with `=WEIGHT` behind it unless there is something of the whole name.
fn adapter(text: &str) -> Result<AdapterSource, String> {
    let named = |name: &str, weight| AdapterSource {
        place: AdapterPlace::named(name),
        weight,
    };
    let Some((name, weight)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok(named(text, 1.0));
    };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() && weight != 0.0 && !name.is_empty() => Ok(named(name, weight)),
        _ if Path::new(name).exists() || matches!(AdapterPlace::named(name), AdapterPlace::Hub { .. }) => {
            Err(format!(
                "the weight is `{weight}`, expected a number other than 0"
            ))
        }
        _ => Ok(named(text, 1.0)),
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Graphs for ONNX Runtime and every other engine that reads ONNX
    Onnx,
    /// Packages for Core ML itself, the cache as its state: fp16, fp32, int8, q4
    #[value(name = "coreml")]
    CoreMl,
}

/// Where weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// In data files beside the graphs, which engines map: any size, and graphs share what both read
    Beside,
    /// In each graph's own file, below 2 GB each: for whatever takes one file, and for the CoreML provider of ONNX Runtime
    /// before 1.26, which crashes on others
    Inside,
}

/// Whose rules are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// The CoreML execution provider, ML Program format
    #[value(name = "coreml")]
    OrtCoreMl,
}

/// A target by its name; help and completions list them.
fn target() -> impl TypedValueParser<Value = Target> {
    let help = |target| match target {
        Target::Portable => {
            "Standard ONNX operators, for every engine: fp32, fp16, int8; for ONNX Runtime everywhere and browsers: q4, q4f16, q8"
        }
        Target::Cpu => {
            "Fused operators with kernels in fvlm-run, for the fastest first token on a CPU: fp32, int8, q4"
        }
        Target::OrtCoreMl => {
            "Fixed lengths, for ONNX Runtime's CoreML execution provider, which takes each graph whole: fp16, fp32"
        }
    };
    one_of(Target::ALL.map(|target| PossibleValue::new(target.name()).help(help(target))))
}

/// A precision by its name; help and completions list them.
fn precision() -> impl TypedValueParser<Value = Precision> {
    let help = |precision| match precision {
        Precision::Fp32 => "float32",
        Precision::Fp16 => "float16 weights and cache",
        Precision::Int8 => "8-bit weights, 8-bit activations in products",
        Precision::Q8 => "8-bit weights in blocks; transformers.js takes it on WebAssembly unless it is told",
        Precision::Q4 => "4-bit weights in the decoder, 8-bit elsewhere",
        Precision::Q4F16 => "4-bit weights in the decoder; float16 activations, cache and encoder",
    };
    one_of(Precision::ALL.map(|precision| PossibleValue::new(precision.name()).help(help(precision))))
}

fn one_of<T, const N: usize>(values: [PossibleValue; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(values).try_map(|word| word.parse())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutFlag {
    /// As config.json and the tensors' names declare
    Auto,
    /// Apple's (LlavaQwen2ForCausalLM)
    Llava,
    /// FastVlmForConditionalGeneration
    Transformers,
    /// A conversion by mlx-vlm (vision_tower.vision_model)
    Mlx,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn adapters_with_weights() {
        let of = |path: &str, weight| {
            let place = AdapterPlace::Path(path.into());
            Ok(AdapterSource { place, weight })
        };
        let hub = |id: &str, revision: &str, weight| {
            let (id, revision) = (id.to_owned(), revision.to_owned());
            let place = AdapterPlace::Hub { id, revision };
            Ok(AdapterSource { place, weight })
        };
        let cases = [
            ("lora", of("lora", 1.0)),
            ("lora=0.5", of("lora", 0.5)),
            ("a=b=-2e-1", of("a=b", -0.2)),
            ("no/such/place=one", of("no/such/place=one", 1.0)),
            ("./no=one", of("./no=one", 1.0)),
            ("org/lora", hub("org/lora", "main", 1.0)),
            ("org/lora@v1=-0.5", hub("org/lora", "v1", -0.5)),
            ("org/lora@refs/pr/1", hub("org/lora", "refs/pr/1", 1.0)),
            ("../lora", of("../lora", 1.0)),
            ("org/lora/", of("org/lora/", 1.0)),
            ("=1", of("=1", 1.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(adapter(text), expected, "{text}");
        }
        for weight in ["0", "nan", "inf", "", "half", "-0", "1e999"] {
            for name in ["src", "org/lora", "org/lora@v1"] {
                let error = adapter(&format!("{name}={weight}")).unwrap_err();
                assert!(error.contains(&format!("`{weight}`")), "{error}");
            }
        }
        // What is there is meant.
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("rank=8");
        std::fs::create_dir(&odd).unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(adapter(odd), of(odd, 1.0));
        assert_eq!(adapter(&format!("{odd}=2")), of(odd, 2.0));
    }
}
