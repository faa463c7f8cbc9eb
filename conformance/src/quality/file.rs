//! How do tools exchange what they computed? As a safetensors file:
//!
//! - `image_features` float `[tokens, hidden]`, absent where the metadata say `image: none`;
//! - `logits` float `[positions, vocabulary]`, row `i` after `token_ids[i]`;
//! - `token_ids` int64 `[positions]`, `prompt_ids` int64 `[prompt]`, the image token once for each feature;
//! - `pixel_values` float `[3, height, width]`, for other tools, and by which two recordings are of one image; may be absent;
//! - metadata: `name`, and `image`.

use super::{Features, Recording};
use crate::array::Array;
use crate::safetensors::{self, View};
use crate::setup::error::CaseError;
use ndarray::{ArrayView1, ArrayViewD, Axis, Ix2};
use runtime::image::PixelValues;
use std::collections::BTreeMap;
use std::path::Path;

/// What stands for the image where the prompt has none.
const NO_IMAGE: &str = "none";

/// Writes a recording; `image` is the image's name, `pixels` what was made of it.
///
/// # Errors
/// A file that cannot be written.
pub fn write(
    path: &Path,
    recording: &Recording,
    image: Option<&str>,
    pixels: Option<&PixelValues>,
) -> Result<(), CaseError> {
    let positions = recording.token_ids.len();
    let ids = |ids| View::Int(ArrayView1::from(ids).into_dyn());
    let floats = |shape: &[usize], data| {
        let view = ArrayViewD::from_shape(shape, data).map(View::Float);
        view.map_err(|error| CaseError::failed("writing what was collected", &error))
    };
    let mut tensors = vec![
        ("prompt_ids", ids(&recording.prompt_ids)),
        ("token_ids", ids(&recording.token_ids)),
        (
            "logits",
            floats(&[positions, recording.vocabulary], &recording.logits)?,
        ),
    ];
    if let Some(features) = &recording.features {
        let shape = [features.tokens, features.hidden];
        tensors.push(("image_features", floats(&shape, &features.values)?));
    }
    if let Some(pixels) = pixels {
        // Without the batch of 1.
        let values = pixels.values.index_axis(Axis(0), 0);
        tensors.push(("pixel_values", View::Float(values.into_dyn())));
    }
    let metadata = [("image", image.unwrap_or(NO_IMAGE)), ("name", &recording.name)];
    safetensors::write(path, &metadata, &tensors)
        .map_err(|error| CaseError::failed("writing what was collected", &error))
}

/// Reads a recording.
///
/// # Errors
/// A file that is not one.
pub fn read(path: &Path) -> Result<Recording, CaseError> {
    let (metadata, mut tensors) = safetensors::read_with_metadata(path)
        .map_err(|error| CaseError::failed("reading what was collected", &error))?;
    recording(path, &metadata, &mut tensors).map_err(|message| CaseError::Failed {
        context: format!("reading `{}`", path.display()),
        message,
    })
}

fn recording(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &mut BTreeMap<String, Array>,
) -> Result<Recording, String> {
    let mut take = |name: &str| {
        tensors
            .remove(name)
            .ok_or_else(|| format!("there is no tensor `{name}`"))
    };
    let ids = |name: &str, tensor: &Array| match tensor.as_int() {
        Some(ids) if ids.ndim() == 1 => Ok(ids.iter().copied().collect()),
        _ => Err(format!(
            "`{name}` is of shape {:?}, expected int64 of rank 1",
            tensor.shape()
        )),
    };
    let matrix = |name: &str, tensor: Array| {
        let matrix = tensor.as_float().map(|x| x.view().into_dimensionality::<Ix2>());
        let Some(Ok(matrix)) = matrix else {
            let shape = tensor.shape();
            return Err(format!(
                "`{name}` is of shape {shape:?}, expected float of rank 2"
            ));
        };
        Ok((matrix.nrows(), matrix.ncols(), matrix.iter().copied().collect()))
    };
    let token_ids: Vec<i64> = ids("token_ids", &take("token_ids")?)?;
    let prompt_ids = ids("prompt_ids", &take("prompt_ids")?)?;
    let (positions, vocabulary, logits) = matrix("logits", take("logits")?)?;
    if positions != token_ids.len() || positions == 0 {
        return Err(format!(
            "`logits` has {positions} rows, expected as many as there are `token_ids`, {}",
            token_ids.len()
        ));
    }
    let features = match metadata.get("image").map(String::as_str) {
        Some(NO_IMAGE) => None,
        _ => {
            let features = take("image_features")
                .map_err(|problem| format!("{problem}, and the metadata do not say `image: {NO_IMAGE}`"))?;
            let (tokens, hidden, values) = matrix("image_features", features)?;
            Some(Features {
                tokens,
                hidden,
                values,
            })
        }
    };
    let pixels = tensors.remove("pixel_values");
    let pixels = pixels.and_then(|tensor| Some(tensor.as_float()?.iter().copied().collect()));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Recording {
        name: metadata.get("name").cloned().unwrap_or_else(|| stem.into_owned()),
        prompt_ids,
        token_ids,
        pixels,
        features,
        vocabulary,
        logits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{aview1, aview2};

    fn example() -> Recording {
        Recording {
            name: "a tool".to_owned(),
            prompt_ids: vec![1, 7, 7],
            token_ids: vec![4, 5],
            pixels: None,
            features: Some(Features {
                tokens: 2,
                hidden: 1,
                values: vec![0.5, -0.5],
            }),
            vocabulary: 3,
            logits: vec![1.0, 2.0, 3.0, 4.0, 5.0, f32::NAN],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let mut recording = example();
        recording.logits[5] = 6.0;
        write(&path, &recording, Some("image.png"), None).unwrap();
        assert_eq!(read(&path).unwrap(), recording);
        recording.features = None;
        write(&path, &recording, None, None).unwrap();
        assert_eq!(read(&path).unwrap(), recording);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let refused = |words: &str| {
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("a.safetensors"),
                "no `{words}` in {error}"
            );
        };
        refused("reading what was collected");
        let uneven = [
            ("prompt_ids", View::Int(aview1(&[1]).into_dyn())),
            ("token_ids", View::Int(aview1(&[4]).into_dyn())),
            ("logits", View::Float(aview2(&[[0.0], [1.0]]).into_dyn())),
        ];
        safetensors::write(&path, &[("image", NO_IMAGE)], &uneven).unwrap();
        refused("`logits` has 2 rows, expected as many as there are `token_ids`, 1");
        let mut blind = example();
        blind.features = None;
        write(&path, &blind, Some("image.png"), None).unwrap();
        refused("there is no tensor `image_features`, and the metadata do not say `image: none`");
        let floats = [("token_ids", View::Float(aview1(&[0.0]).into_dyn()))];
        safetensors::write(&path, &[], &floats).unwrap();
        refused("`token_ids` is of shape [1], expected int64 of rank 1");
    }
}
