//! What does a fused operator compute? The same, in standard operators.
//!
//! A body is the definition: it becomes the function's body in an ONNX file, so that an engine without our
//! kernels runs it, and the reference interpreter evaluates it. A kernel may round activations to bytes on
//! the way to a product with bytes or nibbles; the body does not.

use super::attention;
use super::qwen2::{self, Heads, Shared};
use crate::dtype::DType;
use crate::fused::{BLOCK, Encoding, Fused, Norm, PANEL, TableEncoding};
use crate::graph::{Builder, Graph, GraphError, Op, Value, ValueId, signed};

/// The graph that an operator stands for, for inputs of these types and shapes. Its inputs are named `x0`,
/// `x1`, .., its outputs `y0`, `y1`, ...
///
/// # Errors
/// Inputs that do not fit the operator.
pub fn body(fused: &Fused, inputs: &[&Value]) -> Result<Graph, GraphError> {
    let mut b = Builder::new(fused.name());
    let ids: Vec<ValueId> = inputs
        .iter()
        .enumerate()
        .map(|(index, value)| b.input(&format!("x{index}"), value.dtype, &value.shape))
        .collect();
    let mut rest = Rest { ids: ids.into_iter() };
    let b = &mut b;
    let outputs = match *fused {
        Fused::Stem {
            kernel,
            stride,
            depthwise_kernel,
            depthwise_stride,
        } => {
            let x = stem(b, &mut rest, kernel, stride); // [B,C,H',W']
            vec![stem_depthwise(
                b,
                &mut rest,
                x,
                depthwise_kernel,
                depthwise_stride,
            )]
        }
        Fused::DepthwiseConv { kernel, stride, gelu } => vec![depthwise(b, &mut rest, kernel, stride, gelu)],
        Fused::Linear {
            inputs,
            outputs,
            norm,
            encoding,
            bias,
            gelu,
            residual,
        } => {
            let x = rest.next();
            let residual = residual.then(|| rest.next());
            let x = normalised(b, &mut rest, norm, x); // [..,K]
            let x = product(b, &mut rest, encoding, x, outputs, inputs, bias); // [..,N]
            let x = if gelu { b.gelu(x) } else { x };
            vec![residual.map_or(x, |residual| b.add(residual, x))]
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
            let x = rest.next();
            let residual = residual.then(|| rest.next());
            let x = normalised(b, &mut rest, norm, x); // [..,K]
            let gate = gated.then(|| product(b, &mut rest, encoding, x, hidden, inputs, false)); // [..,I]
            let up = product(b, &mut rest, encoding, x, hidden, inputs, bias); // [..,I]
            let active = match gate {
                Some(gate) => {
                    let gate = b.silu(gate);
                    b.mul(gate, up)
                }
                None => b.gelu(up),
            }; // [..,I]
            let x = product(b, &mut rest, encoding, active, outputs, hidden, bias); // [..,N]
            vec![residual.map_or(x, |residual| b.add(residual, x))]
        }
        Fused::SelfAttention { heads, head_dim } => {
            let qkv = rest.next();
            vec![self_attention(b, qkv, heads, head_dim)]
        }
        Fused::DecoderAttention {
            heads,
            kv_heads,
            head_dim,
        } => decoder_attention(
            b,
            &mut rest,
            Heads {
                query: heads,
                kv: kv_heads,
                length: head_dim,
            },
        ),
        Fused::Embedding { width, encoding } => vec![embedding(b, &mut rest, width, encoding)],
        Fused::Logits { encoding } => vec![logits(b, &mut rest, encoding)],
    };
    // An output must be computed here and have a name of its own.
    for (index, output) in outputs.into_iter().enumerate() {
        b.output(&format!("y{index}"), output);
    }
    std::mem::replace(b, Builder::new("")).finish()
}

/// The inputs that are still to be read.
struct Rest {
    ids: std::vec::IntoIter<ValueId>,
}

impl Rest {
    /// The next input; the number of inputs was checked by the operator's rule.
    fn next(&mut self) -> ValueId {
        self.ids.next().unwrap_or(ValueId(0))
    }
}

/// `pixels [B,c,H,W], taps [c*k*k,C], bias [C] -> [B,C,H',W']`
fn stem(b: &mut Builder, rest: &mut Rest, kernel: u64, stride: u64) -> ValueId {
    let (x, taps, bias) = (rest.next(), rest.next(), rest.next());
    let weight = b.transpose(taps, &[1, 0]); // [C,c*k*k]
    let side = signed(kernel);
    let weight = b.reshape(weight, &[0, -1, side, side]); // [C,c,k,k]
    let x = convolve(b, x, weight, bias, kernel, stride, 1); // [B,C,H',W']
    b.gelu(x)
}

