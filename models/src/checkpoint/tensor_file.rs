//! A file of named tensors, mapped: safetensors, or what `torch.save` wrote. Its first bytes say which.
//!
//! Tensors stay in the file; a run of elements is converted when it is read. Views with strides are read as
//! the values that they stand for, row-major.

#![deny(clippy::as_conversions)]

use super::{CheckpointError, safetensors, torch};
use crate::dtype::DType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most dimensions of a tensor.
pub(super) const MAX_RANK: usize = 8;
/// Elements of a view that are gathered at once.
const RUN: usize = 1024;
/// Widest element, in bytes: a complex number of two float64.
const WIDEST: usize = 16;

/// A tensor of several files: index of its file, index in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TensorId(pub(super) usize, pub(super) usize);

/// A mapped file of tensors. Nothing of it is executed, whatever format it has.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

/// What a file says that it holds, once it is checked.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// In the order of the data. Names are unique.
    pub(super) tensors: Vec<StoredTensor>,
    /// Entries beside the tensors that are left out, sorted.
    pub(super) skipped: Vec<String>,
}

/// A tensor as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// The name in the file.
    pub name: String,
    /// Type of its elements.
    pub dtype: StoredType,
    /// Row-major shape, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    pub(super) place: Place,
}

/// Where a tensor's elements lie in its file, in bytes. Checked: all of it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One after the other, row-major.
    Whole(Range<usize>),
    /// The first element, and how far the next one lies in each dimension.
    Strided { start: usize, strides: Vec<usize> },
}

/// Element types: those that weights may have, and the others, which only ignored tensors may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// A type of weights.
    Float(DType),
    /// The name that safetensors has for it, and bits per element.
    Other(&'static str, u64),
}

impl Place {
    /// Of elements of `size` bytes that lie so many bytes apart in each dimension.
    pub(super) fn new(start: usize, shape: &[u64], strides: Vec<usize>, size: usize) -> Place {
        let mut expected = size;
        let row_major = shape.iter().zip(&strides).rev().all(|(side, stride)| {
            let fits = *side == 1 || *stride == expected;
            expected = expected.saturating_mul(usize::try_from(*side).unwrap_or(usize::MAX));
            fits
        });
        if row_major || shape.contains(&0) {
            let length = if shape.contains(&0) { 0 } else { expected };
            Place::Whole(start..start.saturating_add(length))
        } else {
            Place::Strided { start, strides }
        }
    }
}

impl StoredType {
    /// Bits of one element.
    pub(super) fn bits(self) -> u64 {
        match self {
            StoredType::Float(dtype) => u64::try_from(dtype.size()).map_or(u64::MAX, |size| size * 8),
            StoredType::Other(_, bits) => bits,
        }
    }

    /// Bytes of one element of a weight; of types smaller than a byte, which no weight has, 0.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.bits() / 8).unwrap_or(0)
    }

    /// The type's name: of weights as in messages and bundles (`float32`), of others as in safetensors
    /// (`I64`).
    pub fn name(self) -> &'static str {
        match self {
            StoredType::Float(dtype) => dtype.name(),
            StoredType::Other(name, _) => name,
        }
    }

    /// Whether a weight may have it: float32, float16 or bfloat16.
    pub fn is_weight(self) -> bool {
        matches!(self, StoredType::Float(_))
    }
}

impl StoredTensor {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, &n| product.saturating_mul(n))
    }

    /// Bytes that its elements take, one after the other.
    pub(super) fn bytes(&self) -> u64 {
        self.shape
            .iter()
            .fold(self.dtype.bits(), |product, &n| product.saturating_mul(n))
            / 8
    }

    /// Gives its dimensions another order; its elements stay where they lie.
    fn rearrange(&mut self, order: &[usize]) {
        let size = self.dtype.size();
        let (start, strides) = match &self.place {
            Place::Whole(range) => {
                let mut next = size;
                let sides = self.shape.iter().rev();
                let strides = sides.map(|side| {
                    let stride = next;
                    next = next.saturating_mul(usize::try_from(*side).unwrap_or(usize::MAX));
                    stride
                });
                let mut strides: Vec<usize> = strides.collect();
                strides.reverse();
                (range.start, strides)
            }
            Place::Strided { start, strides } => (*start, strides.clone()),
        };
        self.shape = order.iter().map(|&dimension| self.shape[dimension]).collect();
        let strides = order.iter().map(|&dimension| strides[dimension]).collect();
        self.place = Place::new(start, &self.shape, strides, size);
    }

    /// Where its data begins, for sorting.
    pub(super) fn start(&self) -> usize {
        match &self.place {
            Place::Whole(range) => range.start,
            Place::Strided { start, .. } => *start,
        }
    }
}

