//! Requests that are made to hurt: slow, huge, deep, many, broken. Each has a clear status, or its connection ends; none has a
//! panic, and memory stays bounded.

use super::client::{Served, read};
use super::fake::Act;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

fn asking(parts: Value) -> Value {
    json!({"messages": [{"role": "user", "content": parts}]})
}

fn image(bytes: &[u8]) -> Value {
    let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// A PNG whose header says that it has so many pixels, and that ends there.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = u32::MAX;
    for byte in &chunk {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(chunk);
    png.extend((!crc).to_be_bytes());
    png
}

/// Most memory that this process has held, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    runtime::stats::peak_memory().unwrap()
}

#[test]
fn bodies_that_are_no_json() {
    let server = Served::start(Act::Answer);
    let deep = "[".repeat(100_000);
    let deep_object = "{\"a\":".repeat(100_000);
    for body in [
        "",
        "null",
        "[]",
        "5",
        "\"x\"",
        "{",
        "}",
        "{\"messages\": [",
        "{\"messages\": NaN}",
        "{\"messages\": 1e999}",
        "{'messages': []}",
        "{\"messages\": []} x",
        "\u{feff}{}",
        "{\"n\": 1, \"n\": 2}",
        "{\"\\ud800\": 1}",
        &deep,
        &deep_object,
    ] {
        let answered = server.post_text(CHAT, body);
        assert_eq!(answered.status, 400, "{body:.20}");
        let error = answered.json();
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    let raw = server.ask(
        "POST",
        CHAT,
        "content-type: application/json\r\n",
        b"{\"a\xff\": 1}",
    );
    assert_eq!(raw.status, 400);
    assert_eq!(
        server.post_text("/api/chat", "{").json()["error"]
            .as_str()
            .map(str::is_empty),
        Some(false)
    );
}

/// A body of few bytes that would be many values.
#[test]
fn bodies_of_many_values() {
    let server = Served::start(Act::Answer);
    let many = format!("{{\"x\": [{}[]]}}", "[],".repeat(5_000_000));
    let begun = peak_if_known();
    let answered = server.post_text(CHAT, &many);
    assert_eq!(answered.status, 400);
    assert!(
        answered.text().contains("over 50000 values"),
        "{}",
        answered.text()
    );
    if let (Some(before), Some(after)) = (begun, peak_if_known()) {
        // 5 million values of 32 bytes and more would be 160 MB.
        assert!(after - before < 150 << 20, "{} MiB", (after - before) >> 20);
    }
}

fn peak_if_known() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(peak());
    #[cfg(not(target_os = "linux"))]
    None
}

#[test]
fn bodies_of_the_wrong_kind() {
    let server = Served::start(Act::Answer);
    let body = asking("x".into()).to_string();
    for kind in [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type: multipart/form-data; boundary=x\r\n",
        "content-type: application/json-seq\r\n",
        "content-type: text/plain; application/json\r\n",
        "content-type: application/json\r\ncontent-encoding: gzip\r\n",
    ] {
        assert_eq!(
            server.ask("POST", CHAT, kind, body.as_bytes()).status,
            415,
            "{kind}"
        );
    }
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/json\r\ncontent-encoding: identity",
    ] {
        let header = format!("content-type: {kind}\r\n");
        assert_eq!(
            server.ask("POST", CHAT, &header, body.as_bytes()).status,
            200,
            "{kind}"
        );
    }
}

