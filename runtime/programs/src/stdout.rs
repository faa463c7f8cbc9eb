//! Has an answer arrived where it was written? What stdout refuses is an error, also where the standard library is
//! silent.
//!
//! The standard library opens `/dev/null` in the place of a stdout that is closed, and takes a stdout that cannot be
//! written for one that swallows everything. An answer would be lost with exit code 0.

use std::io;
#[cfg(not(unix))]
use std::io::Write as _;

/// Whether stdout was closed when the program began. Nothing else is asked: that it is full shows when it is written.
///
/// # Errors
/// It was.
pub fn check() -> io::Result<()> {
    #[cfg(unix)]
    if unix::was_closed() {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, Closed));
    }
    Ok(())
}

/// Whether an error says that whoever read our output has had enough, which is no failure of ours. A stdout that was
/// closed from the start had no reader who could have enough.
pub fn is_had_enough(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe && !error.get_ref().is_some_and(|inner| inner.is::<Closed>())
}

/// Writes all of it at once, without a buffer.
///
/// # Errors
/// What the system refuses, and what [`check`] says.
pub fn write(text: &str) -> io::Result<()> {
    check()?;
    #[cfg(unix)]
    return unix::write(text.as_bytes());
    #[cfg(not(unix))]
    {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// stdout was closed when the program began.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for Closed {}

#[cfg(unix)]
mod unix {
    use std::io::{self, Write as _};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    static CLOSED: AtomicBool = AtomicBool::new(false);

    /// Called before the standard library looks at the three standard files and opens what is closed.
    extern "C" fn look() {
        #[expect(unsafe_code, reason = "the standard library does not tell")]
        // SAFETY: it asks for the flags of a file by its number.
        let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        CLOSED.store(closed, Ordering::SeqCst);
    }

    #[used]
    #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
    #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
    #[expect(unsafe_code, reason = "the list of what the loader calls before `main`")]
    static LOOK: extern "C" fn() = look;

    pub(super) fn was_closed() -> bool {
        CLOSED.load(Ordering::SeqCst)
    }

    /// As the standard library does, but for a file that cannot be written, which is an error, and for one that does
    /// not block (somebody else's terminal, a pipe of an event loop), which is waited for.
    pub(super) fn write(mut rest: &[u8]) -> io::Result<()> {
        // What others wrote through the standard library's buffer comes first.
        io::stdout().flush()?;
        while !rest.is_empty() {
            #[expect(unsafe_code, reason = "the standard library takes `EBADF` for success")]
            // SAFETY: pointer and length are those of a live slice, which is only read.
            let count = unsafe { libc::write(libc::STDOUT_FILENO, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(count) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}
