//! How does the time pass? A timeline as SVG: a bar for each combination, from Enter to the last token. The same
//! figures give the same bytes; colours serve light and dark pages.

use super::{Measured, Report, table};
use models::plain;
use std::fmt::Write as _;

pub(super) const WIDTH: f64 = 960.0;
pub(super) const MARGIN: f64 = 16.0;
const TOP: f64 = 72.0;
const ROW: f64 = 52.0;
const BAR: f64 = 22.0;
const AXIS: f64 = 44.0;
/// Width of a character of the labels, rounded up.
const CHARACTER: f64 = 7.5;
/// Most marks on the axis.
const MARKS: f64 = 9.0;
/// Narrowest token whose borders are drawn.
const TOKEN: f64 = 3.0;

/// A stretch of time: its class in the style, its name, and its length in seconds.
struct Step {
    class: &'static str,
    name: &'static str,
    seconds: f64,
}

fn steps(measured: &Measured, tokens: usize) -> [Step; 5] {
    let step = |class, name, seconds| Step { class, name, seconds };
    [
        step("load", "load", measured.load.median),
        step("preprocess", "preprocess", measured.preprocess.median),
        step("encode", "encode", measured.encode.median),
        step("prefill", "prefill", measured.prefill.median),
        step("decode", "decode", measured.decode.median * tokens as f64),
    ]
}

/// The timeline of a report.
pub fn svg(report: &Report) -> String {
    let rows = report.results.iter().map(|measured| measured.combination.name());
    let longest = rows.map(|name| name.chars().count()).max().unwrap_or(0);
    let left = (MARGIN + CHARACTER * longest as f64 + 12.0).min(WIDTH / 2.0);
    let right = WIDTH - MARGIN - 24.0;
    let total = |measured: &Measured| -> f64 {
        steps(measured, report.decode_tokens)
            .iter()
            .map(|step| step.seconds)
            .sum()
    };
    let longest = report.results.iter().map(total).fold(0.0, f64::max);
    let mark = mark(longest);
    let end = (longest / mark).ceil().max(1.0) * mark;
    let scale = (right - left) / end;
    let bottom = TOP + ROW * report.results.len() as f64;
    let height = bottom + AXIS;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n{STYLE}"
    );
    let caption = escape(&table::caption(report));
    let _ = writeln!(svg, "<title>{caption}</title>");
    let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"26\">{caption}</text>");
    legend(&mut svg, report);
    axis(&mut svg, end, mark, |seconds| left + seconds * scale, bottom);
    for (number, measured) in report.results.iter().enumerate() {
        let top = TOP + ROW * number as f64;
        row(&mut svg, report, measured, top, left, scale);
    }
    svg.push_str("</svg>\n");
    svg
}

const STYLE: &str = "<style>\n\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }\n\
.small { font-size: 11px; fill: #59636e }\n\
.end { text-anchor: end }\n\
.middle { text-anchor: middle }\n\
.grid { stroke: #8b949e; stroke-opacity: 0.35 }\n\
.token { stroke: #ffffff; stroke-opacity: 0.55 }\n\
.load { fill: #8b949e }\n\
.preprocess { fill: #d29922 }\n\
.encode { fill: #3f83e0 }\n\
.prefill { fill: #8f63d6 }\n\
.decode { fill: #2f9e62 }\n\
@media (prefers-color-scheme: dark) {\n\
  text { fill: #e6edf3 }\n\
  .small { fill: #9aa4af }\n\
  .token { stroke: #0d1117 }\n\
}\n\
</style>\n";

fn legend(svg: &mut String, report: &Report) {
    let Some(measured) = report.results.first() else {
        return;
    };
    let mut x = MARGIN;
    for step in steps(measured, report.decode_tokens) {
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{}\" y=\"40\" width=\"12\" height=\"12\"/><text class=\"small\" x=\"{}\" \
             y=\"50\">{}</text>",
            step.class,
            place(x),
            place(x + 17.0),
            step.name
        );
        x += 34.0 + CHARACTER * step.name.len() as f64;
    }
}

fn axis(svg: &mut String, end: f64, mark: f64, x: impl Fn(f64) -> f64, bottom: f64) {
    let count = (end / mark).round() as usize;
    for number in 0..=count {
        let seconds = mark * number as f64;
        let x = place(x(seconds));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\"/><text class=\"small middle\" \
             x=\"{x}\" y=\"{}\">{}</text>",
            TOP - 8.0,
            bottom + 18.0,
            label(seconds, end, mark)
        );
    }
}

