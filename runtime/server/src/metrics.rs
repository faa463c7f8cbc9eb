//! `/metrics`: what was done, in the text form of Prometheus.

use crate::work::Counts;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of a time, in seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Times, by how long they are.
#[derive(Debug, Default)]
struct Histogram {
    /// For each bound, those that are at most as long, and longer than the bound before; last, the rest.
    buckets: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(bucket) = self.buckets.get_mut(place.unwrap_or(BOUNDS.len())) {
            *bucket += 1;
        }
        self.sum += seconds;
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let mut count = 0;
        line(
            text,
            format_args!("# HELP {name} {help}\n# TYPE {name} histogram"),
        );
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, bucket) in bounds.zip(self.buckets) {
            count += bucket;
            line(text, format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        line(
            text,
            format_args!("{name}_sum {}\n{name}_count {count}", self.sum),
        );
    }
}

/// What the HTTP side counts itself.
#[derive(Debug, Default)]
struct Counted {
    /// By path and status.
    requests: BTreeMap<(String, u16), u64>,
    first_token: Histogram,
    queued: Histogram,
    images: u64,
}

/// Counts of all connections.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counted>);

impl Metrics {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of `path`, a route as it is written, was answered.
    pub(crate) fn request(&self, path: &str, status: u16) {
        let requests = &mut self.counted().requests;
        *requests.entry((path.to_owned(), status)).or_default() += 1;
    }

    /// So many images were decoded.
    pub(crate) fn images(&self, count: usize) {
        self.counted().images += u64::try_from(count).unwrap_or(u64::MAX);
    }

    /// An answer is done.
    pub(crate) fn answer(&self, first_token: Duration, queued: Duration) {
        let mut counted = self.counted();
        counted.first_token.observe(first_token);
        counted.queued.observe(queued);
    }

    /// All of it.
    pub(crate) fn text(&self, counts: &Counts) -> String {
        let mut text = String::new();
        let counted = self.counted();
        line(
            &mut text,
            "# HELP fvlm_requests_total Requests by path and status.\n# TYPE fvlm_requests_total counter",
        );
        for ((path, status), count) in &counted.requests {
            line(
                &mut text,
                format_args!("fvlm_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}"),
            );
        }
        counted.first_token.write(
            &mut text,
            "fvlm_time_to_first_token_seconds",
            "From a request being taken in to its first token.",
        );
        counted.queued.write(
            &mut text,
            "fvlm_queue_seconds",
            "Of the time to the first token, waiting for others.",
        );
        let images = counted.images;
        drop(counted);
        let big = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let gauges = [
            (
                "fvlm_requests_waiting",
                "Requests that wait.",
                big(counts.waiting),
            ),
            (
                "fvlm_requests_running",
                "Requests whose prompt is read or whose answer runs.",
                big(counts.running),
            ),
            ("fvlm_slots", "Most requests that run at once.", big(counts.slots)),
            (
                "fvlm_conversations_kept",
                "Conversations that are kept for a next turn.",
                big(counts.kept),
            ),
            (
                "fvlm_cache_bytes",
                "Bytes of all KV caches.",
                big(counts.cache_bytes),
            ),
        ];
        let counters = [
            (
                "fvlm_answers_total",
                "Requests that were answered to the end.",
                counts.finished,
            ),
            (
                "fvlm_cancelled_total",
                "Requests whose client went away.",
                counts.cancelled,
            ),
            ("fvlm_failed_total", "Requests that failed.", counts.failed),
            (
                "fvlm_refused_total",
                "Requests that found the queue full.",
                counts.refused,
            ),
            (
                "fvlm_prompt_positions_total",
                "Positions of prompts that were computed.",
                counts.prompt_positions,
            ),
            (
                "fvlm_reused_positions_total",
                "Positions of prompts that were in a cache already.",
                counts.reused_positions,
            ),
            ("fvlm_tokens_total", "Tokens of answers.", counts.tokens),
            ("fvlm_images_total", "Images that were decoded.", images),
            (
                "fvlm_images_encoded_total",
                "Images that were encoded.",
                counts.images_encoded,
            ),
            (
                "fvlm_images_reused_total",
                "Images whose features were there already.",
                counts.images_reused,
            ),
            ("fvlm_steps_total", "Steps of the decoder.", counts.steps),
        ];
        for (kind, table) in [("gauge", &gauges[..]), ("counter", &counters)] {
            for (name, help, value) in table {
                line(
                    &mut text,
                    format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"),
                );
            }
        }
        text
    }
}

/// A line of text, which memory does not refuse.
fn line(text: &mut String, words: impl std::fmt::Display) {
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        for millis in [1, 5, 6, 40, 500_000] {
            metrics.answer(Duration::from_millis(millis), Duration::ZERO);
        }
        metrics.request("/health", 200);
        metrics.request("/health", 200);
        let text = metrics.text(&Counts::default());
        for expected in [
            "fvlm_requests_total{path=\"/health\",status=\"200\"} 2\n",
            "fvlm_time_to_first_token_seconds_bucket{le=\"0.005\"} 2\n",
            "fvlm_time_to_first_token_seconds_bucket{le=\"0.05\"} 4\n",
            "fvlm_time_to_first_token_seconds_bucket{le=\"120\"} 4\n",
            "fvlm_time_to_first_token_seconds_bucket{le=\"+Inf\"} 5\n",
            "fvlm_time_to_first_token_seconds_count 5\n",
            "# TYPE fvlm_tokens_total counter\nfvlm_tokens_total 0\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}
