//! Soundness: whatever sizes and lengths a kernel is given, it computes or panics; it never reaches outside
//! its slices.
//!
//! Every slice ends where a page begins that can be neither read nor written, so that one number too many
//! ends the test; before every output lie numbers that must not change.

#![cfg(unix)]
#![expect(unsafe_code, reason = "pages that cannot be read")]
#![expect(clippy::unwrap_used, reason = "a test")]

use kernels::Isa;
use kernels::decoder_attention::{Cache, CacheMut, DecoderAttention, Input, decoder_attention};
use kernels::depthwise::{DepthwiseConv, depthwise};
use kernels::feed_forward::{FeedForward, feed_forward};
use kernels::linear::{Activation, Linear, linear};
use kernels::logits::{Table, logits};
use kernels::matrix::{Matrix, Panels};
use kernels::norm::{Norm, normalise};
use kernels::parallel::{Parallel, Serial};
use kernels::planes::Planes;
use kernels::pool::Pool;
use kernels::resample::{Ring, Taps, resample};
use kernels::self_attention::{SelfAttention, self_attention};
use kernels::stem::{Depthwise, StemConv, stem};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// In `from..=to`.
    fn size(&mut self, from: usize, to: usize) -> usize {
        from + (self.next() >> 33) as usize % (to - from + 1)
    }

    /// Something else than a size: near it, or one that products wrap around with.
    fn hostile(&mut self, size: usize) -> usize {
        let choices = [
            0,
            1,
            2,
            size.wrapping_sub(1),
            size + 1,
            size + 16,
            2 * size,
            1 << 31,
            1 << 32,
            1 << 48,
            1 << 61,
            (1 << 63) / size.max(1) * 2,
            usize::MAX / size.max(1) + 1,
            usize::MAX - 15,
            usize::MAX,
        ];
        choices[self.size(0, choices.len() - 1)]
    }
}

/// Types of which any bits are a value.
trait Number: Copy {
    fn of(random: u64) -> Self;
}

impl Number for f32 {
    /// Mostly ordinary numbers, some infinite or none.
    fn of(random: u64) -> f32 {
        match random % 1009 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => -1e30,
            _ => (random >> 40) as f32 / (1 << 23) as f32 - 1.0,
        }
    }
}
impl Number for u8 {
    fn of(random: u64) -> u8 {
        (random >> 24) as u8
    }
}
impl Number for u16 {
    fn of(random: u64) -> u16 {
        (random >> 24) as u16
    }
}
impl Number for i64 {
    fn of(random: u64) -> i64 {
        match random % 4 {
            0 => random as i64,
            1 => 0,
            _ => (random >> 50) as i64,
        }
    }
}

/// What outputs hold beforehand: a NaN that no arithmetic makes.
const UNTOUCHED: u32 = 0x7fd1_2345;
/// Numbers before a slice.
const BEFORE: usize = 64;

/// A slice that ends with its page, before a page that is no memory.
struct Guarded<T> {
    start: *mut libc::c_void,
    bytes: usize,
    length: usize,
    kind: std::marker::PhantomData<T>,
}

