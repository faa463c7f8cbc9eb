//! `config`: a `config.json` of either dialect, read as `fvlm-export` reads it.
//!
//! What is accepted is accepted always, says the same of every size, and small networks can be built from it
//! or are refused.

use crate::edit::edit;
use crate::words;
use arbitrary::Unstructured;
use models::arch::{self, Network};
use models::config::ModelConfig;
use serde_json::Value;
use std::path::Path;

pub(crate) const APPLE: &str = include_str!("../base/config-llava.json");
pub(crate) const DEMO: &str = include_str!("../../../models/demo/checkpoint/config.json");

/// Blocks of a network that is built.
const FEW: u64 = 12;

/// The first byte says whether the rest is a text, or changes to one.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = match kind % 3 {
        0 => String::from_utf8_lossy(rest).into_owned(),
        1 => changed(APPLE, rest),
        _ => changed(DEMO, rest),
    };
    let parsed = ModelConfig::parse(&text, Path::new("config.json"));
    let (config, _) = match parsed {
        Ok(config) => config,
        Err(error) => return words::check(&error.to_string(), text.as_bytes()),
    };
    let again = ModelConfig::parse(&text, Path::new("config.json"));
    assert!(
        again.is_ok_and(|(again, _)| again == config),
        "read twice, not the same"
    );
    sizes(&config);
    let blocks = config.vision.layers.iter().sum::<u64>() + config.decoder.layers;
    if blocks <= FEW {
        for network in Network::ALL {
            match arch::build(network, &config) {
                Ok(graph) => graph.check().expect("a graph that was built is sound"),
                Err(error) => words::check(&error.to_string(), text.as_bytes()),
            }
        }
    }
}

/// The sizes of images that it has are those that it can be made for.
fn sizes(config: &ModelConfig) {
    let (multiple, largest) = config.image_sizes();
    for side in [
        0,
        1,
        multiple,
        multiple + 1,
        largest,
        largest + multiple,
        config.vision.image_size,
    ] {
        let other = config.at_image_size(side);
        let legal = side > 0 && side % multiple == 0 && side <= largest;
        assert_eq!(other.is_some(), legal, "{side} of {multiple} to {largest}");
        if let Some(other) = other {
            let token_side = config.vision.token_side();
            assert_eq!(other.image_tokens(), (side / token_side) * (side / token_side));
        }
    }
    assert!(
        config.at_image_size(config.vision.image_size).is_some(),
        "its own size"
    );
}

/// The text with changes.
pub(crate) fn changed(text: &str, changes: &[u8]) -> String {
    let mut value: Value = serde_json::from_str(text).expect("a base is JSON");
    let _ = edit(&mut value, &mut Unstructured::new(changes));
    value.to_string()
}
