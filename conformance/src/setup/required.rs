//! Which engines must work here? `FVLM_REQUIRE=cpu,tract,rten`, as CI says it: what leaves out an engine that does not
//! work here fails where the engine is named. Without the variable, none is required.

use crate::setup::subject::Provider;

/// What the variable may name beside engines: tests of `runtime` look for it, and nothing of ours runs on it.
const LIBHEIF: &str = "libheif";

/// The environment variable: names of engines, separated by commas.
pub const VARIABLE: &str = "FVLM_REQUIRE";

/// Nothing where the engines that do not work here, with the reasons, may be left out.
///
/// # Errors
/// A sentence on a required engine that is among them, or on a word of the variable that names no engine.
pub fn check(missing: &[(Provider, String)]) -> Result<(), String> {
    let words = std::env::var_os(VARIABLE).unwrap_or_default();
    let words = words
        .to_str()
        .ok_or_else(|| format!("{VARIABLE} is not Unicode, expected a list such as {}", names()))?;
    check_words(words, missing)
}

/// Whether an engine works here, for a test that leaves it out otherwise.
///
/// # Errors
/// As [`check`].
pub fn works(provider: Provider) -> Result<bool, String> {
    match provider.usable(&runtime::Options::default()) {
        Ok(()) => check(&[]).map(|()| true),
        Err(error) => check(&[(provider, error.to_string())]).map(|()| false),
    }
}

fn check_words(words: &str, missing: &[(Provider, String)]) -> Result<(), String> {
    let words = words
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty() && *word != LIBHEIF);
    for word in words {
        let Some(required) = engines().find(|engine| engine.name() == word) else {
            return Err(format!(
                "{VARIABLE} names `{word}`, expected some of {},{LIBHEIF}",
                names()
            ));
        };
        if let Some((_, reason)) = missing.iter().find(|(provider, _)| *provider == required) {
            return Err(format!(
                "{VARIABLE} names `{word}`, which does not work here: {reason}"
            ));
        }
    }
    Ok(())
}

fn engines() -> impl Iterator<Item = Provider> {
    Provider::ALL
        .into_iter()
        .filter(|provider| provider.engine().is_some())
}

fn names() -> String {
    engines().map(Provider::name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_required_engine_is_not_left_out_and_an_unknown_word_is_refused() {
        let missing = [(Provider::Cpu, "no library".to_owned())];
        for (words, expected) in [
            ("", None),
            ("tract", None),
            (" tract , rten,", None),
            ("cpu", Some("names `cpu`, which does not work here: no library")),
            ("tract,cpu", Some("no library")),
            (
                "tract,cuda",
                Some("names `cuda`, expected some of cpu,tract,rten"),
            ),
            ("interpreter", Some("names `interpreter`")),
            ("CPU", Some("names `CPU`")),
        ] {
            match (check_words(words, &missing), expected) {
                (Ok(()), None) => {}
                (Err(found), Some(expected)) => assert!(found.contains(expected), "{words}: {found}"),
                (found, _) => panic!("{words}: {found:?}"),
            }
        }
        assert_eq!(check_words("cpu", &[]), Ok(()));
    }
}
