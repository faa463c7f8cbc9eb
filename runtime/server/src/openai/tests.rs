//! OpenAI's interface, field by field.

use crate::tests::client::Served;
use crate::tests::fake::Act;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::{Constraint, Role};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A picture of the repository, as a data URL.
fn picture() -> String {
    let bytes = include_bytes!("../../../../models/demo/scenes/scene_2.png");
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

fn asking(change: impl FnOnce(&mut Value)) -> Value {
    let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "What is it?"}]});
    change(&mut body);
    body
}

/// The events of a stream.
fn events(text: &str) -> Vec<Value> {
    let (events, end) = text
        .rsplit_once("data: [DONE]\n\n")
        .expect("a stream that is complete");
    assert_eq!(end, "");
    let events = events.split_terminator("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

#[test]
fn an_answer_as_a_whole() {
    let server = Served::start(Act::Answer);
    let answered = server.post(CHAT, &asking(|_| ()));
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert_eq!(answered.header("content-type"), Some("application/json"));
    let body = answered.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "demo");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &body["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "two words", "refusal": null})
    );
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = json!({
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    });
    assert_eq!(body["usage"], usage);
    assert_eq!(body["fvlm"]["encode_ms"], 1.0);
    assert_eq!(body["fvlm"]["reused_positions"], 4);
    assert_eq!(
        Served::start(Act::CutOff).post(CHAT, &asking(|_| ())).json()["choices"][0]["finish_reason"],
        "length"
    );
}

#[test]
fn an_answer_as_it_comes() {
    let server = Served::start(Act::Answer);
    let answered = server.post(CHAT, &asking(|body| body["stream"] = true.into()));
    assert_eq!(answered.status, 200);
    assert_eq!(answered.header("content-type"), Some("text/event-stream"));
    let all = events(&answered.text());
    assert!(
        all.iter()
            .all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none())
    );
    let first = &all[0]["choices"][0]["delta"];
    assert_eq!(*first, json!({"role": "assistant", "content": ""}));
    let text: String = all
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "two words");
    let last = all.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["fvlm"]["images_encoded"], 1);

    let usage = asking(|body| {
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    });
    let all = events(&server.post(CHAT, &usage).text());
    let (last, before) = all.split_last().unwrap();
    assert!(
        before
            .iter()
            .all(|event| event["usage"] == Value::Null && event.get("usage").is_some())
    );
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 15);
    assert_eq!(last["fvlm"]["images_encoded"], 1);
}

#[test]
fn how_likely_tokens_were() {
    let server = Served::start(Act::Answer);
    let asked = |stream: bool| {
        asking(|body| {
            body["logprobs"] = true.into();
            body["top_logprobs"] = 2.into();
            body["stream"] = stream.into();
        })
    };
    let whole = server.post(CHAT, &asked(false)).json()["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(whole.as_array().unwrap().len(), 3);
    assert_eq!(whole[0]["token"], "two");
    assert_eq!(whole[0]["bytes"], json!([116, 119, 111]));
    assert_eq!(whole[0]["logprob"], -0.5);
    // A part of a character, that cannot be: JSON has no infinity.
    assert_eq!(
        whole[0]["top_logprobs"][1],
        json!({"token": "\u{fffd}", "logprob": -9999.0, "bytes": [226, 130]})
    );
    let streamed: Vec<Value> = events(&server.post(CHAT, &asked(true)).text())
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(Value::from(streamed), whole);
    let without = server
        .post(CHAT, &asking(|body| body["logprobs"] = true.into()))
        .json();
    assert_eq!(
        without["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );
}

#[test]
fn what_the_worker_is_asked() {
    let server = Served::start(Act::Answer);
    let body = json!({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "Which is"},
                {"type": "image_url", "image_url": {"url": picture(), "detail": "high"}},
                {"type": "text", "text": "redder?"},
                {"type": "image_url", "image_url": picture()},
            ]},
            {"role": "assistant", "content": "The first."},
            {"role": "user", "content": "Why?"},
        ],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": -3,
        "stop": ["\n", "END"],
        "presence_penalty": 0.25,
        "frequency_penalty": -2,
        "repetition_penalty": 1.5,
        "response_format": {"type": "json_object"},
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "store": false,
        "unknown": {"of": ["no", "interest"]},
    });
    let answered = server.post(CHAT, &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    let job = server.worker.job();
    let turns: Vec<(Role, usize, &str)> = job
        .turns
        .iter()
        .map(|turn| (turn.role, turn.images.len(), turn.text.as_str()))
        .collect();
    let expected = [
        (Role::System, 0, "Be brief."),
        (Role::User, 2, "Which is\nredder?"),
        (Role::Assistant, 0, "The first."),
        (Role::User, 0, "Why?"),
    ];
    assert_eq!(turns, expected);
    let picture = &job.turns[1].images[0];
    assert!(picture.width() > 100 && picture.height() > 100);
    let request = &job.request;
    assert_eq!(
        (request.max_tokens, &request.stops[..]),
        (7, &["\n".to_owned(), "END".to_owned()][..])
    );
    let sampling = request.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.5, 0.9, 40)
    );
    assert_eq!(sampling.seed, u64::from_ne_bytes((-3_i64).to_ne_bytes()));
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (0.25, -2.0)
    );
    assert_eq!(sampling.repetition_penalty, 1.5);
    assert_eq!(request.constraint, Some(Constraint::JsonObject));
    assert_eq!(request.logprobs, None);
    assert_eq!(job.client, "127.0.0.1");
}

