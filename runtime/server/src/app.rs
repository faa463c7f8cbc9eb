//! The server behind the paths: what it serves, within which bounds, and for whom.

use crate::about::About;
use crate::budget::Budget;
use crate::fetch::Fetcher;
use crate::guard::{Hosts, Key};
use crate::metrics::Metrics;
use crate::pictures;
use crate::work::Worker;
use runtime::image::Limits;
use runtime::text::Tokenizer;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

/// Bytes that decoded images which wait may take at least, whatever the flags say.
const PICTURES: u64 = 1 << 30;

/// Bytes of bodies that are being read or decoded at once, and of text that waits, at least.
const BODIES: u64 = 256 << 20;

/// Images that are decoded at once.
const DECODERS: usize = 2;

/// Images that are fetched at once.
const FETCHES: usize = 4;

/// What the flags say.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tokens of an answer where the request does not say how many.
    pub max_tokens: usize,
    /// Bytes of a body.
    pub max_body: usize,
    /// Images of a request.
    pub max_images: usize,
    /// Pixels of an image, and of all images of a request together.
    pub max_pixels: u64,
    /// Whether the oldest turns may be left out where the context is full.
    pub context_shift: bool,
    /// Whether images are fetched from addresses.
    pub fetch_images: bool,
    /// What a client must know.
    pub key: Option<Key>,
    /// By which names the server may be called.
    pub hosts: Hosts,
    /// Pages of others that may use the server.
    pub origins: Vec<String>,
    /// Connections at once.
    pub connections: usize,
    /// How long a client may take for the head of a request, and for a TLS handshake.
    pub head_timeout: Duration,
    /// How long it may take for a body.
    pub body_timeout: Duration,
    /// How long it may leave unread what is sent to it.
    pub write_timeout: Duration,
    /// Whether each request is written to stderr.
    pub verbose: bool,
}

impl Default for Settings {
    /// What `fvlm-serve` does without flags.
    fn default() -> Settings {
        Settings {
            max_tokens: runtime::DEFAULT_MAX_TOKENS,
            max_body: 32 << 20,
            max_images: 16,
            max_pixels: 50_000_000,
            context_shift: false,
            fetch_images: false,
            key: None,
            hosts: Hosts::Loopback(Vec::new()),
            origins: Vec::new(),
            connections: 256,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            verbose: false,
        }
    }
}

/// What tokens stand for.
pub trait Words: std::fmt::Debug + Send + Sync + 'static {
    /// The bytes of a token, perhaps a part of a character.
    fn bytes(&self, id: i64) -> Vec<u8>;
}

impl Words for Tokenizer {
    fn bytes(&self, id: i64) -> Vec<u8> {
        Tokenizer::bytes(self, id).unwrap_or_default()
    }
}

/// The server, for all connections.
pub struct App {
    pub(crate) words: Box<dyn Words>,
    pub(crate) worker: Arc<dyn Worker>,
    pub(crate) about: About,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) fetcher: Fetcher,
    /// Memory of bodies, and of text that waits.
    pub(crate) bodies: Budget,
    /// Memory of decoded images.
    pub(crate) pictures: Budget,
    pub(crate) decoders: Semaphore,
    pub(crate) fetches: Semaphore,
    pub(crate) interface: Value,
    /// Set once the server is to stop.
    pub(crate) ending: AtomicBool,
    pub(crate) begun: SystemTime,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let App { about, settings, .. } = self;
        f.debug_struct("App")
            .field("about", about)
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

impl App {
    /// A server of what `worker` answers.
    pub fn new(worker: Arc<dyn Worker>, words: Box<dyn Words>, about: About, settings: Settings) -> App {
        let body = u64::try_from(settings.max_body).unwrap_or(u64::MAX);
        App {
            worker,
            words,
            fetcher: Fetcher::new(settings.max_body),
            bodies: Budget::new(BODIES.max(body.saturating_mul(4))),
            pictures: Budget::new(PICTURES.max(settings.max_pixels.saturating_mul(pictures::BYTES))),
            decoders: Semaphore::new(DECODERS),
            fetches: Semaphore::new(FETCHES),
            interface: crate::interface::document(),
            metrics: Metrics::default(),
            about,
            settings,
            ending: AtomicBool::new(false),
            begun: SystemTime::now(),
        }
    }

    pub(crate) fn image_limits(&self) -> Limits {
        Limits {
            max_pixels: self.settings.max_pixels,
        }
    }
}
