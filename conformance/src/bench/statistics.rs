//! What do several measurements say together? No mean: one disturbed run would move it.

use serde::{Deserialize, Serialize};

/// Median and spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Spread {
            median: median(&sorted)?,
            min,
            max,
        })
    }
}

/// The median of sorted values.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(lower + (upper - lower) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(Spread::of(&[]), None);
        for (values, expected) in [
            (&[2.0][..], [2.0, 2.0, 2.0]),
            (&[5.0, 1.0], [3.0, 1.0, 5.0]),
            (&[9.0, 1.0, 2.0], [2.0, 1.0, 9.0]),
            (&[4.0, 1.0, 3.0, 100.0], [3.5, 1.0, 100.0]),
        ] {
            let Spread { median, min, max } = Spread::of(values).unwrap();
            assert_eq!([median, min, max], expected, "{values:?}");
        }
    }
}
