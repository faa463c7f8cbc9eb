//! Where do the files of a checkpoint state the image processor, and do they say the same?

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::small::{self, MAX_INDEX};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The image processor's file, and that of transformers' processor of images and text, which may have it inside.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
pub(crate) const PROCESSOR: &str = "processor_config.json";
/// What it is called there.
const INSIDE: &str = "image_processor";

/// The fields that name its class, the old name last.
const CLASS_FIELDS: [&str; 2] = ["image_processor_type", "feature_extractor_type"];
/// What transformers has called the one class that is computed here.
const CLIP: [&str; 4] = [
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
];

/// The side that `CLIPImageProcessor` crops to where nothing says another.
const CROP: u64 = 224;

/// Fields that change pixels.
const FIELDS: [&str; 13] = [
    "do_resize",
    "size",
    "default_to_square",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
];

/// An image processor as a file states it.
#[derive(Debug)]
pub(crate) struct Processor {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its fields, an object.
    pub(crate) fields: Value,
}

/// The places that state the image processor, in transformers' order: inside the processor's file, then the file
/// of its own.
///
/// # Errors
/// A file that cannot be read or is not what it is called; two places that contradict each other, of which
/// transformers reads the first and transformers.js the second.
pub(super) fn processors(directory: &Path) -> Result<Vec<Processor>, CheckpointError> {
    let mut found = Vec::new();
    let path = directory.join(PROCESSOR);
    let inside = small::object_if_there(&path, MAX_INDEX)?
        .and_then(|mut fields| fields.get_mut(INSIDE).map(Value::take))
        .filter(|fields| !fields.is_null());
    if let Some(fields) = inside {
        if !fields.is_object() {
            return Err(CheckpointError::Config {
                path,
                problems: vec![format!("`{INSIDE}` is {fields}, expected an object")],
            });
        }
        found.push(Processor { path, fields });
    }
    let path = directory.join(PREPROCESSOR);
    if let Some(fields) = small::object_if_there(&path, MAX_INDEX)? {
        found.push(Processor { path, fields });
    }
    if let [inside, own] = found.as_slice() {
        let problems = contradictions(&inside.fields, &own.fields);
        if !problems.is_empty() {
            return Err(CheckpointError::Config {
                path: inside.path.clone(),
                problems,
            });
        }
    }
    Ok(found)
}

/// Fields that both state, and otherwise.
fn contradictions(inside: &Value, own: &Value) -> Vec<String> {
    let stated = |fields: &Value, name: &str| {
        let value = fields.get(name).filter(|value| !value.is_null())?;
        Some(in_words(name, value))
    };
    let differ = |name: &&str| match (stated(inside, name), stated(own, name)) {
        (Some(inside), Some(own)) => !alike(&inside, &own),
        _ => false,
    };
    let problem = |name: &str| {
        let [inside, own] = [inside, own].map(|fields| fields.get(name).unwrap_or(&Value::Null));
        format!("`{INSIDE}.{name}` is {inside}, and `{name}` of {PREPROCESSOR} is {own}: expected the same")
    };
    FIELDS.into_iter().filter(differ).map(problem).collect()
}

/// A value in the one spelling that `CLIPImageProcessor` has for it: sizes may be numbers, and have fields that
/// are null.
fn in_words(name: &str, value: &Value) -> Value {
    match (name, value) {
        ("size", Value::Number(edge)) => json!({"shortest_edge": edge}),
        ("crop_size", Value::Number(side)) => json!({"height": side, "width": side}),
        (_, Value::Object(fields)) => {
            let stated = fields.iter().filter(|(_, value)| !value.is_null());
            let stated: Map<String, Value> = stated
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            Value::Object(stated)
        }
        (_, other) => other.clone(),
    }
}

/// Whether two values are the same, numbers but for the digits that float32 has.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * a.abs().max(b.abs()),
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let same =
                |(name, value): (&String, &Value)| b.get(name).is_some_and(|other| alike(value, other));
            a.len() == b.len() && a.iter().all(same)
        }
        _ => a == b,
    }
}

/// Refuses another image processor than CLIP's: transformers loads the class that is named, by `config` (all of
/// `config.json`, at `path`) where the processor's file names none. No name at all is read as CLIP's.
///
/// # Errors
/// A class that is not CLIP's, or a name that is no text.
pub(super) fn expect_clip(
    processors: &[Processor],
    config: &Value,
    path: &Path,
) -> Result<(), CheckpointError> {
    let stated = |fields: &Value| {
        let value = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
        let name = CLASS_FIELDS.into_iter().find(value)?;
        Some((name, fields[name].clone()))
    };
    let mut classes: Vec<(&Path, &str, Value)> = Vec::new();
    for Processor { path, fields } in processors {
        classes.extend(stated(fields).map(|(name, class)| (path.as_path(), name, class)));
    }
    if classes.is_empty() {
        let own = config.get(CLASS_FIELDS[0]).filter(|class| !class.is_null());
        classes.extend(own.map(|class| (path, CLASS_FIELDS[0], class.clone())));
    }
    let is_clip = |class: &Value| class.as_str().is_some_and(|class| CLIP.contains(&class));
    match classes.into_iter().find(|(.., class)| !is_clip(class)) {
        None => Ok(()),
        Some((path, name, class)) => Err(CheckpointError::Config {
            path: path.to_owned(),
            problems: vec![format!(
                "`{name}` is {class}, this build supports \"{}\"",
                CLIP[0]
            )],
        }),
    }
}

