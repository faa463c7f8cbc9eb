//! Loops over registers that are certain to be unrolled.

/// Repeats a block with a constant counting up to a length, at most 12.
macro_rules! unroll {
    ($i:ident < $count:ident $body:block) => {
        $crate::unroll::unroll!(@ $i $count $body 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $i:ident $count:ident $body:block $($n:literal)*) => {
        $({
            const $i: usize = $n;
            if $i < $count $body
        })*
    };
}
pub(crate) use unroll;
