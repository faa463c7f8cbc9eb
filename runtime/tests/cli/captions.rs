//! `fvlm-run --output`: a line for each of many images, in a file that a later run goes on with.

use super::{Folder, Run};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;

/// A folder with more images, of which one is broken.
fn many() -> Folder {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("photos/deep")).unwrap();
    for (name, color) in [
        ("1", "red"),
        ("2", "green"),
        ("deep/3", "blue"),
        ("deep/4", "red"),
        ("9", "green"),
    ] {
        let target = folder.path(&format!("photos/{name}.png"));
        fs::copy(folder.path(&format!("{color}.png")), target).unwrap();
    }
    fs::write(folder.path("photos/5.jpg"), "no picture").unwrap();
    fs::write(folder.path("photos/notes.md"), "no picture either").unwrap();
    folder
}

fn lines(folder: &Folder, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.path(name)).unwrap();
    assert!(text.ends_with('\n') || text.is_empty(), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn answers(folder: &Folder, name: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let lines = lines(folder, name);
    lines
        .iter()
        .map(|line| (text(&line["image"]), text(&line["text"])))
        .collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(image, text)| ((*image).to_owned(), (*text).to_owned()))
        .collect()
}

/// An image and its text, or `-`.
type Line = (&'static str, &'static str);

const ALL: [Line; 6] = [
    ("photos/1.png", "R."),
    ("photos/2.png", "G."),
    ("photos/5.jpg", "-"),
    ("photos/9.png", "G."),
    ("photos/deep/3.png", "B."),
    ("photos/deep/4.png", "R."),
];

/// All is done, but for images that have an error.
#[track_caller]
fn some_failed(run: &Run, said: &str) {
    ended(run, 1, said);
}

#[track_caller]
fn failed(run: &Run, said: &str) {
    ended(run, 2, said);
}

#[track_caller]
fn ended(run: &Run, code: i32, said: &str) {
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(code), ""),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains(said), "{}", run.stderr);
}

#[test]
fn a_folder_has_a_line_for_each_image_in_order() {
    let folder = many();
    for batch in ["1", "2", "8"] {
        let output = format!("captions-{batch}.jsonl");
        let run = folder.run(&["--output", &output, "--batch", batch, "photos"]);
        some_failed(&run, "1 images have an error in the place of an answer");
        assert!(
            run.stderr.contains(&format!("{output}: 6 images")),
            "{}",
            run.stderr
        );
        assert_eq!(answers(&folder, &output), pairs(&ALL), "{batch} at once");
        let lines = lines(&folder, &output);
        assert_eq!(
            lines[0],
            json!({"image": "photos/1.png", "prompt": "Describe the image.", "text": "R.", "finish": "stop"})
        );
        let error = lines[2]["error"].as_str().unwrap();
        assert!(error.contains("photos/5.jpg"), "{error}");
    }
}

#[test]
fn another_question_needs_another_file() {
    let folder = many();
    folder.run(&["--output", "captions.jsonl", "photos"]);
    let whole = fs::read(folder.path("captions.jsonl")).unwrap();
    let other = [
        "--output",
        "captions.jsonl",
        "--prompt",
        "What color is it?",
        "photos",
    ];
    let run = folder.run(&other);
    failed(
        &run,
        "line 1 answers \"Describe the image.\", and --prompt is \"What color is it?\"",
    );
    assert_eq!(fs::read(folder.path("captions.jsonl")).unwrap(), whole);
}

#[test]
fn a_later_run_goes_on() {
    let folder = many();
    let arguments = ["--output", "captions.jsonl", "photos"];
    folder.run(&arguments);
    let whole = fs::read_to_string(folder.path("captions.jsonl")).unwrap();
    let starts: Vec<usize> = whole
        .lines()
        .scan(0, |at, line| {
            *at += line.len() + 1;
            Some(*at)
        })
        .collect();
    // Wherever a kill ended it: between lines, and within.
    for cut in [
        0,
        starts[0],
        starts[0] + 1,
        starts[1] + 20,
        starts[3] - 1,
        whole.len() - 1,
    ] {
        fs::write(folder.path("captions.jsonl"), &whole[..cut]).unwrap();
        some_failed(&folder.run(&arguments), "an error in the place of an answer");
        let found = fs::read_to_string(folder.path("captions.jsonl")).unwrap();
        assert_eq!(found, whole, "cut at {cut}");
    }
    // Nothing is left: not even the bundle is opened.
    fs::rename(folder.path("fastvlm-bundle"), folder.path("gone")).unwrap();
    let run = folder.run(&arguments);
    some_failed(&run, "an error in the place of an answer");
    assert!(
        run.stderr.contains("0 images, 6 were there already"),
        "{}",
        run.stderr
    );
    assert_eq!(fs::read_to_string(folder.path("captions.jsonl")).unwrap(), whole);
}

#[test]
fn parts_together_are_everything_once() {
    let folder = many();
    fs::remove_file(folder.path("photos/5.jpg")).unwrap();
    let mut seen = HashSet::new();
    for part in ["1/3", "2/3", "3/3"] {
        let output = format!("{}.jsonl", &part[..1]);
        folder
            .run(&["--output", &output, "--shard", part, "photos"])
            .success("");
        for (image, _) in answers(&folder, &output) {
            assert!(seen.insert(image.clone()), "{image} twice");
        }
    }
    assert_eq!(seen.len(), 5);
}

