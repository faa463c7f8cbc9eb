//! `stream`: ids that become text one by one, and strings at which it stops.
//!
//! What is shown is what all ids together become, up to the first place at which a stop string stands as soon
//! as one does; never a part of a stop string, never half a character.

use crate::folder::Folder;
use crate::tokens::{self, TOKENS};
use crate::words;
use arbitrary::{Result, Unstructured};
use runtime::text::{TextStream, Tokenizer};
use std::cell::OnceCell;

/// What decoders write for bytes that are no character, or none yet.
const REPLACEMENT: char = '\u{fffd}';
/// Most ids.
const MOST: usize = 160;

thread_local! {
    static TOKENIZER: OnceCell<Tokenizer> = const { OnceCell::new() };
}

/// Stop strings, then ids, mostly those of bytes.
pub fn run(data: &[u8]) {
    TOKENIZER.with(|tokenizer| {
        let tokenizer = tokenizer.get_or_init(|| {
            let path =
                Folder::new("stream").put("tokenizer.json", Some(tokens::json().to_string().as_bytes()));
            Tokenizer::open(&path).expect("the small tokenizer opens")
        });
        let _ = stream(tokenizer, data, &mut Unstructured::new(data));
    });
}

fn stream(tokenizer: &Tokenizer, data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let mut stops = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let length = u.int_in_range(0..=6_usize)?.min(u.len());
        stops.push(String::from_utf8_lossy(u.bytes(length)?).into_owned());
    }
    let mut ids = Vec::new();
    while !u.is_empty() && ids.len() < MOST {
        ids.push(match u.arbitrary::<u8>()? {
            // Half characters, special tokens and pairs; what is no token at all is seldom.
            254 => i64::from(u.arbitrary::<u8>()?) + 256,
            255 => u.int_in_range(-2..=TOKENS + 2)?,
            byte => i64::from(byte),
        });
    }
    let mut text = TextStream::new(tokenizer.clone(), &stops);
    let mut shown = String::new();
    for (at, id) in ids.iter().enumerate() {
        match text.push(*id) {
            Ok(piece) => shown.push_str(&piece),
            Err(error) => {
                assert!(*id < 0 || *id > i64::from(u32::MAX), "{error}: {:?}", &ids[..=at]);
                words::check(&error.to_string(), data);
                return Ok(());
            }
        }
    }
    shown.push_str(&text.finish().expect("what was decoded is decoded"));
    let (expected, stopped) = expected(tokenizer, &ids, &stops);
    assert_eq!(shown, expected, "{ids:?} {stops:?}");
    assert_eq!(text.stopped(), stopped, "{ids:?} {stops:?}");
    assert_eq!(
        text.finish().ok().as_deref(),
        Some(""),
        "nothing comes after the end"
    );
    Ok(())
}

/// The same from all ids so far, each time anew.
fn expected(tokenizer: &Tokenizer, ids: &[i64], stops: &[String]) -> (String, bool) {
    let decode = |ids: &[i64]| tokenizer.decode(ids).expect("ids of tokens become text");
    let stop = |text: &str| {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        stops.filter_map(|stop| text.find(stop.as_str())).min()
    };
    for end in 1..=ids.len() {
        let text = decode(&ids[..end]);
        let stable = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        if let Some(at) = stop(stable) {
            return (stable[..at].to_owned(), true);
        }
    }
    let text = decode(ids);
    match stop(&text) {
        Some(at) => (text[..at].to_owned(), true),
        None => (text, false),
    }
}
