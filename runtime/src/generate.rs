//! The loop: how do logits become an answer, one token at a time, and when does it end?

use crate::constrain::Follower;
use crate::error::EngineError;
use crate::logprobs::{TokenLogprob, log_probabilities};
use crate::sample::{Context, Sampler};
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

    /// [`NextToken::step`] of several sequences, each with its token and its result: together, where that costs less.
    fn step_each(sequences: &mut [&mut Self], tokens: &[i64]) -> Vec<Result<Array1<f32>, EngineError>>
    where
        Self: Sized,
    {
        let each = sequences.iter_mut().zip(tokens);
        each.map(|(sequence, token)| sequence.step(*token)).collect()
    }
}

impl<M: NextToken> NextToken for &mut M {
    fn has_room(&self) -> bool {
        (**self).has_room()
    }

    fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
        (**self).step(token)
    }

    fn step_each(sequences: &mut [&mut Self], tokens: &[i64]) -> Vec<Result<Array1<f32>, EngineError>> {
        let mut sequences: Vec<&mut M> = sequences.iter_mut().map(|sequence| &mut ***sequence).collect();
        M::step_each(&mut sequences, tokens)
    }
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
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The token; `None` for text that was held back until the end.
    pub id: Option<i64>,
    /// Whole characters, often none.
    pub text: String,
    /// How likely the model found the token, where that was asked for ([`Request::logprobs`](crate::Request::logprobs)) and
    /// there is one.
    pub logprob: Option<TokenLogprob>,
}

/// An answer as it comes: an iterator of its tokens. `M` is the sequence that it continues, or a reference to it.
#[derive(Debug)]
pub struct Generation<M> {
    model: M,
    sampler: Sampler,
    stream: TextStream,
    limits: Limits,
    /// How many alternatives of each token come with it.
    logprobs: Option<usize>,
    /// What the answer keeps to.
    follower: Option<Follower>,
    /// Ids of the prompt and of the answer so far, for the penalties.
    context: Vec<i64>,
    prompt: usize,
    /// What follows the last token; `None` if that was not fed yet.
    logits: Option<Array1<f32>>,
    finish: Option<Finish>,
    failed: bool,
}

/// What comes next in an answer.
enum Next {
    /// Its end, and text that was held back.
    End(Option<Piece>),
    /// A token of these logits.
    Pick(Array1<f32>),
    /// What follows this token, which was not fed yet.
    Feed(i64),
}

impl<M: NextToken> Generation<M> {
    /// The answer that `logits` begin. `prompt`: the ids of the prompt.
    pub fn new(
        model: M,
        logits: Array1<f32>,
        prompt: Vec<i64>,
        sampler: Sampler,
        stream: TextStream,
        limits: Limits,
    ) -> Generation<M> {
        let (context, prompt) = (prompt.clone(), prompt.len());
        Generation {
            model,
            sampler,
            stream,
            limits,
            logprobs: None,
            follower: None,
            context,
            prompt,
            logits: Some(logits),
            finish: None,
            failed: false,
        }
    }

    /// With the log-probabilities of each token and of so many of the likeliest ones in its place, if any.
    #[must_use]
    pub fn with_logprobs(mut self, alternatives: Option<usize>) -> Generation<M> {
        self.logprobs = alternatives;
        self
    }

    /// With something that it keeps to, if any.
    #[must_use]
    pub(crate) fn with_follower(mut self, follower: Option<Follower>) -> Generation<M> {
        self.follower = follower;
        self
    }

    /// Why it ended; `None` while it has not, or if it failed.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// The ids of the answer so far, without the one that stopped it.
    pub fn tokens(&self) -> &[i64] {
        &self.context[self.prompt..]
    }

    /// Ends the answer after its last piece with the text that was held back.
    fn end_with(&mut self, finish: Finish, mut piece: Piece) -> Result<Option<Piece>, EngineError> {
        self.finish = Some(finish);
        piece.text.push_str(&self.stream.finish()?);
        Ok((piece.id.is_some() || !piece.text.is_empty()).then_some(piece))
    }

