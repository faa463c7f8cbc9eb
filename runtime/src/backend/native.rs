//! How do Core ML packages become the roles of a model? What a Mac is not needed for: pieces of a prompt, slots of the state,
//! rows of the embedding. Core ML itself is in `native/coreml.rs`, which is compiled for macOS alone.

#[cfg(any(target_os = "macos", fvlm_type_check))]
mod coreml;

/// Where there is none.
#[cfg(not(any(target_os = "macos", fvlm_type_check)))]
mod coreml {
    use super::{BackendError, Decoder, Model, VisionEncoder, unavailable};

    pub(super) fn check() -> Result<(), BackendError> {
        Err(unavailable("Core ML is part of macOS"))
    }

    pub(super) fn vision_encoder(_model: &Model<'_>) -> Result<Box<dyn VisionEncoder>, BackendError> {
        Err(unavailable("Core ML is part of macOS"))
    }

    pub(super) fn decoder(_model: &Model<'_>) -> Result<Box<dyn Decoder>, BackendError> {
        Err(unavailable("Core ML is part of macOS"))
    }
}

#[cfg(any(test, target_os = "macos", fvlm_type_check))]
use super::fixed::check_room;
#[cfg(any(test, target_os = "macos", fvlm_type_check))]
use super::kv::count_positions;
use super::session::Session;
use super::{Backend, Decoder, Form, Model, Options, Provider, TokenEmbedder, VisionEncoder};
use crate::error::BackendError;
use half::f16;
use memmap2::Mmap;
use models::bundle::{CoreMlPackages, EmbeddingRows, Target};
use models::dtype::DType;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Core ML without ONNX Runtime.
#[derive(Debug)]
pub(super) struct CoreMlNative;

impl Backend for CoreMlNative {
    fn provider(&self) -> Provider {
        Provider::CoreMlNative
    }

    fn check(&self, _options: &Options) -> Result<(), BackendError> {
        coreml::check()
    }

    fn open_session(&self, _path: &Path, _options: &Options) -> Result<Box<dyn Session>, BackendError> {
        Err(unavailable("it opens packages, not graphs"))
    }

    fn targets(&self) -> &'static [Target] {
        &[]
    }

    fn runs_packages(&self) -> bool {
        true
    }

    fn vision_encoder(&self, model: &Model<'_>) -> Result<Box<dyn VisionEncoder>, BackendError> {
        coreml::vision_encoder(model)
    }

    fn embedder(&self, model: &Model<'_>) -> Result<Box<dyn TokenEmbedder>, BackendError> {
        let packages = packages(model)?;
        let prompt = &model.bundle.prompt;
        let shape = [prompt.vocab_size, prompt.hidden_size];
        Ok(Box::new(Rows::open(model.directory, &packages.embedding, shape)?))
    }

    fn decoder(&self, model: &Model<'_>) -> Result<Box<dyn Decoder>, BackendError> {
        coreml::decoder(model)
    }
}

fn unavailable(reason: &str) -> BackendError {
    BackendError::Unavailable {
        provider: Provider::CoreMlNative,
        reason: reason.to_owned(),
    }
}

/// The packages of a model.
fn packages<'a>(model: &Model<'a>) -> Result<&'a CoreMlPackages, BackendError> {
    match model.form {
        Form::Packages(packages) => Ok(packages),
        Form::Graphs(_) => Err(unavailable("it opens packages, not graphs")),
    }
}

/// A decoder with a state, as an engine runs it.
#[cfg(any(test, target_os = "macos", fvlm_type_check))]
pub(super) trait StatefulModel: Send {
    /// Runs the function for `new` positions: `embeds` is `[new, hidden]`, the first of them at slot `position`, and row `last` is
    /// the last real one. Returns `[vocab]`, the logits of that row.
    ///
    /// # Errors
    /// What the engine says.
    fn run(
        &mut self,
        new: usize,
        embeds: &[f32],
        position: usize,
        last: usize,
    ) -> Result<Vec<f32>, BackendError>;
}

/// A sequence in the state of a model.
///
/// What lies behind the sequence is never looked at: a function writes all its slots, the padded ones too, and a later call
/// writes over them. So nothing has to be undone after an error, and to forget is to count less.
#[cfg(any(test, target_os = "macos", fvlm_type_check))]
#[derive(Debug)]
pub(super) struct StatefulDecoder<M> {
    model: M,
    path: PathBuf,
    /// New positions of its functions, ascending; 1 is the first.
    lengths: Vec<usize>,
    context: usize,
    hidden: usize,
    len: usize,
}

#[cfg(any(test, target_os = "macos", fvlm_type_check))]
impl<M: StatefulModel> StatefulDecoder<M> {
    /// A decoder that has seen nothing.
    pub(super) fn new(model: M, path: PathBuf, packages: &CoreMlPackages, hidden: usize) -> Self {
        let lengths = std::iter::once(1).chain(packages.prefill.iter().copied());
        StatefulDecoder {
            model,
            path,
            lengths: lengths.collect(),
            context: packages.context,
            hidden: hidden.max(1),
            len: 0,
        }
    }

