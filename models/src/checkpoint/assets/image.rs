//! From an image file to pixels: the published preprocessing of both layouts as an [`ImageSpec`].

use super::Files;
use crate::bundle::{Alpha, Aspect, ImageSpec, Resample};
use crate::checkpoint::error::CheckpointError;
use crate::config::{CONFIG, MAX_SIDE, ModelConfig, PREPROCESSOR, Processor};
use serde_json::Value;

/// Apple's `MobileCLIPVisionTower` and `process_images`: the processor's numbers stand in the code.
pub(super) fn llava_image(
    files: &Files<'_>,
    declared: &Value,
    config: &ModelConfig,
) -> Result<ImageSpec, CheckpointError> {
    let mean = [0.0; 3];
    let aspect = llava_aspect(files, declared, mean)?;
    let side = u32::try_from(config.vision.image_size).unwrap_or(u32::MAX);
    Ok(ImageSpec {
        height: side,
        width: side,
        aspect,
        shortest_edge: side,
        resample: Resample::Bicubic,
        rescale: 1.0 / 255.0,
        mean,
        std: [1.0; 3],
        tokens: tokens(config),
        alpha: Alpha::Dropped,
    })
}

/// What Apple's `process_images` does before the processor, which has that mean.
pub(super) fn llava_aspect(
    files: &Files<'_>,
    declared: &Value,
    mean: [f64; 3],
) -> Result<Aspect, CheckpointError> {
    match declared.get("image_aspect_ratio") {
        // A byte, for a mean of pixels: what is above or below is cut off.
        Some(Value::String(name)) if name == "pad" => Ok(Aspect::Pad {
            color: mean.map(byte),
        }),
        None | Some(Value::Null) => Ok(Aspect::Crop),
        Some(Value::String(name)) if name == "square" => Ok(Aspect::Crop),
        Some(other) => {
            let problem =
                format!("`image_aspect_ratio` is {other}, this build supports \"pad\", \"square\" and null");
            Err(files.config(CONFIG, problem))
        }
    }
}

/// Python's `int(mean * 255)`, within a byte.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the fraction is cut off, and `as` saturates"
)]
fn byte(mean: f64) -> u8 {
    (mean * 255.0) as u8
}

fn tokens(config: &ModelConfig) -> usize {
    usize::try_from(config.image_tokens()).unwrap_or(usize::MAX)
}

/// transformers' `CLIPImageProcessor`. Defaults are those of that class.
pub(super) fn transformers_image(
    files: &Files<'_>,
    processors: &[Processor],
    config: &ModelConfig,
) -> Result<ImageSpec, CheckpointError> {
    let Some(Processor { path, fields: value }) = processors.first() else {
        return Err(files.absent(PREPROCESSOR));
    };
    let mut problems = Vec::new();
    let mut flag = |field: &str| match value.get(field) {
        None => true,
        // transformers asks whether it is true.
        Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(found) => {
            problems.push(format!("`{field}` is {found}, expected true or false"));
            true
        }
    };
    let [resize, crop, rescale, normalize] =
        ["do_resize", "do_center_crop", "do_rescale", "do_normalize"].map(&mut flag);
    for (field, done) in [("do_resize", resize), ("do_center_crop", crop)] {
        if !done {
            let found = &value[field];
            problems.push(format!("`{field}` is {found}, this build supports true"));
        }
    }
    for field in ["do_pad", "use_square_size"] {
        if let Some(found) = value.get(field).filter(|found| !is_unset(found)) {
            problems.push(format!("`{field}` is {found}, this build supports false"));
        }
    }
    let resample = match value.get("resample").map_or(Some(3), Value::as_u64) {
        Some(1) => Resample::Lanczos,
        Some(2) => Resample::Bilinear,
        Some(3) => Resample::Bicubic,
        _ => {
            problems.push(format!(
                "`resample` is {}, this build supports 1, 2 and 3",
                value["resample"]
            ));
            Resample::Bicubic
        }
    };
    let side = u32::try_from(config.vision.image_size).unwrap_or(u32::MAX);
    let shortest_edge = shortest_edge(value, &mut problems).unwrap_or(side);
    // Where nothing is normalised, null is as good as anything.
    let counts = |found: &&Value| normalize || !found.is_null();
    let mut triple = |field: &str, default: [f64; 3]| match value.get(field).filter(counts) {
        None => default,
        Some(found) => {
            let list: Option<Vec<f64>> = match found {
                Value::Array(list) => list.iter().map(Value::as_f64).collect(),
                one => one.as_f64().map(|number| vec![number]),
            };
            match list.as_deref() {
                Some(&[r, g, b]) => [r, g, b],
                // One for all channels.
                Some(&[all]) => [all; 3],
                _ => {
                    problems.push(format!("`{field}` is {found}, expected three numbers or one"));
                    default
                }
            }
        }
    };
    // OPENAI_CLIP_MEAN and OPENAI_CLIP_STD.
    let mean = triple("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73]);
    let std = triple("image_std", [0.268_629_54, 0.261_302_58, 0.275_777_11]);
    let (mean, std) = if normalize {
        (mean, std)
    } else {
        ([0.0; 3], [1.0; 3])
    };
    if std.contains(&0.0) {
        problems.push("`image_std` has a 0, by which pixels would be divided".to_owned());
    }
    let factor = match value.get("rescale_factor") {
        None => 1.0 / 255.0,
        Some(Value::Null) if !rescale => 1.0,
        Some(found) => found.as_f64().unwrap_or_else(|| {
            problems.push(format!("`rescale_factor` is {found}, expected a number"));
            1.0
        }),
    };
    if problems.is_empty() {
        Ok(ImageSpec {
            height: side,
            width: side,
            aspect: Aspect::Crop,
            shortest_edge,
            resample,
            rescale: if rescale { factor } else { 1.0 },
            mean,
            std,
            tokens: tokens(config),
            // Whatever `do_convert_rgb` says: without it, transparent images are no images to it.
            alpha: Alpha::White,
        })
    } else {
        Err(CheckpointError::Config {
            path: path.clone(),
            problems,
        })
    }
}

/// `size`: an object with the shortest edge alone, or a number that is one, CLIP's old form.
fn shortest_edge(value: &Value, problems: &mut Vec<String>) -> Option<u32> {
    const EDGE: &str = "shortest_edge";
    let size = &value["size"];
    let square = value.get("default_to_square");
    let number = size.is_number() && square.is_none_or(is_unset);
    let edge = if number { Some(size) } else { size.get(EDGE) };
    let edge = edge.and_then(Value::as_u64);
    let Some(edge @ 1..) = edge else {
        let found = if size.is_number() && !number {
            format!("{size} with `default_to_square` true")
        } else {
            size.to_string()
        };
        problems.push(format!("`size` is {found}, expected a `{EDGE}`"));
        return None;
    };
    if edge > MAX_SIDE {
        let field = if number { "size" } else { "size.shortest_edge" };
        problems.push(format!("`{field}` is {edge}, expected 1 to {MAX_SIDE}"));
    }
    for (name, found) in size.as_object().into_iter().flatten() {
        if name != EDGE && !found.is_null() {
            problems.push(format!(
                "`size.{name}` is {found}, this build supports a `{EDGE}` alone"
            ));
        }
    }
    u32::try_from(edge).ok()
}

/// Whether a flag says no.
fn is_unset(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}
