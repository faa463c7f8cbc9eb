//! Features of images, kept, with threads of the system.

use crate::error::EngineError;
use crate::features::Features;
use crate::image::ImageId;
use ndarray::Array2;
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
    assert_eq!(features.kept().filled(), 3);
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
    assert_eq!(features.kept().places(), 0);
    assert!(ask(&features, 1));
}
