//! JPEG's samples become RGB: components are brought to full size as libjpeg does ("fancy upsampling"), then
//! converted with its constants of 16 bits.

use super::header::{Component, Frame};
use super::idct::{self, Plane};
use super::scan::Block;
use crate::image::threads;

/// Rows of the result that are worth a thread.
const ROWS_PER_THREAD: usize = 128;

/// What the components of an image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum ColorSpace {
    Gray,
    Rgb,
    /// Luminance and colour differences (YCbCr).
    Ycc,
    /// Inks, inverted as Adobe writes them.
    Cmyk,
    /// The same, the first three as luminance and colour differences.
    Ycck,
}

impl ColorSpace {
    pub(super) fn components(self) -> usize {
        match self {
            ColorSpace::Gray => 1,
            ColorSpace::Rgb | ColorSpace::Ycc => 3,
            ColorSpace::Cmyk | ColorSpace::Ycck => 4,
        }
    }
}

/// How many threads make pixels of an image.
pub(super) fn threads(frame: &Frame) -> usize {
    threads::cores()
        .min((frame.mcus.1 * 8 * frame.most.1).div_ceil(ROWS_PER_THREAD))
        .max(1)
}

/// `[height, width, 3]`, of all coefficients; threads share the rows of MCUs.
pub(super) fn rgb(frame: &Frame, stores: &[Vec<Block>], space: ColorSpace) -> Vec<u8> {
    let mut pixels = Rows::pixels(frame);
    let length = frame.mcus.1.div_ceil(threads(frame));
    let run = |first: usize, pixels: &mut [u8]| {
        let mut painter = Painter::new(frame, space, None, pixels);
        painter.first = first;
        // One row of MCUs more above and below.
        let end = (first + length + 1).min(frame.mcus.1);
        for row in first.saturating_sub(1)..end {
            painter.paint(row, |place| {
                let component = &frame.components[place];
                let blocks = component.across * component.vertical;
                &stores[place][row * blocks..(row + 1) * blocks]
            });
        }
        painter.finish(end);
    };
    let bytes = pixels.len() / usize::try_from(frame.height).unwrap_or(usize::MAX).max(1);
    let shares = pixels.chunks_mut(length * 8 * frame.most.1 * bytes).enumerate();
    threads::share(shares, |(index, pixels)| run(index * length, pixels));
    pixels
}

/// Makes pixels of rows of MCUs, or of rows of blocks of a lone component: of each when the next one is
/// there.
pub(super) struct Painter<'a> {
    rows: Rows,
    frame: &'a Frame,
    /// Rows of blocks in a row, where that is not as the component's factors say.
    blocks: Option<usize>,
    /// Rows of pixels in a row.
    height: usize,
    /// The first row that becomes pixels.
    first: usize,
    out: std::slice::ChunksMut<'a, u8>,
}

impl<'a> Painter<'a> {
    pub(super) fn new(
        frame: &'a Frame,
        space: ColorSpace,
        blocks: Option<usize>,
        pixels: &'a mut [u8],
    ) -> Painter<'a> {
        let rows = Rows::new(frame, space);
        let height = 8 * blocks.unwrap_or(frame.most.1);
        let out = pixels.chunks_mut(height * rows.bytes());
        Painter {
            rows,
            frame,
            blocks,
            height,
            first: 0,
            out,
        }
    }

    /// Takes row `row`, `blocks(n)` of component n, and makes pixels of the one before.
    pub(super) fn paint<'b>(&mut self, row: usize, blocks: impl Fn(usize) -> &'b [Block]) {
        for (place, component) in self.frame.components.iter().enumerate() {
            let count = self.blocks.unwrap_or(component.vertical);
            let rows = blocks(place).chunks_exact(component.across).take(count);
            let source = &mut self.rows.sources[place];
            for (row, blocks) in (row * count..).zip(rows) {
                idct::samples(blocks, &source.table, source.plane.line(row));
            }
        }
        if row > self.first {
            self.emit(row - 1);
        }
    }

    /// Makes pixels of the last of `count` rows.
    pub(super) fn finish(&mut self, count: usize) {
        self.emit(count.saturating_sub(1));
    }

    fn emit(&mut self, row: usize) {
        let out = self.out.next().unwrap_or_default();
        let bytes = self.rows.bytes();
        for (row, out) in (row * self.height..).zip(out.chunks_exact_mut(bytes)) {
            self.rows.row(row, out);
        }
    }
}

