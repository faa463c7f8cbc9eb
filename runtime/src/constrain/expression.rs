//! Regular expressions before they are compiled: are they too large when their repetitions are written out?

use regex_syntax::hir::{Hir, HirKind};

/// Parts of an expression whose repetitions are written out: `(a{100}){100}` has a hundred hundreds. A repetition
/// that is in no other counts once, for it is compiled as a counter.
const MAX_PARTS: f64 = 10_000.0;

/// # Errors
/// An expression that is too large. One that cannot be parsed is left to whoever compiles it.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    let Ok(parsed) = regex_syntax::Parser::new().parse(pattern) else {
        return Ok(());
    };
    let found = parts(&parsed, false);
    if found > MAX_PARTS {
        return Err(format!(
            "with its repetitions written out it has {found} parts, expected at most {MAX_PARTS}"
        ));
    }
    Ok(())
}

/// The parts of an expression; `repeated`: it is within a repetition.
fn parts(expression: &Hir, repeated: bool) -> f64 {
    let number = |count: usize| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    match expression.kind() {
        HirKind::Empty | HirKind::Class(_) | HirKind::Look(_) => 1.0,
        HirKind::Literal(literal) => number(literal.0.len()),
        HirKind::Capture(capture) => parts(&capture.sub, repeated),
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min).max(1);
            let inner = parts(&repetition.sub, repeated || times > 1);
            let simple = !repeated && inner <= 1.0;
            if simple { 1.0 } else { inner * f64::from(times) }
        }
        HirKind::Concat(all) | HirKind::Alternation(all) => {
            all.iter().map(|part| parts(part, repeated)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn repetitions_of_repetitions_are_bounded() {
        for pattern in [
            "a{60000}",
            "(abc){1000}",
            "([a-z]{1,100} ){1,20}",
            "(a|b)*",
            "(a*)*",
            "(((a?)*)+)*",
            "(",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
        for pattern in [
            "(((a{1000}){1000}){1000})",
            "(a{1000}){100}",
            "((ab){300,}c){1,300}",
        ] {
            let error = check(pattern).unwrap_err();
            assert!(
                error.contains("parts, expected at most 10000"),
                "{pattern}: {error}"
            );
        }
    }
}
