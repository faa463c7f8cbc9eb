//! What the thread pool promises, with threads of the system; `tests/interleavings.rs` has every order.

use super::parallel::Parallel;
use super::pool::Pool;
use super::sync::AWAKE;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn counts(pool: &Pool, count: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
    pool.run(count, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_is_computed_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for count in (0..200).chain([5000]) {
            assert_eq!(counts(&pool, count), vec![1; count]);
        }
        // Long enough that threads sleep.
        for _ in 0..3 {
            std::thread::sleep(4 * AWAKE);
            assert_eq!(counts(&pool, 40), vec![1; 40]);
        }
    }
}

/// Callers do not wait for each other, and a task may start tasks.
#[test]
fn several_callers_and_tasks_of_tasks() {
    let pool = Pool::shared(3);
    assert!(Arc::ptr_eq(&pool, &Pool::shared(3)));
    assert!(!Arc::ptr_eq(&pool, &Pool::shared(2)));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for count in 0..300 {
                    assert_eq!(counts(&pool, count), vec![1; count]);
                }
            });
        }
    });
    let total = AtomicUsize::new(0);
    pool.run(10, &|_| {
        total.fetch_add(counts(&pool, 7).into_iter().sum::<usize>(), Ordering::Relaxed);
    });
    assert_eq!(total.into_inner(), 70);
}

#[test]
fn a_panic_is_the_callers() {
    let pool = Pool::new(4);
    for bad in [0, 13, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|task| assert!(task != bad, "task {bad}"));
        }));
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(message, format!("task {bad}"));
        assert_eq!(counts(&pool, 100), vec![1; 100]);
    }
}

/// What a task panics with may panic itself where it is dropped: the threads leave the job all the same.
#[test]
fn panics_that_panic_when_dropped_hang_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            // One that is dropped by a test that fails anyway would end the process.
            assert!(std::thread::panicking(), "the bomb went off");
        }
    }
    let pool = Pool::new(4);
    for _ in 0..50 {
        let together = std::sync::Barrier::new(4);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(4, &|_| {
                together.wait();
                std::panic::panic_any(Bomb);
            });
        }));
        std::mem::forget(result.unwrap_err().downcast::<Bomb>().unwrap());
        assert_eq!(counts(&pool, 100), vec![1; 100]);
    }
}