#[test]
fn what_is_not_said_is_greedy_and_bounded() {
    let server = Served::set(Act::Answer, |settings| settings.max_tokens = 99);
    let nothing = asking(|body| {
        for field in [
            "temperature",
            "top_p",
            "stop",
            "max_tokens",
            "seed",
            "response_format",
            "user",
            "n",
        ] {
            body[field] = Value::Null;
        }
    });
    assert_eq!(server.post(CHAT, &nothing).status, 200);
    let request = server.worker.job().request;
    assert_eq!((request.max_tokens, request.sampling.temperature), (99, 0.0));
    assert!(request.constraint.is_none() && request.stops.is_empty());
    // Who names no seed wants another answer each time.
    assert_eq!(server.post(CHAT, &nothing).status, 200);
    assert_ne!(server.worker.job().request.sampling.seed, request.sampling.seed);
}

#[test]
fn what_answers_keep_to() {
    let server = Served::start(Act::Answer);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for (field, value, expected) in [
        ("response_format", json!({"type": "text"}), None),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}),
            Some(Constraint::JsonSchema(schema.clone())),
        ),
        (
            "structured_outputs",
            json!({"regex": "[ab]+"}),
            Some(Constraint::Regex("[ab]+".to_owned())),
        ),
        (
            "structured_outputs",
            json!({"choice": ["yes", "no"]}),
            Some(Constraint::Choices(vec!["yes".to_owned(), "no".to_owned()])),
        ),
        (
            "structured_outputs",
            json!({"json": schema}),
            Some(Constraint::JsonSchema(schema.clone())),
        ),
        (
            "structured_outputs",
            json!({"disable_any_whitespace": false, "whitespace_pattern": null, "structural_tag": null}),
            None,
        ),
        (
            "response_format",
            json!({"type": "json_object"}),
            Some(Constraint::JsonObject),
        ),
        (
            "response_format",
            json!({"type": "json_object", "schema": schema}),
            Some(Constraint::JsonSchema(schema.clone())),
        ),
        (
            "response_format",
            json!({"type": "json_object", "schema": null}),
            Some(Constraint::JsonObject),
        ),
    ] {
        let answered = server.post(CHAT, &asking(|body| body[field] = value));
        assert_eq!(answered.status, 200, "{}", answered.text());
        assert_eq!(server.worker.job().request.constraint, expected);
    }
}

