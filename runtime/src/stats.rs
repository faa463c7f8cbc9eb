//! What did it take? Times and memory of one answer.

use crate::timeline::{self, Step};
use serde::Serialize;
use std::time::Duration;

/// Times (in seconds) and counts of one answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Opening the bundle until its last part was there, once per program. Other steps may have been taken meanwhile.
    pub load: f64,
    /// Images from bytes of pixels to `pixel_values`.
    pub preprocess: f64,
    /// Images that the vision encoder saw; a known image is not encoded again.
    pub images_encoded: usize,
    /// The vision encoder.
    pub encode: f64,
    /// Positions of the prompt.
    pub prompt_positions: usize,
    /// Positions of the prompt that were in the KV cache already.
    pub reused_positions: usize,
    /// Turns of the conversation that the prompt leaves out, because the context was full
    /// ([`Conversation::set_context_shift`](crate::Conversation::set_context_shift)).
    pub left_out: usize,
    /// The embedding and the decoder, over the rest of the prompt.
    pub prefill: f64,
    /// From the decoded image and the question to the first token; while something still loads, that too.
    pub time_to_first_token: Option<f64>,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Tokens after the first, per second; where other answers are continued between them, that time too.
    pub tokens_per_second: Option<f64>,
    /// Most answers, this one included, that were to be continued together
    /// ([`Answer::next_together`](crate::Answer::next_together)).
    pub together_asked: usize,
    /// Most that one computation continued: 1 where the engine continues one sequence at a time.
    pub together: usize,
    /// Most memory that the process has held so far, in bytes; `None` where the system does not say.
    pub peak_memory: Option<u64>,
    /// What happened when, since the last answer; for the first, since the program began.
    #[serde(skip)]
    pub timeline: Vec<Step>,
}

impl Stats {
    /// The rate of tokens after the first, which came `after_first` before the last.
    pub(crate) fn rate(tokens: usize, after_first: Duration) -> Option<f64> {
        let count = u32::try_from(tokens.checked_sub(1)?).ok()?;
        let seconds = after_first.as_secs_f64();
        (count > 0 && seconds > 0.0).then(|| f64::from(count) / seconds)
    }

    /// For people, over several lines.
    pub fn lines(&self) -> Vec<String> {
        let time = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        let mut lines = timeline::table(&self.timeline);
        lines.extend([
            format!("load        {}", time(self.load)),
            format!("preprocess  {}", time(self.preprocess)),
            format!(
                "encode      {} ({} images)",
                time(self.encode),
                self.images_encoded
            ),
            format!(
                "prefill     {} ({} positions, {} reused)",
                time(self.prefill),
                self.prompt_positions,
                self.reused_positions
            ),
        ]);
        if self.left_out > 0 {
            lines.push(format!("left out    {} turns, the oldest", self.left_out));
        }
        lines.extend(
            self.time_to_first_token
                .map(|seconds| format!("first token {}", time(seconds))),
        );
        let rate = self
            .tokens_per_second
            .map(|rate| format!(" ({rate:.1} tokens/s)"))
            .unwrap_or_default();
        lines.push(format!("answer      {} tokens{rate}", self.tokens));
        if self.together_asked > 1 {
            let (asked, most) = (self.together_asked, self.together);
            lines.push(match most {
                0 | 1 => format!("together    {asked} answers, one at a time"),
                _ => format!("together    {asked} answers, {most} at a time"),
            });
        }
        lines.push(
            match self.peak_memory.and_then(|bytes| u32::try_from(bytes >> 20).ok()) {
                Some(megabytes) => format!("peak memory {megabytes} MiB"),
                None => "peak memory unknown".to_owned(),
            },
        );
        lines
    }
}

/// Most memory that this process has held so far, in bytes; where Linux says so.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_tokens() {
        assert_eq!(Stats::rate(0, Duration::from_secs(1)), None);
        assert_eq!(Stats::rate(1, Duration::from_secs(1)), None);
        assert_eq!(Stats::rate(5, Duration::from_secs(2)), Some(2.0));
        assert_eq!(Stats::rate(5, Duration::ZERO), None);
    }

    #[test]
    fn lines_name_every_figure() {
        let lines = Stats {
            time_to_first_token: Some(0.25),
            together_asked: 8,
            together: 1,
            ..Stats::default()
        }
        .lines()
        .join("\n");
        for word in [
            "load",
            "preprocess",
            "encode",
            "prefill",
            "reused",
            "first token 250.0 ms",
            "together    8 answers, one at a time",
            "peak memory",
        ] {
            assert!(lines.contains(word), "{word}: {lines}");
        }
    }
}
