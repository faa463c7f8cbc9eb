//! How does RGB become `pixel_values`?
//!
//! The published recipes: LLaVA's (`expand2square` with the mean colour, then CLIP's processing) and transformers'
//! (CLIP's processing alone). CLIP's processing is shortest edge, centre crop, rescale, normalise, as transformers'
//! Pillow backend does it (`CLIPImageProcessorPil`, 5.24): equal to the bit. `AutoProcessor` takes the torchvision backend
//! where torchvision is installed: its resize differs from Pillow's by one level (two in noise) in under 1 % of the
//! values, and a crop that is larger than the image lies one pixel further up and left where the margin is odd.

use super::resize::{Canvas, resize};
use super::threads::share;
use super::{ImageError, ImageId, Picture, PixelValues};
use models::bundle::{Alpha, Aspect, ImageSpec};
use ndarray::{Array4, ArrayViewMut1, Axis, s};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// Longest edge of `pixel_values`: far beyond any encoder, small enough for memory.
const MAX_SIZE: u32 = 16_384;

/// `pixel_values` of `picture`, as `spec` says.
///
/// Edges follow transformers: the long one is `shortest_edge * long / short`, truncated; a crop that is larger than
/// the resized image has a margin of zeros (black before `mean` and `std`), the wider part of it above and to the left.
pub fn preprocess(picture: &Picture, spec: &ImageSpec) -> Result<PixelValues, ImageError> {
    check(spec)?;
    let picture = &match spec.alpha {
        Alpha::Dropped => picture.clone(),
        Alpha::White => picture.on_white(),
    };
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
    let mut values = Array4::zeros((1, 3, size(spec.height), size(spec.width)));
    let tables = tables(spec);
    let row_bytes = usize::try_from(columns.end - columns.start).unwrap_or(0) * 3;
    let picture_row = |row: usize| {
        let start = row.checked_sub(top)?.checked_mul(row_bytes)?;
        bytes.get(start..start + row_bytes)
    };
    let mut hashes = vec![0; size(spec.height).div_ceil(BAND)];
    let mut channels = values.slice_mut(s![0, .., .., ..]);
    let bands = channels.axis_chunks_iter_mut(Axis(1), BAND);
    share(
        bands.zip(&mut hashes).enumerate(),
        |(band, (mut values, hash))| {
            let mut hasher = KEYS.build_hasher();
            for (row, mut values) in values.axis_iter_mut(Axis(1)).enumerate() {
                let pixels = picture_row(band * BAND + row).unwrap_or(&[]);
                hasher.write(pixels);
                for (channel, table) in tables.iter().enumerate() {
                    normalise(pixels, channel, table, left, values.row_mut(channel));
                }
            }
            *hash = hasher.finish();
        },
    );
    Ok(PixelValues {
        values,
        id: ImageId(KEYS.hash_one((left, top, columns, rows, hashes))),
    })
}

/// Of this process: nobody can make two images beforehand that have one [`ImageId`].
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Rows of `pixel_values` that a thread makes and hashes at once.
const BAND: usize = 64;

