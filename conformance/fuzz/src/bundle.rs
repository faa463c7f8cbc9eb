//! `bundle`: a `bundle.json` beside files, opened as `fvlm-run` opens it.
//!
//! What is accepted names files inside the bundle alone, has lengths that can be divided by and indexed with,
//! and is accepted again as the same once it is written.

use crate::folder::Folder;
use crate::{config, words};
use models::bundle::{Bundle, FILE_NAME};
use std::cell::OnceCell;
use std::path::{Component, Path};

/// A bundle with a variant of each target and a set of packages; its files are short.
const BASE: &str = include_str!("../base/bundle.json");

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// The first byte says whether the rest is a text, or changes to one.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = if kind % 3 == 0 {
        rest.to_vec()
    } else {
        config::changed(BASE, rest).into_bytes()
    };
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(filled);
        folder.put(FILE_NAME, Some(&text));
        match Bundle::open(folder.path()) {
            Ok(bundle) => sound(&bundle, folder),
            Err(error) => words::check(&error.to_string(), &text),
        }
    });
}

/// The files that the base names.
fn filled() -> Folder {
    let folder = Folder::new("bundle");
    folder.put(FILE_NAME, Some(BASE.as_bytes()));
    let base: serde_json::Value = serde_json::from_str(BASE).expect("the base is JSON");
    for file in base["files"].as_array().into_iter().flatten() {
        let length = file["bytes"].as_u64().unwrap_or_default() as usize;
        let path = file["path"].as_str().expect("a path");
        folder.put(path, Some(&vec![0; length]));
    }
    Bundle::open(folder.path()).expect("the base opens");
    folder
}

fn sound(bundle: &Bundle, folder: &Folder) {
    for file in &bundle.files {
        let mut parts = Path::new(&file.path).components();
        assert!(
            parts.all(|part| matches!(part, Component::Normal(_))),
            "{}",
            file.path
        );
    }
    for (height, width) in bundle.image_sizes() {
        let of_size = bundle.at_size(height, width);
        let of_size = of_size.expect("a size that it has");
        assert_eq!((of_size.image.height, of_size.image.width), (height, width));
    }
    for variant in &bundle.variants {
        let context = bundle.context(variant);
        assert!(context > 0 && context <= bundle.kv.max_context);
    }
    let written = bundle.to_json();
    folder.put(FILE_NAME, Some(written.as_bytes()));
    let mut again = Bundle::open(folder.path()).expect("what is written is read");
    again.unknown.clone_from(&bundle.unknown);
    assert_eq!(*bundle, again, "read again, not the same");
}
