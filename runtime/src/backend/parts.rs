//! How do sessions become the roles of a model?

use super::fixed::{FixedDecoder, Graph};
use super::kv::KvDecoder;
use super::session::{EngineSession, check_contract};
use super::stateless::{SessionEmbedder, SessionEncoder};
use super::{Decoder, Model, TokenEmbedder, VisionEncoder};
use crate::error::BackendError;
use models::bundle::{GraphEntry, Variant};
use std::path::Path;
use std::sync::Arc;

/// The lengths that are the same in every call of a conversation; engines specialise on them.
const FIXED: &[(&str, usize)] = &[("batch", 1)];

/// Prepares the graph of a file, given the lengths of some symbols.
type OpenGraph<'a, S> = dyn Fn(&Path, &[(&str, usize)]) -> Result<S, BackendError> + 'a;

/// The vision encoder of a variant.
pub(super) fn vision_encoder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn VisionEncoder>, BackendError> {
    let session = session(model, &variant.vision_encoder, open)?;
    Ok(Arc::new(SessionEncoder::new(session)))
}

/// The token embedding of a variant.
pub(super) fn embedder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
    let session = session(model, &variant.embed_tokens, open)?;
    Ok(Arc::new(SessionEmbedder(session)))
}

/// The decoder of a variant.
pub(super) fn decoder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn Decoder>, BackendError> {
    let entry = &variant.decoder;
    if let Some(fixed) = &variant.fixed {
        let kv = &model.bundle.kv;
        let graph = |new, entry| Graph::new(new, session(model, entry, open)?, entry, kv);
        let step = graph(1, entry)?;
        let prefill = fixed
            .prefill
            .iter()
            .map(|prefill| graph(prefill.new, &prefill.graph));
        let prefill = prefill.collect::<Result<_, _>>()?;
        let decoder = FixedDecoder::new(step, prefill, fixed.context, kv, variant.kv_dtype);
        return Ok(Arc::new(decoder));
    }
    let session = session(model, entry, open)?;
    let decoder = KvDecoder::new(session, entry, &model.bundle.kv, variant.kv_dtype)?;
    Ok(Arc::new(decoder))
}

fn session<S: EngineSession>(
    model: &Model<'_>,
    entry: &GraphEntry,
    open: &OpenGraph<'_, S>,
) -> Result<S, BackendError> {
    let session = open(&model.directory.join(&entry.path), FIXED)?;
    check_contract(session.description(), entry)?;
    Ok(session)
}