/// `x [B,C,H,W], taps [j*j,C], bias [C] -> [B,H',W',C]`
fn stem_depthwise(b: &mut Builder, rest: &mut Rest, x: ValueId, kernel: u64, stride: u64) -> ValueId {
    let (taps, bias) = (rest.next(), rest.next());
    let channels = fixed(b, x, 1);
    let weight = b.transpose(taps, &[1, 0]); // [C,j*j]
    let side = signed(kernel);
    let weight = b.reshape(weight, &[0, 1, side, side]); // [C,1,j,j]
    let x = convolve(b, x, weight, bias, kernel, stride, channels); // [B,C,H',W']
    let x = b.gelu(x);
    b.transpose(x, &[0, 2, 3, 1]) // [B,H',W',C]
}

/// `x [B,H,W,C], taps [k*k,m*C], bias [m*C] -> [B,H',W',m*C]`
fn depthwise(b: &mut Builder, rest: &mut Rest, kernel: u64, stride: u64, gelu: bool) -> ValueId {
    let (x, taps, bias) = (rest.next(), rest.next(), rest.next());
    let channels = fixed(b, x, 3);
    let weight = b.transpose(taps, &[1, 0]); // [C,k*k]
    let side = signed(kernel);
    let weight = b.reshape(weight, &[0, 1, side, side]); // [m*C,1,k,k]
    let x = b.transpose(x, &[0, 3, 1, 2]); // [B,C,H,W]
    let x = convolve(b, x, weight, bias, kernel, stride, channels); // [B,m*C,H',W']
    let x = if gelu { b.gelu(x) } else { x };
    b.transpose(x, &[0, 2, 3, 1]) // [B,H',W',C]
}

fn convolve(
    b: &mut Builder,
    x: ValueId,
    weight: ValueId,
    bias: ValueId,
    kernel: u64,
    stride: u64,
    group: u64,
) -> ValueId {
    let conv = Op::Conv {
        group,
        strides: [stride; 2],
        pads: [kernel / 2; 4],
    };
    b.node(conv, &[x, weight, bias])
}

/// The norm that an operator begins with.
fn normalised(b: &mut Builder, rest: &mut Rest, norm: Norm, x: ValueId) -> ValueId {
    match norm {
        Norm::None => x,
        Norm::Rms { epsilon } => {
            let gamma = rest.next();
            b.rms_norm_with(x, gamma, epsilon)
        }
        Norm::Layer { epsilon } => {
            let (gamma, beta) = (rest.next(), rest.next());
            b.node(Op::LayerNormalization { axis: -1, epsilon }, &[x, gamma, beta])
        }
    }
}

/// `x [..,K] -> x W^T (+ bias) [..,N]`
fn product(
    b: &mut Builder,
    rest: &mut Rest,
    encoding: Encoding,
    x: ValueId,
    outputs: u64,
    inputs: u64,
    bias: bool,
) -> ValueId {
    let weight = unpack(b, rest, encoding, outputs, inputs); // [K,N]
    let x = b.matmul(x, weight); // [..,N]
    if bias {
        let bias = rest.next();
        b.add(x, bias)
    } else {
        x
    }
}

/// The matrix `[K,N]` that panels hold.
fn unpack(b: &mut Builder, rest: &mut Rest, encoding: Encoding, outputs: u64, inputs: u64) -> ValueId {
    let elements = rest.next();
    let panels = signed(outputs.div_ceil(PANEL));
    let width = panels * signed(PANEL);
    match encoding {
        Encoding::Float32 => {
            let lines = b.transpose(elements, &[1, 0, 2]); // [K,N/16,16]
            let matrix = b.reshape(lines, &[0, width]); // [K,N]
            cut(b, matrix, inputs, outputs)
        }
        Encoding::Int8 => {
            let scales = rest.next();
            let values = centred(b, elements, 128.0); // [N/16,K/4,16,4]
            let lines = b.transpose(values, &[1, 3, 0, 2]); // [K/4,4,N/16,16]
            let matrix = b.reshape(lines, &[-1, width]); // [K,N]
            let matrix = cut(b, matrix, inputs, outputs);
            b.mul(matrix, scales)
        }
        Encoding::Int4 => {
            let scales = rest.next();
            let blocks = signed(inputs.div_ceil(BLOCK));
            let bytes = b.reshape(elements, &[panels, blocks, 4, 16, 4]); // [N/16,K/32,4,16,4]
            let (low, high) = halves(b, bytes);
            let (low, high) = (b.unsqueeze(low, &[3]), b.unsqueeze(high, &[3]));
            let nibbles = b.concat(&[low, high], 3); // [N/16,K/32,4,2,16,4]
            let eight = b.constant_f32(&[], vec![8.0]);
            let values = b.sub(nibbles, eight);
            let lines = b.transpose(values, &[1, 2, 3, 5, 0, 4]); // [K/32,4,2,4,N/16,16]
            let lines = b.reshape(lines, &[blocks, signed(BLOCK), panels, signed(PANEL)]); // [K/32,32,N/16,16]
            let scales = b.cast(scales, DType::Float32);
            let scales = b.transpose(scales, &[1, 0, 2]); // [K/32,N/16,16]
            let scales = b.unsqueeze(scales, &[1]); // [K/32,1,N/16,16]
            let lines = b.mul(lines, scales);
            let matrix = b.reshape(lines, &[-1, width]); // [K,N]
            cut(b, matrix, inputs, outputs)
        }
    }
}

