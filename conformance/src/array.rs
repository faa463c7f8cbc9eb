//! What is a value here? An n-dimensional array, `ndarray`'s, of elements of one of three kinds.
//!
//! Elements are shared: a clone, a part, another shape and another order of axes copy none of them where strides can
//! say it. They have no order in memory that anybody may rely on.

use half::f16;
use models::dtype::DType;
use ndarray::{ArcArray, Axis, CowArray, Dimension, IxDyn, ShapeError, Slice};
use std::ops::Range;

/// Elements of one kind, shared until somebody writes to them.
pub type Shared<T> = ArcArray<T, IxDyn>;

/// An array in memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Real numbers; float16 values are held as the float32 of the same value.
    Float(Shared<f32>),
    /// int64, and uint8 and int8 held as the int64 of the same value.
    Int(Shared<i64>),
    /// Truth values.
    Bool(Shared<bool>),
}

/// An [`Array`] of what an expression makes of the elements, whatever their kind is.
macro_rules! each {
    ($array:expr, $elements:ident => $result:expr) => {
        match $array {
            $crate::array::Array::Float($elements) => $crate::array::Array::from($result),
            $crate::array::Array::Int($elements) => $crate::array::Array::from($result),
            $crate::array::Array::Bool($elements) => $crate::array::Array::from($result),
        }
    };
}
pub(crate) use each;

macro_rules! kinds {
    ($($kind:ident of $element:ty),*) => {$(
        impl<D: Dimension> From<ndarray::Array<$element, D>> for Array {
            fn from(elements: ndarray::Array<$element, D>) -> Array {
                Array::$kind(elements.into_dyn().into_shared())
            }
        }

        impl<D: Dimension> From<ArcArray<$element, D>> for Array {
            fn from(elements: ArcArray<$element, D>) -> Array {
                Array::$kind(elements.into_dyn())
            }
        }
    )*};
}
kinds!(Float of f32, Int of i64, Bool of bool);

impl Array {
    /// Real numbers, row-major.
    ///
    /// # Panics
    /// Where their number is not the product of the shape.
    pub fn float(shape: &[usize], data: Vec<f32>) -> Array {
        Array::Float(shaped(shape, data))
    }

    /// Integers, row-major.
    ///
    /// # Panics
    /// As [`Array::float`].
    pub fn int(shape: &[usize], data: Vec<i64>) -> Array {
        Array::Int(shaped(shape, data))
    }

    /// Truth values, row-major.
    ///
    /// # Panics
    /// As [`Array::float`].
    pub fn bool(shape: &[usize], data: Vec<bool>) -> Array {
        Array::Bool(shaped(shape, data))
    }

    /// The length of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Array::Float(elements) => elements.shape(),
            Array::Int(elements) => elements.shape(),
            Array::Bool(elements) => elements.shape(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there is no element: a cache of length 0, for instance.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The real numbers, where the array has them.
    pub fn as_float(&self) -> Option<&Shared<f32>> {
        match self {
            Array::Float(elements) => Some(elements),
            Array::Int(_) | Array::Bool(_) => None,
        }
    }

    /// The integers, where the array has them.
    pub fn as_int(&self) -> Option<&Shared<i64>> {
        match self {
            Array::Int(elements) => Some(elements),
            Array::Float(_) | Array::Bool(_) => None,
        }
    }

    /// The truth values, where the array has them.
    pub fn as_bool(&self) -> Option<&Shared<bool>> {
        match self {
            Array::Bool(elements) => Some(elements),
            Array::Float(_) | Array::Int(_) => None,
        }
    }

    /// The elements as real numbers, whatever they are: comparisons have one kind. No copy where they are.
    pub fn to_float(&self) -> CowArray<'_, f32, IxDyn> {
        match self {
            Array::Float(elements) => elements.view().into(),
            // Token ids and positions are far below 2^24, where float32 stops to be exact.
            Array::Int(elements) => elements.mapv(|n| n as f32).into(),
            Array::Bool(elements) => elements.mapv(|b| f32::from(u8::from(b))).into(),
        }
    }

    /// Whether the elements can stand for a value of this type.
    pub fn is_a(&self, dtype: DType) -> bool {
        match self {
            Array::Float(_) => dtype.is_float(),
            Array::Int(_) => matches!(dtype, DType::Int64 | DType::UInt8 | DType::Int8),
            Array::Bool(_) => dtype == DType::Bool,
        }
    }

    /// The elements in the same order in another shape.
    ///
    /// # Errors
    /// A shape of another number of elements.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Array, ShapeError> {
        Ok(each!(self, elements => elements.clone().into_shape_clone(IxDyn(shape))?))
    }

    /// The part along an axis.
    ///
    /// # Panics
    /// Where there is no such axis or it is shorter.
    pub fn part(&self, axis: usize, range: Range<usize>) -> Array {
        each!(self, elements => {
            let mut part = elements.clone();
            part.slice_axis_inplace(Axis(axis), Slice::from(range.clone()));
            part
        })
    }

    /// The slices along an axis with these numbers, in this order.
    ///
    /// # Panics
    /// Where there is no such axis or a number is beyond its length.
    pub fn select(&self, axis: usize, places: &[usize]) -> Array {
        each!(self, elements => elements.select(Axis(axis), places))
    }

    /// The arrays along the first axis, without it.
    ///
    /// # Panics
    /// For a scalar, which has no axis.
    pub fn outer(&self) -> Vec<Array> {
        let length = self.shape()[0];
        let at = |place| each!(self, elements => elements.clone().index_axis_move(Axis(0), place));
        (0..length).map(at).collect()
    }
}

fn shaped<T>(shape: &[usize], data: Vec<T>) -> Shared<T> {
    let count = data.len();
    let problem = |error| panic!("{count} elements for shape {shape:?}: {error}");
    ArcArray::from_shape_vec(IxDyn(shape), data).unwrap_or_else(problem)
}

/// Rounds to float16 and back.
pub fn round_to_half(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}
