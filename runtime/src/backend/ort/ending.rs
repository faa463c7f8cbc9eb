//! How does a process end while ONNX Runtime works? At the end of a process the destructors of its libraries run, and
//! those of ONNX Runtime do not bear another thread inside: the process would crash. So every way into it goes through
//! a gate, and the end of the process closes the gate and waits until nobody is inside any more.
//!
//! The system calls first what was registered last, and ONNX Runtime registers destructors while it opens graphs: one
//! that is registered meanwhile would go before our hook. What goes before all hooks are the destructors of the thread
//! that ends the process, so these wait for graphs that are being opened.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Whether the process has begun to end.
static ENDING: RwLock<bool> = RwLock::new(false);

/// Held, for reading, by who has ONNX Runtime make what is destroyed at the end.
static OPENING: RwLock<()> = RwLock::new(());

/// As long as this lives, the process does not end. A thread must not have two.
#[derive(Debug)]
pub(super) struct Inside {
    _held: RwLockReadGuard<'static, bool>,
    _opening: Option<RwLockReadGuard<'static, ()>>,
}

/// Goes through the gate to compute; `Err` has the words for a process that ends.
pub(super) fn enter() -> Result<Inside, &'static str> {
    let held = ENDING.read().unwrap_or_else(PoisonError::into_inner);
    if *held {
        return Err("the process is ending");
    }
    Ok(Inside {
        _held: held,
        _opening: None,
    })
}

/// Goes through the gate to load the library or to open a graph.
pub(super) fn enter_to_open() -> Result<Inside, &'static str> {
    let opening = OPENING.read().unwrap_or_else(PoisonError::into_inner);
    Ok(Inside {
        _opening: Some(opening),
        ..enter()?
    })
}

/// Waits, at the end of its thread, for graphs that are being opened. Not on Windows: there the other threads are gone
/// before the process ends, and a thread that ends must not wait for one that loads a library.
#[cfg(unix)]
struct Leaving;

#[cfg(unix)]
impl Drop for Leaving {
    fn drop(&mut self) {
        drop(OPENING.write().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(unix)]
thread_local! {
    static LEAVING: Leaving = const { Leaving };
}

/// To be called by a thread that may end the process while another opens a model with ONNX Runtime: its end then waits
/// for that. Threads that use models are watched as they do. The main thread should be, whoever uses models.
pub fn watch_thread() {
    // A thread that is ending already is too late for it.
    #[cfg(unix)]
    let _ = LEAVING.try_with(|_| ());
}

/// Has [`end`] run before the destructors of what has been loaded and made so far. To be called again whenever ONNX
/// Runtime may have made more of what is destroyed at the end.
pub(super) fn watch() {
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "the standard library has no hook for the end of a process"
    )]
    // SAFETY: the function takes nothing, touches only a static of this library, and does not unwind. If this library
    // is unloaded before the process ends, the system calls it then.
    unsafe {
        // Where there is no room for another, the earlier ones are still there.
        let _ = libc::atexit(end);
    }
}

/// Closes the gate, and returns when nobody is inside.
#[cfg(unix)]
extern "C" fn end() {
    *ENDING.write().unwrap_or_else(PoisonError::into_inner) = true;
}
