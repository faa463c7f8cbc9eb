//! How the server ends, and TLS.

use super::client::{Served, read};
use super::fake::Act;
use crate::{Settings, tls};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream, crypto::ring};

/// A certificate for localhost until 2126, and its key; nobody else trusts it.
const CERT: &str = include_str!("localhost.pem");
const KEY: &str = include_str!("localhost.key.pem");

/// Answers that run are cut off after their time, and told so; new connections are not taken in.
#[test]
fn running_answers_have_their_time() {
    for (stream, status) in [(true, 200), (false, 503)] {
        let grace = Duration::from_millis(300);
        let server = Served::with(Act::Endless, Settings::default(), None, grace);
        let mut idle = server.connect();
        let mut running = server.asked(stream);
        let begun = Instant::now();
        server.stop();
        let answered = read(&mut running).unwrap();
        assert_eq!(answered.status, status);
        assert!(begun.elapsed() >= grace);
        let text = answered.text();
        assert!(
            text.contains("shutting down") && !text.contains("[DONE]"),
            "{text}"
        );
        assert!(read(&mut idle).is_none());
        let address = server.address;
        server.wait();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

/// The word is heard where nobody else could connect.
#[test]
fn a_full_server_ends() {
    let settings = Settings {
        connections: 1,
        ..Settings::default()
    };
    let grace = Duration::from_millis(300);
    let server = Served::with(Act::Endless, settings, None, grace);
    let mut running = server.asked(true);
    let begun = Instant::now();
    server.stop();
    let text = read(&mut running).unwrap().text();
    assert!(text.contains("shutting down"), "{text}");
    server.wait();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// A connection that is kept open is told no more.
#[test]
fn questions_after_the_word_to_stop() {
    let server = Served::with(
        Act::Endless,
        Settings::default(),
        None,
        Duration::from_millis(500),
    );
    let running = server.asked(true);
    server.stop();
    let end = Instant::now() + Duration::from_secs(5);
    while !server.app.ending.load(std::sync::atomic::Ordering::SeqCst) {
        assert!(Instant::now() < end);
    }
    drop(running);
    server.wait();
}

fn files(cert: &str, key: &str) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, private) = (
        directory.path().join("cert.pem"),
        directory.path().join("key.pem"),
    );
    std::fs::write(&certificate, cert).unwrap();
    std::fs::write(&private, key).unwrap();
    (directory, certificate, private)
}

#[test]
fn answers_over_tls() {
    let (_directory, cert, key) = files(CERT, KEY);
    let config = tls::config(&cert, &key).unwrap();
    let settings = Settings {
        head_timeout: Duration::from_millis(500),
        ..Settings::default()
    };
    let server = Served::with(Act::Answer, settings, Some(config), Duration::ZERO);
    // What is no TLS: the connection ends, soon.
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"[..],
        &[0; 4096],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        &[0x16, 3, 1, 0, 5, 1, 0xff, 0xff, 0xff, 0],
        b"",
    ] {
        let begun = Instant::now();
        let mut stream = server.connect();
        drop(stream.write_all(garbage));
        assert!(read(&mut stream).is_none());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(CERT.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = server.connect();
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let answered = read(&mut stream).unwrap();
    assert_eq!(answered.status, 200);
    assert_eq!(answered.json()["status"], "ok");
}

#[test]
fn files_that_give_no_tls() {
    for (cert, key, said) in [
        ("", KEY, "cert.pem"),
        (KEY, KEY, "cert.pem"),
        ("garbage", KEY, "cert.pem"),
        (CERT, "", "key.pem"),
        (CERT, CERT, "key.pem"),
        (&CERT.replace("MII", "M!!"), KEY, "cert.pem"),
        (CERT, include_str!("other.key.pem"), "cannot be used"),
    ] {
        let (_directory, cert, key) = files(cert, key);
        let error = tls::config(&cert, &key).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("BEGIN"), "{error}");
    }
    let (directory, cert, _key) = files(CERT, KEY);
    let error = tls::config(&cert, &directory.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("none"), "{error}");
}
