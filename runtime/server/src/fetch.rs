//! Images from addresses (`--fetch-images`), without being led into networks that only the server reaches (SSRF).
//!
//! A name is resolved once, every address that it has is looked at, and the connection goes to one of those. A redirect is
//! a new address, which is looked at like the first. What comes is bounded in size and time, and is only ever decoded as
//! an image.

mod reference;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{StatusCode, Uri, header};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Redirects that are followed.
const REDIRECTS: usize = 3;

/// All of it, names and redirects included.
const TIME: Duration = Duration::from_secs(10);

/// Fetches files of the public internet.
#[derive(Debug)]
pub(crate) struct Fetcher {
    agent: Agent,
    most: u64,
}

impl Fetcher {
    /// Files of at most `most` bytes.
    pub(crate) fn new(most: usize) -> Fetcher {
        Fetcher::that_allows(most, is_public)
    }

    /// Another opinion of which addresses are to be connected to, for tests.
    pub(crate) fn that_allows(most: usize, allowed: fn(IpAddr) -> bool) -> Fetcher {
        Fetcher::that_resolves(most, allowed, DefaultResolver::default())
    }

    /// Another opinion of which addresses names have, too.
    pub(crate) fn that_resolves(most: usize, allowed: fn(IpAddr) -> bool, inner: impl Resolver) -> Fetcher {
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The proxy would resolve names, and connect, in our place.
            .proxy(None)
            .accept("image/*")
            .accept_encoding("identity")
            .user_agent(concat!("fvlm-serve/", env!("CARGO_PKG_VERSION")))
            // A connection is not kept for whom it was not made for.
            .max_idle_connections(0)
            .build();
        let resolver = Checked { inner, allowed };
        Fetcher {
            agent: Agent::with_parts(config, DefaultConnector::default(), resolver),
            most: u64::try_from(most).unwrap_or(u64::MAX),
        }
    }

    /// The file at an address; or what is wrong, in words.
    pub(crate) fn fetch(&self, address: &str) -> Result<Vec<u8>, String> {
        let end = Instant::now() + TIME;
        let mut uri = checked(address)?;
        for _ in 0..=REDIRECTS {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("it took over {} s", TIME.as_secs()));
            }
            let request = self.agent.get(&uri).config().timeout_global(Some(left)).build();
            let mut response = request.call().map_err(|error| said(&error))?;
            match response.status() {
                StatusCode::OK => {
                    let body = response.body_mut().with_config().limit(self.most);
                    return body.read_to_vec().map_err(|error| said(&error));
                }
                status if status.is_redirection() => {
                    let target = response.headers().get(header::LOCATION);
                    let target = target.ok_or("a redirect without a target")?.as_bytes();
                    uri = checked(&reference::resolved(&uri, &reference::escaped(target)))?;
                }
                status => return Err(format!("the answer is {status}, expected 200 OK")),
            }
        }
        Err(format!("more than {REDIRECTS} redirects"))
    }
}

/// An address that may be asked for: of the web, and without a password in it.
fn checked(address: &str) -> Result<Uri, String> {
    let uri: Uri = address.parse().map_err(|_| "it is no address".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("expected http:// or https://".to_owned());
    }
    match uri.authority() {
        Some(authority) if !authority.as_str().contains('@') => Ok(uri),
        _other => Err("expected a host without a user before it".to_owned()),
    }
}

/// An error without what it would tell about networks here.
fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BodyExceedsLimit(most) => format!("it has over {most} bytes"),
        ureq::Error::Timeout(_) => format!("it took over {} s", TIME.as_secs()),
        ureq::Error::HostNotFound => "the host is not found".to_owned(),
        ureq::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<NotPublic>()) => {
            NotPublic.to_string()
        }
        _other => "the server there does not answer as one should".to_owned(),
    }
}

/// Resolves names, and refuses those that lead into other networks than the public one.
#[derive(Debug)]
struct Checked<R> {
    inner: R,
    allowed: fn(IpAddr) -> bool,
}

impl<R: Resolver> Resolver for Checked<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        if found.iter().all(|address| (self.allowed)(address.ip())) {
            Ok(found)
        } else {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, NotPublic);
            Err(ureq::Error::Io(error))
        }
    }
}

/// An address is not one of the public internet.
#[derive(Debug)]
struct NotPublic;

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host is not one of the public internet")
    }
}

impl std::error::Error for NotPublic {}

/// Whether anybody on the internet may have this address; after the registries of special addresses of RFC 6890.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Networks of IPv4 that are not public: the first address, and how many bits of it count.
const V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    let inside = |(network, bits): &(Ipv4Addr, u32)| {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        address.to_bits() & mask == network.to_bits()
    };
    !V4.iter().any(inside)
}

/// Only 2000::/3 is given out; in it are documentation, and tunnels (6to4, Teredo and others of 2001::/23), which end at any
/// address of IPv4. Addresses that hold one of IPv4 (::ffff:0:0/96, 64:ff9b::/96) are outside of it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let global = first & 0xe000 == 0x2000;
    let tunnel = first == 0x2002 || (first == 0x2001 && second < 0x0200);
    let documentation = (first == 0x2001 && second == 0x0db8) || (first == 0x3fff && second < 0x1000);
    global && !tunnel && !documentation
}
