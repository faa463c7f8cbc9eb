//! `FVLM_ISA`: which instruction set do the kernels use? The best of this processor, or the one that the
//! variable names. It is for measuring, for tests of every set on one machine, and for bug reports.
//!
//! Everything that runs kernels takes the set from here, pictures that are resized too. A name of no set of this
//! processor is an error when a model is opened, whatever is run. Forms that an engine runs with its own kernels go on as they are, and `--stats` says so.

use super::form::Form;
use crate::error::BackendError;
use kernels::Isa;
use serde::Serialize;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable.
pub(crate) const VARIABLE: &str = "FVLM_ISA";

/// The set that the kernels of a form of target `cpu` use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KernelReport {
    /// Its name, as `FVLM_ISA` has it.
    pub isa: &'static str,
    /// Whether `FVLM_ISA` names it; otherwise it is the best of this processor.
    pub asked: bool,
    /// How it multiplies many rows with weights of bytes and of nibbles, for people.
    pub products: &'static str,
}

impl fmt::Display for KernelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.asked {
            "asked for by FVLM_ISA"
        } else {
            "the best of this processor"
        };
        write!(f, "{}, {why}: {}", self.isa, self.products)
    }
}

/// What the environment asks for, read once.
fn asked() -> Option<&'static str> {
    static ASKED: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::env::var_os(VARIABLE).map(|name| name.to_string_lossy().into_owned());
    ASKED.get_or_init(read).as_deref()
}

/// The set that pictures are resized with. What is wrong with `FVLM_ISA` is said when a model is opened.
pub(crate) fn of_pictures() -> Isa {
    set().unwrap_or_else(|_| Isa::detect())
}

/// The set that kernels use in this process.
///
/// # Errors
/// `FVLM_ISA` names a set that this processor lacks, or none.
pub(super) fn set() -> Result<Isa, BackendError> {
    let found = asked().map_or_else(|| Ok(Isa::detect()), Isa::named);
    found.map_err(|error| BackendError::InstructionSet {
        variable: VARIABLE,
        reason: error.to_string(),
    })
}

/// What the kernels of `form` use; `None` where an engine runs it without them.
///
/// # Errors
/// `FVLM_ISA` names a set that this processor lacks, or none.
pub(crate) fn report(form: &Form) -> Result<Option<KernelReport>, BackendError> {
    let set = set()?;
    let ours = form.target() == Some(models::bundle::Target::Cpu);
    Ok(ours.then(|| KernelReport {
        isa: set.name(),
        asked: asked().is_some(),
        products: set.products(),
    }))
}

/// Whether `FVLM_ISA` names a set of this processor, where it is set.
///
/// # Errors
/// It does not.
pub(crate) fn check() -> Result<(), BackendError> {
    set().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_why() {
        let report = |asked| {
            let products = "bytes as words";
            KernelReport {
                isa: "avx2",
                asked,
                products,
            }
            .to_string()
        };
        assert_eq!(report(false), "avx2, the best of this processor: bytes as words");
        assert_eq!(report(true), "avx2, asked for by FVLM_ISA: bytes as words");
    }
}
