//! A server on a port of its own, and a client that sends whatever bytes a test has.

use super::fake::{self, Act, Fake};
use crate::{App, Settings};
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) worker: Arc<Fake>,
    pub(crate) app: Arc<App>,
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// An answer, read to the end of the connection.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answered {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

impl Served {
    pub(crate) fn start(act: Act) -> Served {
        Served::with(act, Settings::default(), None, Duration::ZERO)
    }

    pub(crate) fn set(act: Act, change: impl FnOnce(&mut Settings)) -> Served {
        let mut settings = Settings::default();
        change(&mut settings);
        Served::with(act, settings, None, Duration::ZERO)
    }

    pub(crate) fn with(
        act: Act,
        settings: Settings,
        tls: Option<Arc<ServerConfig>>,
        grace: Duration,
    ) -> Served {
        let worker = Fake::new(act);
        let app = Arc::new(fake::app(Arc::clone(&worker), settings));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let served = Arc::clone(&app);
        let thread = std::thread::spawn(move || {
            let threads = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            let threads = threads.unwrap();
            threads.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                crate::serve(listener, tls, served, stopped, grace).await;
            });
            threads.shutdown_background();
        });
        Served {
            worker,
            app,
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Tells it to stop; another call waits.
    pub(crate) fn stop(&self) {
        self.stop.send(true).unwrap();
    }

    /// Waits until it has stopped.
    pub(crate) fn wait(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    /// A connection on which something was asked, when the worker has the job.
    pub(crate) fn asked(&self, stream: bool) -> TcpStream {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "stream": stream}).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut connection = self.connect();
        connection.write_all(head.as_bytes()).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while self.worker.running.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        connection
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes, and reads what comes until the connection ends.
    pub(crate) fn send(&self, bytes: &[u8]) -> Answered {
        let mut stream = self.connect();
        // A server that has had enough does not read all of it.
        drop(stream.write_all(bytes));
        read(&mut stream).expect("an answer")
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answered {
        let host = self.address;
        let length = body.len();
        let length = if method == "GET" {
            String::new()
        } else {
            format!("content-length: {length}\r\n")
        };
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{length}{headers}\r\n");
        self.send(&[head.as_bytes(), body].concat())
    }

    pub(crate) fn get(&self, path: &str) -> Answered {
        self.ask("GET", path, "", b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answered {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Answered {
        self.ask(
            "POST",
            path,
            "content-type: application/json\r\n",
            body.as_bytes(),
        )
    }

    /// Waits until no job runs.
    pub(crate) fn idle(&self) {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while self.worker.running.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            assert!(
                std::time::Instant::now() < end,
                "a job goes on that nobody waits for"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// An answer, to the end of the connection; `None` where there is none.
pub(crate) fn read(stream: &mut impl std::io::Read) -> Option<Answered> {
    let mut bytes = Vec::new();
    // A connection that is cut off may have had an answer before.
    drop(stream.read_to_end(&mut bytes));
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let rest = &bytes[end + 4..];
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(rest) } else { rest.to_vec() };
    Some(Answered { status, head, body })
}

/// The body of chunks, as far as they came.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        let chunk = &rest[end + 2..];
        if length == 0 || chunk.len() < length + 2 {
            break;
        }
        body.extend_from_slice(&chunk[..length]);
        rest = &chunk[length + 2..];
    }
    body
}
