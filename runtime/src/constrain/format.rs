//! Formats of texts: what does the grammar library allow that none of them has?

/// A date that its calendar has: the 29th of February in leap years only.
macro_rules! date {
    () => {
        concat!(
            r"^(?:[0-9]{4}-(?:(?:0[13-9]|1[0-2])-[0-9]{2}|02-(?:[01][0-9]|2[0-8]))|",
            r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}

/// What must hold beside the library's own expression, as the keyword `pattern` has it. Second 60 is one of RFC 3339 only
/// where there was a leap second, and most readers refuse it.
pub(super) fn pattern(format: &str) -> Option<&'static str> {
    match format {
        "date" => Some(date!()),
        "date-time" => Some(concat!(date!(), "[tT][0-9]{2}:[0-9]{2}:[0-5]")),
        "time" => Some("^[0-9]{2}:[0-9]{2}:[0-5]"),
        _kept_as_it_is => None,
    }
}
