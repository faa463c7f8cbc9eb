//! What do engines get wrong, and why do we live with it? Each exception is asserted to still fail: one that heals is
//! reported and must be removed here.

use crate::setup::subject::{Subject, form_name};

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Name of the case, or its beginning up to a `/`.
    pub case: &'static str,
    /// Name of the provider.
    pub provider: &'static str,
    /// Only on this form, as in the subject's name (`fp16`, `cpu int8`); on each where absent.
    pub form: Option<&'static str>,
    /// What is wrong, whose fault it is, until when.
    pub reason: &'static str,
}

/// Every exception.
pub const KNOWN: &[Known] = &[Known {
    case: "ops/gemm/with_a_bias",
    provider: "tract",
    form: Some("fp16"),
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
            && known.form.is_none_or(|form| form == form_name(subject.form))
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
    use crate::setup::subject::{Precision, Provider, Target, Variant};

    #[test]
    fn an_exception_is_about_its_case_engine_and_form() {
        let list = [Known {
            case: "ops/conv",
            provider: "tract",
            form: Some("fp16"),
            reason: "until it is fixed",
        }];
        let subject = |provider, (target, precision)| Subject {
            provider,
            form: Variant::new(target, precision).unwrap(),
            options: runtime::Options::default(),
        };
        let half = (Target::Portable, Precision::Fp16);
        for (case, provider, form, expected) in [
            ("ops/conv", Provider::Tract, half, true),
            ("ops/conv/stem", Provider::Tract, half, true),
            ("ops/convolution", Provider::Tract, half, false),
            ("ops", Provider::Tract, half, false),
            ("ops/conv", Provider::Cpu, half, false),
            (
                "ops/conv",
                Provider::Tract,
                (Target::Portable, Precision::Fp32),
                false,
            ),
            (
                "ops/conv",
                Provider::Tract,
                (Target::OrtCoreMl, Precision::Fp16),
                false,
            ),
        ] {
            let found = find_in(&list, case, &subject(provider, form)).is_some();
            assert_eq!(found, expected, "{case} {provider:?} {form:?}");
        }
    }
}
