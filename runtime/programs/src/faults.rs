//! What happens when a mapped file is shortened while it is read? The processor's fault (SIGBUS) becomes an error.
//!
//! Checkpoints and weights of bundles are far larger than memory and are mapped, by us and by the engines. A file
//! that somebody cuts meanwhile, or a disk that fails, then shows as a fault in the middle of a computation, and the
//! system would end the process with "Bus error". A program may say which file it was; a library must not take a
//! signal from its host, so only programs call [`report`], and libraries document the price of mapping.
//!
//! The thread that faults cannot go on. It wakes another one and stops; that one says what happened, cleans up and
//! ends the process. On Linux only: elsewhere a thread that has used up its stack gets the same signal.

/// Has faults of mapped files said on stderr, and the process ended with exit code 2 after `clean`.
///
/// Where no thread can be started, and on other systems than Linux, nothing changes.
pub fn report(clean: impl FnOnce() + Send + 'static) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    linux::report(clean);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    drop(clean);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use crate::leave;
    use std::ffi::{c_int, c_void};
    use std::io::{Read as _, Write as _};
    use std::os::fd::IntoRawFd as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

    /// Where the fault was.
    static ADDRESS: AtomicUsize = AtomicUsize::new(0);
    /// The end of the pipe that wakes whoever reports.
    static WAKE: AtomicI32 = AtomicI32::new(-1);
    /// What was done about the signal before: the standard library's look for a stack that is used up.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    pub(super) fn report(clean: impl FnOnce() + Send + 'static) {
        let Ok((mut reader, writer)) = std::io::pipe() else {
            return;
        };
        let wait = move || {
            let mut byte = [0];
            if reader.read_exact(&mut byte).is_err() {
                return;
            }
            let file = std::fs::read_to_string("/proc/self/maps").ok();
            let file = file.and_then(|maps| file_at(&maps, ADDRESS.load(Ordering::SeqCst)));
            let named = file.map_or_else(|| "a mapped file".to_owned(), |file| format!("`{file}`"));
            let said = format!(
                "error: {named} was shortened while it was read, or its disk fails: expected a file that stays as it is\n"
            );
            drop(std::io::stderr().write_all(said.as_bytes()));
            clean();
            leave(2);
        };
        let thread = std::thread::Builder::new().name("faults".to_owned());
        if thread.spawn(wait).is_err() {
            return;
        }
        // Never closed: a fault may come until the process ends.
        WAKE.store(writer.into_raw_fd(), Ordering::SeqCst);
        install();
    }

    #[expect(unsafe_code, reason = "the standard library has no signals")]
    fn install() {
        // SAFETY: all bytes zero is a value of this struct of numbers, and of an optional function.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = fault;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are of live structs, the mask is empty, and the handler keeps to what a handler may do.
        let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
        if done == 0 {
            // Set once: this is called once.
            let _ = BEFORE.set(before);
        }
    }

    /// Only what a signal handler may do: atomics, `write`, `pause`, `sigaction`.
    #[expect(unsafe_code, reason = "a signal handler")]
    extern "C" fn fault(number: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
        // SAFETY: the system gives a handler with SA_SIGINFO a valid pointer.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        let wake = WAKE.load(Ordering::SeqCst);
        if code != libc::BUS_ADRERR || wake < 0 {
            // Somebody else's: as if this handler were not there, when the instruction is tried again.
            if let Some(before) = BEFORE.get() {
                // SAFETY: it is what the system gave.
                unsafe { libc::sigaction(number, before, std::ptr::null_mut()) };
            }
            if code <= 0 {
                // Sent by a process, not by an instruction.
                // SAFETY: it takes a number.
                unsafe { libc::raise(number) };
            }
            return;
        }
        ADDRESS.store(address, Ordering::SeqCst);
        // SAFETY: one byte of a live array.
        unsafe { libc::write(wake, [0u8].as_ptr().cast(), 1) };
        loop {
            // SAFETY: it takes nothing.
            unsafe { libc::pause() };
        }
    }

    /// The file that is mapped at an address, by the text of `/proc/self/maps`.
    fn file_at(maps: &str, address: usize) -> Option<String> {
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let start = usize::from_str_radix(start, 16).ok()?;
            let end = usize::from_str_radix(end, 16).ok()?;
            let path = rest.get(rest.find('/')?..)?;
            (start..end)
                .contains(&address)
                .then(|| models::plain::line(path).into_owned())
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn files_by_address() {
            let maps = "\
7f0000000000-7f0000001000 r--s 00000000 08:01 1   /a/b c.safetensors
7f0000001000-7f0000002000 rw-p 00000000 00:00 0
7f0000002000-7f0000003000 r--s 00000000 08:01 2   /d (deleted)
";
            for (address, expected) in [
                (0x7f00_0000_0fff, Some("/a/b c.safetensors")),
                (0x7f00_0000_1000, None),
                (0x7f00_0000_2000, Some("/d (deleted)")),
                (0, None),
            ] {
                assert_eq!(file_at(maps, address).as_deref(), expected);
            }
        }
    }
}
