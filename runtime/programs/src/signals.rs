//! What does SIGINT, SIGTERM or SIGHUP do to a program? It may clean up first, and then ends as it would have.
//!
//! A signal that was ignored when the program began stays ignored: that is what `nohup`, and a shell that
//! starts something in the background, ask for. Elsewhere than on Unix there is Ctrl-C alone.

use crate::{INTERRUPTED, leave};

/// What ends a program from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C, SIGINT.
    Interrupt,
    /// SIGTERM: somebody's polite request, a system that shuts down.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl Signal {
    /// All of them: for programs that leave something which must be removed.
    pub const ALL: [Signal; 3] = [Signal::Interrupt, Signal::Terminate, Signal::HangUp];

    /// Ends the process as this signal does: exit code 130 for Ctrl-C; by the signal itself for the others,
    /// which shells show as 143 and 129.
    pub fn end(self) -> ! {
        #[cfg(unix)]
        if self != Signal::Interrupt {
            // The first process of a container is not ended by a signal's default.
            if std::process::id() == 1 {
                leave(u8::try_from(128 + self.number()).unwrap_or(INTERRUPTED));
            }
            // Only returns if that signal cannot end a process, which these do.
            drop(signal_hook::low_level::emulate_default_handler(self.number()));
        }
        leave(INTERRUPTED)
    }

    #[cfg(unix)]
    fn number(self) -> i32 {
        match self {
            Signal::Interrupt => libc::SIGINT,
            Signal::Terminate => libc::SIGTERM,
            Signal::HangUp => libc::SIGHUP,
        }
    }
}

/// Has `act` called, in a thread of its own, with each of `signals` that arrives. Those that are ignored stay
/// so; where no thread can be started, a signal ends the program at once, as if nobody had asked.
pub fn on(signals: &[Signal], act: impl FnMut(Signal) + Send + 'static) {
    #[cfg(unix)]
    unix::on(signals, act);
    #[cfg(not(unix))]
    {
        let mut act = act;
        if signals.contains(&Signal::Interrupt) {
            // Without a handler Ctrl-C still ends the program, only less politely.
            drop(ctrlc::set_handler(move || act(Signal::Interrupt)));
        }
    }
}

#[cfg(unix)]
mod unix {
    use super::Signal;
    use signal_hook::iterator::Signals;
    use std::mem::MaybeUninit;
    use std::sync::mpsc;

    pub(super) fn on(signals: &[Signal], mut act: impl FnMut(Signal) + Send + 'static) {
        let wanted: Vec<Signal> = signals
            .iter()
            .copied()
            .filter(|signal| !is_ignored(signal.number()))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let (ready, begun) = mpsc::channel();
        let watch = move || {
            // Registered in the thread: without it, whoever waits would never be told.
            let found = Signals::new(wanted.iter().map(|signal| signal.number()));
            let _ = ready.send(());
            let Ok(mut arriving) = found else { return };
            for number in arriving.forever() {
                if let Some(signal) = wanted.iter().find(|signal| signal.number() == number) {
                    act(*signal);
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        if thread.spawn(watch).is_ok() {
            // What is done next is already to be cleaned up after.
            let _ = begun.recv();
        }
    }

    /// Whether whoever started this program asked it not to mind a signal.
    #[expect(
        unsafe_code,
        reason = "the standard library does not ask what is done about a signal"
    )]
    fn is_ignored(number: i32) -> bool {
        let mut now = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with a null pointer for the new action it only writes the present one, where `now` has room.
        let asked = unsafe { libc::sigaction(number, std::ptr::null(), now.as_mut_ptr()) };
        // SAFETY: it was written, for the call says so.
        asked == 0 && unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN
    }
}
