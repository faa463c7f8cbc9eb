//! Which recorded references does a suite look at? Those that are compiled in and that it chooses, as cases.

use crate::array::Array;
use crate::golden::{Reference, Source};
use crate::setup::case::Case;
use crate::setup::error::{CaseError, Context};
use crate::setup::workspace::{self, Workspace};
use ndarray::{ArrayView4, Axis, concatenate};
use runtime::image::PixelValues;
use std::sync::Arc;

/// The compiled-in references that `wanted` chooses, as cases; references that cannot be read are a case that fails.
pub fn embedded(
    suite: &str,
    wanted: fn(&Reference) -> bool,
    cases: impl FnOnce(&[Arc<Reference>]) -> Vec<Case>,
) -> Vec<Case> {
    match workspace::references() {
        Ok(mut references) => {
            references.retain(|reference| wanted(reference));
            cases(&references)
        }
        Err(error) => {
            let failed = CaseError::failed("reading the recorded references", &error).to_string();
            let fail = move |_: &Workspace| {
                Err(CaseError::Failed {
                    context: "opening".to_owned(),
                    message: failed.clone(),
                })
            };
            vec![Case::once(
                format!("{suite}/readable"),
                "the recorded references can be read",
                fail,
            )]
        }
    }
}

/// Whether a reference's model has a published size.
pub fn is_full_size(reference: &Reference) -> bool {
    matches!(&reference.checkpoint, Source::Synth { size, .. } if size != "demo")
}

/// The pixels of a case's images as one batch `[images, 3, height, width]`.
///
/// # Errors
/// No image, or images of different sizes.
pub fn batch(images: &[PixelValues]) -> Result<Array, CaseError> {
    let joining = || "joining the pixels of a case".to_owned();
    let views: Vec<ArrayView4<'_, f32>> = images.iter().map(|pixels| pixels.values.view()).collect();
    Ok(Array::from(concatenate(Axis(0), &views).during(joining)?))
}
