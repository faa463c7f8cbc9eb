//! How does one file come? The hub is asked about it once, and all else is held to that answer: under which name it lies,
//! how long it is, of which commit.
//!
//! Headers as `huggingface_hub` reads them: `X-Repo-Commit`, and `X-Linked-ETag` and `X-Linked-Size` where a large file lies
//! with another server, to which the answer redirects. That server never sees the token.

use super::cache::Settings;
use super::counter::Counter;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use ureq::http::{HeaderMap, Response};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

/// Redirects in a row that are followed.
const REDIRECTS: usize = 10;
/// Bytes that are read and written at a time.
const BLOCK: usize = 1 << 17;

/// Longest answer in JSON that is read, in bytes.
const MOST_JSON: u64 = 64 << 20;

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A status that is no success.
    Status(u16),
    /// No answer.
    Request(Box<ureq::Error>),
    /// An answer that breaks off.
    BrokenOff(io::Error),
    /// An answer that makes no sense.
    Protocol(String),
    /// It is this machine that refuses.
    Local {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Nobody waits for it any more.
    Abandoned,
}

impl Fault {
    fn local(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Fault {
        let path = path.to_owned();
        move |source| Fault::Local { action, path, source }
    }
}

impl From<ureq::Error> for Fault {
    fn from(error: ureq::Error) -> Fault {
        match error {
            ureq::Error::StatusCode(code) => Fault::Status(code),
            ureq::Error::Json(_) | ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Fault::Protocol(error.to_string())
            }
            other => Fault::Request(Box::new(other)),
        }
    }
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Without quotes; the cache calls the file by it.
    pub(crate) etag: String,
    /// The commit that it is of.
    pub(crate) commit: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// Asks the hub, and whom it sends us to.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    /// Who may see the token.
    origin: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Client {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("fvlm-export/", env!("CARGO_PKG_VERSION")))
            .build();
        Client {
            agent: agent.into(),
            origin: origin(&settings.endpoint).to_owned(),
            token: settings.token.clone(),
        }
    }

    /// What the hub says of the file at `url`.
    ///
    /// # Errors
    /// No answer, or one without commit, ETag or length.
    pub(crate) fn announced(&self, url: &str) -> Result<Announced, Fault> {
        let mut url = url.to_owned();
        let (mut etag, mut commit, mut size) = (None, None, None);
        for _ in 0..=REDIRECTS {
            let response = self.send(self.agent.head(&url), &url)?;
            let headers = response.headers();
            commit = commit.or_else(|| text(headers, "x-repo-commit"));
            etag = etag.or_else(|| text(headers, "x-linked-etag"));
            size = size.or_else(|| number(headers, "x-linked-size"));
            let next = redirect(&response, &url)?;
            if next.is_none() {
                etag = etag.or_else(|| text(headers, "etag"));
                size = size.or_else(|| number(headers, "content-length"));
            }
            if let (Some(etag), Some(commit), Some(size)) = (&etag, &commit, size) {
                return Ok(Announced {
                    etag: etag.trim_start_matches("W/").trim_matches('"').to_owned(),
                    commit: commit.clone(),
                    size,
                });
            }
            let Some(next) = next else {
                let needed = [
                    ("ETag", etag.is_some()),
                    ("X-Repo-Commit", commit.is_some()),
                    ("Content-Length", size.is_some()),
                ];
                let missing = needed.iter().filter(|(_, there)| !there);
                let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
                return Err(Fault::Protocol(format!(
                    "no {} in the answer",
                    missing.join(", ")
                )));
            };
            url = next;
        }
        Err(too_many_redirects())
    }

    /// What the hub says in JSON at `url`, wherever it sends us: the token goes to the hub's own address alone, port and
    /// scheme included.
    ///
    /// # Errors
    /// No answer, one that is longer than [`MOST_JSON`], or another form than `T`.
    pub(crate) fn json<T: DeserializeOwned>(&self, url: &str) -> Result<T, Fault> {
        let mut text = Vec::new();
        let body = self.body(url, 0)?.into_body().into_reader();
        body.take(MOST_JSON + 1)
            .read_to_end(&mut text)
            .map_err(Fault::BrokenOff)?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > MOST_JSON {
            let what = format!("an answer of more than {MOST_JSON} bytes");
            return Err(Fault::Protocol(what));
        }
        serde_json::from_slice(&text)
            .map_err(|error| Fault::Protocol(format!("no JSON that is expected: {error}")))
    }

    /// Makes `part` the whole file of `size` bytes, from where it ends. What had arrived stays there whatever happens, unless
    /// it was too much.
    ///
    /// # Errors
    /// A connection that breaks off, an answer of another length, a disk that refuses.
    pub(crate) fn fetch(&self, url: &str, part: &Path, size: u64, counter: &Counter) -> Result<(), Fault> {
        let mut options = OpenOptions::new();
        let opened = options.create(true).append(true).open(part);
        let mut file = opened.map_err(Fault::local("write", part))?;
        let mut here = file.metadata().map_err(Fault::local("read", part))?.len();
        if here > size {
            here = restart(&file, part)?;
        }
        counter.set(here);
        if here == size {
            return Ok(());
        }
        let response = self.body(url, here)?;
        match response.status().as_u16() {
            206 => {
                let range = text(response.headers(), "content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {here}-")) {
                    return Err(Fault::Protocol(format!(
                        "bytes from {here} on were asked for, the answer has `{range}`"
                    )));
                }
            }
            // Whole, whatever was asked for.
            200 => {
                here = restart(&file, part)?;
                counter.set(here);
            }
            code => return Err(Fault::Status(code)),
        }
        let mut body = response.into_body().into_reader();
        let mut block = vec![0; BLOCK];
        loop {
            let read = match body.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::BrokenOff(error)),
            };
            here += u64::try_from(read).unwrap_or(u64::MAX);
            if here > size {
                restart(&file, part)?;
                let what = format!("more than the {size} bytes arrive that were announced");
                return Err(Fault::Protocol(what));
            }
            let written = file.write_all(&block[..read]);
            written.map_err(Fault::local("write", part))?;
            counter.set(here);
            if counter.is_abandoned() {
                return Err(Fault::Abandoned);
            }
        }
        if here < size {
            let what = format!("{here} bytes arrived, {size} were announced");
            return Err(Fault::BrokenOff(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                what,
            )));
        }
        Ok(())
    }

    /// The answer with the file's bytes from `start` on, wherever it lies.
    fn body(&self, url: &str, start: u64) -> Result<Response<Body>, Fault> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&url);
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = self.send(request, &url)?;
            match redirect(&response, &url)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(too_many_redirects())
    }

    fn send(&self, request: RequestBuilder<WithoutBody>, url: &str) -> Result<Response<Body>, Fault> {
        // Lengths and ranges are those of the file, not of a compressed form.
        let mut request = request.header("accept-encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == self.origin) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call()?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(Fault::Status(status.as_u16()));
        }
        Ok(response)
    }
}