impl<T: Number> Guarded<T> {
    fn new(length: usize) -> Guarded<T> {
        let page = 16384;
        let used = ((length + BEFORE) * size_of::<T>()).next_multiple_of(page);
        // SAFETY: new memory, of which the last page is taken away.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                used + page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            );
            assert!(start != libc::MAP_FAILED, "no memory");
            assert_eq!(
                libc::mprotect(start.wrapping_byte_add(used), page, libc::PROT_NONE),
                0
            );
            Guarded {
                start,
                bytes: used + page,
                length,
                kind: std::marker::PhantomData,
            }
        }
    }

    /// All of the memory before the guard, zeros at first.
    fn all(&mut self) -> &mut [T] {
        let numbers = (self.bytes - 16384) / size_of::<T>();
        // SAFETY: mapped, aligned, borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), numbers) }
    }

    fn slice(&mut self) -> &mut [T] {
        let length = self.length;
        let all = self.all();
        all.split_at_mut(all.len() - length).1
    }

    fn random(length: usize, random: &mut Random) -> Guarded<T> {
        let mut guarded = Guarded::new(length);
        guarded.slice().fill_with(|| T::of(random.next()));
        guarded
    }

    fn get(&self) -> &[T] {
        let numbers = (self.bytes - 16384) / size_of::<T>();
        // SAFETY: as in `all`.
        let all: &[T] = unsafe { std::slice::from_raw_parts(self.start.cast(), numbers) };
        all.split_at(numbers - self.length).1
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nothing borrows it any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

/// Sizes that are passed as such, and how long each slice must be for them.
#[derive(Debug, Clone, Default)]
struct Shape {
    sizes: Vec<usize>,
    floats: Vec<usize>,
    bytes: Vec<usize>,
    halves: Vec<usize>,
    ints: Vec<usize>,
    outputs: Vec<usize>,
}

impl Shape {
    fn lengths(&mut self) -> [&mut Vec<usize>; 5] {
        [
            &mut self.floats,
            &mut self.bytes,
            &mut self.halves,
            &mut self.ints,
            &mut self.outputs,
        ]
    }
}

/// What is read.
struct Slices {
    floats: Vec<Guarded<f32>>,
    bytes: Vec<Guarded<u8>>,
    halves: Vec<Guarded<u16>>,
    ints: Vec<Guarded<i64>>,
}

/// The numbers of an output as bits.
fn bits(guarded: &mut Guarded<f32>) -> Vec<u32> {
    guarded.all().iter().map(|x| x.to_bits()).collect()
}

type Call = dyn Fn(Isa, &dyn Parallel, &[usize], &Slices, &mut [&mut [f32]]);

/// Calls a kernel. Returns whether it came back, and if so, whether it wrote all outputs.
fn attempt(
    isa: Isa,
    parallel: &dyn Parallel,
    shape: &Shape,
    random: &mut Random,
    call: &Call,
) -> Option<bool> {
    fn all<T: Number>(lengths: &[usize], random: &mut Random) -> Vec<Guarded<T>> {
        lengths
            .iter()
            .map(|length| Guarded::random(*length, random))
            .collect()
    }
    let slices = Slices {
        floats: all(&shape.floats, random),
        bytes: all(&shape.bytes, random),
        halves: all(&shape.halves, random),
        ints: all(&shape.ints, random),
    };
    let mut outputs: Vec<Guarded<f32>> = shape.outputs.iter().map(|length| Guarded::new(*length)).collect();
    for output in &mut outputs {
        output.all().fill(f32::from_bits(UNTOUCHED));
    }
    let mut borrowed: Vec<&mut [f32]> = outputs.iter_mut().map(Guarded::slice).collect();
    EXPECTED.set(true);
    let back = catch_unwind(AssertUnwindSafe(|| {
        call(isa, parallel, &shape.sizes, &slices, &mut borrowed)
    }));
    EXPECTED.set(false);
    let mut written = true;
    for output in &mut outputs {
        let length = output.length;
        let bits = bits(output);
        let (before, inside) = bits.split_at(bits.len() - length);
        assert!(
            before.iter().all(|bits| *bits == UNTOUCHED),
            "{} wrote before an output: {shape:?}",
            isa.name()
        );
        written &= inside.iter().all(|bits| *bits != UNTOUCHED);
    }
    back.is_ok().then_some(written)
}

thread_local! {
    /// Whether a panic of this thread is none to be told.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Right shapes are computed; a slice of another length is a panic; sizes of any value do no harm.
fn hold(rounds: usize, make: &dyn Fn(&mut Random) -> Shape, call: &Call) {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let pool = std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with("kernels"));
            if !EXPECTED.get() && !pool {
                tell(panic);
            }
        }));
    });
    let pool = Pool::shared(3);
    let random = &mut Random(0x5eed);
    for round in 0..rounds {
        let right = make(random);
        for isa in Isa::available() {
            let parallel: &dyn Parallel = if round % 2 == 0 { &Serial } else { &*pool };
            assert_eq!(
                attempt(isa, parallel, &right, random, call),
                Some(true),
                "{} {right:?}",
                isa.name()
            );
            for kind in 0..5 {
                for index in 0..right.clone().lengths()[kind].len() {
                    let mut wrong = right.clone();
                    let length = &mut wrong.lengths()[kind][index];
                    let choices = [
                        0,
                        1,
                        *length / 2,
                        length.saturating_sub(1),
                        *length + 1,
                        *length + 64,
                    ];
                    let new = choices[random.size(0, choices.len() - 1)];
                    if *length == new {
                        continue;
                    }
                    *length = new;
                    let back = attempt(isa, parallel, &wrong, random, call);
                    assert_eq!(back, None, "{} took {wrong:?}", isa.name());
                }
            }
            for place in 0..=right.sizes.len() {
                let mut wrong = right.clone();
                for (i, size) in wrong.sizes.iter_mut().enumerate() {
                    if i == place || place == right.sizes.len() {
                        *size = random.hostile(*size);
                    }
                }
                // A kernel that comes back has written all of its outputs, for these sizes too.
                assert_ne!(
                    attempt(isa, parallel, &wrong, random, call),
                    Some(false),
                    "{} {wrong:?}",
                    isa.name()
                );
            }
        }
    }
}