/// The words at a mark of the axis.
pub(super) fn label(seconds: f64, end: f64, mark: f64) -> String {
    let (unit, scale) = if end < 1.0 { ("ms", 1e3) } else { ("s", 1.0) };
    let decimals = (-(mark * scale).log10().floor()).max(0.0) as usize;
    format!("{:.decimals$} {unit}", seconds * scale)
}

fn row(svg: &mut String, report: &Report, measured: &Measured, top: f64, left: f64, scale: f64) {
    let name = escape(&measured.combination.name());
    let _ = writeln!(
        svg,
        "<text class=\"end\" x=\"{}\" y=\"{}\">{name}</text>",
        place(left - 10.0),
        place(top + BAR / 2.0 + 4.5)
    );
    let mut x = left;
    for step in steps(measured, report.decode_tokens) {
        let width = step.seconds * scale;
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{BAR}\"><title>{}: {}</title></rect>",
            step.class,
            place(x),
            place(top),
            place(width),
            step.name,
            table::seconds(step.seconds)
        );
        x += width;
    }
    let token = measured.decode.median * scale;
    if token >= TOKEN {
        let first = x - token * report.decode_tokens as f64;
        for number in 1..report.decode_tokens {
            let x = place(first + token * number as f64);
            let _ = writeln!(
                svg,
                "<line class=\"token\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\"/>",
                place(top),
                place(top + BAR)
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text class=\"small\" x=\"{}\" y=\"{}\">load {}, first token {} later, then {} a token</text>",
        place(left),
        place(top + BAR + 14.0),
        table::seconds(measured.load.median),
        table::seconds(measured.first_token.median),
        table::seconds(measured.decode.median)
    );
}

/// The distance between marks: 1, 2 or 5 times a power of ten.
pub(super) fn mark(longest: f64) -> f64 {
    let least = (longest / MARKS).max(1e-6);
    let power = 10_f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least);
    factor.unwrap_or(10.0) * power
}

/// A coordinate: a hundredth of a pixel is enough.
pub(super) fn place(value: f64) -> String {
    format!("{value:.2}")
}

/// Text inside an element.
pub(super) fn escape(text: &str) -> String {
    plain::text(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the elements, where every one is closed, every attribute is quoted and every entity is known.
    fn elements(svg: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut open: Vec<String> = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            let text = &rest[..start];
            for entity in text.split('&').skip(1) {
                let known = ["amp;", "lt;", "gt;"];
                assert!(known.iter().any(|known| entity.starts_with(known)), "&{entity}");
            }
            assert!(!text.contains('>'), "{text}");
            let end = rest[start..].find('>').expect("every tag ends") + start;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let (tag, closed) = match tag.strip_suffix('/') {
                Some(tag) => (tag, true),
                None => (tag, false),
            };
            assert!(!tag.contains('<'), "{tag}");
            let name = tag
                .split_whitespace()
                .next()
                .expect("every tag has a name")
                .to_owned();
            let quotes: Vec<&str> = tag.split('"').collect();
            assert_eq!(quotes.len() % 2, 1, "{tag}");
            for name in quotes.iter().step_by(2).take(quotes.len() / 2) {
                assert!(name.ends_with('='), "{tag}");
            }
            names.push(name.clone());
            if !closed {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<String>::new());
        assert_eq!(rest, "\n");
        names
    }

    #[test]
    fn a_timeline_is_well_formed_and_has_every_step() {
        let mut report = table::tests::report();
        let svg = self::svg(&report);
        let count = |name: &str| elements(&svg).iter().filter(|found| *found == name).count();
        assert_eq!(count("svg"), 1);
        // Legend and bars.
        assert_eq!(count("rect"), 5 + 5 * report.results.len());
        assert!(svg.contains("&lt;demo&gt; &amp; "), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg, self::svg(&report));
        // Bars end where the axis does, or before.
        let last = svg.match_indices("class=\"decode\" x=\"").last().unwrap();
        let x: f64 = svg[last.0 + last.1.len()..]
            .split('"')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(x < WIDTH, "{x}");

        report.results.clear();
        elements(&self::svg(&report));
    }

    #[test]
    fn marks_are_round_and_not_too_many() {
        for (longest, expected) in [
            (0.9, 0.1),
            (1.7, 0.2),
            (4.2, 0.5),
            (0.0, 1e-6),
            (8.9, 1.0),
            (93.0, 20.0),
        ] {
            let found = mark(longest);
            assert!((found - expected).abs() < expected * 1e-9, "{longest}: {found}");
            assert!(longest / found <= MARKS);
        }
        assert_eq!(label(0.02, 0.5, 0.05), "20 ms");
        assert_eq!(label(0.5, 4.0, 0.5), "0.5 s");
        assert_eq!(label(20.0, 80.0, 10.0), "20 s");
    }
}