#[test]
fn bodies_that_are_too_long() {
    let server = Served::set(Act::Answer, |settings| settings.max_body = 100_000);
    let json = "content-type: application/json\r\n";
    // As announced, before a byte is read.
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{json}content-length: 99999999999\r\nconnection: close\r\n\r\n"
    );
    let begun = Instant::now();
    assert_eq!(server.send(head.as_bytes()).status, 413);
    // A head within what is read at once, and above what is allowed.
    let long = format!("x-long: {}\r\n", "a".repeat(70_000));
    assert_eq!(server.ask("GET", "/health", &long, b"").status, 431);
    assert!(begun.elapsed() < Duration::from_secs(15));
    // As it comes.
    let mut chunked = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{json}transfer-encoding: chunked\r\nconnection: close\r\n\r\n").into_bytes();
    for _ in 0..20 {
        chunked.extend(b"2000\r\n");
        chunked.extend([b' '; 0x2000]);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(server.send(&chunked).status, 413);
    let answered = server.post_text(CHAT, &" ".repeat(100_001));
    assert_eq!(answered.status, 413);
    assert!(answered.text().contains("--max-body"), "{}", answered.text());
    assert_eq!(server.post_text(CHAT, &" ".repeat(100_000)).status, 400);
}

/// Bodies of 64 MiB of which so many bytes came.
fn begun_bodies(server: &Served, count: usize, bytes: usize) -> Vec<TcpStream> {
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 67108864\r\n\r\n"
    );
    let sent = [head.as_bytes(), &vec![b' '; bytes]].concat();
    let begin = |_| {
        let mut stream = server.connect();
        // One that is told to come again may be cut off.
        drop(stream.write_all(&sent));
        stream
    };
    (0..count).map(begin).collect()
}

/// What is announced takes nothing: only what came does.
#[test]
fn bodies_that_are_announced_and_do_not_come() {
    let server = Served::set(Act::Answer, |settings| settings.max_body = 64 << 20);
    let held = begun_bodies(&server, 64, 1);
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..5 {
        let answered = server.post(CHAT, &asking("x".into()));
        assert_eq!(answered.status, 200, "{}", answered.text());
    }
    drop(held);
}

/// Many bodies that have begun take no more than the budget; others are told to come again.
#[test]
fn bodies_that_wait_together() {
    let server = Served::set(Act::Answer, |settings| settings.max_body = 64 << 20);
    // Room doubles: of 17 MiB each has 32, and eight of them have the whole budget.
    let mut held = begun_bodies(&server, 8, 17 << 20);
    let end = Instant::now() + Duration::from_secs(10);
    let busy = loop {
        let answered = server.post(CHAT, &asking("x".into()));
        if answered.status != 200 || Instant::now() > end {
            break answered;
        }
        // One that came beside the short request may have been told to come again for the little that this one took.
        held.extend(begun_bodies(&server, 1, 17 << 20));
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(busy.status, 503, "{}", busy.text());
    assert!(busy.header("retry-after").is_some());
    drop(held);
    let end = Instant::now() + Duration::from_secs(10);
    while server.post(CHAT, &asking("x".into())).status != 200 {
        assert!(Instant::now() < end, "memory is not given back");
    }
}

#[test]
fn clients_that_are_slow() {
    let quick = Duration::from_millis(300);
    let server = Served::set(Act::Answer, |settings| {
        settings.head_timeout = quick;
        settings.body_timeout = quick;
    });
    // A head that never ends, a letter at a time; a connection on which nothing comes at all.
    for bytes in [&b"GET / HTTP/1.1\r\nx: "[..], b""] {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        let begun = Instant::now();
        let mut rest = Vec::new();
        let mut letters = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            while begun.elapsed() < Duration::from_secs(5) && letters.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        drop(stream.read_to_end(&mut rest));
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it may be as slow as it likes"
        );
        writer.join().unwrap();
    }
    // A body that does not come.
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let answered = read(&mut stream).unwrap();
    assert_eq!(answered.status, 408, "{}", answered.text());
    assert!(server.worker.jobs.lock().unwrap().is_empty());
    // A body that is cut off.
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    if let Some(answered) = read(&mut stream) {
        assert_eq!(answered.status, 400);
    }
}

