//! Flipped bytes in a `tokenizer.json`: each file is a tokenizer or an error that names it; no panic leaves
//! the crate.

use prompt::PromptError;
use prompt::text::Tokenizer;
use std::path::Path;
use std::time::{Duration, Instant};

/// Flips tried, and how long one may take: a hundred times what the whole file takes.
const FLIPS: usize = 1500;
const LONGEST: Duration = Duration::from_secs(10);

const TEXT: &str =
    "<|im_start|>user\n<image>\nIt's 3:45 p.m. in Zu\u{308}rich, \u{1f469}\u{200d}\u{1f469}!\r\n<|im_end|>";

/// Whether the file opened; what is wrong otherwise must say where.
fn try_out(bytes: &[u8]) -> bool {
    let path = Path::new("bundle/tokenizer.json");
    let used = Tokenizer::read(path, bytes).and_then(|tokenizer| {
        let ids = tokenizer.encode(TEXT)?;
        tokenizer.decode(&ids)?;
        tokenizer.decode(&[0, 255, 1019, 1022, 70_000])
    });
    match used {
        Ok(_) => true,
        Err(error @ (PromptError::Tokenizer { .. } | PromptError::Tokenize { .. })) => {
            assert!(error.to_string().contains("bundle/tokenizer.json"), "{error}");
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn flipped_bytes_are_errors_or_tokenizers() {
    prompt::catch::silence_caught_panics();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/checkpoint/tokenizer.json");
    let whole = std::fs::read(demo).unwrap();
    assert!(try_out(&whole));
    // What is not vocabulary is tried byte by byte: there the file says what is computed.
    let head = whole.windows(8).position(|part| part == b"\"vocab\":").unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(bound).unwrap()).unwrap()
    };
    let (mut opened, mut refused) = (0, 0);
    for round in 0..FLIPS {
        let place = if round % 4 == 0 {
            next(whole.len())
        } else {
            next(head)
        };
        let mut bytes = whole.clone();
        bytes[place] ^= u8::try_from(1 + next(255)).unwrap();
        let begun = Instant::now();
        if try_out(&bytes) {
            opened += 1;
        } else {
            refused += 1;
        }
        assert!(begun.elapsed() < LONGEST, "byte {place}: {:?}", begun.elapsed());
    }
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
}
