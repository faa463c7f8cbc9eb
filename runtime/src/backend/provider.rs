//! The providers: every engine by the name that a command line gives it.

use models::bundle::UnknownWord;
use std::fmt;

/// An engine, as the command line names it. Commands have it as a flag's value: feature `cli`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "lowercase"))]
pub enum Provider {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// ONNX Runtime with its CoreML execution provider.
    #[cfg_attr(feature = "cli", value(name = "coreml"))]
    #[serde(rename = "coreml")]
    OrtCoreMl,
    /// Core ML itself, on the packages of `fvlm-export --to coreml`; on Apple's systems, where it was built in.
    /// Never run by its authors.
    #[cfg_attr(feature = "cli", value(name = "coreml-native"))]
    #[serde(rename = "coreml-native")]
    CoreMlNative,
    /// ONNX Runtime on the CPU.
    Cpu,
    /// tract: pure Rust, no shared library.
    Tract,
    /// rten: pure Rust, float32 only, for comparison; where it was built in. Nothing falls back to it.
    Rten,
}

impl Provider {
    /// All of them.
    pub const ALL: [Provider; 6] = [
        Provider::Auto,
        Provider::OrtCoreMl,
        Provider::CoreMlNative,
        Provider::Cpu,
        Provider::Tract,
        Provider::Rten,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Auto => "auto",
            Provider::OrtCoreMl => "coreml",
            Provider::CoreMlNative => "coreml-native",
            Provider::Cpu => "cpu",
            Provider::Tract => "tract",
            Provider::Rten => "rten",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Provider {
    type Err = UnknownWord;

    /// By its name on the command line.
    fn from_str(word: &str) -> Result<Provider, UnknownWord> {
        let found = Provider::ALL.into_iter().find(|provider| provider.name() == word);
        found.ok_or_else(|| UnknownWord {
            field: "provider",
            word: word.to_owned(),
            known: Provider::ALL.map(Provider::name).to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_has_one_name() {
        for provider in Provider::ALL {
            assert_eq!(provider.name().parse(), Ok(provider));
            assert_eq!(serde_json::to_value(provider).unwrap(), provider.name());
            #[cfg(feature = "cli")]
            assert_eq!(
                clap::ValueEnum::to_possible_value(&provider).unwrap().get_name(),
                provider.name()
            );
        }
        let error = "cuda".parse::<Provider>().unwrap_err().to_string();
        assert!(
            error.starts_with("no provider `cuda`, expected one of auto, coreml,"),
            "{error}"
        );
    }
}
