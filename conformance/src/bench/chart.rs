//! How long is the wait, beside others? A chart of the time to first token as SVG: a bar for each contestant of
//! `scripts/bench_peers`, from what it recorded. The same record gives the same bytes; colours serve light and dark pages.

use super::plot::{MARGIN, WIDTH, escape, label, mark, place};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const TOP: f64 = 92.0;
const ROW: f64 = 30.0;
const BAR: f64 = 18.0;
const AXIS: f64 = 30.0;
/// Width of a character of the names, which may be bold, rounded up.
const NAME: f64 = 8.5;
/// Room for the figure behind the longest bar.
const FIGURE: f64 = 70.0;

/// What `scripts/bench_peers --record` writes, as far as the chart needs it.
#[derive(Debug, Deserialize)]
pub struct Record {
    date: String,
    size: String,
    machine: Machine,
    threads: usize,
    prompt_tokens: usize,
    contestants: BTreeMap<String, Contestant>,
}

#[derive(Debug, Deserialize)]
struct Machine {
    cpu: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Contestant {
    ours: bool,
    version: String,
    precision: String,
    /// Seconds from pixels to the first token, warm; null where it is given no picture.
    ttft_s: Option<Spread>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// Another form, or times that are none.
    pub fn parse(text: &str) -> Result<Record, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let waits = record.waits();
        if waits.is_empty() {
            return Err("no contestant has a `ttft_s`, expected at least one".to_owned());
        }
        for wait in waits {
            let Spread { median, min, max } = wait.seconds;
            if !(0.0 <= min && min <= median && median <= max && max.is_finite()) {
                let name = wait.name;
                return Err(format!(
                    "`ttft_s` of {name} has median {median}, min {min} and max {max}, expected a median between them"
                ));
            }
        }
        Ok(record)
    }

    /// Those that are given a picture, the fastest first.
    fn waits(&self) -> Vec<Wait> {
        let wait = |(key, contestant): (&String, &Contestant)| {
            let software = contestant.version.split(',').next().unwrap_or_default();
            let name = match (contestant.ours, key.split(':').next()) {
                (true, Some("cpu")) => format!("ours, {}, ONNX Runtime", contestant.precision),
                (true, Some(engine)) => format!("ours, {}, {engine}", contestant.precision),
                _ => format!("{software}, {}", contestant.precision),
            };
            Some(Wait {
                name,
                ours: contestant.ours,
                seconds: contestant.ttft_s?,
            })
        };
        let mut waits: Vec<Wait> = self.contestants.iter().filter_map(wait).collect();
        waits.sort_by(|a, b| a.seconds.median.total_cmp(&b.seconds.median));
        waits
    }
}

/// A bar.
struct Wait {
    name: String,
    ours: bool,
    seconds: Spread,
}

const STYLE: &str = "<style>\n\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }\n\
.title { font-size: 16px; font-weight: 600 }\n\
.small { font-size: 11px; fill: #59636e }\n\
.end { text-anchor: end }\n\
.middle { text-anchor: middle }\n\
.grid { stroke: #8b949e; stroke-opacity: 0.35 }\n\
.spread { stroke: #1f2328; stroke-opacity: 0.7; stroke-width: 1.5 }\n\
.ours { fill: #2f9e62 }\n\
.theirs { fill: #8b949e }\n\
.own { font-weight: 600 }\n\
@media (prefers-color-scheme: dark) {\n\
  text { fill: #e6edf3 }\n\
  .small { fill: #9aa4af }\n\
  .spread { stroke: #e6edf3 }\n\
}\n\
</style>\n";

