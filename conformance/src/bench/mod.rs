//! How long does it take? Each exported form on each engine, in processes of their own, in turn.
//!
//! A round measures every combination once, each in a new process ([`child`]): so its peak of memory is its own, and what
//! disturbs the machine for a while disturbs all of them. What is told are the median and the spread over the rounds.

pub mod chart;
pub mod child;
pub mod machine;
pub mod measure;
pub mod plot;
pub mod statistics;
pub mod table;

use crate::loaded::Combination;
use machine::Machine;
use measure::Sample;
use serde::Serialize;
use statistics::Spread;
use std::path::PathBuf;

/// Version of the JSON form; a change of meaning raises it.
pub const SCHEMA: u32 = 1;

/// What is measured, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The bundle's directory.
    pub model: PathBuf,
    /// The image; a painted scene where there is none.
    pub image: Option<PathBuf>,
    /// The question.
    pub prompt: String,
    /// Side of the square that the image becomes; the bundle's default where none is named.
    pub image_size: Option<u32>,
    /// Threads that compute; the engine's default where none are named.
    pub threads: Option<usize>,
    /// ONNX Runtime's library.
    pub onnxruntime: Option<PathBuf>,
    /// Runs of a process before the one that counts.
    pub warm_up: usize,
    /// Rounds.
    pub repeat: usize,
    /// Tokens that are decoded after the first.
    pub decode_tokens: usize,
    /// Scenes that are described for the throughput; 0 where that is not measured.
    pub scenes: usize,
    /// How many of them at once.
    pub batch: usize,
}

impl Settings {
    /// How engines are opened.
    pub fn options(&self) -> runtime::Options {
        runtime::Options::default()
            .with_fallback(false)
            .with_image_size(self.image_size)
            .with_onnxruntime(self.onnxruntime.clone())
            .with_threads(self.threads)
    }
}

/// What a combination took, in seconds and bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Which.
    #[serde(flatten)]
    pub combination: Combination,
    /// Which instruction set our kernels used; `None` where the engine's own ran all of it.
    pub isa: Option<String>,
    /// Positions of the prompt.
    pub prompt_tokens: usize,
    /// Opening the bundle.
    #[serde(rename = "load_s")]
    pub load: Spread,
    /// From RGB bytes to `pixel_values`.
    #[serde(rename = "preprocess_s")]
    pub preprocess: Spread,
    /// The vision encoder.
    #[serde(rename = "encode_s")]
    pub encode: Spread,
    /// Embedding and decoder over the prompt.
    #[serde(rename = "prefill_s")]
    pub prefill: Spread,
    /// From RGB bytes and a question to the first token, in a process that is warm.
    #[serde(rename = "ttft_s")]
    pub first_token: Spread,
    /// Per token after the first.
    #[serde(rename = "decode_s")]
    pub decode: Spread,
    /// Most memory that a process of it held; `None` where the system does not say.
    #[serde(rename = "peak_rss_bytes")]
    pub peak_memory: Option<u64>,
    /// Scenes that are described in a second; `None` where that was not measured.
    #[serde(rename = "images_per_s", skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<Spread>,
}

impl Measured {
    /// What the rounds of a combination say together; `None` where there were none.
    pub fn of(combination: &Combination, samples: &[Sample]) -> Option<Measured> {
        let spread =
            |seconds: fn(&Sample) -> f64| Spread::of(&samples.iter().map(seconds).collect::<Vec<f64>>());
        Some(Measured {
            combination: combination.clone(),
            isa: samples.first()?.isa.clone(),
            prompt_tokens: samples.first()?.prompt_tokens,
            load: spread(|sample| sample.load)?,
            preprocess: spread(|sample| sample.preprocess)?,
            encode: spread(|sample| sample.encode)?,
            prefill: spread(|sample| sample.prefill)?,
            first_token: spread(|sample| sample.first_token)?,
            decode: spread(|sample| sample.decode)?,
            peak_memory: samples.iter().filter_map(|sample| sample.peak_memory).max(),
            images_per_second: Spread::of(
                &samples
                    .iter()
                    .filter_map(|sample| sample.images_per_second)
                    .collect::<Vec<f64>>(),
            ),
        })
    }
}

/// A combination that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which.
    #[serde(flatten)]
    pub combination: Combination,
    /// Why.
    pub reason: String,
}

