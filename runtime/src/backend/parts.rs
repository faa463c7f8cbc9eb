//! How do sessions become the roles of a model?

use super::adopted::{AdoptedSession, as_ours};
use super::fixed::{FixedDecoder, Graph};
use super::kv::KvDecoder;
use super::session::{EngineSession, check_contract};
use super::stateless::{SessionEmbedder, SessionEncoder};
use super::{Decoder, Model, TokenEmbedder, VisionEncoder};
use crate::error::BackendError;
use models::bundle::{GraphEntry, Variant};
use std::path::Path;
use std::sync::Arc;

/// The lengths that are the same in every call; engines specialise on them.
const FIXED: &[(&str, usize)] = &[("batch", 1)];

/// Prepares the graph of a file, given the lengths of some symbols.
type OpenGraph<'a, S> = dyn Fn(&Path, &[(&str, usize)]) -> Result<S, BackendError> + 'a;

/// The vision encoder of a variant.
pub(super) fn vision_encoder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn VisionEncoder>, BackendError> {
    let entry = &variant.vision_encoder;
    if entry.adopted.is_some() {
        return Ok(Arc::new(SessionEncoder::new(adopted(model, entry, open)?)));
    }
    let session = session(model, entry, FIXED, open)?;
    Ok(Arc::new(SessionEncoder::new(session)))
}

/// The token embedding of a variant.
pub(super) fn embedder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
    let entry = &variant.embed_tokens;
    if entry.adopted.is_some() {
        return Ok(Arc::new(SessionEmbedder(adopted(model, entry, open)?)));
    }
    let session = session(model, entry, FIXED, open)?;
    Ok(Arc::new(SessionEmbedder(session)))
}

/// The decoder of a variant. `together`: whether the engine is to continue several sequences at once, where lengths are
/// not fixed.
pub(super) fn decoder<S: EngineSession + 'static>(
    model: &Model<'_>,
    variant: &Variant,
    together: bool,
    open: &OpenGraph<'_, S>,
) -> Result<Arc<dyn Decoder>, BackendError> {
    let entry = &variant.decoder;
    let kv = &model.bundle.kv;
    if let Some(described) = &entry.adopted {
        let session = adopted(model, entry, open)?;
        // One after the other: what such a graph makes of padding in front is not known.
        let ours = as_ours(entry, described);
        let decoder = KvDecoder::new(session, &ours, kv, variant.kv_dtype, false)?;
        return Ok(Arc::new(decoder));
    }
    if let Some(fixed) = &variant.fixed {
        let graph = |new, entry| Graph::new(new, session(model, entry, FIXED, open)?, entry, kv);
        let step = graph(1, entry)?;
        let prefill = fixed
            .prefill
            .iter()
            .map(|prefill| graph(prefill.new, &prefill.graph));
        let prefill = prefill.collect::<Result<_, _>>()?;
        let decoder = FixedDecoder::new(step, prefill, fixed.context, kv, variant.kv_dtype);
        return Ok(Arc::new(decoder));
    }
    let session = session(model, entry, if together { &[] } else { FIXED }, open)?;
    let decoder = KvDecoder::new(session, entry, kv, variant.kv_dtype, together)?;
    Ok(Arc::new(decoder))
}

/// The session of a graph that another program wrote. Its symbols are its own: none is given a length.
fn adopted<S: EngineSession>(
    model: &Model<'_>,
    entry: &GraphEntry,
    open: &OpenGraph<'_, S>,
) -> Result<AdoptedSession<S>, BackendError> {
    let session = session(model, entry, &[], open)?;
    let described = entry.adopted.clone().unwrap_or_default();
    Ok(AdoptedSession::new(session, entry, &described))
}

fn session<S: EngineSession>(
    model: &Model<'_>,
    entry: &GraphEntry,
    fixed: &[(&str, usize)],
    open: &OpenGraph<'_, S>,
) -> Result<S, BackendError> {
    // Before an engine reads it: what is not the graph that was exported may be anything.
    model
        .bundle
        .verify_files(model.directory, [entry.path.as_str()])?;
    let session = open(&model.directory.join(&entry.path), fixed)?;
    check_contract(session.description(), entry)?;
    Ok(session)
}
