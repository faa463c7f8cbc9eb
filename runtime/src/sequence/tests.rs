//! Sequences over fakes of an encoder, an embedding and a decoder.

use super::*;
use crate::backend::{Decoder, VisionEncoder};
use crate::error::BackendError;
use crate::features::Features;
use crate::prompt::{Piece, Prompt};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, array};
use std::sync::Mutex;

/// What the fakes were asked to do.
type Log = Arc<Mutex<Vec<String>>>;

/// A token that the decoder panics at.
const PANICS: i64 = 77;

struct FakeEncoder(Log);
struct FakeEmbedder;
struct FakeDecoder(Log);
struct FakeState(Log, Vec<f32>);

impl VisionEncoder for FakeEncoder {
    fn encode(&self, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>, BackendError> {
        self.0.lock().unwrap().push("encode".to_owned());
        Ok(Array2::from_elem((3, 1), pixels[[0, 0, 0, 0]]))
    }
}

impl TokenEmbedder for FakeEmbedder {
    fn embed(&self, ids: &[i64]) -> Result<Array2<f32>, BackendError> {
        let number = |&id: &i64| i8::try_from(id).map(f32::from);
        let numbers = ids.iter().map(number).collect::<Result<_, _>>();
        let numbers = numbers.map_err(|_| BackendError::Run {
            path: "embed_tokens.onnx".into(),
            reason: "no such token".to_owned(),
        })?;
        Ok(Array2::from_shape_vec((ids.len(), 1), numbers).unwrap())
    }
}

impl Decoder for FakeDecoder {
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
        Ok(Box::new(FakeState(Arc::clone(&self.0), Vec::new())))
    }
}

impl DecoderState for FakeState {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let embeds: Vec<f32> = embeds.iter().copied().collect();
        assert!(!embeds.contains(&77.0), "a bad token");
        self.0.lock().unwrap().push(format!("feed {embeds:?}"));
        self.1.extend(embeds);
        Ok(array![self.1.iter().sum()])
    }

    fn len(&self) -> usize {
        self.1.len()
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        self.1.truncate(len);
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        self.1.len() * 4
    }
}

impl Drop for FakeState {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("freed".to_owned());
    }
}

struct Fakes {
    encoder: Arc<FakeEncoder>,
    decoder: Arc<FakeDecoder>,
    features: Features,
}

impl Parts for &Fakes {
    fn encoder(&self) -> Result<Arc<dyn VisionEncoder>, EngineError> {
        Ok(Arc::clone(&self.encoder) as Arc<dyn VisionEncoder>)
    }

    fn embedder(&self) -> Result<Arc<dyn TokenEmbedder>, EngineError> {
        Ok(Arc::new(FakeEmbedder))
    }

    fn decoder(&self) -> Result<Arc<dyn Decoder>, EngineError> {
        Ok(Arc::clone(&self.decoder) as Arc<dyn Decoder>)
    }

    fn context(&self) -> Result<usize, EngineError> {
        Ok(12)
    }

    fn features(&self) -> &Features {
        &self.features
    }
}

fn fakes() -> (Fakes, Log) {
    let log = Log::default();
    let fakes = Fakes {
        encoder: Arc::new(FakeEncoder(Arc::clone(&log))),
        decoder: Arc::new(FakeDecoder(Arc::clone(&log))),
        features: Features::default(),
    };
    (fakes, log)
}

fn sequence(fakes: &Fakes) -> Sequence<&Fakes> {
    let geometry = Geometry {
        hidden: 1,
        image_tokens: 3,
    };
    Sequence::new(fakes, geometry, Timeline::begin())
}

fn pixels(id: u64) -> PixelValues {
    PixelValues {
        values: Array4::from_elem((1, 3, 1, 1), 0.5),
        id: ImageId(id),
    }
}

fn prompt(before: &[i64], after: &[i64]) -> Prompt {
    let image = Piece::Image {
        id: ImageId(7),
        tokens: 3,
    };
    Prompt::new(vec![
        Piece::Tokens(before.to_vec()),
        image,
        Piece::Tokens(after.to_vec()),
    ])
}

/// What it took to read a whole prompt.
struct Prefill {
    logits: Array1<f32>,
    reused: usize,
    encoded: usize,
}

impl Sequence<&Fakes> {
    /// Reads all of a prompt at once.
    fn prefill(&mut self, prompt: &Prompt) -> Result<Prefill, EngineError> {
        let mut feeding = self.begin(prompt.clone())?;
        let logits = self.read(&mut feeding, usize::MAX)?;
        Ok(Prefill {
            logits: logits.unwrap(),
            reused: feeding.reused,
            encoded: feeding.encoded,
        })
    }
}

