//! Options: how engines are opened, and how Core ML is asked to work.

use super::cores::physical_cores;
use super::provider::Provider;
use models::bundle::{Precision, Target};
use std::path::PathBuf;

/// How engines are opened. [`Options::default`] takes the best that works here.
///
/// ```
/// use runtime::{Options, Precision, Provider};
/// let options = Options::default().with_provider(Provider::Cpu).with_precision(Precision::Q4).with_threads(2);
/// # assert_eq!((options.threads, options.fallback), (Some(2), true));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
#[non_exhaustive]
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
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CoreMlFormat {
    /// What our graphs are written for: ML Program.
    #[default]
    MlProgram,
    /// The older one, which knows fewer operators.
    NeuralNetwork,
}

impl Options {
    /// Most threads that make sense; a typo must not start thousands.
    pub const MAX_THREADS: usize = 1024;

    /// Threads for each processor beyond which more are not started: they only wait for each other.
    const THREADS_PER_PROCESSOR: usize = 4;
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
    /// Threads that compute: those that were asked for, at most four for each processor of this process.
    pub fn thread_count(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = processors.saturating_mul(Options::THREADS_PER_PROCESSOR);
        self.threads.unwrap_or_else(physical_cores).clamp(1, most)
    }

    /// With another who shall compute.
    #[must_use]
    pub fn with_provider(mut self, provider: Provider) -> Options {
        self.provider = provider;
        self
    }

    /// Whether another may compute when that one cannot run here.
    #[must_use]
    pub fn with_fallback(mut self, fallback: bool) -> Options {
        self.fallback = fallback;
        self
    }

    /// With a form of this precision; `None` is the first of the target.
    #[must_use]
    pub fn with_precision(mut self, precision: impl Into<Option<Precision>>) -> Options {
        self.precision = precision.into();
        self
    }

    /// With graphs of this target; `None` is the best that the provider takes.
    #[must_use]
    pub fn with_target(mut self, target: impl Into<Option<Target>>) -> Options {
        self.target = target.into();
        self
    }

    /// With images of this side, in pixels; `None` is the bundle's default.
    #[must_use]
    pub fn with_image_size(mut self, side: impl Into<Option<u32>>) -> Options {
        self.image_size = side.into();
        self
    }

    /// With this library of ONNX Runtime, or one in this directory; `None` is well-known places.
    #[must_use]
    pub fn with_onnxruntime(mut self, path: impl Into<Option<PathBuf>>) -> Options {
        self.onnxruntime = path.into();
        self
    }

    /// With so many threads; `None` is as many as there are physical cores.
    #[must_use]
    pub fn with_threads(mut self, threads: impl Into<Option<usize>>) -> Options {
        self.threads = threads.into();
        self
    }

    /// With this way of Core ML.
    #[must_use]
    pub fn with_coreml(mut self, coreml: CoreMlOptions) -> Options {
        self.coreml = coreml;
        self
    }
}

impl CoreMlOptions {
    /// With what Core ML may compute on.
    #[must_use]
    pub fn with_units(mut self, units: CoreMlUnits) -> CoreMlOptions {
        self.units = units;
        self
    }

    /// With the format in which it is given graphs.
    #[must_use]
    pub fn with_format(mut self, format: CoreMlFormat) -> CoreMlOptions {
        self.format = format;
        self
    }

    /// Whether it shall prepare for the fastest predictions.
    #[must_use]
    pub fn with_fast_prediction(mut self, fast: bool) -> CoreMlOptions {
        self.fast_prediction = fast;
        self
    }

    /// With a directory for compiled models; `None` is none.
    #[must_use]
    pub fn with_cache(mut self, cache: impl Into<Option<PathBuf>>) -> CoreMlOptions {
        self.cache = cache.into();
        self
    }

    /// Whether nodes of target `coreml` may stay on the CPU.
    #[must_use]
    pub fn with_partial(mut self, partial: bool) -> CoreMlOptions {
        self.partial = partial;
        self
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
        let most = Options::default().with_threads(usize::MAX).thread_count();
        assert_eq!(most % Options::THREADS_PER_PROCESSOR, 0);
        assert_eq!(Options::default().with_threads(most).thread_count(), most);
    }
}
