//! What is a claim, and what can become of it? A [`Case`] is one claim with a name; suites are lists of them; most are
//! crossed with every [`Subject`] that works on this machine.

use crate::compare::Comparison;
use crate::setup::error::CaseError;
use crate::setup::known::{self, Known};
use crate::setup::subject::{Subject, Target};
use crate::setup::workspace::Workspace;
use std::fmt;
use std::time::{Duration, Instant};

/// One claim.
pub struct Case {
    /// Path in the tree of suites: `cache/prefill_equals_steps`.
    pub name: String,
    /// The claim in one sentence.
    pub claim: String,
    /// How it is tried.
    pub check: Check,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How a claim is tried.
pub enum Check {
    /// It says nothing about engines.
    Once(Box<CheckOnce>),
    /// On every subject that `applies` names.
    OnEach {
        /// Whether the claim is about this subject.
        applies: fn(&Subject) -> bool,
        /// Whether it is about forms that are not portable too.
        every_form: bool,
        /// The trial.
        check: Box<CheckOnEach>,
    },
}

/// A trial without an engine.
pub type CheckOnce = dyn Fn(&Workspace) -> Result<Findings, CaseError> + Send + Sync;

/// A trial on one engine.
pub type CheckOnEach = dyn Fn(&Subject, &Workspace) -> Result<Findings, CaseError> + Send + Sync;

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Check::Once(_) => "Once",
            Check::OnEach { .. } => "OnEach",
        })
    }
}

impl Case {
    /// A claim that is tried once.
    pub fn once(
        name: impl Into<String>,
        claim: impl Into<String>,
        check: impl Fn(&Workspace) -> Result<Findings, CaseError> + Send + Sync + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            claim: claim.into(),
            check: Check::Once(Box::new(check)),
        }
    }

    /// A claim that is tried on every subject of portable form that `applies` names.
    pub fn on_each(
        name: impl Into<String>,
        claim: impl Into<String>,
        applies: fn(&Subject) -> bool,
        check: impl Fn(&Subject, &Workspace) -> Result<Findings, CaseError> + Send + Sync + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            claim: claim.into(),
            check: Check::OnEach {
                applies,
                every_form: false,
                check: Box::new(check),
            },
        }
    }

    /// As [`Case::on_each`], of every form: of every target in every precision.
    pub fn on_each_form(
        name: impl Into<String>,
        claim: impl Into<String>,
        applies: fn(&Subject) -> bool,
        check: impl Fn(&Subject, &Workspace) -> Result<Findings, CaseError> + Send + Sync + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            claim: claim.into(),
            check: Check::OnEach {
                applies,
                every_form: true,
                check: Box::new(check),
            },
        }
    }

    /// Whether the claim is tried on a subject.
    pub fn applies(&self, subject: &Subject) -> bool {
        match self.check {
            Check::Once(_) => false,
            Check::OnEach {
                applies, every_form, ..
            } => (every_form || subject.target() == Target::Portable) && applies(subject),
        }
    }
}

/// What a trial found: comparisons, and what is worth telling.
#[derive(Debug, Default)]
pub struct Findings {
    /// In network order.
    pub comparisons: Vec<Comparison>,
    /// Facts that are neither equal nor different: a share of right answers, what was left out and why.
    pub notes: Vec<String>,
    /// What differs and is not a tensor: texts, token ids, bytes of files.
    pub problems: Vec<String>,
}

impl Findings {
    /// Adds a comparison.
    pub fn push(&mut self, comparison: Comparison) {
        self.comparisons.push(comparison);
    }

    /// Adds a problem unless the condition holds.
    pub fn require(&mut self, condition: bool, problem: impl FnOnce() -> String) {
        if !condition {
            self.problems.push(problem());
        }
    }
}

/// A claim on one subject: what is run and reported.
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    /// The claim.
    pub case: &'a Case,
    /// The subject, for claims about engines.
    pub subject: Option<&'a Subject>,
}

/// What became of a leaf.
#[derive(Debug)]
pub struct Report {
    /// [`Case::name`].
    pub case: String,
    /// The subject's name: `cpu fp32`.
    pub subject: Option<String>,
    /// The subject's column in a table, where the target has a row: [`Subject::column`].
    pub column: Option<String>,
    /// The verdict.
    pub outcome: Outcome,
    /// The largest relative L2 distance that was measured.
    pub worst: Option<f64>,
    /// Facts worth telling.
    pub notes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// The verdict on a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Passed,
    /// It does not; in network order, what differs.
    Mismatch(Vec<String>),
    /// It could not be tried because something broke.
    Failed(String),
    /// It cannot be tried here.
    Skipped(String),
    /// It does not hold, as [`known`] says.
    Known(String),
    /// It holds although [`known`] says it does not: the exception must go.
    Healed(String),
}

impl Outcome {
    /// Whether nothing has to be done about it.
    pub fn is_fine(&self) -> bool {
        matches!(self, Outcome::Passed | Outcome::Skipped(_) | Outcome::Known(_))
    }
}