/// Every fault of a field names the field.
#[test]
fn fields_that_are_wrong() {
    let server = Served::start(Act::Answer);
    let part = |part: Value| json!([{"role": "user", "content": [part]}]);
    let image = |url: &str| part(json!({"type": "image_url", "image_url": {"url": url}}));
    let cases = [
        ("model", json!(5), "model"),
        ("messages", json!(null), "messages"),
        ("messages", json!([]), "messages"),
        ("messages", json!("hello"), "messages"),
        ("messages", json!(["hello"]), "messages[0]"),
        ("messages", json!([{"content": "x"}]), "messages[0].role"),
        (
            "messages",
            json!([{"role": "tool", "content": "x"}]),
            "messages[0].role",
        ),
        ("messages", json!([{"role": "user"}]), "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": null}]),
            "messages[0].content",
        ),
        (
            "messages",
            json!([{"role": "user", "content": 5}]),
            "messages[0].content",
        ),
        (
            "messages",
            json!([{"role": "user", "content": []}]),
            "messages[0].content",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": "x"}]),
            "messages",
        ),
        (
            "messages",
            json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}, {"role": "user", "content": "x"}]),
            "messages[0].tool_calls",
        ),
        ("messages", part(json!("text")), "messages[0].content[0]"),
        (
            "messages",
            part(json!({"type": "video"})),
            "messages[0].content[0].type",
        ),
        (
            "messages",
            part(json!({"type": "text"})),
            "messages[0].content[0].text",
        ),
        (
            "messages",
            part(json!({"type": "image_url"})),
            "messages[0].content[0].image_url",
        ),
        (
            "messages",
            part(json!({"type": "image_url", "image_url": {}})),
            "messages[0].content[0].image_url.url",
        ),
        ("messages", image(""), "messages[0].content[0].image_url.url"),
        (
            "messages",
            image("file:///etc/passwd"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("/etc/passwd"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("http://example.org/a.png"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png,abc"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png;base64,"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png;base64,****"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png;base64,iVBORw0K=GgoAA"),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            image("data:image/png;base64,aGVsbG8gd29ybGQ="),
            "messages[0].content[0].image_url.url",
        ),
        (
            "messages",
            json!([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": picture()}}]},
                {"role": "user", "content": "x"}]),
            "messages[0].content[0].type",
        ),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!(1.5), "max_tokens"),
        ("max_tokens", json!("7"), "max_tokens"),
        ("max_completion_tokens", json!(-1), "max_completion_tokens"),
        ("max_completion_tokens", json!(1e300), "max_completion_tokens"),
        ("temperature", json!(-0.1), "temperature"),
        ("temperature", json!(2.1), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(1.1), "top_p"),
        ("top_k", json!(-2), "top_k"),
        ("seed", json!(1.5), "seed"),
        ("seed", json!(1e30), "seed"),
        ("stop", json!(""), "stop"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("stop", json!([5]), "stop"),
        ("stop", json!("a".repeat(4097)), "stop"),
        ("stop", json!(["a", "\u{e9}".repeat(2049)]), "stop"),
        ("stop", json!({}), "stop"),
        ("n", json!(2), "n"),
        ("n", json!(0), "n"),
        ("stream", json!("yes"), "stream"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("presence_penalty", json!(3), "presence_penalty"),
        ("frequency_penalty", json!(-2.5), "frequency_penalty"),
        ("logprobs", json!(1), "logprobs"),
        ("top_logprobs", json!(5), "top_logprobs"),
        ("top_logprobs", json!(21), "top_logprobs"),
        ("response_format", json!("json"), "response_format"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        (
            "response_format",
            json!({"type": "json_schema"}),
            "response_format.json_schema",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {}}),
            "response_format.json_schema.schema",
        ),
        (
            "structured_outputs",
            json!({"grammar": "x"}),
            "structured_outputs.grammar",
        ),
        (
            "structured_outputs",
            json!({"choice": [5]}),
            "structured_outputs.choice",
        ),
        (
            "structured_outputs",
            json!({"regex": "a", "choice": ["b"]}),
            "structured_outputs",
        ),
        (
            "structured_outputs",
            json!({"json": {}, "disable_any_whitespace": true}),
            "structured_outputs.disable_any_whitespace",
        ),
        (
            "structured_outputs",
            json!({"structural_tag": "{}"}),
            "structured_outputs.structural_tag",
        ),
        (
            "structured_outputs",
            json!({"json": {}, "ebnf": "root ::= \"a\""}),
            "structured_outputs.ebnf",
        ),
        (
            "structured_outputs",
            json!({"json": {}, "whitespace_pattern": " "}),
            "structured_outputs.whitespace_pattern",
        ),
        (
            "structured_outputs",
            json!({"json": {}, "disable_additional_properties": true}),
            "structured_outputs.disable_additional_properties",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "schema": {}}),
            "response_format.schema",
        ),
        (
            "response_format",
            json!({"type": "text", "schema": {}}),
            "response_format.schema",
        ),
        (
            "response_format",
            json!({"type": "json_object", "json_schema": {"schema": {}}}),
            "response_format.json_schema",
        ),
        ("tools", json!([{"type": "function"}]), "tools"),
        ("functions", json!([{}]), "functions"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("logit_bias", json!({"5": 1}), "logit_bias"),
        ("modalities", json!(["text", "audio"]), "modalities"),
        ("guided_json", json!({}), "guided_json"),
        ("min_tokens", json!(3), "min_tokens"),
        ("ignore_eos", json!(true), "ignore_eos"),
        ("chat_template", json!("x"), "chat_template"),
        (
            "chat_template_kwargs",
            json!({"enable_thinking": true}),
            "chat_template_kwargs",
        ),
        ("user", json!("u".repeat(1025)), "user"),
        ("audio", json!({}), "audio"),
        ("user", json!(5), "user"),
    ];
    for (field, value, param) in cases {
        let answered = server.post(CHAT, &asking(|body| body[field] = value.clone()));
        let said = answered.text();
        assert_eq!(answered.status, 400, "{field} {value}: {said}");
        let error = &answered.json()["error"];
        assert_eq!(error["param"], param, "{field} {value}: {said}");
        assert_eq!(error["type"], "invalid_request_error", "{said}");
        assert!(error["message"].as_str().unwrap().contains(field), "{said}");
    }
    assert!(server.worker.jobs.lock().unwrap().is_empty());
    let two = asking(|body| {
        body["max_tokens"] = 5.into();
        body["max_completion_tokens"] = 6.into();
    });
    assert_eq!(server.post(CHAT, &two).json()["error"]["param"], "max_tokens");
}

