//! How do Core ML packages become the roles of a model? What a Mac is not needed for: pieces of a prompt, slots of the state,
//! rows of the embedding. Core ML itself is in `native/coreml.rs`, which is compiled for Apple's systems alone.

#[cfg(target_vendor = "apple")]
mod coreml;

/// Where there is none.
#[cfg(not(target_vendor = "apple"))]
mod coreml {
    use super::{Arc, BackendError, Decoder, Model, VisionEncoder, unavailable};

    pub(super) fn check() -> Result<(), BackendError> {
        Err(unavailable("Core ML is part of Apple's systems"))
    }

    pub(super) fn vision_encoder(_model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
        Err(unavailable("Core ML is part of Apple's systems"))
    }

    pub(super) fn decoder(_model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
        Err(unavailable("Core ML is part of Apple's systems"))
    }
}

#[cfg(any(test, target_vendor = "apple"))]
use super::DecoderState;
#[cfg(any(test, target_vendor = "apple"))]
use super::fixed::{check_room, in_pieces};
#[cfg(any(test, target_vendor = "apple"))]
use super::kv::ports::count_positions;
use super::session::Session;
use super::{Backend, Decoder, Form, Model, Options, Provider, TokenEmbedder, VisionEncoder};
use crate::error::BackendError;
use half::f16;
use memmap2::Mmap;
#[cfg(any(test, target_vendor = "apple"))]
use models::bundle::KvSpec;
use models::bundle::{CoreMlPackages, EmbeddingRows, Target};
use models::dtype::DType;
use ndarray::Array2;
#[cfg(any(test, target_vendor = "apple"))]
use ndarray::{Array1, ArrayView2, s};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    fn vision_encoder(&self, model: &Model<'_>) -> Result<Arc<dyn VisionEncoder>, BackendError> {
        verify(model, |packages| &packages.vision_encoder)?;
        coreml::vision_encoder(model)
    }

    fn embedder(&self, model: &Model<'_>) -> Result<Arc<dyn TokenEmbedder>, BackendError> {
        let packages = packages(model)?;
        let prompt = &model.bundle.prompt;
        let shape = [prompt.vocab_size, prompt.hidden_size];
        Ok(Arc::new(Rows::open(model.directory, &packages.embedding, shape)?))
    }

    fn decoder(&self, model: &Model<'_>) -> Result<Arc<dyn Decoder>, BackendError> {
        verify(model, |packages| &packages.decoder)?;
        coreml::decoder(model)
    }
}