    /// Ends the answer without another token.
    fn end(&mut self, finish: Finish) -> Result<Option<Piece>, EngineError> {
        let piece = Piece {
            id: None,
            text: String::new(),
            logprob: None,
        };
        self.end_with(finish, piece)
    }

    /// The sequence that it continues.
    pub(crate) fn model(&self) -> &M {
        &self.model
    }

    /// The same, when the answer is not wanted any more.
    pub(crate) fn into_model(self) -> M {
        self.model
    }

    /// Whether nothing comes any more.
    pub(crate) fn is_over(&self) -> bool {
        self.finish.is_some() || self.failed
    }

    fn begin(&mut self) -> Result<Next, EngineError> {
        let cancelled = self
            .limits
            .cancel
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed));
        if cancelled {
            return self.end(Finish::Cancelled).map(Next::End);
        }
        if self.tokens().len() >= self.limits.max_tokens {
            return self.end(Finish::MaxTokens).map(Next::End);
        }
        match (self.logits.take(), self.context.last()) {
            (Some(logits), _) => Ok(Next::Pick(logits)),
            (None, Some(_)) if !self.model.has_room() => self.end(Finish::MaxContext).map(Next::End),
            (None, Some(&last)) => Ok(Next::Feed(last)),
            (None, None) => Err(EngineError::EmptyPrompt),
        }
    }

    fn pick(&mut self, logits: &Array1<f32>) -> Result<Option<Piece>, EngineError> {
        // One row without gaps, whoever made it; otherwise the sampler says that there are none.
        let row = logits.as_slice().unwrap_or_default();
        let (prompt, answer) = self.context.split_at(self.prompt);
        let allowed = match &mut self.follower {
            Some(follower) => Some(follower.allowed()?),
            None => None,
        };
        let context = Context {
            prompt,
            answer,
            allowed,
        };
        let id = self.sampler.pick(row, context)?;
        if self.limits.stop_ids.contains(&id) {
            return self.end(Finish::Stop);
        }
        let complete = match &mut self.follower {
            Some(follower) => follower.take(id)?,
            None => false,
        };
        let logprob = match self.logprobs {
            Some(count) => Some(log_probabilities(self.sampler.checked(row)?, id, count)),
            None => None,
        };
        self.context.push(id);
        let text = self.stream.push(id)?;
        let piece = Piece {
            id: Some(id),
            text,
            logprob,
        };
        if self.stream.stopped() {
            return self.end_with(Finish::StopString, piece);
        }
        if complete {
            return self.end_with(Finish::Stop, piece);
        }
        if self.tokens().len() >= self.limits.max_tokens {
            return self.end_with(Finish::MaxTokens, piece);
        }
        Ok(Some(piece))
    }

    /// What an iterator gives of a result.
    fn given(&mut self, result: Result<Option<Piece>, EngineError>) -> Option<Result<Piece, EngineError>> {
        self.failed = result.is_err();
        result.transpose()
    }
}

impl<M: NextToken> Iterator for Generation<M> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        next_together(&mut [self]).pop().flatten()
    }
}

