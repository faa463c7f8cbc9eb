//! What a value is here: a shape and row-major elements of one of three kinds.

use half::f16;
use models::dtype::DType;

/// A tensor in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Outermost first.
    pub shape: Vec<usize>,
    /// `shape`'s product of them, row-major.
    pub data: Data,
}

/// The elements of a [`Tensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Real numbers; float16 values are held as the float32 of the same value.
    Float(Vec<f32>),
    /// int64, and uint8 held as the int64 of the same value.
    Int(Vec<i64>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl Tensor {
    /// A tensor of real numbers. The length must be the product of the shape.
    pub fn float(shape: &[usize], data: Vec<f32>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Float(data),
        }
    }

    /// A tensor of integers. The length must be the product of the shape.
    pub fn int(shape: &[usize], data: Vec<i64>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Int(data),
        }
    }

    /// A tensor of truth values. The length must be the product of the shape.
    pub fn bool(shape: &[usize], data: Vec<bool>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Bool(data),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Float(data) => data.len(),
            Data::Int(data) => data.len(),
            Data::Bool(data) => data.len(),
        }
    }

    /// Whether there is no element: a cache of length 0, for instance.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The real numbers, where the tensor has them.
    pub fn as_float(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(data) => Some(data),
            Data::Int(_) | Data::Bool(_) => None,
        }
    }

    /// The elements as real numbers, as [`Tensor::to_float`], without a copy where they are.
    pub fn into_float(self) -> Vec<f32> {
        match self.data {
            Data::Float(data) => data,
            Data::Int(_) | Data::Bool(_) => self.to_float(),
        }
    }

    /// The integers, where the tensor has them.
    pub fn as_int(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Int(data) => Some(data),
            Data::Float(_) | Data::Bool(_) => None,
        }
    }

    /// The elements as real numbers, whatever they are: comparisons have one kind.
    pub fn to_float(&self) -> Vec<f32> {
        match &self.data {
            Data::Float(data) => data.clone(),
            // Token ids and positions are far below 2^24, where float32 stops to be exact.
            Data::Int(data) => data.iter().map(|&n| n as f32).collect(),
            Data::Bool(data) => data.iter().map(|&b| f32::from(u8::from(b))).collect(),
        }
    }

    /// Whether the elements can stand for a value of this type.
    pub fn is_a(&self, dtype: DType) -> bool {
        match &self.data {
            Data::Float(_) => dtype.is_float(),
            Data::Int(_) => matches!(dtype, DType::Int64 | DType::UInt8),
            Data::Bool(_) => dtype == DType::Bool,
        }
    }

    /// The tensor with the other shape of the same number of elements.
    pub fn reshaped(mut self, shape: &[usize]) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), self.len());
        self.shape = shape.to_vec();
        self
    }
}

/// Rounds to float16 and back.
pub fn round_to_half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

/// The row-major index of a flat position: `7` in `[2, 5]` is `[1, 2]`.
pub fn index_of(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (place, &length) in index.iter_mut().zip(shape).rev() {
        let length = length.max(1);
        *place = flat % length;
        flat /= length;
    }
    index
}

/// Elements between neighbours along each axis, row-major.
pub fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}
