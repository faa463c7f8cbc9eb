//! Options: how engines are opened, and how Core ML is asked to work.

use super::cores::physical_cores;
use super::provider::Provider;
use models::bundle::{Precision, Target};
use std::path::PathBuf;

/// How engines are opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Who shall compute.
    pub provider: Provider,
    /// Whether another may when that one cannot run here.
    pub fallback: bool,
    /// Which of the bundle's forms, by precision; the first of the target when not given.
    pub precision: Option<Precision>,
    /// Which of the bundle's variants, by target; the best that the provider takes when not given. Core ML
    /// packages have none.
    pub target: Option<Target>,
    /// Side of the square that images become, in pixels, one of those that the bundle has encoders for; its
    /// default when not given.
    pub image_size: Option<u32>,
    /// ONNX Runtime's shared library, or a directory with it; well-known places when not given.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that compute; as many as there are physical cores when not given.
    pub threads: Option<usize>,
    /// How Core ML works, of which `coreml-native` heeds units and cache.
    pub coreml: CoreMlOptions,
}

/// How Core ML is asked to work, behind ONNX Runtime or by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CoreMlOptions {
    /// What Core ML may compute on.
    pub units: CoreMlUnits,
    /// In which format it is given the graphs.
    pub format: CoreMlFormat,
    /// Whether it shall prepare for the fastest predictions, at the cost of a longer first start and more
    /// disk.
    pub fast_prediction: bool,
    /// A directory for compiled models, so that a later start does not compile them again; made where it is
    /// missing.
    pub cache: Option<PathBuf>,
    /// Whether nodes of target `coreml` may stay on the CPU. Otherwise that is an error, for its graphs are
    /// written to be taken whole.
    pub partial: bool,
}

/// What Core ML may compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CoreMlUnits {
    /// Whatever is best.
    #[default]
    All,
    /// The CPU and the Neural Engine.
    CpuAndNe,
    /// The CPU and the GPU.
    CpuAndGpu,
    /// The CPU.
    Cpu,
}

/// In which format Core ML is given a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CoreMlFormat {
    /// ML Program: what our graphs are written for.
    #[default]
    MlProgram,
    /// The older one, which knows fewer operators.
    NeuralNetwork,
}

impl Options {
    /// Most threads that make sense; a typo must not start thousands.
    pub const MAX_THREADS: usize = 1024;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            provider: Provider::Auto,
            fallback: true,
            precision: None,
            target: None,
            image_size: None,
            onnxruntime: None,
            threads: None,
            coreml: CoreMlOptions::default(),
        }
    }
}

impl Options {
    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(physical_cores).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_at_least_one() {
        assert!(Options::default().thread_count() >= 1);
        assert_eq!(
            Options {
                threads: Some(3),
                ..Options::default()
            }
            .thread_count(),
            3
        );
    }
}