    /// The function for what is left: the shortest that takes all of it, or else the longest, of those whose slots end
    /// inside the cache.
    fn function(&self, left: usize, position: usize) -> usize {
        let room = self.context - position;
        let inside = || self.lengths.iter().copied().filter(|new| *new <= room);
        inside()
            .find(|new| *new >= left)
            .or_else(|| inside().next_back())
            .unwrap_or(1)
    }
}

#[cfg(any(test, target_os = "macos", fvlm_type_check))]
impl<M: StatefulModel> Decoder for StatefulDecoder<M> {
    fn feed(&mut self, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let hidden = self.hidden;
        let count = count_positions(&self.path, embeds, hidden)?;
        check_room(&self.path, count, self.len, self.context)?;
        let (mut rest, mut len, mut logits) = (embeds, self.len, Vec::new());
        while !rest.is_empty() {
            let new = self.function(rest.len() / hidden, len);
            let (piece, after) = rest.split_at(rest.len().min(new * hidden));
            let real = piece.len() / hidden;
            let mut padded = piece.to_vec();
            padded.resize(new * hidden, 0.0);
            logits = self.model.run(new, &padded, len, real - 1)?;
            len += real;
            rest = after;
        }
        self.len = len;
        Ok(logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        self.len = self.len.min(len);
        Ok(())
    }
}

/// The embedding, read row by row where it lies.
#[derive(Debug)]
pub(super) struct Rows {
    path: PathBuf,
    map: Mmap,
    rows: EmbeddingRows,
    count: usize,
    width: usize,
}

impl Rows {
    /// The rows `[vocab, hidden]` of a bundle's directory.
    ///
    /// # Errors
    /// A file that cannot be mapped, or that ends before they do.
    pub(super) fn open(
        directory: &Path,
        rows: &EmbeddingRows,
        [count, width]: [usize; 2],
    ) -> Result<Rows, BackendError> {
        let path = directory.join(&rows.path);
        let refuse = |reason: String| BackendError::Graph {
            provider: Provider::CoreMlNative,
            path: path.clone(),
            reason,
        };
        let file = File::open(&path).map_err(|error| refuse(error.to_string()))?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe, whoever offers it")]
        // SAFETY: the map is only read. A program that cuts the file while it is mapped ends this one with SIGBUS; the
        // files of a bundle are written once.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| refuse(error.to_string()))?;
        let rows = Rows {
            path: path.clone(),
            map,
            rows: rows.clone(),
            count,
            width,
        };
        let last = i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX);
        rows.row(last)
            .ok_or_else(|| refuse("it ends before its embedding does".to_owned()))?;
        Ok(rows)
    }

    /// One row; `None` beyond the end.
    fn row(&self, id: i64) -> Option<Vec<f32>> {
        let id = usize::try_from(id).ok().filter(|id| *id < self.count)?;
        let EmbeddingRows {
            dtype,
            offset,
            scales,
            ..
        } = &self.rows;
        let bytes = |offset: u64, index: usize, length: usize| {
            let start = usize::try_from(offset)
                .ok()?
                .checked_add(index.checked_mul(length)?)?;
            self.map.get(start..start.checked_add(length)?)
        };
        if let Some(scales) = scales {
            let scale = *values(bytes(*scales, id, dtype.size())?, *dtype)?.first()?;
            let row = bytes(*offset, id, self.width)?;
            return Some(
                row.iter()
                    .map(|byte| f32::from(byte.cast_signed()) * scale)
                    .collect(),
            );
        }
        values(bytes(*offset, id, self.width.checked_mul(dtype.size())?)?, *dtype)
    }
}

/// Real numbers from their little-endian bytes.
fn values(bytes: &[u8], dtype: DType) -> Option<Vec<f32>> {
    match dtype {
        DType::Float32 => {
            let floats = bytes.as_chunks::<4>().0.iter();
            Some(floats.map(|bytes| f32::from_le_bytes(*bytes)).collect())
        }
        DType::Float16 => {
            let halves = bytes.as_chunks::<2>().0.iter();
            Some(halves.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect())
        }
        DType::BFloat16 | DType::Int64 | DType::Bool | DType::UInt8 => None,
    }
}

