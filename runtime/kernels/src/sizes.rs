//! Sizes: how long must a slice be? Products of what a caller says, which panic instead of wrapping around.

/// The largest size and the largest product of sizes: more numbers than any memory has, and few enough that
/// sums of such products, and products with what is small, are exact.
pub(crate) const MOST: usize = 1 << 48;

/// The product of some sizes.
///
/// # Panics
/// A size, or the product, above [`MOST`]: the sizes of no slice.
pub(crate) fn product<const N: usize>(sizes: [usize; N]) -> usize {
    let product = sizes.into_iter().try_fold(1_usize, |product, size| {
        product
            .checked_mul(size)
            .filter(|product| *product <= MOST && size <= MOST)
    });
    match product {
        Some(product) => product,
        None => panic!("sizes {sizes:?} are those of no slice"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn products_that_would_wrap_panic() {
        assert_eq!(product([3, 4, 5]), 60);
        assert_eq!(product([3, 0, MOST]), 0);
        for sizes in [
            [1 << 32, 1 << 32, 1],
            [usize::MAX, 1, 1],
            [0, usize::MAX, 1],
            [MOST, 2, 1],
        ] {
            assert!(catch_unwind(|| product(sizes)).is_err(), "{sizes:?}");
        }
    }
}
