//! Who may ask: keys, names of the server, pages of others.

use super::client::Served;
use super::fake::Act;
use crate::{Hosts, Key};
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";

fn body() -> String {
    json!({"messages": [{"role": "user", "content": "x"}]}).to_string()
}

#[test]
fn the_key() {
    let server = Served::set(Act::Answer, |settings| settings.key = Some(Key::new("secret")));
    let json = "content-type: application/json\r\n";
    for wrong in [
        "",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: Bearer secre\r\n",
        "authorization: Bearer secrets\r\n",
        "authorization: Basic secret\r\n",
        "authorization: secret\r\n",
        "x-api-key: secret\r\n",
    ] {
        for (method, path) in [
            ("POST", CHAT),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("POST", "/api/chat"),
            ("GET", "/api/tags"),
            ("GET", "/nowhere"),
        ] {
            let answered = server.ask(method, path, &format!("{json}{wrong}"), body().as_bytes());
            assert_eq!(answered.status, 401, "{path} {wrong}");
            assert_eq!(answered.header("www-authenticate"), Some("Bearer"));
            assert!(!answered.text().contains("secret"));
        }
    }
    for right in [
        "authorization: Bearer secret\r\n",
        "Authorization: bearer  secret\r\n",
    ] {
        assert_eq!(
            server
                .ask("POST", CHAT, &format!("{json}{right}"), body().as_bytes())
                .status,
            200
        );
    }
    // The page asks for the key, and whether the server lives is no secret.
    for path in ["/", "/health", "/openapi.json", "/page/app.js"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn names_of_the_server() {
    let asked = |server: &Served, host: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        server.send(head.as_bytes()).status
    };
    let server = Served::start(Act::Answer);
    for host in ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80"] {
        assert_eq!(asked(&server, host), 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:8000",
        "192.168.0.1",
        "127.0.0.1.nip.io",
        "localhost@evil",
        "",
        "[::2]",
        "[::1",
    ] {
        assert_eq!(asked(&server, host), 421, "{host}");
    }
    let server = Served::set(Act::Answer, |settings| {
        settings.hosts = Hosts::Addresses(vec!["box.lan".to_owned()])
    });
    assert_eq!(asked(&server, "box.lan:8000"), 200);
    assert_eq!(asked(&server, "192.168.0.1"), 200);
    assert_eq!(asked(&server, "evil.example"), 421);
}

/// What a browser sends for a page of another site, also where it does not ask first.
#[test]
fn pages_of_others() {
    let server = Served::set(Act::Answer, |settings| {
        settings.origins = vec!["https://friend.example".to_owned()]
    });
    let own = format!("origin: http://{}\r\n", server.address);
    let json = "content-type: application/json\r\n";
    for foreign in [
        "origin: https://evil.example\r\n",
        "origin: null\r\n",
        "origin: http://localhost:3000\r\n",
        "origin: https://friend.example.evil.example\r\n",
        "origin: https://FRIEND.example\r\n",
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\nsec-fetch-mode: no-cors\r\n",
    ] {
        for path in [CHAT, "/api/generate"] {
            for kind in [json, "content-type: text/plain\r\n", ""] {
                let answered = server.ask("POST", path, &format!("{kind}{foreign}"), body().as_bytes());
                assert_eq!(answered.status, 403, "{foreign} {kind}");
                assert_eq!(answered.header("access-control-allow-origin"), None);
            }
        }
        let preflight = format!("{foreign}access-control-request-method: POST\r\n");
        let answered = server.ask("OPTIONS", CHAT, &preflight, b"");
        assert_eq!(
            (answered.status, answered.header("access-control-allow-origin")),
            (403, None)
        );
        assert_eq!(
            server.ask("GET", "/metrics", foreign, b"").status,
            403,
            "{foreign}"
        );
    }
    assert!(server.worker.jobs.lock().unwrap().is_empty());
    let answered = server.ask(
        "POST",
        CHAT,
        &format!("{json}{own}sec-fetch-site: same-origin\r\n"),
        body().as_bytes(),
    );
    assert_eq!(
        (answered.status, answered.header("access-control-allow-origin")),
        (200, None)
    );
    // A link to the page.
    let link = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\naccept: text/html\r\n";
    assert_eq!(server.ask("GET", "/", link, b"").status, 200);

    let friend = "origin: https://friend.example\r\n";
    let preflight = format!("{friend}access-control-request-method: POST\r\n");
    let answered = server.ask("OPTIONS", CHAT, &preflight, b"");
    assert_eq!(answered.status, 204);
    assert_eq!(
        answered.header("access-control-allow-origin"),
        Some("https://friend.example")
    );
    assert_eq!(
        answered.header("access-control-allow-headers"),
        Some("authorization, content-type")
    );
    // What the package `openai` asks for.
    let named = "authorization, content-type, x-stainless-arch, x-stainless-helper-method, x-stainless-lang, \
                 x-stainless-os, x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, \
                 x-stainless-runtime-version, x-stainless-timeout";
    let asking = format!("{preflight}access-control-request-headers: {named}\r\n");
    let answered = server.ask("OPTIONS", CHAT, &asking, b"");
    assert_eq!(
        (answered.status, answered.header("access-control-allow-headers")),
        (204, Some(named))
    );
    let evil = asking.replace("friend", "evil");
    let answered = server.ask("OPTIONS", CHAT, &evil, b"");
    assert_eq!(
        (answered.status, answered.header("access-control-allow-headers")),
        (403, None)
    );
    let answered = server.ask("POST", CHAT, &format!("{json}{friend}"), body().as_bytes());
    assert_eq!(answered.status, 200);
    assert_eq!(
        answered.header("access-control-allow-origin"),
        Some("https://friend.example")
    );
    assert_eq!(answered.header("vary"), Some("Origin"));
}

#[test]
fn counts() {
    let server = Served::start(Act::Answer);
    let json = "content-type: application/json\r\n";
    assert_eq!(server.ask("POST", CHAT, json, body().as_bytes()).status, 200);
    server.get("/nowhere/at/all");
    let answered = server.get("/metrics");
    let text = answered.text();
    for line in [
        "fvlm_requests_total{path=\"/v1/chat/completions\",status=\"200\"} 1",
        "fvlm_requests_total{path=\"other\",status=\"404\"} 1",
        "fvlm_time_to_first_token_seconds_count 1",
        "fvlm_slots 8",
        "fvlm_tokens_total 42",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let health = server.get("/health").json();
    assert_eq!(
        (&health["status"], &health["model"], &health["slots"]),
        (&json!("ok"), &json!("demo"), &json!(8))
    );
}