/// One channel of a row of `pixels`, from column `left` of `values` on; beside it, black.
fn normalise(pixels: &[u8], channel: usize, table: &[f32; 256], left: usize, values: ArrayViewMut1<'_, f32>) {
    let (mut before, rest) = values.split_at(Axis(0), left);
    let (mut inside, mut after) = rest.split_at(Axis(0), pixels.len() / 3);
    before.fill(table[0]);
    for (value, pixel) in inside.iter_mut().zip(pixels.as_chunks::<3>().0) {
        *value = table[usize::from(pixel[channel])];
    }
    after.fill(table[0]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use models::bundle::Resample;

    fn spec(aspect: Aspect, edge: u32) -> ImageSpec {
        ImageSpec {
            height: edge,
            width: edge,
            aspect,
            shortest_edge: edge,
            resample: Resample::Bicubic,
            rescale: 1.0 / 255.0,
            mean: [0.0; 3],
            std: [1.0; 3],
            tokens: 1,
            alpha: Alpha::Dropped,
        }
    }

    const PAD: Aspect = Aspect::Pad { color: [10, 20, 30] };

    #[test]
    fn edges_follow_transformers() {
        // (width, height, shortest edge) -> (width, height), from `get_resize_output_image_size`.
        let cases = [
            ((640, 480, 1024), (1365, 1024)),
            ((480, 640, 1024), (1024, 1365)),
            ((500, 500, 224), (224, 224)),
            ((3, 1000, 1024), (1024, 341_333)),
            ((1000, 3, 7), (2333, 7)),
            ((4032, 3024, 1024), (1365, 1024)),
        ];
        for ((width, height, shortest_edge), expected) in cases {
            assert_eq!(resized(width, height, shortest_edge), expected);
        }
        assert_eq!(crop(1365, 1024), (0, 170..1194));
        assert_eq!(crop(40, 65), (13, 0..40));
        assert_eq!(crop(40, 64), (12, 0..40));
    }

    /// The longest edges that are decoded take no more memory than the result, whatever the recipe.
    #[test]
    fn extreme_shapes_are_cheap() {
        let longest = super::super::decode::MAX_EDGE;
        let pixels = vec![200; usize::try_from(longest).unwrap() * 3];
        for (width, height) in [(1, longest), (longest, 1)] {
            let picture = Picture::new(width, height, pixels.clone()).unwrap();
            for aspect in [Aspect::Crop, PAD] {
                let values = preprocess(&picture, &spec(aspect, 64)).unwrap();
                assert_eq!(values.values.len(), 3 * 64 * 64);
                let expected = if aspect == PAD {
                    10.0 / 255.0
                } else {
                    200.0 / 255.0
                };
                assert!(
                    (values.values[[0, 0, 0, 0]] - expected).abs() < 0.02,
                    "{width} x {height}: {}",
                    values.values[[0, 0, 0, 0]]
                );
            }
        }
    }

    #[test]
    fn a_crop_of_black_margins_is_a_margin_of_zeros() {
        let picture = Picture::new(2, 2, vec![255; 12]).unwrap();
        let spec = ImageSpec {
            height: 5,
            width: 4,
            mean: [0.5; 3],
            std: [0.5; 3],
            ..spec(Aspect::Crop, 2)
        };
        let values = preprocess(&picture, &spec).unwrap();
        let red = values
            .values
            .slice(s![0, 0, .., ..])
            .to_owned()
            .into_flat()
            .to_vec();
        let rows: Vec<&[f32]> = red.chunks(4).collect();
        let (black, image) = ([-1.0; 4], [-1.0, 1.0, 1.0, -1.0]);
        assert_eq!(rows, [&black[..], &black[..], &image[..], &image[..], &black[..]]);
    }

    #[test]
    fn ids_tell_images_apart() {
        let id = |pixels: Vec<u8>, width, height, aspect| {
            preprocess(&Picture::new(width, height, pixels).unwrap(), &spec(aspect, 8))
                .unwrap()
                .id
        };
        let gray = id(vec![9; 48], 4, 4, Aspect::Crop);
        assert_eq!(gray, id(vec![9; 48], 4, 4, Aspect::Crop));
        assert_eq!(
            gray,
            id(vec![9; 108], 6, 6, Aspect::Crop),
            "the encoder sees the same"
        );
        assert_ne!(gray, id(vec![10; 48], 4, 4, Aspect::Crop));
        assert_ne!(gray, id(vec![9; 24], 2, 4, PAD));
    }

    #[test]
    fn a_wrong_spec_is_refused_with_all_its_faults() {
        let picture = Picture::new(1, 1, vec![0; 3]).unwrap();
        let wrong = ImageSpec {
            height: 0,
            width: 20_000,
            shortest_edge: 0,
            rescale: f64::NAN,
            mean: [f64::INFINITY, 0.0, 0.0],
            std: [1.0, 0.0, 1.0],
            ..spec(Aspect::Crop, 8)
        };
        let ImageError::Spec { problems } = preprocess(&picture, &wrong).unwrap_err() else {
            panic!("other error")
        };
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
