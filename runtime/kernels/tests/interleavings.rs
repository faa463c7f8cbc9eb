//! Interleavings: the thread pool in every order that its threads can run in, by loom.
//!
//! The file of the pool is compiled here a second time, with loom's threads, locks and atomics in place of
//! the standard library's. Loom runs each test once for each order of their operations, up to so many switches
//! that no thread asked for, and gives each load every value that the orderings of the atomics allow. It
//! fails where two threads touch a cell at once, where nothing can go on, and where the test's assertions do.

#![expect(unsafe_code, reason = "the pool has it")]

#[expect(dead_code, unreachable_pub, reason = "a part of another crate")]
#[path = "../src/pool.rs"]
mod pool;

/// What the pool uses, from loom. A thread without work looks once for it before it goes to sleep.
mod sync {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::AtomicUsize;
    pub(crate) use loom::thread::{Builder, JoinHandle, Thread, park};
    use std::cell::Cell;

    pub(crate) const LOOKS: usize = 1;

    /// Long after the first look.
    pub(crate) struct Idle(Cell<bool>);

    impl Idle {
        pub(crate) fn begin() -> Idle {
            Idle(Cell::new(true))
        }

        pub(crate) fn is_short(&self) -> bool {
            self.0.replace(false)
        }
    }
}

use kernels::parallel::{self, Parallel};
use loom::cell::UnsafeCell;
use pool::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Numbers that tasks write without a lock, as kernels do: loom sees two that write one, and one that reads
/// what is not yet there.
struct Numbers(Vec<UnsafeCell<usize>>);

// SAFETY: tasks touch one each, which is what is tested.
unsafe impl Sync for Numbers {}

impl Numbers {
    fn new(count: usize) -> Numbers {
        Numbers((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    fn add(&self, task: usize) {
        // SAFETY: loom says where it is not alone.
        self.0[task].with_mut(|place| unsafe { *place += 1 });
    }

    fn all(&self) -> Vec<usize> {
        // SAFETY: as above.
        self.0
            .iter()
            .map(|cell| cell.with(|place| unsafe { *place }))
            .collect()
    }
}

fn compute(pool: &Pool, count: usize) {
    let numbers = Numbers::new(count);
    pool.run(count, &|task| numbers.add(task));
    assert_eq!(numbers.all(), vec![1; count]);
}

/// Every order with at most so many switches that no thread asked for.
fn in_every_order(switches: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(test);
}

#[test]
fn two_threads_compute_each_task_once_job_after_job() {
    in_every_order(3, || {
        let pool = Pool::new(2);
        compute(&pool, 2);
        compute(&pool, 3);
    });
}

#[test]
fn three_threads_compute_each_task_once() {
    in_every_order(2, || compute(&Pool::new(3), 2));
}

/// The second caller computes alone, or when the first is done.
#[test]
fn two_callers_share_the_threads() {
    in_every_order(2, || {
        let pool = Arc::new(Pool::new(2));
        let other = Arc::clone(&pool);
        let caller = loom::thread::spawn(move || compute(&other, 2));
        compute(&pool, 2);
        caller.join().unwrap();
    });
}

/// And nothing of the job is touched after its caller has the panic.
#[test]
fn a_panic_comes_to_the_caller_when_all_have_left() {
    std::panic::set_hook(Box::new(|_| ()));
    in_every_order(2, || {
        let pool = Pool::new(2);
        let numbers = Numbers::new(3);
        let run = AssertUnwindSafe(|| {
            pool.run(3, &|task| {
                numbers.add(task);
                assert!(task != 1, "expected by a test");
            })
        });
        assert!(catch_unwind(run).is_err());
        let found = numbers.all();
        assert!(
            found[1] == 1 && found.iter().all(|count| *count <= 1),
            "{found:?}"
        );
        compute(&pool, 2);
    });
}

#[test]
fn threads_that_never_worked_end() {
    in_every_order(3, || drop(Pool::new(3)));
}
