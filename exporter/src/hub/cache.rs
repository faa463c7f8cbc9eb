//! Where do Hugging Face's own tools keep what they downloaded, and what do they believe about the hub?
//!
//! The variables are those of `huggingface_hub` (its documentation, "Environment variables").

use crate::error::HubProblem;
use hf_hub::Repo;
use models::regular;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the environment says about the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The directory with a `models--ORG--NAME` for each model.
    pub(crate) cache: PathBuf,
    /// `https://huggingface.co`, or whatever answers in its place; no slash at the end.
    pub(crate) endpoint: String,
    /// Sent as a bearer token.
    pub(crate) token: Option<String>,
    /// Only the cache is used.
    pub(crate) offline: bool,
    /// How long the hub may be silent.
    pub(crate) patience: Duration,
}

/// The home of users who have none, as Debian writes it: nothing is there.
const NO_HOME: &str = "/nonexistent";

/// Longest token, and longest name of a commit, with what is around it.
const MOST_BYTES: u64 = 1 << 16;

/// How long the hub may be silent unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

impl Settings {
    /// What the process's environment says.
    pub(crate) fn from_env() -> Self {
        Settings::of(|name| match name {
            // Where no variable says it, the system may.
            "HOME" => std::env::home_dir().map(OsString::from),
            _ => std::env::var_os(name),
        })
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let user = set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        // Never relative: that would be the current folder, which may be anybody's.
        let user = user.unwrap_or_else(|| PathBuf::from(NO_HOME));
        let path = |name: &str| set(name).map(|value| expanded(PathBuf::from(value), &user));
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
            cache.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let yes = |name: &str| {
            let value = text(name).unwrap_or_default().to_ascii_uppercase();
            matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| regular::text(&token_file, MOST_BYTES).ok())
            .filter(|_| !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let token = token.map(|token| token.trim().to_owned());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse::<u64>().ok());
        Settings {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            patience: seconds
                .filter(|seconds| *seconds > 0)
                .map_or(PATIENCE, Duration::from_secs),
        }
    }

    /// Whether the hub can be asked with these.
    ///
    /// # Errors
    /// [`HubProblem::Setting`], the first.
    pub(crate) fn check(&self) -> Result<(), HubProblem> {
        let problem = |variable, problem: &str| HubProblem::Setting {
            variable,
            problem: problem.to_owned(),
        };
        let address = self.endpoint.strip_prefix("http://");
        let address = address.or_else(|| self.endpoint.strip_prefix("https://"));
        if address.is_none_or(str::is_empty) {
            return Err(problem("HF_ENDPOINT", "is no http:// or https:// address"));
        }
        let token = self.token.as_deref().unwrap_or_default();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(problem(
                "HF_TOKEN",
                "(or the file with the token) has characters that no token has",
            ));
        }
        Ok(())
    }

    /// The directory of a revision: a branch or tag by its entry in `refs`, or a commit.
    pub(crate) fn snapshot(&self, id: &str, revision: &str) -> PathBuf {
        let model = self.cache.join(Repo::model(id.to_owned()).folder_name());
        let commit = match regular::text(&model.join("refs").join(revision), MOST_BYTES) {
            Ok(commit) if !commit.trim().is_empty() => commit.trim().to_owned(),
            _none => revision.to_owned(),
        };
        model.join("snapshots").join(commit)
    }
}

/// With the user's directory in the place of `~`.
fn expanded(path: PathBuf, user: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => user.join(rest),
        Err(_) => path,
    }
}

/// The SHA-256 that the cache's name of a file states: large files are links to blobs that are called by it.
pub(crate) fn stated_sha256(path: &Path) -> Option<String> {
    let blob = std::fs::read_link(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    let hex = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex && blob.parent()?.ends_with("blobs")).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::of(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn cache_by_the_variables_of_the_hub() {
        let cases: [(&[(&str, &str)], &str); 8] = [
            // Not the current folder.
            (&[], "/nonexistent/.cache/huggingface/hub"),
            (&[("HF_HOME", "~/b"), ("HOME", "c")], "c/b/hub"),
            (&[("HF_HUB_CACHE", "a"), ("HF_HOME", "b"), ("HOME", "c")], "a"),
            (&[("HUGGINGFACE_HUB_CACHE", "a"), ("HF_HOME", "b")], "a"),
            (&[("HF_HOME", "b"), ("HOME", "c")], "b/hub"),
            (&[("XDG_CACHE_HOME", "d"), ("HOME", "c")], "d/huggingface/hub"),
            (&[("HF_HOME", ""), ("HOME", "c")], "c/.cache/huggingface/hub"),
            (&[("USERPROFILE", "u")], "u/.cache/huggingface/hub"),
        ];
        for (variables, expected) in cases {
            assert_eq!(settings(variables).cache, Path::new(expected), "{variables:?}");
        }
    }

    #[test]
    fn the_other_variables() {
        let found = settings(&[
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "7"),
        ]);
        assert_eq!(found.endpoint, "http://mirror");
        assert_eq!(found.token.as_deref(), Some("hf_x"));
        assert!(found.offline);
        assert_eq!(found.patience, Duration::from_secs(7));

        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let found = settings(&[
            ("HF_HOME", home.path().to_str().unwrap()),
            ("HF_HUB_OFFLINE", "0"),
        ]);
        assert_eq!(found.endpoint, "https://huggingface.co");
        assert_eq!(found.token.as_deref(), Some("hf_file"));
        assert!(!found.offline);
        assert_eq!(found.patience, PATIENCE);
        assert_eq!(found.check(), Ok(()));
        let old = settings(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]);
        assert_eq!(old.token.as_deref(), Some("hf_old"));
        let none = settings(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
        for (name, value) in [("HF_ENDPOINT", "localhost"), ("HF_TOKEN", "hf_\u{e9}")] {
            let problem = settings(&[(name, value)]).check().unwrap_err();
            assert!(problem.to_string().contains(name), "{problem}");
        }
    }

    #[test]
    fn snapshots_by_branch_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--org--name");
        std::fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
        std::fs::write(model.join("refs/main"), "0123abc\n").unwrap();
        std::fs::write(model.join("refs/refs/pr/1"), "0123abc").unwrap();
        let settings = settings(&[("HF_HUB_CACHE", cache.path().to_str().unwrap())]);
        for revision in ["main", "refs/pr/1", "0123abc"] {
            let found = settings.snapshot("org/name", revision);
            assert_eq!(found, model.join("snapshots/0123abc"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_blobs_state_a_hash() {
        let directory = tempfile::tempdir().unwrap();
        let link = |name: &str, target: &str| {
            let path = directory.path().join(name);
            std::os::unix::fs::symlink(target, &path).unwrap();
            stated_sha256(&path)
        };
        let hash = "ab".repeat(32);
        assert_eq!(link("a", &format!("../../blobs/{hash}")), Some(hash.clone()));
        assert_eq!(link("b", &format!("../../files/{hash}")), None);
        assert_eq!(
            link("c", "../../blobs/0123456789012345678901234567890123456789"),
            None
        );
        assert_eq!(stated_sha256(directory.path()), None);
    }
}