impl TensorFile {
    /// Opens a file of tensors: safetensors, or what `torch.save` wrote, as a zip archive or in the older
    /// form.
    ///
    /// # Errors
    /// A file that cannot be read, or is not what its format demands; one sentence says where.
    pub fn open(path: &Path) -> Result<TensorFile, CheckpointError> {
        TensorFile::open_by(path, torch::validate)
    }

    /// Opens a file of tensors, which may be an empty dict that `torch.save` wrote.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub(super) fn open_any(path: &Path) -> Result<TensorFile, CheckpointError> {
        TensorFile::open_by(path, torch::validate_any)
    }

    fn open_by(
        path: &Path,
        of_torch: fn(&[u8]) -> Result<Content, String>,
    ) -> Result<TensorFile, CheckpointError> {
        TensorFile::read_by(path, |bytes| {
            if torch::looks_like(bytes) {
                return of_torch(bytes);
            }
            // Of safetensors the ninth byte begins a JSON object.
            let other = bytes.get(8) != Some(&b'{');
            safetensors::validate(bytes).map_err(|problem| match other {
                true => format!("is neither safetensors nor what `torch.save` writes: {problem}"),
                false => problem,
            })
        })
    }

    /// Opens a file that must be safetensors, as its name says.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub(super) fn open_safetensors(path: &Path) -> Result<TensorFile, CheckpointError> {
        TensorFile::read_by(path, safetensors::validate)
    }

    fn read_by(
        path: &Path,
        validate: impl Fn(&[u8]) -> Result<Content, String>,
    ) -> Result<TensorFile, CheckpointError> {
        let io = |source| CheckpointError::Io {
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: a pipe would wait for whoever writes it.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(CheckpointError::malformed(path, "is not a regular file"));
        }
        let file = crate::regular::open(path).map_err(io)?;
        #[expect(
            unsafe_code,
            reason = "a checkpoint is far larger than memory; it must be mapped"
        )]
        // SAFETY: the map is read-only and only ever seen as bytes. A file that another program truncates
        // while it is mapped can end this process with SIGBUS; that is the documented price of mapping, as in
        // every loader of safetensors.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let content = validate(&map).map_err(|problem| CheckpointError::malformed(path, problem))?;
        Ok(TensorFile {
            path: path.to_owned(),
            map,
            content,
        })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        u64::try_from(self.map.len()).unwrap_or(u64::MAX)
    }

    /// The tensors in the order of their data. Names are unique.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.content.tensors
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors().iter().find(|tensor| tensor.name == name)
    }

    /// Entries of a torch file beside its tensors that are left out (`epoch`, `optimizer`), sorted. Whoever
    /// uses the tensors says so.
    pub fn skipped(&self) -> &[String] {
        &self.content.skipped
    }

    /// Gives tensors another order of dimensions, those that `order` has one for.
    pub(super) fn rearrange(&mut self, order: &dyn Fn(&StoredTensor) -> Option<&'static [usize]>) {
        for tensor in &mut self.content.tensors {
            // Of elements smaller than a byte nothing has a place of its own.
            if let Some(order) = order(tensor).filter(|_| tensor.dtype.size() > 0) {
                tensor.rearrange(order);
            }
        }
    }

    /// The tensor's bytes, little-endian, if they lie row-major in the file.
    pub(super) fn contiguous(&self, tensor: &StoredTensor) -> Option<&[u8]> {
        match &tensor.place {
            Place::Whole(range) => self.map.get(range.clone()),
            Place::Strided { .. } => None,
        }
    }

    /// Hands the tensor's bytes on, little-endian and row-major, piece by piece.
    pub fn each_piece(&self, tensor: &StoredTensor, take: &mut dyn FnMut(&[u8])) {
        if let Some(bytes) = self.contiguous(tensor) {
            return take(bytes);
        }
        let size = tensor.dtype.size();
        let mut run = [0; RUN * WIDEST];
        let elements = usize::try_from(tensor.elements()).unwrap_or(0);
        for from in (0..elements).step_by(RUN) {
            let run = &mut run[..RUN.min(elements - from) * size];
            self.gather(tensor, from, run);
            take(run);
        }
    }

    /// Whether two tensors, each with its file, have the same type, shape and bytes.
    pub(super) fn same(
        (file, tensor): (&TensorFile, &StoredTensor),
        (other_file, other): (&TensorFile, &StoredTensor),
    ) -> bool {
        if tensor.dtype != other.dtype || tensor.shape != other.shape {
            return false;
        }
        if std::ptr::eq(file, other_file) && tensor.place == other.place {
            return true;
        }
        if let (Some(bytes), Some(others)) = (file.contiguous(tensor), other_file.contiguous(other)) {
            return bytes == others;
        }
        let size = tensor.dtype.size();
        let (mut one, mut two) = ([0; RUN * WIDEST], [0; RUN * WIDEST]);
        let elements = usize::try_from(tensor.elements()).unwrap_or(0);
        (0..elements).step_by(RUN).all(|from| {
            let length = RUN.min(elements - from) * size;
            file.gather(tensor, from, &mut one[..length]);
            other_file.gather(other, from, &mut two[..length]);
            one[..length] == two[..length]
        })
    }

    /// Reads elements `from .. from + out.len()`, counted row-major, as float32.
    ///
    /// # Errors
    /// Elements that are not float32, float16 or bfloat16, or a range that the tensor does not have.
    pub fn read(&self, tensor: &StoredTensor, from: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let problem = |what: String| CheckpointError::malformed(&self.path, what);
        let StoredType::Float(dtype) = tensor.dtype else {
            let found = tensor.dtype.name();
            let expected = "expected float32, float16 or bfloat16";
            return Err(problem(format!(
                "tensor `{}` has dtype {found}, {expected}",
                tensor.name
            )));
        };
        let end = from.checked_add(out.len());
        if end
            .and_then(|end| u64::try_from(end).ok())
            .is_none_or(|end| end > tensor.elements())
        {
            let asked = out.len();
            return Err(problem(format!(
                "tensor `{}` of shape {:?} has not {asked} elements from {from}",
                tensor.name, tensor.shape
            )));
        }
        let size = dtype.size();
        if let Place::Whole(range) = &tensor.place {
            let start = range.start + from * size;
            let bytes = self.map.get(start..start + out.len() * size);
            let cut = || problem(format!("tensor `{}` is cut short", tensor.name));
            convert(dtype, bytes.ok_or_else(cut)?, out);
            return Ok(());
        }
        let mut run = [0; RUN * WIDEST];
        for (index, out) in out.chunks_mut(RUN).enumerate() {
            let bytes = &mut run[..out.len() * size];
            self.gather(tensor, from + index * RUN, bytes);
            convert(dtype, bytes, out);
        }
        Ok(())
    }

    /// Copies elements from `from` on, row-major and little-endian, as many as fill `out`.
    ///
    /// # Errors
    /// A range that the tensor does not have.
    pub(super) fn copy(
        &self,
        tensor: &StoredTensor,
        from: usize,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let end = from.checked_mul(tensor.dtype.size());
        let end = end.and_then(|start| u64::try_from(start.checked_add(out.len())?).ok());
        if end.is_none_or(|end| end > tensor.bytes()) {
            let problem = format!("tensor `{}` is cut short", tensor.name);
            return Err(CheckpointError::malformed(&self.path, problem));
        }
        self.gather(tensor, from, out);
        Ok(())
    }

    /// Copies elements that are there.
    fn gather(&self, tensor: &StoredTensor, from: usize, out: &mut [u8]) {
        let size = tensor.dtype.size().max(1);
        let (start, strides) = match &tensor.place {
            Place::Whole(range) => {
                let from = range.start + from * size;
                if let Some(bytes) = self.map.get(from..from + out.len()) {
                    out.copy_from_slice(bytes);
                }
                return;
            }
            Place::Strided { start, strides } => (*start, strides),
        };
        let sides: Vec<usize> = tensor
            .shape
            .iter()
            .map(|side| usize::try_from(*side).unwrap_or(1).max(1))
            .collect();
        // The place in each dimension, the innermost counted fastest.
        let mut index = vec![0; sides.len()];
        let mut rest = from;
        for (index, side) in index.iter_mut().zip(&sides).rev() {
            *index = rest % side;
            rest /= side;
        }
        for out in out.chunks_exact_mut(size) {
            let at = start
                + index
                    .iter()
                    .zip(strides)
                    .map(|(i, stride)| i * stride)
                    .sum::<usize>();
            if let Some(bytes) = self.map.get(at..at + size) {
                out.copy_from_slice(bytes);
            }
            for (index, side) in index.iter_mut().zip(&sides).rev() {
                *index += 1;
                if *index < *side {
                    break;
                }
                *index = 0;
            }
        }
    }
}

/// Converts little-endian values; `bytes` and `out` have as many.
fn convert(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::Float32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        DType::BFloat16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        DType::Float16 => {
            // `half` converts a slice with the processor's own instructions; bytes of a file have no
            // alignment.
            let mut run = [f16::ZERO; RUN];
            for (out, bytes) in out.chunks_mut(RUN).zip(bytes.chunks(2 * RUN)) {
                for (value, bytes) in run.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes);
                }
                run[..out.len()].convert_to_f32_slice(out);
            }
        }
        // Never stored as a weight's type.
        DType::Int64 | DType::Bool | DType::UInt8 | DType::Int8 => out.fill(f32::NAN),
    }
}