/// What other servers know, that would change the answer, is an error that names it; where it changes nothing it is left alone.
#[test]
fn fields_of_other_servers() {
    let server = Served::start(Act::Answer);
    let cases = [
        ("include_stop_str_in_output", json!(true), json!(false)),
        ("allowed_token_ids", json!([1]), json!(null)),
        ("truncate_prompt_tokens", json!(5), json!(null)),
        ("prompt_logprobs", json!(0), json!(null)),
        ("regex", json!("a+"), json!("")),
        ("ebnf", json!("root ::= \"a\""), json!(null)),
        ("grammar", json!("root ::= \"a\""), json!("")),
        ("json_schema", json!({"type": "object"}), json!(null)),
        ("json_schema", json!("{}"), json!(null)),
        ("structural_tag", json!({}), json!(null)),
        ("typical_p", json!(0.5), json!(1)),
        ("repeat_penalty", json!(1.1), json!(1.0)),
        ("xtc_probability", json!(0.5), json!(0)),
        ("dry_multiplier", json!(0.8), json!(0.0)),
        ("dynatemp_range", json!(0.5), json!(0)),
        ("top_n_sigma", json!(1), json!(-1)),
        ("mirostat", json!(2), json!(0)),
        ("max_new_tokens", json!(5), json!(null)),
        ("max_output_tokens", json!(5), json!(null)),
        ("n_predict", json!(-1), json!(null)),
        ("guided_json", json!({}), json!(null)),
        ("guided_whitespace_pattern", json!(" "), json!(null)),
        ("guided_decoding_backend", json!(null), json!("outlines")),
        ("logits_processors", json!(["x"]), json!([])),
        ("tool_choice", json!("required"), json!("auto")),
        ("modalities", json!(["text", "audio"]), json!(["text"])),
        ("add_generation_prompt", json!(false), json!(true)),
    ];
    for (field, changing, neutral) in cases {
        let answered = server.post(CHAT, &asking(|body| body[field] = neutral.clone()));
        assert_eq!(answered.status, 200, "{field} {neutral}: {}", answered.text());
        if changing.is_null() {
            continue;
        }
        let answered = server.post(CHAT, &asking(|body| body[field] = changing.clone()));
        assert_eq!(answered.status, 400, "{field} {changing}");
        let error = answered.json()["error"].clone();
        assert_eq!(error["param"], field, "{error}");
        let length = field.contains("predict") || field.contains("max_");
        let said = error["message"].as_str().unwrap();
        assert!(!length || said.contains("`max_tokens`"), "{said}");
    }
}

