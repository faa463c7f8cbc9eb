//! Features of images, kept by content: an image that several conversations show is encoded once.
//!
//! `tests/interleavings.rs` compiles this file too, with loom's locks in place of `crate::sync`.

use crate::error::EngineError;
use crate::image::ImageId;
use crate::sync::{Mutex, MutexGuard};
use ndarray::Array2;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

/// Bytes of features that are kept: 35 images of the 0.5B model.
const LIMIT: usize = 32 << 20;

/// Image features `[tokens, hidden]`, shared by who has them.
pub(crate) type Shared = Arc<Array2<f32>>;

/// The place of one image's features; held by who encodes it.
type Place = Arc<Mutex<Option<Shared>>>;

/// Features that were computed, up to a number of bytes. Those that were not asked for for longest go first; who has them
/// keeps them.
#[derive(Debug)]
pub(crate) struct Features {
    limit: usize,
    kept: Mutex<Kept>,
}

/// What is kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Counts what was asked for.
    clock: u64,
    /// Of all features.
    pub(crate) bytes: usize,
    slots: BTreeMap<ImageId, Slot>,
}

#[derive(Debug)]
struct Slot {
    /// When it was last asked for.
    used: u64,
    /// 0 while nothing is there.
    bytes: usize,
    place: Place,
}

impl Default for Features {
    fn default() -> Features {
        Features::up_to(LIMIT)
    }
}

impl Kept {
    /// How many images have a place, encoded or not.
    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.slots.len()
    }

    /// How many images are kept.
    #[cfg(test)]
    pub(crate) fn filled(&self) -> usize {
        self.slots.values().filter(|slot| slot.bytes > 0).count()
    }
}

impl Features {
    /// None yet, and never more than so many bytes.
    pub(crate) fn up_to(limit: usize) -> Features {
        Features {
            limit,
            kept: Mutex::default(),
        }
    }

    /// The features of an image, and whether it was encoded now. Who asks for the same image meanwhile waits.
    pub(crate) fn get_or_encode(
        &self,
        id: ImageId,
        encode: impl FnOnce() -> Result<Array2<f32>, EngineError>,
    ) -> Result<(Shared, bool), EngineError> {
        let place = self.place(id);
        let mut found = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(features) = &*found {
            return Ok((Arc::clone(features), false));
        }
        match encode() {
            Ok(features) => {
                let features = Arc::new(features);
                *found = Some(Arc::clone(&features));
                self.keep(id, &place, features.len() * size_of::<f32>());
                Ok((features, true))
            }
            Err(error) => {
                self.kept()
                    .slots
                    .retain(|_, slot| !Arc::ptr_eq(&slot.place, &place));
                Err(error)
            }
        }
    }

    /// Whether an image's are there.
    pub(crate) fn has(&self, id: ImageId) -> bool {
        self.kept().slots.get(&id).is_some_and(|slot| slot.bytes > 0)
    }

    /// An image's, where they are there.
    pub(crate) fn get(&self, id: ImageId) -> Option<Shared> {
        let mut kept = self.kept();
        kept.clock += 1;
        let used = kept.clock;
        let slot = kept.slots.get_mut(&id).filter(|slot| slot.bytes > 0)?;
        slot.used = used;
        let place = Arc::clone(&slot.place);
        drop(kept);
        let found = place.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        *self.kept() = Kept::default();
    }

    /// What is kept now.
    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: ImageId) -> Place {
        let mut kept = self.kept();
        kept.clock += 1;
        let used = kept.clock;
        let slot = kept.slots.entry(id).or_insert_with(|| Slot {
            used,
            bytes: 0,
            place: Place::default(),
        });
        slot.used = used;
        Arc::clone(&slot.place)
    }

    /// Counts what is in a place now, unless it was forgotten meanwhile, and makes room.
    fn keep(&self, id: ImageId, place: &Place, bytes: usize) {
        let mut kept = self.kept();
        let Some(slot) = kept.slots.get_mut(&id) else {
            return;
        };
        if slot.bytes > 0 || !Arc::ptr_eq(&slot.place, place) {
            return;
        }
        slot.bytes = bytes;
        kept.bytes += bytes;
        while kept.bytes > self.limit {
            let filled = kept.slots.iter().filter(|(_, slot)| slot.bytes > 0);
            let Some(oldest) = filled.min_by_key(|(_, slot)| slot.used).map(|(id, _)| *id) else {
                return;
            };
            if let Some(slot) = kept.slots.remove(&oldest) {
                kept.bytes -= slot.bytes;
            }
        }
    }
}
