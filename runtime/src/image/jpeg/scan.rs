//! JPEG's scans: entropy-coded bits become quantised coefficients.

use super::super::problem::Problem;
use super::bits::{Bits, Fault, Huffman, natural};
use super::header::{Component, Frame, Header, Scan};
use super::rows::{ColorSpace, Painter, Rows};
use std::sync::{Mutex, PoisonError, mpsc};

/// Rows of MCUs that may wait to become pixels.
const QUEUE: usize = 4;

/// The quantised coefficients of a block, in natural order.
pub(super) type Block = [i16; 64];

/// Room for all coefficients of all components.
pub(super) fn stores(frame: &Frame) -> Vec<Vec<Block>> {
    let blocks = |component: &Component| vec![[0; 64]; component.across * component.down];
    frame.components.iter().map(blocks).collect()
}

/// Decodes the one scan of a sequential image: `[height, width, 3]`. A thread makes pixels of each row of
/// MCUs while the next ones are decoded.
pub(super) fn whole(
    header: &mut Header<'_>,
    frame: &Frame,
    scan: &Scan,
    space: ColorSpace,
) -> Result<Vec<u8>, Problem> {
    let mut decoder = Decoder::new(header, frame, scan)?;
    let count = decoder.rows();
    // Where one component is alone, a row of its scan is a row of blocks, whatever its factors.
    let blocks = if scan.components.len() == 1 { Some(1) } else { None };
    let mut pixels = Rows::pixels(frame);
    let painter = Painter::new(frame, space, blocks, &mut pixels);
    let empty = || -> Vec<Vec<Block>> {
        let blocks = |component: &Component| vec![[0; 64]; component.across * component.vertical];
        frame.components.iter().map(blocks).collect()
    };
    let mut next = |stores: &mut Vec<Vec<Block>>| {
        for store in &mut *stores {
            store.fill([0; 64]);
        }
        decoder.row(0, stores)
    };
    let painter = Mutex::new(painter);
    std::thread::scope(|scope| {
        let (full, rows) = mpsc::sync_channel::<Vec<Vec<Block>>>(QUEUE);
        let (used, unused) = mpsc::channel();
        let painter = &painter;
        let paint = move || {
            let mut painter = painter.lock().unwrap_or_else(PoisonError::into_inner);
            for (row, stores) in rows.iter().enumerate() {
                painter.paint(row, |place| &stores[place]);
                // Nobody takes it where the scan has ended.
                let _ = used.send(stores);
            }
            painter.finish(count);
        };
        let alone = super::rows::threads(frame) == 1;
        if !alone && std::thread::Builder::new().spawn_scoped(scope, paint).is_ok() {
            for _ in 0..count {
                let mut stores = unused.try_recv().unwrap_or_else(|_| empty());
                next(&mut stores)?;
                // The thread takes all of them, to the last.
                let _ = full.send(stores);
            }
        } else {
            // Also where a thread cannot be had.
            let mut painter = painter.lock().unwrap_or_else(PoisonError::into_inner);
            let mut stores = empty();
            for row in 0..count {
                next(&mut stores)?;
                painter.paint(row, |place| &stores[place]);
            }
            painter.finish(count);
        }
        Ok::<(), Problem>(())
    })?;
    let at = decoder.bits.at;
    header.at = at;
    Ok(pixels)
}

/// Decodes one of several scans into `stores`.
pub(super) fn part(
    header: &mut Header<'_>,
    frame: &Frame,
    scan: &Scan,
    stores: &mut [Vec<Block>],
) -> Result<(), Problem> {
    let mut decoder = Decoder::new(header, frame, scan)?;
    for row in 0..decoder.rows() {
        decoder.row(row, stores)?;
    }
    let at = decoder.bits.at;
    header.at = at;
    Ok(())
}

/// A scan as it is decoded.
struct Decoder<'a> {
    bits: Bits<'a>,
    frame: &'a Frame,
    scan: &'a Scan,
    /// For DC and AC, of each component of the scan.
    tables: Vec<(Option<&'a Huffman>, Option<&'a Huffman>)>,
    /// The last DC coefficient of each component of the scan.
    before: [i32; 4],
    /// Blocks to come that have no further coefficients in this scan's band.
    empty: u32,
    /// Units (MCUs, or blocks of a lone component) between restart markers, or 0.
    restart: usize,
    /// Units so far.
    units: usize,
}

