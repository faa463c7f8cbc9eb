//! A hub on the loopback device: it serves repositories the way the real one does, and misbehaves on demand.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The commit that `main` and `v1` are at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with answers to paths that contain `path`; each trick works `times` times.
#[derive(Debug, Clone)]
pub(crate) struct Trick {
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    pub(crate) times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This status and nothing else.
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Drop(usize),
    /// Nothing more comes after so many bytes of the body, and the connection stays open.
    Silence(usize),
    /// The body ends after so many bytes, and no length says that it is too short.
    EndEarly(usize),
    /// The range is ignored: the whole file comes, whatever was asked for.
    IgnoreRange,
    /// Another ETag.
    Etag(&'static str),
    /// A redirect, to this address or to none.
    Redirect(Option<&'static str>),
    /// Bytes without end.
    Endless,
}

impl Kind {
    /// Whether only requests for bodies are meant, not those for a length.
    fn is_about_bodies(self) -> bool {
        !matches!(self, Kind::Status(_) | Kind::Etag(_) | Kind::Redirect(_))
    }
}

/// A request that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// First byte asked for; a request for the head alone has none.
    pub(crate) from: Option<usize>,
    pub(crate) token: Option<String>,
    /// Host and port that it was sent to.
    pub(crate) host: String,
}

#[derive(Debug)]
pub(crate) struct State {
    endpoint: String,
    /// Those of `org/name`.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Those of other repositories, by id.
    pub(crate) others: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// What the list of files says instead of the true length.
    pub(crate) listed: BTreeMap<String, usize>,
    pub(crate) commit: String,
    /// Without it, every answer is 401.
    pub(crate) token: Option<&'static str>,
    /// Large files lie at another host, which must not see a token.
    pub(crate) elsewhere: bool,
    pub(crate) tricks: Vec<Trick>,
    pub(crate) requests: Vec<Request>,
}

/// The server; its threads end with the process.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(State {
                endpoint: format!("http://{}", listener.local_addr().unwrap()),
                files,
                others: BTreeMap::new(),
                listed: BTreeMap::new(),
                commit: COMMIT.to_owned(),
                token: None,
                elsewhere: false,
                tricks: Vec::new(),
                requests: Vec::new(),
            })),
        };
        let answering = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = answering.clone();
                std::thread::spawn(move || hub.converse(stream));
            }
        });
        hub
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub(crate) fn trick(&self, path: &'static str, kind: Kind, times: usize) {
        self.with(|state| state.tricks.push(Trick { path, kind, times }));
    }

    /// Which files were asked for since the last call, and from which byte on; those whose names contain `name`.
    pub(crate) fn bodies(&self, name: &str) -> Vec<(String, usize)> {
        let requests = self.with(|state| std::mem::take(&mut state.requests));
        let bodies = requests.into_iter().filter_map(|request| {
            let file = request
                .path
                .split_once(&format!("/resolve/{COMMIT}/"))?
                .1
                .to_owned();
            Some((file, request.from?))
        });
        bodies.filter(|(file, _)| file.contains(name)).collect()
    }

    fn converse(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(request) = read_request(&mut reader) {
            if !self.answer(&request, &mut stream) {
                return;
            }
        }
    }

    /// Whether the connection goes on.
    fn answer(&self, request: &Request, stream: &mut TcpStream) -> bool {
        let (kind, answer) = self.with(|state| {
            state.requests.push(request.clone());
            (state.trick(request), state.answer(request))
        });
        let mut answer = answer;
        match kind {
            Some(Kind::Status(code)) => answer = Answer::status(code),
            Some(Kind::Etag(etag)) => answer.linked_etag = Some(etag.to_owned()),
            Some(Kind::Redirect(location)) => {
                answer = Answer::status(302);
                answer.location = location.map(str::to_owned);
            }
            Some(Kind::Endless) => {
                let head = answer.head(false);
                let mut alive = stream.write_all(head.as_bytes()).is_ok();
                while alive {
                    alive = stream.write_all(&[0; 1 << 16]).is_ok();
                }
                return false;
            }
            Some(Kind::IgnoreRange) => {
                answer.body = answer.whole.clone().unwrap_or_default();
                answer.code = 200;
                answer.range = None;
            }
            _other => {}
        }
        if request.from.is_none() && !request.path.starts_with("/api/") {
            // The length of the body that is not sent.
            return stream.write_all(answer.head(true).as_bytes()).is_ok();
        }
        let head = answer.head(!matches!(kind, Some(Kind::EndEarly(_))));
        let cut = match kind {
            Some(Kind::Drop(cut) | Kind::Silence(cut) | Kind::EndEarly(cut)) => {
                Some(cut.min(answer.body.len()))
            }
            _other => None,
        };
        let body = &answer.body[..cut.unwrap_or(answer.body.len())];
        if stream.write_all(head.as_bytes()).is_err() || stream.write_all(body).is_err() {
            return false;
        }
        if let Some(Kind::Silence(_)) = kind {
            std::thread::sleep(Duration::from_secs(60));
        }
        cut.is_none()
    }
}