/// Empties a part.
fn restart(file: &File, part: &Path) -> Result<u64, Fault> {
    file.set_len(0).map_err(Fault::local("write", part))?;
    Ok(0)
}

/// Where an answer sends us.
fn redirect(response: &Response<Body>, from: &str) -> Result<Option<String>, Fault> {
    if !response.status().is_redirection() {
        return Ok(None);
    }
    let location = text(response.headers(), "location");
    let location = location.ok_or_else(|| {
        let code = response.status().as_u16();
        Fault::Protocol(format!("a redirect ({code}) to nowhere"))
    })?;
    Ok(Some(join(from, &location)))
}

/// The address that `location` means, read at `from`.
fn join(from: &str, location: &str) -> String {
    let scheme = location.split(['/', '?', '#']).next().unwrap_or_default();
    let rest = location.get(scheme.len()..).unwrap_or_default();
    if scheme.ends_with(':') && rest.starts_with("//") {
        location.to_owned()
    } else if location.starts_with("//") {
        let scheme = from.split("://").next().unwrap_or("https");
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(from))
    } else {
        let path = from.split(['?', '#']).next().unwrap_or(from);
        let folder = path.rfind('/').map_or(path, |end| &path[..=end]);
        format!("{folder}{location}")
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |place| place + 3);
    let end = url[host..].find(['/', '?', '#']);
    &url[..end.map_or(url.len(), |end| host + end)]
}

fn too_many_redirects() -> Fault {
    Fault::Protocol(format!("more than {REDIRECTS} redirects in a row"))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_read_where_they_stand() {
        let from = "http://hub:80/a/b?c=/d";
        for (location, expected) in [
            ("https://cdn/x", "https://cdn/x"),
            ("//cdn/x", "http://cdn/x"),
            ("/x", "http://hub:80/x"),
            ("x", "http://hub:80/a/x"),
        ] {
            assert_eq!(join(from, location), expected);
        }
    }

    #[test]
    fn origins() {
        for (url, expected) in [
            ("http://hub:80/a", "http://hub:80"),
            ("https://hub", "https://hub"),
            ("https://hub?x", "https://hub"),
        ] {
            assert_eq!(origin(url), expected);
        }
        assert_ne!(origin("https://hub/"), origin("http://hub/"));
        assert_ne!(origin("http://hub:1/"), origin("http://hub:2/"));
    }
}