impl<'a> Decoder<'a> {
    fn new(header: &'a Header<'_>, frame: &'a Frame, scan: &'a Scan) -> Result<Decoder<'a>, Problem> {
        let needs_dc = scan.first == 0 && !scan.refines;
        let needs_ac = scan.last > 0;
        let mut tables = Vec::new();
        for &(_, dc, ac) in &scan.components {
            let (dc, ac) = (header.dc[dc].as_ref(), header.ac[ac].as_ref());
            if (needs_dc && dc.is_none()) || (needs_ac && ac.is_none()) {
                return Problem::damaged("a scan's Huffman table is missing");
            }
            tables.push((dc, ac));
        }
        Ok(Decoder {
            bits: Bits::new(header.bytes, header.at),
            frame,
            scan,
            tables,
            before: [0; 4],
            empty: 0,
            restart: header.restart,
            units: 0,
        })
    }

    /// Rows of MCUs; of blocks, where one component is alone.
    fn rows(&self) -> usize {
        match self.scan.components[..] {
            [(place, _, _)] => self.frame.components[place].blocks().1,
            _ => self.frame.mcus.1,
        }
    }

    /// Decodes the next row of the scan into row `target` of `stores`.
    fn row(&mut self, target: usize, stores: &mut [Vec<Block>]) -> Result<(), Problem> {
        let (frame, scan) = (self.frame, self.scan);
        if let [(place, _, _)] = scan.components[..] {
            let component = &frame.components[place];
            let mut blocks = &mut stores[place][target * component.across..][..component.blocks().0];
            while !blocks.is_empty() {
                let run;
                (run, blocks) = blocks.split_at_mut(self.units(blocks.len())?);
                self.decode(|decoder, bits| {
                    run.iter_mut().try_for_each(|block| decoder.block(bits, 0, block))
                })?;
            }
            return Ok(());
        }
        let mut column = 0;
        while column < frame.mcus.0 {
            let end = column + self.units(frame.mcus.0 - column)?;
            self.decode(|decoder, bits| {
                for column in column..end {
                    for (index, &(place, _, _)) in scan.components.iter().enumerate() {
                        let component = &frame.components[place];
                        let (horizontal, vertical) = (component.horizontal, component.vertical);
                        for line in target * vertical..(target + 1) * vertical {
                            let start = line * component.across + column * horizontal;
                            for block in &mut stores[place][start..start + horizontal] {
                                decoder.block(bits, index, block)?;
                            }
                        }
                    }
                }
                Ok(())
            })?;
            column = end;
        }
        Ok(())
    }

    /// Runs `work` on a copy of the bits, and says what is wrong with them.
    #[inline(always)]
    fn decode(
        &mut self,
        work: impl FnOnce(&mut Decoder<'a>, &mut Bits<'a>) -> Result<(), Fault>,
    ) -> Result<(), Problem> {
        let mut bits = self.bits;
        let done = work(self, &mut bits);
        self.bits = bits;
        // Behind the last bit, everything looks damaged.
        self.bits.check()?;
        done.map_err(Fault::problem)
    }

    /// How many of `wanted` units come before the next restart; behind the marker, if one is due.
    fn units(&mut self, wanted: usize) -> Result<usize, Problem> {
        if self.restart == 0 {
            return Ok(wanted);
        }
        let done = self.units % self.restart;
        if done == 0 && self.units > 0 {
            self.bits.restart(self.units / self.restart - 1)?;
            self.before = [0; 4];
            self.empty = 0;
        }
        let count = wanted.min(self.restart - done);
        self.units += count;
        Ok(count)
    }

    /// Decodes what the scan has of `block`, which is of the scan's component `index`.
    #[inline(always)]
    fn block(&mut self, bits: &mut Bits<'_>, index: usize, block: &mut Block) -> Result<(), Fault> {
        let (dc, ac) = self.tables[index];
        if self.scan.first == 0 {
            if self.scan.refines {
                block[0] |= i16::from(bits.bit()) << self.scan.low;
                return Ok(());
            }
            if let Some(dc) = dc {
                let size = bits.symbol(dc)?;
                let difference = bits.coefficient(size);
                self.before[index] = self.before[index].wrapping_add(difference);
                block[0] = (self.before[index] << self.scan.low) as i16;
            }
        }
        match ac {
            Some(ac) if !self.frame.progressive => sequential(bits, ac, block),
            Some(ac) if self.scan.last > 0 && self.scan.refines => self.refine(bits, ac, block),
            Some(ac) if self.scan.last > 0 => self.first(bits, ac, block),
            _ => Ok(()),
        }
    }

    /// The first bits of a band of AC coefficients (T.81, G.1.2.2).
    #[inline(always)]
    fn first(&mut self, bits: &mut Bits<'_>, table: &Huffman, block: &mut Block) -> Result<(), Fault> {
        if self.empty > 0 {
            self.empty -= 1;
            return Ok(());
        }
        let mut k = self.scan.first;
        while k <= self.scan.last {
            let symbol = bits.symbol(table)?;
            let (zeros, size) = (symbol >> 4, symbol & 15);
            if size == 0 {
                if zeros < 15 {
                    self.empty = run(bits, zeros) - 1;
                    break;
                }
                k += 16;
                continue;
            }
            k += usize::from(zeros);
            if k > self.scan.last {
                return Err(Fault::Beyond);
            }
            block[natural(k)] = (bits.coefficient(size) << self.scan.low) as i16;
            k += 1;
        }
        Ok(())
    }

    /// A further bit of a band of AC coefficients (T.81, G.1.2.3).
    #[inline(always)]
    fn refine(&mut self, bits: &mut Bits<'_>, table: &Huffman, block: &mut Block) -> Result<(), Fault> {
        let mut k = self.scan.first;
        if self.empty == 0 {
            while k <= self.scan.last {
                let symbol = bits.symbol(table)?;
                let (zeros, size) = (symbol >> 4, symbol & 15);
                let new = match size {
                    0 if zeros < 15 => {
                        self.empty = run(bits, zeros);
                        break;
                    }
                    0 => 0,
                    1 if bits.bit() => 1 << self.scan.low,
                    1 => -1 << self.scan.low,
                    _ => return Err(Fault::Several),
                };
                k = self.correct(bits, block, k, Some(zeros));
                if new != 0 {
                    if k > self.scan.last {
                        return Err(Fault::Beyond);
                    }
                    block[natural(k)] = new;
                }
                k += 1;
            }
        }
        if self.empty > 0 {
            self.correct(bits, block, k, None);
            self.empty -= 1;
        }
        Ok(())
    }

    /// Adds a bit to each coefficient from `k` on, up to the zero behind `zeros` others, or to the end of the
    /// band.
    #[inline(always)]
    fn correct(&self, bits: &mut Bits<'_>, block: &mut Block, mut k: usize, mut zeros: Option<u8>) -> usize {
        while k <= self.scan.last {
            let value = &mut block[natural(k)];
            if *value == 0 {
                match &mut zeros {
                    Some(0) => break,
                    Some(zeros) => *zeros -= 1,
                    None => {}
                }
            } else if bits.bit() {
                let bit = 1 << self.scan.low;
                // It is there already only where the file is damaged.
                if *value & bit == 0 {
                    *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
                }
            }
            k += 1;
        }
        k
    }
}

/// All AC coefficients of a block (T.81, F.2.2.2).
#[inline(always)]
fn sequential(bits: &mut Bits<'_>, table: &Huffman, block: &mut Block) -> Result<(), Fault> {
    let mut k = 1;
    while k < 64 {
        if let Some((zeros, value)) = bits.short_coefficient(table) {
            k += zeros;
            if k > 63 {
                return Err(Fault::Beyond);
            }
            block[natural(k)] = value;
            k += 1;
            continue;
        }
        let symbol = bits.symbol(table)?;
        let (zeros, size) = (usize::from(symbol >> 4), symbol & 15);
        if size == 0 {
            if zeros < 15 {
                break;
            }
            k += 16;
            continue;
        }
        k += zeros;
        if k > 63 {
            return Err(Fault::Beyond);
        }
        block[natural(k)] = bits.coefficient(size) as i16;
        k += 1;
    }
    Ok(())
}

/// Blocks that end here, this one included.
#[inline(always)]
fn run(bits: &mut Bits<'_>, size: u8) -> u32 {
    bits.refill();
    (1 << size) + bits.take(size)
}