/// Without what was padded.
fn cut(b: &mut Builder, matrix: ValueId, rows: u64, columns: u64) -> ValueId {
    let mut matrix = matrix;
    for (axis, length) in [(0, rows), (1, columns)] {
        if fixed(b, matrix, usize::from(axis == 1)) != length {
            matrix = b.slice(matrix, axis, 0, signed(length));
        }
    }
    matrix
}

/// Bytes as numbers around 0.
fn centred(b: &mut Builder, bytes: ValueId, zero: f32) -> ValueId {
    let values = b.cast(bytes, DType::Float32);
    let zero = b.constant_f32(&[], vec![zero]);
    b.sub(values, zero)
}

/// `qkv [B,N,3*h*d] -> [B,N,h*d]`
fn self_attention(b: &mut Builder, qkv: ValueId, heads: u64, length: u64) -> ValueId {
    let parts = attention::parts(b, qkv, signed(heads), signed(length)); // [B,h,N,d] each
    let mixed = attention::products(b, length, parts); // [B,h,N,d]
    attention::joined(b, mixed) // [B,N,h*d]
}

/// See [`Fused::DecoderAttention`].
fn decoder_attention(b: &mut Builder, rest: &mut Rest, heads: Heads) -> Vec<ValueId> {
    let qkv = rest.next();
    let past = [rest.next(), rest.next()];
    let (mask, positions, frequencies) = (rest.next(), rest.next(), rest.next());
    let bias = qwen2::attention_bias(b, mask, past[0]); // [B,1,1,n,t]
    let (cos, sin) = qwen2::rotary_angles(b, frequencies, positions); // [B,n,1,d/2]
    let (wide, narrow) = (heads.query * heads.length, heads.kv * heads.length);
    let parts = b.split(qkv, -1, [wide, narrow, narrow]); // [B,n,h*d], [B,n,k*d], [B,n,k*d]
    let (mixed, [key, value]) = qwen2::attend(b, heads, parts, past, &Shared { bias, cos, sin });
    vec![mixed, key, value]
}

/// `ids [..], table [V,D] -> [..,D]`
fn embedding(b: &mut Builder, rest: &mut Rest, width: u64, encoding: TableEncoding) -> ValueId {
    let (ids, table) = (rest.next(), rest.next());
    let rows = b.gather(table, ids); // [..,D] or [..,D/128,64]
    let rows = match encoding {
        TableEncoding::Float32 => return rows,
        TableEncoding::Bytes => centred(b, rows, 128.0),
        TableEncoding::Planes => {
            let low = rest.next();
            let low = b.gather(low, ids); // [..,D/128,64]
            joined(b, rows, low, width)
        }
    }; // [..,D]
    let scales = rest.next();
    let scales = b.gather(scales, ids); // [..]
    let scales = b.unsqueeze(scales, &[-1]); // [..,1]
    b.mul(rows, scales)
}

/// `x [M,D], table [V,D] -> [M,V]`
fn logits(b: &mut Builder, rest: &mut Rest, encoding: TableEncoding) -> ValueId {
    let (x, table) = (rest.next(), rest.next());
    let width = fixed(b, x, 1);
    let table = match encoding {
        TableEncoding::Float32 => return b.gemm_transposed(x, table),
        TableEncoding::Bytes => centred(b, table, 128.0),
        TableEncoding::Planes => {
            let low = rest.next();
            joined(b, table, low, width)
        }
    }; // [V,D]
    let scales = rest.next();
    let products = b.gemm_transposed(x, table); // [M,V]
    b.mul(products, scales)
}