/// A client that does not read what it asked for.
#[test]
fn clients_that_do_not_read() {
    let server = Served::set(Act::Endless, |settings| {
        settings.write_timeout = Duration::from_millis(300)
    });
    let mut body = asking("x".into());
    body["stream"] = true.into();
    let body = body.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    // Its answer goes on until the buffers between are full.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.worker.running.load(std::sync::atomic::Ordering::SeqCst), 1);
    let end = Instant::now() + Duration::from_secs(120);
    while server.worker.running.load(std::sync::atomic::Ordering::SeqCst) > 0 {
        assert!(Instant::now() < end, "it is answered for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A client that goes away, before its answer and in the middle of it.
#[test]
fn clients_that_go_away() {
    for ((act, stream), behind) in [(Act::Endless, true), (Act::Endless, false), (Act::Silent, true)]
        .into_iter()
        .flat_map(|case| [(case, ""), (case, "\r\n"), (case, "GET /")])
    {
        let server = Served::start(act);
        let mut connection = server.asked(stream);
        // What lies behind a request is not read before it is answered.
        connection.write_all(behind.as_bytes()).unwrap();
        drop(connection);
        let begun = Instant::now();
        server.idle();
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{act:?} {stream} {behind:?}"
        );
    }
}

#[test]
fn heads_that_are_broken() {
    let server = Served::start(Act::Answer);
    let long = "a".repeat(1_000_000);
    let many = "x: y\r\n".repeat(1000);
    for (head, statuses) in [
        (
            format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
            &[400, 431][..],
        ),
        (
            format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            &[400, 414, 431],
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
            &[400, 431],
        ),
        (
            "GET / HTTP/9.9\r\nhost: localhost\r\n\r\n".to_owned(),
            &[400, 505],
        ),
        ("\0\0\0\0\0\0\r\n\r\n".to_owned(), &[400]),
        (
            "GET / HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n".to_owned(),
            &[400],
        ),
        (
            "GET / HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n".to_owned(),
            &[400],
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), &[400]),
        (
            "GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\n\r\n".to_owned(),
            &[400],
        ),
        (
            "GET http://evil/ HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
            &[400],
        ),
        (
            "CONNECT evil:80 HTTP/1.1\r\nhost: evil:80\r\n\r\n".to_owned(),
            &[400, 404, 405, 421],
        ),
        (
            format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: -1\r\n\r\n"
            ),
            &[400],
        ),
        (
            format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{{}}"
            ),
            &[400],
        ),
        (
            format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nzz\r\n"
            ),
            &[400],
        ),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), &[400]),
    ] {
        let mut stream = server.connect();
        drop(stream.write_all(head.as_bytes()));
        drop(stream.shutdown(std::net::Shutdown::Write));
        // A connection that is cut off while it sends may not see why.
        if let Some(answered) = read(&mut stream) {
            assert!(
                statuses.contains(&answered.status),
                "{head:.60}: {}",
                answered.status
            );
        }
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn paths_that_lead_nowhere() {
    let server = Served::start(Act::Answer);
    for path in [
        "/x",
        "//",
        "/../etc/passwd",
        "/page/../../Cargo.toml",
        "/page/%2e%2e/%2e%2e/Cargo.toml",
        "/page/..%5c..%5cCargo.toml",
        "/page/app.js%00",
        "/page/",
        "/page",
        "/Health",
        "/health/",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/chat/completions/",
        "/v1/embeddings",
        "/api",
        "/.git/config",
        "/%0d%0aset-cookie:%20a=b",
        "/\u{202e}",
    ] {
        let answered = server.get(path);
        assert!(
            matches!(answered.status, 400 | 404),
            "{path}: {}",
            answered.status
        );
        assert!(!answered.head.contains("set-cookie"));
    }
    // Ollama's words at Ollama's paths.
    assert!(server.get("/api/delete").json()["error"].is_string());
    for (method, path, allow) in [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("POST", "/v1/models", "GET,HEAD"),
        ("DELETE", "/", "GET,HEAD"),
        ("TRACE", "/", "GET,HEAD"),
        ("GET", "/api/show", "POST"),
        ("HACK", "/health", "GET,HEAD"),
    ] {
        let answered = server.ask(method, path, "", b"");
        assert_eq!(
            (answered.status, answered.header("allow")),
            (405, Some(allow)),
            "{method} {path}"
        );
    }
    // Every path of the document, by its method and by one that it does not take.
    let document = server.get("/openapi.json").json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", "demo");
        let asked = methods
            .as_object()
            .unwrap()
            .keys()
            .map(|method| method.to_uppercase());
        for method in ["GET", "POST", "PUT"] {
            let answered = server.ask(method, &path, "content-type: application/json\r\n", b"{}");
            assert_ne!(
                answered.status == 405,
                asked.clone().any(|asked| asked == method),
                "{method} {path}"
            );
        }
    }
    // Files of the page by their names alone.
    let page = server.ask("GET", "/?x=1", "accept: text/html,*/*\r\n", b"");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'self'")
    );
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    for file in crate::page::FILES.iter().filter(|file| file.path != "/") {
        let answered = server.get(file.path);
        assert_eq!(
            (answered.status, answered.header("content-type")),
            (200, Some(file.kind))
        );
        assert_eq!(answered.body, file.bytes);
    }
}

