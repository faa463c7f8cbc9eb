//! Which forms of the networks are there? The target of graphs, and the precision of weights: closed sets,
//! whose words stand in `bundle.json` and on the command lines.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// For which engines the graphs of a variant are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `portable`: standard ONNX operators, for every engine; in precisions of blocks one of ONNX Runtime's own,
    /// which other engines know too.
    Portable,
    /// `cpu`: fused operators, for processors: our kernels in ONNX Runtime and tract, their bodies anywhere
    /// else.
    Cpu,
    /// `coreml`: fixed lengths, in forms that ONNX Runtime's CoreML execution provider claims. Core ML itself
    /// runs [`CoreMlPackages`](super::CoreMlPackages), which have no target.
    OrtCoreMl,
}

/// How weights are stored, and most products computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// `fp32`: float32 throughout.
    Fp32,
    /// `fp16`: float16 weights and KV cache; sums that need it in float32.
    Fp16,
    /// `int8`: bytes with a scale for each output; activations become bytes on their way into a product, where the
    /// engine does so.
    Int8,
    /// `q8`: embedding and decoder in bytes with a scale for each few weights, the encoder as int8.
    Q8,
    /// `q4`: the decoder in nibbles with a scale for each 32 weights, everything else in bytes.
    Q4,
    /// `q4f16`: the decoder as q4; scales, activations, KV cache and the encoder in float16.
    Q4F16,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::Portable, Target::Cpu, Target::OrtCoreMl];

    /// As flags and bundles spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Portable => "portable",
            Target::Cpu => "cpu",
            Target::OrtCoreMl => "coreml",
        }
    }
}

impl Precision {
    /// Every precision, the exact one first.
    pub const ALL: [Precision; 6] = [
        Precision::Fp32,
        Precision::Fp16,
        Precision::Int8,
        Precision::Q8,
        Precision::Q4,
        Precision::Q4F16,
    ];

    /// As flags and bundles spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
            Precision::Q8 => "q8",
            Precision::Q4 => "q4",
            Precision::Q4F16 => "q4f16",
        }
    }
}

/// A word that is none of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no {field} `{word}`, expected one of {}", known.join(", "))]
pub struct UnknownWord {
    /// What it should name: `target`, `precision`, `provider`.
    pub field: &'static str,
    /// The word.
    pub word: String,
    /// The words that this build knows.
    pub known: Vec<&'static str>,
}

/// The word of each member is its `name`: in text, in JSON, and back.
macro_rules! words {
    ($set:ident, $field:literal) => {
        impl fmt::Display for $set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $set {
            type Err = UnknownWord;

            /// By its name.
            fn from_str(word: &str) -> Result<$set, UnknownWord> {
                let mut all = $set::ALL.into_iter();
                all.find(|one| one.name() == word)
                    .ok_or_else(|| UnknownWord {
                        field: $field,
                        word: word.to_owned(),
                        known: $set::ALL.map($set::name).to_vec(),
                    })
            }
        }

        impl Serialize for $set {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $set {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$set, D::Error> {
                let word = String::deserialize(deserializer)?;
                word.parse().map_err(D::Error::custom)
            }
        }
    };
}

words!(Target, "target");
words!(Precision, "precision");

/// A form that a newer program wrote: its target or precision has a word that this build does not know. It is
/// set aside, not checked and not run; the other forms of its bundle are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownForm {
    /// Where its entry stands in `bundle.json`: `variants[1]`.
    pub entry: String,
    /// What is unknown.
    pub unknown: UnknownWord,
}

impl fmt::Display for UnknownForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnknownForm { entry, unknown } = self;
        let UnknownWord { field, word, known } = unknown;
        write!(
            f,
            "`{entry}.{field}` is `{word}`, expected one of {}",
            known.join(", ")
        )
    }
}

/// Takes the entries with unknown words out of a contract's lists of forms.
pub(super) fn set_aside(contract: &mut serde_json::Value) -> Vec<UnknownForm> {
    let mut unknown = Vec::new();
    for list in ["variants", "packages"] {
        let Some(entries) = contract.get_mut(list).and_then(serde_json::Value::as_array_mut) else {
            continue;
        };
        let mut number = 0;
        entries.retain(|entry| {
            let found = unknown_word(entry).map(|unknown| UnknownForm {
                entry: format!("{list}[{number}]"),
                unknown,
            });
            number += 1;
            let known = found.is_none();
            unknown.extend(found);
            known
        });
    }
    unknown
}

/// What is unknown of an entry; whatever else is wrong with it is found when it is read.
fn unknown_word(entry: &serde_json::Value) -> Option<UnknownWord> {
    let word = |field: &str| entry.get(field).and_then(serde_json::Value::as_str);
    let target = word("target").and_then(|word| word.parse::<Target>().err());
    target.or_else(|| word("precision").and_then(|word| word.parse::<Precision>().err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        for target in Target::ALL {
            assert_eq!(target.name().parse(), Ok(target));
            let json = serde_json::to_string(&target).unwrap();
            assert_eq!(json, format!("\"{target}\""));
            assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target);
        }
        for precision in Precision::ALL {
            assert_eq!(precision.name().parse(), Ok(precision));
            let json = serde_json::to_string(&precision).unwrap();
            assert_eq!(serde_json::from_str::<Precision>(&json).unwrap(), precision);
        }
        let error = "Portable".parse::<Target>().unwrap_err().to_string();
        assert_eq!(
            error,
            "no target `Portable`, expected one of portable, cpu, coreml"
        );
        let error = serde_json::from_str::<Precision>("\"fp8\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no precision `fp8`, expected one of fp32, fp16, int8, q8, q4, q4f16"),
            "{error}"
        );
    }
}