impl Leaf<'_> {
    /// `cache/prefill_equals_steps [tract fp32]`
    pub fn name(&self) -> String {
        match self.subject {
            Some(subject) => format!("{} [{}]", self.case.name, subject.name()),
            None => self.case.name.clone(),
        }
    }

    /// `cache/prefill_equals_steps`, and `references/demo/scene_1, target cpu` where the form is not portable: the row in a
    /// table.
    pub fn row(&self) -> String {
        match self.subject.map(Subject::target) {
            None | Some(Target::Portable) => self.case.name.clone(),
            Some(target) => format!("{}, target {}", self.case.name, target.name()),
        }
    }

    /// Tries the claim.
    pub fn run(&self, workspace: &Workspace) -> Report {
        let start = Instant::now();
        let check = || match (&self.case.check, self.subject) {
            (Check::Once(check), _) => check(workspace),
            (Check::OnEach { check, .. }, Some(subject)) => check(subject, workspace),
            (Check::OnEach { .. }, None) => Err(CaseError::Skip("no engine works here".to_owned())),
        };
        // A bug in one part must not hide what the others do.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or_else(|_| {
            Err(CaseError::Failed {
                context: "trying the claim".to_owned(),
                message: "it panicked".to_owned(),
            })
        });
        let known = self
            .subject
            .and_then(|subject| known::find(&self.case.name, subject));
        let (outcome, worst, notes) = judge(result, known);
        Report {
            case: self.case.name.clone(),
            subject: self.subject.map(Subject::name),
            column: self.subject.map(Subject::column),
            outcome,
            worst,
            notes,
            took: start.elapsed(),
        }
    }
}

fn judge(result: Result<Findings, CaseError>, known: Option<&Known>) -> (Outcome, Option<f64>, Vec<String>) {
    match result {
        Err(CaseError::Skip(reason)) => (Outcome::Skipped(reason), None, Vec::new()),
        Err(error @ CaseError::Failed { .. }) => match known {
            Some(known) => (Outcome::Known(known.reason.to_owned()), None, Vec::new()),
            None => (Outcome::Failed(error.to_string()), None, Vec::new()),
        },
        Ok(findings) => {
            let worst = findings
                .comparisons
                .iter()
                .filter_map(|comparison| comparison.distance.as_ref())
                .map(|distance| distance.relative_l2)
                .reduce(f64::max);
            let differing = findings.comparisons.iter().filter_map(|comparison| {
                comparison
                    .problem
                    .as_ref()
                    .map(|problem| format!("`{}`: {problem}", comparison.value))
            });
            let problems: Vec<String> = differing.chain(findings.problems.iter().cloned()).collect();
            let outcome = match (problems.is_empty(), known) {
                (true, None) => Outcome::Passed,
                (true, Some(known)) => Outcome::Healed(known.reason.to_owned()),
                (false, Some(known)) => Outcome::Known(known.reason.to_owned()),
                (false, None) => Outcome::Mismatch(problems),
            };
            (outcome, worst, findings.notes)
        }
    }
}

/// Crosses cases with subjects.
pub fn leaves<'a>(cases: &'a [Case], subjects: &'a [Subject]) -> Vec<Leaf<'a>> {
    let mut leaves = Vec::new();
    for case in cases {
        match &case.check {
            Check::Once(_) => leaves.push(Leaf { case, subject: None }),
            Check::OnEach { .. } => {
                let applies = subjects.iter().filter(|subject| case.applies(subject));
                leaves.extend(applies.map(|subject| Leaf {
                    case,
                    subject: Some(subject),
                }));
            }
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use crate::compare::{Tolerance, compare};

    const KNOWN: Known = Known {
        case: "a",
        provider: "tract",
        form: None,
        reason: "until it is fixed",
    };

    fn findings(found: f32) -> Result<Findings, CaseError> {
        let mut findings = Findings::default();
        let (found, expected) = (Array::float(&[1], vec![found]), Array::float(&[1], vec![1.0]));
        findings.push(compare("x", &found, &expected, Tolerance::Close));
        Ok(findings)
    }

    #[test]
    fn exceptions_must_still_fail() {
        let failed = || {
            Err(CaseError::Failed {
                context: "loading".to_owned(),
                message: "no".to_owned(),
            })
        };
        assert_eq!(judge(findings(1.0), None).0, Outcome::Passed);
        assert!(matches!(judge(findings(2.0), None).0, Outcome::Mismatch(problems) if problems.len() == 1));
        assert_eq!(
            judge(findings(2.0), Some(&KNOWN)).0,
            Outcome::Known("until it is fixed".to_owned())
        );
        assert_eq!(
            judge(findings(1.0), Some(&KNOWN)).0,
            Outcome::Healed("until it is fixed".to_owned())
        );
        assert_eq!(
            judge(failed(), Some(&KNOWN)).0,
            Outcome::Known("until it is fixed".to_owned())
        );
        assert_eq!(judge(failed(), None).0, Outcome::Failed("loading: no".to_owned()));
        assert!(!Outcome::Healed(String::new()).is_fine());
    }
}
