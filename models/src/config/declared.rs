//! What do the JSON files of a checkpoint say that it is? Each is read once, and what it says is handed on.

use super::check::check;
use super::fields::Problems;
use super::{Layout, ModelConfig};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::small::{self, MAX_INDEX};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The config's file.
pub(crate) const CONFIG: &str = "config.json";

/// The image processor's file, and the one that has it inside.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

/// What a checkpoint declares.
#[derive(Debug)]
pub(crate) struct Declared {
    /// In one form for both dialects.
    pub(crate) config: ModelConfig,
    /// The dialect.
    pub(crate) layout: Layout,
    /// All of `config.json`, an object.
    pub(crate) fields: Value,
    /// What states the image processor, the first before the second; none for Apple's dialect, whose code
    /// states it.
    pub(crate) processors: Vec<Processor>,
}

/// An image processor as a file states it.
#[derive(Debug)]
pub(crate) struct Processor {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its fields.
    pub(crate) fields: Value,
}

impl Declared {
    /// Reads `config.json`, an object.
    ///
    /// # Errors
    /// A file that cannot be read or is not a JSON object.
    pub(crate) fn fields(directory: &Path) -> Result<Value, CheckpointError> {
        let path = directory.join(CONFIG);
        small::object_of(&small::text(&path, MAX_INDEX)?, &path)
    }

    /// What the fields of `config.json` say, and the image processor's file, which states the image size
    /// where the config does not.
    ///
    /// # Errors
    /// A file that cannot be read, is not JSON, or asks for something that this build does not do.
    pub(crate) fn read(directory: &Path, fields: Value) -> Result<Declared, CheckpointError> {
        let (config, layout) = ModelConfig::of(&fields, &directory.join(CONFIG))?;
        let processors = match layout {
            Layout::Llava | Layout::Mlx => Vec::new(),
            Layout::Transformers => processors(directory)?,
        };
        Declared::with(directory, fields, (config, layout), processors)
    }

    /// As [`Declared::read`], of graphs that others exported: whatever the dialect, a file states the image
    /// processor.
    ///
    /// # Errors
    /// As [`Declared::read`].
    pub(crate) fn of_graphs(directory: &Path) -> Result<Declared, CheckpointError> {
        let fields = Declared::fields(directory)?;
        let read = ModelConfig::of(&fields, &directory.join(CONFIG))?;
        let processors = processors(directory)?;
        Declared::with(directory, fields, read, processors)
    }

    fn with(
        directory: &Path,
        fields: Value,
        (mut config, layout): (ModelConfig, Layout),
        processors: Vec<Processor>,
    ) -> Result<Declared, CheckpointError> {
        if let Some(side) = crop_side(&processors)? {
            config.vision.image_size = side;
            let mut problems = Problems(Vec::new());
            check(&config, &mut problems);
            if !problems.0.is_empty() {
                return Err(problems.of(directory));
            }
        }
        Ok(Declared {
            config,
            layout,
            fields,
            processors,
        })
    }
}

/// The files that state the image processor; the second is only asked where the first has no crop.
fn processors(directory: &Path) -> Result<Vec<Processor>, CheckpointError> {
    let mut found = Vec::new();
    let path = directory.join(PREPROCESSOR);
    if let Some(fields) = small::object_if_there(&path, MAX_INDEX)? {
        let complete = fields.get("crop_size").is_some();
        found.push(Processor { path, fields });
        if complete {
            return Ok(found);
        }
    }
    let path = directory.join(PROCESSOR);
    let inside = small::object_if_there(&path, MAX_INDEX)?
        .and_then(|mut fields| fields.get_mut("image_processor").map(Value::take));
    found.extend(inside.map(|fields| Processor { path, fields }));
    Ok(found)
}

/// The side of the centre crop, where it is stated.
fn crop_side(processors: &[Processor]) -> Result<Option<u64>, CheckpointError> {
    let stated = |processor: &'_ Processor| processor.fields.get("crop_size").is_some();
    let Some(Processor { path, fields }) = processors.iter().find(|processor| stated(processor)) else {
        return Ok(None);
    };
    let crop = &fields["crop_size"];
    let side = |name: &str| crop.get(name).unwrap_or(crop).as_u64();
    match (side("height"), side("width")) {
        (Some(height), Some(width)) if height == width => Ok(Some(height)),
        _ => Err(CheckpointError::Config {
            path: path.clone(),
            problems: vec![format!("`crop_size` is {crop}, expected a square")],
        }),
    }
}
