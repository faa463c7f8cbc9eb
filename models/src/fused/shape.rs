//! The shape rule of the fused operators: what fits together, and the shapes of the outputs. One rule for
//! whatever a dimension is: a symbol of a graph, an expression of an engine, or a number when a node is
//! computed.

use super::{Encoding, Fused, Norm, TableEncoding};
use crate::dtype::DType;
use std::fmt::{Display, Write as _};

/// The length of an axis: a number, or something that will be one.
pub trait Length: Clone + Display {
    /// A number as a length.
    fn number(number: u64) -> Self;
    /// The number, where it is known.
    fn known(&self) -> Option<u64>;
    /// `self / divisor` rounded up, where that can be said.
    fn quotient(&self, divisor: u64) -> Option<Self>;
    /// `self + other`, where that can be said.
    fn sum(&self, other: &Self) -> Option<Self>;
}

impl Length for usize {
    fn number(number: u64) -> usize {
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn known(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }

    fn quotient(&self, divisor: u64) -> Option<usize> {
        Some(self.div_ceil(usize::try_from(divisor).ok()?.max(1)))
    }

    fn sum(&self, other: &usize) -> Option<usize> {
        self.checked_add(*other)
    }
}

/// An input of a node.
#[derive(Debug)]
pub struct Input<'a, D> {
    /// For errors.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Outermost first.
    pub shape: &'a [D],
}

