//! Which picture does a test look at, where none is shipped?

use super::noise::splitmix64;

/// A gradient, seven discs and a little noise, in integers only: RGB bytes, row by row. References name it by
/// width, height and seed; `fvlm_conformance.reference.synth` paints the same.
pub fn scene(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let discs: Vec<Disc> = (0..7).map(|k| Disc::draw(width, height, seed, k)).collect();
    let (w, h) = (i64::from(width), i64::from(height));
    let mut out = Vec::new();
    let mut index = seed << 32;
    for y in 0..h {
        for x in 0..w {
            let mut color = [
                x * 255 / (w - 1).max(1),
                y * 255 / (h - 1).max(1),
                (x + y) * 255 / (w + h - 2).max(1),
            ];
            // The last disc drawn lies on top.
            if let Some(disc) = discs.iter().rev().find(|disc| disc.covers(x, y)) {
                color = disc.color;
            }
            for channel in color {
                let noise = (splitmix64(index) >> 60) as i64 - 8;
                out.push((channel + noise).clamp(0, 255) as u8);
                index = index.wrapping_add(1);
            }
        }
    }
    out
}

struct Disc {
    centre: (i64, i64),
    radius: i64,
    color: [i64; 3],
}

impl Disc {
    fn draw(width: u32, height: u32, seed: u64, k: u64) -> Disc {
        let bits = splitmix64(seed.wrapping_mul(1_000_003).wrapping_add(k));
        let (w, h) = (u64::from(width.max(1)), u64::from(height.max(1)));
        let edge = w.min(h);
        let signed = |value: u64| value as i64;
        Disc {
            centre: (signed(bits % w), signed((bits >> 16) % h)),
            radius: signed(edge / 16 + (bits >> 32) % (edge / 5).max(1)),
            color: [40, 48, 56].map(|shift| signed((bits >> shift) & 255)),
        }
    }

    fn covers(&self, x: i64, y: i64) -> bool {
        (x - self.centre.0).pow(2) + (y - self.centre.1).pow(2) <= self.radius.pow(2)
    }
}
