//! What does the C interface say to hostile images, templates, tokenizers and graphs? Each call ends with a status and
//! words about the file, never with the process: this one.
//!
//! The functions are called as C does, by their pointers. Files of a bundle are vouched for: their hashes in
//! `bundle.json` are right, so that parsers see them.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(unsafe_code, reason = "an interface for C is made of pointers")]

use conformance::setup::{required, subject};
use exporter::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use exporter::{ExportPlan, Precision, Silent, Source, Target, Variant};
use fvlm::{Answer, Message, Options, Request, Role, Status};
use prost::Message as _;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

/// Bytes that hostile inputs may take beside what sound ones did.
#[cfg(target_os = "linux")]
const MEMORY: u64 = 500 << 20;

/// What a call refused.
#[derive(Debug)]
struct Refused {
    status: Status,
    words: String,
}

fn text(words: &str) -> CString {
    CString::new(words).unwrap()
}

/// An engine of the C interface, closed when it is dropped.
struct Engine(*mut fvlm::Engine);

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: it came from `fvlm_open` and is closed once.
        unsafe { fvlm::fvlm_close(self.0) };
    }
}

/// Makes a call that gets a place for its error.
fn call(act: impl FnOnce(*mut *mut c_char) -> Status) -> Result<(), Refused> {
    let mut error = null_mut();
    let status = act(&raw mut error);
    if status == Status::Ok {
        return Ok(());
    }
    assert!(!error.is_null(), "{status:?} without words");
    // SAFETY: where the status is not `Ok`, it is a text.
    let words = unsafe { CStr::from_ptr(error) }.to_str().unwrap().to_owned();
    // SAFETY: it came from the library and is freed once.
    unsafe { fvlm::fvlm_string_free(error) };
    assert_ne!(status, Status::Internal, "{words}");
    let clear = !words.is_empty() && words.len() < 10_000 && !words.contains("panic");
    assert!(clear, "{words}");
    Err(Refused { status, words })
}

impl Engine {
    fn open(bundle: &Path, provider: &str) -> Result<Engine, Refused> {
        let (bundle, provider) = (text(bundle.to_str().unwrap()), text(provider));
        // SAFETY: zeros are options, as `{0}` in C.
        let mut options: Options = unsafe { std::mem::zeroed() };
        (options.provider, options.no_fallback, options.threads) = (provider.as_ptr(), true, 1);
        let mut engine = null_mut();
        // SAFETY: all texts and places live during the call.
        call(|error| unsafe {
            fvlm::fvlm_open(bundle.as_ptr(), &raw const options, &raw mut engine, error)
        })?;
        Ok(Engine(engine))
    }

    fn add_file(&self, path: &str) -> Result<u64, Refused> {
        let (path, mut image) = (text(path), 0);
        // SAFETY: the engine is open, and the text and the place live during the call.
        call(|error| unsafe { fvlm::fvlm_add_image_file(self.0, path.as_ptr(), &raw mut image, error) })?;
        Ok(image)
    }

    fn add_bytes(&self, bytes: &[u8]) -> Result<u64, Refused> {
        let mut image = 0;
        let (start, length) = (bytes.as_ptr(), bytes.len());
        // SAFETY: the engine is open, and the bytes and the place live during the call.
        call(|error| unsafe { fvlm::fvlm_add_image_bytes(self.0, start, length, &raw mut image, error) })?;
        Ok(image)
    }

    /// The tokens of an answer about an image.
    fn ask(&self, image: u64) -> Result<Vec<i64>, Refused> {
        let question = text("Describe the image.");
        let turn = Message {
            role: Role::User as u32,
            text: question.as_ptr(),
            images: &raw const image,
            image_count: 1,
        };
        // SAFETY: zeros are a request, as `{0}` in C.
        let mut request: Request = unsafe { std::mem::zeroed() };
        request.max_tokens = 8;
        // SAFETY: zeros are an answer without anything.
        let mut answer: Answer = unsafe { std::mem::zeroed() };
        let (request, place) = (&raw const request, &raw mut answer);
        // SAFETY: the engine is open; what the turn and the request point to and the place live during the call.
        call(|error| unsafe {
            fvlm::fvlm_chat(
                self.0,
                &raw const turn,
                1,
                request,
                None,
                null_mut(),
                place,
                error,
            )
        })?;
        // SAFETY: the answer was written, with so many tokens.
        let tokens = unsafe { std::slice::from_raw_parts(answer.tokens, answer.token_count) }.to_vec();
        // SAFETY: the answer was written, and is freed once.
        unsafe { fvlm::fvlm_answer_free(place) };
        Ok(tokens)
    }
}

