//! How is quality told? A table for people, aligned or in Markdown.

use super::metrics::LogitsError;
use super::{ExactMatch, Report, Row};
use crate::table;

/// A column: its title, and its cell in a row.
type Column = (&'static str, fn(&Row) -> String);

/// Columns that every table has.
const ALWAYS: &[Column] = &[
    ("", |row| row.name.clone()),
    ("logits", |row| distance(row.end_to_end.relative_l2)),
    ("median", |row| distance(row.end_to_end.relative_l2_median)),
    ("KL mean", |row| distance(row.end_to_end.kl_mean)),
    ("KL max", |row| distance(row.end_to_end.kl_max)),
    ("top-1", |row| share(row.end_to_end.top1)),
];

/// The column of an image.
const FEATURES: Column = ("image features", |row| {
    optional(row.features_relative_l2, distance)
});

/// Columns of the decoder alone.
const DECODER: &[Column] = &[
    ("decoder: logits", |row| {
        decoder(row, |error| distance(error.relative_l2))
    }),
    ("decoder: KL mean", |row| {
        decoder(row, |error| distance(error.kl_mean))
    }),
    ("decoder: top-1", |row| decoder(row, |error| share(error.top1))),
];

/// The column of the demo model's questions.
const DEMO: Column = ("answers", |row| optional(row.demo_eval, exact_match));

/// The column of greedy answers.
const AGREEMENT: Column = ("agreement", |row| optional(row.agreement, exact_match));

/// A line on what was compared.
pub fn caption(report: &Report) -> String {
    let image = report.image.as_deref().unwrap_or("no image");
    let demo = report
        .reference_demo_eval
        .map(|found| format!("; the reference answers {}", exact_match(found)))
        .unwrap_or_default();
    let others: String = report
        .others
        .iter()
        .map(|other| format!("; {} agrees in {}", other.name, exact_match(other.agreement)))
        .collect();
    format!(
        "{}: relative L2 of image features and logits, KL divergence (nats) and top-1 agreement against {} over {} \
         positions after {} of the prompt ({image}){demo}{others}",
        report.model, report.reference, report.positions, report.prompt_tokens
    )
}

/// The table, aligned.
pub fn plain(report: &Report) -> String {
    format!("{}\n\n{}", caption(report), table::plain(&rows(report)))
}

/// The table in Markdown.
pub fn markdown(report: &Report) -> String {
    format!("{}\n{}.\n", table::markdown(&rows(report)), caption(report))
}

/// Titles and cells; columns in which no row has anything are left out.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let any = |has: fn(&Row) -> bool| report.results.iter().any(has);
    let mut columns = ALWAYS.to_vec();
    if any(|row| row.features_relative_l2.is_some()) {
        columns.insert(1, FEATURES);
    }
    if any(|row| row.decoder_alone.is_some()) {
        columns.extend_from_slice(DECODER);
    }
    if any(|row| row.demo_eval.is_some()) {
        columns.push(DEMO);
    }
    if any(|row| row.agreement.is_some()) {
        columns.push(AGREEMENT);
    }
    let mut rows = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
    rows.extend(
        report
            .results
            .iter()
            .map(|row| columns.iter().map(|(_, cell)| cell(row)).collect()),
    );
    rows
}

fn decoder(row: &Row, cell: fn(&LogitsError) -> String) -> String {
    row.decoder_alone.as_ref().map_or_else(nothing, cell)
}

fn optional<T>(value: Option<T>, cell: fn(T) -> String) -> String {
    value.map_or_else(nothing, cell)
}

fn nothing() -> String {
    "–".to_owned()
}

fn distance(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value => format!("{value:.1e}"),
    }
}

fn share(value: f64) -> String {
    format!("{:.1} %", 100.0 * value)
}

fn exact_match(found: ExactMatch) -> String {
    let share = found.right as f64 / found.asked.max(1) as f64;
    format!("{} of {} ({:.1} %)", found.right, found.asked, 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::super::{Other, SCHEMA};
    use super::*;

    fn report(with: bool) -> Report {
        let error = LogitsError {
            relative_l2: 0.0123,
            relative_l2_median: 0.01,
            kl_mean: 1.5e-4,
            kl_max: f64::INFINITY,
            top1: 0.985,
        };
        let row = |name: &str, full: bool| Row {
            name: name.to_owned(),
            bundle: None,
            combination: None,
            features_relative_l2: with.then_some(0.0),
            end_to_end: error.clone(),
            decoder_alone: full.then(|| error.clone()),
            demo_eval: full.then_some(ExactMatch {
                right: 492,
                asked: 500,
            }),
            agreement: full.then_some(ExactMatch {
                right: 291,
                asked: 300,
            }),
        };
        Report {
            schema: SCHEMA,
            tool: "fvlm-conform 0",
            model: "demo".to_owned(),
            reference: "cpu portable fp32".to_owned(),
            reference_demo_eval: None,
            image: with.then(|| "image.png".to_owned()),
            prompt: "What?".to_owned(),
            prompt_tokens: 40,
            positions: 200,
            results: vec![row("cpu portable fp16", with), row("another|tool", false)],
            others: Vec::new(),
        }
    }

    #[test]
    fn tables_have_the_columns_that_rows_have() {
        let markdown = markdown(&report(true));
        let lines: Vec<&str> = markdown.lines().collect();
        assert_eq!(
            lines[0],
            "|  | image features | logits | median | KL mean | KL max | top-1 | decoder: logits | decoder: KL mean | \
             decoder: top-1 | answers | agreement |"
        );
        assert_eq!(
            lines[2],
            "| cpu portable fp16 | 0 | 1.2e-2 | 1.0e-2 | 1.5e-4 | inf | 98.5 % | 1.2e-2 | 1.5e-4 | 98.5 % | 492 of \
             500 (98.4 %) | 291 of 300 (97.0 %) |"
        );
        assert!(
            lines[3].starts_with(r"| another\|tool | 0 |") && lines[3].ends_with("| – | – | – | – | – |")
        );
        assert!(
            markdown
                .contains("against cpu portable fp32 over 200 positions after 40 of the prompt (image.png).")
        );

        let mut with_others = report(true);
        with_others.others.push(Other {
            name: "another tool".to_owned(),
            agreement: ExactMatch {
                right: 285,
                asked: 300,
            },
        });
        let told = caption(&with_others);
        assert!(
            told.ends_with("(image.png); another tool agrees in 285 of 300 (95.0 %)"),
            "{told}"
        );

        let plain = plain(&report(false));
        let lines: Vec<&str> = plain.lines().collect();
        assert!(lines[0].contains("(no image)"), "{plain}");
        assert_eq!(
            lines[2].split_whitespace().collect::<Vec<_>>(),
            ["logits", "median", "KL", "mean", "KL", "max", "top-1"]
        );
        let column = lines[2].find("logits").unwrap();
        assert!(lines[3][column..].starts_with("1.2e-2"), "{plain}");
    }
}
