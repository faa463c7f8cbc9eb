//! What do we claim? One file a subject; each is a list of cases.

pub mod cache;
pub mod end_to_end;
pub mod held_out;
pub mod image;
pub mod layouts;
pub mod networks;
pub mod ops;
pub mod recorded;
pub mod references;
pub mod text;

use crate::setup::case::Case;

/// A named list of cases.
#[derive(Debug)]
pub struct Suite {
    /// First part of its cases' names.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Whether `fvlm-conform run` leaves it out unless it is asked for: too long for every day.
    pub on_request: bool,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// Every suite, cheap things first.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "ops",
        about: "each operator in small graphs, engines against the interpreter",
        on_request: false,
        cases: ops::cases,
    },
    Suite {
        name: "networks",
        about: "small networks of odd geometries, engines against the interpreter",
        on_request: false,
        cases: networks::cases,
    },
    Suite {
        name: "layouts",
        about: "one set of weights in every layout gives one bundle; folding loses nothing",
        on_request: false,
        cases: layouts::cases,
    },
    Suite {
        name: "cache",
        about: "the KV cache: prefill, steps, truncation, batches",
        on_request: false,
        cases: cache::cases,
    },
    Suite {
        name: "image",
        about: "pixels as the published preprocessing makes them",
        on_request: false,
        cases: image::cases,
    },
    Suite {
        name: "text",
        about: "prompts and token ids as the published tokenizers make them",
        on_request: false,
        cases: text::cases,
    },
    Suite {
        name: "references",
        about: "tensors recorded from the published implementation",
        on_request: false,
        cases: references::cases,
    },
    Suite {
        name: "end_to_end",
        about: "an image and a question go in, the right words come out",
        on_request: false,
        cases: end_to_end::cases,
    },
    Suite {
        name: "full-size",
        about: "the same at the geometry of FastVLM-0.5B, minutes a case",
        on_request: true,
        cases: references::full_size,
    },
    Suite {
        name: "demo-eval",
        about: "the demo model's held-out questions, 500 and twice 200",
        on_request: true,
        cases: held_out::cases,
    },
];

/// Every case of every suite, also those on request.
pub fn all() -> Vec<Case> {
    SUITES.iter().flat_map(|suite| (suite.cases)()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::known::KNOWN;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_begin_with_their_suite() {
        let mut seen = BTreeSet::new();
        for suite in SUITES {
            for case in (suite.cases)() {
                assert_eq!(case.name.split('/').next(), Some(suite.name), "{}", case.name);
                assert!(!case.claim.is_empty(), "{}", case.name);
                assert!(
                    seen.insert(case.name.clone()),
                    "two cases are named {}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn exceptions_are_about_cases_and_have_reasons() {
        let names: Vec<String> = all().into_iter().map(|case| case.name).collect();
        for known in KNOWN {
            assert!(
                names.iter().any(|name| known.covers(name)),
                "no case is named {}",
                known.case
            );
            assert!(known.reason.len() > 20, "{}: say why", known.case);
        }
    }
}
