//! One node of target `cpu`, computed as the engines' operators compute it, but without an engine. For tests
//! of other crates, and may change.

use super::fused::{self, Data, Means, Outputs};
use kernels::Isa;
use kernels::parallel::Parallel;
use models::fused::{Attributes, Fused, Kind};

/// Elements of an input, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// float32.
    Float32(&'a [f32]),
    /// Bits of float16.
    Float16(&'a [u16]),
    /// uint8.
    UInt8(&'a [u8]),
    /// int64.
    Int64(&'a [i64]),
}

/// An output: its shape, and its elements.
pub type Output = (Vec<usize>, Vec<f32>);

/// Reads the attributes of a node and computes it for inputs of these shapes, each as long as its shape says.
/// `words`: as where weights are in bytes.
///
/// # Errors
/// Attributes that no such operator has, or inputs that do not fit them.
pub fn compute(
    kind: Kind,
    attributes: &dyn Attributes,
    (isa, pool, words): (Isa, &dyn Parallel, bool),
    inputs: &[(&[usize], Elements<'_>)],
) -> Result<Vec<Output>, String> {
    let fused = Fused::read(kind, attributes)?;
    let inputs: Vec<fused::Input<'_>> = inputs
        .iter()
        .map(|(shape, elements)| fused::Input {
            shape: shape.to_vec(),
            data: match elements {
                Elements::Float32(data) => Data::F32(data),
                Elements::Float16(data) => Data::F16(data),
                Elements::UInt8(data) => Data::U8(data),
                Elements::Int64(data) => Data::I64(data),
            },
        })
        .collect();
    let mut outputs = Unwritten(Vec::new());
    fused::run(&fused, Means { isa, pool, words }, &inputs, &mut outputs)?;
    Ok(outputs.0)
}

/// What an output holds before it is written: a NaN that no arithmetic makes.
pub const UNWRITTEN: u32 = 0x7fd1_2345;

/// The outputs of a call.
struct Unwritten(Vec<Output>);

impl Outputs for Unwritten {
    fn make(&mut self, shapes: &[&[usize]]) -> Result<Vec<&mut [f32]>, String> {
        for shape in shapes {
            let length = shape
                .iter()
                .try_fold(1_usize, |length, side| length.checked_mul(*side));
            let length = length.ok_or_else(|| format!("an output of shape {shape:?} is too large"))?;
            let mut elements = Vec::new();
            let room = elements.try_reserve_exact(length);
            room.map_err(|error| format!("an output of shape {shape:?}: {error}"))?;
            elements.resize(length, f32::from_bits(UNWRITTEN));
            self.0.push((shape.to_vec(), elements));
        }
        Ok(self.0.iter_mut().map(|(_, elements)| &mut elements[..]).collect())
    }
}
