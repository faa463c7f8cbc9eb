//! Does the runtime see what the published preprocessing sees? Pixels against those that Pillow and transformers made,
//! by both recipes: LLaVA's pad to a square, and transformers' shortest edge with a centre crop.

use crate::golden::{Reference, Source};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::subject::{Precision, Target};
use crate::setup::workspace::{Workspace, small};
use crate::suite::recorded;
use models::bundle::{Alpha, Aspect, ImageSpec, Resample};
use runtime::image::resize::{Canvas, resize};
use runtime::image::{self, Picture};
use serde::Deserialize;
use std::sync::Arc;

/// What `runtime/tests/data/record_pixels.py` recorded.
const PIXELS: &str = include_str!("../../../runtime/tests/data/pixels.json");

/// One level of 256, and the rounding of the numbers that carry it.
const ONE_LEVEL: f64 = 1.0 / 255.0 + 1e-6;

/// Recorded resizes, recorded preprocessing, and the pixels of every reference.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::once("image/resize", "resizes are Pillow's to the bit", |_| resizes()),
        Case::once(
            "image/preprocess/crop",
            "transformers' recipe, within one level of 256",
            |_| recipe(false),
        ),
        Case::once(
            "image/preprocess/pad",
            "LLaVA's recipe, within one level of 256",
            |_| recipe(true),
        ),
        Case::once(
            "image/spec",
            "a checkpoint's files lead to its published recipe",
            specs,
        ),
    ];
    cases.extend(recorded::embedded("image", has_pixels, |references| {
        let case = |reference: &Arc<Reference>| {
            let name = format!("image/{}", reference.name);
            let reference = Arc::clone(reference);
            Case::once(
                name,
                "`pixel_values` as recorded, within one level of 256",
                move |workspace| recorded(&reference, workspace),
            )
        };
        references.iter().map(case).collect()
    }));
    cases
}

fn has_pixels(reference: &Reference) -> bool {
    reference
        .cases
        .iter()
        .flat_map(|case| &case.checks)
        .any(|check| check.value == "pixel_values")
}

#[derive(Deserialize)]
struct Pixels {
    resize: Vec<Resize>,
    preprocess: Vec<Preprocess>,
}

#[derive(Deserialize)]
struct Resize {
    source: Drawn,
    target: (u64, u64),
    filter: Resample,
    /// FNV-1a of the RGB bytes.
    fnv: String,
}

#[derive(Deserialize)]
struct Preprocess {
    source: Drawn,
    pad: Option<[u8; 3]>,
    height: u32,
    width: u32,
    shortest_edge: u32,
    filter: Resample,
    mean: [f64; 3],
    std: [f64; 3],
    /// FNV-1a of the little-endian float32 values.
    fnv: String,
    places: Vec<usize>,
    values: Vec<f32>,
}

/// Width, height and kind of a picture that the recorder draws.
#[derive(Debug, Deserialize)]
struct Drawn(u32, u32, String);

impl Drawn {
    fn picture(&self) -> Result<Picture, CaseError> {
        let &Drawn(width, height, ref kind) = self;
        let (columns, rows) = (u64::from(width), u64::from(height));
        let mut pixels = Vec::new();
        for y in 0..rows {
            for x in 0..columns {
                for c in 0..3 {
                    let value = match kind.as_str() {
                        "noise" => {
                            let z = ((y * columns + x) * 3 + c)
                                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                                .wrapping_add(7);
                            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                            (z ^ (z >> 27)) >> 56
                        }
                        "waves" => (x * (3 + c) + y * (5 - c) + x * y / 16) % 256,
                        _ => (x / 3 + y / 5 + c) % 2 * 255,
                    };
                    pixels.push(u8::try_from(value).unwrap_or(u8::MAX));
                }
            }
        }
        picture(width, height, pixels)
    }
}

fn picture(width: u32, height: u32, pixels: Vec<u8>) -> Result<Picture, CaseError> {
    Picture::new(width, height, pixels).ok_or_else(|| CaseError::Failed {
        context: "drawing a picture".to_owned(),
        message: format!("{width} x {height} is not the size of its pixels"),
    })
}

fn pixels() -> Result<Pixels, CaseError> {
    serde_json::from_str(PIXELS).during(|| "reading the recorded pixels".to_owned())
}

