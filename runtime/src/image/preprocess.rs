//! How does RGB become `pixel_values`?

use super::{ImageError, Picture, PixelValues};
use models::bundle::ImageSpec;

/// `pixel_values` of `picture`, as `spec` says.
pub fn preprocess(picture: &Picture, spec: &ImageSpec) -> Result<PixelValues, ImageError> {
    let _ = (picture, spec);
    Err(ImageError::Spec { problems: Vec::new() })
}