#[test]
fn images_that_are_bombs() {
    let server = Served::set(Act::Answer, |settings| {
        settings.max_images = 4;
        settings.max_pixels = 1_000_000;
    });
    let scene = include_bytes!("../../../../models/demo/scenes/scene_2.png");
    let begun = Instant::now();
    let before = peak_if_known();
    for (parts, said) in [
        (json!([image(&bomb(1_000_000, 1_000_000))]), "pixels"),
        (json!([image(&bomb(65_535, 65_535))]), "pixels"),
        (json!([image(&bomb(2000, 1000))]), "at most 1000000 pixels"),
        (json!([image(&bomb(0, 0))]), "pixels"),
        (json!([image(&bomb(500, 500))]), "damaged"),
        (
            json!([image(b"\x89PNG\r\n\x1a\n")]),
            "messages[0].content[0].image_url.url",
        ),
        (json!([image(b"GIF89a")]), "messages[0].content[0].image_url.url"),
        (json!([image(&[0; 1000])]), "messages[0].content[0].image_url.url"),
        (Value::from(vec![image(scene); 5]), "5 images"),
    ] {
        let answered = server.post(CHAT, &asking(parts));
        let text = answered.text();
        assert_eq!(answered.status, 400, "{text}");
        assert!(text.contains(said), "{text}, expected {said}");
    }
    // Thousands, of which not one is looked at.
    let small = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let answered = server.post(CHAT, &asking(Value::from(vec![small; 10_000])));
    assert!(answered.text().contains("10000 images"), "{}", answered.text());
    if let (Some(before), Some(after)) = (before, peak_if_known()) {
        assert!(after - before < 300 << 20, "{} MiB", (after - before) >> 20);
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(server.worker.jobs.lock().unwrap().is_empty());
    // Together they are too many pixels, each alone is not.
    let server = Served::set(Act::Answer, |settings| settings.max_pixels = 1_000_000);
    let one = server.post(CHAT, &asking(json!([image(scene)])));
    assert_eq!(one.status, 200, "{}", one.text());
    let size = {
        let picture = &server.worker.job().turns[0].images[0];
        u64::from(picture.width()) * u64::from(picture.height())
    };
    let most = usize::try_from(1_000_000 / size).unwrap();
    let answered = server.post(CHAT, &asking(Value::from(vec![image(scene); most.min(15)])));
    assert_eq!(answered.status, 200, "{}", answered.text());
    if most < 15 {
        let answered = server.post(CHAT, &asking(Value::from(vec![image(scene); most + 1])));
        assert!(answered.text().contains("together"), "{}", answered.text());
    }
}

/// More connections than there may be wait, and are answered when there is room.
#[test]
fn connections_beyond_the_most() {
    let server = Served::set(Act::Answer, |settings| {
        settings.connections = 2;
        settings.head_timeout = Duration::from_millis(500);
    });
    let idle: Vec<_> = (0..20).map(|_| server.connect()).collect();
    assert_eq!(server.get("/health").status, 200);
    drop(idle);
}
