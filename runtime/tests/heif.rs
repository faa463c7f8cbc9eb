//! Are HEIC and AVIF decoded as libheif's own `heif-convert` does? On small files that were made by `heif-enc` or put
//! together around what it coded (`conformance/python/fvlm_conformance/images/heif.py`), each beside what `heif-convert`
//! made of it.
//!
//! Where there is no libheif, that is said and nothing is compared, unless `FVLM_REQUIRE` has the word `libheif`.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::print_stderr, reason = "why something is left out")]

use runtime::image::heif::VARIABLE;
use runtime::image::{ImageError, Limits, Picture, decode, open};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Levels that versions of libheif may differ by.
const LEVELS: u8 = 2;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/heif")
}

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "heic" || end == "avif"));
    files.sort();
    assert!(files.len() > 15, "{}", files.len());
    files
}

/// The picture, or `None` where nothing decodes such files here and nothing has to.
fn read(path: &Path) -> Option<Picture> {
    match open(path, &Limits::default()) {
        Ok(picture) => Some(picture),
        Err(error @ ImageError::NoDecoder { .. }) => {
            let required = std::env::var("FVLM_REQUIRE").unwrap_or_default();
            let required = required.split(',').any(|word| word.trim() == "libheif");
            assert!(!required, "FVLM_REQUIRE names `libheif`: {error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// By how many levels two pictures differ at most.
fn difference(one: &Picture, other: &Picture) -> u8 {
    let pairs = one.pixels().iter().zip(other.pixels());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn pixels_are_those_of_libheif() {
    for path in files() {
        let Some(found) = read(&path) else {
            return;
        };
        let reference = PathBuf::from(format!("{}.png", path.display()));
        let reference = open(&reference, &Limits::default()).unwrap();
        assert_eq!(
            (found.width(), found.height()),
            (reference.width(), reference.height()),
            "{}",
            path.display()
        );
        let name = path.file_name().unwrap().to_string_lossy();
        // Colours that are divided by a small alpha are far apart for little.
        if !name.contains("premultiplied") {
            let largest = difference(&found, &reference);
            assert!(largest <= LEVELS, "{name} differs by {largest}");
        }
        let (white, expected) = (found.on_white(), reference.on_white());
        let largest = difference(&white, &expected);
        assert!(largest <= LEVELS, "{name} on white differs by {largest}");
        let transparent = name.contains("alpha") || name.contains("premultiplied");
        assert_eq!(white != found, transparent, "{name}");
    }
}

#[test]
fn the_limit_is_that_of_what_is_shown() {
    let path = folder().join("heic-420-33x17.heic");
    let bytes = std::fs::read(&path).unwrap();
    if read(&path).is_none() {
        return;
    }
    let decode = |max_pixels| decode(&bytes, "a.heic", &Limits { max_pixels });
    assert_eq!(decode(33 * 17).unwrap().width(), 33);
    let error = decode(33 * 17 - 1).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::TooManyPixels {
                width: 33,
                height: 17,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn files_that_are_cut_off_are_damaged() {
    for path in files() {
        let bytes = std::fs::read(&path).unwrap();
        for left in [bytes.len() - 100, bytes.len() / 2, 40] {
            let error = decode(&bytes[..left], "a.heic", &Limits::default()).unwrap_err();
            assert!(
                matches!(error, ImageError::Damaged { .. }),
                "{}: {error}",
                path.display()
            );
        }
    }
}

/// What [`what_is_said`] prints, for a process of its own: the library is looked for once in each.
#[test]
#[ignore = "other tests run it"]
fn say() {
    let error = open(&folder().join("heic-420-33x17.heic"), &Limits::default());
    eprintln!(
        "said: {}",
        error.map_or_else(|error| error.to_string(), |_| "decoded".to_owned())
    );
}

/// What a process says of a HEIC image whose `FVLM_LIBHEIF` is this.
fn what_is_said(library: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "say", "--ignored", "--nocapture"])
        .env(VARIABLE, library)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let said = text.lines().find_map(|line| line.split_once("said: "));
    said.unwrap().1.to_owned()
}

#[test]
fn a_library_that_is_missing_or_none_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.so");
    std::fs::write(&none, "no library").unwrap();
    let missing = folder.path().join("missing.so");
    for (path, part) in [(&none, "cannot open"), (&missing, "missing.so")] {
        let said = what_is_said(path);
        for part in [
            "heic-420-33x17.heic` is a HEIC image, which is not decoded here: FVLM_LIBHEIF, ",
            part,
            "; install libheif (",
            "or convert the image (`",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

/// Libraries that answer as old ones and others do, made by the C compiler; without one there is nothing to try.
#[test]
#[cfg(unix)]
fn a_library_that_is_too_old_or_another_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (
            "old",
            "unsigned heif_get_version_number(void) { return 0x010c0000; }",
            "is version 1.12.0, expected 1.15 or later",
        ),
        (
            "other",
            "int nothing;",
            "it has no function `heif_get_version_number`, expected libheif",
        ),
        (
            "part",
            "unsigned heif_get_version_number(void) { return 0x02000000; }",
            "it has no function `heif_init`, expected libheif",
        ),
    ];
    for (name, text, part) in cases {
        let (source, library) = (
            folder.path().join("it.c"),
            folder.path().join(format!("{name}.so")),
        );
        std::fs::write(&source, text).unwrap();
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source]);
        if !compiler.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: no C compiler");
            return;
        }
        let said = what_is_said(&library);
        assert!(
            said.contains(part) && said.contains("convert the image"),
            "{said}"
        );
    }
}
