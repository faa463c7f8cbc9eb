//! Does the repository's README claim what is compared, no more and no less?

use conformance::bench::chart::{self, Record};
use std::path::Path;

#[test]
fn the_status_table_is_the_one_that_list_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = std::fs::read_to_string(path).expect("the repository has a README.md");
    let (_, rest) = text
        .split_once("<!-- status -->")
        .expect("README.md has a mark `<!-- status -->`");
    let (found, _) = rest
        .split_once("<!-- /status -->")
        .expect("README.md has a mark `<!-- /status -->`");
    let expected = conformance::status::markdown().expect("recorded references can be read");
    assert_eq!(
        found.trim(),
        expected.trim(),
        "put the output of `cargo run --release -p conformance -- list --markdown` between the marks"
    );
}

#[test]
fn the_chart_is_the_one_that_bench_draws() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let read = |name: &str| std::fs::read_to_string(results.join(name)).expect("the results have that file");
    let record = Record::parse(&read("2026-11-26-0.5b.json")).expect("a record of scripts/bench_peers");
    assert_eq!(
        read("2026-11-26-0.5b.svg"),
        chart::svg(&record),
        "it is the output of `cargo run --release -p conformance -- bench --chart FILE.json`"
    );
}