/// Hashes a package but its weights, before Core ML reads it.
fn verify(model: &Model<'_>, package: impl Fn(&CoreMlPackages) -> &String) -> Result<(), BackendError> {
    let package = package(packages(model)?);
    Ok(model.bundle.verify_package(model.directory, package)?)
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
#[cfg(any(test, target_vendor = "apple"))]
pub(super) trait StatefulModel: Send + Sync {
    /// What it remembers of one sequence.
    type State: Send;

    /// The state of a sequence of nothing.
    ///
    /// # Errors
    /// What the engine says.
    fn start(&self) -> Result<Self::State, BackendError>;

    /// Runs the function for as many new positions as `embeds` `[new, hidden]` has: the first of them is at slot `position`,
    /// and row `last` is the last real one. Returns `[vocab]`, the logits of that row.
    ///
    /// # Errors
    /// What the engine says.
    fn run(
        &self,
        state: &mut Self::State,
        embeds: ArrayView2<'_, f32>,
        position: usize,
        last: usize,
    ) -> Result<Array1<f32>, BackendError>;
}

/// A decoder that keeps each sequence in a state of the model.
#[cfg(any(test, target_vendor = "apple"))]
#[derive(Debug)]
pub(super) struct StatefulDecoder<M> {
    model: M,
    path: PathBuf,
    /// New positions of its functions, ascending; 1 is the first.
    lengths: Vec<usize>,
    context: usize,
    hidden: usize,
    /// Bytes of a state.
    bytes: usize,
}

#[cfg(any(test, target_vendor = "apple"))]
impl<M: StatefulModel> StatefulDecoder<M> {
    /// The decoder of packages.
    pub(super) fn new(
        model: M,
        path: PathBuf,
        packages: &CoreMlPackages,
        hidden: usize,
        kv: &KvSpec,
    ) -> Self {
        let lengths = std::iter::once(1).chain(packages.prefill.iter().copied());
        let numbers = 2 * kv.layers * kv.kv_heads * kv.head_dim * packages.context;
        StatefulDecoder {
            model,
            path,
            lengths: lengths.collect(),
            context: packages.context,
            hidden: hidden.max(1),
            bytes: numbers * DType::Float16.size(),
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

#[cfg(any(test, target_vendor = "apple"))]
impl<M: StatefulModel + 'static> Decoder for StatefulDecoder<M> {
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
        let state = self.model.start()?;
        Ok(Box::new(StatefulState {
            decoder: self,
            state,
            len: 0,
        }))
    }
}

/// One sequence in a [`StatefulDecoder`].
///
/// What lies behind the sequence is never looked at: a function writes all its slots, the padded ones too, and a later call
/// writes over them. So nothing has to be undone after an error, and to forget is to count less.
#[cfg(any(test, target_vendor = "apple"))]
#[derive(Debug)]
struct StatefulState<M: StatefulModel> {
    decoder: Arc<StatefulDecoder<M>>,
    state: M::State,
    len: usize,
}

#[cfg(any(test, target_vendor = "apple"))]
impl<M: StatefulModel + 'static> DecoderState for StatefulState<M> {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let decoder = &*self.decoder;
        let count = count_positions(&decoder.path, &embeds, decoder.hidden)?;
        check_room(&decoder.path, count, self.len, decoder.context)?;
        let function = |left, position| decoder.function(left, position);
        let logits = in_pieces(embeds, self.len, function, |new, piece, position| {
            let real = piece.nrows();
            let mut padded = Array2::zeros((new, decoder.hidden));
            padded.slice_mut(s![..real, ..]).assign(&piece);
            let model = &decoder.model;
            model.run(&mut self.state, padded.view(), position, real - 1)
        })?;
        self.len += count;
        Ok(logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        self.len = self.len.min(len);
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        self.decoder.bytes
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
        let file = models::regular::open(&path).map_err(|error| refuse(error.to_string()))?;
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
        DType::BFloat16 | DType::Int64 | DType::Bool | DType::UInt8 | DType::Int8 => None,
    }
}

impl TokenEmbedder for Rows {
    fn embed(&self, ids: &[i64]) -> Result<Array2<f32>, BackendError> {
        let refuse = |problem: String| BackendError::Inputs {
            path: self.path.clone(),
            problems: vec![problem],
        };
        let mut embeds = Vec::with_capacity(ids.len() * self.width);
        for &id in ids {
            let last = self.count.saturating_sub(1);
            let row = self.row(id);
            let row = row.ok_or_else(|| refuse(format!("`input_ids` has {id}, expected 0 to {last}")))?;
            embeds.extend(row);
        }
        let shape = (ids.len(), self.width);
        Array2::from_shape_vec(shape, embeds).map_err(|error| refuse(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::bundle::Precision;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Keeps what it is given; logits are the sum over all slots up to the last real one, and how many there are.
    struct Sum {
        context: usize,
        calls: Mutex<Vec<(usize, usize)>>,
        fail: AtomicBool,
    }

    impl StatefulModel for Sum {
        type State = Vec<f32>;

        fn start(&self) -> Result<Vec<f32>, BackendError> {
            Ok(vec![f32::NAN; self.context])
        }

        fn run(
            &self,
            slots: &mut Vec<f32>,
            embeds: ArrayView2<'_, f32>,
            position: usize,
            last: usize,
        ) -> Result<Array1<f32>, BackendError> {
            let new = embeds.nrows();
            self.calls.lock().unwrap().push((new, position));
            // As Core ML would, whatever is padding.
            slots[position..position + new].copy_from_slice(embeds.as_slice().unwrap());
            if self.fail.load(Ordering::Relaxed) {
                return Err(unavailable("asked to"));
            }
            let seen = &slots[..=position + last];
            let weighted = seen.iter().zip((1_u8..).map(f32::from));
            let sum = weighted.map(|(slot, weight)| slot * weight).sum();
            Ok(Array1::from(vec![sum, seen.len() as f32]))
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

    fn decoder(context: usize, prefill: &[usize]) -> Arc<StatefulDecoder<Sum>> {
        let model = Sum {
            context,
            calls: Mutex::default(),
            fail: AtomicBool::new(false),
        };
        let kv = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            max_context: context,
        };
        let packages = packages(context, prefill);
        Arc::new(StatefulDecoder::new(model, PathBuf::new(), &packages, 1, &kv))
    }

    /// Feeds rows of one.
    fn feed(state: &mut Box<dyn DecoderState>, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let embeds = ArrayView2::from_shape((embeds.len(), 1), embeds).unwrap();
        Ok(state.feed(embeds)?.to_vec())
    }

    #[test]
    fn pieces_do_not_matter() {
        let numbers: Vec<f32> = (1_u8..=20).map(f32::from).collect();
        let expected: f32 = numbers.iter().map(|number| number * number).sum();
        for pieces in [vec![20], vec![1; 20], vec![3, 16, 1], vec![7, 7, 6], vec![19, 1]] {
            let mut state = decoder(20, &[4, 8]).start().unwrap();
            let (mut rest, mut logits) = (&numbers[..], Vec::new());
            for piece in &pieces {
                let (now, after) = rest.split_at(*piece);
                logits = feed(&mut state, now).unwrap();
                rest = after;
            }
            assert_eq!(logits, [expected, 20.0], "{pieces:?}");
            assert_eq!(state.len(), 20);
            let error = feed(&mut state, &[1.0]).unwrap_err().to_string();
            assert!(error.contains("more than its 20"), "{error}");
        }
    }

    #[test]
    fn functions_that_fit_and_end_inside_the_cache() {
        let decoder = decoder(11, &[4, 8]);
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &[1.0; 10]).unwrap();
        // 8 at once, then 2: four would end beyond slot 11, so one by one.
        let calls = || decoder.model.calls.lock().unwrap().clone();
        assert_eq!(calls(), [(8, 0), (1, 8), (1, 9)]);
        state.truncate(3).unwrap();
        feed(&mut state, &[1.0; 3]).unwrap();
        assert_eq!(calls()[3..], [(4, 3)]);
        assert_eq!(state.len(), 6);
    }

    #[test]
    fn a_failure_leaves_the_sequence_as_it_was() {
        let decoder = decoder(16, &[4]);
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &[1.0, 2.0]).unwrap();
        decoder.model.fail.store(true, Ordering::Relaxed);
        feed(&mut state, &[9.0, 9.0, 9.0]).unwrap_err();
        decoder.model.fail.store(false, Ordering::Relaxed);
        assert_eq!(state.len(), 2);
        assert_eq!(feed(&mut state, &[3.0]).unwrap(), [14.0, 3.0]);
        let error = feed(&mut state, &[]).unwrap_err().to_string();
        assert!(error.contains("`inputs_embeds` is 0 x 1"), "{error}");
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
        let rows = Rows::open(directory.path(), &plain, [2, 2]).unwrap();
        assert_eq!(
            rows.embed(&[1, 0]).unwrap(),
            ndarray::array![[-3.0, 0.5], [1.0, 2.0]]
        );
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
        let rows = Rows::open(directory.path(), &scaled, [2, 2]).unwrap();
        assert_eq!(
            rows.embed(&[0, 1]).unwrap(),
            ndarray::array![[2.0, 4.0], [384.0, 3.0]]
        );
        let message = Rows::open(directory.path(), &plain, [9, 2])
            .unwrap_err()
            .to_string();
        assert!(message.contains("ends before"), "{message}");
    }
}