fn scene() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/scenes/scene_1.png");
    path.to_str().unwrap().to_owned()
}

/// An answer about a scene by a bundle that is opened anew.
fn describe(bundle: &Path, provider: &str) -> Result<Vec<i64>, Refused> {
    let engine = Engine::open(bundle, provider)?;
    let image = engine.add_file(&scene())?;
    engine.ask(image)
}

/// The engines that work here.
fn providers() -> Vec<&'static str> {
    let known = [subject::Provider::Cpu, subject::Provider::Tract];
    let working = known.into_iter().filter(|named| required::works(*named).unwrap());
    let found: Vec<_> = working.map(subject::Provider::name).collect();
    assert!(!found.is_empty());
    found
}

/// A bundle of the demo model.
struct Bundle(tempfile::TempDir);

impl Bundle {
    fn new(target: Target, precision: Precision) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = ExportPlan::new(Source::Demo, folder.path().join("bundle"));
        plan.variants = vec![Variant::new(target, precision).unwrap()];
        exporter::export(&plan, &mut Silent).unwrap();
        Bundle(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("bundle")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    /// Writes a file of the bundle, and its length and hash into the contract.
    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
        let contract: serde_json::Value = serde_json::from_slice(&self.read("bundle.json")).unwrap();
        let mut contract: models::bundle::Bundle = serde_json::from_value(contract).unwrap();
        for file in &mut contract.files {
            if file.path == name {
                *file = models::bundle::FileEntry::of(&self.path(), name).unwrap();
            }
        }
        std::fs::write(self.path().join("bundle.json"), contract.to_json()).unwrap();
    }

    /// Every engine refuses the bundle, with `words`.
    #[track_caller]
    fn refused(&self, case: &str, words: &[&str]) {
        for provider in providers() {
            match describe(&self.path(), provider) {
                Ok(tokens) => panic!("{case}, {provider}: answers {tokens:?}"),
                Err(found) => assert!(
                    words.iter().any(|words| found.words.contains(words)),
                    "{case}, {provider}: {found:?}, expected one of {words:?}"
                ),
            }
        }
    }
}

/// The most memory that this process ever had, in bytes.
#[cfg(target_os = "linux")]
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    kilobytes * 1024
}

/// Does `attack` and measures what it took, where that can be asked: after a sound answer, which takes its own.
fn within_memory(bundle: &Bundle, attack: impl FnOnce()) {
    for provider in providers() {
        assert!(!describe(&bundle.path(), provider).unwrap().is_empty());
    }
    #[cfg(target_os = "linux")]
    let before = most_memory();
    attack();
    #[cfg(target_os = "linux")]
    {
        let more = most_memory() - before;
        assert!(more < MEMORY, "{more} bytes more");
    }
}

#[test]
fn images() {
    let bundle = Bundle::new(Target::Portable, Precision::Fp32);
    let engine = Engine::open(&bundle.path(), providers()[0]).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/data/images");
    let refuses = |case: &str, bytes: &[u8]| {
        let found = engine.add_bytes(bytes).map(|_| ()).unwrap_err();
        assert_eq!(found.status, Status::Image, "{case}: {found:?}");
    };
    within_memory(&bundle, || {
        let mut sound = 0;
        for entry in std::fs::read_dir(data).unwrap() {
            let path = entry.unwrap().path();
            let name = path.to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            // What is whole is the same image from a file and from memory.
            match (engine.add_file(name), engine.add_bytes(&bytes)) {
                (Ok(file), Ok(memory)) => {
                    assert_eq!(file, memory, "{name}");
                    sound += 1;
                }
                (Err(file), Err(memory)) => {
                    assert_eq!((file.status, memory.status), (Status::Image, Status::Image));
                    assert!(file.words.contains(name), "{file:?}");
                }
                other => panic!("{name}: {other:?}"),
            }
            // What is cut ends with a status, and with an image only where the end of the file is not of the picture.
            for length in [0, 1, 3, 12, bytes.len() / 4, bytes.len() / 2] {
                let cut = engine.add_bytes(&bytes[..length.min(bytes.len())]);
                if length < 13 {
                    refuses(name, &bytes[..length]);
                } else if let Err(found) = cut {
                    assert_eq!(found.status, Status::Image, "{name}: {found:?}");
                }
            }
            // What is changed somewhere: each bit of a byte in every file, spread over it.
            for step in 0..8 {
                let mut changed = bytes.clone();
                let at = (bytes.len() - 1) * step / 7;
                changed[at] ^= 1 << step;
                if let Err(found) = engine.add_bytes(&changed) {
                    assert_eq!(found.status, Status::Image, "{name}: {found:?}");
                }
            }
        }
        assert!(sound > 40, "{sound}");
        for (case, bytes) in huge() {
            refuses(case, &bytes);
        }
        for words in ["", "hello", "<svg/>", "<html></html>", "%PDF-1.7", "PK\u{3}\u{4}"] {
            refuses(words, words.as_bytes());
        }
        files_that_are_none(&engine);
    });
    // After all of it, it still answers.
    let image = engine.add_file(&scene()).unwrap();
    assert!(!engine.ask(image).unwrap().is_empty());
}

