//! What does `fvlm-run --frames` do? The real binary over a bundle whose answers can be told in advance: the letter of the
//! image's strongest colour and a full stop (`tests/data/make_bundle.py`).

#![cfg(feature = "tract")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use serde_json::Value;
#[cfg(unix)]
use std::io::Read as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];

/// A PNG of one colour.
fn png(color: [u8; 3]) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb(color));
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A stream of PNGs.
fn stream(colors: &[[u8; 3]]) -> Vec<u8> {
    colors.iter().flat_map(|color| png(*color)).collect()
}

fn spawn(arguments: &[&str]) -> Child {
    begin(Command::new(env!("CARGO_BIN_EXE_fvlm-run")), arguments)
}

fn begin(mut command: Command, arguments: &[&str]) -> Child {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
    command
        .args(["--provider", "tract", "--model"])
        .arg(bundle)
        .args(arguments)
        .env_remove("ORT_DYLIB_PATH")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Exit code, stdout and stderr of a run that is given `stdin`.
fn run(arguments: &[&str], stdin: &[u8]) -> (Option<i32>, String, String) {
    let mut child = spawn(arguments);
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    // The program may end before it has read everything.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code(), stdout, stderr)
}

/// The records of a run that succeeds, and stderr.
fn records(arguments: &[&str], stdin: &[u8]) -> (Vec<Value>, String) {
    let (code, stdout, stderr) = run(&[arguments, &["--json"]].concat(), stdin);
    assert_eq!(code, Some(0), "{stderr}");
    (parse(&stdout), stderr)
}

fn parse(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Number and answer of each record.
fn told(records: &[Value]) -> Vec<(u64, &str)> {
    let told = |record: &Value| record["frame"].as_u64().unwrap();
    let text = |record: &Value| -> &'static str {
        match record["text"].as_str() {
            Some("R.") => "R",
            Some("G.") => "G",
            Some("B.") => "B",
            _ => "?",
        }
    };
    records
        .iter()
        .map(|record| (told(record), text(record)))
        .collect()
}

/// What one picture can be asked, frames can be asked too.
#[test]
fn frames_take_choices_patterns_and_log_probabilities() {
    let clip = stream(&[RED, BLUE, GREEN]);
    let arguments = |more: &[&'static str]| [&["--frames", "-", "--no-drop"], more].concat();
    let (chosen, _) = records(&arguments(&["--choices", "B.,R."]), &clip);
    assert_eq!(told(&chosen)[..2], [(1, "R"), (2, "B")]);
    for record in &chosen {
        let choices = record["choices"].as_array().unwrap();
        let sum: f64 = choices
            .iter()
            .map(|choice| choice["probability"].as_f64().unwrap())
            .sum();
        assert!(choices.len() == 2 && (sum - 1.0).abs() < 1e-9, "{record}");
        assert!(record["arrived"].as_f64().unwrap() > 0.0, "{record}");
    }
    // Green is no answer that the pattern has.
    let (matched, _) = records(&arguments(&["--regex", "[RB][.]"]), &clip);
    let told = told(&matched);
    assert_eq!(told[..2], [(1, "R"), (2, "B")]);
    assert!(matches!(told[2], (3, "R" | "B")), "{told:?}");
    let (logprobs, _) = records(&arguments(&["--logprobs=2"]), &clip);
    for record in &logprobs {
        let tokens = record["logprobs"].as_array().unwrap();
        assert_eq!(
            tokens.len(),
            record["tokens"].as_array().unwrap().len(),
            "{record}"
        );
        assert!(
            tokens
                .iter()
                .all(|token| token["logprob"].as_f64().unwrap() <= 0.0),
            "{record}"
        );
    }
    assert_eq!(logprobs.len(), 3);
    // A schema that is none is refused before a frame is read.
    let (code, stdout, stderr) = run(&arguments(&["--json-schema", "/nowhere/schema.json"]), &clip);
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains("/nowhere/schema.json"), "{stderr}");
}

#[test]
fn each_frame_is_answered_where_none_is_dropped() {
    let (code, stdout, stderr) = run(&["--frames", "-", "--no-drop"], &stream(&[RED, BLUE]));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "==> frame 1 <==\nR.\n\n==> frame 2 <==\nB.\n");
    assert_eq!(
        stderr,
        "frames: 2 answered, 0 dropped for newer ones, 0 passed over, 0 broken\n"
    );
    let colors = [RED, GREEN, BLUE, GREEN, RED].repeat(8);
    let (records, _) = records(&["--frames", "-", "--no-drop", "--system", "?"], &stream(&colors));
    assert_eq!(records.len(), 40);
    let mut before = 0.0;
    for (number, (record, color)) in records.iter().zip(&colors).enumerate() {
        let letter = ["R.", "G.", "B."][color.iter().position(|level| *level > 0).unwrap()];
        assert_eq!(record["text"], letter);
        assert_eq!(record["frame"], number + 1);
        assert_eq!(record["images"], serde_json::json!(["stdin"]));
        assert_eq!(
            (&record["dropped"], &record["passed_over"]),
            (&0.into(), &0.into())
        );
        assert_eq!(record["finish"], "stop");
        let times = ["arrived", "first_token", "answered"].map(|name| record[name].as_f64().unwrap());
        assert!(
            times.is_sorted() && times[0] > 0.0 && times[2] > before,
            "{times:?}"
        );
        before = times[2];
        // What stands before the image is computed once.
        let reused = record["stats"]["reused_positions"].as_u64().unwrap();
        assert_eq!(reused > 0, number > 0, "{record}");
    }
    let (code, _, stderr) = run(&["--frames", "-", "-q"], &stream(&[RED]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn y4m_and_files_that_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.y4m");
    // Red, green and blue, of BT.601 in the limited range.
    let mut clip = b"YUV4MPEG2 W8 H6 F25:1 Ip C420jpeg\n".to_vec();
    for levels in [[81, 90, 240], [145, 54, 34], [41, 240, 110]] {
        clip.extend(b"FRAME\n");
        clip.extend(
            [
                [levels[0]; 48].to_vec(),
                [levels[1]; 12].to_vec(),
                [levels[2]; 12].to_vec(),
            ]
            .concat(),
        );
    }
    std::fs::write(&path, &clip).unwrap();
    let (records, _) = records(&["--frames", path.to_str().unwrap()], b"");
    assert_eq!(told(&records), [(1, "R"), (2, "G"), (3, "B")]);
    assert_eq!(records[0]["images"][0], path.to_str().unwrap());
    // stdin, too, where it is a file.
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundle");
    let output = Command::new(env!("CARGO_BIN_EXE_fvlm-run"))
        .args(["--provider", "tract", "--frames", "-", "--model"])
        .arg(bundle)
        .stdin(std::fs::File::open(&path).unwrap())
        .output()
        .unwrap();
    let words = "==> frame 1 <==\nR.\n\n==> frame 2 <==\nG.\n\n==> frame 3 <==\nB.\n";
    if cfg!(unix) {
        assert_eq!(String::from_utf8_lossy(&output.stdout), words);
    }
}

#[test]
fn the_newest_frame_wins_and_the_last_is_answered() {
    let mut child = spawn(&["--frames", "-", "--json"]);
    let mut pipe = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    pipe.write_all(&png(RED)).unwrap();
    let first = lines.next().unwrap().unwrap();
    // An answer is written when it is there, not when the stream ends.
    assert_eq!(told(&parse(&first)), [(1, "R")]);
    for _ in 0..500 {
        pipe.write_all(&png(GREEN)).unwrap();
    }
    pipe.write_all(&png(BLUE)).unwrap();
    drop(pipe);
    let rest: Vec<String> = lines.map(|line| line.unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let rest = parse(&rest.join("\n"));
    assert_eq!(told(&rest).last(), Some(&(502, "B")));
    let dropped: u64 = rest
        .iter()
        .map(|record| record["dropped"].as_u64().unwrap())
        .sum();
    assert_eq!(dropped + rest.len() as u64, 501);
}

#[test]
fn work_is_spared_where_it_was_asked_for() {
    let clip = stream(&[RED, RED, RED, BLUE, BLUE, RED, RED]);
    let arguments = ["--frames", "-", "--no-drop", "--on-change", "0.1"];
    let (changed, stderr) = records(&arguments, &clip);
    assert_eq!(told(&changed), [(1, "R"), (4, "B"), (6, "R")]);
    let passed: Vec<&Value> = changed.iter().map(|record| &record["passed_over"]).collect();
    assert_eq!(passed, [0, 2, 1]);
    assert!(
        stderr.contains("3 answered, 0 dropped for newer ones, 4 passed over"),
        "{stderr}"
    );
    let (all, _) = records(&["--frames", "-", "--no-drop", "--on-change", "0"], &clip);
    assert_eq!(all.len(), 7);
    let (every, _) = records(&["--frames", "-", "--no-drop", "--every", "3"], &clip);
    assert_eq!(told(&every), [(1, "R"), (4, "B"), (7, "R")]);
    // Nothing comes as late as that.
    let (once, _) = records(&["--frames", "-", "--no-drop", "--every", "1000s"], &clip);
    assert_eq!(told(&once), [(1, "R")]);
}

#[test]
fn a_broken_frame_is_told_and_the_others_are_answered() {
    let (red, blue) = (png(RED), png(BLUE));
    let mut changed = png(GREEN);
    // In the pixels: the checksum is another then.
    let middle = changed.len() - 20;
    changed[middle] ^= 1;
    let lost = format!(
        "3 broken; {} bytes were of no whole frame",
        changed.len() + 30 + 3 + 40
    );
    let clip = [
        &red[..],
        &changed,
        &blue,
        &red[..30],
        &blue,
        b"\0\0\0",
        &red[..40],
    ]
    .concat();
    let (code, stdout, stderr) = run(&["--frames", "-", "--no-drop", "--json"], &clip);
    assert_eq!(code, Some(2), "{stderr}");
    let records = parse(&stdout);
    assert_eq!(
        told(&records),
        [(1, "R"), (2, "?"), (3, "B"), (4, "?"), (5, "B"), (6, "?")]
    );
    let errors = [
        (1, "frame 2 of `stdin` is a damaged PNG: a checksum is wrong"),
        (3, "frame 4 of `stdin` is a damaged PNG: a checksum is wrong"),
        (
            5,
            "frame 6 of `stdin` is a damaged PNG: the stream ends inside it, after 40 bytes",
        ),
    ];
    for (place, words) in errors {
        let error = records[place]["error"].as_str().unwrap();
        assert!(error.contains(words), "{error}");
        assert!(stderr.contains(words), "{stderr}");
    }
    assert!(
        stderr.contains("3 answered") && stderr.contains(&lost),
        "{stderr}"
    );
}

#[test]
fn a_stream_that_is_none() {
    let cases: [(&[u8], &[&str], &str); 6] = [
        (
            b"",
            &["-"],
            "`stdin` has no frame: it is empty (0 bytes), expected JPEG, PNG or y4m frames",
        ),
        (b"hello", &["-"], "it is text"),
        (
            b"YUV4MPEG2 W8 H8 It\nFRAME\n",
            &["-"],
            "interlaced, `It`, expected whole frames",
        ),
        (
            b"YUV4MPEG2 W8 H8 C420p10\nFRAME\n",
            &["-"],
            "`C420p10`, expected 8 bits",
        ),
        (b"", &["/nowhere/x"], "cannot read frames from `/nowhere/x`"),
        (b"", &["."], "cannot read frames from `.`: it is a folder"),
    ];
    for (stdin, arguments, words) in cases {
        let (code, stdout, stderr) = run(&[&["--frames"], arguments].concat(), stdin);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    let (code, _, stderr) = run(
        &["--frames", "-", "--max-pixels", "1"],
        b"YUV4MPEG2 W2000 H1000\nFRAME\n",
    );
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("of 2000 x 1000 pixels, expected 1 to 1000000 pixels"),
        "{stderr}"
    );
}

#[test]
fn a_reader_who_has_had_enough_ends_it() {
    let mut child = spawn(&["--frames", "-", "--json"]);
    let mut pipe = child.stdin.take().unwrap();
    // A stream without an end.
    let writer = std::thread::spawn(move || while pipe.write_all(&png(RED)).is_ok() {});
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    writer.join().unwrap();
}

#[cfg(unix)]
#[test]
fn signals_end_it_while_nothing_comes() {
    use std::os::unix::process::ExitStatusExt as _;
    for (signal, code, number) in [("-INT", Some(130), None), ("-TERM", None, Some(15))] {
        // With what signals do by default, also where these tests were started without, as by `nohup`.
        let program = env!("CARGO_BIN_EXE_fvlm-run");
        let mut command = Command::new(if cfg!(target_os = "linux") { "env" } else { program });
        if cfg!(target_os = "linux") {
            command.args(["--default-signal=INT,TERM", program]);
        }
        let mut child = begin(command, &["--frames", "-", "--json"]);
        let mut pipe = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        pipe.write_all(&png(RED)).unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(told(&parse(&line)), [(1, "R")]);
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (code, number));
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        drop(pipe);
    }
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("camera");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut child = spawn(&["--frames", path.to_str().unwrap()]);
    std::fs::write(&path, png(GREEN)).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "==> frame 1 <==\nG.\n");
}
