//! Has a picture changed? A small greyscale of it, compared with that of another.

use super::super::Picture;

/// Cells along an edge.
const EDGE: usize = 32;

/// A picture as 32 x 32 means of its luma, whatever its size.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch([f32; EDGE * EDGE]);

impl Sketch {
    /// The sketch of a picture: each of its pixels counts.
    pub fn of(picture: &Picture) -> Sketch {
        let edge = |edge: u32| usize::try_from(edge).unwrap_or(usize::MAX);
        let (width, height) = (edge(picture.width()), edge(picture.height()));
        // A cell of a picture with fewer pixels than cells is a pixel.
        let span = |cell: usize, edge: usize| {
            let first = cell * edge / EDGE;
            first..((cell + 1) * edge / EDGE).max(first + 1)
        };
        let mut cells = [0.0; EDGE * EDGE];
        for (row, line) in cells.chunks_exact_mut(EDGE).enumerate() {
            let rows = span(row, height);
            for (column, cell) in line.iter_mut().enumerate() {
                let columns = span(column, width);
                let mut sum = 0_u64;
                for y in rows.clone() {
                    let begin = 3 * (y * width + columns.start);
                    let pixels = picture.pixels().get(begin..begin + 3 * columns.len());
                    let luma = |pixel: &[u8]| match pixel {
                        [red, green, blue] => {
                            299 * u64::from(*red) + 587 * u64::from(*green) + 114 * u64::from(*blue)
                        }
                        _ => 0,
                    };
                    sum += pixels.unwrap_or_default().chunks_exact(3).map(luma).sum::<u64>();
                }
                let count = rows.len() * columns.len();
                *cell = (sum as f64 / (1000.0 * 255.0 * count as f64)) as f32;
            }
        }
        Sketch(cells)
    }

    /// How different two pictures are: the mean of the differences of their cells, from 0, which is equal, to 1, which is
    /// black against white.
    pub fn difference(&self, other: &Sketch) -> f32 {
        let sum: f32 = self.0.iter().zip(&other.0).map(|(a, b)| (a - b).abs()).sum();
        sum / (EDGE * EDGE) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Picture {
        let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        Picture::new(width, height, rows.flat_map(|(x, y)| pixel(x, y)).collect()).unwrap()
    }

    #[test]
    fn differences_are_from_0_to_1() {
        for (width, height) in [(1, 1), (3, 70), (32, 32), (100, 75)] {
            let [black, white, gray] =
                [0, 255, 51].map(|level| Sketch::of(&filled(width, height, |_, _| [level; 3])));
            assert_eq!(black.difference(&black), 0.0);
            assert!((black.difference(&white) - 1.0).abs() < 1e-5);
            assert!((gray.difference(&black) - 0.2).abs() < 1e-5);
        }
    }

    #[test]
    fn what_moves_counts_by_its_share_and_noise_does_not() {
        let scene = |left: u32| {
            Sketch::of(&filled(320, 240, move |x, _| {
                if (left..left + 32).contains(&x) {
                    [255; 3]
                } else {
                    [0; 3]
                }
            }))
        };
        // A tenth of the picture is white; elsewhere it is another tenth.
        assert!((scene(0).difference(&scene(160)) - 0.2).abs() < 1e-3);
        let noise = |seed: u32| {
            Sketch::of(&filled(320, 240, move |x, y| {
                let hash = (x * 7919 + y * 104_729 + seed * 15_485_863).wrapping_mul(2_654_435_761) >> 24;
                [(hash % 21 + 100) as u8; 3]
            }))
        };
        assert!(noise(1).difference(&noise(2)) < 0.01);
    }
}
