//! What does Ctrl-C do to an export? It stops at the next block and removes what it wrote. The second time it does not
//! wait for that. SIGTERM and SIGHUP do the same, and end the program as they end others.

use programs::signals::{self, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The signal that came.
static CAME: Mutex<Option<Signal>> = Mutex::new(None);

/// Has `interrupted` set by the first signal.
pub(crate) fn install(interrupted: Arc<AtomicBool>) {
    signals::on(&Signal::ALL, move |signal| {
        let before = CAME
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(signal);
        interrupted.store(true, Ordering::Relaxed);
        if before.is_some() {
            crate::abandon();
            signal.end();
        }
    });
}

/// Ends the program as the signal that came ends one.
pub(crate) fn end() -> u8 {
    let came = *CAME.lock().unwrap_or_else(PoisonError::into_inner);
    match came {
        Some(signal) => signal.end(),
        None => programs::INTERRUPTED,
    }
}
