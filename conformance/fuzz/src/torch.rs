//! `torch`: one file of `torch.save`, read as `fvlm-export` reads weights and adapters.
//!
//! What is accepted is read whole, in pieces and at once alike, and is not much longer than the file. Views
//! that lie in their storages are accepted and have the values that a reader of another kind finds, others
//! are refused.

use crate::folder::Folder;
use crate::saved::{self, Saved};
use crate::words;
use arbitrary::{Result, Unstructured};
use models::checkpoint::{StoredTensor, TensorFile};
use std::cell::OnceCell;
use std::collections::BTreeSet;

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// Types of storages and bytes of their elements.
const KINDS: [(&str, usize); 5] = [
    ("FloatStorage", 4),
    ("HalfStorage", 2),
    ("BFloat16Storage", 2),
    ("LongStorage", 8),
    ("BoolStorage", 1),
];

/// The first byte says whether the rest is a file, the pickle of one, or says what views there are.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => drop(open(rest)),
        1 => {
            let mut files = vec![("x/data.pkl".to_owned(), rest.to_vec())];
            files.extend((0..3).map(|key| (format!("x/data/{key}"), vec![*kind; 8 << key])));
            drop(open(&saved::zip(&files)));
        }
        2 => {
            let mut file = saved::before(true);
            file.extend(rest);
            drop(open(&file));
        }
        _ => drop(views(&mut Unstructured::new(rest))),
    }
}

/// Opens a file; everything in it is read.
fn open(file: &[u8]) -> Option<TensorFile> {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| Folder::new("torch"));
        let path = folder.put("t.bin", Some(file));
        match TensorFile::open(&path) {
            Ok(opened) => {
                check(&opened, file.len());
                Some(opened)
            }
            Err(error) => {
                words::check(&error.to_string(), file);
                None
            }
        }
    })
}

fn check(opened: &TensorFile, length: usize) {
    let mut names = BTreeSet::new();
    let mut total = 0;
    for tensor in opened.tensors() {
        assert!(names.insert(&tensor.name), "a name twice: {}", tensor.name);
        assert!(opened.find(&tensor.name).is_some_and(|found| found == tensor));
        total += bytes(opened, tensor).len();
        assert!(total <= 16 * length, "{total} bytes of {length}");
        let mut whole = vec![0.0; tensor.elements() as usize];
        let read = opened.read(tensor, 0, &mut whole);
        assert_eq!(read.is_ok(), tensor.dtype.is_weight());
        let mut one = [0.0];
        for from in [0, whole.len() / 2, whole.len().saturating_sub(1)] {
            let read = opened.read(tensor, from, &mut one);
            let there = from < whole.len() && tensor.dtype.is_weight();
            assert_eq!(read.is_ok(), there);
            assert!(!there || one[0].to_bits() == whole[from].to_bits());
        }
    }
}

fn bytes(opened: &TensorFile, tensor: &StoredTensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    opened.each_piece(tensor, &mut |piece| bytes.extend_from_slice(piece));
    bytes
}

/// Views of storages that lie in them, or not.
fn views(u: &mut Unstructured<'_>) -> Result<()> {
    let mut saved = Saved::default();
    for _ in 0..u.int_in_range(1..=3)? {
        let (kind, size) = *u.choose(&KINDS)?;
        let count = u.int_in_range(0..=24_usize)?;
        let bytes = (0..count * size).map(|at| (at * 37 % 251) as u8).collect();
        saved.storages.push((kind.to_owned(), bytes));
    }
    for name in ["a", "b", "\u{1b}[31m", ""] {
        if !u.ratio(2, 3)? {
            continue;
        }
        let storage = u.choose_index(saved.storages.len())?;
        let rank = u.int_in_range(0..=5)?;
        let shape: Vec<u64> = (0..rank).map(|_| u.int_in_range(0..=4)).collect::<Result<_>>()?;
        let strides = match u.arbitrary()? {
            true => saved::row_major(&shape),
            false => (0..rank).map(|_| u.int_in_range(0..=12)).collect::<Result<_>>()?,
        };
        saved.view(name, storage, u.int_in_range(0..=6)?, &shape, &strides);
    }
    if u.ratio(1, 4)? {
        saved.around = Some("state_dict".to_owned());
    }
    let file = if u.arbitrary()? {
        saved.archive()
    } else {
        saved.legacy()
    };
    let expected: Option<Vec<Vec<u8>>> = (0..saved.tensors.len()).map(|at| naive(&saved, at)).collect();
    let expected = expected.filter(|all| !all.is_empty());
    let opened = open(&file);
    let total: usize = expected.iter().flatten().map(Vec::len).sum();
    assert_eq!(
        opened.is_some(),
        expected.is_some() && total <= 16 * file.len(),
        "{saved:?}"
    );
    for (tensor, expected) in saved.tensors.iter().zip(expected.into_iter().flatten()) {
        if let Some(opened) = &opened {
            let found = opened.find(&tensor.name).expect("a tensor that was saved");
            assert_eq!((&found.shape, bytes(opened, found)), (&tensor.shape, expected));
        }
    }
    Ok(())
}

/// The bytes of a view, one index after the other; none where one of them lies outside.
fn naive(saved: &Saved, at: usize) -> Option<Vec<u8>> {
    let tensor = &saved.tensors[at];
    let (kind, storage) = &saved.storages[tensor.storage];
    let size = KINDS.iter().find(|(known, _)| known == kind)?.1;
    let mut places = vec![tensor.offset];
    for (side, stride) in tensor.shape.iter().zip(&tensor.strides) {
        places = places
            .into_iter()
            .flat_map(|place| (0..*side).map(move |i| place + i * stride))
            .collect();
    }
    let element = |place: &u64| {
        let start = *place as usize * size;
        storage.get(start..start + size)
    };
    Some(places.iter().map(element).collect::<Option<Vec<_>>>()?.concat())
}
