//! Where was it measured? What a reader needs to judge a time, and nothing that names the machine or its owner.

use serde::Serialize;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's name for itself, or its architecture where it does not say.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Instruction sets that matter for matrix products.
    pub features: Vec<&'static str>,
    /// `linux x86_64`
    pub os: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine {
            cpu: model_name(&info).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            features: features(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// `model name : AMD EPYC` of Linux' list.
fn model_name(info: &str) -> Option<String> {
    let value = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")?
        .1;
    let name = value.split_whitespace().collect::<Vec<&str>>().join(" ");
    (!name.is_empty()).then_some(name)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let all = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avxvnni", std::arch::is_x86_feature_detected!("avxvnni")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", std::arch::is_x86_feature_detected!("avx512fp16")),
    ];
    present(&all)
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let all = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    present(&all)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    present(&[])
}

fn present(all: &[(&'static str, bool)]) -> Vec<&'static str> {
    all.iter()
        .filter(|(_, present)| *present)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_names_itself() {
        let info = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC  9R14\nmodel name\t: other\n";
        assert_eq!(model_name(info).as_deref(), Some("AMD EPYC 9R14"));
        assert_eq!(model_name("BogoMIPS : 50\n"), None);
        assert_eq!(model_name("model name :\n"), None);
    }

    #[test]
    fn only_what_is_present_is_listed() {
        assert_eq!(present(&[("a", true), ("b", false), ("c", true)]), ["a", "c"]);
    }
}