/// Two planes `[..,D/128,64]` as numbers around 0, `[..,D]`.
fn joined(b: &mut Builder, high: ValueId, low: ValueId, width: u64) -> ValueId {
    let rank = b.shape_of(high).len();
    let [high, low] = [high, low].map(|plane| {
        let (first, second) = halves(b, plane); // [..,D/128,64] each
        b.concat(&[first, second], -1) // [..,D/128,128]
    });
    let sixteen = b.constant_f32(&[], vec![16.0]);
    let high = b.mul(high, sixteen);
    let bytes = b.add(high, low);
    let half = b.constant_f32(&[], vec![128.0]);
    let values = b.sub(bytes, half); // [..,D/128,128]
    let mut shape = vec![0; rank - 2];
    shape.push(-1);
    let values = b.reshape(values, &shape); // [..,D]
    if fixed(b, values, rank - 2) == width {
        values
    } else {
        b.slice(values, -1, 0, signed(width))
    }
}

/// The low and the high nibbles of bytes, in float32.
fn halves(b: &mut Builder, bytes: ValueId) -> (ValueId, ValueId) {
    let bytes = b.cast(bytes, DType::Float32);
    let sixteen = b.constant_f32(&[], vec![16.0]);
    let quotient = b.div(bytes, sixteen);
    // A cast to an integer drops the fraction.
    let high = b.cast(quotient, DType::Int64);
    let high = b.cast(high, DType::Float32);
    let shifted = b.mul(high, sixteen);
    (b.sub(bytes, shifted), high)
}

fn fixed(b: &Builder, value: ValueId, axis: usize) -> u64 {
    b.shape_of(value)
        .get(axis)
        .and_then(|dim| dim.fixed())
        .unwrap_or(0)
}

/// The types and shapes of a body's outputs are those that the operator's rule gives.
#[cfg(test)]
mod tests {
    use super::super::fused::{Encodings, build};
    use super::super::{Network, tests::published};
    use super::*;
    use crate::graph::Dim;

    #[test]
    fn bodies_have_the_shapes_of_their_operators() {
        for (vision, decoder, table) in [
            (Encoding::Float32, Encoding::Float32, TableEncoding::Float32),
            (Encoding::Int8, Encoding::Int8, TableEncoding::Bytes),
            (Encoding::Int8, Encoding::Int4, TableEncoding::Planes),
        ] {
            let encodings = Encodings {
                vision,
                decoder,
                table,
            };
            for network in Network::ALL {
                let graph = build(network, &published(2), encodings).unwrap();
                let mut fused_nodes = 0;
                for node in &graph.nodes {
                    let Op::Fused(fused) = &node.op else { continue };
                    fused_nodes += 1;
                    let inputs: Vec<&Value> = node.inputs.iter().map(|id| graph.value(*id)).collect();
                    let body = body(fused, &inputs).unwrap();
                    let types = |graph: &Graph, ids: &[ValueId]| -> Vec<(DType, Vec<Dim>)> {
                        let value = |id: &ValueId| graph.value(*id);
                        ids.iter()
                            .map(|id| (value(id).dtype, value(id).shape.clone()))
                            .collect()
                    };
                    assert_eq!(
                        types(&body, &body.outputs),
                        types(&graph, &node.outputs),
                        "{}",
                        node.name
                    );
                }
                assert!(fused_nodes > 0, "{network:?}");
            }
        }
    }

    /// The fused networks read the same canonical weights as the portable ones.
    #[test]
    fn nothing_is_read_twice_or_left_out() {
        let config = published(2);
        let encodings = Encodings {
            vision: Encoding::Int8,
            decoder: Encoding::Int4,
            table: TableEncoding::Planes,
        };
        for network in Network::ALL {
            let portable = super::super::build(network, &config).unwrap();
            let fused = build(network, &config, encodings).unwrap();
            let names = |graph: &Graph| -> std::collections::BTreeSet<String> {
                graph
                    .weights()
                    .into_iter()
                    .flat_map(|weight| weight.sources())
                    .map(str::to_owned)
                    .collect()
            };
            assert_eq!(names(&fused), names(&portable), "{network:?}");
            let io = |graph: &Graph| -> Vec<Value> {
                graph
                    .inputs
                    .iter()
                    .chain(&graph.outputs)
                    .map(|id| graph.value(*id).clone())
                    .collect()
            };
            assert_eq!(io(&fused), io(&portable), "{network:?}");
        }
    }
}
