//! Which panics are bugs? All but those that the runtime catches and returns as errors.

use std::panic::{PanicHookInfo, set_hook, take_hook};

/// Words of panics that no assertion has, as the compiler and the standard library write them.
const FAULTS: [&str; 6] = [
    "attempt to",
    "index out of bounds",
    "out of range",
    "called `Option::unwrap()`",
    "called `Result::unwrap()`",
    "unsafe precondition",
];

/// For a target to call once, after libFuzzer set its hook, which ends the process at every panic.
///
/// The kernels and the tokenizer's library assert what they are given, and the runtime makes errors of it:
/// such panics pass, unless they are faults in our own code.
pub fn begin() {
    runtime::backend::silence_caught_panics();
    let passing = take_hook();
    set_hook(Box::new(move |panic| {
        if fault(panic) {
            eprintln!("{panic}");
            std::process::abort();
        }
        passing(panic);
    }));
}

fn fault(panic: &PanicHookInfo<'_>) -> bool {
    let words = panic.payload_as_str().unwrap_or_default();
    let ours = panic.location().is_some_and(|place| {
        let file = place.file();
        !file.contains("registry") && !file.starts_with("/rustc")
    });
    ours && FAULTS.iter().any(|fault| words.contains(fault))
}
