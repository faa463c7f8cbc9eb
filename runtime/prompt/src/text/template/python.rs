//! How does Python write a value? `str` and `repr`, which Jinja prints with: lists, maps and numbers have
//! another spelling in minijinja.

use super::weigh::is_namespace;
use minijinja::value::ValueKind;
use minijinja::{Error, Value};
use std::fmt::Write;

/// `str(value)`: a text is as it is, what is undefined is nothing. The caller has weighed the value.
pub(super) fn write(value: &Value, out: &mut dyn Write) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None if value.is_undefined() => Ok(()),
        None => write_nested(value, out),
    }
}

/// `repr(value)`, as members of lists and maps are written.
pub(super) fn write_nested(value: &Value, out: &mut dyn Write) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return Ok(write_quoted(text, out)?);
    }
    match value.kind() {
        ValueKind::Undefined => Ok(out.write_str("Undefined")?),
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => Ok(out.write_str(&float(number))?),
            Err(_) => Ok(write!(out, "{value}")?),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.write_str(", ")?;
                }
                write_nested(&item, out)?;
            }
            Ok(out.write_char(']')?)
        }
        // What is no data, such as a namespace, keeps minijinja's spelling: Python's has an address.
        ValueKind::Map if !is_namespace(value) => {
            out.write_char('{')?;
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.write_str(", ")?;
                }
                write_nested(&key, out)?;
                out.write_str(": ")?;
                write_nested(&value.get_item(&key)?, out)?;
            }
            Ok(out.write_char('}')?)
        }
        _ => Ok(write!(out, "{value}")?),
    }
}

/// A float's `repr`: the fewest digits that name it, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// A text in single quotes, or in double ones where it has single ones and no double ones.
fn write_quoted(text: &str, out: &mut dyn Write) -> std::fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.write_char(quote)?;
    for letter in text.chars() {
        match letter {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            _ if letter == quote => write!(out, "\\{letter}")?,
            ' '..='~' => out.write_char(letter)?,
            _ if is_printable(letter) => out.write_char(letter)?,
            '\0'..='\u{ff}' => write!(out, "\\x{:02x}", u32::from(letter))?,
            '\0'..='\u{ffff}' => write!(out, "\\u{:04x}", u32::from(letter))?,
            _ => write!(out, "\\U{:08x}", u32::from(letter))?,
        }
    }
    out.write_char(quote)
}

/// `str.isprintable`: neither control nor format character, neither separator nor surrogate, and assigned. Rust's
/// own escapes have the same rule, but for marks at the start of a text.
fn is_printable(letter: char) -> bool {
    let mut bytes = [b'a'; 5];
    let length = 1 + bytes
        .get_mut(1..)
        .map_or(0, |rest| letter.encode_utf8(rest).len());
    let text = bytes
        .get(..length)
        .and_then(|bytes| std::str::from_utf8(bytes).ok());
    text.is_some_and(|text| text.escape_debug().nth(1) == Some(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python 3.11: `repr(float(x))`.
    #[test]
    fn floats() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (2.5, "2.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (-1e100, "-1e+100"),
            (5e-324, "5e-324"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float(number), expected);
        }
    }

    /// Python 3.11: `repr(text)`.
    #[test]
    fn texts() {
        for (text, expected) in [
            ("plain", "'plain'"),
            ("it's", "\"it's\""),
            ("it's \"so\"", "'it\\'s \"so\"'"),
            ("\"so\"", "'\"so\"'"),
            ("a\\b\n\r\t", "'a\\\\b\\n\\r\\t'"),
            ("\0\x07\x1b\x7f", "'\\x00\\x07\\x1b\\x7f'"),
            ("é ü 字 🎉", "'é ü 字 🎉'"),
            ("\u{a0}\u{ad}\u{85}", "'\\xa0\\xad\\x85'"),
            (
                "\u{200b}\u{2028}\u{feff}\u{3000}",
                "'\\u200b\\u2028\\ufeff\\u3000'",
            ),
            ("\u{e000}\u{10ffff}\u{e0001}", "'\\ue000\\U0010ffff\\U000e0001'"),
            ("e\u{301} \u{301}", "'e\u{301} \u{301}'"),
        ] {
            let mut written = String::new();
            write_quoted(text, &mut written).unwrap();
            assert_eq!(written, expected);
        }
    }
}
