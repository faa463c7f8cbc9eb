//! How does a request end when the network does not let it?
//!
//! A call waits as long as the network does. So each has a thread of its own, which counts what arrives, and the
//! caller watches the count: it passes it on, and it leaves when the user asks for that or when nothing arrives.

use super::counter::Counter;
use super::file::Fault;
use crate::report::Report;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often the watcher looks.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Why a call gave nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The report asked to stop.
    Interrupted,
    /// Nothing arrived for as long as patience lasts.
    Silent,
    /// The call's own error.
    Failed(Fault),
    /// Its thread could not be started or panicked.
    Lost,
}

/// Makes a call in a thread of its own. `told` is how many bytes of its file `report` knows of, and is kept up to date.
///
/// # Errors
/// The call's own, or that it was left alone; what it had written by then stays where it is.
pub(crate) fn watched<T: Send + 'static>(
    patience: Duration,
    report: &mut dyn Report,
    told: &mut u64,
    call: impl FnOnce(Counter) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Trouble> {
    let counter = Counter::default();
    let (sender, receiver) = mpsc::channel();
    let inner = counter.clone();
    let thread = std::thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || drop(sender.send(call(inner))));
    if thread.is_err() {
        return Err(Trouble::Lost);
    }
    let mut last = (0, Instant::now());
    loop {
        let answer = receiver.recv_timeout(TICK);
        let here = counter.here();
        if here > *told {
            report.advance(here - *told);
            *told = here;
        }
        match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => return Err(Trouble::Failed(error)),
            Err(RecvTimeoutError::Disconnected) => return Err(Trouble::Lost),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if here != last.0 {
            last = (here, Instant::now());
        }
        let trouble = match (report.interrupted(), last.1.elapsed() > patience) {
            (true, _) => Trouble::Interrupted,
            (false, true) => Trouble::Silent,
            (false, false) => continue,
        };
        counter.abandon();
        return Err(trouble);
    }
}

/// Sleeps, unless the report asks to stop.
///
/// # Errors
/// [`Trouble::Interrupted`].
pub(crate) fn pause(length: Duration, report: &dyn Report) -> Result<(), Trouble> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        if report.interrupted() {
            return Err(Trouble::Interrupted);
        }
        std::thread::sleep(TICK.min(length));
    }
    Ok(())
}