#[test]
fn files_patterns_and_lists() {
    let folder = many();
    let cases: [(&[&str], &str, &[Line]); 4] = [
        (
            &["blue.png", "red.png", "blue.png"],
            "",
            &[("blue.png", "B."), ("red.png", "R.")],
        ),
        (
            &["photos/**/[34].png"],
            "",
            &[("photos/deep/3.png", "B."), ("photos/deep/4.png", "R.")],
        ),
        (
            &["-"],
            "green.png\r\n\nphotos/1.png",
            &[("green.png", "G."), ("photos/1.png", "R.")],
        ),
        (
            &["list.txt", "red.png"],
            "",
            &[("blue.png", "B."), ("red.png", "R.")],
        ),
    ];
    fs::write(folder.path("list.txt"), "blue.png\n").unwrap();
    for (inputs, stdin, expected) in cases {
        let arguments = [&["--output", "o.jsonl"], inputs].concat();
        folder.run_with(&arguments, stdin.as_bytes()).success("");
        assert_eq!(answers(&folder, "o.jsonl"), pairs(expected), "{inputs:?}");
        fs::remove_file(folder.path("o.jsonl")).unwrap();
    }
    for (input, said) in [
        ("*.webp", "names no file"),
        ("none.txt", "none.txt"),
        ("fastvlm-bundle", "no image is in"),
    ] {
        failed(&folder.run(&["--output", "o.jsonl", input]), said);
        assert!(!folder.path("o.jsonl").exists(), "{input}");
    }
    // One that is not there has a line that says so.
    some_failed(
        &folder.run(&["--output", "o.jsonl", "missing.png", "red.png"]),
        "missing.png",
    );
    assert_eq!(
        answers(&folder, "o.jsonl"),
        pairs(&[("missing.png", "-"), ("red.png", "R.")])
    );
}

#[test]
fn choices_have_their_probabilities() {
    let folder = many();
    let arguments = [
        "--output",
        "o.jsonl",
        "--choices",
        "R.,G.",
        "red.png",
        "green.png",
    ];
    folder.run(&arguments).success("");
    let lines = lines(&folder, "o.jsonl");
    assert_eq!(
        answers(&folder, "o.jsonl"),
        pairs(&[("red.png", "R."), ("green.png", "G.")])
    );
    let probability = lines[0]["choices"][0]["probability"].as_f64().unwrap();
    assert!(
        probability > 0.5 && lines[0]["choices"][1]["text"] == "G.",
        "{lines:?}"
    );
}

/// A line would say of each image that it is done.
#[test]
fn a_question_that_no_image_can_be_asked_has_no_lines() {
    let folder = many();
    for batch in ["1", "8"] {
        let run = folder.run(&[
            "--output", "o.jsonl", "--batch", batch, "--system", "<image>", "photos",
        ]);
        failed(&run, "no image can be asked this: message 0 has 0 images");
        assert_eq!(fs::read_to_string(folder.path("o.jsonl")).unwrap(), "");
    }
}

#[test]
fn flags_that_lines_have_no_room_for_are_refused() {
    let folder = many();
    for flag in ["--logprobs", "--context-shift"] {
        failed(&folder.run(&["--output", "o.jsonl", flag, "red.png"]), flag);
    }
    failed(
        &folder.run(&["--context-shift", "--together", "red.png"]),
        "--context-shift",
    );
    failed(
        &folder.run(&["--context-shift", "--batch", "2", "red.png"]),
        "--context-shift",
    );
    failed(&folder.run(&["--output", "-", "red.png"]), "--output is `-`");
    assert!(!folder.path("o.jsonl").exists() && !folder.path("-").exists());
}

#[test]
fn a_bundle_is_verified_where_nothing_is_left_to_ask() {
    let folder = many();
    let arguments = ["--output", "o.jsonl", "--verify", "red.png"];
    folder.run(&arguments).success("");
    folder.run(&arguments).success("");
    folder.edit("tokenizer.json", |text| text + "\n");
    failed(&folder.run(&arguments), "tokenizer.json");
}

#[test]
fn what_is_not_ours_stays_as_it_is() {
    let folder = many();
    fs::write(folder.path("notes"), "mine\n").unwrap();
    failed(
        &folder.run(&["--output", "notes", "red.png"]),
        "line 1 is none of this program's",
    );
    assert_eq!(fs::read_to_string(folder.path("notes")).unwrap(), "mine\n");
    failed(
        &folder.run(&["--output", "photos", "red.png"]),
        "--output `photos`",
    );
    failed(
        &folder.run(&["--output", "no/such/o.jsonl", "red.png"]),
        "--output `no/such/o.jsonl`",
    );
    // A bundle that cannot be opened leaves no lines.
    failed(
        &folder.run(&["--output", "o.jsonl", "--model", "nothing", "red.png"]),
        "nothing",
    );
    assert_eq!(fs::read_to_string(folder.path("o.jsonl")).unwrap(), "");
}

#[cfg(unix)]
#[test]
fn one_file_for_one_run() {
    let folder = many();
    let file = fs::File::create(folder.path("o.jsonl")).unwrap();
    file.lock().unwrap();
    failed(
        &folder.run(&["--output", "o.jsonl", "red.png"]),
        "another run writes it",
    );
    drop(file);
    folder.run(&["--output", "o.jsonl", "red.png"]).success("");
    failed(
        &folder.run(&["--output", "/dev/full", "red.png"]),
        "--output `/dev/full`",
    );
}
