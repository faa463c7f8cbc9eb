//! The loop: how do logits become an answer, one token at a time, and when does it end?

use crate::error::EngineError;
use crate::sample::Sampler;
use crate::text::TextStream;
use ndarray::Array1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the loop needs of a sequence.
pub trait NextToken {
    /// Whether another token fits after those that were fed.
    fn has_room(&self) -> bool;

    /// Appends `token`; the logits `[vocab]` that follow.
    ///
    /// # Errors
    /// What the engine says.
    fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError>;
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it (a stop id).
    Stop,
    /// A stop string came.
    StopString,
    /// It has as many tokens as were allowed.
    MaxTokens,
    /// The model can hold no more positions.
    MaxContext,
    /// It was cancelled.
    Cancelled,
}

/// When an answer ends.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Ids that end it; they are not part of it.
    pub stop_ids: Vec<i64>,
    /// Most tokens of it.
    pub max_tokens: usize,
    /// Ends it as soon as somebody sets this.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// A token of an answer and the text that is certain with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token; `None` for text that was held back until the end.
    pub id: Option<i64>,
    /// Whole characters, often none.
    pub text: String,
}

/// An answer as it comes: an iterator of its tokens.
#[derive(Debug)]
pub struct Generation<'a, M> {
    model: &'a mut M,
    sampler: Sampler,
    stream: TextStream,
    limits: Limits,
    /// Ids of the prompt and of the answer so far, for the repetition penalty.
    context: Vec<i64>,
    prompt: usize,
    /// What follows the last token; `None` if that was not fed yet.
    logits: Option<Array1<f32>>,
    finish: Option<Finish>,
    failed: bool,
}

impl<'a, M: NextToken> Generation<'a, M> {
    /// The answer that `logits` begin. `prompt`: the ids of the prompt.
    pub fn new(
        model: &'a mut M,
        logits: Array1<f32>,
        prompt: Vec<i64>,
        sampler: Sampler,
        stream: TextStream,
        limits: Limits,
    ) -> Generation<'a, M> {
        let (context, prompt) = (prompt.clone(), prompt.len());
        Generation {
            model,
            sampler,
            stream,
            limits,
            context,
            prompt,
            logits: Some(logits),
            finish: None,
            failed: false,
        }
    }

    /// Why it ended; `None` while it has not, or if it failed.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// The ids of the answer so far, without the one that stopped it.
    pub fn tokens(&self) -> &[i64] {
        &self.context[self.prompt..]
    }

    /// Ends the answer with the text that was held back.
    fn end(
        &mut self,
        finish: Finish,
        id: Option<i64>,
        mut text: String,
    ) -> Result<Option<Piece>, EngineError> {
        self.finish = Some(finish);
        text.push_str(&self.stream.finish()?);
        Ok((id.is_some() || !text.is_empty()).then_some(Piece { id, text }))
    }

    fn advance(&mut self) -> Result<Option<Piece>, EngineError> {
        let cancelled = self
            .limits
            .cancel
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed));
        if cancelled {
            return self.end(Finish::Cancelled, None, String::new());
        }
        if self.tokens().len() >= self.limits.max_tokens {
            return self.end(Finish::MaxTokens, None, String::new());
        }
        let logits = match (self.logits.take(), self.context.last()) {
            (Some(logits), _) => logits,
            (None, Some(&last)) => {
                if !self.model.has_room() {
                    return self.end(Finish::MaxContext, None, String::new());
                }
                self.model.step(last)?
            }
            (None, None) => return Err(EngineError::EmptyPrompt),
        };
        // One row without gaps, whoever made it; otherwise the sampler says that there are none.
        let row = logits.as_slice().unwrap_or_default();
        let id = self.sampler.pick(row, &self.context)?;
        if self.limits.stop_ids.contains(&id) {
            return self.end(Finish::Stop, None, String::new());
        }
        self.context.push(id);
        let text = self.stream.push(id)?;
        if self.stream.stopped() {
            return self.end(Finish::StopString, Some(id), text);
        }
        if self.tokens().len() >= self.limits.max_tokens {
            return self.end(Finish::MaxTokens, Some(id), text);
        }
        Ok(Some(Piece { id: Some(id), text }))
    }
}