#[test]
fn a_follow_up_feeds_only_what_is_new_and_encodes_nothing() {
    let (fakes, log) = fakes();
    let mut sequence = sequence(&fakes);
    sequence.add(pixels(7));
    let first = sequence.prefill(&prompt(&[1], &[2])).unwrap();
    assert_eq!((first.reused, first.encoded), (0, 1));
    sequence.step(3).unwrap();
    // The answer `3` and one more token, then the next question.
    let second = sequence.prefill(&prompt(&[1], &[2, 3, 4, 5])).unwrap();
    assert_eq!((second.reused, second.encoded), (6, 0));
    assert_eq!(second.logits, array![1.0 + 1.5 + 2.0 + 3.0 + 4.0 + 5.0]);
    // A different question about the same image.
    sequence.add(pixels(7));
    let third = sequence.prefill(&prompt(&[1], &[9])).unwrap();
    assert_eq!((third.reused, third.encoded), (4, 0));
    assert_eq!(third.logits, array![11.5]);
    // The same prompt again: the last position gives the logits.
    assert_eq!(sequence.prefill(&prompt(&[1], &[9])).unwrap().reused, 4);
    // Another beginning: the image moves but is not encoded again.
    let fifth = sequence.prefill(&prompt(&[8, 8], &[9])).unwrap();
    assert_eq!((fifth.reused, fifth.encoded), (0, 0));
    let log = log.lock().unwrap();
    assert_eq!(
        log[..4],
        [
            "encode",
            "feed [1.0, 0.5, 0.5, 0.5, 2.0]",
            "feed [3.0]",
            "feed [4.0, 5.0]"
        ]
    );
    assert_eq!(log.iter().filter(|entry| *entry == "encode").count(), 1);
}

#[test]
fn prompts_that_cannot_be_fed() {
    let (fakes, _) = fakes();
    let mut sequence = sequence(&fakes);
    assert!(matches!(
        sequence.prefill(&Prompt::default()),
        Err(EngineError::EmptyPrompt)
    ));
    assert!(matches!(
        sequence.prefill(&prompt(&[1], &[2])),
        Err(EngineError::UnknownImage)
    ));
    sequence.add(pixels(7));
    let long = prompt(&[1; 5], &[2; 4]);
    assert!(matches!(
        sequence.prefill(&long),
        Err(EngineError::TooLong {
            found: 12,
            expected: 12
        })
    ));
    let fits = prompt(&[1; 4], &[2; 4]);
    sequence.prefill(&fits).unwrap();
    assert!(sequence.has_room());
    sequence.step(1).unwrap();
    assert!(!sequence.has_room());
    sequence.reset();
    assert!(matches!(
        sequence.prefill(&prompt(&[1], &[2])),
        Err(EngineError::UnknownImage)
    ));
}

#[test]
fn sequences_beside_each_other_share_features_and_nothing_else() {
    let (fakes, log) = fakes();
    let (mut first, mut second) = (sequence(&fakes), sequence(&fakes));
    for sequence in [&mut first, &mut second] {
        sequence.add(pixels(7));
    }
    assert_eq!(first.prefill(&prompt(&[1], &[2])).unwrap().encoded, 1);
    let prefill = second.prefill(&prompt(&[3], &[4])).unwrap();
    assert_eq!((prefill.encoded, prefill.reused), (0, 0));
    assert_eq!(prefill.logits, array![3.0 + 1.5 + 4.0]);
    assert_eq!(first.step(5).unwrap(), array![1.0 + 1.5 + 2.0 + 5.0]);
    assert_eq!((first.cache_bytes(), second.cache_bytes()), (6 * 4, 5 * 4));
    drop(first);
    assert_eq!(
        log.lock()
            .unwrap()
            .iter()
            .filter(|entry| *entry == "freed")
            .count(),
        1
    );
    assert_eq!(second.step(6).unwrap(), array![14.5]);
    second.reset();
    assert_eq!(second.cache_bytes(), 0);
    assert_eq!(
        log.lock()
            .unwrap()
            .iter()
            .filter(|entry| *entry == "freed")
            .count(),
        2
    );
}
#[test]
fn sequences_that_are_stepped_together() {
    let ((fakes, log), (others, _)) = (fakes(), self::fakes());
    let mut all = [
        sequence(&fakes),
        sequence(&others),
        sequence(&fakes),
        sequence(&fakes),
    ];
    for (number, sequence) in (1..).zip(&mut all[..3]) {
        let prompt = Prompt::new(vec![Piece::Tokens(vec![number])]);
        sequence.prefill(&prompt).unwrap();
    }
    log.lock().unwrap().clear();
    let mut sequences: Vec<_> = all.iter_mut().collect();
    let logits: Vec<f32> = NextToken::step_each(&mut sequences, &[10, 20, 30, 40])
        .into_iter()
        .map(|logits| logits.unwrap()[0])
        .collect();
    // The last was fed nothing before.
    assert_eq!(logits, [11.0, 22.0, 33.0, 40.0]);
    assert_eq!(
        *log.lock().unwrap(),
        ["feed [10.0]", "feed [30.0]", "feed [40.0]"]
    );
    // A token that cannot be embedded is the error of one.
    let mut sequences: Vec<_> = all.iter_mut().collect();
    let steps = NextToken::step_each(&mut sequences, &[1, 1, 1000, 1]);
    let fine: Vec<bool> = steps.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, true, false, true]);
    assert_eq!(all[0].fed.len(), 3);
    assert_eq!(all[2].fed.len(), 2);
}

