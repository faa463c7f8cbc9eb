//! How fast is each kernel on each instruction set? At the shapes of FastVLM-0.5B, image of 1024 x 1024, prompt
//! of 286 positions.
//!
//! `cargo bench -p fvlm-kernels -- [--isa NAME].. [--form fp32|int8|q4].. [--ms N] [FILTER]..`
//!
//! One thread, and where the system says it, the time that it computed: while other programs have the core no
//! time passes. Of many repetitions the fastest counts. A line has a kernel's time, its multiplications and additions per second, and how often the model calls it; a phase's
//! sum has each kernel's time as often. `q4` in the encoder is bytes, as in a bundle. A filter is a part of a
//! line's name, such as `decode`, `encode ffn` or `q4`.

#![expect(clippy::print_stdout, reason = "what a benchmark finds is what it prints")]
#![cfg_attr(unix, expect(unsafe_code, reason = "the clock of a thread is libc's"))]

use half::f16;
use kernels::Isa;
use kernels::decoder_attention::{CacheMut, DecoderAttention, Input, decoder_attention};
use kernels::depthwise::{DepthwiseConv, depthwise};
use kernels::feed_forward::{FeedForward, feed_forward};
use kernels::linear::{Activation, Linear, linear};
use kernels::logits::{Table, logits};
use kernels::matrix::{Matrix, Panels};
use kernels::norm::Norm;
use kernels::parallel::Serial;
use kernels::planes::Planes;
use kernels::self_attention::{SelfAttention, self_attention};
use kernels::stem::{Depthwise, StemConv, stem};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Outputs of a panel.
const PANEL: usize = kernels::layout::PANEL;
/// Positions of the prompt, and slots of the cache while decoding.
const PROMPT: usize = 286;
/// The decoder: width, hidden numbers, query heads, key heads, their length, layers, tokens.
const WIDTH: usize = 896;
const HIDDEN: usize = 4864;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD: usize = 64;
const LAYERS: usize = 24;
const TOKENS: usize = 151_936;

/// A kernel's input and output, of each so many that none is in a cache when its turn comes: in a network other
/// kernels ran meanwhile.
struct InTurns {
    sets: Vec<[Vec<f32>; 2]>,
    next: usize,
}

impl InTurns {
    /// More numbers than caches have.
    const COLD: usize = 24 << 20;

    fn new(x: &[f32], outputs: usize) -> Self {
        let copies = 1 + Self::COLD / (x.len() + outputs);
        InTurns {
            sets: vec![[x.to_vec(), vec![0.0; outputs]]; copies],
            next: 0,
        }
    }

    fn both(&mut self) -> &mut [Vec<f32>; 2] {
        self.next = (self.next + 1) % self.sets.len();
        &mut self.sets[self.next]
    }

    fn turn(&mut self) -> (&[f32], &mut [f32]) {
        let [x, out] = self.both();
        (x, out)
    }
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Fp32,
    Int8,
    Q4,
}

impl Form {
    const ALL: [Form; 3] = [Form::Fp32, Form::Int8, Form::Q4];

    fn name(self) -> &'static str {
        match self {
            Form::Fp32 => "fp32",
            Form::Int8 => "int8",
            Form::Q4 => "q4",
        }
    }

    /// What the encoder has in a bundle of this precision.
    fn of_encoder(self) -> Form {
        if self == Form::Q4 { Form::Int8 } else { self }
    }
}

/// Numbers in -1..1 that look random.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn floats(&mut self, length: usize) -> Vec<f32> {
        let next = |_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..length).map(next).collect()
    }

    /// Bytes in `least..=255`.
    fn bytes(&mut self, length: usize, least: u8) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
        while bytes.len() < length {
            bytes.extend(self.bits().to_le_bytes().map(|byte| byte.max(least)));
        }
        bytes.truncate(length);
        bytes
    }
}

/// The numbers of a matrix.
struct Weight {
    outputs: usize,
    inputs: usize,
    form: Form,
    floats: Vec<f32>,
    bytes: Vec<u8>,
    halves: Vec<u16>,
}

