//! Prefetch: memory that a task will want is asked for while it computes, a few cache lines at a time.
//!
//! While products are made little memory is read: it brings what a tile wants only once, at its start and its
//! end, where otherwise it would be waited for and nothing else is to do; and the nibbles that are made bytes next.

use super::isa::prefetch;
use std::cell::Cell;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Parts of memory that one [`Coming`] has, at most.
pub(crate) const MOST_PARTS: usize = 4;

/// A part of no numbers.
pub(crate) const NOTHING: (*const f32, usize) = (std::ptr::null(), 0);

/// Parts of memory that will be wanted, which need not exist.
#[derive(Debug)]
pub(crate) struct Coming {
    /// Where a part goes on, and how many lines of it are left.
    parts: [Cell<(*const f32, usize)>; MOST_PARTS],
    /// Lines of all parts that are left.
    left: Cell<usize>,
    /// Lines of one call.
    each: usize,
}

impl Coming {
    /// Asks for `parts`, of so many numbers, in `calls` calls.
    pub(crate) fn new(parts: [(*const f32, usize); MOST_PARTS], calls: usize) -> Self {
        let parts = parts.map(|(start, length)| (start, length.div_ceil(LINE)));
        let lines: usize = parts.iter().map(|(_, lines)| lines).sum();
        Coming {
            parts: parts.map(Cell::new),
            left: Cell::new(lines),
            each: lines.div_ceil(calls.max(1)),
        }
    }

    /// Asks for the next few lines.
    #[inline(always)]
    pub(crate) fn ask(&self) {
        let mut wanted = self.each.min(self.left.get());
        if wanted == 0 {
            return;
        }
        self.left.set(self.left.get() - wanted);
        for part in &self.parts {
            let (start, lines) = part.get();
            let here = lines.min(wanted);
            for line in 0..here {
                prefetch(start.wrapping_add(line * LINE));
            }
            part.set((start.wrapping_add(here * LINE), lines - here));
            wanted -= here;
            if wanted == 0 {
                return;
            }
        }
    }
}
