//! When did what happen? The steps of a program, each with its thread, from the program's first line on.

use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Columns of the bars of [`table`].
const WIDTH: usize = 32;

/// Most steps that are kept until somebody takes them; a program that never does must not grow.
const MOST: usize = 1000;

/// Something that was done, and when. Times are in seconds since the timeline began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What: `load encoder`.
    pub step: String,
    /// When it began.
    pub start_s: f64,
    /// When it ended.
    pub end_s: f64,
    /// On which thread.
    pub thread: String,
}

/// Collects steps, from any thread. Clones share what they collect.
#[derive(Debug, Clone)]
pub struct Timeline {
    origin: Instant,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Timeline {
    /// One that begins now.
    pub fn begin() -> Timeline {
        Timeline {
            origin: Instant::now(),
            steps: Arc::default(),
        }
    }

    /// Another one that began when this one did, with steps of its own.
    pub(crate) fn beside(&self) -> Timeline {
        Timeline {
            origin: self.origin,
            steps: Arc::default(),
        }
    }

    /// The steps of all of these since they were last asked, in the order in which they began.
    pub(crate) fn take_all(timelines: &[&Timeline]) -> Vec<Step> {
        let mut steps: Vec<Step> = timelines.iter().flat_map(|timeline| timeline.take()).collect();
        steps.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        steps
    }

    /// Does `work`, a step of this thread.
    pub fn measure<T>(&self, step: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.record(step, start, Instant::now());
        result
    }

    /// A step of this thread that is over.
    pub fn record(&self, step: &str, start: Instant, end: Instant) {
        let step = self.step(step, start, end);
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() < MOST {
            steps.push(step);
        }
    }

    /// A step of this thread that is over, for who keeps it elsewhere.
    pub(crate) fn step(&self, step: &str, start: Instant, end: Instant) -> Step {
        let thread = std::thread::current();
        Step {
            step: step.to_owned(),
            start_s: self.seconds(start),
            end_s: self.seconds(end),
            thread: thread.name().unwrap_or("unnamed").to_owned(),
        }
    }

    /// The steps since this was last asked, in the order in which they began.
    pub fn take(&self) -> Vec<Step> {
        let mut steps = std::mem::take(&mut *self.steps.lock().unwrap_or_else(PoisonError::into_inner));
        steps.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        steps
    }

    /// Seconds from the beginning to `instant`.
    pub fn seconds(&self, instant: Instant) -> f64 {
        instant.saturating_duration_since(self.origin).as_secs_f64()
    }
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline::begin()
    }
}

/// For people: a line a step, with a bar where it lies between the first and the last.
pub fn table(steps: &[Step]) -> Vec<String> {
    let begin = steps
        .iter()
        .map(|step| step.start_s)
        .fold(f64::INFINITY, f64::min);
    let end = steps
        .iter()
        .map(|step| step.end_s)
        .fold(f64::NEG_INFINITY, f64::max);
    let longest = |name: fn(&Step) -> &str| {
        let lengths = steps.iter().map(|step| name(step).chars().count());
        lengths.max().unwrap_or(0)
    };
    let names = longest(|step| &step.step);
    let threads = longest(|step| &step.thread);
    // A column stands for as much time as every other; the last belongs to the end.
    let column = |seconds: f64| -> usize {
        let share = (seconds - begin) / (end - begin);
        let within = (0..WIDTH).find(|&column| share < (column + 1) as f64 / WIDTH as f64);
        within.unwrap_or(WIDTH - 1)
    };
    steps
        .iter()
        .map(|step| {
            let (first, last) = (column(step.start_s), column(step.end_s));
            let bar: String = (0..WIDTH)
                .map(|at| if (first..=last).contains(&at) { '#' } else { ' ' })
                .collect();
            format!(
                "{:names$}  {:threads$}  {:9.1} {:9.1} ms |{bar}|",
                step.step,
                step.thread,
                step.start_s * 1e3,
                step.end_s * 1e3
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn step(step: &str, start_s: f64, end_s: f64) -> Step {
        Step {
            step: step.to_owned(),
            start_s,
            end_s,
            thread: "main".to_owned(),
        }
    }

    #[test]
    fn steps_of_all_threads_in_the_order_of_their_beginning() {
        let timeline = Timeline::begin();
        let late = timeline.origin + Duration::from_secs(2);
        timeline.record("late", late, late + Duration::from_secs(1));
        let other = timeline.clone();
        let work = move || other.measure("early", || 7);
        let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(work);
        assert_eq!(thread.unwrap().join().unwrap(), 7);
        let steps = timeline.take();
        let names: Vec<&str> = steps.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(names, ["early", "late"]);
        assert_eq!(steps[0].thread, "worker");
        assert!(steps[0].start_s <= steps[0].end_s);
        assert_eq!((steps[1].start_s, steps[1].end_s), (2.0, 3.0));
        assert!(timeline.take().is_empty());
    }

    #[test]
    fn bars_lie_where_the_steps_do() {
        let lines = table(&[
            step("all", 0.0, 4.0),
            step("first half", 0.0, 1.9),
            step("end", 4.0, 4.0),
        ]);
        let bars: Vec<&str> = lines.iter().map(|line| line.split_once('|').unwrap().1).collect();
        assert_eq!(bars[0], format!("{}|", "#".repeat(WIDTH)));
        assert_eq!(bars[1], format!("{:<WIDTH$}|", "#".repeat(WIDTH / 2)));
        assert_eq!(bars[2], format!("{:>WIDTH$}|", "#"));
        let lengths: Vec<usize> = lines.iter().map(String::len).collect();
        assert_eq!(lengths, [lengths[0]; 3], "{lines:?}");
        assert!(table(&[]).is_empty());
        // No time at all is no division by zero.
        assert_eq!(table(&[step("one", 1.0, 1.0)]).len(), 1);
    }
}
