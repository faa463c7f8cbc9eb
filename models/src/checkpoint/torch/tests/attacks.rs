//! torch files that are programs, or do not hold what they say: each is refused in a sentence.

use super::super::validate;
use super::super::write::{self, Saved, number, text, zip};

/// A zip archive whose pickle is these opcodes between a protocol and an end.
fn pickled(opcodes: &[u8]) -> Vec<u8> {
    archive_of([b"\x80\x02", opcodes, b"."].concat())
}

fn archive_of(pickle: Vec<u8>) -> Vec<u8> {
    zip(&[("x/data.pkl".to_owned(), pickle)])
}

/// A state dict of one tensor with these facts.
fn one(offset: u64, shape: &[u64], strides: &[u64]) -> Saved {
    let mut saved = Saved {
        storages: vec![("FloatStorage".to_owned(), vec![0; 16])],
        ..Saved::default()
    };
    saved.view("w", 0, offset, shape, strides);
    saved
}

/// An archive with another file in it, or with another's contents.
fn with(name: &str, bytes: &[u8]) -> Vec<u8> {
    let saved = one(0, &[4], &[1]);
    let mut files = vec![
        ("x/data.pkl".to_owned(), saved.pickle(false)),
        ("x/data/0".to_owned(), vec![0; 16]),
    ];
    files.retain(|(known, _)| known != name);
    files.push((name.to_owned(), bytes.to_vec()));
    zip(&files)
}

