//! Images by address: what is fetched, and what must not be.

use super::client::Served;
use super::fake::Act;
use crate::fetch::{Fetcher, is_public};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Addresses that no request may lead to, and some that it may.
#[test]
fn addresses_of_the_public_internet() {
    for (address, public) in [
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("10.0.0.1", false),
        ("10.255.255.255", false),
        ("100.63.255.255", true),
        ("100.64.0.1", false),
        ("100.127.255.255", false),
        ("100.128.0.1", true),
        ("127.0.0.1", false),
        ("127.255.255.254", false),
        ("169.254.169.254", false),
        ("172.15.255.255", true),
        ("172.16.0.1", false),
        ("172.31.255.255", false),
        ("172.32.0.1", true),
        ("192.0.0.1", false),
        ("192.0.2.1", false),
        ("192.88.99.1", false),
        ("192.168.1.1", false),
        ("192.169.0.1", true),
        ("198.18.0.1", false),
        ("198.19.255.255", false),
        ("198.20.0.1", true),
        ("198.51.100.1", false),
        ("203.0.113.1", false),
        ("224.0.0.1", false),
        ("239.255.255.255", false),
        ("240.0.0.1", false),
        ("255.255.255.255", false),
        ("8.8.8.8", true),
        ("1.1.1.1", true),
        ("::", false),
        ("::1", false),
        ("::7f00:1", false),
        ("::ffff:127.0.0.1", false),
        ("::ffff:10.0.0.1", false),
        ("::ffff:8.8.8.8", false),
        ("64:ff9b::7f00:1", false),
        ("64:ff9b::808:808", false),
        ("64:ff9b:1::1", false),
        ("100::1", false),
        ("2001::1", false),
        ("2001:0:7f00:1::", false),
        ("2001:10::1", false),
        ("2001:20::1", false),
        ("2001:1ff::1", false),
        ("2001:200::1", true),
        ("2001:db8::1", false),
        ("2002:7f00:1::1", false),
        ("2002:808:808::1", false),
        ("2606:4700:4700::1111", true),
        ("2a00:1450::1", true),
        ("3fff::1", false),
        ("3fff:fff::1", false),
        ("3fff:1000::1", true),
        ("4000::1", false),
        ("fc00::1", false),
        ("fd12:3456::1", false),
        ("fe80::1", false),
        ("fec0::1", false),
        ("ff02::1", false),
    ] {
        let parsed: IpAddr = address.parse().unwrap();
        assert_eq!(is_public(parsed), public, "{address}");
    }
}

/// Whatever way loopback is written: a number, in octal, a name that leads there.
#[test]
fn ways_to_write_what_is_not_public() {
    let fetcher = Fetcher::new(1000);
    // Somebody listens, who must not be reached.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]",
        "10.0.0.1",
        "169.254.169.254",
    ] {
        let begun = Instant::now();
        let problem = fetcher.fetch(&format!("http://{host}:{port}/a.png")).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(9), "{host}");
        assert!(
            problem.contains("public")
                || problem.contains("not found")
                || problem.contains("does not answer"),
            "{host}: {problem}"
        );
    }
    assert!(listener.accept().is_err(), "somebody connected");
    for address in [
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://user:pass@example.org/",
        "http://",
        "https:///x",
        "gopher://x",
        "http://a b/",
        "/x",
    ] {
        fetcher.fetch(address).unwrap_err();
    }
}

/// For tests, one address of loopback stands for the public internet, and the others for what is not.
fn only_one(address: IpAddr) -> bool {
    address == IpAddr::from([127, 0, 0, 1])
}

/// A server of one answer a connection, by path.
fn web(answer: impl Fn(&str, u16) -> Vec<u8> + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = vec![0; 8192];
            let count = stream.read(&mut bytes).unwrap_or(0);
            let head = String::from_utf8_lossy(&bytes[..count]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            drop(stream.write_all(&answer(path, port)));
        }
    });
    port
}

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

fn file(bytes: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        bytes.len()
    );
    [head.as_bytes(), bytes].concat()
}

/// A name server of somebody who wants in: a host's name says its addresses, `10.0.0.1--1.1.1.1.example`.
#[derive(Debug)]
struct Hostile;

