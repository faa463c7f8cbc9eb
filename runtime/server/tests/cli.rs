//! What does `fvlm-serve` do? The real binary over a bundle whose answers can be told in advance: the letter of the image's
//! strongest colour and a full stop (`runtime/tests/data/make_bundle.py`).

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn bundle() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bundle")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fvlm-serve"));
    command
        .args(arguments)
        .args(["--provider", "tract"])
        .env_remove("ORT_DYLIB_PATH")
        .env_remove("FVLM_API_KEY")
        .stdin(Stdio::null());
    command
}

/// A server that runs until it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let bundle = bundle();
        let mut command = command(arguments);
        command.args(["--port", "0", "--model"]).arg(bundle);
        #[cfg(unix)]
        let mut command = programs::testing::hearing(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("http://").unwrap().to_owned();
        Server { child, address }
    }

    /// Status and body of an answer.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.ask("POST", path, "", &body.to_string());
        (status, serde_json::from_str(&text).unwrap())
    }

    /// Ends it with a signal: how it ended, and what it said.
    #[cfg(unix)]
    fn end(mut self, signal: &str) -> (std::process::ExitStatus, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let status = wait(&mut self.child);
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (status, said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(unix)]
fn wait(child: &mut Child) -> std::process::ExitStatus {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(std::time::Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A BMP file of one colour, in base64.
fn picture(red: u8, green: u8, blue: u8) -> String {
    let mut bytes = b"BM".to_vec();
    bytes.extend(246_u32.to_le_bytes());
    bytes.extend([0; 4]);
    for number in [54_u32, 40, 8, 8] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    for _ in 0..64 {
        bytes.extend([blue, green, red]);
    }
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert_eq!(bytes.len() % 3, 0);
    let letter = |bits: u32| char::from(LETTERS[usize::try_from(bits & 63).unwrap()]);
    let three = |bytes: &[u8]| {
        let bits = bytes.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        [
            letter(bits >> 18),
            letter(bits >> 12),
            letter(bits >> 6),
            letter(bits),
        ]
    };
    bytes.chunks(3).flat_map(three).collect()
}

#[test]
fn answers_about_images() {
    let server = Server::start(&["--name", "colours"]);
    let picture = picture(255, 0, 0);
    let body = json!({"model": "colours", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": format!("data:image/bmp;base64,{picture}")}},
    ]}]});
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], "R.");
    assert_eq!(answer["fvlm"]["images_encoded"], 1);
    let body = json!({"model": "colours", "prompt": "What is it?", "images": [picture], "stream": false});
    let (status, answer) = server.post("/api/generate", &body);
    assert_eq!((status, &answer["response"]), (200, &json!("R.")), "{answer}");
    // The image is known by now.
    assert_eq!(answer["fvlm"]["images_encoded"], 0);
    let (status, metrics) = server.ask("GET", "/metrics", "", "");
    assert_eq!(status, 200);
    for line in [
        "fvlm_answers_total 2",
        "fvlm_images_encoded_total 1",
        "fvlm_time_to_first_token_seconds_count 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    // A schema that is none is the client's fault.
    let body = json!({"messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}});
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 400, "{answer}");
    // So is a prompt that is too long.
    let body = json!({"messages": [{"role": "user", "content": "R".repeat(100_000)}]});
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn a_key_of_the_environment() {
    let mut command = command(&["--port", "0"]);
    command
        .arg("--model")
        .arg(bundle())
        .env("FVLM_API_KEY", "secret")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim_end().strip_prefix("http://").unwrap().to_owned();
    let server = Server { child, address };
    assert_eq!(server.ask("GET", "/v1/models", "", "").0, 401);
    assert_eq!(
        server
            .ask("GET", "/v1/models", "authorization: Bearer secret\r\n", "")
            .0,
        200
    );
    assert_eq!(server.ask("GET", "/health", "", "").0, 200);
}

/// Signals end it as they end others, after the answers.
#[cfg(unix)]
#[test]
fn signals_end_it() {
    use std::os::unix::process::ExitStatusExt as _;
    for (signal, code, number) in [
        ("-TERM", None, Some(15)),
        ("-HUP", None, Some(1)),
        ("-INT", Some(130), None),
    ] {
        let server = Server::start(&["--verbose", "--api-key", "secret"]);
        server.ask("GET", "/v1/models?secret", "authorization: Bearer secret\r\n", "");
        let (status, said) = server.end(signal);
        assert_eq!((status.code(), status.signal()), (code, number), "{signal}");
        assert!(said.contains("GET /v1/models 200"), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

fn failure(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn without_a_bundle_it_says_how_to_make_one() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(&["--port", "0"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    failure(
        &output,
        &["fastvlm-bundle", "hint: `fvlm-export --output fastvlm-bundle`"],
    );
}

#[test]
fn commands_that_make_no_sense() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, words) in [
        (
            &["--slots", "0", "--queue", "99999999"][..],
            &["--slots is 0", "--queue is"][..],
        ),
        (&["--host", "nowhere.invalid"], &["--host is `nowhere.invalid`"]),
        (
            &["--host", "203.0.113.1", "--port", "0"],
            &["cannot listen on 203.0.113.1"],
        ),
        (&["--port", &port], &["cannot listen on 127.0.0.1 port"]),
        (
            &["--tls-cert", "/nowhere", "--tls-key", "/nowhere"],
            &["/nowhere", "certificate"],
        ),
        (&["image.png"], &["unexpected argument"]),
    ] {
        failure(&command(arguments).output().unwrap(), words);
    }
}

#[test]
fn help_and_what_is_made_of_the_flags() {
    for (arguments, words) in [
        (
            &["--help"][..],
            &["Examples:", "--fetch-images", "FVLM_API_KEY"][..],
        ),
        (&["--version"], &["fvlm-serve 0"]),
        (&["--generate", "man"], &[".TH fvlm", "tls\\-cert"]),
        (&["--generate", "complete-bash"], &["--max-body"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_fvlm-serve"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