impl TokenEmbedder for Rows {
    fn embed(&mut self, ids: &[i64]) -> Result<Vec<f32>, BackendError> {
        let mut embeds = Vec::with_capacity(ids.len() * self.width);
        for &id in ids {
            let row = self.row(id).ok_or_else(|| BackendError::Inputs {
                path: self.path.clone(),
                problems: vec![format!(
                    "`input_ids` has {id}, expected 0 to {}",
                    self.count.saturating_sub(1)
                )],
            })?;
            embeds.extend(row);
        }
        Ok(embeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::bundle::Precision;

    /// Keeps what it is given; logits are the sum over all slots up to the last real one, and how many there are.
    struct Sum {
        slots: Vec<f32>,
        calls: Vec<(usize, usize)>,
        fail: bool,
    }

    impl StatefulModel for &mut Sum {
        fn run(
            &mut self,
            new: usize,
            embeds: &[f32],
            position: usize,
            last: usize,
        ) -> Result<Vec<f32>, BackendError> {
            assert_eq!(embeds.len(), new);
            self.calls.push((new, position));
            // As Core ML would, whatever is padding.
            self.slots[position..position + new].copy_from_slice(embeds);
            if self.fail {
                return Err(unavailable("asked to"));
            }
            let seen = &self.slots[..=position + last];
            let weighted = seen.iter().zip((1_u8..).map(f32::from));
            Ok(vec![
                weighted.map(|(slot, weight)| slot * weight).sum(),
                seen.len() as f32,
            ])
        }
    }

    fn packages(context: usize, prefill: &[usize]) -> CoreMlPackages {
        CoreMlPackages {
            precision: Precision::Fp16,
            vision_encoder: "coreml/vision_encoder.mlpackage".to_owned(),
            vision_encoder_ios16: None,
            decoder: "coreml/decoder.mlpackage".to_owned(),
            context,
            prefill: prefill.to_vec(),
            embedding: EmbeddingRows {
                path: "rows".to_owned(),
                dtype: DType::Float16,
                offset: 4,
                scales: None,
            },
        }
    }

    fn sum(context: usize) -> Sum {
        Sum {
            slots: vec![f32::NAN; context],
            calls: Vec::new(),
            fail: false,
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        let numbers: Vec<f32> = (1_u8..=20).map(f32::from).collect();
        let expected: f32 = numbers.iter().map(|number| number * number).sum();
        for pieces in [vec![20], vec![1; 20], vec![3, 16, 1], vec![7, 7, 6], vec![19, 1]] {
            let mut model = sum(20);
            let mut decoder = StatefulDecoder::new(&mut model, PathBuf::new(), &packages(20, &[4, 8]), 1);
            let (mut rest, mut logits) = (&numbers[..], Vec::new());
            for piece in &pieces {
                let (now, after) = rest.split_at(*piece);
                logits = decoder.feed(now).unwrap();
                rest = after;
            }
            assert_eq!(logits, [expected, 20.0], "{pieces:?}");
            assert_eq!(decoder.len(), 20);
            assert!(
                decoder
                    .feed(&[1.0])
                    .unwrap_err()
                    .to_string()
                    .contains("the cache's 20")
            );
        }
    }

    #[test]
    fn functions_that_fit_and_end_inside_the_cache() {
        let mut model = sum(11);
        let mut decoder = StatefulDecoder::new(&mut model, PathBuf::new(), &packages(11, &[4, 8]), 1);
        decoder.feed(&[1.0; 10]).unwrap();
        // 8 at once, then 2: four would end beyond slot 11, so one by one.
        assert_eq!(decoder.model.calls, [(8, 0), (1, 8), (1, 9)]);
        decoder.truncate(3).unwrap();
        decoder.feed(&[1.0; 3]).unwrap();
        assert_eq!(decoder.model.calls[3..], [(4, 3)]);
        assert_eq!(decoder.len(), 6);
    }

    #[test]
    fn a_failure_leaves_the_sequence_as_it_was() {
        let mut model = sum(16);
        let mut decoder = StatefulDecoder::new(&mut model, PathBuf::new(), &packages(16, &[4]), 1);
        decoder.feed(&[1.0, 2.0]).unwrap();
        decoder.model.fail = true;
        decoder.feed(&[9.0, 9.0, 9.0]).unwrap_err();
        decoder.model.fail = false;
        assert_eq!(decoder.len(), 2);
        assert_eq!(decoder.feed(&[3.0]).unwrap(), [14.0, 3.0]);
        assert!(decoder.feed(&[]).unwrap_err().to_string().contains("0 values"));
    }

    #[test]
    fn rows_where_they_lie() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![0xFF; 4];
        for value in [1.0, 2.0, -3.0, 0.5] {
            bytes.extend(f16::from_f32(value).to_le_bytes());
        }
        bytes.extend([1, 2, 0x80, 0xFF]);
        std::fs::write(directory.path().join("rows"), &bytes).unwrap();
        let plain = packages(1, &[]).embedding;
        let mut rows = Rows::open(directory.path(), &plain, [2, 2]).unwrap();
        assert_eq!(rows.embed(&[1, 0]).unwrap(), [-3.0, 0.5, 1.0, 2.0]);
        for id in [2, -1] {
            let message = rows.embed(&[id]).unwrap_err().to_string();
            assert!(
                message.contains(&format!("has {id}, expected 0 to 1")),
                "{message}"
            );
        }
        let scaled = EmbeddingRows {
            offset: 12,
            scales: Some(6),
            ..plain.clone()
        };
        let mut rows = Rows::open(directory.path(), &scaled, [2, 2]).unwrap();
        assert_eq!(rows.embed(&[0, 1]).unwrap(), [2.0, 4.0, 384.0, 3.0]);
        let message = Rows::open(directory.path(), &plain, [9, 2])
            .unwrap_err()
            .to_string();
        assert!(message.contains("ends before"), "{message}");
    }
}
