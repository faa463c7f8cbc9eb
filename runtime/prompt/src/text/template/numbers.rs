//! Numbers as Python computes with them, where minijinja has other results: what is left and what is whole of a
//! division has the divisor's sign, and `round` goes to the even neighbour.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Places behind which a rounding changes no float, and before which it leaves nothing.
const MOST_PLACES: i32 = 330;

/// A number as Python has it: true is 1.
#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Number> {
        match value.kind() {
            ValueKind::Bool => Some(Number::Whole(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Whole),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "as Python's `float`"
    )]
    fn float(self) -> f64 {
        match self {
            Number::Whole(number) => number as f64,
            Number::Float(number) => number,
        }
    }
}

fn whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

fn failed(what: &str, operands: &[Value]) -> Error {
    let kinds: Vec<String> = operands
        .iter()
        .map(|operand| operand.kind().to_string())
        .collect();
    let reason = format!("cannot use {what} on {}", kinds.join(" and "));
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn pair(what: &str, operands: &[Value]) -> Result<(Number, Number), Error> {
    let [a, b] = operands else {
        return Err(failed(what, operands));
    };
    let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) else {
        return Err(failed(what, operands));
    };
    if b.float() == 0.0 {
        let reason = format!("{what} has 0 on its right side");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok((a, b))
}

/// `a % b`
pub(super) fn remainder(operands: &[Value]) -> Result<Value, Error> {
    const NAME: &str = "`%`";
    match pair(NAME, operands)? {
        (Number::Whole(a), Number::Whole(b)) => {
            let left = a.checked_rem(b).ok_or_else(|| failed(NAME, operands))?;
            Ok(whole(if left != 0 && (left < 0) != (b < 0) {
                left + b
            } else {
                left
            }))
        }
        (a, b) => Ok(Value::from(left(a.float(), b.float()))),
    }
}

/// What is left of a division of floats, with the sign of `b`.
fn left(a: f64, b: f64) -> f64 {
    let left = a % b;
    if left == 0.0 {
        0.0_f64.copysign(b)
    } else if (left < 0.0) != (b < 0.0) {
        left + b
    } else {
        left
    }
}

/// `a // b`
pub(super) fn floor_division(operands: &[Value]) -> Result<Value, Error> {
    const NAME: &str = "`//`";
    match pair(NAME, operands)? {
        (Number::Whole(a), Number::Whole(b)) => {
            let quotient = a.checked_div(b).ok_or_else(|| failed(NAME, operands))?;
            let below = a % b != 0 && (a < 0) != (b < 0);
            Ok(whole(quotient - i128::from(below)))
        }
        (a, b) => {
            let (a, b) = (a.float(), b.float());
            Ok(Value::from(((a - left(a, b)) / b).round()))
        }
    }
}

/// `value | round(places, method)`
pub(super) fn round(value: &Value, places: i32, method: &str) -> Result<Value, Error> {
    let Some(number) = Number::of(value) else {
        return Err(failed("`round`", std::slice::from_ref(value)));
    };
    let ten = 10.0_f64.powi(places);
    match (method, number) {
        ("common", Number::Whole(number)) => Ok(whole(whole_to(number, places))),
        ("common", Number::Float(number)) => Ok(Value::from(float_to(number, places))),
        ("ceil", number) => Ok(Value::from((number.float() * ten).ceil() / ten)),
        ("floor", number) => Ok(Value::from((number.float() * ten).floor() / ten)),
        _ => {
            let reason = format!("`round` has the method {method}, expected common, ceil or floor");
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
    }
}

/// A whole number, rounded to tens, hundreds and so on where `places` is negative.
fn whole_to(number: i128, places: i32) -> i128 {
    if places >= 0 {
        return number;
    }
    let Some(unit) = 10_i128.checked_pow(places.unsigned_abs()) else {
        return 0;
    };
    let (quotient, left) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = match (2 * left).cmp(&unit) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    (quotient + i128::from(up)).saturating_mul(unit)
}

/// A float, rounded by what it is exactly, halves to the even neighbour.
fn float_to(number: f64, places: i32) -> f64 {
    if !number.is_finite() || places > MOST_PLACES {
        return number;
    }
    if places < -MOST_PLACES {
        return 0.0_f64.copysign(number);
    }
    match usize::try_from(places) {
        // Decimal digits are written so.
        Ok(places) => format!("{number:.places$}").parse().unwrap_or(number),
        Err(_) => {
            let unit = 10.0_f64.powi(-places);
            (number / unit).round_ties_even() * unit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: Result<Value, Error>) -> String {
        let mut text = String::new();
        match value {
            Ok(value) => super::super::python::write(&value, &mut text).unwrap(),
            Err(error) => text = error.to_string(),
        }
        text
    }

    /// Python 3.11.
    #[test]
    fn divisions_have_the_divisors_sign() {
        let whole = |a: i64, b: i64| [Value::from(a), Value::from(b)];
        let float = |a: f64, b: f64| [Value::from(a), Value::from(b)];
        for (operands, left, quotient) in [
            (whole(7, 3), "1", "2"),
            (whole(7, -3), "-2", "-3"),
            (whole(-7, 3), "2", "-3"),
            (whole(-7, -3), "-1", "2"),
            (whole(-6, 3), "0", "-2"),
            (whole(0, -3), "0", "0"),
            (float(-7.5, 2.0), "0.5", "-4.0"),
            (float(7.5, -2.0), "-0.5", "-4.0"),
            (float(6.0, -3.0), "-0.0", "-2.0"),
            ([Value::from(7), Value::from(2.5)], "2.0", "2.0"),
            ([Value::from(true), Value::from(2)], "1", "0"),
        ] {
            assert_eq!(shown(remainder(&operands)), left, "{operands:?}");
            assert_eq!(shown(floor_division(&operands)), quotient, "{operands:?}");
        }
        let minimum = [Value::from(i128::MIN), Value::from(-1)];
        for operands in [
            whole(1, 0),
            float(1.0, 0.0),
            [Value::from("a"), Value::from(1)],
            minimum,
        ] {
            assert!(remainder(&operands).is_err() && floor_division(&operands).is_err());
        }
    }

    /// Python 3.11.
    #[test]
    fn halves_go_to_the_even_neighbour() {
        for (number, places, expected) in [
            (2.5, 0, "2.0"),
            (3.5, 0, "4.0"),
            (-2.5, 0, "-2.0"),
            (0.5, 0, "0.0"),
            (-0.4, 0, "-0.0"),
            (2.675, 2, "2.67"),
            (1e-7, 3, "0.0"),
            (1e300, 2, "1e+300"),
            (1234.5, -2, "1200.0"),
            (1e22, 0, "1e+22"),
            (1.5, 400, "1.5"),
            (1.5, -400, "0.0"),
            (f64::INFINITY, 1, "inf"),
        ] {
            assert_eq!(
                shown(round(&Value::from(number), places, "common")),
                expected,
                "{number}"
            );
        }
        for (number, places, expected) in [
            (5, 0, "5"),
            (5, 3, "5"),
            (1250, -2, "1200"),
            (1350, -2, "1400"),
            (-1250, -2, "-1200"),
            (7, -60, "0"),
        ] {
            assert_eq!(
                shown(round(&Value::from(number), places, "common")),
                expected,
                "{number}"
            );
        }
        assert_eq!(shown(round(&Value::from(2.1), 0, "ceil")), "3.0");
        assert_eq!(shown(round(&Value::from(2.15), 1, "floor")), "2.1");
        assert_eq!(shown(round(&Value::from(2), 0, "ceil")), "2.0");
        assert!(round(&Value::from(2), 0, "half").is_err());
        assert!(round(&Value::from("2"), 0, "common").is_err());
    }
}
