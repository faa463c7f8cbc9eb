//! Which frame is asked about next? A thread takes all frames as they come, so that nobody who writes them waits; the
//! newest one is kept, what it replaces is dropped and counted.

use crate::image::frames::{Frame, FrameError, Frames};
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often somebody is asked about a frame, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Every {
    /// Of so many frames the first; 1 is each.
    Frames(u64),
    /// After so much time, counted from the arrival of the last one that was asked about.
    Time(Duration),
}

impl Every {
    /// Whether a frame may be asked about.
    fn takes(self, number: u64, arrived: Instant, asked: Option<Instant>) -> bool {
        match self {
            Every::Frames(count) => number.saturating_sub(1).is_multiple_of(count.max(1)),
            Every::Time(time) => asked.is_none_or(|asked| arrived.saturating_duration_since(asked) >= time),
        }
    }
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Every, String> {
        let wrong = || "expected frames, for example 5, or a time, for example 2s or 500ms".to_owned();
        let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => (number, 1e-3),
            (None, Some(number)) => (number, 1.0),
            (None, None) => {
                let frames = text.parse().ok().filter(|frames| *frames > 0);
                return frames.map(Every::Frames).ok_or_else(wrong);
            }
        };
        let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
        let time = Duration::try_from_secs_f64(seconds).ok();
        time.filter(|time| !time.is_zero())
            .map(Every::Time)
            .ok_or_else(wrong)
    }
}

/// What was not asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Frames that were replaced by a newer one before it was their turn.
    pub(crate) dropped: u64,
    /// Frames that were not to be asked about.
    pub(crate) passed_over: u64,
    /// Frames that are broken.
    pub(crate) broken: u64,
    /// Bytes that are of no whole frame.
    pub(crate) skipped_bytes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.dropped += other.dropped;
        self.passed_over += other.passed_over;
        self.broken += other.broken;
        self.skipped_bytes += other.skipped_bytes;
    }
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Next {
    /// A frame, and when its last byte was there.
    Frame(Frame, Instant),
    /// The number of a frame that is none, and why; where several were broken, of the last of them.
    Broken(u64, FrameError),
    /// There are no more, for this reason or because the stream ends.
    End(Option<FrameError>),
}

#[derive(Debug, Default)]
struct State {
    newest: Option<(Frame, Instant)>,
    broken: Option<(u64, FrameError)>,
    counts: Counts,
    /// When the last frame arrived that was taken.
    asked: Option<Instant>,
    end: Option<Option<FrameError>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what came, once there is room for it where the stream is to wait.
    fn put(&self, waits: bool, put: impl FnOnce(&mut State)) {
        let mut state = self.state();
        while waits && (state.newest.is_some() || state.broken.is_some()) {
            state = self.wait(state);
        }
        put(&mut state);
        self.changed.notify_all();
    }
}

/// Says that nothing comes any more, however the thread ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.state().end.get_or_insert(None);
        self.0.changed.notify_all();
    }
}

/// The newest frame of a stream that a thread reads.
#[derive(Debug)]
pub(crate) struct Newest(Arc<Shared>);

impl Newest {
    /// Begins to read. A stream that `waits` is read no further than the frame that is not taken yet: nothing is dropped.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn read(
        frames: Frames<impl Read + Send + 'static>,
        every: Every,
        waits: bool,
    ) -> io::Result<Newest> {
        let shared = Arc::new(Shared::default());
        let ending = Ending(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("frames".to_owned());
        thread.spawn(move || take_all(frames, &ending.0, every, waits))?;
        Ok(Newest(shared))
    }

    /// Waits for what is to be done next; and what was not asked about since the last time.
    pub(crate) fn next(&self) -> (Next, Counts) {
        let mut state = self.0.state();
        loop {
            // In the order of the stream.
            let before = |number: u64| {
                state
                    .newest
                    .as_ref()
                    .is_none_or(|(frame, _)| number < frame.number())
            };
            let first = state.broken.as_ref().is_some_and(|(number, _)| before(*number));
            let broken = if first { state.broken.take() } else { None };
            let next = if let Some((number, error)) = broken {
                Some(Next::Broken(number, error))
            } else if let Some((frame, arrived)) = state.newest.take() {
                state.asked = Some(arrived);
                Some(Next::Frame(frame, arrived))
            } else {
                state.end.take().map(Next::End)
            };
            if let Some(next) = next {
                self.0.changed.notify_all();
                return (next, std::mem::take(&mut state.counts));
            }
            state = self.0.wait(state);
        }
    }
}

/// The thread that reads.
fn take_all(mut frames: Frames<impl Read>, shared: &Shared, every: Every, waits: bool) {
    let mut skipped = 0;
    loop {
        let next = frames.next();
        let arrived = Instant::now();
        let bytes = frames.skipped() - skipped;
        skipped = frames.skipped();
        let number = frames.number();
        let Some(next) = next else {
            shared.put(false, |state| state.counts.skipped_bytes += bytes);
            return;
        };
        shared.put(waits, |state| {
            state.counts.skipped_bytes += bytes;
            match next {
                Ok(frame) if every.takes(frame.number(), arrived, state.asked) => {
                    let old = state.newest.replace((frame, arrived));
                    state.counts.dropped += u64::from(old.is_some());
                }
                Ok(_) => state.counts.passed_over += 1,
                Err(error) if error.is_end() => state.end = Some(Some(error)),
                Err(error) => {
                    state.counts.broken += 1;
                    state.broken = Some((number, error));
                }
            }
        });
    }
}

