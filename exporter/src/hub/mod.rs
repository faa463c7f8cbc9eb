//! How does a model come from the hub? What is needed of it, once, into the cache that Hugging Face's own tools share.
//!
//! `hf-hub` knows the protocol, the layout of the cache and how a broken-off file goes on. What it leaves to its caller
//! is here: which files, all of one commit; when to try again and when to give up; and whether what arrived is what was
//! announced. Lengths are compared when a file arrives, hashes when the export reads it ([`stated_sha256`]).

mod cache;
mod needed;
mod transfer;

pub(crate) use cache::{Settings, stated_sha256};

use crate::error::{ExportError, HubProblem};
use crate::files;
use crate::report::{Phase, Report};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use models::config::ModelConfig;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use transfer::{Trouble, pause, watched};

/// Calls in a row that bring nothing before a file is given up.
const ATTEMPTS: u32 = 5;
/// The pause after the first of them; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

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
    id: &str,
    revision: &str,
    download: bool,
    report: &mut dyn Report,
) -> Result<Snapshot, ExportError> {
    let cached = settings.snapshot(id, revision);
    let from_cache = |warnings: Vec<String>| {
        if cached.is_dir() {
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
    let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_user_agent("fvlm-export", env!("CARGO_PKG_VERSION"))
        .build();
    let problem = |problem| ExportError::Hub {
        id: id.to_owned(),
        revision: revision.to_owned(),
        endpoint: settings.endpoint.clone(),
        problem,
    };
    let api = api.map_err(|error| problem(failure(&error, settings)))?;
    let connection = Connection {
        settings,
        api,
        id,
        problem: &problem,
    };
    let listing = match connection.listing(revision, report) {
        Err(ExportError::Hub { problem, .. }) if problem.passing() && cached.is_dir() => {
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
            listing,
            commit,
            cache,
            named,
        }
    }

    /// Those that are not here in the announced length.
    fn missing<'a>(&self, wanted: &[&'a Sibling]) -> Vec<&'a Sibling> {
        let here = |sibling: &Sibling| {
            let found = std::fs::metadata(self.directory.join(&sibling.name));
            found.is_ok_and(|found| sibling.size.is_none_or(|size| size == found.len()))
        };
        wanted.iter().copied().filter(|sibling| !here(sibling)).collect()
    }
}

/// The hub, about one model.
struct Connection<'a> {
    settings: &'a Settings,
    api: Api,
    id: &'a str,
    problem: &'a dyn Fn(HubProblem) -> ExportError,
}