/// A data URL in all that it may be written like.
#[test]
fn ways_to_write_a_data_url() {
    let server = Served::start(Act::Answer);
    let plain = picture();
    let (kind, data) = plain.split_once(',').unwrap();
    let lines: Vec<&str> = data
        .as_bytes()
        .chunks(76)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    for url in [
        plain.clone(),
        format!("data:image/png; base64,{data}"),
        format!("data:image/png;name=a.png;BASE64,{data}"),
        format!("data:;base64,{data}"),
        format!("{kind},{}", lines.join("\n")),
        format!("{kind},{}\r\n", lines.join("\r\n")),
        format!(
            "{kind},{}",
            data.replace('=', "%3D").replace('+', "%2B").replace('/', "%2f")
        ),
    ] {
        let part = json!({"type": "image_url", "image_url": {"url": url}});
        let asked = asking(|body| body["messages"][0]["content"] = json!([part]));
        let answered = server.post(CHAT, &asked);
        assert_eq!(answered.status, 200, "{url:.60}: {}", answered.text());
    }
}

#[test]
fn what_the_worker_does_has_a_status() {
    for (act, status, kind) in [
        (Act::Busy, 429, "rate_limit_error"),
        (Act::Refuse, 400, "invalid_request_error"),
        (Act::Fail, 500, "server_error"),
        (Act::Break, 500, "server_error"),
        (Act::Panic, 500, "server_error"),
        (Act::FailLater, 500, "server_error"),
    ] {
        let server = Served::start(act);
        for stream in [false, true] {
            let answered = server.post(CHAT, &asking(|body| body["stream"] = stream.into()));
            if stream && act == Act::FailLater {
                // The status is sent already.
                let text = answered.text();
                assert!(
                    answered.status == 200 && text.contains("\"server_error\""),
                    "{text}"
                );
                assert!(!text.contains("[DONE]"), "{text}");
                continue;
            }
            assert_eq!(answered.status, status, "{act:?}: {}", answered.text());
            assert_eq!(answered.json()["error"]["type"], kind);
            let expected = (act == Act::Busy).then_some("3");
            assert_eq!(answered.header("retry-after"), expected);
        }
        // It goes on.
        assert_eq!(server.get("/health").status, 200);
    }
}

#[test]
fn models() {
    let server = Served::start(Act::Answer);
    let list = server.get("/v1/models").json();
    let model = json!({"id": "demo", "object": "model", "created": 951_782_400, "owned_by": "fvlm-serve"});
    assert_eq!(list, json!({"object": "list", "data": [model]}));
    assert_eq!(server.get("/v1/models/demo").json(), model);
    for name in ["other", "demo2", "..", "%2e%2e", "demo/x"] {
        let answered = server.get(&format!("/v1/models/{name}"));
        assert_eq!(answered.status, 404, "{name}");
        assert_eq!(answered.json()["error"]["code"], "model_not_found");
    }
    let other = server.post(CHAT, &asking(|body| body["model"] = "gpt-4o".into()));
    assert_eq!(
        (other.status, &other.json()["error"]["param"]),
        (404, &json!("model"))
    );
}

/// What an answer keeps to waits with the request, and takes memory.
#[test]
fn constraints_that_are_too_large_do_not_wait() {
    let server = Served::start(Act::Answer);
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"schema": schema}});
    for (field, value, param) in [
        (
            "response_format",
            schema(json!({"description": "a".repeat(2 << 20)})),
            "response_format.json_schema.schema",
        ),
        (
            "structured_outputs",
            json!({"regex": "a".repeat(1 << 20)}),
            "structured_outputs.regex",
        ),
        (
            "structured_outputs",
            json!({"choice": vec!["ten bytes."; 10_000]}),
            "structured_outputs.choice",
        ),
    ] {
        let answered = server.post(CHAT, &asking(|body| body[field] = value.clone()));
        let error = &answered.json()["error"];
        assert_eq!(
            (answered.status, &error["param"], &error["code"]),
            (400, &json!(param), &json!("invalid_constraint")),
            "{error}"
        );
    }
    assert!(server.worker.jobs.lock().unwrap().is_empty());
    // As dumps of other servers' request classes have it.
    let answered = server.post(CHAT, &asking(|body| body["top_logprobs"] = 0.into()));
    assert_eq!(answered.status, 200);
}
