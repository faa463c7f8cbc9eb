//! Decoding, resizing and preprocessing against what Pillow and transformers make of the same images
//! (`data/record_pixels.py`).

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use models::bundle::{Alpha, Aspect, ImageSpec, Resample};
use runtime::image::resize::{Canvas, resize};
use runtime::image::{ImageError, Limits, Picture, open, preprocess};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Recorded {
    resize: Vec<ResizeCase>,
    preprocess: Vec<PreprocessCase>,
    files: Vec<FileCase>,
}

#[derive(Deserialize)]
struct ResizeCase {
    source: (u32, u32, String),
    target: (u64, u64),
    filter: Resample,
    fnv: String,
    first: Vec<u8>,
    last: Vec<u8>,
}

#[derive(Deserialize)]
struct PreprocessCase {
    source: (u32, u32, String),
    pad: Option<[u8; 3]>,
    height: u32,
    width: u32,
    shortest_edge: u32,
    filter: Resample,
    mean: [f64; 3],
    std: [f64; 3],
    fnv: String,
    places: Vec<usize>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct FileCase {
    file: String,
    size: (u32, u32),
    fnv: Option<String>,
    reference: Option<String>,
    #[serde(default)]
    tolerance: u8,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("data/pixels.json")).unwrap()
}

/// The recorder's `picture`.
fn picture(source: &(u32, u32, String)) -> Picture {
    let (width, height, ref kind) = *source;
    let mut pixels = Vec::new();
    for y in 0..u64::from(height) {
        for x in 0..u64::from(width) {
            for c in 0..3_u64 {
                let value = match kind.as_str() {
                    "noise" => {
                        let index = (y * u64::from(width) + x) * 3 + c;
                        let z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(7);
                        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                        (z ^ (z >> 27)) >> 56
                    }
                    "waves" => (x * (3 + c) + y * (5 - c) + x * y / 16) % 256,
                    _ => (x / 3 + y / 5 + c) % 2 * 255,
                };
                pixels.push(u8::try_from(value).unwrap());
            }
        }
    }
    Picture::new(width, height, pixels).unwrap()
}

fn fnv(data: impl IntoIterator<Item = u8>) -> String {
    let value = data.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{value:016x}")
}

fn report(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} cases differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn resizes_are_pillows_to_the_bit() {
    let mut failures = Vec::new();
    for case in recorded().resize {
        let picture = picture(&case.source);
        let (width, height) = case.target;
        let canvas = Canvas::new(&picture);
        let found = resize(&canvas, width, height, 0..width, 0..height, case.filter);
        if fnv(found.iter().copied()) != case.fnv {
            let name = format!("{:?} -> {:?} {:?}", case.source, case.target, case.filter);
            failures.push(format!(
                "{name}: starts {:?}, expected {:?}; ends {:?}, expected {:?}",
                &found[..case.first.len()],
                case.first,
                &found[found.len() - case.last.len()..],
                case.last
            ));
        }
    }
    report(&failures);
}

#[test]
fn a_window_is_a_part_of_the_whole() {
    let picture = picture(&(61, 47, "noise".to_owned()));
    let canvas = Canvas {
        width: 90,
        height: 61,
        left: 11,
        top: 7,
        color: [3, 200, 90],
        ..Canvas::new(&picture)
    };
    let whole = resize(&canvas, 40, 200, 0..40, 0..200, Resample::Bicubic);
    for (columns, rows) in [
        (0..40, 0..200),
        (3..40, 0..1),
        (5..6, 190..200),
        (39..40, 199..200),
        (0..0, 0..0),
    ] {
        let found = resize(&canvas, 40, 200, columns.clone(), rows.clone(), Resample::Bicubic);
        let mut expected = Vec::new();
        for row in rows {
            for column in columns.clone() {
                let at = usize::try_from((row * 40 + column) * 3).unwrap();
                expected.extend_from_slice(&whole[at..at + 3]);
            }
        }
        assert_eq!(found, expected, "columns {columns:?}");
    }
}

#[test]
fn preprocessing_is_transformers() {
    let mut failures = Vec::new();
    for case in recorded().preprocess {
        let spec = ImageSpec {
            height: case.height,
            width: case.width,
            aspect: case.pad.map_or(Aspect::Crop, |color| Aspect::Pad { color }),
            shortest_edge: case.shortest_edge,
            resample: case.filter,
            rescale: 1.0 / 255.0,
            mean: case.mean,
            std: case.std,
            tokens: 1,
            alpha: Alpha::Dropped,
        };
        let found = preprocess(&picture(&case.source), &spec).unwrap();
        let name = format!(
            "{:?} pad {:?} to {} x {}",
            case.source, case.pad, case.width, case.height
        );
        let (height, width) = (case.height, case.width);
        let side = |side: u32| usize::try_from(side).unwrap();
        assert_eq!(found.values.dim(), (1, 3, side(height), side(width)), "{name}");
        let values = found.values.as_slice().unwrap();
        for (&place, &expected) in case.places.iter().zip(&case.values) {
            if (values[place] - expected).abs() > 1e-6 {
                failures.push(format!(
                    "{name}: value {place} is {}, expected {expected}",
                    values[place]
                ));
                break;
            }
        }
        if fnv(values.iter().flat_map(|value| value.to_le_bytes())) != case.fnv {
            failures.push(format!("{name}: the bits differ"));
        }
    }
    report(&failures);
}

#[test]
fn files_decode_as_in_pillow() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let limits = Limits::default();
    let mut failures = Vec::new();
    for case in recorded().files {
        let found = match open(&folder.join(&case.file), &limits) {
            Ok(found) => found,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        if (found.width(), found.height()) != case.size {
            failures.push(format!("{}: {found:?}, expected {:?}", case.file, case.size));
            continue;
        }
        if case
            .fnv
            .is_some_and(|expected| fnv(found.pixels().iter().copied()) != expected)
        {
            failures.push(format!(
                "{}: other pixels, from {:?}",
                case.file,
                &found.pixels()[..9]
            ));
        }
        if let Some(reference) = case.reference {
            let reference = open(&folder.join(reference), &limits).unwrap();
            let pairs = found.pixels().iter().zip(reference.pixels());
            let largest = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            if largest > case.tolerance {
                failures.push(format!(
                    "{}: differs by {largest}, at most {}",
                    case.file, case.tolerance
                ));
            }
        }
    }
    report(&failures);
}

#[derive(Deserialize)]
struct MatrixCase {
    file: String,
    size: (u32, u32),
    /// Of the pixels; absent where the file must be refused.
    fnv: Option<String>,
}

/// A part of the matrix of `conformance/python/fvlm_conformance/images`, which generated files and hashes.
#[test]
fn the_matrix_decodes_as_in_pillow() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/matrix");
    let cases: Vec<MatrixCase> = serde_json::from_str(include_str!("data/matrix/matrix.json")).unwrap();
    assert!(cases.len() > 250, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in cases {
        match (open(&folder.join(&case.file), &Limits::default()), case.fnv) {
            (Ok(found), Some(expected)) => {
                if (found.width(), found.height()) != case.size {
                    failures.push(format!("{}: {found:?}, expected {:?}", case.file, case.size));
                } else if fnv(found.pixels().iter().copied()) != expected {
                    failures.push(format!("{}: other pixels", case.file));
                }
            }
            (Err(ImageError::UnsupportedKind { .. }), None) => {}
            (Ok(_), None) => failures.push(format!("{}: decoded, expected an error", case.file)),
            (Err(error), _) => failures.push(error.to_string()),
        }
    }
    report(&failures);
}
