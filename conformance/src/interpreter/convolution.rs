//! 2-D convolution, by its definition.

use super::matrix::round;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// `x [N,C,H,W]`, `weight [M,C/group,kH,kW]`, `bias [M]`; `pads` are top, left, bottom, right.
pub(super) fn conv(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    group: u64,
    strides: [u64; 2],
    pads: [u64; 4],
) -> Result<Tensor, String> {
    let ([n, c, h, w], [m, c_in, k_h, k_w]) = (x.shape.as_slice(), weight.shape.as_slice()) else {
        return Err(format!(
            "shapes {:?} and {:?} are not of rank 4",
            x.shape, weight.shape
        ));
    };
    let (n, c, h, w, m, c_in, k_h, k_w) = (*n, *c, *h, *w, *m, *c_in, *k_h, *k_w);
    let small = |value: u64| usize::try_from(value).map_err(|_| format!("{value} is too large"));
    let group = small(group)?;
    let (stride_h, stride_w) = (small(strides[0])?, small(strides[1])?);
    let (top, left, bottom, right) = (small(pads[0])?, small(pads[1])?, small(pads[2])?, small(pads[3])?);
    if group == 0 || c_in * group != c || m % group != 0 || stride_h == 0 || stride_w == 0 {
        return Err(format!(
            "shapes {:?} and {:?} do not fit {group} groups",
            x.shape, weight.shape
        ));
    }
    let (Some(free_h), Some(free_w)) = (
        (h + top + bottom).checked_sub(k_h),
        (w + left + right).checked_sub(k_w),
    ) else {
        return Err(format!("a kernel of {k_h} x {k_w} is larger than {h} x {w}"));
    };
    let (out_h, out_w) = (free_h / stride_h + 1, free_w / stride_w + 1);
    let data = x.as_float().ok_or("the input is not real")?;
    let kernels = weight.as_float().ok_or("the weight is not real")?;
    let bias = bias
        .map(|bias| bias.as_float().ok_or("the bias is not real"))
        .transpose()?;
    if bias.is_some_and(|bias| bias.len() != m) {
        return Err(format!("the bias does not have {m} elements"));
    }
    let mut out = vec![0.0; n * m * out_h * out_w];
    out.par_chunks_mut(out_h * out_w).enumerate().for_each_init(
        || vec![0.0_f64; out_h * out_w],
        |sums, (plane, out)| {
            let (image, channel) = (plane / m, plane % m);
            sums.fill(bias.map_or(0.0, |bias| f64::from(bias[channel])));
            let first = channel / (m / group) * c_in;
            for input in 0..c_in {
                let source = &data[(image * c + first + input) * h * w..][..h * w];
                let kernel = &kernels[(channel * c_in + input) * k_h * k_w..][..k_h * k_w];
                for (tap, &factor) in kernel.iter().enumerate() {
                    let (row, column) = (tap / k_w, tap % k_w);
                    // Output columns whose input column, `x * stride + column - left`, lies in the image.
                    let low = left.saturating_sub(column).div_ceil(stride_w);
                    let high = ((w + left).saturating_sub(column)).div_ceil(stride_w).min(out_w);
                    for y in 0..out_h {
                        let Some(at) = (y * stride_h + row).checked_sub(top).filter(|&at| at < h) else {
                            continue;
                        };
                        if low >= high {
                            continue;
                        }
                        let start = at * w + low * stride_w + column - left;
                        let line = &mut sums[y * out_w + low..y * out_w + high];
                        let factor = f64::from(factor);
                        for (sum, &value) in line.iter_mut().zip(source[start..].iter().step_by(stride_w)) {
                            *sum += f64::from(value) * factor;
                        }
                    }
                }
            }
            round(sums, out);
        },
    );
    Ok(Tensor::float(&[n, m, out_h, out_w], out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition once more, without any cleverness about borders.
    fn slow(x: &Tensor, weight: &Tensor, group: usize, stride: usize, pad: usize) -> Vec<f32> {
        let (data, kernels) = (x.as_float().unwrap(), weight.as_float().unwrap());
        let (c, h, w) = (x.shape[1], x.shape[2], x.shape[3]);
        let (m, c_in, k) = (weight.shape[0], weight.shape[1], weight.shape[2]);
        let (out_h, out_w) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
        let mut out = Vec::new();
        for image in 0..x.shape[0] {
            for o in 0..m {
                for y in 0..out_h {
                    for z in 0..out_w {
                        let mut sum = 0.0_f64;
                        for i in 0..c_in {
                            for (p, q) in (0..k).flat_map(|p| (0..k).map(move |q| (p, q))) {
                                let (row, column) = (y * stride + p, z * stride + q);
                                if row < pad || column < pad || row - pad >= h || column - pad >= w {
                                    continue;
                                }
                                let channel = o / (m / group) * c_in + i;
                                let value = data[((image * c + channel) * h + row - pad) * w + column - pad];
                                sum +=
                                    f64::from(value) * f64::from(kernels[((o * c_in + i) * k + p) * k + q]);
                            }
                        }
                        out.push(sum as f32);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_definition() {
        for (c, m, group, k, stride, pad, size) in [
            (2, 4, 1, 3, 1, 1, 5),
            (4, 4, 4, 7, 2, 3, 8),
            (4, 8, 4, 3, 2, 1, 7),
            (6, 3, 3, 1, 1, 0, 4),
            (1, 1, 1, 7, 1, 3, 2),
            (2, 2, 1, 1, 2, 0, 5),
        ] {
            let numbers =
                |n: usize, step: f32| (0..n).map(|i| ((i as f32) * step).sin()).collect::<Vec<f32>>();
            let x = Tensor::float(&[2, c, size, size + 1], numbers(2 * c * size * (size + 1), 0.7));
            let weight = Tensor::float(&[m, c / group, k, k], numbers(m * (c / group) * k * k, 1.3));
            let (stride_, pad_) = (stride as u64, pad as u64);
            let found = conv(&x, &weight, None, group as u64, [stride_; 2], [pad_; 4]).unwrap();
            assert_eq!(
                found.as_float().unwrap(),
                slow(&x, &weight, group, stride, pad),
                "{:?}",
                weight.shape
            );
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let x = Tensor::float(&[1, 2, 2, 2], vec![0.0; 8]);
        let weight = Tensor::float(&[2, 2, 3, 3], vec![0.0; 36]);
        assert!(
            conv(&x, &weight, None, 1, [1, 1], [0; 4])
                .unwrap_err()
                .contains("larger than")
        );
        assert!(
            conv(&x, &weight, None, 2, [1, 1], [1; 4])
                .unwrap_err()
                .contains("do not fit")
        );
    }
}