/// The side of the centre crop, and the file that states it, or should: the first, as for all else that the processor does.
/// `CLIPImageProcessor` crops to 224 where its file does not say.
///
/// # Errors
/// A crop that is no square.
pub(super) fn crop_side(processors: &[Processor]) -> Result<Option<(u64, &Path)>, CheckpointError> {
    let Some(Processor { path, fields }) = processors.first() else {
        return Ok(None);
    };
    let Some(crop) = fields.get("crop_size") else {
        return Ok(Some((CROP, path)));
    };
    let side = |name: &str| crop.get(name).unwrap_or(crop).as_u64();
    match (side("height"), side("width")) {
        (Some(height), Some(width)) if height == width => Ok(Some((height, path))),
        _ => Err(CheckpointError::Config {
            path: path.clone(),
            problems: vec![format!("`crop_size` is {crop}, expected a square")],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_places_say_the_same_or_are_refused() {
        let inside = json!({"size": {"shortest_edge": 256, "longest_edge": null}, "crop_size": 256,
            "rescale_factor": 0.003_921_568_627_450_98, "image_mean": [0.0, 0.0, 0.0], "resample": 3});
        let own = json!({"size": 256, "crop_size": {"height": 256, "width": 256},
            "rescale_factor": 0.003_921_568_859_368_563, "image_mean": [0, 0, 0], "do_resize": true, "x": 1});
        assert_eq!(contradictions(&inside, &own), Vec::<String>::new());
        let other = json!({"size": 300, "image_mean": [0.5, 0, 0], "resample": null});
        assert_eq!(
            contradictions(&inside, &other),
            [
                "`image_processor.size` is {\"shortest_edge\":256,\"longest_edge\":null}, and `size` of \
                 preprocessor_config.json is 300: expected the same",
                "`image_processor.image_mean` is [0.0,0.0,0.0], and `image_mean` of preprocessor_config.json is \
                 [0.5,0,0]: expected the same",
            ]
        );
    }

    #[test]
    fn another_class_is_refused_by_name() {
        let check = |files: &[(&str, Value)], config: Value| {
            let of = |(path, fields): &(&str, Value)| Processor {
                path: path.into(),
                fields: fields.clone(),
            };
            let processors: Vec<Processor> = files.iter().map(of).collect();
            expect_clip(&processors, &config, Path::new("config.json")).map_err(|error| error.to_string())
        };
        let named = |class: &str| json!({"image_processor_type": class});
        for class in CLIP {
            assert_eq!(check(&[(PREPROCESSOR, named(class))], json!({})), Ok(()));
        }
        let nothing = json!({"image_processor_type": null});
        assert_eq!(check(&[(PREPROCESSOR, nothing.clone())], json!({})), Ok(()));
        assert_eq!(
            check(
                &[(
                    PREPROCESSOR,
                    json!({"feature_extractor_type": "CLIPFeatureExtractor"})
                )],
                json!({})
            ),
            Ok(())
        );
        // A name in the processor's file counts before that of the config.
        assert_eq!(check(&[(PREPROCESSOR, named(CLIP[0]))], named("X")), Ok(()));
        let both = [
            (PROCESSOR, named(CLIP[1])),
            (PREPROCESSOR, named("ConvNextImageProcessor")),
        ];
        for (found, expected) in [
            (
                check(&both, json!({})),
                "preprocessor_config.json: `image_processor_type` is \"ConvNextImageProcessor\", this build supports \
                 \"CLIPImageProcessor\"",
            ),
            (
                check(
                    &[(
                        PREPROCESSOR,
                        json!({"feature_extractor_type": "ViTFeatureExtractor"}),
                    )],
                    json!({}),
                ),
                "preprocessor_config.json: `feature_extractor_type` is \"ViTFeatureExtractor\"",
            ),
            (
                check(&[(PREPROCESSOR, nothing)], named("MobileViTImageProcessor")),
                "config.json: `image_processor_type` is \"MobileViTImageProcessor\"",
            ),
            (
                check(&[(PREPROCESSOR, json!({"image_processor_type": 3}))], json!({})),
                "`image_processor_type` is 3",
            ),
        ] {
            let message = found.unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn what_is_inside_counts_before_the_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let put =
            |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        let first = || -> Result<Vec<Value>, CheckpointError> {
            let found = processors(folder.path())?;
            Ok(found.into_iter().take(1).map(|one| one.fields).collect())
        };
        put(PREPROCESSOR, json!({"image_std": [1, 1, 1]}));
        put(PROCESSOR, json!({"patch_size": 64, INSIDE: null}));
        assert_eq!(first().unwrap(), [json!({"image_std": [1, 1, 1]})]);
        put(PROCESSOR, json!({INSIDE: {"image_mean": [1, 1, 1]}}));
        assert_eq!(first().unwrap(), [json!({"image_mean": [1, 1, 1]})]);
        put(PROCESSOR, json!({INSIDE: 3}));
        let message = first().unwrap_err().to_string();
        assert!(
            message.contains("processor_config.json: `image_processor` is 3"),
            "{message}"
        );
        put(PROCESSOR, json!({INSIDE: {"image_std": [0.5, 1, 1]}}));
        let message = first().unwrap_err().to_string();
        assert!(
            message.contains("`image_std` of preprocessor_config.json is [1,1,1]"),
            "{message}"
        );
    }
}
