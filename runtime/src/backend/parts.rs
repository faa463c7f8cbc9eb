//! How do three sessions become a model?

use super::Parts;
use super::kv::KvDecoder;
use super::session::{EngineSession, check_contract};
use super::stateless::{SessionEmbedder, SessionEncoder};
use crate::error::BackendError;
use models::bundle::{Bundle, GraphEntry, Variant};
use std::path::{Path, PathBuf};

/// The lengths that are the same in every call of a conversation; engines specialise on them.
const FIXED: &[(&str, usize)] = &[("batch", 1)];

/// Prepares the graph of a file, given the lengths of some symbols.
type OpenGraph<'a, S> = dyn Fn(&Path, &[(&str, usize)]) -> Result<S, BackendError> + Sync + 'a;

/// Opens the three graphs of a variant at the same time and gives them their roles.
pub(super) fn open_parts<S: EngineSession + 'static>(
    directory: &Path,
    bundle: &Bundle,
    variant: &Variant,
    open: &OpenGraph<'_, S>,
) -> Result<Parts, BackendError> {
    let open = |entry: &GraphEntry| {
        let session = open(&directory.join(&entry.path), FIXED)?;
        check_contract(session.description(), entry)?;
        Ok(session)
    };
    let (vision, embed, decoder) = std::thread::scope(|scope| {
        let vision = scope.spawn(|| open(&variant.vision_encoder));
        let embed = scope.spawn(|| open(&variant.embed_tokens));
        let decoder = open(&variant.decoder);
        (
            join(vision, &variant.vision_encoder),
            join(embed, &variant.embed_tokens),
            decoder,
        )
    });
    let decoder = KvDecoder::new(decoder?, &variant.decoder, &bundle.kv, variant.kv_dtype)?;
    Ok(Parts {
        vision_encoder: Box::new(SessionEncoder(vision?)),
        embedder: Box::new(SessionEmbedder(embed?)),
        decoder: Box::new(decoder),
    })
}

fn join<S>(
    thread: std::thread::ScopedJoinHandle<'_, Result<S, BackendError>>,
    entry: &GraphEntry,
) -> Result<S, BackendError> {
    thread.join().unwrap_or_else(|_| {
        Err(BackendError::Run {
            path: PathBuf::from(&entry.path),
            reason: "the thread that opened it ended without an answer".to_owned(),
        })
    })
}