const ROUNDS: usize = 25;

/// Lengths of a weight in its three forms, as `Panels` says.
fn weight(form: usize, outputs: usize, inputs: usize, shape: &mut Shape) {
    let panels = outputs.div_ceil(16);
    match form {
        0 => shape.floats.push(panels * inputs * 16),
        1 => {
            shape.bytes.push(panels * inputs.div_ceil(4) * 64);
            shape.floats.push(outputs);
        }
        _ => {
            shape.bytes.push(panels * inputs.div_ceil(32) * 256);
            shape.halves.push(panels * inputs.div_ceil(32) * 16);
        }
    }
}

/// The weights of a shape, taken in order.
struct Weights<'a> {
    form: usize,
    floats: std::slice::Iter<'a, Guarded<f32>>,
    bytes: std::slice::Iter<'a, Guarded<u8>>,
    halves: std::slice::Iter<'a, Guarded<u16>>,
}

impl<'a> Weights<'a> {
    /// From the float slice number `skip` on.
    fn new(form: usize, slices: &'a Slices, skip: usize) -> Weights<'a> {
        Weights {
            form,
            floats: slices.floats[skip..].iter(),
            bytes: slices.bytes.iter(),
            halves: slices.halves.iter(),
        }
    }

    fn next(&mut self, outputs: usize, inputs: usize) -> Matrix<'a> {
        let panels = match self.form {
            0 => Panels::Float32(self.floats.next().unwrap().get()),
            1 => Panels::Int8 {
                bytes: self.bytes.next().unwrap().get(),
                scales: self.floats.next().unwrap().get(),
            },
            _ => Panels::Int4 {
                nibbles: self.bytes.next().unwrap().get(),
                scales: self.halves.next().unwrap().get(),
            },
        };
        Matrix {
            outputs,
            inputs,
            panels,
        }
    }
}

#[test]
fn linear_layers() {
    for form in 0..3 {
        let make = |random: &mut Random| {
            let (rows, inputs, outputs) = (random.size(1, 40), random.size(1, 300), random.size(1, 90));
            let mut shape = Shape {
                sizes: vec![outputs, inputs],
                floats: vec![rows * inputs, inputs, inputs, outputs, rows * outputs],
                outputs: vec![rows * outputs],
                ..Shape::default()
            };
            weight(form, outputs, inputs, &mut shape);
            shape
        };
        hold(ROUNDS, &make, &move |isa, parallel, sizes, slices, outputs| {
            let floats = |i: usize| slices.floats[i].get();
            let layer = Linear {
                norm: Norm::Layer {
                    gamma: floats(1),
                    beta: floats(2),
                    epsilon: 1e-5,
                },
                weight: Weights::new(form, slices, 5).next(sizes[0], sizes[1]),
                bias: Some(floats(3)),
                activation: Activation::Gelu,
            };
            linear(isa, parallel, floats(0), &layer, Some(floats(4)), outputs[0]);
        });
    }
}

