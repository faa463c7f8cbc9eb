//! Dispatch: how does a generic function come to be compiled for an instruction set?
//!
//! Instructions beyond the target's own are compiled only inside a function that says so
//! (`#[target_feature]`). Each set has one such function, `run`, generic over a [`Kernel`]; everything a
//! kernel does is `#[inline(always)]` and so becomes part of it.
//!
//! No closures around vectors, therefore: a closure cannot be told to be inlined, and one that is not is
//! compiled without the set.

use super::Lanes;

/// A call that is compiled for every set.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;

    /// The call itself; an implementation is `#[inline(always)]`.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn run<V: Lanes>(self) -> Self::Out;
}

/// Calls `$body::<V>($args)`, compiled for the set that `$isa` stands for.
///
/// `$body` is an `#[inline(always)] unsafe fn` generic over [`Lanes`] that takes exactly the given arguments.
/// That the processor has the set is what an `Isa` says; whatever else `$body` asks for, the place of the
/// call must see to.
macro_rules! dispatch {
    (@out) => { () };
    (@out $out:ty) => { $out };
    ($isa:expr, $body:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)?) => {{
        struct Call<T>(T);
        impl $crate::isa::Kernel for Call<($($type,)*)> {
            type Out = $crate::isa::dispatch!(@out $($out)?);
            #[inline(always)]
            unsafe fn run<V: $crate::isa::Lanes>(self) -> Self::Out {
                let ($($arg,)*) = self.0;
                // SAFETY: the set by this function's promise, everything else by the place of the call.
                unsafe { $body::<V>($($arg),*) }
            }
        }
        // Coerced and reborrowed, as in a call.
        $(let $arg: $type = $arg;)*
        $isa.run(Call(($($arg,)*)))
    }};
}
pub(crate) use dispatch;

/// A set's features, once: `detected`, whether the processor has them, and `run`, compiled for them.
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    )),
    expect(unused_macros, reason = "the portable set has no features")
)]
macro_rules! features {
    ($lanes:ty, $detect:ident: $($feature:tt),*) => {
        /// Whether this processor has the set.
        pub(super) fn detected() -> bool {
            $(std::arch::$detect!($feature))&&*
        }

        /// Runs a kernel that is compiled for the set.
        ///
        /// # Safety
        /// The processor has the set.
        $(#[target_feature(enable = $feature)])*
        pub(super) unsafe fn run<K: $crate::isa::Kernel>(kernel: K) -> K::Out {
            // SAFETY: this function is compiled for the set, and by its promise the processor has it.
            unsafe { kernel.run::<$lanes>() }
        }
    };
}
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
pub(super) use features;
