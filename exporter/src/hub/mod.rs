//! How does a model come from the hub? What is needed of it, once, into the cache that Hugging Face's own tools share.
//!
//! `hf-hub` knows the layout of the cache and the addresses of files. Their list and they themselves are fetched here: `hf-hub` 0.5
//! asks about each file a second time and believes that answer unseen, shows the token to whom it is sent on to (where the list is, to
//! every port of the hub's host), and looks neither for what the cache has under another commit nor at how much arrives. Lengths are compared when a file arrives, hashes when the export reads it
//! ([`stated_sha256`]).

mod cache;
mod counter;
mod file;
mod needed;
mod transfer;

pub(crate) use cache::{Settings, stated_sha256};
pub(crate) use needed::Wanted;

use crate::error::{ExportError, HubProblem};
use crate::files;
use crate::report::{Phase, Report};
use file::{Announced, Client, Fault};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use models::checkpoint::{MAX_INDEX, check_adapter_config};
use models::config::ModelConfig;
use serde::Deserialize;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use transfer::{TICK, Trouble, pause, watched};

/// Calls in a row that bring nothing before a file is given up.
const ATTEMPTS: u32 = 5;
/// The pause after the first of them; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Files that a complaint names.
const MAX_NAMED: usize = 20;

/// A model in the cache.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Its files, one commit.
    pub(crate) directory: PathBuf,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    name: String,
    /// Bytes, if the hub says so.
    size: Option<u64>,
}

/// What the hub says about a revision.
#[derive(Debug, Deserialize)]
struct Listing {
    /// The commit.
    sha: String,
    siblings: Vec<Sibling>,
}

/// Brings what is needed of a model into the cache; without `download`, only looks whether it is there.
///
/// # Errors
/// [`ExportError::Hub`], [`ExportError::NotCached`], no space, an interruption: what has arrived by then stays, and the
/// next call goes on from there.
pub(crate) fn snapshot(
    settings: &Settings,
    wanted: Wanted,
    id: &str,
    revision: &str,
    download: bool,
    report: &mut dyn Report,
) -> Result<Snapshot, ExportError> {
    let cached = settings.snapshot(id, revision);
    let from_cache = |mut warnings: Vec<String>| {
        if wanted.is_whole(&cached) {
            warnings.extend(wanted.unknown(&cached, id));
            return Ok(Snapshot {
                directory: cached.clone(),
                warnings,
            });
        }
        Err(ExportError::NotCached {
            id: id.to_owned(),
            revision: revision.to_owned(),
            looked: cached.clone(),
        })
    };
    if settings.offline {
        return from_cache(Vec::new());
    }
    let problem = |problem| ExportError::Hub {
        id: id.to_owned(),
        revision: revision.to_owned(),
        endpoint: settings.endpoint.clone(),
        problem,
    };
    settings.check().map_err(problem)?;
    let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_user_agent("fvlm-export", env!("CARGO_PKG_VERSION"))
        .build();
    let api = api.map_err(|error| {
        let what = error.to_string();
        problem(HubProblem::Protocol { what })
    })?;
    let connection = Connection {
        settings,
        api,
        client: Client::new(settings),
        wanted,
        id,
        refuse: &problem,
    };
    let listing = match connection.listing(revision, report) {
        Err(ExportError::Hub { problem, .. }) if problem.passing() && wanted.is_whole(&cached) => {
            let warning = format!("{} {problem}; what the cache has is used", settings.endpoint);
            return from_cache(vec![warning]);
        }
        listing => listing?,
    };
    // Whoever answers does not choose where on this disk it is written.
    if listing.sha.is_empty() || !listing.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let what = format!("`{}` is no commit", listing.sha);
        return Err(problem(HubProblem::Protocol { what }));
    }
    let place = Place::new(settings, id, revision, listing);
    connection.complete(&place, download, report)?;
    if download && revision != place.listing.sha {
        let written = place.named.create_ref(&place.listing.sha);
        written.map_err(ExportError::io("write a reference in", &settings.cache))?;
    }
    Ok(Snapshot {
        directory: place.directory,
        warnings: Vec::new(),
    })
}

/// Where the files of one commit are.
struct Place {
    listing: Listing,
    commit: Repo,
    /// Locks of files that are being downloaded: those of `huggingface_hub`.
    locks: PathBuf,
    /// The cache, for the commit.
    cache: CacheRepo,
    /// The cache, under the name that was asked for.
    named: CacheRepo,
    /// The commit's directory in the cache.
    directory: PathBuf,
}