#[test]
fn feed_forward_networks() {
    for form in 0..3 {
        let make = |random: &mut Random| {
            let (rows, inputs) = (random.size(1, 200), random.size(1, 100));
            let (hidden, outputs) = (random.size(1, 300), random.size(1, 70));
            let mut shape = Shape {
                sizes: vec![hidden, inputs, outputs, hidden, hidden, inputs],
                floats: vec![rows * inputs, inputs, hidden, outputs, rows * outputs],
                outputs: vec![rows * outputs],
                ..Shape::default()
            };
            weight(form, hidden, inputs, &mut shape);
            weight(form, hidden, inputs, &mut shape);
            weight(form, outputs, hidden, &mut shape);
            shape
        };
        hold(ROUNDS, &make, &move |isa, parallel, sizes, slices, outputs| {
            let floats = |i: usize| slices.floats[i].get();
            let mut weights = Weights::new(form, slices, 5);
            let ff = FeedForward {
                norm: Norm::Rms {
                    gamma: floats(1),
                    epsilon: 1e-6,
                },
                gate: Some(weights.next(sizes[4], sizes[5])),
                up: weights.next(sizes[0], sizes[1]),
                up_bias: Some(floats(2)),
                down: weights.next(sizes[2], sizes[3]),
                down_bias: Some(floats(3)),
            };
            feed_forward(isa, parallel, floats(0), &ff, Some(floats(4)), outputs[0]);
        });
    }
}

#[test]
fn norms() {
    let make = |random: &mut Random| {
        let (rows, channels) = (random.size(1, 70), random.size(1, 200));
        Shape {
            sizes: vec![channels],
            floats: vec![rows * channels, channels, channels],
            outputs: vec![rows * channels],
            ..Shape::default()
        }
    };
    hold(ROUNDS, &make, &|isa, parallel, sizes, slices, outputs| {
        let norm = Norm::Layer {
            gamma: slices.floats[1].get(),
            beta: slices.floats[2].get(),
            epsilon: 1e-5,
        };
        normalise(isa, parallel, slices.floats[0].get(), sizes[0], &norm, outputs[0]);
    });
}

#[test]
fn logits_of_tables() {
    for form in 0..3 {
        let make = |random: &mut Random| {
            let (rows, inputs, entries) = (random.size(1, 17), random.size(1, 300), random.size(1, 900));
            let mut shape = Shape {
                sizes: vec![inputs, entries],
                floats: vec![rows * inputs],
                outputs: vec![rows * entries],
                ..Shape::default()
            };
            match form {
                0 => shape.floats.push(entries * inputs),
                1 => shape.bytes.push(entries * inputs),
                _ => shape.bytes.extend([entries * inputs.div_ceil(128) * 64; 2]),
            }
            if form > 0 {
                shape.floats.push(entries);
            }
            shape
        };
        hold(ROUNDS, &make, &move |isa, parallel, sizes, slices, outputs| {
            let (floats, bytes) = (
                |i: usize| slices.floats[i].get(),
                |i: usize| slices.bytes[i].get(),
            );
            let table = match form {
                0 => Table::Float32(floats(1)),
                1 => Table::Int8 {
                    bytes: bytes(0),
                    scales: floats(1),
                },
                _ => Table::Planes(Planes {
                    high: bytes(0),
                    low: bytes(1),
                    scales: floats(1),
                }),
            };
            logits(isa, parallel, floats(0), sizes[0], table, sizes[1], outputs[0]);
        });
    }
}

/// A row of a table has no shape to be held to: any row of any width is written or is none.
#[test]
fn rows_of_tables() {
    let random = &mut Random(7);
    for _ in 0..2000 {
        let (inputs, entries) = (random.size(1, 300), random.size(1, 9));
        let bytes = Guarded::<u8>::random(entries * inputs.div_ceil(128) * 64, random);
        let (bytes, low) = (bytes.get(), bytes.get());
        let scales = Guarded::<f32>::random(entries, random);
        let scales = scales.get();
        let floats = Guarded::<f32>::random(entries * inputs, random);
        let mut out = Guarded::<f32>::new(random.size(0, 400));
        let entry = if random.size(0, 1) == 0 {
            random.size(0, 2 * entries)
        } else {
            random.hostile(entries)
        };
        for table in [
            Table::Float32(floats.get()),
            Table::Int8 { bytes, scales },
            Table::Planes(Planes {
                high: bytes,
                low,
                scales,
            }),
        ] {
            out.all().fill(f32::from_bits(UNTOUCHED));
            let found = table.row(entry, out.slice());
            let written = out.get().iter().all(|x| x.to_bits() != UNTOUCHED);
            assert!(written || found.is_none(), "row {entry} of {entries}");
            let length = out.length;
            let bits = bits(&mut out);
            assert!(bits[..bits.len() - length].iter().all(|bits| *bits == UNTOUCHED));
        }
    }
}