/// What [`Iterator::next`] gives of each answer, by one step of their sequences together. An error ends one answer.
pub fn next_together<M: NextToken>(
    answers: &mut [&mut Generation<M>],
) -> Vec<Option<Result<Piece, EngineError>>> {
    let mut given = Vec::with_capacity(answers.len());
    let mut tokens = Vec::new();
    let mut fed: Vec<&mut M> = Vec::new();
    let mut places = Vec::new();
    for (place, answer) in answers.iter_mut().enumerate() {
        if answer.is_over() {
            given.push(None);
            continue;
        }
        let result = match answer.begin() {
            Ok(Next::Feed(token)) => {
                tokens.push(token);
                places.push(place);
                fed.push(&mut answer.model);
                given.push(None);
                continue;
            }
            Ok(Next::Pick(logits)) => answer.pick(&logits),
            Ok(Next::End(piece)) => Ok(piece),
            Err(error) => Err(error),
        };
        given.push(answer.given(result));
    }
    let logits = match fed.as_mut_slice() {
        [] => return given,
        [one] => vec![one.step(tokens.first().copied().unwrap_or_default())],
        several => M::step_each(several, &tokens),
    };
    drop(fed);
    for (place, logits) in places.into_iter().zip(logits) {
        if let (Some(answer), Some(given)) = (answers.get_mut(place), given.get_mut(place)) {
            let result = logits.and_then(|logits| answer.pick(&logits));
            *given = answer.given(result);
        }
    }
    given
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
    /// Each is stepped as often as it needs, together with who else does, and ends on its own.
    #[test]
    fn answers_that_are_continued_together() {
        /// Counts how many were stepped at once.
        #[derive(Debug)]
        struct Counting(FakeModel, Vec<usize>);

        impl NextToken for Counting {
            fn has_room(&self) -> bool {
                self.0.has_room()
            }

            fn step(&mut self, token: i64) -> Result<Array1<f32>, EngineError> {
                self.1.push(1);
                self.0.step(token)
            }

            fn step_each(
                sequences: &mut [&mut Self],
                tokens: &[i64],
            ) -> Vec<Result<Array1<f32>, EngineError>> {
                let count = sequences.len();
                let step = |(sequence, token): (&mut &mut Self, &i64)| {
                    sequence.1.push(count);
                    sequence.0.step(*token)
                };
                sequences.iter_mut().zip(tokens).map(step).collect()
            }
        }

        let directory = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(directory.path());
        let generation = |script: &[i64], max_tokens| {
            let model = FakeModel {
                script: script.to_vec(),
                fed: Vec::new(),
                room: 9,
            };
            let logits = model.logits();
            let limits = Limits {
                stop_ids: vec![7],
                max_tokens,
                cancel: None,
            };
            let sampler = Sampler::new(Sampling::default(), VOCABULARY).unwrap();
            let stream = TextStream::new(tokenizer.clone(), &[]);
            Generation::new(
                Counting(model, Vec::new()),
                logits,
                Vec::new(),
                sampler,
                stream,
                limits,
            )
        };
        let scripts: [(&[i64], usize); 4] = [
            (&[0, 1, 2, 7], 9),
            (&[1, 7], 9),
            (&[2, 2], 9),
            (&[0, 0, 0, 0, 0], 3),
        ];
        let mut answers: Vec<_> = scripts
            .iter()
            .map(|(script, most)| generation(script, *most))
            .collect();
        let mut texts = vec![String::new(); answers.len()];
        let mut errors = vec![0; answers.len()];
        for _ in 0..6 {
            let mut all: Vec<_> = answers.iter_mut().collect();
            for (number, piece) in next_together(&mut all).into_iter().enumerate() {
                match piece {
                    Some(Ok(piece)) => texts[number].push_str(&piece.text),
                    Some(Err(_)) => errors[number] += 1,
                    None => {}
                }
            }
        }
        assert_eq!(texts, ["abc", "b", "cc", "aaa"]);
        assert_eq!(errors, [0, 0, 1, 0]);
        let finishes: Vec<Option<Finish>> = answers.iter().map(Generation::finish).collect();
        assert_eq!(
            finishes,
            [
                Some(Finish::Stop),
                Some(Finish::Stop),
                None,
                Some(Finish::MaxTokens)
            ]
        );
        let sizes: Vec<&[usize]> = answers.iter().map(|answer| answer.model().1.as_slice()).collect();
        // The last one step alone, for nobody else was left.
        assert_eq!(sizes, [&[4, 3, 1][..], &[4], &[4, 3], &[4, 3]]);
    }
}