/// The chart of a record.
pub fn svg(record: &Record) -> String {
    let waits = record.waits();
    let names = waits.iter().map(|wait| wait.name.chars().count());
    let left = (MARGIN + NAME * names.max().unwrap_or(0) as f64 + 12.0).min(WIDTH / 2.0);
    let right = WIDTH - MARGIN - FIGURE;
    let longest = waits.iter().map(|wait| wait.seconds.max).fold(0.0, f64::max);
    let scale = (right - left) / longest.max(f64::MIN_POSITIVE);
    let bottom = TOP + ROW * waits.len() as f64;
    let height = bottom + AXIS;
    let title = format!(
        "Time to first token, geometry of FastVLM-{}",
        record.size.to_uppercase()
    );
    let about = format!(
        "Seconds from the picture to the first token, warm, {} positions: less is better. Lines go from the \
         least to the greatest of the runs.",
        record.prompt_tokens
    );
    let place_and_time = format!(
        "{} threads of {}, {}, {}",
        record.threads, record.machine.cpu, record.machine.os, record.date
    );
    let title = escape(&title);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n{STYLE}"
    );
    let _ = writeln!(svg, "<title>{title}</title>");
    let _ = writeln!(
        svg,
        "<text class=\"title\" x=\"{MARGIN}\" y=\"28\">{title}</text>"
    );
    for (y, line) in [(48, about), (64, place_and_time)] {
        let line = escape(&line);
        let _ = writeln!(
            svg,
            "<text class=\"small\" x=\"{MARGIN}\" y=\"{y}\">{line}</text>"
        );
    }
    let mark = mark(longest);
    let marks = (longest / mark).floor() as usize;
    for number in 0..=marks {
        let seconds = mark * number as f64;
        let x = place(left + seconds * scale);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\"/><text class=\"small middle\" \
             x=\"{x}\" y=\"{}\">{}</text>",
            TOP - 8.0,
            bottom + 16.0,
            label(seconds, longest.max(1.0), mark)
        );
    }
    for (number, wait) in waits.iter().enumerate() {
        bar(&mut svg, wait, TOP + ROW * number as f64, left, scale);
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, wait: &Wait, top: f64, left: f64, scale: f64) {
    let Spread { median, min, max } = wait.seconds;
    let (class, weight) = if wait.ours {
        ("ours", " own")
    } else {
        ("theirs", "")
    };
    let middle = top + BAR / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"end{weight}\" x=\"{}\" y=\"{}\">{}</text><rect class=\"{class}\" x=\"{}\" y=\"{}\" \
         width=\"{}\" height=\"{BAR}\"/>",
        place(left - 10.0),
        place(middle + 4.5),
        escape(&wait.name),
        place(left),
        place(top),
        place(median * scale)
    );
    let _ = writeln!(
        svg,
        "<line class=\"spread\" x1=\"{}\" y1=\"{middle}\" x2=\"{}\" y2=\"{middle}\"/><text class=\"{}\" \
         x=\"{}\" y=\"{}\">{median:.2} s</text>",
        place(left + min * scale),
        place(left + max * scale),
        weight.trim(),
        place(left + max * scale + 8.0),
        place(middle + 4.5)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"date": "2026-11-26", "size": "0.5b", "machine": {"cpu": "A & B", "os": "Linux", "cores": 2},
        "threads": 2, "prompt_tokens": 286, "contestants": {
        "cpu:cpu:q4": {"ours": true, "version": "fvlm-conform 1", "precision": "q4",
            "ttft_s": {"median": 0.7, "min": 0.6, "max": 0.8}},
        "tract:cpu:q4": {"ours": true, "version": "fvlm-conform 1", "precision": "q4",
            "ttft_s": {"median": 0.6, "min": 0.6, "max": 0.6}},
        "slow": {"ours": false, "version": "slow 2.0, torch 3", "precision": "fp32",
            "ttft_s": {"median": 3.0, "min": 2.9, "max": 3.5}},
        "blind": {"ours": false, "version": "blind 1", "precision": "int4", "ttft_s": null}}}"#;

    #[test]
    fn a_chart_has_a_bar_for_each_that_sees_the_fastest_first() {
        let svg = svg(&Record::parse(RECORD).unwrap());
        let place = |text: &str| svg.find(text).unwrap_or_else(|| panic!("no `{text}` in {svg}"));
        assert!(place("ours, q4, tract") < place("ours, q4, ONNX Runtime"));
        assert!(place("ours, q4, ONNX Runtime") < place("slow 2.0, fp32"));
        assert!(!svg.contains("blind"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3);
        for text in [
            "Time to first token, geometry of FastVLM-0.5B",
            "A &amp; B",
            "2026-11-26",
            ">0.70 s<",
            ">3.00 s<",
        ] {
            place(text);
        }
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn records_that_make_no_sense_are_refused() {
        for (from, to, expected) in [
            (
                "\"median\": 0.7",
                "\"median\": 0.9",
                "has median 0.9, min 0.6 and max 0.8",
            ),
            ("\"ours\": true", "\"ours\": 1", "invalid type"),
            ("\"ttft_s\": {", "\"other\": {", "no contestant has a `ttft_s`"),
        ] {
            let error = Record::parse(&RECORD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