impl Resolver for Hostile {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap().strip_suffix(".example").unwrap();
        let mut found = self.empty();
        for address in host.split("--") {
            // Colons are written as letters, which names may have.
            let address: IpAddr = address.replace('x', ":").parse().unwrap();
            found.push(SocketAddr::new(address, uri.port_u16().unwrap_or(80)));
        }
        Ok(found)
    }
}

#[test]
fn names_that_lead_to_networks_here() {
    let fetcher = Fetcher::that_resolves(1000, is_public, Hostile);
    for addresses in [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "xx1",
        "xx",
        "fd00xx1",
        "fe80xx1",
        "xxffffx127.0.0.1",
        "xxffffx10.0.0.1",
        "64xff9bxx7f00x1",
        // One that is public beside it, before and behind.
        "8.8.8.8--127.0.0.1",
        "127.0.0.1--8.8.8.8",
        "2606x4700x4700xx1111--xx1",
    ] {
        let problem = fetcher
            .fetch(&format!("http://{addresses}.example/a.png"))
            .unwrap_err();
        assert!(problem.contains("public internet"), "{addresses}: {problem}");
    }
    // A redirect from a server that is allowed to such a name.
    let port = web(|_path, port| redirect(&format!("http://127.0.0.2.example:{port}/")));
    let fetcher = Fetcher::that_resolves(1000, only_one, Hostile);
    let problem = fetcher
        .fetch(&format!("http://127.0.0.1.example:{port}/"))
        .unwrap_err();
    assert!(problem.contains("public internet"), "{problem}");
    // The name is what was in the way, not the resolver.
    let port = web(|_path, _port| file(b"here"));
    let fetched = fetcher.fetch(&format!("http://127.0.0.1.example:{port}/"));
    assert_eq!(fetched.unwrap(), b"here");
}

#[test]
fn redirects_are_looked_at_like_the_first_address() {
    let port = web(|path, port| match path {
        "/file" => file(b"here"),
        "/1" => redirect("/2"),
        "/2" => redirect(&format!("http://127.0.0.1:{port}/3")),
        "/3" => redirect("file"),
        "/parts/a?b" => redirect("../up/./4?src=http://127.0.0.2/x"),
        "/up/4?src=http://127.0.0.2/x" => redirect("?ok=1"),
        "/up/4?ok=1" => redirect(&format!("//127.0.0.1:{port}/../../file")),
        "/loop" => redirect("/loop"),
        "/private" => redirect(&format!("http://127.0.0.2:{port}/file")),
        "/local" => redirect(&format!("http://[::1]:{port}/file")),
        "/scheme" => redirect("file:///etc/passwd"),
        "/nowhere" => b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/long" => file(&[0; 2000]),
        "/longer" => b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
            .iter()
            .copied()
            .chain([0; 5000])
            .collect(),
        "/bomb" => b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec(),
        "/garbage" => b"\0\0\0\0".to_vec(),
        _missing => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
    });
    let fetcher = Fetcher::that_allows(1000, only_one);
    let fetch = |path: &str| fetcher.fetch(&format!("http://127.0.0.1:{port}{path}"));
    assert_eq!(fetch("/file").unwrap(), b"here");
    assert_eq!(fetch("/1").unwrap(), b"here");
    assert_eq!(fetch("/parts/a?b").unwrap(), b"here");
    for (path, said) in [
        ("/loop", "redirects"),
        ("/private", "public internet"),
        ("/local", "public internet"),
        ("/scheme", "address"),
        ("/nowhere", "target"),
        ("/long", "1000 bytes"),
        ("/longer", "1000 bytes"),
        ("/bomb", "does not answer"),
        ("/garbage", "does not answer"),
        ("/missing", "404"),
    ] {
        let problem = fetch(path).unwrap_err();
        assert!(problem.contains(said), "{path}: {problem}");
    }
}

#[test]
fn addresses_are_fetched_only_where_that_is_asked_for() {
    let asked = |server: &Served| {
        let part = json!({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}});
        let body = json!({"messages": [{"role": "user", "content": [part]}]});
        let answered = server.post("/v1/chat/completions", &body);
        assert_eq!(answered.status, 400);
        let error = answered.json()["error"].clone();
        assert_eq!(error["param"], "messages[0].content[0].image_url.url");
        error["message"].as_str().unwrap().to_owned()
    };
    assert!(asked(&Served::start(Act::Answer)).contains("--fetch-images"));
    let fetching = Served::set(Act::Answer, |settings| settings.fetch_images = true);
    assert!(asked(&fetching).contains("public internet"));
}