/// All that was measured. The fields are stable; `schema` is raised when one changes its meaning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Program and version.
    pub tool: &'static str,
    /// The model's name in its bundle.
    pub model: String,
    /// Where.
    pub machine: Machine,
    /// Threads that computed.
    pub threads: usize,
    /// Name of the image.
    pub image: String,
    /// Height and width of `pixel_values`.
    pub image_size: [u32; 2],
    /// The question.
    pub prompt: String,
    /// [`Settings::warm_up`].
    pub warm_up: usize,
    /// [`Settings::repeat`].
    pub repeat: usize,
    /// [`Settings::decode_tokens`].
    pub decode_tokens: usize,
    /// In the order of the combinations.
    pub results: Vec<Measured>,
    /// What could not be measured.
    pub failed: Vec<Failure>,
}

/// Measures all combinations `rounds` times in turn. `measure` runs one of them once; one that fails is not run again.
pub fn rounds(
    combinations: &[Combination],
    rounds: usize,
    measure: &mut dyn FnMut(&Combination) -> Result<Sample, String>,
) -> (Vec<Measured>, Vec<Failure>) {
    let mut samples: Vec<Result<Vec<Sample>, Failure>> =
        combinations.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..rounds {
        for (combination, samples) in combinations.iter().zip(&mut samples) {
            let Ok(taken) = samples else { continue };
            match measure(combination) {
                Ok(sample) => taken.push(sample),
                Err(reason) => {
                    let combination = combination.clone();
                    *samples = Err(Failure { combination, reason });
                }
            }
        }
    }
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for (combination, samples) in combinations.iter().zip(samples) {
        match samples {
            Ok(samples) => measured.extend(Measured::of(combination, &samples)),
            Err(failure) => failed.push(failure),
        }
    }
    (measured, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{Precision, Provider, Target};

    fn combination(precision: Precision) -> Combination {
        Combination {
            provider: Provider::Tract,
            target: Target::Portable,
            precision,
        }
    }

    fn sample(load: f64, peak_memory: u64) -> Sample {
        Sample {
            isa: Some("portable".to_owned()),
            prompt_tokens: 9,
            load,
            preprocess: 1.0,
            encode: 2.0,
            prefill: 3.0,
            first_token: 6.0,
            decode: 0.5,
            peak_memory: Some(peak_memory),
            images_per_second: None,
        }
    }

    #[test]
    fn combinations_take_turns_and_one_that_fails_is_left_out() {
        use Precision::{Fp16, Fp32, Int8};
        let combinations = [Fp32, Int8, Fp16].map(combination);
        let mut order = Vec::new();
        let (measured, failed) = rounds(&combinations, 3, &mut |combination| {
            order.push(combination.precision);
            match combination.precision {
                Int8 => Err("no".to_owned()),
                // The time is the number of the run.
                _ => Ok(sample(order.len() as f64, 100 - order.len() as u64)),
            }
        });
        assert_eq!(order, [Fp32, Int8, Fp16, Fp32, Fp16, Fp32, Fp16]);
        assert_eq!(failed.len(), 1);
        assert_eq!(
            (failed[0].combination.precision, failed[0].reason.as_str()),
            (Int8, "no")
        );
        let loads: Vec<[f64; 3]> = measured
            .iter()
            .map(|one| [one.load.min, one.load.median, one.load.max])
            .collect();
        assert_eq!(loads, [[1.0, 4.0, 6.0], [3.0, 5.0, 7.0]]);
        // The peak is the highest of all rounds.
        assert_eq!(measured[0].peak_memory, Some(99));
    }

    #[test]
    fn the_json_form_is_the_one_that_scripts_read() {
        let measured = Measured::of(&combination(Precision::Fp32), &[sample(1.0, 7)]).unwrap();
        let json = serde_json::to_value(&measured).unwrap();
        let spread = serde_json::json!({"median": 1.0, "min": 1.0, "max": 1.0});
        assert_eq!(json["load_s"], spread);
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "provider",
            "target",
            "precision",
            "isa",
            "prompt_tokens",
            "load_s",
            "preprocess_s",
            "encode_s",
            "prefill_s",
            "ttft_s",
            "decode_s",
            "peak_rss_bytes",
        ];
        assert_eq!(names, expected);
        assert_eq!(json["provider"], "tract");
        assert_eq!(json["peak_rss_bytes"], 7);
    }
}