#[test]
fn resampled_rows() {
    const MARK: u8 = 0xa5;
    let random = &mut Random(21);
    for round in 0..4 * ROUNDS {
        let (length, depth, count) = (random.size(1, 120), random.size(1, 20), random.size(1, 5));
        let mut maybe = |size: usize| match random.size(0, 5) {
            0 => random.hostile(size),
            _ => size,
        };
        let (given, first, wanted) = (maybe(length), maybe(depth), maybe(depth));
        let beside = maybe(length).min(4 * length);
        let bits = [0, 1, 22, 31, 32, u32::MAX][random.size(0, 5).min(2 + round % 4)];
        let bytes = Guarded::<u8>::random(length * depth, random);
        let beside = Guarded::<u8>::random(beside, random);
        let weights: Vec<i32> = (0..wanted.min(depth + 2))
            .map(|_| random.next() as i32 >> 12)
            .collect();
        let taps = vec![
            Taps {
                first,
                weights: &weights,
                margin: random.next() as i32 >> 12,
            };
            count
        ];
        let mut out = Guarded::<u8>::new(count * length);
        out.all().fill(MARK);
        for isa in Isa::available() {
            let ring = Ring {
                bytes: bytes.get(),
                length: given,
            };
            // A panic is an answer too.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                resample(isa, ring, beside.get(), &taps, bits, out.slice());
            }));
            let before = out.all().len() - out.length;
            assert!(out.all()[..before].iter().all(|byte| *byte == MARK));
        }
    }
}

#[test]
fn attention_of_images() {
    let make = |random: &mut Random| {
        let (batch, tokens) = (random.size(1, 2), random.size(1, 70));
        let (heads, head_dim) = (random.size(1, 3), random.size(1, 70));
        Shape {
            sizes: vec![batch, tokens, heads, head_dim],
            floats: vec![batch * tokens * 3 * heads * head_dim],
            outputs: vec![batch * tokens * heads * head_dim],
            ..Shape::default()
        }
    };
    hold(ROUNDS, &make, &|isa, parallel, sizes, slices, outputs| {
        let shape = SelfAttention {
            batch: sizes[0],
            tokens: sizes[1],
            heads: sizes[2],
            head_dim: sizes[3],
            scale: 0.3,
            words: sizes[1] % 2 == 0,
        };
        self_attention(isa, parallel, &shape, slices.floats[0].get(), outputs[0]);
    });
}

#[test]
fn attention_of_decoders() {
    attention_with_cache(true);
}

#[test]
fn attention_of_decoders_in_place() {
    attention_with_cache(false);
}

/// With a cache that is carried over, or one that grows where it lies.
fn attention_with_cache(carried: bool) {
    let make = |random: &mut Random| {
        let (batch, new, past) = (random.size(1, 9), random.size(1, 40), random.size(0, 300));
        let new = if random.size(0, 1) == 0 { 1 } else { new };
        let (kv_heads, group) = (random.size(1, 2), random.size(1, 9));
        let (heads, d) = (kv_heads * group, 2 * random.size(1, 35));
        let total = past + new;
        let slots = total + random.size(0, 3);
        let present = batch * kv_heads * slots * d;
        let mut floats = vec![batch * new * (heads + 2 * kv_heads) * d, d / 2];
        if carried {
            floats.extend([batch * kv_heads * past * d; 2]);
        }
        Shape {
            sizes: vec![batch, new, past, heads, kv_heads, d, slots],
            floats,
            ints: vec![batch * total, batch * new],
            outputs: vec![batch * new * heads * d, present, present],
            ..Shape::default()
        }
    };
    hold(ROUNDS, &make, &move |isa, parallel, sizes, slices, outputs| {
        let floats = |i: usize| slices.floats[i].get();
        let shape = DecoderAttention {
            batch: sizes[0],
            new: sizes[1],
            past: sizes[2],
            heads: sizes[3],
            kv_heads: sizes[4],
            head_dim: sizes[5],
            slots: sizes[6],
            scale: 0.3,
        };
        let input = Input {
            qkv: floats(0),
            past: carried.then(|| Cache {
                key: floats(2),
                value: floats(3),
            }),
            mask: slices.ints[0].get(),
            positions: slices.ints[1].get(),
            inv_freq: floats(1),
        };
        let [out, key, value] = outputs else {
            unreachable!()
        };
        if !carried {
            // What it had: a number of nothing would go on into the output.
            key.fill(0.5);
            value.fill(0.5);
        }
        decoder_attention(isa, parallel, &shape, &input, out, CacheMut { key, value });
        // Nothing is behind the new.
        for cache in [key, value] {
            for head in cache.chunks_exact_mut(shape.slots * shape.head_dim) {
                head[shape.total() * shape.head_dim..].fill(0.0);
            }
        }
    });
}

