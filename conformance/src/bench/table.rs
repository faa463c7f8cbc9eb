//! How are measurements told? A table for people, aligned or in Markdown.

use super::statistics::Spread;
use super::{Measured, Report};
use crate::table;

const TITLES: [&str; 11] = [
    "provider",
    "target",
    "precision",
    "kernels",
    "load",
    "preprocess",
    "encode",
    "prefill",
    "first token",
    "per token",
    "peak memory",
];

/// A line on what was measured and how.
pub fn caption(report: &Report) -> String {
    let tokens: Vec<String> = report
        .results
        .first()
        .map(|measured| format!("{} prompt tokens, ", measured.prompt_tokens))
        .into_iter()
        .collect();
    format!(
        "{}: {}image of {} x {}, {} tokens decoded, {} threads, median (least-most) of {}",
        report.model,
        tokens.concat(),
        report.image_size[1],
        report.image_size[0],
        report.decode_tokens,
        report.threads,
        report.repeat
    )
}

/// The table, aligned.
pub fn plain(report: &Report) -> String {
    let throughput: Vec<String> = throughput(report)
        .into_iter()
        .map(|line| format!("\n{line}"))
        .collect();
    let table = table::plain(&rows(report));
    format!("{}\n\n{table}{}", caption(report), throughput.concat())
}

/// A line on each combination whose throughput was measured.
fn throughput(report: &Report) -> Vec<String> {
    let measured = report.results.iter();
    let line = |measured: &Measured| {
        let Spread { median, min, max } = measured.images_per_second?;
        let name = measured.combination.name();
        Some(format!("{name}: {median:.2} images a second ({min:.2}-{max:.2})"))
    };
    measured.filter_map(line).collect()
}

/// The table in Markdown.
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "{}\n{}. {}, {} cores, {}.\n",
        table::markdown(&rows(report)),
        caption(report),
        machine.cpu,
        machine.cores,
        machine.os
    ) + &throughput(report)
        .into_iter()
        .map(|line| format!("\n{line}.\n"))
        .collect::<String>()
}

/// Titles and cells.
fn rows(report: &Report) -> Vec<[String; TITLES.len()]> {
    let mut rows = vec![TITLES.map(str::to_owned)];
    rows.extend(report.results.iter().map(row));
    rows
}

fn row(measured: &Measured) -> [String; TITLES.len()] {
    [
        measured.combination.provider.name().to_owned(),
        measured.combination.target.to_string(),
        measured.combination.precision.to_string(),
        measured.isa.clone().unwrap_or_else(|| "-".to_owned()),
        spread(measured.load),
        spread(measured.preprocess),
        spread(measured.encode),
        spread(measured.prefill),
        spread(measured.first_token),
        spread(measured.decode),
        measured.peak_memory.map_or_else(|| "unknown".to_owned(), memory),
    ]
}

fn spread(spread: Spread) -> String {
    let (unit, scale) = unit(spread.median);
    let number = |seconds: f64| number(seconds * scale);
    format!(
        "{} {unit} ({}-{})",
        number(spread.median),
        number(spread.min),
        number(spread.max)
    )
}

/// `2.75 s` or `12.3 ms`
pub fn seconds(seconds: f64) -> String {
    let (unit, scale) = unit(seconds);
    format!("{} {unit}", number(seconds * scale))
}

/// The unit in which people read a time, and how many there are in a second.
fn unit(seconds: f64) -> (&'static str, f64) {
    if seconds < 1.0 { ("ms", 1e3) } else { ("s", 1.0) }
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn memory(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::machine::Machine;
    use super::super::{Failure, SCHEMA};
    use super::*;
    use crate::loaded::Combination;
    use runtime::{Precision, Provider, Target};

    /// A report of made-up figures.
    pub(crate) fn report() -> Report {
        let measured = |precision: Precision, encode: f64| Measured {
            combination: Combination {
                provider: Provider::Tract,
                target: Target::Portable,
                precision,
            },
            isa: (precision == Precision::Fp16).then(|| "avx2".to_owned()),
            prompt_tokens: 286,
            load: Spread::of(&[0.5]).unwrap(),
            preprocess: Spread::of(&[0.0123]).unwrap(),
            encode: Spread::of(&[encode, encode + 1.0, encode + 2.0]).unwrap(),
            prefill: Spread::of(&[0.7]).unwrap(),
            first_token: Spread::of(&[encode + 1.75]).unwrap(),
            decode: Spread::of(&[0.0655]).unwrap(),
            peak_memory: Some((900 << 20) + 1),
            images_per_second: (precision == Precision::Fp16).then(|| Spread::of(&[1.25, 1.5, 2.0]).unwrap()),
        };
        Report {
            schema: SCHEMA,
            tool: "fvlm-conform 0",
            model: "<demo> & \"more\"".to_owned(),
            machine: Machine {
                cpu: "a processor".to_owned(),
                cores: 2,
                features: Vec::new(),
                os: "linux x86_64".to_owned(),
            },
            threads: 2,
            image: "image.png".to_owned(),
            image_size: [1024, 1024],
            prompt: "What?".to_owned(),
            warm_up: 1,
            repeat: 5,
            decode_tokens: 32,
            results: vec![measured(Precision::Fp32, 2.75), measured(Precision::Fp16, 1.5)],
            failed: Vec::<Failure>::new(),
        }
    }

    #[test]
    fn times_have_three_digits_and_their_own_unit() {
        let cases = [
            (0.000_012_3, "0.01 ms"),
            (0.004_567, "4.57 ms"),
            (0.0123, "12.3 ms"),
            (0.0999_9, "100 ms"),
            (0.75, "750 ms"),
            (2.75, "2.75 s"),
            (123.4, "123 s"),
        ];
        for (value, expected) in cases {
            assert_eq!(seconds(value), expected);
        }
    }

    #[test]
    fn tables() {
        let plain = plain(&report());
        let throughput = "tract portable fp16: 1.50 images a second (1.25-2.00)";
        assert_eq!(plain.matches("images a second").count(), 1);
        assert!(plain.contains(throughput), "{plain}");
        assert!(markdown(&report()).ends_with(&format!("\n{throughput}.\n")));
        let lines: Vec<&str> = plain.lines().collect();
        assert!(
            lines[0].contains("286 prompt tokens, image of 1024 x 1024, 32 tokens decoded, 2 threads"),
            "{plain}"
        );
        assert!(lines[2].starts_with("provider  target    precision"), "{plain}");
        assert!(lines[3].contains("3.75 s (2.75-4.75)"), "{plain}");
        let column = lines[2].find("kernels").unwrap();
        assert!(lines[3][column..].starts_with("- "), "{plain}");
        assert!(lines[4][column..].starts_with("avx2 "), "{plain}");
        assert!(lines[3].ends_with("901 MiB"), "{plain}");
        let column = lines[2].find("encode").unwrap();
        assert!(lines[4][column..].starts_with("2.50 s"), "{plain}");

        let markdown = markdown(&report());
        let lines: Vec<&str> = markdown.lines().collect();
        assert!(lines[0].starts_with("| provider | target |"), "{markdown}");
        assert_eq!(lines[1].matches("---|").count(), TITLES.len());
        assert!(lines[3].contains("| portable | fp16 |"), "{markdown}");
        assert!(markdown.contains("a processor, 2 cores"), "{markdown}");
    }
}