#[test]
fn a_prompt_that_is_read_in_pieces() {
    let (fakes, log) = fakes();
    let mut sequence = sequence(&fakes);
    sequence.add(pixels(7));
    // Seven positions, the image from the third to the fifth.
    let prompt = prompt(&[1, 2], &[3, 4]);
    let mut feeding = sequence.begin(prompt.clone()).unwrap();
    assert_eq!(*log.lock().unwrap(), ["encode"]);
    for (most, left) in [(3, 4), (1, 3), (0, 2), (1, 1)] {
        assert!(sequence.read(&mut feeding, most).unwrap().is_none());
        assert_eq!(sequence.left(&feeding), left);
    }
    assert_eq!(sequence.in_common(&prompt), 6);
    let logits = sequence.read(&mut feeding, 5).unwrap();
    assert_eq!(logits, Some(array![1.0 + 2.0 + 1.5 + 3.0 + 4.0]));
    assert_eq!(
        log.lock().unwrap()[1..],
        [
            "feed [1.0, 2.0, 0.5]",
            "feed [0.5]",
            "feed [0.5]",
            "feed [3.0]",
            "feed [4.0]"
        ]
    );
    assert_eq!(sequence.fed(), 7);
    // One that is given up stays useful.
    let longer = Prompt::new(vec![Piece::Tokens(vec![1, 2, 5, 6, 7])]);
    let mut feeding = sequence.begin(longer.clone()).unwrap();
    assert!(sequence.read(&mut feeding, 2).unwrap().is_none());
    assert_eq!(sequence.prefill(&longer).unwrap().reused, 4);
}

#[test]
fn a_panic_of_the_engine_is_the_error_of_one() {
    crate::backend::silence_caught_panics();
    let (fakes, _) = fakes();
    let mut all = [sequence(&fakes), sequence(&fakes), sequence(&fakes)];
    for sequence in &mut all {
        sequence
            .prefill(&Prompt::new(vec![Piece::Tokens(vec![1])]))
            .unwrap();
    }
    let mut sequences: Vec<_> = all.iter_mut().collect();
    let steps = NextToken::step_each(&mut sequences, &[2, PANICS, 3]);
    let logits: Vec<Option<f32>> = steps
        .iter()
        .map(|step| step.as_ref().ok().map(|row| row[0]))
        .collect();
    assert_eq!(logits, [Some(3.0), None, Some(4.0)]);
    let error = steps[1].as_ref().unwrap_err();
    assert!(matches!(error, EngineError::Panic { network: "decoder", reason } if reason == "a bad token"));
    // All of them go on.
    assert_eq!(all.each_ref().map(Sequence::fed), [2, 1, 2]);
    assert_eq!(all[1].step(4).unwrap(), array![5.0]);
    assert!(matches!(
        all[1].step(PANICS),
        Err(EngineError::Panic {
            network: "decoder",
            ..
        })
    ));
    let prompt = Prompt::new(vec![Piece::Tokens(vec![1, 4, PANICS])]);
    let error = all[1].prefill(&prompt).err().unwrap();
    assert!(matches!(
        error,
        EngineError::Panic {
            network: "decoder",
            ..
        }
    ));
}