impl Weight {
    fn new(noise: &mut Noise, form: Form, outputs: usize, inputs: usize) -> Weight {
        let panels = outputs.div_ceil(PANEL);
        let (mut floats, mut bytes, mut halves) = (Vec::new(), Vec::new(), Vec::new());
        match form {
            Form::Fp32 => floats = noise.floats(panels * inputs * PANEL),
            Form::Int8 => {
                // As they are exported: never -128.
                bytes = noise.bytes(panels * inputs.div_ceil(4) * 4 * PANEL, 1);
                floats = vec![0.01; outputs];
            }
            Form::Q4 => {
                let blocks = inputs.div_ceil(kernels::layout::BLOCK);
                bytes = noise.bytes(panels * blocks * 256, 0);
                halves = vec![f16::from_f32(0.01).to_bits(); panels * blocks * PANEL];
            }
        }
        Weight {
            outputs,
            inputs,
            form,
            floats,
            bytes,
            halves,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix {
            outputs: self.outputs,
            inputs: self.inputs,
            panels: match self.form {
                Form::Fp32 => Panels::Float32(&self.floats),
                Form::Int8 => Panels::Int8 {
                    bytes: &self.bytes,
                    scales: &self.floats,
                },
                Form::Q4 => Panels::Int4 {
                    nibbles: &self.bytes,
                    scales: &self.halves,
                },
            },
        }
    }
}

/// The time that this thread has computed.
#[cfg(unix)]
fn clock() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes one `timespec`; on failure that stays as it is.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let part = |number: i64| number.try_into().unwrap_or(0);
    Duration::new(part(time.tv_sec), part(time.tv_nsec) as u32)
}