/// A reader that waits where somebody else made the pipe one that does not.
#[derive(Debug)]
pub(crate) struct Patient<R>(pub(crate) R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                read => return read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Limits;
    use std::sync::mpsc;

    /// `count` frames of one pixel.
    fn stream(count: usize) -> Vec<u8> {
        let frames = (0..count).flat_map(|_| *b"FRAME\n0");
        b"YUV4MPEG2 W1 H1 Cmono\n".iter().copied().chain(frames).collect()
    }

    /// What somebody sends, when they send it.
    struct Sent(mpsc::Receiver<Vec<u8>>, Vec<u8>);

    impl Read for Sent {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            if self.1.is_empty() {
                self.1 = self.0.recv().unwrap_or_default();
            }
            let count = self.1.len().min(to.len());
            to[..count].copy_from_slice(&self.1[..count]);
            self.1.drain(..count);
            Ok(count)
        }
    }

    fn read(reader: impl Read + Send + 'static, every: Every, waits: bool) -> Newest {
        Newest::read(Frames::new(reader, "a pipe", Limits::default()), every, waits).unwrap()
    }

    /// Numbers of the frames that are asked about, and all counts.
    fn all(newest: &Newest) -> (Vec<u64>, Counts) {
        let (mut numbers, mut counts) = (Vec::new(), Counts::default());
        loop {
            let (next, more) = newest.next();
            counts.add(more);
            match next {
                Next::Frame(frame, _) => numbers.push(frame.number()),
                Next::Broken(number, _) => numbers.push(100 + number),
                Next::End(None) => return (numbers, counts),
                Next::End(Some(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn the_newest_wins_and_the_last_is_never_lost() {
        let (send, receive) = mpsc::channel();
        let newest = read(Sent(receive, Vec::new()), Every::Frames(1), false);
        send.send(stream(1)).unwrap();
        assert!(matches!(newest.next(), (Next::Frame(frame, _), _) if frame.number() == 1));
        send.send(stream(20)[22..].to_vec()).unwrap();
        drop(send);
        // All of it is read although nobody asks.
        while newest.0.state().end.is_none() {
            std::thread::yield_now();
        }
        let counts = Counts {
            dropped: 19,
            ..Counts::default()
        };
        assert_eq!(all(&newest), (vec![21], counts));
    }

    #[test]
    fn a_stream_that_waits_drops_nothing() {
        let newest = read(io::Cursor::new(stream(50)), Every::Frames(1), true);
        assert_eq!(all(&newest), ((1..=50).collect(), Counts::default()));
        let newest = read(io::Cursor::new(stream(10)), Every::Frames(4), true);
        let counts = Counts {
            passed_over: 7,
            ..Counts::default()
        };
        assert_eq!(all(&newest), (vec![1, 5, 9], counts));
        // Each broken frame is told, in its place.
        let mut broken = stream(2);
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\0\0\0\0\0";
        broken.extend([&png[..], &png[..], b"FRAME\n0FRAM"].concat());
        let newest = read(io::Cursor::new(broken), Every::Frames(1), true);
        let (numbers, counts) = all(&newest);
        assert_eq!(numbers, [1, 2, 103, 104, 5, 106]);
        assert_eq!((counts.broken, counts.skipped_bytes), (3, 36));
    }

    #[test]
    fn times_are_counted_between_frames_that_were_asked_about() {
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let every = Every::Time(Duration::from_secs(2));
        assert!(every.takes(7, begun, None));
        assert!(!every.takes(8, at(1999), Some(begun)));
        assert!(every.takes(9, at(2000), Some(begun)));
    }

    #[test]
    fn how_often_is_frames_or_a_time() {
        let time = |milliseconds| Ok(Every::Time(Duration::from_millis(milliseconds)));
        let cases = [
            ("1", Ok(Every::Frames(1))),
            ("25", Ok(Every::Frames(25))),
            ("2s", time(2000)),
            ("0.5s", time(500)),
            ("40ms", time(40)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Every>(), expected, "{text}");
        }
        for text in [
            "", "0", "-1", "1.5", "0s", "-2s", "s", "ms", "NaNs", "infs", "1e99s", "2m", "x",
        ] {
            assert!(
                text.parse::<Every>().unwrap_err().contains("expected frames"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_broken_comes_in_the_order_of_the_stream() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\0\0\0\0\0";
        let whole = || stream(1)[22..].to_vec();
        for (parts, expected) in [
            (vec![whole(), png.to_vec()], vec![1, 102]),
            (vec![png.to_vec(), whole()], vec![101, 2]),
            // The newest of each.
            (vec![whole(), png.to_vec(), png.to_vec(), whole()], vec![103, 4]),
        ] {
            let stream = [stream(0), parts.concat()].concat();
            let newest = read(io::Cursor::new(stream), Every::Frames(1), false);
            while newest.0.state().end.is_none() {
                std::thread::yield_now();
            }
            let broken = parts.iter().filter(|part| part.starts_with(png)).count();
            let (numbers, counts) = all(&newest);
            assert_eq!(numbers, expected);
            assert_eq!(usize::try_from(counts.broken), Ok(broken));
        }
    }

    #[test]
    fn a_stream_of_nothing_ends_with_an_error() {
        let newest = read(io::empty(), Every::Frames(1), false);
        assert!(matches!(newest.next(), (Next::End(Some(_)), _)));
    }
}
