//! Instruction sets: which vector instructions does this processor have, and how is a kernel written once for
//! all of them?
//!
//! A kernel is a generic function over [`Lanes`], sixteen numbers side by side. `dispatch!` compiles it once
//! for each set and calls the one that an [`Isa`] stands for. Nothing here allocates but lists of sets.
//!
//! To add a set, write a file like `avx2.rs` (a type, what its [`Lanes`] does otherwise than the defaults,
//! and its features, once, in `features!`), and name it twice below.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod dispatch;
mod lanes;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_dotprod;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_i8mm;
mod portable;

pub(crate) use dispatch::{Kernel, dispatch};
pub(crate) use lanes::{AHEAD, LANES, Lanes, Nibbles, Part, prefetch};

use std::fmt;
use std::sync::OnceLock;

/// Declares what `Isa` knows of the sets, in order, the best last: an associated constant, a name and a file
/// each.
macro_rules! sets {
    ($($(#[$attribute:meta])* $set:ident: $name:literal in $file:ident;)*) => {
        /// The sets. A value of a set that the processor lacks is never made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        enum Kind {
            $($(#[$attribute])* $set,)*
        }

        impl Isa {
            /// All sets that this processor has, the best last; never empty.
            pub fn available() -> Vec<Isa> {
                let mut sets = Vec::new();
                $(
                    $(#[$attribute])*
                    if $file::detected() {
                        sets.push(Isa(Kind::$set));
                    }
                )*
                sets
            }

            /// The set's name, as reports have it and [`Isa::named`] takes it.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($(#[$attribute])* Kind::$set => $name,)*
                }
            }

            /// Runs a kernel that is compiled for the set.
            #[inline]
            pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
                match self.0 {
                    // SAFETY: `Isa` is made by `available` alone, of the sets that were detected.
                    $($(#[$attribute])* Kind::$set => unsafe { $file::run(kernel) },)*
                }
            }
        }
    };
}

sets! {
    Portable: "portable" in portable;
    #[cfg(target_arch = "x86_64")]
    Avx2: "avx2" in avx2;
    #[cfg(target_arch = "x86_64")]
    AvxVnni: "avx-vnni" in avx_vnni;
    #[cfg(target_arch = "x86_64")]
    Avx512: "avx512-vnni" in avx512;
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon: "neon" in neon;
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonDotprod: "neon-dotprod" in neon_dotprod;
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonI8mm: "neon-i8mm" in neon_i8mm;
}

/// An instruction set that this processor has: a token, which only looking at the processor makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Kind);

impl Isa {
    /// The best of this processor, found once.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().last().copied().unwrap_or(Isa(Kind::Portable)))
    }

    /// How it multiplies many rows with weights of bytes and of nibbles, which is what measured best: in words,
    /// for people.
    pub fn products(self) -> &'static str {
        #[inline(always)]
        unsafe fn body<V: Lanes>() -> &'static str {
            match (V::WORDS, V::NIBBLES) {
                (false, Nibbles::Spread) => "bytes as they are, nibbles made bytes",
                (false, _) => "bytes and nibbles as they are",
                (true, Nibbles::Bytes) => "bytes as words, nibbles as they are",
                (true, _) => "bytes and nibbles as words",
            }
        }
        dispatch!(self, body() -> &'static str)
    }

    /// The set of this name.
    ///
    /// # Errors
    /// This processor has no such set, or there is none: the error names those that it has.
    pub fn named(name: &str) -> Result<Isa, UnknownIsa> {
        let found = Isa::available().into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| UnknownIsa {
            name: name.to_owned(),
        })
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}

/// No instruction set of this processor has the name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownIsa {
    /// What was asked for.
    pub name: String,
}

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        write!(
            f,
            "instruction set `{}` is none of this processor's: {}",
            self.name,
            available.join(", ")
        )
    }
}

