//! What do engines get wrong, and why do we live with it? Each exception is asserted to still fail: one that heals is
//! reported and must be removed here.

use crate::setup::subject::Subject;

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Name of the case, or its beginning up to a `/`.
    pub case: &'static str,
    /// Name of the provider.
    pub provider: &'static str,
    /// Only in this precision; in each where absent.
    pub precision: Option<&'static str>,
    /// What is wrong, whose fault it is, until when.
    pub reason: &'static str,
}

/// Every exception.
pub const KNOWN: &[Known] = &[Known {
    case: "ops/gemm/with_a_bias",
    provider: "tract",
    precision: Some("fp16"),
    reason: "tract 0.23.9 gives a Gemm of halves with a bias the type float32 and refuses its own graph; only target coreml has such \
             nodes",
}];

/// The exception for a case on a subject.
pub fn find(case: &str, subject: &Subject) -> Option<&'static Known> {
    find_in(KNOWN, case, subject)
}

fn find_in<'a>(list: &'a [Known], case: &str, subject: &Subject) -> Option<&'a Known> {
    list.iter().find(|known| {
        known.covers(case)
            && known.provider == subject.provider.name()
            && known
                .precision
                .is_none_or(|precision| precision == subject.precision.name())
    })
}

impl Known {
    /// Whether it is about a case of that name.
    pub fn covers(&self, case: &str) -> bool {
        case.strip_prefix(self.case)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::subject::{Precision, Provider};

    #[test]
    fn an_exception_is_about_its_case_engine_and_precision() {
        let list = [Known {
            case: "ops/conv",
            provider: "tract",
            precision: Some("fp16"),
            reason: "until it is fixed",
        }];
        let subject = |provider, precision| Subject {
            provider,
            precision,
            options: runtime::Options::default(),
        };
        for (case, provider, precision, expected) in [
            ("ops/conv", Provider::Tract, Precision::Fp16, true),
            ("ops/conv/stem", Provider::Tract, Precision::Fp16, true),
            ("ops/convolution", Provider::Tract, Precision::Fp16, false),
            ("ops", Provider::Tract, Precision::Fp16, false),
            ("ops/conv", Provider::Cpu, Precision::Fp16, false),
            ("ops/conv", Provider::Tract, Precision::Fp32, false),
        ] {
            let found = find_in(&list, case, &subject(provider, precision)).is_some();
            assert_eq!(found, expected, "{case} {provider:?} {precision:?}");
        }
    }
}
