//! What is to be done? The flags, checked against each other; nothing is left open.

use crate::command::cli::Cli;
use crate::schedule::{Limits, MOST_SLOTS};
use crate::{About, Hosts, Key, Settings, tls};
use runtime::{MAX_TOKENS, Options};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

/// Most bytes of a file with a key.
const MOST_KEY_FILE: u64 = 1 << 16;

/// Everything that the server needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) model: PathBuf,
    pub(crate) name: String,
    pub(crate) verify: bool,
    pub(crate) options: Options,
    /// What of the engine's flags is not done as they say.
    pub(crate) notices: Vec<String>,
    pub(crate) limits: Limits,
    pub(crate) settings: Settings,
    /// Addresses of the host; the first that can be had is listened on.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) host: String,
    /// Certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) grace: Duration,
    pub(crate) quiet: bool,
}

impl Plan {
    /// Checks the flags, and the key of the environment; all problems at once.
    pub(crate) fn new(cli: Cli, environment: Option<OsString>) -> Result<Plan, Vec<String>> {
        let mut problems = Vec::new();
        let mut range = |flag: &str, found: usize, least: usize, most: usize| {
            if found < least || found > most {
                problems.push(format!("--{flag} is {found}, expected {least} to {most}"));
            }
        };
        range("max-tokens", cli.max_tokens, 1, MAX_TOKENS);
        range("slots", cli.slots, 1, MOST_SLOTS);
        range("queue", cli.queue, 0, 1 << 16);
        range("cache-positions", cli.cache_positions, 1, 1 << 30);
        range("keep", cli.keep, 0, 1 << 16);
        range("prefill-piece", cli.prefill_piece, 1, 1 << 20);
        range("max-body", cli.max_body, 1, 1 << 12);
        range("max-images", cli.max_images, 0, 1 << 10);
        range("connections", cli.connections, 1, 1 << 16);
        problems.extend(cli.engine.problem());
        if !(1..=10_000).contains(&cli.max_pixels) {
            problems.push(format!(
                "--max-pixels is {}, expected 1 to 10000 megapixels",
                cli.max_pixels
            ));
        }
        if cli.grace > 86_400 {
            problems.push(format!(
                "--grace is {}, expected at most 86400 seconds",
                cli.grace
            ));
        }
        let name = cli.name.clone().unwrap_or_else(|| About::name_of(&cli.model));
        if !is_name(&name) {
            problems.push("--name is empty or has other letters than `A-Z a-z 0-9 . _ - :`".to_owned());
        }
        let mut origins = Vec::with_capacity(cli.cors_origin.len());
        for origin in &cli.cors_origin {
            match as_sent(origin) {
                Some(origin) => origins.push(origin),
                None => problems.push(format!(
                    "--cors-origin is `{origin}`, expected a scheme and a host, `https://example.org`"
                )),
            }
        }
        let key = key(&cli, environment).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let addresses = addresses(&cli.host, cli.port).unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut names = cli.allow_host.clone();
        names.push(cli.host.clone());
        let hosts = match &key {
            _ if addresses.iter().all(|address| address.ip().is_loopback()) => Hosts::Loopback(names),
            None => Hosts::Addresses(names),
            Some(_) => Hosts::Any,
        };
        Ok(Plan {
            options: cli.engine.options(),
            notices: cli.engine.notices(),
            limits: Limits {
                slots: cli.slots,
                queue: cli.queue,
                cache_positions: cli.cache_positions,
                kept: cli.keep,
                prefill_piece: cli.prefill_piece,
            },
            settings: Settings {
                max_tokens: cli.max_tokens,
                max_body: cli.max_body << 20,
                max_images: cli.max_images,
                max_pixels: cli.max_pixels * 1_000_000,
                context_shift: cli.context_shift,
                fetch_images: cli.fetch_images,
                key,
                hosts,
                origins,
                connections: cli.connections,
                verbose: cli.verbose,
                ..Settings::default()
            },
            name,
            verify: cli.verify,
            addresses,
            host: cli.host,
            tls: cli.tls_cert.zip(cli.tls_key),
            grace: Duration::from_secs(cli.grace),
            quiet: cli.quiet,
            model: cli.model,
        })
    }

    /// What whoever starts it should know, one sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.addresses.iter().any(|address| !address.ip().is_loopback()) {
            if self.settings.key.is_none() {
                warnings.push(format!(
                    "warning: everybody who reaches {} may use this server: --api-key-file FILE makes them know a key",
                    self.host
                ));
            }
            if self.tls.is_none() {
                warnings.push(
                    "warning: without --tls-cert whoever is on the way can read questions, images, answers and the key"
                        .to_owned(),
                );
            }
        }
        warnings.extend(self.notices.iter().cloned());
        warnings
    }
}

/// A name that needs no escapes in an address.
fn is_name(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-' | ':');
    !name.is_empty() && name.chars().all(plain)
}

/// An origin as browsers send it: a scheme, also one of an extension or an app, a host, and a port that is not the scheme's own,
/// in small letters. `None` where it is none.
fn as_sent(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, host) = origin.split_once("://")?;
    let in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let in_host = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'*' | b'@' | b'?' | b'#');
    let is_origin = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(in_scheme)
        && !host.is_empty()
        && host.bytes().all(in_host);
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(own_port).unwrap_or(host);
    is_origin.then(|| format!("{scheme}://{host}"))
}