/// Small files that say they have a great many pixels.
fn huge() -> Vec<(&'static str, Vec<u8>)> {
    let side = 65_000_u16;
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bmp.extend(i32::MAX.to_le_bytes());
    bmp.extend(i32::MAX.to_le_bytes());
    bmp.extend(b"\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut gif = b"GIF89a".to_vec();
    gif.extend([side.to_le_bytes(), side.to_le_bytes()].concat());
    gif.extend(b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0");
    gif.extend([side.to_le_bytes(), side.to_le_bytes()].concat());
    gif.extend(b"\0\x02\x02D\x01\0;");
    let mut jpeg = b"\xff\xd8\xff\xc0\0\x11\x08".to_vec();
    jpeg.extend([side.to_be_bytes(), side.to_be_bytes()].concat());
    jpeg.extend(b"\x03\x01\x44\0\x02\x11\0\x03\x11\0\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0\0\xff\xd9");
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        let mut entry = [tag.to_le_bytes(), kind.to_le_bytes()].concat();
        entry.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
        entry
    };
    let mut tiff = b"II*\0\x08\0\0\0\x08\0".to_vec();
    for (tag, kind, count, value) in [
        (256, 4, 1, u32::MAX),
        (257, 4, 1, u32::MAX),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, u32::MAX, 8),
        (277, 3, 1, 1),
        (279, 4, u32::MAX, 8),
    ] {
        tiff.extend(entry(tag, kind, count, value));
    }
    tiff.extend([0; 4]);
    let mut webp = b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f".to_vec();
    webp.extend([0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0]);
    vec![
        ("BMP", bmp),
        ("GIF", gif),
        ("JPEG", jpeg),
        ("TIFF", tiff),
        ("WebP", webp),
    ]
}

/// Paths that lead to no file: nothing is waited for.
fn files_that_are_none(engine: &Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let none = vec![
        (path("missing.png"), "missing.png"),
        (path("."), "a directory"),
        ("https://host/a.png".to_owned(), "is an address"),
        (String::new(), "cannot read"),
    ];
    #[cfg(unix)]
    let none = {
        let pipe = path("pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let others = [
            (pipe, "a pipe, expected a regular file"),
            ("/dev/zero".to_owned(), "a device, expected a regular file"),
            ("/dev/stdin".to_owned(), "/dev/stdin"),
        ];
        [none, others.into()].concat()
    };
    for (path, words) in none {
        match engine.add_file(&path) {
            // Whoever runs the tests may have given them a file, which is no image.
            Ok(_) => panic!("{path:?} is an image"),
            Err(found) => {
                assert_eq!(found.status, Status::Image, "{path:?}: {found:?}");
                assert!(found.words.contains(words), "{path:?}: {found:?}");
            }
        }
    }
}

#[test]
fn templates() {
    let bundle = Bundle::new(Target::Portable, Precision::Fp32);
    let name = "chat_template.jinja";
    let plain = String::from_utf8(bundle.read(name)).unwrap();
    let nest = "{% set ns = namespace(l=[]) %}{% for i in range(30000) %}{% set ns.l = [ns.l] %}{% endfor %}";
    let grow = "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s =";
    let hostile = [
        format!("{{{{ {}1 }}}}", "-".repeat(5600)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(5600)),
        format!("{{{{ x{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ x{} }}}}", "|list".repeat(100_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(100_000)),
        format!("{nest}{{{{ ns.l }}}}"),
        format!("{nest}{{{{ ns.l|tojson }}}}{plain}"),
        format!("{grow} ns.s ~ ns.s %}}{{% endfor %}}"),
        format!("{grow} ns.s|replace('x', 'xxxx') %}}{{% endfor %}}{plain}"),
        "{{ ('x' * 30000000)|list|length }}".to_owned(),
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}".to_owned(),
        "{{ messages | map(attribute='role') | join('d') | replace('a','d') | las }}{t\"visn(}}".to_owned(),
        "{% generation %}".to_owned(),
        "{% include 'chat' %}".to_owned(),
        "{{".to_owned(),
        "x".repeat(20 << 20),
        "\u{0}".to_owned(),
    ];
    within_memory(&bundle, || {
        for source in &hostile {
            bundle.put(name, source.as_bytes());
            let case = source.chars().take(60).collect::<String>();
            bundle.refused(&case, &[name, "template", "positions", "image"]);
        }
        bundle.put(name, b"\xff\xfe");
        bundle.refused("no UTF-8", &[name]);
    });
    bundle.put(name, plain.as_bytes());
    for provider in providers() {
        assert!(!describe(&bundle.path(), provider).unwrap().is_empty());
    }
}