impl Place {
    fn new(settings: &Settings, id: &str, revision: &str, listing: Listing) -> Self {
        let commit = Repo::with_revision(id.to_owned(), RepoType::Model, listing.sha.clone());
        let named = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let cache = Cache::new(settings.cache.clone());
        let named = cache.repo(named);
        let cache = cache.repo(commit.clone());
        Place {
            directory: cache.pointer_path(&listing.sha),
            locks: settings.cache.join(".locks").join(commit.folder_name()),
            listing,
            commit,
            cache,
            named,
        }
    }

    /// Those that are not here in the announced length.
    fn missing<'a>(&self, wanted: &[&'a Sibling]) -> Vec<&'a Sibling> {
        let here = |sibling: &Sibling| {
            let found = fs::metadata(self.directory.join(&sibling.name));
            found.is_ok_and(|found| sibling.size.is_none_or(|size| size == found.len()))
        };
        wanted.iter().copied().filter(|sibling| !here(sibling)).collect()
    }
}

/// The hub, about one model.
struct Connection<'a> {
    settings: &'a Settings,
    /// For addresses of files.
    api: Api,
    /// For what is asked.
    client: Client,
    wanted: Wanted,
    id: &'a str,
    refuse: &'a dyn Fn(HubProblem) -> ExportError,
}

