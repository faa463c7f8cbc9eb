//! What do the JSON files of a checkpoint say that it is? Each is read once, and what it says is handed on.

use super::check::check;
use super::fields::Problems;
use super::processor::{Processor, crop_side, expect_clip, processors};
use super::{Layout, ModelConfig};
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::small::{self, MAX_INDEX};
use serde_json::Value;
use std::path::Path;

/// The config's file.
pub(crate) const CONFIG: &str = "config.json";

/// What a checkpoint declares.
#[derive(Debug)]
pub(crate) struct Declared {
    /// In one form for both dialects.
    pub(crate) config: ModelConfig,
    /// The dialect.
    pub(crate) layout: Layout,
    /// All of `config.json`, an object.
    pub(crate) fields: Value,
    /// What states the image processor: the first is read; none for Apple's dialect, whose code
    /// states it.
    pub(crate) processors: Vec<Processor>,
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
    /// processor. transformers.js, for which they are made, reads the file of its own.
    ///
    /// # Errors
    /// As [`Declared::read`].
    pub(crate) fn of_graphs(directory: &Path) -> Result<Declared, CheckpointError> {
        let fields = Declared::fields(directory)?;
        let read = ModelConfig::of(&fields, &directory.join(CONFIG))?;
        let mut processors = processors(directory)?;
        processors.reverse();
        Declared::with(directory, fields, read, processors)
    }

    fn with(
        directory: &Path,
        fields: Value,
        (mut config, layout): (ModelConfig, Layout),
        processors: Vec<Processor>,
    ) -> Result<Declared, CheckpointError> {
        if !processors.is_empty() {
            expect_clip(&processors, &fields, &directory.join(CONFIG))?;
        }
        if let Some((side, path)) = crop_side(&processors)? {
            config.vision.image_size = side;
            let mut problems = Problems(Vec::new());
            check(&config, &mut problems);
            if !problems.0.is_empty() {
                let of_crop = |problem: String| format!("`crop_size` is {side}: {problem}");
                let problems = Problems(problems.0.into_iter().map(of_crop).collect());
                return Err(problems.of(path));
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