/// The time since the first call.
#[cfg(not(unix))]
fn clock() -> Duration {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

/// What is measured, and the sums of the phase that is being measured.
struct Bench {
    sets: Vec<Isa>,
    filters: Vec<String>,
    forms: Vec<Form>,
    least: Duration,
    phase: &'static str,
    /// Of each set: seconds of a phase.
    sums: Vec<f64>,
    /// Whether all kernels of the phase were measured.
    whole: bool,
}

impl Bench {
    fn begin(&mut self, phase: &'static str) {
        self.phase = phase;
        self.sums = vec![0.0; self.sets.len()];
        self.whole = true;
    }

    /// The sum of a phase that was measured whole.
    fn end(&self, form: Form) {
        for (isa, sum) in self.sets.iter().zip(&self.sums).filter(|_| self.whole) {
            println!(
                "{:<44} {:<12} {:>9.1} ms",
                format!("{} {} IN ALL", self.phase, form.name()),
                isa.name(),
                sum * 1e3
            );
        }
    }

    /// Whether a filter lets it through; `of` is a form's name, or nothing.
    fn wants(&mut self, kernel: &str, of: &str) -> bool {
        let name = format!("{} {kernel} {of}", self.phase);
        let wanted = self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter));
        self.whole &= wanted;
        wanted
    }

    /// Measures a kernel that the model calls `times` times, and that multiplies and adds `products` times.
    fn measure(&mut self, kernel: &str, of: &str, times: usize, products: usize, mut run: impl FnMut(Isa)) {
        for (isa, sum) in self.sets.iter().zip(&mut self.sums) {
            let mut best = Duration::MAX;
            let (begun, mut count) = (Instant::now(), 0);
            while count < 3 || begun.elapsed() < self.least {
                let start = clock();
                run(*isa);
                best = best.min(clock().saturating_sub(start));
                count += 1;
            }
            let seconds = best.as_secs_f64();
            *sum += seconds * times as f64;
            println!(
                "{:<44} {:<12} {:>9.1} us {:>8.1} GOP/s x {times}",
                format!("{} {kernel} {of}", self.phase),
                isa.name(),
                seconds * 1e6,
                2.0 * products as f64 / seconds / 1e9,
            );
        }
    }

    /// A product of rows.
    #[expect(clippy::too_many_arguments, reason = "a line of the table each")]
    fn linear(
        &mut self,
        name: &str,
        form: Form,
        times: usize,
        rows: usize,
        inputs: usize,
        outputs: usize,
        activation: Activation,
    ) {
        let name = format!("linear {name} {rows}x{inputs}x{outputs}");
        if !self.wants(&name, form.name()) {
            return;
        }
        let mut noise = Noise(1);
        let weight = Weight::new(&mut noise, form, outputs, inputs);
        let (x, bias) = (noise.floats(rows * inputs), noise.floats(outputs));
        let mut out = vec![0.0; rows * outputs];
        let layer = Linear {
            norm: Norm::None,
            weight: weight.matrix(),
            bias: Some(&bias),
            activation,
        };
        self.measure(&name, form.name(), times, rows * inputs * outputs, |isa| {
            linear(isa, &Serial, black_box(&x), &layer, None, &mut out);
            black_box(&mut out);
        });
    }

    /// A feed-forward network over rows.
    fn feed_forward(&mut self, form: Form, times: usize, rows: usize, sizes: [usize; 2], gated: bool) {
        let [width, hidden] = sizes;
        let name = format!("ffn {rows}x{width}x{hidden}");
        if !self.wants(&name, form.name()) {
            return;
        }
        let mut noise = Noise(2);
        let gate = Weight::new(&mut noise, form, hidden, width);
        let up = Weight::new(&mut noise, form, hidden, width);
        let down = Weight::new(&mut noise, form, width, hidden);
        let (x, residual) = (noise.floats(rows * width), noise.floats(rows * width));
        let (bias, gamma) = (noise.floats(hidden), noise.floats(width));
        let mut turns = InTurns::new(&x, rows * width);
        let block = FeedForward {
            norm: if gated {
                Norm::Rms {
                    gamma: &gamma,
                    epsilon: 1e-6,
                }
            } else {
                Norm::None
            },
            gate: gated.then(|| gate.matrix()),
            up: up.matrix(),
            up_bias: (!gated).then_some(&bias),
            down: down.matrix(),
            down_bias: (!gated).then_some(&gamma),
        };
        let products = rows * width * hidden * if gated { 3 } else { 2 };
        self.measure(&name, form.name(), times, products, |isa| {
            let (x, out) = turns.turn();
            feed_forward(isa, &Serial, black_box(x), &block, Some(&residual), out);
            black_box(out);
        });
    }

    /// A depthwise convolution of a square.
    fn depthwise(&mut self, times: usize, side: usize, channels: usize, kernel_size: usize, wider: bool) {
        let name = format!("depthwise {kernel_size} {side}x{side}x{channels}");
        if !self.wants(&name, "") {
            return;
        }
        let mut noise = Noise(3);
        let (stride, multiplier) = if wider { (2, 2) } else { (1, 1) };
        let outputs = channels * multiplier;
        let (kernel, bias) = (
            noise.floats(kernel_size * kernel_size * outputs),
            noise.floats(outputs),
        );
        let x = noise.floats(side * side * channels);
        let mut turns = InTurns::new(&x, side * side / stride / stride * outputs);
        let conv = DepthwiseConv {
            batch: 1,
            height: side,
            width: side,
            channels,
            multiplier,
            kernel_size,
            stride,
            kernel: &kernel,
            bias: &bias,
            gelu: false,
        };
        let products = side * side / stride / stride * outputs * kernel_size * kernel_size;
        self.measure(&name, "", times, products, |isa| {
            let (x, out) = turns.turn();
            depthwise(isa, &Serial, &conv, black_box(x), out);
            black_box(out);
        });
    }

    fn stem(&mut self) {
        let (side, channels) = (1024, 96);
        let name = format!("stem {side}x{side}x{channels}");
        if !self.wants(&name, "") {
            return;
        }
        let mut noise = Noise(4);
        let (kernel, second) = (noise.floats(27 * channels), noise.floats(9 * channels));
        let (bias, x) = (noise.floats(channels), noise.floats(3 * side * side));
        let mut out = vec![0.0; side * side / 16 * channels];
        let conv = StemConv {
            batch: 1,
            planes: 3,
            height: side,
            width: side,
            channels,
            kernel_size: 3,
            stride: 2,
            kernel: &kernel,
            bias: &bias,
        };
        let then = Depthwise {
            kernel_size: 3,
            stride: 2,
            kernel: &second,
            bias: &bias,
        };
        let products = out.len() * (4 * 27 + 9);
        self.measure(&name, "", 1, products, |isa| {
            stem(isa, &Serial, &conv, &then, black_box(&x), &mut out);
            black_box(&mut out);
        });
    }

    fn self_attention(&mut self, times: usize, tokens: usize, heads: usize) {
        let head_dim = 32;
        let name = format!("attention {tokens}x{heads}x{head_dim}");
        if !self.wants(&name, "") {
            return;
        }
        let qkv = Noise(5).floats(tokens * 3 * heads * head_dim);
        let mut out = vec![0.0; tokens * heads * head_dim];
        let shape = SelfAttention {
            batch: 1,
            tokens,
            heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            words: true,
        };
        self.measure(&name, "", times, 2 * tokens * tokens * heads * head_dim, |isa| {
            self_attention(isa, &Serial, &shape, black_box(&qkv), &mut out);
            black_box(&mut out);
        });
    }

    fn decoder_attention(&mut self, new: usize, past: usize) {
        let name = format!("attention {new} after {past}");
        if !self.wants(&name, "") {
            return;
        }
        let mut noise = Noise(6);
        let total = past + new;
        let qkv = noise.floats(new * (HEADS + 2 * KV_HEADS) * HEAD);
        let mask = vec![1; total];
        let positions: Vec<i64> = (past as i64..total as i64).collect();
        let inv_freq: Vec<f32> = (0..HEAD / 2).map(|i| 1e6_f32.powf(i as f32 / -32.0)).collect();
        let mut out = vec![0.0; new * HEADS * HEAD];
        let mut cache = InTurns::new(&noise.floats(KV_HEADS * total * HEAD), KV_HEADS * total * HEAD);
        let shape = DecoderAttention {
            batch: 1,
            new,
            past,
            slots: total,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD,
            scale: 0.125,
        };
        let input = Input {
            qkv: &qkv,
            past: None,
            mask: &mask,
            positions: &positions,
            inv_freq: &inv_freq,
        };
        let products = new * HEADS * HEAD * (2 * past + new);
        self.measure(&name, "", LAYERS, products, |isa| {
            let [key, value] = cache.both();
            let present = CacheMut { key, value };
            decoder_attention(isa, &Serial, &shape, black_box(&input), &mut out, present);
            black_box(&mut out);
        });
    }

    fn logits(&mut self, form: Form, rows: usize) {
        let name = format!("logits {rows}x{WIDTH}x{TOKENS}");
        if !self.wants(&name, form.name()) {
            return;
        }
        let mut noise = Noise(7);
        let x = noise.floats(rows * WIDTH);
        let mut out = vec![0.0; rows * TOKENS];
        let half = TOKENS * WIDTH.div_ceil(128) * 64;
        let scales = vec![0.01; TOKENS];
        let (mut floats, mut bytes, mut low) = (Vec::new(), Vec::new(), Vec::new());
        match form {
            Form::Fp32 => floats = noise.floats(TOKENS * WIDTH),
            Form::Int8 => bytes = noise.bytes(TOKENS * WIDTH, 1),
            Form::Q4 => {
                bytes = noise.bytes(half, 0);
                low = noise.bytes(half, 0);
            }
        }
        let table = match form {
            Form::Fp32 => Table::Float32(&floats),
            Form::Int8 => Table::Int8 {
                bytes: &bytes,
                scales: &scales,
            },
            Form::Q4 => Table::Planes(Planes {
                high: &bytes,
                low: &low,
                scales: &scales,
            }),
        };
        self.measure(&name, form.name(), 1, rows * WIDTH * TOKENS, |isa| {
            logits(isa, &Serial, black_box(&x), WIDTH, table, TOKENS, &mut out);
            black_box(&mut out);
        });
    }

    /// One call of the image encoder, without its last few small products.
    fn encoder(&mut self, precision: Form) {
        let form = precision.of_encoder();
        self.begin("encode");
        self.stem();
        self.linear("stem", form, 4, 16_384, 96, 96, Activation::Gelu);
        for (side, width, blocks) in [(256, 96, 2), (128, 192, 12), (64, 384, 24)] {
            if width > 96 {
                self.depthwise(1, 2 * side, width / 2, 7, true);
                self.linear("down", form, 1, side * side, width, width, Activation::Gelu);
            }
            self.depthwise(blocks, side, width, 3, false);
            self.depthwise(blocks, side, width, 7, false);
            // The largest stage in quarters, so that a repetition is short.
            let parts = if side == 256 { 4 } else { 1 };
            self.feed_forward(
                form,
                blocks * parts,
                side * side / parts,
                [width, 4 * width],
                false,
            );
        }
        for (side, width, blocks) in [(32, 768, 4), (16, 1536, 2)] {
            self.depthwise(1, 2 * side, width / 2, 7, true);
            self.linear("down", form, 1, side * side, width, width, Activation::Gelu);
            self.depthwise(blocks + 1, side, width, 7, false);
            self.linear(
                "qkv",
                form,
                blocks,
                side * side,
                width,
                3 * width,
                Activation::None,
            );
            self.self_attention(blocks, side * side, width / 32);
            self.linear("proj", form, blocks, side * side, width, width, Activation::None);
            self.feed_forward(form, blocks, side * side, [width, 4 * width], false);
        }
        self.linear("projector", form, 1, 256, 3072, WIDTH, Activation::Gelu);
        self.linear("projector", form, 1, 256, WIDTH, WIDTH, Activation::None);
        self.end(precision);
    }

    /// One call of the decoder for `rows` positions; each of `sequences` has its own cache.
    fn decoder(&mut self, form: Form, phase: &'static str, rows: usize, past: usize) {
        self.begin(phase);
        let qkv = (HEADS + 2 * KV_HEADS) * HEAD;
        self.linear("qkv", form, LAYERS, rows, WIDTH, qkv, Activation::None);
        if past == 0 {
            self.decoder_attention(rows, 0);
        } else if rows == 1 {
            self.decoder_attention(1, past);
        }
        self.linear("out", form, LAYERS, rows, WIDTH, WIDTH, Activation::None);
        self.feed_forward(form, LAYERS, rows, [WIDTH, HIDDEN], true);
        self.logits(form, if past == 0 { 1 } else { rows });
        self.end(form);
    }
}

