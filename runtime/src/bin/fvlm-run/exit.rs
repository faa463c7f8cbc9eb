//! How does the program end while threads of others still work?

/// Ends the process at once, without the destructors of libraries: those of ONNX Runtime crash while another thread
/// opens a graph. What was written to stdout and stderr must have been flushed.
pub(crate) fn leave(code: u8) -> ! {
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "the standard library has no exit without destructors")]
    // SAFETY: it takes a number, touches no memory of this process and does not return.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}
