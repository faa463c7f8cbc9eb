//! Interleavings: what conversations share while a model opens, in every order of its threads, by loom.
//!
//! The files whose threads wait for each other are compiled here a second time, with loom's threads and locks
//! in place of the standard library's. Loom runs each test once for each order of their operations.
//! It fails where nothing can go on, and where an assertion does.

#[path = "../src/features.rs"]
mod features;
#[path = "../src/lazy.rs"]
mod lazy;
#[path = "../src/replaceable.rs"]
mod replaceable;

/// What the files use, from loom.
mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Loom's threads do not say whether they are finished: these do.
    pub(crate) struct Builder(loom::thread::Builder);

    pub(crate) struct JoinHandle<T> {
        thread: loom::thread::JoinHandle<T>,
        finished: Arc<AtomicBool>,
    }

    impl Builder {
        pub(crate) fn new() -> Builder {
            Builder(loom::thread::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Builder {
            Builder(self.0.name(name))
        }

        pub(crate) fn spawn<T: Send + 'static>(
            self,
            work: impl FnOnce() -> T + Send + 'static,
        ) -> io::Result<JoinHandle<T>> {
            let finished = Arc::new(AtomicBool::new(false));
            let done = Arc::clone(&finished);
            let thread = self.0.spawn(move || {
                let value = work();
                done.store(true, Ordering::SeqCst);
                value
            })?;
            Ok(JoinHandle { thread, finished })
        }
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn is_finished(&self) -> bool {
            self.finished.load(Ordering::SeqCst)
        }

        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.thread.join()
        }
    }
}