fn main() -> ExitCode {
    let mut bench = Bench {
        sets: Vec::new(),
        filters: Vec::new(),
        forms: Vec::new(),
        least: Duration::from_millis(300),
        phase: "",
        sums: Vec::new(),
        whole: true,
    };
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_none() {
        println!(
            "nothing is measured: `cargo bench -p fvlm-kernels`, or arguments, of which FILTER `` is all"
        );
        return ExitCode::SUCCESS;
    }
    while let Some(argument) = arguments.next() {
        let problem = match argument.as_str() {
            // What cargo adds.
            "--bench" => None,
            "--isa" => match Isa::named(&arguments.next().unwrap_or_default()) {
                Ok(isa) => {
                    bench.sets.push(isa);
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            "--form" => {
                let name = arguments.next().unwrap_or_default();
                let form = Form::ALL.into_iter().find(|form| form.name() == name);
                bench.forms.extend(form);
                form.is_none()
                    .then(|| format!("--form is `{name}`, expected fp32, int8 or q4"))
            }
            "--ms" => {
                let found = arguments.next().unwrap_or_default();
                let least = found.parse().map(Duration::from_millis);
                bench.least = least.clone().unwrap_or(bench.least);
                least
                    .err()
                    .map(|error| format!("--ms is `{found}`, expected milliseconds: {error}"))
            }
            flag if flag.starts_with('-') => Some(format!("there is no {flag}")),
            _ => {
                bench.filters.push(argument);
                None
            }
        };
        if let Some(problem) = problem {
            println!("error: {problem}");
            return ExitCode::from(2);
        }
    }
    if bench.sets.is_empty() {
        bench.sets = Isa::available();
    }
    if bench.forms.is_empty() {
        bench.forms = Form::ALL.to_vec();
    }
    for form in bench.forms.clone() {
        if form != Form::Q4 || !bench.forms.contains(&Form::Int8) {
            bench.encoder(form);
        }
        bench.decoder(form, "prefill", PROMPT, 0);
        bench.decoder(form, "decode", 1, PROMPT);
        bench.decoder(form, "decode of 8", 8, PROMPT);
    }
    ExitCode::SUCCESS
}
