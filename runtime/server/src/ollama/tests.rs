//! Ollama's interface, field by field.

use super::say::timestamp;
use crate::tests::client::Served;
use crate::tests::fake::Act;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::{Constraint, Role};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

fn picture() -> String {
    STANDARD.encode(include_bytes!("../../../../models/demo/scenes/scene_2.png"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_chat_comes_line_by_line() {
    let server = Served::start(Act::Answer);
    let body = json!({
        "model": "demo:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is it?", "images": [picture()]},
        ],
        "options": {
            "temperature": 0.5, "top_k": 5, "top_p": 0.5, "seed": 7, "num_predict": 9, "stop": ["x"],
            "repeat_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": 1, "num_ctx": 4096, "min_p": 0.0,
        },
        "keep_alive": "5m",
        "format": "json",
    });
    let answered = server.post("/api/chat", &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert_eq!(answered.header("content-type"), Some("application/x-ndjson"));
    let all = lines(&answered.text());
    let text: String = all
        .iter()
        .map(|line| line["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(text, "two words");
    let (last, before) = all.split_last().unwrap();
    assert!(
        before
            .iter()
            .all(|line| line["done"] == false && line["model"] == "demo")
    );
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert_eq!(
        (&last["prompt_eval_count"], &last["eval_count"]),
        (&json!(12), &json!(3))
    );
    assert_eq!(last["prompt_eval_duration"], 3_000_000);
    assert!(last["total_duration"].as_u64().unwrap() > 0);
    let job = server.worker.job();
    assert_eq!((job.turns[1].role, job.turns[1].images.len()), (Role::User, 1));
    let request = job.request;
    assert_eq!(
        (request.max_tokens, request.sampling.seed, request.sampling.top_k),
        (9, 7, 5)
    );
    assert_eq!(request.sampling.repetition_penalty, 1.1);
    assert_eq!(request.constraint, Some(Constraint::JsonObject));
}

#[test]
fn one_question_and_its_answer() {
    let server = Served::start(Act::CutOff);
    let schema = json!({"type": "string"});
    let body = json!({"model": "demo", "prompt": "What is it?", "system": "Be brief.", "images": [picture()],
        "stream": false, "format": {"type": "string"}, "options": {"num_predict": -1}});
    let answered = server.post("/api/generate", &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    let body = answered.json();
    assert_eq!(
        (&body["response"], &body["done_reason"]),
        (&json!("two words"), &json!("length"))
    );
    let job = server.worker.job();
    assert_eq!(job.turns.len(), 2);
    assert_eq!(job.request.max_tokens, 512);
    assert_eq!(job.request.constraint, Some(Constraint::JsonSchema(schema)));
}

#[test]
fn an_empty_question_loads_the_model() {
    let server = Served::start(Act::Answer);
    for (path, body, reason) in [
        ("/api/generate", json!({"model": "demo"}), "load"),
        (
            "/api/generate",
            json!({"model": "demo", "keep_alive": 0}),
            "unload",
        ),
        (
            "/api/generate",
            json!({"model": "demo", "keep_alive": "0s"}),
            "unload",
        ),
        (
            "/api/generate",
            json!({"model": "demo", "keep_alive": "10m"}),
            "load",
        ),
        ("/api/chat", json!({"model": "demo", "messages": []}), "load"),
    ] {
        let answered = server.post(path, &body).json();
        assert_eq!(
            (&answered["done"], &answered["done_reason"]),
            (&json!(true), &json!(reason))
        );
    }
    assert!(server.worker.jobs.lock().unwrap().is_empty());
}

#[test]
fn fields_that_are_wrong() {
    let server = Served::start(Act::Answer);
    for (field, value, said) in [
        ("prompt", json!(5), "`prompt` is 5"),
        ("images", json!("x"), "`images` is \"x\""),
        ("images", json!([5]), "`images[0]` is 5"),
        ("images", json!(["***"]), "`images[0]` is not base64"),
        ("images", json!(["aGVsbG8gd29ybGQ="]), "images[0]"),
        ("stream", json!(1), "`stream` is 1"),
        ("format", json!("xml"), "`format` is \"xml\""),
        ("options", json!([]), "`options` is an array of 0"),
        (
            "options",
            json!({"temperature": -1}),
            "`options.temperature` is -1",
        ),
        (
            "options",
            json!({"num_predict": "x"}),
            "`options.num_predict` is \"x\"",
        ),
        (
            "options",
            json!({"mirostat": 2}),
            "`options.mirostat` is not supported",
        ),
        (
            "options",
            json!({"min_p": 0.1}),
            "`options.min_p` is not supported",
        ),
        (
            "options",
            json!({"repeat_penalty": 1.1, "repeat_last_n": 64}),
            "`options.repeat_last_n` is not supported here, expected 0, -1 or at least 512",
        ),
        (
            "options",
            json!({"repeat_last_n": -2}),
            "`options.repeat_last_n` is -2",
        ),
        (
            "options",
            json!({"stop": vec!["x"; 65]}),
            "`options.stop` is an array of 65, expected a text, or an array of up to 64",
        ),
        (
            "options",
            json!({"stop": "x".repeat(4097)}),
            "`options.stop` has a text of 4097 bytes, expected at most 4096",
        ),
        ("logprobs", json!(true), "`logprobs` is not supported"),
        ("top_logprobs", json!(3), "`top_logprobs` is not supported"),
        ("context", json!([1, 2]), "`context` is not supported"),
        ("raw", json!(true), "`raw` is not supported"),
        ("template", json!("x"), "`template` is not supported"),
        ("suffix", json!("x"), "`suffix` is not supported"),
        ("think", json!(true), "`think` is not supported"),
        ("keep_alive", json!([]), "`keep_alive` is an array"),
    ] {
        let mut body = json!({"model": "demo", "prompt": "x"});
        body[field] = value;
        let answered = server.post("/api/generate", &body);
        let error = answered.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answered.status, 400, "{error}");
        assert!(error.contains(said), "{error}, expected {said}");
    }
    let other = server.post("/api/chat", &json!({"model": "llama3", "messages": []}));
    assert_eq!(other.status, 404);
    assert!(other.json()["error"].as_str().unwrap().contains("`llama3`"));
}

/// Over how many tokens penalties look: all, or none.
#[test]
fn windows_of_penalties() {
    let server = Served::start(Act::Answer);
    for (options, penalty) in [
        (json!({"repeat_penalty": 1.5}), 1.5),
        (json!({"repeat_penalty": 1.5, "repeat_last_n": -1}), 1.5),
        (json!({"repeat_penalty": 1.5, "repeat_last_n": 512}), 1.5),
        (json!({"repeat_penalty": 1.5, "repeat_last_n": 0}), 1.0),
        (json!({"repeat_last_n": 64}), 1.0),
    ] {
        let body = json!({"model": "demo", "prompt": "x", "options": options});
        let answered = server.post("/api/generate", &body);
        assert_eq!(answered.status, 200, "{options}: {}", answered.text());
        let sampling = server.worker.job().request.sampling;
        assert_eq!(sampling.repetition_penalty, penalty, "{options}");
    }
    let none = json!({"presence_penalty": 1, "frequency_penalty": 1, "repeat_last_n": 0});
    let body = json!({"model": "demo", "prompt": "x", "options": none, "logprobs": false, "top_logprobs": 0});
    assert_eq!(server.post("/api/generate", &body).status, 200);
    let sampling = server.worker.job().request.sampling;
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (0.0, 0.0)
    );
}

/// More of them than OpenAI's interface takes, and an image in lines.
#[test]
fn what_only_ollama_takes() {
    let server = Served::start(Act::Answer);
    let stops: Vec<String> = (0..64).map(|number| format!("stop {number}")).collect();
    let mut image = picture();
    image.insert_str(76, "\r\n");
    image.push('\n');
    let body = json!({"model": "demo", "prompt": "x", "images": [image], "options": {"stop": stops}});
    let answered = server.post("/api/generate", &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert_eq!(server.worker.job().request.stops, stops);
}

#[test]
fn models_are_listed_with_one_tag() {
    for (name, listed) in [
        ("demo", "demo:latest"),
        ("X:v1", "X:v1"),
        ("host:5000/demo", "host:5000/demo:latest"),
    ] {
        assert_eq!(super::tagged(name), listed);
    }
}

#[test]
fn what_the_worker_does_has_a_status() {
    let body = json!({"model": "demo", "prompt": "x"});
    for (act, status) in [
        (Act::Busy, 429),
        (Act::Refuse, 400),
        (Act::Fail, 500),
        (Act::FailLater, 200),
    ] {
        let answered = Served::start(act).post("/api/generate", &body);
        assert_eq!(answered.status, status);
        let all = lines(&answered.text());
        assert!(all.last().unwrap()["error"].is_string(), "{}", answered.text());
    }
}

#[test]
fn what_clients_ask_first() {
    let server = Served::start(Act::Answer);
    let tags = server.get("/api/tags").json();
    let model = &tags["models"][0];
    assert_eq!(model["name"], "demo:latest");
    assert_eq!(model["modified_at"], "2000-02-29T00:00:00.000000Z");
    assert_eq!(model["details"]["parameter_size"], "13M");
    let shown = server.post("/api/show", &json!({"model": "demo"})).json();
    assert_eq!(shown["capabilities"], json!(["completion", "vision"]));
    assert_eq!(shown["model_info"]["fastvlm.context_length"], 512);
    assert_eq!(server.post("/api/show", &json!({"name": "other"})).status, 404);
    assert_eq!(server.get("/api/ps").json()["models"][0]["model"], "demo:latest");
    assert!(server.get("/api/version").json()["version"].is_string());
    assert_eq!(server.ask("HEAD", "/", "", b"").status, 200);
    assert_eq!(server.get("/").text(), "fvlm-serve is running\n");
}

#[test]
fn times_are_written_as_dates() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
    ] {
        assert_eq!(
            timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            expected
        );
    }
}
