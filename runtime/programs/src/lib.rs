#![doc = include_str!("../README.md")]

pub mod faults;
pub mod flags;
pub mod manual;
pub mod signals;
pub mod stdout;
pub mod testing;

use std::io::Write as _;

/// What shells expect of a program that Ctrl-C ended: 128 and the number of the signal.
pub const INTERRUPTED: u8 = 130;

/// Ends the process as [`leave`] does, when what was written to stdout is there.
pub fn finish(code: u8) -> ! {
    drop(std::io::stdout().flush());
    leave(code)
}

/// Ends the process at once, without the destructors of libraries: those of ONNX Runtime crash while another
/// thread opens a graph. What was written to stdout and stderr must have been flushed.
pub fn leave(code: u8) -> ! {
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "the standard library has no exit without destructors")]
    // SAFETY: it takes a number, touches no memory of this process and does not return.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    #[expect(clippy::exit, reason = "this is how a program ends")]
    std::process::exit(code.into())
}
