//! `image`: an image file, decoded and made pixels of, as `fvlm-run` does it.
//!
//! What is decoded has the size that it says and no more than was allowed; a stream of the same bytes gives
//! the same; pixels have the shape that the contract asks for and are numbers.

use crate::words;
use arbitrary::{Result, Unstructured};
use models::bundle::{Alpha, Aspect, ImageSpec, Resample};
use runtime::image::{Limits, decode, preprocess, read};

/// Most pixels of an image, so that a run takes milliseconds.
const PIXELS: u64 = 1 << 16;

/// A file as it is; its last bytes say what is wanted of it too.
pub fn run(file: &[u8]) {
    let wanted = file.last_chunk::<8>().copied().unwrap_or_default();
    let Ok(spec) = spec(&mut Unstructured::new(&wanted)) else {
        return;
    };
    let limits = Limits { max_pixels: PIXELS };
    let picture = match decode(file, "x", &limits) {
        Ok(picture) => picture,
        Err(error) => {
            assert!(
                read(file, "x", &limits).is_err(),
                "read, and not decoded: {error}"
            );
            return words::check(&error.to_string(), file);
        }
    };
    let (width, height) = (u64::from(picture.width()), u64::from(picture.height()));
    assert!(
        width > 0 && height > 0 && width * height <= PIXELS,
        "{width} x {height}"
    );
    assert_eq!(picture.pixels().len() as u64, 3 * width * height);
    assert!(
        read(file, "x", &limits).is_ok_and(|other| other == picture),
        "decoded, and not read"
    );
    match preprocess(&picture, &spec) {
        Ok(pixels) => {
            let sides = [spec.height, spec.width].map(|side| side as usize);
            assert_eq!(pixels.values.shape(), [1, 3, sides[0], sides[1]]);
            assert!(
                pixels.values.iter().all(|value| value.is_finite()),
                "a pixel that is no number"
            );
        }
        Err(error) => words::check(&error.to_string(), file),
    }
}

/// A recipe with small sides, which may be none.
fn spec(u: &mut Unstructured<'_>) -> Result<ImageSpec> {
    let side = |u: &mut Unstructured<'_>| u.int_in_range(0..=70_u32);
    Ok(ImageSpec {
        height: side(u)?,
        width: side(u)?,
        shortest_edge: side(u)?,
        aspect: if u.arbitrary()? {
            Aspect::Crop
        } else {
            Aspect::Pad {
                color: u.arbitrary()?,
            }
        },
        resample: *u.choose(&[Resample::Bicubic, Resample::Bilinear, Resample::Lanczos])?,
        rescale: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.5; 3],
        tokens: 1,
        alpha: Alpha::Dropped,
    })
}
