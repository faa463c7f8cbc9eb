//! Features of images, kept by content: an image that several conversations show is encoded once.

use crate::error::EngineError;
use crate::image::ImageId;
use ndarray::Array2;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

#[derive(Debug, Default)]
struct Kept {
    /// Counts what was asked for.
    clock: u64,
    bytes: usize,
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
        let place = self.has(id).then(|| self.place(id))?;
        let found = place.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    /// Forgets all of them.
    pub(crate) fn clear(&self) {
        *self.kept() = Kept::default();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Asks for an image whose features are ten numbers; whether it was encoded.
    fn ask(features: &Features, id: u64) -> bool {
        let made = || Ok(Array2::from_elem((2, 5), 0.5));
        features.get_or_encode(ImageId(id), made).unwrap().1
    }

    #[test]
    fn the_oldest_go_where_there_are_too_many() {
        let features = Features::up_to(3 * 40);
        assert!([1, 2, 3].iter().all(|id| ask(&features, *id)));
        assert!(features.get(ImageId(1)).is_some());
        assert!(features.get(ImageId(9)).is_none());
        assert!(ask(&features, 4));
        assert_eq!(
            [1, 2, 3, 4].map(|id| features.has(ImageId(id))),
            [true, false, true, true]
        );
        // 2 was asked for longest ago.
        assert!(![1, 3, 4].iter().any(|id| ask(&features, *id)));
        assert!(ask(&features, 2));
        assert_eq!(features.kept().bytes, 3 * 40);
        features.clear();
        assert!(ask(&features, 1));
        assert_eq!(features.kept().bytes, 40);
        // One that does not fit is not kept, and harms nobody.
        let none = Features::up_to(39);
        assert!(ask(&none, 1) && ask(&none, 1));
        assert_eq!(none.kept().bytes, 0);
    }

    #[test]
    fn an_image_is_encoded_once_for_all_who_ask_at_once() {
        let (features, calls) = (Features::default(), AtomicUsize::new(0));
        let encode = || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Array2::zeros((1, 1)))
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| features.get_or_encode(ImageId(1), encode).unwrap());
            }
        });
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_error_is_not_kept() {
        let features = Features::default();
        let failed = features.get_or_encode(ImageId(1), || Err(EngineError::UnknownImage));
        assert!(failed.is_err());
        assert!(features.kept().slots.is_empty());
        assert!(ask(&features, 1));
    }
}
