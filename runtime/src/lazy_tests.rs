//! What gets ready on a thread of its own, with threads of the system.

use crate::error::EngineError;
use crate::lazy::Lazy;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn it_is_prepared_once_and_again_after_an_error() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let lazy = Lazy::begin("counter", move || {
        assert!(matches!(std::thread::current().name(), Some(name) if !name.is_empty()));
        match counter.fetch_add(1, Ordering::Relaxed) {
            0 => Err(EngineError::UnknownImage),
            call => Ok(call),
        }
    });
    assert!(lazy.get().is_err());
    assert_eq!(lazy.finished(), None);
    assert!(!lazy.is_ready());
    assert_eq!(lazy.get().unwrap(), 1);
    let finished = lazy.finished().unwrap();
    assert_eq!(lazy.get().unwrap(), 1);
    assert!(lazy.is_ready());
    assert_eq!(lazy.finished(), Some(finished));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[test]
fn threads_that_need_it_at_once_get_the_same() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let lazy = Lazy::begin("counter", move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(counter.fetch_add(1, Ordering::Relaxed))
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(lazy.get().unwrap(), 0));
        }
    });
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn dropping_it_waits_for_its_thread() {
    let done = Arc::new(AtomicUsize::new(0));
    let at_work = Arc::clone(&done);
    let lazy = Lazy::begin("worker", move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        at_work.store(1, Ordering::Relaxed);
        Ok(())
    });
    drop(lazy);
    assert_eq!(done.load(Ordering::Relaxed), 1);
}

#[test]
fn a_thread_that_panics_is_an_error() {
    crate::backend::silence_caught_panics();
    let lazy: Lazy<()> = Lazy::begin("victim", || panic!("expected by a test"));
    let error = lazy.get().unwrap_err();
    assert!(
        matches!(error, EngineError::Thread { network: "victim" }),
        "{error}"
    );
}