/// What the files take from their crate beside `sync`.
mod error {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum EngineError {
        Thread { network: &'static str },
        Asked,
    }
}

mod image {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct ImageId(pub(crate) u64);
}

use error::EngineError;
use features::Features;
use image::ImageId;
use lazy::Lazy;
use loom::model as in_every_order;
use loom::thread::spawn;
use ndarray::Array2;
use replaceable::Replaceable;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A value that says which call of its preparation it comes from; the first `failures` calls fail.
/// And the number of calls.
fn counted(failures: usize) -> (Lazy<usize>, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let lazy = Lazy::begin("part", move || {
        loom::thread::yield_now();
        match counter.fetch_add(1, Ordering::SeqCst) {
            call if call < failures => Err(EngineError::Asked),
            call => Ok(call),
        }
    });
    (lazy, calls)
}

#[test]
fn all_who_need_it_get_what_was_prepared_once() {
    in_every_order(|| {
        let (lazy, calls) = counted(0);
        let lazy = Arc::new(lazy);
        let others = [Arc::clone(&lazy), Arc::clone(&lazy)];
        let others = others.map(|lazy| spawn(move || assert_eq!(lazy.get(), Ok(0))));
        // Whoever only looks does not take it from them.
        let _ = (lazy.is_ready(), lazy.finished());
        assert_eq!(lazy.get(), Ok(0));
        for other in others {
            other.join().unwrap();
        }
        assert!(lazy.is_ready() && lazy.finished().is_some());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn after_an_error_it_is_prepared_again_by_one_of_them() {
    in_every_order(|| {
        let (lazy, calls) = counted(1);
        let lazy = Arc::new(lazy);
        let other = Arc::clone(&lazy);
        let other = spawn(move || other.get());
        let mut found = [lazy.get(), other.join().unwrap()];
        found.sort_by_key(Result::is_err);
        assert_eq!(found, [Ok(1), Err(EngineError::Asked)]);
        assert_eq!(lazy.get(), Ok(1));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn whoever_drops_it_waits_for_its_thread() {
    in_every_order(|| {
        let (lazy, calls) = counted(0);
        assert!(!lazy.is_ready() || calls.load(Ordering::SeqCst) == 1);
        drop(lazy);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    });
}

/// An engine with one part, which turns out not to work in the first.
struct Engine {
    number: usize,
    part: Lazy<usize>,
}

impl Engine {
    fn begin(number: usize) -> Arc<Engine> {
        let part = Lazy::begin("part", move || match number {
            0 => Err(EngineError::Asked),
            number => Ok(number),
        });
        Arc::new(Engine { number, part })
    }
}

/// Each conversation gets a part of the second engine, which begins once.
#[test]
fn conversations_replace_an_engine_once() {
    in_every_order(|| {
        let begun = Arc::new(AtomicUsize::new(0));
        let first = Lazy::begin("opening", || Ok(Engine::begin(0)));
        let engines = Arc::new(Replaceable::new(first));
        let conversation = {
            let (begun, engines) = (Arc::clone(&begun), Arc::clone(&engines));
            move || {
                engines.part(
                    |engine| engine.part.get(),
                    |error| *error == EngineError::Asked,
                    |engine, error| {
                        assert_eq!((engine.number, error), (0, EngineError::Asked));
                        begun.fetch_add(1, Ordering::SeqCst);
                        let second = Engine::begin(1);
                        Ok(Lazy::ready("opening", second, || Ok(Engine::begin(1))))
                    },
                )
            }
        };
        let other = spawn(conversation.clone());
        assert_eq!(conversation(), Ok(1));
        assert_eq!(other.join().unwrap(), Ok(1));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(engines.current().get().unwrap().number, 1);
    });
}

/// Without a second engine, its error comes to all, and the first one stays.
#[test]
fn without_another_engine_all_have_the_error() {
    in_every_order(|| {
        let first = Lazy::begin("opening", || Ok(Engine::begin(0)));
        let engines = Arc::new(Replaceable::new(first));
        let conversation = {
            let engines = Arc::clone(&engines);
            move || {
                engines.part(
                    |engine| engine.part.get(),
                    |error| *error == EngineError::Asked,
                    |_, _| Err(EngineError::Thread { network: "none" }),
                )
            }
        };
        let other = spawn(conversation.clone());
        assert_eq!(conversation(), Err(EngineError::Thread { network: "none" }));
        assert_eq!(
            other.join().unwrap(),
            Err(EngineError::Thread { network: "none" })
        );
    });
}

/// Encodes images of one number; counts how often.
fn encoder(calls: &AtomicUsize) -> Result<Array2<f32>, EngineError> {
    calls.fetch_add(1, Ordering::SeqCst);
    loom::thread::yield_now();
    Ok(Array2::zeros((1, 1)))
}

#[test]
fn an_image_is_encoded_once_and_counted_once() {
    in_every_order(|| {
        let features = Arc::new(Features::up_to(4));
        let calls = Arc::new(AtomicUsize::new(0));
        let others = [(); 2].map(|()| {
            let (features, calls) = (Arc::clone(&features), Arc::clone(&calls));
            spawn(move || features.get_or_encode(ImageId(1), || encoder(&calls)).unwrap().1)
        });
        let mut encoded = vec![features.get_or_encode(ImageId(1), || encoder(&calls)).unwrap().1];
        encoded.extend(others.map(|other| other.join().unwrap()));
        assert_eq!(encoded.iter().filter(|now| **now).count(), 1);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let kept = features.kept();
        assert_eq!((kept.bytes, kept.places()), (4, 1));
    });
}

/// Two images where one has room, an error, and one who forgets them all: what is kept is what is counted.
#[test]
fn what_is_kept_is_counted_whatever_happens_at_once() {
    let mut orders = loom::model::Builder::new();
    // Switches that no thread asked for: without a bound it takes minutes.
    orders.preemption_bound = Some(3);
    orders.check(|| {
        let features = Arc::new(Features::up_to(4));
        let ask = |features: &Features, id| {
            let calls = AtomicUsize::new(0);
            features.get_or_encode(ImageId(id), || encoder(&calls)).unwrap();
        };
        let other = Arc::clone(&features);
        let other = spawn(move || {
            ask(&other, 1);
            ask(&other, 2);
        });
        let forgets = Arc::clone(&features);
        let forgets = spawn(move || {
            forgets.clear();
            assert!(forgets.get(ImageId(2)).is_none_or(|found| found.len() == 1));
            let failed = forgets.get_or_encode(ImageId(1), || Err(EngineError::Asked));
            assert!(failed.map(|(_, now)| now) != Ok(true));
        });
        ask(&features, 1);
        other.join().unwrap();
        forgets.join().unwrap();
        let kept = features.kept();
        assert!(kept.bytes == 4 * kept.filled() && kept.bytes <= 4);
        // Places of images that are neither there nor being encoded would stay for ever.
        assert_eq!(kept.places(), kept.filled());
        drop(kept);
        assert!(!features.has(ImageId(3)));
    });
}