impl Fused {
    /// The shape of each output, all float32, for inputs that fit together.
    ///
    /// # Errors
    /// Inputs that do not fit; the words say what was expected and what was found.
    pub fn infer<D: Length + PartialEq>(&self, inputs: &[Input<'_, D>]) -> Result<Vec<Vec<D>>, String> {
        if inputs.len() != self.inputs() {
            return Err(format!("takes {} inputs, found {}", self.inputs(), inputs.len()));
        }
        self.check(Rest {
            inputs: inputs.iter(),
        })?;
        let shapes: Vec<&[D]> = inputs.iter().map(|input| input.shape).collect();
        self.output_shapes(&shapes)
    }

    /// The shape of each output, all float32, for the shapes of all inputs in order. What the outputs do not
    /// depend on is not looked at: [`Fused::infer`] does that, or the kernel.
    ///
    /// # Errors
    /// A shape that the outputs' depend on and that has too few axes, or lengths that `D` cannot divide or
    /// add.
    pub fn output_shapes<D: Length>(&self, inputs: &[impl AsRef<[D]>]) -> Result<Vec<Vec<D>>, String> {
        let shape = |input: usize| {
            let shape = inputs.get(input).map(AsRef::as_ref);
            shape.ok_or_else(|| format!("has too few inputs, {}", inputs.len()))
        };
        let dim = |input: usize, axis: usize| -> Result<D, String> {
            let shape = shape(input)?;
            let dim = shape.get(axis).cloned();
            dim.ok_or_else(|| format!("input {input} has rank {}", shape.len()))
        };
        let strided = |axis: usize, strides: &[u64]| -> Result<D, String> {
            let length = strides
                .iter()
                .try_fold(dim(0, axis)?, |length, stride| length.quotient(*stride));
            length.ok_or_else(|| "wants fixed sides".to_owned())
        };
        let with_last = |length: u64| -> Result<Vec<D>, String> {
            let mut shape = shape(0)?.to_vec();
            if let Some(last) = shape.last_mut() {
                *last = D::number(length);
            }
            Ok(shape)
        };
        Ok(match *self {
            Fused::Stem {
                stride,
                depthwise_stride,
                ..
            } => {
                let side = |axis| strided(axis, &[stride, depthwise_stride]);
                vec![vec![dim(0, 0)?, side(2)?, side(3)?, dim(2, 0)?]]
            }
            Fused::DepthwiseConv { stride, .. } => {
                let side = |axis| strided(axis, &[stride]);
                vec![vec![dim(0, 0)?, side(1)?, side(2)?, dim(2, 0)?]]
            }
            Fused::Linear { outputs, .. } | Fused::FeedForward { outputs, .. } => vec![with_last(outputs)?],
            Fused::SelfAttention { heads, head_dim } => vec![with_last(heads * head_dim)?],
            Fused::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => {
                let total = total(&dim(1, 2)?, &dim(0, 1)?)?;
                let present = vec![dim(0, 0)?, D::number(kv_heads), total, D::number(head_dim)];
                vec![with_last(heads * head_dim)?, present.clone(), present]
            }
            Fused::Embedding { width, .. } => vec![[shape(0)?, &[D::number(width)]].concat()],
            Fused::Logits { .. } => vec![vec![dim(0, 0)?, dim(1, 0)?]],
        })
    }

    /// Whether the inputs fit together.
    fn check<D: Length + PartialEq>(&self, mut rest: Rest<'_, '_, D>) -> Result<(), String> {
        match *self {
            Fused::Stem {
                kernel,
                depthwise_kernel,
                ..
            } => {
                let x = rest.float(4)?;
                let taps = rest.float(2)?;
                let planes = x[1].known().unwrap_or(0);
                let number = planes.saturating_mul(kernel * kernel);
                if taps[0] != D::number(number) {
                    return Err(format!("wants {number} taps, found {}", taps[0]));
                }
                rest.exactly(DType::Float32, &taps[1..])?;
                let side = D::number(depthwise_kernel * depthwise_kernel);
                rest.exactly(DType::Float32, &[side, taps[1].clone()])?;
                rest.exactly(DType::Float32, &taps[1..])
            }
            Fused::DepthwiseConv { kernel, .. } => {
                let channels = &rest.float(4)?[3];
                let taps = rest.float(2)?;
                let (inputs, outputs) = (channels.known().unwrap_or(0), taps[1].known().unwrap_or(0));
                if taps[0] != D::number(kernel * kernel) || inputs == 0 || outputs % inputs != 0 {
                    return Err(format!("wants {} taps for {channels} channels", kernel * kernel));
                }
                rest.exactly(DType::Float32, &taps[1..])
            }
            Fused::Linear {
                inputs,
                outputs,
                norm,
                encoding,
                bias,
                residual,
                ..
            } => {
                rest.rows(inputs, outputs, residual)?;
                rest.norm(norm, inputs)?;
                rest.product(encoding, outputs, inputs, bias)
            }
            Fused::FeedForward {
                inputs,
                hidden,
                outputs,
                norm,
                encoding,
                bias,
                gated,
                residual,
            } => {
                rest.rows(inputs, outputs, residual)?;
                rest.norm(norm, inputs)?;
                if gated {
                    rest.product(encoding, hidden, inputs, false)?;
                }
                rest.product(encoding, hidden, inputs, bias)?;
                rest.product(encoding, outputs, hidden, bias)
            }
            Fused::SelfAttention { heads, head_dim } => rest.channels(3 * heads * head_dim).map(|_| ()),
            Fused::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => {
                let x = rest.channels((heads + 2 * kv_heads) * head_dim)?;
                let past = rest.float(4)?;
                let fits =
                    past[0] == x[0] && past[1] == D::number(kv_heads) && past[3] == D::number(head_dim);
                if !fits {
                    return Err(format!("has a cache of shape {}", show(past)));
                }
                rest.exactly(DType::Float32, past)?;
                rest.exactly(DType::Int64, &[x[0].clone(), total(&past[2], &x[1])?])?;
                rest.exactly(DType::Int64, &x[..2])?;
                rest.exactly(DType::Float32, &[D::number(head_dim / 2)])
            }
            Fused::Embedding { width, encoding } => {
                rest.next(DType::Int64)?;
                rest.table(width, encoding)
            }
            Fused::Logits { encoding } => {
                let width = rest.float(2)?[1].known();
                rest.table(width.ok_or("wants rows of a fixed length")?, encoding)
            }
        }
    }
}

/// Positions of the cache after a call.
fn total<D: Length>(past: &D, new: &D) -> Result<D, String> {
    past.sum(new)
        .ok_or_else(|| format!("cannot add {new} positions to {past}"))
}

/// `[batch, 3, 1024]`
pub(crate) fn show<D: Display>(shape: &[D]) -> String {
    let mut out = String::from("[");
    for (i, dim) in shape.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(out, "{comma}{dim}");
    }
    out.push(']');
    out
}

/// The inputs of an operator, taken one by one.
struct Rest<'i, 'a, D> {
    inputs: std::slice::Iter<'i, Input<'a, D>>,
}

