//! What an error says is for people.

/// What `Debug` writes and no sentence has.
const DEBUG: [&str; 9] = [
    "Some(",
    "Ok(",
    "Err(",
    "Error(",
    "Error {",
    "Utf8Error",
    "panicked at",
    "RefCell",
    "called `",
];

/// An error about `input`: not empty, not much longer than the input, without text of `Debug` and without
/// control characters that the input does not bring along.
///
/// # Panics
/// An error that is not so.
pub(crate) fn check(message: &str, input: &[u8]) {
    assert!(!message.trim().is_empty(), "an error without words");
    assert!(
        message.len() <= 16 * input.len() + 20_000,
        "an error of {} bytes about {}",
        message.len(),
        input.len()
    );
    let text = String::from_utf8_lossy(input);
    let own = |found: &str| text.contains(found);
    for found in DEBUG {
        assert!(
            !message.contains(found) || own(found),
            "text of Debug, `{found}`: {message}"
        );
    }
    if let Some(found) = fields(message) {
        assert!(own(found), "text of Debug, `{found}`: {message}");
    }
    // An escape in JSON, or a token that stands for it, brings characters along that the bytes do not show.
    let escaped = text.contains('\\');
    for found in message.chars().filter(|found| found.is_control()) {
        let known = escaped || text.contains(found) || "\n\t".contains(found);
        assert!(known, "a control character, {found:?}: {message:?}");
    }
}

/// A value of a struct as `Debug` writes it: `Name { field: `.
fn fields(message: &str) -> Option<&str> {
    message.match_indices(" { ").find_map(|(at, open)| {
        let name = message[..at].ends_with(|end: char| end.is_ascii_alphanumeric());
        let rest = &message[at + open.len()..];
        let field = rest.find(|end: char| !end.is_ascii_lowercase() && end != '_')?;
        let colon = field > 0 && rest[field..].starts_with(": ");
        (name && colon).then(|| &message[at..at + open.len() + field])
    })
}
