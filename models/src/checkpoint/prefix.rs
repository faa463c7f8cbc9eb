//! Prefixes of tensor names, by which the tables of layouts are written.

/// Replaces the first prefix of the table that matches.
pub(super) fn replace_prefix(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table
        .iter()
        .find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")))
}
