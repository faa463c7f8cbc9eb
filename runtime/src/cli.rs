//! Flags that the commands have in common: who computes, with which of a bundle's graphs, and how.

use crate::backend::{CoreMlFormat, CoreMlOptions, CoreMlUnits};
use crate::{BackendError, EngineError, Options, Precision, Provider, Target, UnknownWord};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use models::bundle::BundleError;
use std::path::{Path, PathBuf};
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
    #[arg(long, value_name = "UNITS", value_enum, default_value_t)]
    coreml_units: CoreMlUnits,

    /// In which format Core ML is given the graphs
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    coreml_format: CoreMlFormat,

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

    /// What is not done as the flags say, one sentence each.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.provider == Provider::Tract && self.onnxruntime.is_some() {
            notices.push("--onnxruntime is only looked at if tract cannot run".to_owned());
        }
        let threads = self.options().thread_count();
        if self.threads.is_some_and(|asked| asked > threads) {
            notices.push(format!(
                "--threads: {threads} threads are used, four for each processor"
            ));
        }
        notices
    }

    /// What the flags about Core ML mean.
    fn coreml(&self) -> CoreMlOptions {
        CoreMlOptions::default()
            .with_units(self.coreml_units)
            .with_format(self.coreml_format)
            .with_fast_prediction(self.coreml_fast_prediction)
            .with_cache(self.coreml_cache.clone())
            .with_partial(self.coreml_partial)
    }
}

/// What a user of these flags, or of the exporter's, could do about an error of the library, which knows no flags.
pub fn hint(error: &EngineError, model: &Path) -> Option<String> {
    let words = match error {
        EngineError::Bundle(BundleError::NotABundle { .. }) => {
            return Some(format!(
                "`fvlm-export --output {}` makes one of the demo model; --model names another",
                model.display()
            ));
        }
        EngineError::Backend(BackendError::InstructionSet { variable, .. }) => {
            return Some(format!("without {variable} the best of this processor is used"));
        }
        EngineError::Bundle(BundleError::Schema { .. }) => {
            "export it again with the fvlm-export of this version"
        }
        EngineError::Bundle(BundleError::Broken { .. }) | EngineError::Backend(BackendError::Altered(_)) => {
            "`fvlm-export --verify` names every file that is not as it was written; copy the bundle, or export it, again"
        }
        EngineError::Backend(BackendError::Unavailable { provider, .. }) if *provider != Provider::Tract => {
            "without --no-fallback another provider is used; --onnxruntime PATH names the library"
        }
        EngineError::NoVariant {
            variants, packages, ..
        } if variants.is_empty() && !packages.is_empty() => {
            "packages are for --provider coreml-native, on a Mac, in a program that was built with `--features \
             coreml-native`; `fvlm-export --to onnx --to coreml` writes graphs for everyone beside them"
        }
        EngineError::NoVariant { .. } => {
            "leave --precision and --target out, or export what is missing: `fvlm-export --precision ...`"
        }
        EngineError::NoImageSize { .. } => {
            "leave --image-size out, or export it: `fvlm-export --image-size ...`"
        }
        EngineError::Backend(BackendError::NotWhole { .. }) => "--coreml-partial allows the rest on the CPU",
        _ => return None,
    };
    Some(words.to_owned())
}
