//! `heif`: what a HEIC or AVIF file asks of a decoder, which is looked at before libheif gets the file.
//!
//! What is let through asks for no more than is allowed; libheif itself is never opened here.

use crate::words;
use runtime::image::Limits;
use runtime::image::heif::survey;

/// Most pixels of an image: a megapixel. All parts of one may have 16 together, for small images get no less.
const PIXELS: u64 = 1 << 20;

/// A file as it is.
pub fn run(file: &[u8]) {
    let limits = Limits { max_pixels: PIXELS };
    match survey(file, "x", &limits) {
        Ok(found) => {
            assert!(!found.codecs.is_empty(), "an image that nothing codes");
            assert!(found.pixels <= 16 * PIXELS, "{} pixels", found.pixels);
        }
        Err(error) => words::check(&error.to_string(), file),
    }
}
