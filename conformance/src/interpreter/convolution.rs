//! 2-D convolution, by its definition.

use crate::array::Array;
use ndarray::{Array2, Array4, ArrayView2, ArrayViewMut2, Axis, Ix4, s};
use rayon::prelude::*;

/// `x [N,C,H,W]`, `weight [M,C/group,kH,kW]`, `bias [M]`; `pads` are top, left, bottom, right.
pub(super) fn conv(
    x: &Array,
    weight: &Array,
    bias: Option<&Array>,
    group: u64,
    strides: [u64; 2],
    pads: [u64; 4],
) -> Result<Array, String> {
    let (shape, kernels) = (x.shape(), weight.shape());
    let (&[n, c, h, w], &[m, c_in, k_h, k_w]) = (shape, kernels) else {
        return Err(format!("shapes {shape:?} and {kernels:?} are not of rank 4"));
    };
    let small = |value: u64| usize::try_from(value).map_err(|_| format!("{value} is too large"));
    let group = small(group)?;
    let (stride_h, stride_w) = (small(strides[0])?, small(strides[1])?);
    let (top, left, bottom, right) = (small(pads[0])?, small(pads[1])?, small(pads[2])?, small(pads[3])?);
    if group == 0 || c_in * group != c || m % group != 0 || stride_h == 0 || stride_w == 0 {
        return Err(format!(
            "shapes {shape:?} and {kernels:?} do not fit {group} groups"
        ));
    }
    let (Some(free_h), Some(free_w)) = (
        (h + top + bottom).checked_sub(k_h),
        (w + left + right).checked_sub(k_w),
    ) else {
        return Err(format!("a kernel of {k_h} x {k_w} is larger than {h} x {w}"));
    };
    let (out_h, out_w) = (free_h / stride_h + 1, free_w / stride_w + 1);
    let taps = float64(weight).ok_or("the weight is not real")?;
    let bias = bias
        .map(|bias| bias.as_float().ok_or("the bias is not real"))
        .transpose()?;
    if bias.is_some_and(|bias| bias.shape() != [m]) {
        return Err(format!("the bias does not have {m} elements"));
    }
    let mut padded = Array4::<f64>::zeros((n, c, h + top + bottom, w + left + right));
    padded
        .slice_mut(s![.., .., top..top + h, left..left + w])
        .assign(&float64(x).ok_or("the input is not real")?);
    // What a tap sees: its place in the kernel, and from there on every stride.
    let seen = |image: usize, channel: usize, (row, column): (usize, usize)| -> ArrayView2<'_, f64> {
        let plane = padded.slice(s![image, channel, row.., column..]);
        plane
            .slice_move(s![..;stride_h, ..;stride_w])
            .slice_move(s![..out_h, ..out_w])
    };
    let mut out = Array4::<f32>::zeros((n, m, out_h, out_w));
    let plane = |((image, channel), mut out): ((usize, usize), ArrayViewMut2<'_, f32>)| {
        let mut sums = Array2::from_elem((out_h, out_w), bias.map_or(0.0, |bias| f64::from(bias[channel])));
        let first = channel / (m / group) * c_in;
        for (input, taps) in taps.index_axis(Axis(0), channel).outer_iter().enumerate() {
            for (place, &factor) in taps.indexed_iter() {
                sums.scaled_add(factor, &seen(image, first + input, place));
            }
        }
        out.zip_mut_with(&sums, |out, &sum| *out = sum as f32);
    };
    let places = (0..n).flat_map(|image| (0..m).map(move |channel| (image, channel)));
    let planes = out.outer_iter_mut().flat_map(|image| image.into_outer_iter_mut());
    let work: Vec<_> = places.zip(planes).collect();
    work.into_par_iter().for_each(plane);
    Ok(Array::from(out))
}

/// Real numbers of rank 4, as sums are kept.
fn float64(x: &Array) -> Option<Array4<f64>> {
    let numbers = x.as_float()?.mapv(f64::from);
    numbers.into_dimensionality::<Ix4>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition once more, without any cleverness about borders.
    fn slow(x: &Array, weight: &Array, group: usize, stride: usize, pad: usize) -> Vec<f32> {
        let (data, kernels) = (x.as_float().unwrap(), weight.as_float().unwrap());
        let (h, w) = (x.shape()[2], x.shape()[3]);
        let (m, c_in, k) = (weight.shape()[0], weight.shape()[1], weight.shape()[2]);
        let (out_h, out_w) = ((h + 2 * pad - k) / stride + 1, (w + 2 * pad - k) / stride + 1);
        let mut out = Vec::new();
        for image in 0..x.shape()[0] {
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
                                let value = data[[image, channel, row - pad, column - pad]];
                                sum += f64::from(value) * f64::from(kernels[[o, i, p, q]]);
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
            let x = Array::float(&[2, c, size, size + 1], numbers(2 * c * size * (size + 1), 0.7));
            let weight = Array::float(&[m, c / group, k, k], numbers(m * (c / group) * k * k, 1.3));
            let (stride_, pad_) = (stride as u64, pad as u64);
            let found = conv(&x, &weight, None, group as u64, [stride_; 2], [pad_; 4]).unwrap();
            let found: Vec<f32> = found.to_float().iter().copied().collect();
            let shape = weight.shape();
            assert_eq!(found, slow(&x, &weight, group, stride, pad), "{shape:?}");
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let x = Array::float(&[1, 2, 2, 2], vec![0.0; 8]);
        let weight = Array::float(&[2, 2, 3, 3], vec![0.0; 36]);
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
