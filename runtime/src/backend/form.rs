//! Forms: what of a bundle a backend runs, the graphs of a variant or Core ML packages.

use super::provider::Provider;
use crate::error::BackendError;
use models::bundle::{Bundle, CoreMlPackages, Precision, Target, Variant};

/// What of a bundle is run.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// ONNX graphs.
    Graphs(Box<Variant>),
    /// Packages for Core ML itself.
    Packages(CoreMlPackages),
}

impl Form {
    /// For which engines its graphs are made; packages have no target.
    pub fn target(&self) -> Option<Target> {
        match self {
            Form::Graphs(variant) => Some(variant.target),
            Form::Packages(_) => None,
        }
    }

    /// How its weights are stored.
    pub fn precision(&self) -> Precision {
        match self {
            Form::Graphs(variant) => variant.precision,
            Form::Packages(packages) => packages.precision,
        }
    }

    /// Longest sequence that its decoder takes, in positions; `bundle` is where it is from.
    pub fn context(&self, bundle: &Bundle) -> usize {
        match self {
            Form::Graphs(variant) => bundle.context(variant),
            Form::Packages(packages) => packages.context.min(bundle.kv.max_context),
        }
    }

    /// Its graphs, for a provider that runs graphs.
    ///
    /// # Errors
    /// It has packages.
    pub fn graphs(&self, provider: Provider) -> Result<&Variant, BackendError> {
        match self {
            Form::Graphs(variant) => Ok(variant),
            Form::Packages(_) => Err(BackendError::Unavailable {
                provider,
                reason: "it runs graphs, not packages".to_owned(),
            }),
        }
    }
}