impl Connection<'_> {
    /// What there is at a revision.
    fn listing(&self, revision: &str, report: &mut dyn Report) -> Result<Listing, ExportError> {
        let repo = Repo::with_revision(self.id.to_owned(), RepoType::Model, revision.to_owned());
        self.persistently("the list of files", report, |report, _told| {
            let repo = self.api.repo(repo.clone());
            watched(self.settings.patience, report, &mut 0, move |_counter| {
                let mut response = repo
                    .info_request()
                    .query("blobs", "true")
                    .call()
                    .map_err(Box::new)?;
                Ok(response.body_mut().read_json::<Listing>().map_err(Box::new)?)
            })
        })
    }

    /// Downloads what is missing: small files, then, if they are those of a FastVLM, the weights.
    fn complete(&self, place: &Place, download: bool, report: &mut dyn Report) -> Result<(), ExportError> {
        let siblings = &place.listing.siblings;
        let small = needed::small(siblings);
        let weights = || {
            needed::weights(siblings, &place.directory)
                .map_err(|what| (self.problem)(HubProblem::Protocol { what }))
        };
        if !download {
            let wanted: Vec<&Sibling> = small.iter().copied().chain(weights()?).collect();
            let missing = place.missing(&wanted);
            if missing.is_empty() {
                return Ok(());
            }
            return Err(ExportError::NotDownloaded {
                id: self.id.to_owned(),
                bytes: missing.iter().filter_map(|sibling| sibling.size).sum(),
                files: missing.iter().map(|sibling| sibling.name.clone()).collect(),
            });
        }
        self.fetch(place, &small, report)?;
        let weights = weights()?;
        if weights.is_empty() || !place.directory.join("config.json").exists() {
            let found = siblings.iter().map(|sibling| sibling.name.clone()).collect();
            return Err((self.problem)(HubProblem::NoCheckpoint { found }));
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
        let bytes = missing.iter().filter_map(|sibling| sibling.size).sum();
        std::fs::create_dir_all(&self.settings.cache)
            .map_err(ExportError::io("create", &self.settings.cache))?;
        files::check_space(&self.settings.cache, &self.settings.cache, bytes)?;
        report.start(Phase::Download, bytes);
        for sibling in missing {
            report.file(&sibling.name);
            self.file(place, sibling, report)?;
        }
        Ok(())
    }

    /// One file, in as many pieces as the network makes of it.
    fn file(&self, place: &Place, sibling: &Sibling, report: &mut dyn Report) -> Result<(), ExportError> {
        let name = &sibling.name;
        let pointer = place.directory.join(name);
        // A broken link, or a file of another length, would be believed.
        if pointer.symlink_metadata().is_ok() {
            std::fs::remove_file(&pointer).map_err(ExportError::io("remove", &pointer))?;
        }
        let url = self.api.repo(place.commit.clone()).url(name);
        let announced = self.persistently(name, report, |report, _told| {
            let (api, url) = (self.api.clone(), url.clone());
            watched(self.settings.patience, report, &mut 0, move |_counter| {
                api.metadata(&url)
            })
        })?;
        let size = u64::try_from(announced.size()).unwrap_or(u64::MAX);
        if let Some(listed) = sibling.size.filter(|listed| *listed != size) {
            return Err((self.problem)(HubProblem::Size {
                file: name.clone(),
                announced: listed,
                found: size,
            }));
        }
        let etag = announced.etag();
        let plain = !etag.is_empty()
            && etag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain || announced.commit_hash() != place.listing.sha {
            let what = format!(
                "`{name}` has ETag `{etag}` and is of commit `{}`",
                announced.commit_hash()
            );
            return Err((self.problem)(HubProblem::Protocol { what }));
        }
        let blob = place.cache.blob_path(etag);
        let part = blob.with_extension("part");
        // hf-hub goes on from whatever there is: only a beginning is of use.
        if std::fs::metadata(&part).is_ok_and(|found| found.len() > size) {
            std::fs::remove_file(&part).map_err(ExportError::io("remove", &part))?;
        }
        self.persistently(name, report, |report, told| {
            let name = name.clone();
            let repo = self.api.repo(place.commit.clone());
            watched(self.settings.patience, report, told, move |counter| {
                repo.download_with_progress(&name, counter)
            })?;
            match std::fs::metadata(&pointer).map(|found| found.len()) {
                Ok(found) if found == size => Ok(()),
                Ok(found) => {
                    // It was called whole; it is a part, or nothing of use.
                    drop(std::fs::remove_file(&pointer));
                    drop(if found < size {
                        std::fs::rename(&blob, &part)
                    } else {
                        std::fs::remove_file(&blob)
                    });
                    let what = format!("{found} bytes arrived, {size} were announced");
                    Err(Trouble::Failed(ApiError::IoError(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        what,
                    ))))
                }
                Err(error) => Err(Trouble::Failed(ApiError::IoError(error))),
            }
        })
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
            let problem = match trouble {
                Trouble::Interrupted => return Err(self.interrupted()),
                Trouble::Silent => HubProblem::Silent {
                    what: what.to_owned(),
                    seconds: self.settings.patience.as_secs(),
                },
                Trouble::Lost => HubProblem::Protocol {
                    what: format!("no thread for {what}"),
                },
                Trouble::Failed(ApiError::IoError(source)) if local(&source) => {
                    return Err(ExportError::Io {
                        action: "download to",
                        path: self.settings.cache.clone(),
                        source,
                    });
                }
                Trouble::Failed(error) => failure(&error, self.settings),
            };
            if attempt == ATTEMPTS || !problem.passing() || matches!(problem, HubProblem::Silent { .. }) {
                return Err((self.problem)(problem));
            }
            if pause(PAUSE * (1 << (attempt - 1)), report).is_err() {
                return Err(self.interrupted());
            }
        }
    }

    fn interrupted(&self) -> ExportError {
        ExportError::InterruptedDownload {
            cache: self.settings.cache.clone(),
        }
    }
}

/// Whether it is this machine that refuses, not the network.
fn local(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
    )
}

/// What an error of hf-hub means.
fn failure(error: &ApiError, settings: &Settings) -> HubProblem {
    match error {
        ApiError::RequestError(request) => match request.as_ref() {
            ureq::Error::StatusCode(code) => HubProblem::Status {
                code: *code,
                token: settings.token.is_some(),
            },
            ureq::Error::Json(_) | ureq::Error::BadUri(_) | ureq::Error::Http(_) => HubProblem::Protocol {
                what: request.to_string(),
            },
            other => HubProblem::Unreachable {
                reason: other.to_string(),
            },
        },
        ApiError::IoError(error) => HubProblem::BrokenOff {
            reason: error.to_string(),
        },
        ApiError::TooManyRetries(error) => failure(error, settings),
        ApiError::LockAcquisition(path) => HubProblem::Busy { lock: path.clone() },
        other => HubProblem::Protocol {
            what: other.to_string(),
        },
    }
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
