//! How does RGB become `pixel_values`?
//!
//! The published recipes: LLaVA's (`expand2square` with the mean colour, then CLIP's processing) and transformers'
//! (CLIP's processing alone), the latter as its Pillow backend does it (`CLIPImageProcessorPil`, transformers 5.24). CLIP's
//! processing: shortest edge, centre crop, rescale, normalise. `AutoProcessor` prefers the torchvision backend when
//! torchvision is installed: its resize differs by at most 1/255 in a few values.

use super::resize::{Canvas, resize};
use super::{ImageError, ImageId, Picture, PixelValues};
use models::bundle::{Aspect, ImageSpec};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Longest edge of `pixel_values`: far beyond any encoder, small enough for memory.
const MAX_SIZE: u32 = 16_384;

/// `pixel_values` of `picture`, as `spec` says.
///
/// Edges follow transformers: the long one is `shortest_edge * long / short`, truncated; a crop that is larger than
/// the resized image has a margin of zeros (black before `mean` and `std`), the wider part of it above and to the left.
pub fn preprocess(picture: &Picture, spec: &ImageSpec) -> Result<PixelValues, ImageError> {
    check(spec)?;
    let canvas = canvas(picture, &spec.aspect);
    let (width, height) = resized(canvas.width, canvas.height, u64::from(spec.shortest_edge));
    let (left, columns) = crop(width, u64::from(spec.width));
    let (top, rows) = crop(height, u64::from(spec.height));
    let bytes = resize(
        &canvas,
        width,
        height,
        columns.clone(),
        rows.clone(),
        spec.resample,
    );

    let size = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
    let (target_width, target_height) = (size(spec.width), size(spec.height));
    let plane = target_width * target_height;
    let tables = tables(spec);
    let mut data = Vec::with_capacity(plane * 3);
    for table in &tables {
        data.resize(data.len() + plane, table[0]);
    }
    let row_bytes = usize::try_from(columns.end - columns.start).unwrap_or(0) * 3;
    for (row, pixels) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
        let start = (top + row) * target_width + left;
        for (channel, table) in tables.iter().enumerate() {
            let target = &mut data[channel * plane + start..][..row_bytes / 3];
            for (value, pixel) in target.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    (left, top, columns, rows, bytes).hash(&mut hasher);
    Ok(PixelValues {
        height: target_height,
        width: target_width,
        data,
        id: ImageId(hasher.finish()),
    })
}

/// All faults of a spec that would make nonsense of every image.
fn check(spec: &ImageSpec) -> Result<(), ImageError> {
    let mut problems = Vec::new();
    for (name, edge) in [
        ("height", spec.height),
        ("width", spec.width),
        ("shortest_edge", spec.shortest_edge),
    ] {
        if !(1..=MAX_SIZE).contains(&edge) {
            problems.push(format!("`{name}` is {edge}, expected 1 to {MAX_SIZE}"));
        }
    }
    if !spec.rescale.is_finite() {
        problems.push(format!("`rescale` is {}, expected a finite number", spec.rescale));
    }
    if !spec.mean.iter().all(|mean| mean.is_finite()) {
        problems.push(format!("`mean` is {:?}, expected finite numbers", spec.mean));
    }
    if !spec.std.iter().all(|std| std.is_finite() && *std != 0.0) {
        problems.push(format!(
            "`std` is {:?}, expected finite numbers other than 0",
            spec.std
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(ImageError::Spec { problems })
    }
}

fn canvas<'a>(picture: &'a Picture, aspect: &Aspect) -> Canvas<'a> {
    let canvas = Canvas::new(picture);
    match *aspect {
        Aspect::Crop => canvas,
        Aspect::Pad { color } => {
            let edge = canvas.width.max(canvas.height);
            let (left, top) = ((edge - canvas.width) / 2, (edge - canvas.height) / 2);
            Canvas {
                width: edge,
                height: edge,
                left,
                top,
                color,
                ..canvas
            }
        }
    }
}

/// Width and height after the resize (transformers' `get_resize_output_image_size`).
fn resized(width: u64, height: u64, shortest_edge: u64) -> (u64, u64) {
    if width <= height {
        (shortest_edge, shortest_edge * height / width)
    } else {
        (shortest_edge * width / height, shortest_edge)
    }
}

/// Where the resized edge starts in the crop, and which part of it is kept (transformers' `center_crop`).
fn crop(edge: u64, crop: u64) -> (usize, std::ops::Range<u64>) {
    if edge >= crop {
        let start = (edge - crop) / 2;
        (0, start..start + crop)
    } else {
        (usize::try_from((crop - edge).div_ceil(2)).unwrap_or(0), 0..edge)
    }
}

/// The value of every byte, per channel: `(byte * rescale - mean) / std`, in f64 and f32 where transformers has them.
#[expect(clippy::as_conversions, reason = "rounding f64 to f32 is the point")]
fn tables(spec: &ImageSpec) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        let (mean, std) = (spec.mean[channel] as f32, spec.std[channel] as f32);
        std::array::from_fn(|byte| ((byte as f64 * spec.rescale) as f32 - mean) / std)
    })
}