#[test]
fn depthwise_convolutions() {
    let make = |random: &mut Random| {
        let (batch, height, width) = (random.size(1, 2), random.size(1, 24), random.size(1, 24));
        let (channels, multiplier) = (random.size(1, 150), random.size(1, 3));
        let (kernel_size, stride) = (2 * random.size(0, 3) + 1, random.size(1, 4));
        // Half of the time what has a way of its own: whole vectors of channels, nine taps.
        let (channels, multiplier, kernel_size, stride) = if random.size(0, 1) == 0 {
            (channels.div_ceil(16) * 16, 1, 3, 1)
        } else {
            (channels, multiplier, kernel_size, stride)
        };
        let outputs = channels * multiplier;
        Shape {
            sizes: vec![batch, height, width, channels, multiplier, kernel_size, stride],
            floats: vec![
                batch * height * width * channels,
                kernel_size * kernel_size * outputs,
                outputs,
            ],
            outputs: vec![batch * height.div_ceil(stride) * width.div_ceil(stride) * outputs],
            ..Shape::default()
        }
    };
    hold(ROUNDS, &make, &|isa, parallel, sizes, slices, outputs| {
        let conv = DepthwiseConv {
            batch: sizes[0],
            height: sizes[1],
            width: sizes[2],
            channels: sizes[3],
            multiplier: sizes[4],
            kernel_size: sizes[5],
            stride: sizes[6],
            kernel: slices.floats[1].get(),
            bias: slices.floats[2].get(),
            gelu: sizes[1].is_multiple_of(2),
        };
        depthwise(isa, parallel, &conv, slices.floats[0].get(), outputs[0]);
    });
}

#[test]
fn stems() {
    let make = |random: &mut Random| {
        let (batch, planes) = (random.size(1, 2), random.size(1, 4));
        let (height, width, channels) = (random.size(1, 40), random.size(1, 40), random.size(1, 60));
        let (kernel, stride) = (2 * random.size(0, 2) + 1, random.size(1, 3));
        let (size, step) = (2 * random.size(0, 2) + 1, random.size(1, 3));
        let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
        Shape {
            sizes: vec![batch, planes, height, width, channels, kernel, stride, size, step],
            floats: vec![
                batch * planes * height * width,
                kernel * kernel * planes * channels,
                channels,
                size * size * channels,
                channels,
            ],
            outputs: vec![batch * rows.div_ceil(step) * columns.div_ceil(step) * channels],
            ..Shape::default()
        }
    };
    hold(ROUNDS, &make, &|isa, parallel, sizes, slices, outputs| {
        let floats = |i: usize| slices.floats[i].get();
        let first = StemConv {
            batch: sizes[0],
            planes: sizes[1],
            height: sizes[2],
            width: sizes[3],
            channels: sizes[4],
            kernel_size: sizes[5],
            stride: sizes[6],
            kernel: floats(1),
            bias: floats(2),
        };
        let then = Depthwise {
            kernel_size: sizes[7],
            stride: sizes[8],
            kernel: floats(3),
            bias: floats(4),
        };
        stem(isa, parallel, &first, &then, floats(0), outputs[0]);
    });
}

/// A child of `fork` has none of a pool's threads, and waits for none of them.
#[test]
fn a_pool_is_dropped_in_a_child_of_fork() {
    let pool = Pool::shared(3);
    assert_eq!(pool.threads(), 3);
    // SAFETY: the child drops the pool and ends; a signal ends it where it waits.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(30);
            drop(pool);
            libc::_exit(7);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7,
            "{status}"
        );
    }
}