impl Connection<'_> {
    /// What there is at a revision.
    fn listing(&self, revision: &str, report: &mut dyn Report) -> Result<Listing, ExportError> {
        // Slashes of a revision are part of its name.
        let revision = escaped(revision).replace('/', "%2F");
        let Settings { endpoint, .. } = self.settings;
        let url = format!("{endpoint}/api/models/{}/revision/{revision}?blobs=true", self.id);
        self.persistently("the list of files", report, |report, _told| {
            let (client, url) = (self.client.clone(), url.clone());
            watched(self.settings.patience, report, &mut 0, move |_counter| {
                client.json::<Listing>(&url)
            })
        })
    }

    /// Downloads what is missing: small files, then, if they are those of a FastVLM or of an adapter, the weights.
    fn complete(&self, place: &Place, download: bool, report: &mut dyn Report) -> Result<(), ExportError> {
        let siblings = &place.listing.siblings;
        let small = self.wanted.small(siblings);
        let weights = || {
            let weights = self.wanted.weights(siblings, &place.directory);
            weights.map_err(|problem| (self.refuse)(problem))
        };
        if self.wanted == Wanted::Adapter {
            // The list alone says whether there is one.
            weights()?;
        }
        if !download {
            let wanted: Vec<&Sibling> = small.iter().copied().chain(weights()?).collect();
            let missing = place.missing(&wanted);
            if missing.is_empty() {
                return Ok(());
            }
            return Err(ExportError::NotDownloaded {
                id: self.id.to_owned(),
                bytes: bytes(&missing),
                files: missing.iter().map(|sibling| sibling.name.clone()).collect(),
            });
        }
        let long = |sibling: &&&Sibling| sibling.size.is_some_and(|size| size > MAX_INDEX);
        if let Some(sibling) = small.iter().find(long) {
            let (name, size) = (&sibling.name, sibling.size.unwrap_or(u64::MAX));
            let what = format!("`{name}` has {size} bytes, at most {MAX_INDEX} are read");
            return Err((self.refuse)(HubProblem::Protocol { what }));
        }
        self.fetch(place, &small, report)?;
        let weights = weights()?;
        if self.wanted == Wanted::Adapter {
            check_adapter_config(&place.directory)?;
            return self.fetch(place, &weights, report);
        }
        if weights.is_empty() || !place.directory.join("config.json").exists() {
            let found = siblings.iter().take(MAX_NAMED).map(named);
            let more = siblings.len().saturating_sub(MAX_NAMED);
            let more = (more > 0).then(|| format!("and {more} more"));
            let found = found.chain(more).collect();
            return Err((self.refuse)(HubProblem::NoCheckpoint { found }));
        }
        // Gigabytes of another architecture would be for nothing.
        ModelConfig::open(&place.directory)?;
        self.fetch(place, &weights, report)
    }

    fn fetch(&self, place: &Place, wanted: &[&Sibling], report: &mut dyn Report) -> Result<(), ExportError> {
        let missing = place.missing(wanted);
        if missing.is_empty() {
            return Ok(());
        }
        report.start(Phase::Download, bytes(&missing));
        for sibling in missing {
            report.file(&sibling.name);
            self.file(place, sibling, report)?;
        }
        Ok(())
    }

    /// What the hub says of a file, if it agrees with its list and can be believed.
    fn announced(
        &self,
        place: &Place,
        sibling: &Sibling,
        url: &str,
        report: &mut dyn Report,
    ) -> Result<Announced, ExportError> {
        let name = &sibling.name;
        let announced = self.persistently(name, report, |report, _told| {
            let (client, url) = (self.client.clone(), url.to_owned());
            watched(self.settings.patience, report, &mut 0, move |_counter| {
                client.announced(&url)
            })
        })?;
        if let Some(listed) = sibling.size.filter(|listed| *listed != announced.size) {
            return Err((self.refuse)(HubProblem::Size {
                file: name.clone(),
                announced: listed,
                found: announced.size,
            }));
        }
        // Whoever answers does not choose where on this disk it is written.
        let Announced { etag, commit, .. } = &announced;
        let plain = !etag.is_empty()
            && etag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain || *commit != place.listing.sha {
            let what = format!("`{name}` has ETag `{etag}` and is of commit `{commit}`");
            return Err((self.refuse)(HubProblem::Protocol { what }));
        }
        Ok(announced)
    }

    /// One file, in as many pieces as the network makes of it.
    fn file(&self, place: &Place, sibling: &Sibling, report: &mut dyn Report) -> Result<(), ExportError> {
        let name = &sibling.name;
        let url = self.api.repo(place.commit.clone()).url(&escaped(name));
        let Announced { etag, size, .. } = self.announced(place, sibling, &url, report)?;
        let blob = place.cache.blob_path(&etag);
        let part = blob.with_extension("part");
        for path in [&blob, &place.directory.join(name)] {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder).map_err(ExportError::io("create", folder))?;
        }
        let _lock = self.lock(place, &etag, &part, report)?;
        if length(&blob) == Some(size) {
            // Of another commit, or by another program.
            report.advance(size);
        } else {
            let here = length(&part).unwrap_or(0);
            let cache = &self.settings.cache;
            files::check_space(cache, cache, size.saturating_sub(here))?;
            self.bring(name, &url, &part, size, report)?;
            // What others left there may be something else.
            let stated = Some(&etag).filter(|etag| here > 0 && etag.len() == 64);
            if let Some(stated) = stated
                && !files::hash_file(&part, &|| report.interrupted())?
                    .1
                    .eq_ignore_ascii_case(stated)
            {
                fs::remove_file(&part).map_err(ExportError::io("remove", &part))?;
                self.bring(name, &url, &part, size, report)?;
            }
            fs::rename(&part, &blob).map_err(ExportError::io("rename to", &blob))?;
        }
        let depth = Path::new(name).components().count();
        link(&blob, &place.directory.join(name), depth, size)
    }

    /// Makes a part whole.
    fn bring(
        &self,
        name: &str,
        url: &str,
        part: &Path,
        size: u64,
        report: &mut dyn Report,
    ) -> Result<(), ExportError> {
        self.persistently(name, report, |report, told| {
            let (client, url, part) = (self.client.clone(), url.to_owned(), part.to_owned());
            watched(self.settings.patience, report, told, move |counter| {
                client.fetch(&url, &part, size, &counter)
            })
        })
    }

    /// Waits until nobody else downloads the file, as long as somebody does.
    fn lock(
        &self,
        place: &Place,
        etag: &str,
        part: &Path,
        report: &mut dyn Report,
    ) -> Result<File, ExportError> {
        let path = place.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&place.locks).map_err(ExportError::io("create", &place.locks))?;
        let file = models::regular::open_or_create(&path).map_err(ExportError::io("create", &path))?;
        // Ours, and that of `huggingface_hub`, which takes the same lock.
        let here = || (length(part), length(&part.with_extension("incomplete")));
        let mut last = (here(), Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => {}
                // A file system without locks: as if nobody else were there.
                Err(fs::TryLockError::Error(_)) => return Ok(file),
            }
            if here() != last.0 {
                last = (here(), Instant::now());
            }
            if last.1.elapsed() > self.settings.patience {
                return Err((self.refuse)(HubProblem::Busy { lock: path }));
            }
            pause(TICK, report).map_err(|_| self.interrupted())?;
        }
    }

    /// Calls until it works, longer and longer apart, as long as more arrives or attempts are left. `call` gets how many bytes
    /// of its file were told to the report.
    fn persistently<T>(
        &self,
        what: &str,
        report: &mut dyn Report,
        mut call: impl FnMut(&mut dyn Report, &mut u64) -> Result<T, Trouble>,
    ) -> Result<T, ExportError> {
        let mut told = 0;
        let (mut attempt, mut before) = (0, 0);
        loop {
            let trouble = match call(report, &mut told) {
                Ok(value) => return Ok(value),
                Err(trouble) => trouble,
            };
            if told > before {
                (attempt, before) = (0, told);
            }
            attempt += 1;
            let problem = self.problem(trouble, what)?;
            if attempt == ATTEMPTS || !problem.passing() || matches!(problem, HubProblem::Silent { .. }) {
                return Err((self.refuse)(problem));
            }
            if pause(PAUSE * (1 << (attempt - 1)), report).is_err() {
                return Err(self.interrupted());
            }
        }
    }

    /// What the hub did instead of giving what was asked for.
    ///
    /// # Errors
    /// It was not the hub.
    fn problem(&self, trouble: Trouble, what: &str) -> Result<HubProblem, ExportError> {
        let what = what.to_owned();
        Ok(match trouble {
            Trouble::Interrupted => return Err(self.interrupted()),
            Trouble::Failed(Fault::Local { action, path, source }) => {
                return Err(ExportError::Io { action, path, source });
            }
            Trouble::Silent | Trouble::Failed(Fault::Abandoned) => HubProblem::Silent {
                what,
                seconds: self.settings.patience.as_secs(),
            },
            Trouble::Lost => HubProblem::Unreachable {
                reason: format!("no thread to ask for {what}"),
            },
            Trouble::Failed(Fault::Status(code)) => HubProblem::Status {
                code,
                what,
                token: self.settings.token.is_some(),
            },
            Trouble::Failed(Fault::Request(error)) => HubProblem::Unreachable {
                reason: error.to_string(),
            },
            Trouble::Failed(Fault::BrokenOff(error)) => HubProblem::BrokenOff {
                reason: format!("{what}: {error}"),
            },
            Trouble::Failed(Fault::Protocol(problem)) => HubProblem::Protocol {
                what: format!("{what}: {problem}"),
            },
        })
    }

    fn interrupted(&self) -> ExportError {
        ExportError::InterruptedDownload {
            cache: self.settings.cache.clone(),
        }
    }
}