fn assert_refused(cases: Vec<(&str, Vec<u8>, &str)>) {
    let mut failures = Vec::new();
    for (name, bytes, expected) in cases {
        match validate(&bytes) {
            Err(problem) if problem.contains(expected) && problem.lines().count() == 1 => {}
            other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn programs_are_refused() {
    let eval = |module: &str, name: &str| {
        let mut opcodes = format!("c{module}\n{name}\n").into_bytes();
        text(&mut opcodes, "touch /tmp/x");
        opcodes.extend(b"\x85R");
        pickled(&opcodes)
    };
    let stacked = |module: &str, name: &str| {
        let mut opcodes = Vec::new();
        text(&mut opcodes, module);
        text(&mut opcodes, name);
        opcodes.extend(b"\x93)R");
        pickled(&opcodes)
    };
    assert_refused(vec![
        (
            "os.system",
            eval("os", "system"),
            "asks for the global `os.system`, expected only",
        ),
        ("eval", eval("builtins", "eval"), "global `builtins.eval`"),
        ("stacked", stacked("posix", "system"), "global `posix.system`"),
        ("torch.load", eval("torch", "load"), "global `torch.load`"),
        (
            "numpy",
            eval("numpy.core.multiarray", "scalar"),
            "global `numpy.core.multiarray.scalar`",
        ),
        (
            "sparse",
            eval("torch._utils", "_rebuild_sparse_tensor"),
            "`torch._utils._rebuild_sparse_tensor`",
        ),
        (
            "dotted",
            stacked("torch", "_utils._rebuild_tensor_v2"),
            "`torch._utils._rebuild_tensor_v2`, expected",
        ),
        (
            "NEWOBJ",
            pickled(b"ccollections\nOrderedDict\n)\x81"),
            "opcode NEWOBJ, 0x81",
        ),
        ("INST", pickled(b"(ios\nsystem\n"), "opcode INST, 0x69"),
        ("OBJ", pickled(b"(o"), "opcode OBJ, 0x6f"),
        ("EXT1", pickled(b"\x82\x01"), "opcode EXT1, 0x82"),
        ("unknown", pickled(b"\xff"), "opcode 0xff"),
        (
            "state of a list",
            pickled(b"]}b"),
            "sets the state of a list to a dict",
        ),
        (
            "state from a text",
            pickled(b"}X\x01\0\0\0ab"),
            "sets the state of a dict to a text",
        ),
        (
            "calls a text",
            pickled(b"X\x01\0\0\0a)R"),
            "calls a text, expected a function",
        ),
        (
            "calls a type",
            pickled(b"ctorch\nFloatStorage\n)R"),
            "calls a type",
        ),
        (
            "calls without a tuple",
            pickled(b"ccollections\nOrderedDict\n}R"),
            "with a dict, expected a tuple",
        ),
        (
            "no storage",
            pickled(b"X\x01\0\0\0aQ"),
            "refers to a text outside of it",
        ),
        (
            "other reference",
            pickled(b"(X\x06\0\0\0moduleNNNNtQ"),
            "refers to `module` outside of it",
        ),
    ]);
}

/// What a pickle names again is not copied again, or is counted.
#[test]
fn what_is_named_many_times_takes_no_memory() {
    let mut keys = b"}".to_vec();
    text(&mut keys, &"k".repeat(100_000));
    keys.extend(b"q\x01Ns(");
    keys.extend(b"h\x01N".repeat(1_000_000));
    keys.push(b'u');
    let mut dicts = b"ccollections\nOrderedDict\nq\x00](".to_vec();
    dicts.extend(b"K\x01K\x02\x86".repeat(1000));
    dicts.extend(b"eq\x02");
    dicts.extend(b"h\x00h\x02\x85R".repeat(5000));
    let deep = one(0, &[1; 65], &[1; 65]).pickle(false);
    assert_refused(vec![
        ("keys", pickled(&keys), "and no tensor"),
        ("dicts", pickled(&dicts), "makes dicts of more than"),
        ("dimensions", archive_of(deep), "at most 64 dimensions"),
    ]);
}

#[test]
fn pickles_that_are_no_pickles_are_refused() {
    let deep = |opcode: &[u8]| archive_of([b"\x80\x02)", &opcode.repeat(1 << 20)[..], b"."].concat());
    let long = format!("c{}\nx\n", "a".repeat(300));
    assert_refused(vec![
        (
            "empty",
            archive_of(Vec::new()),
            "at byte 0, has 0 bytes left and needs 1",
        ),
        ("no end", archive_of(b"\x80\x02}".to_vec()), "truncated?"),
        (
            "two ends",
            archive_of(b"\x80\x02}.}.".to_vec()),
            "2 bytes after the end of its pickle",
        ),
        (
            "protocol",
            archive_of(b"\x80\x09}.".to_vec()),
            "has protocol 9, expected 2 to 5",
        ),
        ("nothing", pickled(b""), "ends with 0 values"),
        ("two values", pickled(b"}}"), "ends with 2 values"),
        ("open mark", pickled(b"}("), "ends with 1 values"),
        ("no mark", pickled(b"}u"), "a mark that it has not set"),
        ("below the mark", pickled(b"N(\x85"), "empty stack"),
        ("below the mark of a call", pickled(b"}((R"), "empty stack"),
        ("odd entries", pickled(b"}(Nu"), "a key without a value"),
        (
            "adds to a number",
            pickled(b"K\x01(Ne"),
            "adds to a number, expected",
        ),
        ("adds pairs to a list", pickled(b"](NNu"), "adds to a list"),
        ("forgotten", pickled(b"h\x07"), "recalls value 7"),
        (
            "long text",
            pickled(b"X\xff\xff\xff\xffabc"),
            "needs 4294967295: truncated?",
        ),
        (
            "longer text",
            pickled(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"),
            "truncated?",
        ),
        ("no text", pickled(b"X\x01\0\0\0\xff"), "not UTF-8"),
        (
            "long name",
            pickled(long.as_bytes()),
            "name is longer than 200 bytes",
        ),
        ("name without an end", pickled(b"cos"), "name is longer"),
        (
            "a list",
            pickled(b"]"),
            "holds a list, expected a dict of tensors",
        ),
        ("a number", pickled(b"K\x01"), "holds a number, expected a dict"),
        ("nested", deep(b"\x85"), "holds a tuple, expected a dict"),
        (
            "no tensor",
            pickled(b"}(X\x01\0\0\0aNu"),
            "holds `a` and no tensor",
        ),
        (
            "an empty dict",
            pickled(b"}"),
            "holds an empty dict and no tensor",
        ),
        (
            "itself",
            pickled(b"}q\0(X\x05\0\0\0modelh\0u"),
            "holds `model` and no tensor",
        ),
        (
            "two dicts",
            pickled(b"}(X\x05\0\0\0model}X\x0a\0\0\0state_dict}u"),
            "under `model` and under `state_dict`",
        ),
    ]);
    let mut many = b"\x80\x02".to_vec();
    many.resize((1 << 22) + 10, b'N');
    assert_refused(vec![
        ("many values", archive_of(many), "more than 4194304 values"),
        (
            "many marks",
            archive_of([b"\x80\x02", &b"(".repeat((1 << 22) + 9)[..]].concat()),
            "more than 4194304",
        ),
    ]);
}

#[test]
fn tensors_that_are_not_there_are_refused() {
    let twice = || {
        let mut saved = one(0, &[4], &[1]);
        saved.view("w", 0, 0, &[1], &[1]);
        saved
    };
    let repeated = || one(0, &[1 << 40], &[0]);
    let ranks = || one(0, &[1; 9], &[1; 9]);
    let many = |saved: fn() -> Saved| vec![saved().archive(), saved().legacy()];
    type Case = (&'static str, fn() -> Saved, &'static str);
    let both: Vec<Case> = vec![
        (
            "beyond",
            || one(1, &[4], &[1]),
            "`w` of shape [4], strides [1] and offset 1 does not lie in its storage",
        ),
        ("far beyond", || one(u64::MAX / 2, &[4], &[1]), "does not lie"),
        (
            "far strides",
            || one(0, &[2, 2], &[u64::MAX / 2, 1]),
            "does not lie in its storage of 4",
        ),
        (
            "overflow",
            || one(0, &[1 << 40, 1 << 40], &[0, 0]),
            "which overflows",
        ),
        ("bytes overflow", || one(0, &[1 << 62], &[0]), "which overflows"),
    ];
    for (name, saved, expected) in both {
        for bytes in many(saved) {
            assert_refused(vec![(name, bytes, expected)]);
        }
    }
    for bytes in [twice().archive(), twice().legacy()] {
        assert_refused(vec![("twice", bytes, "has tensor `w` twice")]);
    }
    for bytes in [repeated().archive(), repeated().legacy()] {
        assert_refused(vec![("repeated", bytes, "made by `expand`")]);
    }
    for bytes in [ranks().archive(), ranks().legacy()] {
        assert_refused(vec![("ranks", bytes, "has 9 dimensions, at most 8")]);
    }
}

#[test]
fn archives_that_do_not_hold_what_they_say_are_refused() {
    let good = one(0, &[4], &[1]).archive();
    assert!(validate(&good).is_ok());
    let pickle = one(0, &[4], &[1]).pickle(false);
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    // Flags and method of the first entry of the directory: it is the pickle.
    let directory = good.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let second = directory + 46 + "x/data.pkl".len();
    assert_refused(vec![
        ("cut", good[..good.len() - 9].to_vec(), "not a whole zip archive"),
        ("no directory", good[..60].to_vec(), "not a whole zip archive"),
        ("more", [&good[..], b"abc"].concat(), "zip archive"),
        (
            "only a beginning",
            b"PK\x03\x04".to_vec(),
            "not a whole zip archive",
        ),
        (
            "compressed",
            changed(directory + 10, 8),
            "`x/data.pkl` compressed",
        ),
        ("encrypted", changed(directory + 8, 1), "`x/data.pkl` encrypted"),
        ("two lengths", changed(directory + 24, 1), "two different lengths"),
        ("over another", changed(second + 42, 0), "over another"),
        (
            "no pickle",
            zip(&[file("x/data/0", &[0; 16])]),
            "without `data.pkl`",
        ),
        (
            "two",
            zip(&[file("x/data.pkl", &pickle), file("y/data.pkl", &pickle)]),
            "more than one `data.pkl`",
        ),
        (
            "same",
            zip(&[file("x/data.pkl", &pickle), file("x/data.pkl", &pickle)]),
            "`x/data.pkl` twice",
        ),
        ("script", with("x/constants.pkl", b""), "program of TorchScript"),
        (
            "short storage",
            with("x/data/0", &[0; 15]),
            "storage `0` of 16 bytes, its file has 15",
        ),
        ("long storage", with("x/data/0", &[0; 17]), "its file has 17"),
        (
            "no storage",
            zip(&[file("x/data.pkl", &pickle)]),
            "has no file `x/data/0`",
        ),
        (
            "big",
            with("x/byteorder", b"big"),
            "big-endian order, expected little-endian",
        ),
        (
            "no order",
            with("x/byteorder", b"middle"),
            "neither `little` nor `big`",
        ),
    ]);
}

#[test]
fn older_files_that_do_not_hold_what_they_say_are_refused() {
    let good = one(0, &[4], &[1]).legacy();
    assert!(validate(&good).is_ok());
    let without = |opcodes: &[u8]| {
        let mut bytes = write::before(true);
        bytes.extend(opcodes);
        bytes
    };
    let mut numbered = b"\x80\x02".to_vec();
    number(&mut numbered, 7);
    numbered.push(b'.');
    let keys = good.len() - 24;
    let mut other_count = good.clone();
    other_count[keys] = 5;
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_refused(vec![
        (
            "plain pickle",
            b"\x80\x02}.".to_vec(),
            "pickle of a dict and not a file of `torch.save`",
        ),
        ("number", numbered, "pickle of a number and not"),
        ("big", write::before(false), "big-endian order"),
        ("no object", without(b""), "truncated?"),
        ("no keys", without(b"\x80\x02}."), "truncated?"),
        (
            "keys of nothing",
            without(b"\x80\x02}.\x80\x02](X\x01\0\0\0ae."),
            "storage `a`, which no tensor has",
        ),
        ("cut", good[..good.len() - 1].to_vec(), "ends within storage `0`"),
        ("cut count", good[..keys + 3].to_vec(), "ends within storage `0`"),
        (
            "more",
            [&good[..], b"a"].concat(),
            "1 bytes after its last storage",
        ),
        (
            "other count",
            other_count,
            "storage `0` of 4 elements, its data has 5",
        ),
        ("tar", tar, "a tar archive, as torch before 0.1.10 wrote"),
    ]);
}