impl std::error::Error for UnknownIsa {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a set computes exactly, on given numbers.
    #[derive(Clone, Copy)]
    struct Everything<'a> {
        a: &'a [f32; 16],
        b: &'a [f32; 16],
        bytes: &'a [u8; 64],
    }

    impl Kernel for Everything<'_> {
        type Out = Vec<f32>;

        #[inline(always)]
        unsafe fn run<V: Lanes>(self) -> Vec<f32> {
            let mut out = Vec::new();
            let keep = |value: V, out: &mut Vec<f32>| {
                let mut lanes = [0.0; 16];
                // SAFETY: sixteen numbers; the set is the caller's promise.
                unsafe { value.store(lanes.as_mut_ptr()) };
                out.extend(lanes);
            };
            let Everything { a, b, bytes } = self;
            // SAFETY: the arrays are as long as each method asks for; the set is the caller's promise.
            unsafe {
                let (x, y) = (V::load(a.as_ptr()), V::load(b.as_ptr()));
                for value in [
                    x.add(y),
                    x.sub(y),
                    x.mul(y),
                    x.div(y),
                    x.max(y),
                    x.min(y),
                    x.abs(),
                    x.round(),
                    x.scale_by_power(y.round()),
                    x.max_abs(y),
                    y.add(V::splat(12_582_912.0)).pick(a),
                    V::splat(3.5),
                ] {
                    keep(value, &mut out);
                }
                for value in x.interleave(y) {
                    keep(value, &mut out);
                }
                let halves: Vec<u16> = a.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
                keep(V::load_f16(halves.as_ptr()), &mut out);
                out.push(x.max_lane());
                let mut sixteen = [x; LANES];
                for (i, vector) in sixteen.iter_mut().enumerate() {
                    *vector = x.mul(V::splat(i as f32 - 5.3)).add(y).round();
                }
                out.extend(V::max_lanes(&sixteen));
                out.extend(V::sum_lanes(&sixteen));
                let mut narrow = [0_i8; 16];
                x.store_i8(narrow.as_mut_ptr());
                out.extend(narrow.map(f32::from));
                let mut words = [0_i16; 32];
                x.mul(V::splat(1300.0)).store_i16(words.as_mut_ptr());
                y.store_i16(words.as_mut_ptr().add(16));
                out.extend(words.map(f32::from));
                let pairs = V::bytes_load(words.as_ptr().cast());
                let other = V::bytes_load(bytes.as_ptr());
                keep(
                    V::from_int(V::word_products(V::int_splat(-5), pairs, other)),
                    &mut out,
                );
                let mut block = [0_i8; 128];
                let mut values = [x, y, y, x, x, x, y, x];
                let mut none = 0;
                let sums = V::store_block(&values, V::splat(5.0), block.as_mut_ptr(), &mut none);
                assert_eq!(none, 0, "each is a number");
                out.push(sums.sum());
                out.extend(block.map(f32::from));
                values[6] = V::splat(f32::NAN);
                let sums = V::store_block(&values, V::splat(5.0), block.as_mut_ptr(), &mut none);
                assert!(sums.sum().is_nan() || none != 0 && block[6 * LANES..][..LANES] == [-128; LANES]);
                keep(
                    V::from_int(V::int_add(V::int_splat(7), V::int_splat(-9))),
                    &mut out,
                );
                let four = [-127, 127, 5, -127];
                let acc = V::int_add(V::start(-128 * sum(&four)), V::int_splat(-2));
                keep(V::from_int(V::dot(acc, bytes.as_ptr(), four)), &mut out);
                keep(
                    V::from_int(V::dot_nibbles(
                        V::int_splat(-2),
                        bytes.as_ptr(),
                        [127, 127, 127, 127],
                        [-3, 9, -127, 1],
                    )),
                    &mut out,
                );
                let signed: [i8; 64] = activations(29, 0);
                let start: [i32; 16] = std::array::from_fn(|i| i as i32 * 1000 - 7000);
                let mut corrected = start;
                for (start, four) in corrected.iter_mut().zip(signed.chunks(4)) {
                    *start -= if V::SIGNED { 0 } else { 128 * sum(four) };
                }
                keep(
                    V::from_int(V::dot_bytes(
                        V::int_load(corrected.as_ptr()),
                        bytes.as_ptr(),
                        signed.as_ptr(),
                    )),
                    &mut out,
                );
                let wide: [i8; 128] = activations(29, -100);
                keep(
                    V::from_int(V::dot_plane(
                        V::int_load(start.as_ptr()),
                        bytes.as_ptr(),
                        wide.as_ptr(),
                    )),
                    &mut out,
                );
                for ratio in [-32512.0, 1.0, 700.0, 20_011.0, 32_512.0] {
                    // Eight inputs, and eight that are multiplied with zeros.
                    let mut weights = [0; 256];
                    let ratios = V::splat(ratio).add(y.round());
                    let ratios = ratios.max(V::splat(-32512.0)).min(V::splat(32512.0));
                    V::spread_nibbles(bytes.as_ptr(), ratios, weights.as_mut_ptr());
                    // One input at a time: the weights themselves.
                    for input in 0..8 {
                        let mut one = [0; 16];
                        one[input] = 1;
                        let [[weight]] =
                            V::tile_block::<1, 1>(one.as_ptr(), 16, [-128], weights.as_ptr(), 0, 4);
                        keep(V::from_int(weight), &mut out);
                    }
                }
            }
            out
        }
    }

    /// Bytes from -127 to 127 in no order.
    fn activations<const N: usize>(factor: i8, offset: i8) -> [i8; N] {
        std::array::from_fn(|i| (i as i8).wrapping_mul(factor).wrapping_add(offset).max(-127))
    }

    fn sum(bytes: &[i8]) -> i32 {
        bytes.iter().map(|byte| i32::from(*byte)).sum()
    }

    /// Inputs of a block, as everywhere.
    const BLOCK: usize = 128;

    /// Rows of bytes and two panels of byte weights, or of nibbles.
    #[derive(Debug, Clone, Copy)]
    struct Blocks<'a> {
        /// `[12, 128]`
        activations: &'a [i8],
        /// `[2, 32, 16, 4]`
        weights: &'a [u8],
        quads: usize,
    }

    impl Blocks<'_> {
        fn corrections<const ROWS: usize>(&self, inputs: usize, factor: i32) -> [i32; ROWS] {
            std::array::from_fn(|row| factor * sum(&self.activations[row * BLOCK..][..inputs]))
        }

        /// Adds what a tile of `ROWS` rows and `PANELS` panels gives.
        #[inline(always)]
        unsafe fn tile<V: Lanes, const ROWS: usize, const PANELS: usize>(self, out: &mut Vec<i32>) {
            let quads = if V::PACKED {
                self.quads.next_multiple_of(4)
            } else {
                self.quads
            };
            let corrections = self.corrections::<ROWS>(4 * self.quads, -128);
            let mut activations = self.activations.to_vec();
            for row in activations.chunks_mut(BLOCK) {
                row[4 * self.quads..].fill(0);
            }
            let mut weights = self.weights.to_vec();
            if V::PACKED {
                for (from, to) in self.weights.chunks(128).zip(weights.chunks_mut(128)) {
                    // SAFETY: 128 bytes of each; the set is the caller's promise.
                    unsafe { V::pack(from.as_ptr(), to.as_mut_ptr()) };
                }
            }
            // SAFETY: twelve rows and two panels of a whole block; the set is the caller's promise.
            let sums = unsafe {
                V::tile_block::<ROWS, PANELS>(
                    activations.as_ptr(),
                    BLOCK,
                    corrections,
                    weights.as_ptr(),
                    BLOCK * LANES,
                    quads,
                )
            };
            for sums in sums.as_flattened() {
                let mut lanes = [0; LANES];
                // SAFETY: sixteen numbers.
                unsafe { V::int_store(*sums, lanes.as_mut_ptr()) };
                out.extend(lanes);
            }
        }

        /// Adds what few rows give, of bytes and of nibbles.
        #[inline(always)]
        unsafe fn few<V: Lanes, const ROWS: usize>(self, out: &mut Vec<i32>) {
            let (a, w) = (self.activations.as_ptr(), self.weights.as_ptr());
            let corrections = self.corrections::<ROWS>(4 * self.quads, -128);
            let starts = self.corrections::<ROWS>(32, -8);
            // SAFETY: twelve rows of a whole block; the set is the caller's promise.
            let both = unsafe {
                [
                    V::few_block::<ROWS>(a, BLOCK, corrections, w, self.quads),
                    V::few_nibbles::<ROWS>(a, BLOCK, starts, w),
                ]
            };
            for sums in both.as_flattened() {
                let mut lanes = [0; LANES];
                // SAFETY: sixteen numbers.
                unsafe { V::int_store(*sums, lanes.as_mut_ptr()) };
                out.extend(lanes);
            }
        }

        /// What `rows` rows and the panel give.
        fn expected(&self, rows: usize, panels: usize) -> Vec<i32> {
            let mut out = Vec::new();
            for row in self.activations.chunks(BLOCK).take(rows) {
                for panel in self.weights.chunks(BLOCK * LANES).take(panels) {
                    out.extend((0..LANES).map(|column| {
                        let products = row.iter().take(4 * self.quads).enumerate().map(|(k, a)| {
                            let weight = panel[(k / 4 * LANES + column) * 4 + k % 4];
                            (i32::from(weight) - 128) * i32::from(*a)
                        });
                        products.sum::<i32>()
                    }));
                }
            }
            out
        }

        /// The same of nibbles.
        fn expected_nibbles(&self, rows: usize) -> Vec<i32> {
            let mut out = Vec::new();
            for row in self.activations.chunks(BLOCK).take(rows) {
                out.extend((0..LANES).map(|column| {
                    let products = row.iter().take(32).enumerate().map(|(k, a)| {
                        let byte = self.weights[k / 8 * 64 + column * 4 + k % 4];
                        let nibble = if k % 8 < 4 { byte & 15 } else { byte >> 4 };
                        (i32::from(nibble) - 8) * i32::from(*a)
                    });
                    products.sum::<i32>()
                }));
            }
            out
        }
    }

    impl Kernel for Blocks<'_> {
        type Out = [Vec<i32>; 2];

        #[inline(always)]
        unsafe fn run<V: Lanes>(self) -> [Vec<i32>; 2] {
            let (mut tiles, mut few) = (Vec::new(), Vec::new());
            // SAFETY: the set is the caller's promise.
            unsafe {
                self.tile::<V, 1, 1>(&mut tiles);
                self.tile::<V, 2, 1>(&mut tiles);
                self.tile::<V, 3, 1>(&mut tiles);
                self.tile::<V, 4, 1>(&mut tiles);
                self.tile::<V, 5, 1>(&mut tiles);
                self.tile::<V, 6, 1>(&mut tiles);
                self.tile::<V, 7, 1>(&mut tiles);
                self.tile::<V, 1, 2>(&mut tiles);
                self.tile::<V, 5, 2>(&mut tiles);
                self.tile::<V, 12, 2>(&mut tiles);
                self.few::<V, 1>(&mut few);
                self.few::<V, 2>(&mut few);
                self.few::<V, 3>(&mut few);
                self.few::<V, 4>(&mut few);
            }
            [tiles, few]
        }
    }

    #[test]
    fn sums_of_blocks_are_exact() {
        let ends = |i: usize| if i.is_multiple_of(3) { 127 } else { -127 };
        for quads in [1, 2, 3, 4, 5, 8, 31, 32] {
            for extreme in [false, true] {
                let noise: [i8; 12 * BLOCK] = activations(83, 7);
                let activations: Vec<i8> = if extreme {
                    (0..12 * BLOCK).map(ends).collect()
                } else {
                    noise.to_vec()
                };
                let weights: Vec<u8> = (0..2 * BLOCK * LANES)
                    .map(|i| if extreme { 255 * (i % 5 / 4) } else { i * 167 % 256 } as u8)
                    .collect();
                let blocks = Blocks {
                    activations: &activations,
                    weights: &weights,
                    quads,
                };
                let tiles = [1, 2, 3, 4, 5, 6, 7].map(|rows| (rows, 1));
                let tiles = tiles.into_iter().chain([(1, 2), (5, 2), (12, 2)]);
                let tiles: Vec<i32> = tiles
                    .flat_map(|(rows, panels)| blocks.expected(rows, panels))
                    .collect();
                let few: Vec<i32> = (1..5)
                    .flat_map(|rows| [blocks.expected(rows, 1), blocks.expected_nibbles(rows)].concat())
                    .collect();
                for isa in Isa::available() {
                    let [found_tiles, found_few] = isa.run(blocks);
                    assert!(found_tiles == tiles, "{} {quads} {extreme}: a tile", isa.name());
                    assert!(found_few == few, "{} {quads} {extreme}: few rows", isa.name());
                }
            }
        }
    }

    #[test]
    fn every_set_computes_the_same() {
        let a: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.5) * 3.25);
        let b: [f32; 16] = std::array::from_fn(|i| 5.5 - i as f32);
        // All bytes with their highest bit, and without.
        for mask in [0x80, 0] {
            let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 % 256) as u8 | mask);
            let everything = Everything {
                a: &a,
                b: &b,
                bytes: &bytes,
            };
            let expected = Isa(Kind::Portable).run(everything);
            for isa in Isa::available() {
                assert_eq!(isa.run(everything), expected, "{}", isa.name());
            }
        }
    }

    #[test]
    fn sets_have_names() {
        let sets = Isa::available();
        assert_eq!(sets.first(), Some(&Isa(Kind::Portable)));
        assert_eq!(sets.last(), Some(&Isa::detect()));
        for isa in sets {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
            assert!(isa.products().starts_with("bytes "), "{isa:?}");
        }
        let error = Isa::named("mmx").unwrap_err().to_string();
        assert!(error.starts_with("instruction set `mmx` is none of this processor's: portable"));
    }
}