#[test]
fn tokenizers() {
    let bundle = Bundle::new(Target::Portable, Precision::Fp32);
    let name = "tokenizer.json";
    let plain = bundle.read(name);
    let json: serde_json::Value = serde_json::from_slice(&plain).unwrap();
    let changed = |path: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json[path] = value;
        json.to_string().into_bytes()
    };
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let hostile = [
        Vec::new(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        plain[..plain.len() / 2].to_vec(),
        nested.into_bytes(),
        changed(
            "decoder",
            serde_json::json!({"type": "Byte{\"version\": \"1.0\""}),
        ),
        changed("decoder", serde_json::json!(7)),
        changed(
            "normalizer",
            serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        changed("pre_tokenizer", serde_json::json!({"type": "Nonsense"})),
        changed(
            "model",
            serde_json::json!({"type": "BPE", "vocab": {}, "merges": []}),
        ),
        changed("model", serde_json::json!(null)),
        changed("added_tokens", serde_json::json!([])),
        changed("added_tokens", serde_json::json!([{"id": -1}])),
    ];
    within_memory(&bundle, || {
        for source in &hostile {
            bundle.put(name, source);
            let case = String::from_utf8_lossy(&source[..source.len().min(60)]).into_owned();
            bundle.refused(&case, &[name, "the tokenizer"]);
        }
    });
}

/// What an attacker writes where a size is expected.
const NUMBERS: [i64; 4] = [0, 1 << 23, (1 << 31) - 1, i64::MIN];

/// The graph with another number in one attribute of one fused node, for each attribute of each kind of node.
fn attributes(model: &ModelProto, seen: &mut Vec<String>) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let nodes = &model.graph.as_ref().unwrap().node;
    let fused = |node: &NodeProto| node.domain.as_deref() == Some("fvlm");
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| fused(node)) {
        for (at, attribute) in node.attribute.iter().enumerate() {
            let name = format!("{:?}.{:?}", node.op_type, attribute.name);
            if seen.contains(&name) {
                continue;
            }
            seen.push(name.clone());
            for number in NUMBERS {
                let mut changed = model.clone();
                let attribute = &mut changed.graph.as_mut().unwrap().node[index].attribute[at];
                if attribute.i == Some(number) {
                    continue;
                }
                match attribute.i {
                    Some(_) => attribute.i = Some(number),
                    None => attribute.f = Some(f32::INFINITY),
                }
                all.push((format!("{name} = {number}"), changed.encode_to_vec()));
            }
        }
    }
    all
}