fn fnv(data: impl IntoIterator<Item = u8>) -> String {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let hash = data.into_iter().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn resizes() -> Result<Findings, CaseError> {
    let mut findings = Findings::default();
    let cases = pixels()?.resize;
    for Resize {
        source,
        target,
        filter,
        fnv: expected,
    } in &cases
    {
        let picture = source.picture()?;
        let &(width, height) = target;
        let found = fnv(resize(
            &Canvas::new(&picture),
            width,
            height,
            0..width,
            0..height,
            *filter,
        ));
        findings.require(found == *expected, || {
            format!("{source:?} to {width} x {height} {filter:?}: other bytes")
        });
    }
    findings.require(!cases.is_empty(), || "nothing is recorded".to_owned());
    findings.notes.push(format!("{} resizes", cases.len()));
    Ok(findings)
}

/// Recorded places of `pixel_values`; that all of them agree to the bit is told, not asked for.
fn recipe(padded: bool) -> Result<Findings, CaseError> {
    let mut findings = Findings::default();
    let mut exact = 0;
    let cases: Vec<Preprocess> = pixels()?
        .preprocess
        .into_iter()
        .filter(|case| case.pad.is_some() == padded)
        .collect();
    for case in &cases {
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
        let name = format!(
            "{:?} pad {:?} to {} x {}",
            case.source, case.pad, case.width, case.height
        );
        let found = image::preprocess(&case.source.picture()?, &spec)
            .during(|| format!("preprocessing {name}"))?
            .values
            .into_flat()
            .to_vec();
        let plane = usize::try_from(u64::from(case.width) * u64::from(case.height)).unwrap_or(1);
        findings.require(found.len() == 3 * plane, || {
            format!("{name}: {} values", found.len())
        });
        for (&place, &expected) in case.places.iter().zip(&case.values) {
            // Levels of the picture: a small deviation makes large values.
            let deviation = case.std.get(place / plane).copied().unwrap_or(1.0);
            let value = found.get(place).copied().unwrap_or(f32::NAN);
            let distance = (f64::from(value) - f64::from(expected)).abs() * deviation;
            findings.require(distance <= ONE_LEVEL, || {
                format!("{name}: value {place} is {value}, expected {expected}")
            });
        }
        exact += usize::from(fnv(found.iter().flat_map(|value| value.to_le_bytes())) == case.fnv);
    }
    findings.require(!cases.is_empty(), || "nothing is recorded".to_owned());
    findings
        .notes
        .push(format!("{exact} of {} equal to the bit", cases.len()));
    Ok(findings)
}

/// What the bundles of both layouts say, against the published recipes.
fn specs(workspace: &Workspace) -> Result<Findings, CaseError> {
    workspace.require_ours()?;
    let mut findings = Findings::default();
    let published = |aspect, alpha| ImageSpec {
        height: 256,
        width: 256,
        aspect,
        shortest_edge: 256,
        resample: Resample::Bicubic,
        rescale: 1.0 / 255.0,
        // FastViTHD was trained on pixels from 0 to 1.
        mean: [0.0; 3],
        std: [1.0; 3],
        tokens: 16,
        alpha,
    };
    for (layout, aspect, alpha) in [
        ("llava", Aspect::Pad { color: [0; 3] }, Alpha::Dropped),
        ("transformers", Aspect::Crop, Alpha::White),
        ("transformers-train", Aspect::Crop, Alpha::White),
    ] {
        let mut found = workspace.deployed(&small(layout, 1))?.bundle.image.clone();
        let expected = published(aspect, alpha);
        // Files write 1/255 with 15 digits.
        if (found.rescale - expected.rescale).abs() < 1e-12 {
            found.rescale = expected.rescale;
        }
        findings.require(found == expected, || {
            format!("{layout}: {found:?}, expected {expected:?}")
        });
    }
    Ok(findings)
}

/// The recipe of a reference's model: its bundle's. A large model's is that of the small one of its layout, but for
/// the side.
fn spec(reference: &Reference, workspace: &Workspace, side: usize) -> Result<ImageSpec, CaseError> {
    let deployed = match &reference.checkpoint {
        Source::Synth { layout, .. } => workspace.deployed(&small(layout, 1))?,
        _ => workspace.deployed_for(reference, Target::Portable)?,
    };
    let mut spec = deployed.bundle.image.clone();
    if let (Source::Synth { .. }, Ok(side)) = (&reference.checkpoint, u32::try_from(side)) {
        (spec.height, spec.width, spec.shortest_edge) = (side, side, side);
    }
    Ok(spec)
}

fn recorded(reference: &Reference, workspace: &Workspace) -> Result<Findings, CaseError> {
    workspace.require_ours()?;
    let mut findings = Findings::default();
    for case in &reference.cases {
        let Some(check) = case.checks.iter().find(|check| check.value == "pixel_values") else {
            continue;
        };
        let side = check.shape.last().copied().unwrap_or(0);
        let spec = spec(reference, workspace, side)?;
        let mut images = Vec::with_capacity(case.images.len());
        for image in &case.images {
            let picture = workspace.picture(reference, image)?;
            images.push(image::preprocess(&picture, &spec).during(|| format!("preprocessing {image:?}"))?);
        }
        let mut comparison = reference.compare(check, Precision::Fp32, &recorded::batch(&images)?);
        comparison.value = format!("{}: {}", case.name, comparison.value);
        findings.push(comparison);
    }
    Ok(findings)
}
