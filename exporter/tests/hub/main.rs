//! Models of the hub, against one on the loopback device that keeps its promises and one that does not.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod adapters;
#[path = "../torch/demo.rs"]
mod demo;
mod server;
#[path = "../../../models/src/checkpoint/torch/write.rs"]
mod write;

use serde_json::Value;
use server::{COMMIT, Hub, Kind};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
#[cfg(unix)]
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const CACHED: &str = "home/hub/models--org--name";

/// A hub with the demo model and what else repositories have, and a home without anything.
struct World {
    directory: TempDir,
    hub: Hub,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl World {
    fn new() -> World {
        let mut files: BTreeMap<String, Vec<u8>> = exporter::demo::FILES
            .iter()
            .map(|(name, contents)| ((*name).to_owned(), contents.to_vec()))
            .collect();
        for name in [
            "onnx/model.onnx",
            "pytorch_model.bin",
            "picture.png",
            ".gitattributes",
        ] {
            files.insert(name.to_owned(), vec![7; 1000]);
        }
        World {
            directory: tempfile::tempdir().unwrap(),
            hub: Hub::start(files),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command that knows this hub, this home and no other.
    fn command(&self, arguments: &[&str]) -> Command {
        // With what Ctrl-C does by default, also where these tests were started without.
        let mut command = programs::testing::hearing(&Command::new(env!("CARGO_BIN_EXE_fvlm-export")));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_uppercase();
            if text.starts_with("HF_") || text.starts_with("HUGGING") || text.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.directory.path())
            .env("HF_HOME", self.path("home"))
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, command: &mut Command) -> Ran {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran = Ran {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran
    }

    fn export(&self, model: &str) -> Ran {
        self.run(&mut self.command(&["--model", model, "-o", "bundle", "--overwrite"]))
    }

    fn exported(&self, model: &str) {
        let ran = self.export(model);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }

    /// Runs and expects an error that says all of these, and no bundle.
    fn refused(&self, command: &mut Command, says: &[&str]) {
        let ran = self.run(command);
        assert_eq!(ran.code, Some(2), "{}{}", ran.stdout, ran.stderr);
        for text in says {
            assert!(ran.stderr.contains(text), "should say `{text}`: {}", ran.stderr);
        }
        assert!(!self.path("bundle").exists());
    }

    fn cached(&self, name: &str) -> PathBuf {
        self.path(CACHED).join(format!("snapshots/{COMMIT}")).join(name)
    }

    /// Length of the part of a file that is in the cache.
    fn part(&self) -> Option<u64> {
        let blobs = fs::read_dir(self.path(CACHED).join("blobs")).ok()?;
        let part = blobs
            .flatten()
            .find(|entry| entry.path().extension().is_some_and(|end| end == "part"));
        // It may be whole, and have another name, by now.
        part?.metadata().ok().map(|metadata| metadata.len())
    }

    /// Starts an export and waits until a part of the weights is there.
    #[cfg(unix)]
    fn begun(&self) -> Child {
        let mut command = self.command(&["--model", "org/name", "-o", "bundle"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while self.part().is_none_or(|length| length < 1_000_000) {
            assert!(Instant::now() < end, "no part appeared");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    /// From which byte on the weights were asked for since the last call.
    fn weights_begun(&self) -> Vec<usize> {
        let bodies = self.hub.bodies(WEIGHTS).into_iter();
        bodies.map(|(_, from)| from).collect()
    }

    fn weights(&self) -> usize {
        self.hub.with(|state| state.files[WEIGHTS].len())
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A file in a folder of the repository is a link too, which leads to its contents; added tokens come beside `tokenizer.json`.
#[test]
fn files_in_folders_and_added_tokens() {
    let world = World::new();
    let named = "additional_chat_templates/rag.jinja";
    let template = world.hub.with(|state| {
        state.files.insert("added_tokens.json".to_owned(), b"{}".to_vec());
        let template = state.files["chat_template.jinja"].clone();
        state.files.insert(named.to_owned(), template.clone());
        template
    });
    world.exported("org/name");
    for (name, contents) in [(named, &template[..]), ("added_tokens.json", b"{}")] {
        assert!(fs::read(world.cached(name)).unwrap() == contents, "{name}");
    }
    // Nothing is asked for twice, and what looks only finds all of it.
    drop(world.hub.bodies(""));
    world.exported("org/name");
    assert!(world.hub.bodies("").is_empty());
    let ran = world.run(&mut world.command(&["--model", "org/name", "--dry-run"]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn what_is_needed_comes_once_and_lies_where_others_look() {
    let world = World::new();
    world.exported("org/name");
    let mut names: Vec<String> = world.hub.bodies("").into_iter().map(|(name, _)| name).collect();
    names.sort();
    let mut demo: Vec<&str> = exporter::demo::FILES.iter().map(|(name, _)| *name).collect();
    demo.sort_unstable();
    assert_eq!(names, demo);
    assert_eq!(
        fs::read_to_string(world.path(CACHED).join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(fs::symlink_metadata(world.cached(WEIGHTS)).unwrap().is_symlink());
    for (name, contents) in exporter::demo::FILES {
        assert!(fs::read(world.cached(name)).unwrap() == *contents, "{name}");
    }
    // As from a directory, but for the name.
    let demo = world.run(&mut world.command(&["-o", "demo"]));
    assert_eq!(demo.code, Some(0), "{}", demo.stderr);
    let (hub, demo) = (
        json(&world.path("bundle/bundle.json")),
        json(&world.path("demo/bundle.json")),
    );
    assert_eq!(hub["files"], demo["files"]);
    assert_eq!(hub["source"], demo["source"]);
    assert_eq!(hub["model"]["name"], "org/name");

    for model in [
        "org/name",
        "org/name@v1",
        &format!("org/name@{COMMIT}"),
        "org/name@refs/pr/1",
    ] {
        world.exported(model);
        assert_eq!(world.hub.bodies(""), [], "{model}");
    }
}

/// Of what a trainer uploads only the weights come, in shards that the index names.
#[test]
fn torch_files_come_where_there_are_no_safetensors() {
    const SHARDS: [&str; 2] = [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ];
    const INDEX: &str = "pytorch_model.bin.index.json";
    let world = World::new();
    world.hub.with(|state| {
        let saved = demo::saved(&state.files.remove(WEIGHTS).unwrap());
        state.files.remove("pytorch_model.bin");
        let mut map = serde_json::Map::new();
        for (which, name) in SHARDS.iter().enumerate() {
            let mut half = write::Saved::default();
            for tensor in saved.tensors.iter().skip(which).step_by(2) {
                let (kind, bytes) = saved.storages[tensor.storage].clone();
                half.add(&tensor.name, &kind, &tensor.shape, bytes);
                map.insert(tensor.name.clone(), Value::from(*name));
            }
            let file = if which == 0 { half.archive() } else { half.legacy() };
            state.files.insert((*name).to_owned(), file);
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        state.files.insert(INDEX.to_owned(), index.into_bytes());
        for name in [
            "optimizer.pt",
            "rng_state.pth",
            "training_args.bin",
            "x/pytorch_model.bin",
        ] {
            state.files.insert(name.to_owned(), vec![7; 1000]);
        }
    });
    world.exported("org/name");
    let mut names: Vec<String> = world.hub.bodies("").into_iter().map(|(name, _)| name).collect();
    names.sort();
    let demo = exporter::demo::FILES.iter().map(|(name, _)| *name);
    let mut expected: Vec<&str> = demo.filter(|name| *name != WEIGHTS).collect();
    expected.extend(SHARDS);
    expected.push(INDEX);
    expected.sort_unstable();
    assert_eq!(names, expected);
    let demo = world.run(&mut world.command(&["-o", "demo"]));
    assert_eq!(demo.code, Some(0), "{}", demo.stderr);
    let (hub, demo) = (
        json(&world.path("bundle/bundle.json")),
        json(&world.path("demo/bundle.json")),
    );
    assert_eq!(hub["files"], demo["files"]);
    world.exported("org/name");
    assert_eq!(world.hub.bodies(""), []);
}

#[test]
fn broken_connections_go_on() {
    let world = World::new();
    world.hub.trick("cdn/model.safetensors", Kind::Drop(1_500_000), 2);
    world.hub.trick("tokenizer.json", Kind::Drop(100), 1);
    world.exported("org/name");
    let bodies = world.hub.bodies("");
    let begun = |name: &str| -> Vec<usize> {
        let of = bodies.iter().filter(|(file, _)| file == name);
        of.map(|(_, from)| *from).collect()
    };
    assert_eq!(begun(WEIGHTS), [0, 1_500_000, 3_000_000]);
    assert_eq!(begun("tokenizer.json"), [0, 100]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_resumes() {
    for signal in ["-INT", "-KILL"] {
        let world = World::new();
        world
            .hub
            .trick("cdn/model.safetensors", Kind::Silence(2_000_000), 1);
        let mut child = world.begun();
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        if signal == "-INT" {
            assert_eq!(status.code(), Some(130));
        }
        assert!(!world.path("bundle").exists());
        let part = world.part().unwrap();
        assert!((1_000_000..=2_000_000).contains(&part), "{part}");
        world.hub.bodies("");
        world.hub.with(|state| state.tricks.clear());
        world.exported("org/name");
        let part = usize::try_from(part).unwrap();
        assert_eq!(world.hub.bodies(""), [(WEIGHTS.to_owned(), part)]);
        assert_eq!(fs::read(world.cached(WEIGHTS)).unwrap().len(), world.weights());
    }
}

#[test]
fn silence_is_not_waited_for_forever() {
    let world = World::new();
    world
        .hub
        .trick("cdn/model.safetensors", Kind::Silence(2_000_000), 1);
    let mut command = world.command(&["--model", "org/name", "-o", "bundle"]);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    let says = [
        "sent nothing of model.safetensors for 1 seconds",
        "the same command goes on",
    ];
    world.refused(&mut command, &says);
    assert_eq!(world.part(), Some(2_000_000));
}

#[test]
fn a_server_that_knows_no_ranges() {
    let world = World::new();
    world.hub.trick("cdn/model.safetensors", Kind::Drop(1_500_000), 1);
    world.hub.trick("cdn/model.safetensors", Kind::IgnoreRange, 1);
    world.exported("org/name");
    // What comes whole takes the part's place.
    assert_eq!(world.weights_begun(), [0, 1_500_000]);
}

#[test]
fn statuses_say_what_to_do() {
    let world = World::new();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    let cases: [(u16, [&str; 2]); 4] = [
        (
            401,
            [
                "answers 401 for the list of files, there is no such model, or it needs a token",
                "HF_TOKEN",
            ],
        ),
        (
            403,
            [
                "answers 403 for the list of files, the token does not give access",
                "terms",
            ],
        ),
        (
            404,
            [
                "answers 404 for the list of files, there is no such model, revision or file",
                "REVISION",
            ],
        ),
        (
            429,
            [
                "answers 429 for the list of files, too many requests",
                "wait some minutes",
            ],
        ),
    ];
    for (code, says) in cases {
        world.hub.with(|state| state.tricks.clear());
        world.hub.trick("/api/models/org/name", Kind::Status(code), 100);
        world.refused(&mut export(), &says);
        world.refused(
            &mut export(),
            &["`org/name` at revision `main`", &world.hub.endpoint],
        );
    }
    world.hub.with(|state| state.tricks.clear());
    let mut other = world.command(&["--model", "org/other", "-o", "bundle"]);
    world.refused(&mut other, &["`org/other` at revision `main`", "answers 404"]);
    // In the middle, as a token's scope would: nothing is lost.
    world.hub.with(|state| state.tricks.clear());
    world.hub.trick("resolve", Kind::Status(403), 100);
    world.refused(&mut export(), &["answers 403 for config.json"]);
    // A moment later it is all right.
    world.hub.with(|state| state.tricks.clear());
    world.hub.trick("/api/models/org/name", Kind::Status(429), 2);
    world.hub.trick("cdn", Kind::Status(503), 2);
    world.exported("org/name");
}

#[test]
fn tokens_are_sent() {
    let world = World::new();
    world.hub.with(|state| state.token = Some("hf_secret"));
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    world.refused(&mut export(), &["it needs a token", "HF_TOKEN"]);
    world.refused(export().env("HF_TOKEN", "hf_old"), &["the token is not valid"]);
    let ran = world.run(export().env("HF_TOKEN", "hf_secret"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!ran.stderr.contains("hf_secret"));
}

#[test]
fn tokens_are_shown_to_the_hub_alone() {
    let world = World::new();
    world.hub.with(|state| {
        state.token = Some("hf_secret");
        state.elsewhere = true;
    });
    let mut export = world.command(&["--model", "org/name", "-o", "bundle"]);
    let ran = world.run(export.env("HF_TOKEN", "hf_secret"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let elsewhere = world.hub.with(|state| {
        let there = |request: &&server::Request| request.path.starts_with("/cdn/");
        state.requests.iter().filter(there).cloned().collect::<Vec<_>>()
    });
    assert!(!elsewhere.is_empty());
    assert!(
        elsewhere.iter().all(|request| request.token.is_none()),
        "{elsewhere:?}"
    );
}

#[test]
fn another_port_of_the_hubs_host_sees_no_token() {
    let world = World::new();
    let other = server::Hub::start(world.hub.with(|state| state.files.clone()));
    world.hub.with(|state| state.token = Some("hf_secret"));
    for path in [
        "/api/models/org/name/revision/main?blobs=true",
        "/org/name/resolve/",
    ] {
        let to = format!("{}{path}", other.endpoint);
        let to: &'static str = if path.starts_with("/api") {
            to.leak()
        } else {
            format!("{to}{COMMIT}/config.json").leak()
        };
        let meant: &'static str = if path.starts_with("/api") {
            "/api/"
        } else {
            "config.json"
        };
        world.hub.trick(meant, Kind::Redirect(Some(to)), 2);
    }
    let mut export = world.command(&["--model", "org/name", "-o", "bundle"]);
    let ran = world.run(export.env("HF_TOKEN", "hf_secret"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let asked = other.with(|state| std::mem::take(&mut state.requests));
    for path in ["/api/", "/org/name/resolve/"] {
        assert!(
            asked.iter().any(|request| request.path.starts_with(path)),
            "{asked:?}"
        );
    }
    assert!(asked.iter().all(|request| request.token.is_none()), "{asked:?}");
}

#[test]
fn what_another_commit_has_does_not_come_again() {
    let world = World::new();
    world.exported("org/name");
    let commit = COMMIT.replace('0', "f");
    let card = b"---\nlicense: mit\n---\n";
    world.hub.with(|state| {
        state.commit.clone_from(&commit);
        state.files.insert("README.md".to_owned(), card.to_vec());
        state.requests.clear();
    });
    world.exported("org/name");
    let bodies = world.hub.with(|state| std::mem::take(&mut state.requests));
    let bodies = bodies
        .iter()
        .filter(|request| request.from.is_some() && request.path.contains("resolve"));
    let bodies: Vec<&str> = bodies.map(|request| request.path.as_str()).collect();
    assert_eq!(bodies, [format!("/org/name/resolve/{commit}/README.md")]);
    assert_eq!(json(&world.path("bundle/bundle.json"))["model"]["license"], "mit");
}

#[test]
fn a_part_that_is_whole_or_wrong() {
    let world = World::new();
    world.exported("org/name");
    let blob = fs::canonicalize(world.cached(WEIGHTS)).unwrap();
    let whole = fs::read(&blob).unwrap();
    for part in [whole.clone(), vec![0; 1_000_000], vec![0; whole.len() + 1]] {
        fs::remove_file(world.cached(WEIGHTS)).unwrap();
        fs::remove_file(&blob).unwrap();
        fs::write(blob.with_extension("part"), part).unwrap();
        world.exported("org/name");
        assert!(fs::read(world.cached(WEIGHTS)).unwrap() == whole);
        assert_eq!(world.part(), None);
    }
}

#[test]
fn answers_without_sense_or_end() {
    let world = World::new();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    world.hub.trick("resolve", Kind::Redirect(None), 1);
    world.refused(&mut export(), &["config.json: a redirect (302) to nowhere"]);
    world.hub.trick("resolve", Kind::Redirect(Some("?again")), 100);
    world.refused(&mut export(), &["more than 10 redirects in a row"]);
    world.hub.with(|state| state.tricks.clear());
    world.hub.trick("cdn/model.safetensors", Kind::Endless, 1);
    world.refused(
        &mut export(),
        &["model.safetensors: more than the", "that were announced"],
    );
    assert_eq!(world.part(), Some(0));
    let names = ["NOTICE", "LICENSE (1)#%20.txt"];
    for name in names {
        world
            .hub
            .with(|state| state.files.insert(name.to_owned(), Vec::new()));
    }
    world.exported("org/name");
    for name in names {
        assert_eq!(fs::read(world.path("bundle").join(name)).unwrap(), b"");
    }
}

#[test]
fn exports_at_once_share_what_comes() {
    let world = World::new();
    world.hub.trick("cdn/model.safetensors", Kind::Drop(2_000_000), 1);
    let children: Vec<Child> = ["a", "b", "c"]
        .map(|output| {
            let mut command = world.command(&["--model", "org/name", "-o", output]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .into();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(world.weights_begun(), [0, 2_000_000]);
}

#[test]
fn a_snapshot_in_part_is_none() {
    let world = World::new();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    world.hub.trick("cdn/model.safetensors", Kind::Status(404), 100);
    world.refused(&mut export(), &["answers 404 for model.safetensors"]);
    assert!(world.cached("config.json").exists());
    let commit = format!("org/name@{COMMIT}");
    let mut offline = world.command(&["--model", &commit, "-o", "bundle"]);
    world.refused(
        offline.env("HF_HUB_OFFLINE", "1"),
        &["is not in the local Hugging Face cache"],
    );
}

#[test]
fn lengths_that_do_not_agree() {
    let world = World::new();
    let length = world.weights();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    // The list against the answer.
    world
        .hub
        .with(|state| state.listed.insert(WEIGHTS.to_owned(), length + 5));
    let says = format!(
        "announces `{WEIGHTS}` with {} bytes and serves it with {length}",
        length + 5
    );
    world.refused(&mut export(), &[&says]);
    world.hub.with(|state| state.listed.clear());
    // The answer against what comes: no whole file is made of a part.
    world.hub.trick("cdn/model.safetensors", Kind::EndEarly(1000), 1);
    world.hub.trick("cdn/model.safetensors", Kind::EndEarly(0), 100);
    let says = format!("1000 bytes arrived, {length} were announced");
    world.refused(&mut export(), &["breaks off", &says]);
    assert!(!world.cached(WEIGHTS).exists());
    assert_eq!(world.part(), Some(1000));
    world.hub.with(|state| state.tricks.clear());
    world.exported("org/name");
}

#[test]
fn contents_that_are_not_what_they_are_called() {
    let world = World::new();
    let hash = Box::leak("ab".repeat(32).into_boxed_str());
    world.hub.trick(
        "resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors",
        Kind::Etag(hash),
        100,
    );
    let says = [&format!("its name states SHA-256 {hash}"), "remove that file"];
    world.refused(
        &mut world.command(&["--model", "org/name", "-o", "bundle"]),
        &says,
    );
}

#[test]
fn answers_that_would_write_elsewhere() {
    let world = World::new();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    world
        .hub
        .with(|state| state.commit = "../../../elsewhere".to_owned());
    world.refused(
        &mut export(),
        &["does not answer as a hub does: `../../../elsewhere` is no commit"],
    );
    world.hub.with(|state| state.commit = COMMIT.to_owned());
    world
        .hub
        .trick("/model.safetensors", Kind::Etag("../../../../elsewhere"), 100);
    world.refused(
        &mut export(),
        &["does not answer as a hub does", "ETag `../../../../elsewhere`"],
    );
    let names: Vec<String> = fs::read_dir(world.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["home"]);
}

#[test]
fn without_a_network() {
    let world = World::new();
    // Nobody listens on the port of a server that was closed.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = format!("http://{nobody}");
    let export = || world.command(&["--model", "org/name", "-o", "bundle", "--overwrite"]);
    world.refused(
        export().env("HF_ENDPOINT", &nobody),
        &[&nobody, "cannot be reached", "hint: "],
    );
    let says = [
        "`org/name` at revision `main` is not in the local Hugging Face cache",
        "HF_HUB_OFFLINE",
    ];
    world.refused(export().env("HF_HUB_OFFLINE", "1"), &says);

    world.exported("org/name");
    world.hub.with(|state| state.requests.clear());
    let ran = world.run(export().env("HF_HUB_OFFLINE", "1"));
    assert_eq!(
        (ran.code, ran.stderr.contains("warning")),
        (Some(0), false),
        "{}",
        ran.stderr
    );
    assert!(world.hub.with(|state| state.requests.is_empty()));
    let ran = world.run(export().env("HF_ENDPOINT", &nobody));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("what the cache has is used"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_only_looks_downloads_nothing() {
    let world = World::new();
    for looks in [&["--dry-run"][..], &["--dump"], &["--check", "coreml"]] {
        let mut command = world.command(&["--model", "org/name"]);
        let says = [
            "`org/name` is not in the local Hugging Face cache: 9 files to download",
            WEIGHTS,
        ];
        world.refused(command.args(looks), &says);
    }
    assert_eq!(world.hub.bodies(""), []);
    assert!(!world.path("home").exists());
    world.exported("org/name");
    let ran = world.run(&mut world.command(&["--model", "org/name", "--dry-run"]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn what_is_no_fastvlm_is_not_downloaded() {
    let world = World::new();
    let export = || world.command(&["--model", "org/name", "-o", "bundle"]);
    world.hub.with(|state| {
        state
            .files
            .insert("config.json".to_owned(), br#"{"model_type": "llama"}"#.to_vec())
    });
    world.refused(&mut export(), &["llama"]);
    assert_eq!(world.hub.bodies(WEIGHTS), []);
    world.hub.with(|state| {
        state.files.remove(WEIGHTS);
        state.files.remove("pytorch_model.bin");
    });
    world.refused(&mut export(), &["has no checkpoint there", "pytorch_model.bin"]);
}

#[test]
fn shards_that_the_index_names() {
    let world = World::new();
    world.hub.with(|state| {
        let weights = state.files.remove(WEIGHTS).unwrap();
        let length = usize::try_from(u64::from_le_bytes(weights[..8].try_into().unwrap())).unwrap();
        let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
        let tensors = header
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| *name != "__metadata__");
        let place: BTreeMap<&str, &str> = tensors
            .map(|name| (name.as_str(), "model-00001-of-00001.safetensors"))
            .collect();
        let index = serde_json::json!({"metadata": {}, "weight_map": place}).to_string();
        state
            .files
            .insert("model-00001-of-00001.safetensors".to_owned(), weights);
        state
            .files
            .insert("consolidated.safetensors".to_owned(), vec![0; 100]);
        state
            .files
            .insert("model.safetensors.index.json".to_owned(), index.into_bytes());
    });
    world.exported("org/name");
    let names: Vec<String> = world
        .hub
        .bodies("safetensors")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        ["model.safetensors.index.json", "model-00001-of-00001.safetensors"]
    );
}