impl<M: NextToken> Iterator for Generation<'_, M> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        let result = self.advance().transpose();
        self.failed = matches!(result, Some(Err(_)));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sampling;
    use crate::text::Tokenizer;

    /// Answers with a fixed list of ids.
    #[derive(Debug)]
    struct FakeModel {
        script: Vec<i64>,
        fed: Vec<i64>,
        room: usize,
    }

    impl FakeModel {
        fn logits(&self) -> Array1<f32> {
            let next = usize::try_from(self.script[self.fed.len()]).unwrap();
            let mut logits = Array1::zeros(VOCABULARY);
            logits[next] = 1.0;
            logits
        }
    }

    impl NextToken for FakeModel {
        fn has_room(&self) -> bool {
            self.fed.len() < self.room
        }

        fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
            self.fed.push(token);
            if self.fed.len() >= self.script.len() {
                return Err(EngineError::UnknownImage);
            }
            Ok(self.logits())
        }
    }

    const VOCABULARY: usize = 8;

    /// Tokens: 0 `a`, 1 `b`, 2 `c`, 3 to 5 the bytes of a euro sign, 6 `.`, 7 the end.
    fn tokenizer(directory: &std::path::Path) -> Tokenizer {
        // Byte-level BPE spells the bytes e2 82 ac like this.
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
            {"id":7,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false},
            "post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false},
            "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
            "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
            "vocab":{"a":0,"b":1,"c":2,"â":3,"Ĥ":4,"¬":5,".":6},"merges":[]}}"#;
        let path = directory.join("tokenizer.json");
        std::fs::write(&path, json).unwrap();
        Tokenizer::open(&path).unwrap()
    }

    #[test]
    fn every_way_to_end() {
        struct Case {
            script: &'static [i64],
            stops: &'static [&'static str],
            max_tokens: usize,
            room: usize,
            text: &'static str,
            ids: &'static [i64],
            finish: Finish,
        }
        let case = |script, text, ids, finish| Case {
            script,
            stops: &[],
            max_tokens: 9,
            room: 99,
            text,
            ids,
            finish,
        };
        let cases = [
            case(&[0, 1, 7], "ab", &[0, 1], Finish::Stop),
            case(&[7], "", &[], Finish::Stop),
            case(&[0, 3, 4, 5, 7], "a€", &[0, 3, 4, 5], Finish::Stop),
            case(&[0, 3, 4, 7], "a\u{fffd}", &[0, 3, 4], Finish::Stop),
            Case {
                max_tokens: 2,
                ..case(&[0, 1, 2], "ab", &[0, 1], Finish::MaxTokens)
            },
            Case {
                max_tokens: 2,
                ..case(&[0, 3, 4], "a\u{fffd}", &[0, 3], Finish::MaxTokens)
            },
            Case {
                max_tokens: 0,
                ..case(&[0], "", &[], Finish::MaxTokens)
            },
            Case {
                room: 2,
                ..case(&[0, 1, 2, 0], "abc", &[0, 1, 2], Finish::MaxContext)
            },
            Case {
                stops: &["bc"],
                ..case(&[0, 1, 2, 0], "a", &[0, 1, 2], Finish::StopString)
            },
            Case {
                stops: &["bc"],
                ..case(&[0, 1, 0, 1, 7], "abab", &[0, 1, 0, 1], Finish::Stop)
            },
        ];
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(directory.path());
        for (index, case) in cases.into_iter().enumerate() {
            let mut model = FakeModel {
                script: case.script.to_vec(),
                fed: Vec::new(),
                room: case.room,
            };
            let logits = model.logits();
            let stops: Vec<String> = case.stops.iter().map(|&stop| stop.to_owned()).collect();
            let mut generation = Generation::new(
                &mut model,
                logits,
                vec![6],
                Sampler::new(Sampling::default(), VOCABULARY).unwrap(),
                TextStream::new(tokenizer.clone(), &stops),
                Limits {
                    stop_ids: vec![7],
                    max_tokens: case.max_tokens,
                    cancel: None,
                },
            );
            let text: String = generation.by_ref().map(|piece| piece.unwrap().text).collect();
            assert_eq!(text, case.text, "case {index}");
            assert_eq!(generation.tokens(), case.ids, "case {index}");
            assert_eq!(generation.finish(), Some(case.finish), "case {index}");
            assert!(generation.next().is_none());
        }
    }

    #[test]
    fn cancelling_keeps_what_there_is_and_errors_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(directory.path());
        let flag = Arc::new(AtomicBool::new(false));
        let mut model = FakeModel {
            script: vec![0, 1, 2],
            fed: Vec::new(),
            room: 9,
        };
        let logits = model.logits();
        let sampler = Sampler::new(Sampling::default(), VOCABULARY).unwrap();
        let limits = Limits {
            stop_ids: Vec::new(),
            max_tokens: 9,
            cancel: Some(Arc::clone(&flag)),
        };
        let stream = TextStream::new(tokenizer, &[]);
        let mut generation = Generation::new(
            &mut model,
            logits.clone(),
            Vec::new(),
            sampler.clone(),
            stream,
            limits,
        );
        assert_eq!(generation.next().unwrap().unwrap().text, "a");
        flag.store(true, Ordering::Relaxed);
        assert!(generation.next().is_none());
        assert_eq!(generation.finish(), Some(Finish::Cancelled));
        assert_eq!(generation.tokens(), [0]);

        flag.store(false, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let stream = TextStream::new(self::tokenizer(directory.path()), &[]);
        model.fed.clear();
        let limits = Limits {
            stop_ids: Vec::new(),
            max_tokens: 9,
            cancel: None,
        };
        let results: Vec<bool> = Generation::new(&mut model, logits, Vec::new(), sampler, stream, limits)
            .map(|piece| piece.is_ok())
            .collect();
        assert_eq!(results, [true, true, true, false]);
    }
}