impl State {
    /// The trick that works now.
    fn trick(&mut self, request: &Request) -> Option<Kind> {
        let trick = self.tricks.iter_mut().find(|trick| {
            let meant = request.from.is_some() || !trick.kind.is_about_bodies();
            meant && trick.times > 0 && request.path.contains(trick.path)
        })?;
        trick.times -= 1;
        Some(trick.kind)
    }

    fn answer(&self, request: &Request) -> Answer {
        let elsewhere = self.elsewhere && request.path.starts_with("/cdn/");
        if elsewhere && (request.token.is_some() || !request.host.starts_with("localhost")) {
            return Answer::status(400);
        }
        if let Some(token) = self.token.filter(|_| !elsewhere)
            && request.token.as_deref() != Some(token)
        {
            return Answer::status(401);
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        for (id, files) in self.repositories() {
            for revision in ["main", "v1", "refs%2Fpr%2F1", COMMIT] {
                if path == format!("/api/models/{id}/revision/{revision}") && query == "blobs=true" {
                    return self.listing(id, files);
                }
            }
            if let Some(name) = path.strip_prefix(&format!("/{id}/resolve/{}/", self.commit)) {
                let name = name
                    .replace("%20", " ")
                    .replace("%28", "(")
                    .replace("%29", ")")
                    .replace("%23", "#");
                return self.file(files, &name.replace("%25", "%"), request);
            }
        }
        if let Some(name) = path.strip_prefix("/cdn/") {
            let mut repositories = self.repositories();
            return match repositories.find_map(|(_, files)| files.get(name)) {
                Some(contents) => Answer::part(contents, request.from),
                None => Answer::status(404),
            };
        }
        Answer::status(404)
    }

    fn repositories(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, Vec<u8>>)> {
        let others = self.others.iter().map(|(id, files)| (id.as_str(), files));
        others.chain([("org/name", &self.files)])
    }

    fn listing(&self, id: &str, files: &BTreeMap<String, Vec<u8>>) -> Answer {
        let siblings: Vec<serde_json::Value> = files
            .iter()
            .map(|(name, contents)| {
                let size = self.listed.get(name).copied().unwrap_or(contents.len());
                serde_json::json!({"rfilename": name, "size": size, "blobId": "0"})
            })
            .collect();
        let listing = serde_json::json!({"id": id, "sha": self.commit, "siblings": siblings});
        let mut answer = Answer::status(200);
        answer.body = listing.to_string().into_bytes();
        answer
    }

    /// Large files lie elsewhere, as on the hub; their ETag is their SHA-256.
    fn file(&self, files: &BTreeMap<String, Vec<u8>>, name: &str, request: &Request) -> Answer {
        let Some(contents) = files.get(name) else {
            return Answer::status(404);
        };
        let hash: String = Sha256::digest(contents)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut answer = if name.ends_with(".safetensors") {
            let mut answer = Answer::status(302);
            let endpoint = if self.elsewhere {
                self.endpoint.replace("127.0.0.1", "localhost")
            } else {
                self.endpoint.clone()
            };
            answer.location = Some(format!("{endpoint}/cdn/{name}"));
            answer.linked_etag = Some(hash);
            answer
        } else {
            let mut answer = Answer::part(contents, request.from);
            answer.etag = Some(hash[..40].to_owned());
            answer
        };
        answer.commit = Some(self.commit.clone());
        answer
    }
}

#[derive(Debug, Clone)]
struct Answer {
    code: u16,
    etag: Option<String>,
    linked_etag: Option<String>,
    commit: Option<String>,
    location: Option<String>,
    range: Option<String>,
    body: Vec<u8>,
    whole: Option<Vec<u8>>,
}

impl Answer {
    fn status(code: u16) -> Answer {
        Answer {
            code,
            etag: None,
            linked_etag: None,
            commit: None,
            location: None,
            range: None,
            body: Vec::new(),
            whole: None,
        }
    }

    fn part(contents: &[u8], from: Option<usize>) -> Answer {
        let end = contents.len();
        let start = from.unwrap_or(0).min(end);
        let mut answer = Answer::status(if start > 0 { 206 } else { 200 });
        answer.range = (start > 0).then(|| format!("bytes {start}-{}/{end}", end.saturating_sub(1)));
        answer.body = contents[start..].to_vec();
        answer.whole = Some(contents.to_vec());
        answer
    }

    fn head(&self, with_length: bool) -> String {
        let mut head = format!("HTTP/1.1 {} X\r\n", self.code);
        let lines = [
            ("ETag", self.etag.as_ref().map(|etag| format!("\"{etag}\""))),
            (
                "X-Linked-ETag",
                self.linked_etag.as_ref().map(|etag| format!("\"{etag}\"")),
            ),
            ("X-Repo-Commit", self.commit.clone()),
            ("Location", self.location.clone()),
            ("Content-Range", self.range.clone()),
            ("Content-Length", with_length.then(|| self.body.len().to_string())),
            ("Connection", (!with_length).then(|| "close".to_owned())),
        ];
        for (name, value) in lines {
            if let Some(value) = value {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head + "\r\n"
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut request = Request {
        path: line.split(' ').nth(1)?.to_owned(),
        from: line.starts_with("GET ").then_some(0),
        token: None,
        host: String::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some(request);
        }
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "host" => request.host = value.to_owned(),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _other => {}
        }
    }
}
