//! `constraint`: a regular expression, a JSON schema or choices, as `--regex`, `--json-schema` and `--choices` give them, and
//! an answer of tokens that may come, with the demo model's tokenizer.
//!
//! It ends with an answer or an error, soon. Of the tokens that may come there is one, it is text or an end, and it is taken. A
//! whole answer is what was asked for: a choice, JSON.

use crate::words;
use arbitrary::{Result, Unstructured};
use runtime::constrain::{Follower, Vocabulary};
use runtime::text::Tokenizer;
use runtime::{Constraint, ConstraintError};
use std::cell::OnceCell;

/// Most tokens of an answer.
const MOST: usize = 48;
/// The ends of the demo model's answers.
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

thread_local! {
    static DEMO: OnceCell<Demo> = const { OnceCell::new() };
}

struct Demo {
    tokenizer: Tokenizer,
    ends: Vec<i64>,
    vocabulary: Vocabulary,
}

impl Demo {
    fn new() -> Demo {
        let mut files = exporter::demo::FILES.iter();
        let file = files.find(|(name, _)| *name == "tokenizer.json");
        let (name, json) = file.expect("the demo model has a tokenizer");
        let tokenizer = Tokenizer::read(name.as_ref(), json).expect("it opens");
        let ends: Vec<i64> = ENDS.iter().filter_map(|end| tokenizer.id_of(end)).collect();
        assert_eq!(ends.len(), ENDS.len());
        let vocabulary = Vocabulary::new(&tokenizer, &ends).expect("it is of bytes");
        Demo {
            tokenizer,
            ends,
            vocabulary,
        }
    }
}

/// A kind, which tokens are chosen, and the constraint's text.
pub fn run(data: &[u8]) {
    let _ = DEMO.with(|demo| constraint(demo.get_or_init(Demo::new), data, &mut Unstructured::new(data)));
}

fn constraint(demo: &Demo, data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let (kind, seed) = (u.arbitrary::<u8>()?, u.arbitrary::<u32>()?);
    let length = u.len();
    let text = String::from_utf8_lossy(u.bytes(length)?).into_owned();
    let constraint = match kind % 3 {
        0 => Constraint::Regex(text),
        1 => match serde_json::from_str(&text) {
            Ok(schema) => Constraint::JsonSchema(schema),
            Err(_) => return Ok(()),
        },
        _ => Constraint::Choices(text.split('\n').map(str::to_owned).collect()),
    };
    match demo.vocabulary.follow(&constraint) {
        Ok(mut follower) => answer(demo, &constraint, &mut follower, seed, data),
        Err(error) => {
            assert!(!matches!(error, ConstraintError::Stuck { .. }), "{error}");
            words::check(&error.to_string(), data);
        }
    }
    Ok(())
}

/// Goes on with tokens that may come, to an end or for so many.
fn answer(demo: &Demo, constraint: &Constraint, follower: &mut Follower, seed: u32, data: &[u8]) {
    let mut random = seed;
    let mut ids = Vec::new();
    while ids.len() < MOST {
        let may = match follower.allowed() {
            Ok(allowed) => ids_of(allowed),
            Err(error) => return stuck(&error, data),
        };
        assert!(!may.is_empty(), "nothing may come behind {ids:?}");
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let id = may[usize::try_from(random >> 8).unwrap_or(0) % may.len()];
        if demo.ends.contains(&id) {
            return whole(demo, constraint, &ids);
        }
        assert!(!demo.tokenizer.is_added(id), "{id} is no text");
        ids.push(id);
        match follower.take(id) {
            Ok(false) => {}
            Ok(true) => return whole(demo, constraint, &ids),
            Err(error) => return stuck(&error, data),
        }
    }
}

fn ids_of(allowed: &[u32]) -> Vec<i64> {
    let words = (0_i64..).zip(allowed);
    words
        .flat_map(|(word, bits)| {
            (0..32)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| 32 * word + bit)
        })
        .collect()
}

fn stuck(error: &ConstraintError, data: &[u8]) {
    assert!(matches!(error, ConstraintError::Stuck { .. }), "{error}");
    words::check(&error.to_string(), data);
}

/// An answer with an end keeps to what was asked for.
fn whole(demo: &Demo, constraint: &Constraint, ids: &[i64]) {
    let text = demo.tokenizer.decode(ids).expect("ids of tokens become text");
    match constraint {
        Constraint::Choices(choices) => assert!(choices.contains(&text), "{text:?} is none of {choices:?}"),
        Constraint::JsonSchema(_) => {
            if let Err(error) = serde_json::from_str::<serde_json::Value>(&text) {
                // Beyond float64 there are numbers too.
                assert!(error.to_string().contains("out of range"), "{text:?}: {error}");
            }
        }
        _ => {}
    }
}