/// Makes rows of RGB.
pub(super) struct Rows {
    space: ColorSpace,
    width: usize,
    sources: Vec<Source>,
}

impl Rows {
    fn new(frame: &Frame, space: ColorSpace) -> Rows {
        let width = usize::try_from(frame.width).unwrap_or(usize::MAX);
        let source = |component| Source::new(frame, component, width);
        Rows {
            space,
            width,
            sources: frame.components.iter().map(source).collect(),
        }
    }

    /// Room for an image.
    pub(super) fn pixels(frame: &Frame) -> Vec<u8> {
        let size = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
        vec![0; size(frame.width) * size(frame.height) * 3]
    }

    /// Bytes of a row of the image.
    fn bytes(&self) -> usize {
        self.width * 3
    }

    fn row(&mut self, row: usize, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[target_feature(enable = "avx2")]
            fn wide(rows: &mut Rows, row: usize, out: &mut [u8]) {
                rows.convert(row, out);
            }
            #[expect(unsafe_code, reason = "the same code for wider registers")]
            // SAFETY: the processor has AVX2, as was asked above.
            unsafe {
                wide(self, row, out);
            }
            return;
        }
        self.convert(row, out);
    }

    #[inline(always)]
    fn convert(&mut self, row: usize, out: &mut [u8]) {
        for source in &mut self.sources {
            source.make(row);
        }
        let line = |index: usize| self.sources[index].line(row, self.width);
        let pixels = out.chunks_exact_mut(3);
        match self.space {
            ColorSpace::Gray => {
                for (pixel, &value) in pixels.zip(line(0)) {
                    pixel.fill(value);
                }
            }
            ColorSpace::Rgb => {
                for (((pixel, &r), &g), &b) in pixels.zip(line(0)).zip(line(1)).zip(line(2)) {
                    pixel.copy_from_slice(&[r, g, b]);
                }
            }
            ColorSpace::Ycc => {
                for (((pixel, &y), &cb), &cr) in pixels.zip(line(0)).zip(line(1)).zip(line(2)) {
                    pixel.copy_from_slice(&from_ycc(y, cb, cr));
                }
            }
            ColorSpace::Cmyk => {
                let inks = line(0).iter().zip(line(1)).zip(line(2)).zip(line(3));
                for (pixel, (((&c, &m), &y), &k)) in pixels.zip(inks) {
                    pixel.copy_from_slice(&[c, m, y].map(|ink| from_ink(ink, k)));
                }
            }
            ColorSpace::Ycck => {
                let inks = line(0).iter().zip(line(1)).zip(line(2)).zip(line(3));
                for (pixel, (((&y, &cb), &cr), &k)) in pixels.zip(inks) {
                    // Adobe's differences are those of inverted inks, inverted.
                    pixel.copy_from_slice(&from_ycc(y, cb, cr).map(|light| from_ink(255 - light, k)));
                }
            }
        }
    }
}

/// RGB from luminance and colour differences, rounded as libjpeg rounds.
#[inline(always)]
fn from_ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    /// `value` with 16 bits behind the point.
    const fn fix(value: f64) -> i32 {
        (value * 65536.0 + 0.5) as i32
    }
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((const { fix(1.402) } * cr + HALF) >> 16);
    let g = y + ((HALF - const { fix(0.344_14) } * cb - const { fix(0.714_14) } * cr) >> 16);
    let b = y + ((const { fix(1.772) } * cb + HALF) >> 16);
    [r, g, b].map(|value| value.clamp(0, 255) as u8)
}

/// What is left of white under an inverted ink and inverted black, rounded as Pillow rounds.
#[inline(always)]
pub(in super::super) fn from_ink(ink: u8, black: u8) -> u8 {
    let (ink, black) = (255 - u32::from(ink), u32::from(black));
    let product = ink * black + 128;
    (black - (((product >> 8) + product) >> 8).min(black)) as u8
}

/// How a component grows to full size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// It is of full size.
    None,
    /// Twice as wide, each sample three parts of its own and one of its neighbour's.
    Across,
    /// Twice as high.
    Down,
    /// Both.
    Both,
    /// Every sample is repeated.
    Repeat,
}

