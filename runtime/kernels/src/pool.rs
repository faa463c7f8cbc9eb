//! Thread pool: who computes the tasks? Threads of the process's own, which stay awake for a moment after
//! each kernel: one token is a hundred kernels of a few microseconds, and to wake a thread takes as long.
//!
//! `tests/interleavings.rs` compiles this file too, with loom's threads and atomics for `crate::sync`.

use crate::parallel::Parallel;
use crate::sync::{self, Mutex};
use crate::sync::{AtomicUsize, Builder, Idle, JoinHandle, LOOKS, Thread, UnsafeCell, spin_loop};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, TryLockError, Weak};

/// A number of threads that compute together, the caller's among them.
#[derive(Debug)]
pub struct Pool {
    board: Arc<Board>,
    /// Held by the one who has work on the board.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    /// Where the workers are: a child of `fork` has none of them.
    process: u32,
}

/// What the threads look at.
#[derive(Debug)]
struct Board {
    /// [`OPEN`] while the job can be joined, [`END`] when threads are to end, and how many have joined; above
    /// them, the job's number.
    state: AtomicUsize,
    /// The first task that nobody has taken.
    next: AtomicUsize,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Tasks `0..count`.
#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    count: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tasks", self.count)
    }
}

/// In [`Board::state`]: threads may join.
const OPEN: usize = 1 << 16;
/// In [`Board::state`]: there will be no more jobs.
const END: usize = 1 << 17;
/// In [`Board::state`]: one job.
const JOB: usize = 1 << 18;
/// In [`Board::state`]: threads that have joined.
const JOINED: usize = OPEN - 1;

// SAFETY: `job` is written only while no thread can join (not `OPEN`) and none has (`JOINED` is 0), by the
// one thread that holds `Pool::turn`; it is read only by threads that have joined.
unsafe impl Sync for Board {}

impl Pool {
    /// The pool of this many threads that others in this process use already, or a new one, of as many
    /// threads as the system grants.
    pub fn shared(threads: usize) -> Arc<Pool> {
        // A child of `fork` has none of its parent's threads.
        type Key = (usize, u32);
        static POOLS: std::sync::Mutex<Vec<(Key, Weak<Pool>)>> = std::sync::Mutex::new(Vec::new());
        let wanted = (threads, std::process::id());
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(_, pool)| pool.strong_count() > 0);
        let found = pools.iter().find(|(key, _)| *key == wanted);
        if let Some(pool) = found.and_then(|(_, pool)| pool.upgrade()) {
            return pool;
        }
        let pool = Arc::new(Pool::new(threads));
        pools.push((wanted, Arc::downgrade(&pool)));
        pool
    }

    /// A pool of this many threads, or of as many as the system grants.
    pub(crate) fn new(threads: usize) -> Pool {
        let board = Arc::new(Board {
            state: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            job: UnsafeCell::new(Job {
                task: &|_| (),
                count: 0,
            }),
            panic: Mutex::new(None),
        });
        let worker = |number| {
            let board = Arc::clone(&board);
            let name = format!("kernels {number}");
            Builder::new().name(name).spawn(move || work(&board)).ok()
        };
        // Where a thread cannot be had, there are fewer.
        let workers = (1..threads.min(JOINED)).map_while(worker).collect();
        Pool {
            board,
            turn: Mutex::new(()),
            workers,
            process: std::process::id(),
        }
    }
}

// SAFETY: `Board::next` gives out each number once, and `run` waits for all who have joined; a panic, after
// which some numbers are not given out, goes on to the caller. There are no more than `JOINED` threads.
unsafe impl Parallel for Pool {
    fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        // Another's work is on the board, or this is a task of it: the caller is a thread of its own.
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if count <= 1 || self.workers.is_empty() || turn.is_none() {
            return (0..count).for_each(task);
        }
        let board = &*self.board;
        // SAFETY: the reference is used by threads that have joined, and this function does not return before
        // the job is closed and all of them have left, even where a task panics.
        let task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task, count };
        // SAFETY: see `Board`; the last job's closing is behind us.
        board.job.with_mut(|place| unsafe { *place = job });
        board.next.store(0, Ordering::Relaxed);
        board.state.fetch_add(JOB + OPEN, Ordering::SeqCst);
        if board.sleepers.load(Ordering::SeqCst) > 0 {
            self.workers
                .iter()
                .map(JoinHandle::thread)
                .for_each(Thread::unpark);
        }
        board.take_tasks(job);
        board.state.fetch_sub(OPEN, Ordering::AcqRel);
        while board.state.load(Ordering::Acquire) & JOINED > 0 {
            spin_loop();
        }
        let panic = board.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Nobody would ever say that they have ended.
            self.workers.drain(..).for_each(std::mem::forget);
            return;
        }
        self.board.state.fetch_or(END, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Panics of tasks were caught; there is nothing else to fail.
            let _ = worker.join();
        }
    }
}

impl Board {
    /// Computes tasks until none is left. A task's panic is kept for the one whose job it is.
    fn take_tasks(&self, job: Job) {
        let all = AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.count {
                    break;
                }
                (job.task)(task);
            }
        });
        if let Err(panic) = catch_unwind(all) {
            // The rest need not be computed.
            self.next.store(job.count, Ordering::Relaxed);
            let mut kept = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.is_none() {
                *kept = Some(panic);
            } else {
                // Dropped, it might panic again, and this thread would never leave the job.
                std::mem::forget(panic);
            }
        }
    }

    /// Joins a job that is open and not the last one that this thread has seen; keeps the job's number.
    fn join(&self, seen: &mut usize) -> bool {
        // In one order with `sleepers`: who is about to sleep sees the job, or is seen by who has it.
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            if state & OPEN == 0 || state / JOB == *seen {
                return false;
            }
            let joined =
                self.state
                    .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire);
            match joined {
                Ok(_) => {
                    *seen = state / JOB;
                    return true;
                }
                Err(now) => state = now,
            }
        }
    }
}

/// What a thread of the pool does, to the end.
fn work(board: &Board) {
    let mut seen = 0;
    loop {
        let idle = Idle::begin();
        let mut joined = false;
        while !joined && idle.is_short() {
            for _ in 0..LOOKS {
                joined = board.join(&mut seen);
                if joined {
                    break;
                }
                spin_loop();
            }
        }
        if !joined {
            board.sleepers.fetch_add(1, Ordering::SeqCst);
            // Who puts work on the board after this look sees that there is a sleeper; waking it is never
            // lost.
            joined = board.join(&mut seen);
            let end = board.state.load(Ordering::SeqCst) & END > 0;
            if !joined && !end {
                sync::park();
            }
            board.sleepers.fetch_sub(1, Ordering::SeqCst);
            if end {
                return;
            }
        }
        if joined {
            // SAFETY: this thread has joined, so the job stays until it leaves.
            let job = board.job.with(|place| unsafe { *place });
            board.take_tasks(job);
            board.state.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
