//! `--shard 2/8`: one of several parts of the images, for job runners.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

/// One of several parts, counted from 1. Which images are in it depends on their names alone: new images move no old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    number: u64,
    of: u64,
}

impl Shard {
    /// Everything.
    pub(crate) const WHOLE: Shard = Shard { number: 1, of: 1 };

    /// Whether an image is in this part.
    pub(crate) fn has(self, name: &OsStr) -> bool {
        // FNV-1a, then a mix of its bits (MurmurHash3's last step): the low ones alone know little of a name.
        let hash = name
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash ^ (hash >> 33)) % self.of == self.number - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let numbers = text
            .split_once('/')
            .map(|(number, of)| (number.parse(), of.parse()));
        match numbers {
            Some((Ok(number), Ok(of))) if (1..=of).contains(&number) => Ok(Shard { number, of }),
            _ => Err(format!(
                "found `{text}`, expected NUMBER/OF with 1 <= NUMBER <= OF"
            )),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_about_equal_and_none_overlap() {
        let names: [fn(u32) -> String; 3] = [
            |i| format!("{i:05}/{i:05}.jpg"),
            |i| format!("{i:05}_{i:05}.jpg"),
            |i| format!("frame-{i}.png"),
        ];
        for name in names {
            for of in [2, 3, 4, 8] {
                let mut counts = vec![0_u64; 8];
                for i in 0..8000 {
                    let name = name(i);
                    let parts = (1..=of).filter(|&number| Shard { number, of }.has(name.as_ref()));
                    let parts: Vec<u64> = parts.collect();
                    assert_eq!(parts.len(), 1);
                    counts[usize::try_from(parts[0]).unwrap() - 1] += 1;
                }
                let expected = 8000 / of;
                for count in &counts[..usize::try_from(of).unwrap()] {
                    assert!(
                        count.abs_diff(expected) < expected / 5,
                        "{counts:?} for {}",
                        name(1)
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_shard_is() {
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, of: 8 }));
        for text in ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", " 1/2"] {
            let error = text.parse::<Shard>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