/// Where the rows of a component come from.
struct Source {
    plane: Plane,
    /// The quantisation table, with 16 bits as libjpeg has it.
    table: [i16; 64],
    /// Samples of the component that are part of the image.
    width: usize,
    height: usize,
    /// How many columns and rows a sample becomes.
    scale: (usize, usize),
    growth: Growth,
    /// The row at full size, unless it is one of the plane.
    made: Vec<u8>,
    /// Weighted sums of two rows.
    sums: Vec<u16>,
}

impl Source {
    fn new(frame: &Frame, component: &Component, width: usize) -> Source {
        let scale = (
            frame.most.0 / component.horizontal,
            frame.most.1 / component.vertical,
        );
        // libjpeg weighs neighbours only where there are three or more.
        let growth = match scale {
            (1, 1) => Growth::None,
            (2, 1) if component.width > 2 => Growth::Across,
            (1, 2) => Growth::Down,
            (2, 2) if component.width > 2 => Growth::Both,
            _ => Growth::Repeat,
        };
        Source {
            plane: Plane::new(component),
            table: component
                .quantisation
                .unwrap_or([0; 64])
                .map(|factor| factor as i16),
            width: component.width,
            height: component.height,
            scale,
            growth,
            made: vec![0; width.max(component.width * scale.0)],
            sums: vec![0; component.width],
        }
    }

    /// Row `row` at full size, which [`Source::make`] has made.
    #[inline(always)]
    fn line(&self, row: usize, width: usize) -> &[u8] {
        match self.growth {
            Growth::None => self.plane.row(row, width),
            _ => &self.made[..width],
        }
    }

    /// Makes row `row` at full size.
    #[inline(always)]
    fn make(&mut self, row: usize) {
        let own = self.plane.row(row / self.scale.1, self.width);
        match self.growth {
            Growth::None => {}
            Growth::Repeat => {
                for (out, &value) in self.made.chunks_mut(self.scale.0).zip(own) {
                    out.fill(value);
                }
            }
            Growth::Across => across(own, &mut self.made),
            Growth::Down => {
                let other = self.plane.row(self.neighbour(row), self.width);
                let bias = if row.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &own), &other) in self.made.iter_mut().zip(own).zip(other) {
                    *out = ((3 * u16::from(own) + u16::from(other) + bias) >> 2) as u8;
                }
            }
            Growth::Both => {
                let other = self.plane.row(self.neighbour(row), self.width);
                for ((sum, &own), &other) in self.sums.iter_mut().zip(own).zip(other) {
                    *sum = 3 * u16::from(own) + u16::from(other);
                }
                both(&self.sums, &mut self.made);
            }
        }
    }

    /// The row of the component that is next nearest to row `row` of the image.
    fn neighbour(&self, row: usize) -> usize {
        let own = row / 2;
        if row.is_multiple_of(2) {
            own.saturating_sub(1)
        } else {
            (own + 1).min(self.height - 1)
        }
    }
}

/// Twice as many samples: 3/4 of the nearest and 1/4 of the next.
#[inline(always)]
fn across(own: &[u8], out: &mut [u8]) {
    let weigh = |own: u8, other: u8, bias: u16| ((3 * u16::from(own) + u16::from(other) + bias) >> 2) as u8;
    let last = own.len() - 1;
    out[0] = own[0];
    out[1] = weigh(own[0], own[1], 2);
    for (pair, near) in out[2..2 * last].chunks_exact_mut(2).zip(own.windows(3)) {
        pair[0] = weigh(near[1], near[0], 1);
        pair[1] = weigh(near[1], near[2], 2);
    }
    out[2 * last] = weigh(own[last], own[last - 1], 1);
    out[2 * last + 1] = own[last];
}

/// The same from sums that are four times a sample.
#[inline(always)]
fn both(sums: &[u16], out: &mut [u8]) {
    let weigh = |own: u16, other: u16, bias: u16| ((3 * own + other + bias) >> 4) as u8;
    let last = sums.len() - 1;
    out[0] = weigh(sums[0], sums[0], 8);
    out[1] = weigh(sums[0], sums[1], 7);
    for (pair, near) in out[2..2 * last].chunks_exact_mut(2).zip(sums.windows(3)) {
        pair[0] = weigh(near[1], near[0], 8);
        pair[1] = weigh(near[1], near[2], 7);
    }
    out[2 * last] = weigh(sums[last], sums[last - 1], 8);
    out[2 * last + 1] = weigh(sums[last], sums[last], 7);
}