/// A file's name as part of an address (RFC 3986, `unreserved`).
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/');
    name.bytes().fold(String::new(), |mut text, byte| {
        if plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

/// A name in one line.
fn named(sibling: &Sibling) -> String {
    sibling.name.replace(char::is_control, "\u{fffd}")
}

fn bytes(siblings: &[&Sibling]) -> u64 {
    let sizes = siblings.iter().filter_map(|sibling| sibling.size);
    sizes.fold(0, u64::saturating_add)
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.len())
}

/// Puts a file of the cache where the commit has it, under a name of `depth` parts: as a link, or itself where there are
/// no links.
fn link(blob: &Path, pointer: &Path, depth: usize, size: u64) -> Result<(), ExportError> {
    if length(pointer) == Some(size) {
        return Ok(());
    }
    // A broken link, or a file of another length, would be believed.
    match fs::remove_file(pointer) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ExportError::io("remove", pointer)(error));
        }
        _removed_or_not_there => {}
    }
    // Part by part: Windows takes no slashes in a link.
    let mut target: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, pointer);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, pointer);
    if length(pointer) == Some(size) {
        return Ok(());
    }
    if linked.is_ok() {
        // It leads elsewhere: to a cache that is somewhere else itself, say.
        fs::remove_file(pointer).map_err(ExportError::io("remove", pointer))?;
    }
    fs::rename(blob, pointer).map_err(ExportError::io("rename to", pointer))
}

/// A file's hash is what the cache's name for it states.
///
/// # Errors
/// [`ExportError::DamagedCache`].
pub(crate) fn check_hash(path: &Path, sha256: &str) -> Result<(), ExportError> {
    match stated_sha256(path) {
        Some(stated) if stated != sha256 => Err(ExportError::DamagedCache {
            path: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
            stated,
            found: sha256.to_owned(),
        }),
        _same_or_not_stated => Ok(()),
    }
}