/// The key: of a flag, of a file, or of the environment.
fn key(cli: &Cli, environment: Option<OsString>) -> Result<Option<Key>, String> {
    let (text, from) = match (&cli.api_key, &cli.api_key_file, environment) {
        (Some(key), _, _) => (key.clone(), "--api-key".to_owned()),
        (None, Some(path), _) => {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let text = tls::bounded(path, MOST_KEY_FILE)
                .and_then(|bytes| String::from_utf8(bytes).map_err(invalid))
                .map_err(|error| format!("cannot read --api-key-file `{}`: {error}", path.display()))?;
            let first = text.lines().next().unwrap_or_default();
            (
                first.to_owned(),
                format!("the first line of `{}`", path.display()),
            )
        }
        (None, None, Some(key)) => (key.to_string_lossy().into_owned(), "FVLM_API_KEY".to_owned()),
        (None, None, None) => return Ok(None),
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{from} is empty or has blanks or letters beyond ASCII, expected a key that a header can carry"
        ));
    }
    Ok(Some(Key::new(&text)))
}

/// Where to listen.
fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let found = (bare.unwrap_or(host), port).to_socket_addrs();
    let found: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
    if found.is_empty() {
        return Err(format!("--host is `{host}`, which has no address here"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn plan(arguments: &[&str]) -> Result<Plan, Vec<String>> {
        let arguments = std::iter::once("fvlm-serve").chain(arguments.iter().copied());
        Plan::new(Cli::try_parse_from(arguments).unwrap(), None)
    }

    #[test]
    fn origins_are_as_browsers_send_them() {
        for (given, sent) in [
            ("https://Example.org:443", "https://example.org"),
            ("http://example.org:443", "http://example.org:443"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("tauri://localhost", "tauri://localhost"),
        ] {
            let plan = plan(&["--cors-origin", given]).unwrap();
            assert_eq!(plan.settings.origins, [sent]);
        }
    }

    #[test]
    fn flags_out_of_range() {
        for (arguments, expected) in [
            (&["--slots", "0"][..], "--slots is 0, expected 1 to"),
            (&["--slots", "100000"], "--slots is 100000"),
            (&["--max-tokens", "0"], "--max-tokens is 0"),
            (&["--cache-positions", "0"], "--cache-positions is 0"),
            (&["--prefill-piece", "0"], "--prefill-piece is 0"),
            (&["--max-body", "0"], "--max-body is 0"),
            (&["--max-pixels", "0"], "--max-pixels is 0"),
            (&["--connections", "0"], "--connections is 0"),
            (&["--threads", "0"], "--threads is 0"),
            (&["--grace", "99999999"], "--grace is"),
            (&["--name", "a b"], "--name"),
            (&["--name", ""], "--name"),
            (&["--cors-origin", "*"], "--cors-origin is `*`"),
            (&["--cors-origin", "https://a/b"], "--cors-origin"),
            (&["--cors-origin", "chrome-extension://"], "--cors-origin"),
            (&["--cors-origin", "app:obsidian.md"], "--cors-origin"),
            (&["--host", "nowhere.invalid"], "--host is `nowhere.invalid`"),
            (&["--api-key", ""], "--api-key is empty"),
            (&["--api-key", "a b"], "--api-key is empty or has blanks"),
            (&["--api-key-file", "/nowhere/key"], "cannot read --api-key-file"),
            #[cfg(unix)]
            (&["--api-key-file", "/dev/zero"], "it has more than 65536 bytes"),
        ] {
            let said = plan(arguments).unwrap_err().join("; ");
            assert!(said.contains(expected), "{arguments:?}: {said}");
        }
    }

    #[test]
    fn addresses_that_others_reach_are_warned_about() {
        let quiet = plan(&[]).unwrap();
        assert!(quiet.warnings().is_empty());
        assert!(matches!(quiet.settings.hosts, Hosts::Loopback(_)));
        for host in ["::1", "[::1]", "127.3.2.1", "localhost"] {
            assert!(plan(&["--host", host]).unwrap().warnings().is_empty(), "{host}");
        }
        let open = plan(&["--host", "0.0.0.0"]).unwrap();
        assert_eq!(open.warnings().len(), 2);
        assert!(matches!(open.settings.hosts, Hosts::Addresses(_)));
        let known = plan(&["--host", "::", "--api-key", "secret"]).unwrap();
        assert_eq!(known.warnings().len(), 1);
        assert_eq!(known.settings.hosts, Hosts::Any);
        assert!(!format!("{known:?}").contains("secret"));
    }

    #[test]
    fn keys_come_from_three_places() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "secret\r\nnot this\n").unwrap();
        let file = path.display().to_string();
        let expected = Some(Key::new("secret"));
        assert_eq!(plan(&["--api-key", "secret"]).unwrap().settings.key, expected);
        assert_eq!(plan(&["--api-key-file", &file]).unwrap().settings.key, expected);
        let cli = Cli::try_parse_from(["fvlm-serve"]).unwrap();
        let plan = Plan::new(cli, Some("secret".into())).unwrap();
        assert_eq!(plan.settings.key, expected);
    }

    #[test]
    fn flags_that_need_each_other() {
        for arguments in [
            &["fvlm-serve", "--tls-cert", "a"][..],
            &["fvlm-serve", "--tls-key", "a"],
            &["fvlm-serve", "--api-key", "a", "--api-key-file", "b"],
            &["fvlm-serve", "--quiet", "--verbose"],
        ] {
            assert!(Cli::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }
}
