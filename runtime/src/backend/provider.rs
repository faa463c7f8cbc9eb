//! The providers: every engine by the name that a command line gives it.

use std::fmt;

/// An engine, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Provider {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// ONNX Runtime with its CoreML execution provider.
    #[value(name = "coreml")]
    #[serde(rename = "coreml")]
    OrtCoreMl,
    /// Core ML itself, on the packages of `fvlm-export --to coreml`; on macOS, where it was built in. Never
    /// run by its authors.
    #[value(name = "coreml-native")]
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
    type Err = String;

    /// By its name on the command line.
    fn from_str(name: &str) -> Result<Provider, String> {
        let all = <Provider as clap::ValueEnum>::value_variants();
        all.iter()
            .copied()
            .find(|provider| provider.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|provider| provider.name()).collect();
                format!("no provider `{name}`, expected one of {}", names.join(", "))
            })
    }
}
