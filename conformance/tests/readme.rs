//! Do the READMEs claim what is compared, no more and no less? Each has a table that `fvlm-conform list` prints.

use conformance::bench::chart::{self, Record};
use std::path::Path;

/// What stands in a file of the repository between `<!-- mark -->` and `<!-- /mark -->`.
fn between(file: &str, mark: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(path).expect("the repository has that file");
    let (_, rest) = text
        .split_once(&format!("<!-- {mark} -->"))
        .expect("the file has the mark that begins the table");
    let (found, _) = rest
        .split_once(&format!("<!-- /{mark} -->"))
        .expect("the file has the mark that ends the table");
    found.trim().to_owned()
}

#[test]
fn the_status_table_is_the_one_that_list_prints() {
    assert_eq!(
        between("README.md", "status"),
        conformance::status::matrix().trim(),
        "put the output of `cargo run --release -p conformance -- list --markdown` between the marks"
    );
}

#[test]
fn the_recorded_references_are_those_that_list_prints() {
    let expected = conformance::status::references().expect("recorded references can be read");
    assert_eq!(
        between("conformance/README.md", "references"),
        expected.trim(),
        "put the output of `cargo run --release -p conformance -- list --references` between the marks"
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