impl<'a, D: Length + PartialEq> Rest<'_, 'a, D> {
    fn next(&mut self, dtype: DType) -> Result<&'a [D], String> {
        let input = self.inputs.next().ok_or("has too few inputs")?;
        if input.dtype == dtype {
            Ok(input.shape)
        } else {
            Err(format!("wants {dtype}, `{}` is {}", input.name, input.dtype))
        }
    }

    fn float(&mut self, rank: usize) -> Result<&'a [D], String> {
        let shape = self.next(DType::Float32)?;
        if shape.len() == rank {
            Ok(shape)
        } else {
            Err(format!("wants rank {rank}, found {}", show(shape)))
        }
    }

    fn exactly(&mut self, dtype: DType, shape: &[D]) -> Result<(), String> {
        let found = self.next(dtype)?;
        if found == shape {
            Ok(())
        } else {
            Err(format!("wants shape {}, found {}", show(shape), show(found)))
        }
    }

    fn numbers(&mut self, dtype: DType, shape: &[u64]) -> Result<(), String> {
        let shape: Vec<D> = shape.iter().map(|length| D::number(*length)).collect();
        self.exactly(dtype, &shape)
    }

    /// `qkv [B,n,channels]`
    fn channels(&mut self, channels: u64) -> Result<&'a [D], String> {
        let x = self.float(3)?;
        if x[2] == D::number(channels) {
            Ok(x)
        } else {
            Err(format!("wants {channels} channels, found {}", x[2]))
        }
    }

    /// `x [..,inputs]` and, if there is one, the residual `[..,outputs]`.
    fn rows(&mut self, inputs: u64, outputs: u64, residual: bool) -> Result<(), String> {
        let mut shape = self.next(DType::Float32)?.to_vec();
        match shape.last_mut() {
            Some(last) if *last == D::number(inputs) => *last = D::number(outputs),
            _ => return Err(format!("wants rows of length {inputs}, found {}", show(&shape))),
        }
        if residual {
            self.exactly(DType::Float32, &shape)?;
        }
        Ok(())
    }

    fn norm(&mut self, norm: Norm, width: u64) -> Result<(), String> {
        (0..norm.tensors()).try_for_each(|_| self.numbers(DType::Float32, &[width]))
    }

    /// The weight of a product, and its bias if there is one.
    fn product(&mut self, encoding: Encoding, outputs: u64, inputs: u64, bias: bool) -> Result<(), String> {
        let (dtype, shape) = encoding.elements(outputs, inputs);
        self.numbers(dtype, &shape)?;
        if let Some((dtype, shape)) = encoding.scales(outputs, inputs) {
            self.numbers(dtype, &shape)?;
        }
        if bias {
            self.numbers(DType::Float32, &[outputs])?;
        }
        Ok(())
    }

    /// A table and its scales.
    fn table(&mut self, width: u64, encoding: TableEncoding) -> Result<(), String> {
        let table = self.inputs.as_slice().first();
        let rows = table.and_then(|table| table.shape.first()?.known());
        let rows = rows.ok_or("wants a table of fixed length")?;
        for (dtype, shape) in encoding.elements(rows, width) {
            self.numbers(dtype, &shape)?;
        }
        match encoding {
            TableEncoding::Float32 => Ok(()),
            TableEncoding::Bytes | TableEncoding::Planes => self.numbers(DType::Float32, &[rows]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_lengths() {
        let fused = Fused::DecoderAttention {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
        };
        let shapes: [&[usize]; 6] = [&[3, 5, 64], &[3, 2, 7, 8], &[3, 2, 7, 8], &[3, 12], &[3, 5], &[4]];
        let dtypes = [
            DType::Float32,
            DType::Float32,
            DType::Float32,
            DType::Int64,
            DType::Int64,
            DType::Float32,
        ];
        let inputs = |shapes: [&'static [usize]; 6]| {
            let inputs = shapes.into_iter().zip(dtypes);
            let inputs: Vec<Input<'_, usize>> = inputs
                .map(|(shape, dtype)| Input {
                    name: "x",
                    dtype,
                    shape,
                })
                .collect();
            fused.infer(&inputs)
        };
        let present = vec![3, 2, 12, 8];
        assert_eq!(inputs(shapes), Ok(vec![vec![3, 5, 32], present.clone(), present]));
        let mut wrong = shapes;
        wrong[3] = &[3, 11];
        assert_eq!(
            inputs(wrong),
            Err("wants shape [3, 12], found [3, 11]".to_owned())
        );
        let mut wrong = shapes;
        wrong[1] = &[3, 2, 7, 9];
        assert_eq!(inputs(wrong), Err("has a cache of shape [3, 2, 7, 9]".to_owned()));
    }

    #[test]
    fn sides_are_divided_and_rounded_up() {
        let fused = Fused::Stem {
            kernel: 3,
            stride: 2,
            depthwise_kernel: 3,
            depthwise_stride: 2,
        };
        let shapes = [vec![1_usize, 3, 10, 7], vec![27, 6], vec![6], vec![9, 6], vec![6]];
        assert_eq!(fused.output_shapes(&shapes), Ok(vec![vec![1, 3, 2, 6]]));
        let error = fused.output_shapes(&shapes[..2]).unwrap_err();
        assert_eq!(error, "has too few inputs, 2");
    }
}