/// The graph with another length of one axis of one weight of each kind of fused node: beyond memory, or none, alone and
/// with another one that is none, so that nothing needs to be in the file.
fn lengths(model: &ModelProto, seen: &mut Vec<String>) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let graph = model.graph.as_ref().unwrap();
    for node in graph
        .node
        .iter()
        .filter(|node| node.domain.as_deref() == Some("fvlm"))
    {
        for (input, name) in node.input.iter().enumerate() {
            let weights = &graph.initializer;
            let Some(index) = weights
                .iter()
                .position(|weight| weight.name.as_ref() == Some(name))
            else {
                continue;
            };
            let kind = format!("{:?} {input}", node.op_type);
            if seen.contains(&kind) {
                continue;
            }
            seen.push(kind.clone());
            let dims = &weights[index].dims;
            for axis in 0..dims.len() {
                for length in [0, 1 << 24, 1 << 40] {
                    let mut changed = dims.clone();
                    changed[axis] = length;
                    let mut changes = vec![changed.clone()];
                    if dims.len() > 1 && length > 0 {
                        changed[(axis + 1) % dims.len()] = 0;
                        changes.push(changed);
                    }
                    for dims in changes {
                        let mut model = model.clone();
                        model.graph.as_mut().unwrap().initializer[index]
                            .dims
                            .clone_from(&dims);
                        all.push((format!("{kind}: {dims:?}"), model.encode_to_vec()));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn fused_graphs() {
    let bundle = Bundle::new(Target::Cpu, Precision::Q4);
    // Each kind of node and of weight once in all graphs.
    let (mut seen, mut weights) = (Vec::new(), Vec::new());
    within_memory(&bundle, || {
        let (mut refused, mut answered) = (0, 0);
        for name in ["vision_encoder", "embed_tokens", "decoder_model_merged"] {
            let path = format!("onnx/{name}_q4.onnx");
            let plain = bundle.read(&path);
            let model = ModelProto::decode(plain.as_slice()).unwrap();
            for (case, graph) in [attributes(&model, &mut seen), lengths(&model, &mut weights)].concat() {
                bundle.put(&path, &graph);
                for provider in providers() {
                    match describe(&bundle.path(), provider) {
                        // Some numbers mean something, as 0 for a flag.
                        Ok(_) => answered += 1,
                        Err(found) => {
                            assert!(found.words.contains(name), "{case}, {provider}: {found:?}");
                            refused += 1;
                        }
                    }
                }
            }
            bundle.put(&path, &plain);
        }
        assert!(
            refused > 150 && answered * 10 < refused,
            "{refused} refused, {answered} answered"
        );
    });
    for provider in providers() {
        assert!(!describe(&bundle.path(), provider).unwrap().is_empty());
    }
}

/// Decoders whose first attention takes for its cache what is none: a weight, a tensor that was computed, the cache of
/// another node.
fn other_caches(model: &ModelProto) -> Vec<(&'static str, ModelProto)> {
    let graph = model.graph.as_ref().unwrap();
    let attention: Vec<usize> = (0..graph.node.len())
        .filter(|&index| graph.node[index].op_type.as_deref() == Some("DecoderAttention"))
        .collect();
    let [first, second, ..] = attention.as_slice() else {
        panic!("one layer")
    };
    let key = graph.node[*first].input[1].clone();
    let other = graph.node[*second].input[1].clone();
    let with = |change: &dyn Fn(&mut GraphProto)| {
        let mut model = model.clone();
        change(model.graph.as_mut().unwrap());
        model
    };
    let number = |name: &str| {
        let mut attributes = graph.node[*first].attribute.iter();
        let found = attributes.find(|attribute| attribute.name.as_deref() == Some(name));
        found.unwrap().i.unwrap()
    };
    let dims = vec![1, number("kv_heads"), 512, number("head_dim")];
    let weight = |graph: &mut GraphProto| {
        graph.initializer.push(TensorProto {
            name: Some("a weight".to_owned()),
            data_type: Some(1),
            raw_data: Some(vec![
                0;
                usize::try_from(4 * dims.iter().product::<i64>()).unwrap()
            ]),
            dims: dims.clone(),
            ..TensorProto::default()
        });
    };
    let computed = |graph: &mut GraphProto, from: &str| {
        let node = NodeProto {
            op_type: Some("Neg".to_owned()),
            input: vec![from.to_owned()],
            output: vec!["computed".to_owned()],
            ..NodeProto::default()
        };
        graph.node.insert(0, node);
    };
    vec![
        (
            "a weight",
            with(&|graph| {
                weight(graph);
                graph.node[*first].input[1] = "a weight".to_owned();
            }),
        ),
        (
            "made of a weight",
            with(&|graph| {
                weight(graph);
                graph.node[*first].input[1] = "computed".to_owned();
                computed(graph, "a weight");
            }),
        ),
        (
            "made of the cache",
            with(&|graph| {
                graph.node[*first].input[1] = "computed".to_owned();
                computed(graph, &key);
            }),
        ),
        (
            "of another node",
            with(&|graph| graph.node[*first].input[1] = other.clone()),
        ),
        (
            "the keys as values",
            with(&|graph| graph.node[*first].input[2] = key.clone()),
        ),
    ]
}

/// A cache is written where it lies: nothing else is.
#[test]
fn what_is_no_cache_is_not_written() {
    let bundle = Bundle::new(Target::Cpu, Precision::Q4);
    let path = "onnx/decoder_model_merged_q4.onnx";
    let plain = bundle.read(path);
    let model = ModelProto::decode(plain.as_slice()).unwrap();
    for (case, model) in other_caches(&model) {
        bundle.put(path, &model.encode_to_vec());
        for provider in providers() {
            match describe(&bundle.path(), provider) {
                // An engine that makes new caches may read any tensor.
                Ok(_) => assert_ne!(provider, "cpu", "{case}"),
                Err(found) => assert!(
                    found.words.contains("decoder_model_merged"),
                    "{case}, {provider}: {found:?}"
                ),
            }
        }
    }
    bundle.put(path, &plain);
    for provider in providers() {
        assert!(!describe(&bundle.path(), provider).unwrap().is_empty());
    }
}
