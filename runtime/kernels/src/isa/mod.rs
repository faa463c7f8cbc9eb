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
mod dispatch;
mod lanes;
mod portable;

pub(crate) use dispatch::{Kernel, dispatch};
pub(crate) use lanes::{AHEAD, LANES, Lanes, prefetch};

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
    Avx512: "avx512-vnni" in avx512;
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
                let mut narrow = [0_i8; 16];
                x.store_i8(narrow.as_mut_ptr());
                out.extend(narrow.map(f32::from));
                let acc = V::int_add(V::int_splat(7), V::int_splat(-9));
                keep(
                    V::from_int(V::dot(acc, bytes.as_ptr(), [-127, 127, 5, -128])),
                    &mut out,
                );
                keep(
                    V::from_int(V::dot_nibbles(
                        acc,
                        bytes.as_ptr(),
                        [127, 127, 127, 127],
                        [-3, 9, -127, 1],
                    )),
                    &mut out,
                );
                let signed: [i8; 64] = std::array::from_fn(|i| (i as i8).wrapping_mul(29));
                let start: [i32; 16] = std::array::from_fn(|i| i as i32 * 1000 - 7000);
                keep(
                    V::from_int(V::dot_bytes(
                        V::int_load(start.as_ptr()),
                        bytes.as_ptr(),
                        signed.as_ptr(),
                    )),
                    &mut out,
                );
                let wide: [i8; 128] = std::array::from_fn(|i| (i as i8).wrapping_mul(29).wrapping_sub(100));
                keep(
                    V::from_int(V::dot_plane(
                        V::int_load(start.as_ptr()),
                        bytes.as_ptr(),
                        wide.as_ptr(),
                    )),
                    &mut out,
                );
                for ratio in [-32512.0, 1.0, 700.0, 20_011.0, 32_512.0] {
                    let (mut low, mut high) = ([0_u8; 64], [0_u8; 64]);
                    let ratios = V::splat(ratio).add(y.round());
                    let ratios = ratios.max(V::splat(-32512.0)).min(V::splat(32512.0));
                    V::spread_nibbles(bytes.as_ptr(), ratios, low.as_mut_ptr(), high.as_mut_ptr());
                    out.extend(low.map(f32::from));
                    out.extend(high.map(f32::from));
                }
            }
            out
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
        }
        let error = Isa::named("mmx").unwrap_err().to_string();
        assert!(error.starts_with("instruction set `mmx` is none of this processor's: portable"));
    }
}
