//! How do ids become text while they come?

use super::Tokenizer;
use crate::PromptError;

/// Ids kept as context of the next one: a character of UTF-8 is at most as many tokens.
const CONTEXT: usize = 4;

/// What decoders write for bytes that are not, or not yet, a character.
const REPLACEMENT: char = '\u{fffd}';

/// A stop string, and how much of it the text ends with. Each byte of the text is looked at once, however long the stop
/// string and whatever is held back (the algorithm of Knuth, Morris and Pratt).
#[derive(Debug)]
struct Stop {
    bytes: Vec<u8>,
    /// Of each beginning, by its last byte: the length of the longest shorter beginning that it ends with.
    shorter: Vec<usize>,
    /// The longest beginning that the text ends with.
    met: usize,
    /// How often a shorter beginning was tried.
    #[cfg(test)]
    tried: usize,
}

impl Stop {
    fn new(text: &str) -> Stop {
        let mut stop = Stop {
            bytes: text.as_bytes().to_vec(),
            shorter: Vec::with_capacity(text.len()),
            met: 0,
            #[cfg(test)]
            tried: 0,
        };
        for (place, &byte) in text.as_bytes().iter().enumerate() {
            // The first byte alone ends with nothing shorter.
            if place > 0 {
                stop.take(byte);
            }
            stop.shorter.push(stop.met);
        }
        stop.met = 0;
        stop
    }

    /// Takes the next byte of the text; whether the text now ends with all of it.
    fn take(&mut self, byte: u8) -> bool {
        while self.met > 0 && self.bytes.get(self.met) != Some(&byte) {
            self.met = self.shorter.get(self.met - 1).copied().unwrap_or(0);
            #[cfg(test)]
            {
                self.tried += 1;
            }
        }
        self.met += usize::from(self.bytes.get(self.met) == Some(&byte));
        self.met == self.bytes.len()
    }

    /// Takes more text; how many bytes of it are taken where the stop string is first complete.
    fn find(&mut self, new: &str) -> Option<usize> {
        new.bytes().position(|byte| self.take(byte)).map(|last| last + 1)
    }
}

/// Turns ids into text one at a time: never half a character, never a part of a stop string.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    stops: Vec<Stop>,
    /// The last ids, and how many bytes of their text were taken already.
    ids: Vec<i64>,
    taken: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stops` (empty ones are ignored).
    pub fn new(tokenizer: Tokenizer, stops: &[String]) -> TextStream {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        let stops = stops.map(|stop| Stop::new(stop)).collect();
        TextStream {
            tokenizer,
            stops,
            ids: Vec::new(),
            taken: 0,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next id; returns text that is certain by now, often empty. After a stop string nothing more comes.
    pub fn push(&mut self, id: i64) -> Result<String, PromptError> {
        if self.stopped {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // Only the last character can still change: bytes that are not complete show as one replacement.
        let stable = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let new = stable.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = self.taken.max(stable.len());
        if self.ids.len() > 2 * CONTEXT {
            // Silent ids must not push half a character out of the context.
            let spoken = |id: &i64| {
                self.tokenizer
                    .decode(&[*id])
                    .map_or(true, |text| !text.is_empty())
            };
            self.ids.retain(spoken);
        }
        if self.ids.len() > 2 * CONTEXT {
            self.ids.drain(..self.ids.len() - CONTEXT);
            let text = self.tokenizer.decode(&self.ids)?;
            self.taken = text.strip_suffix(REPLACEMENT).unwrap_or(&text).len();
        }
        Ok(self.release(&new))
    }

    /// Whether a stop string was met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// No more ids will come: the text that was held back. Half a character at the end becomes U+FFFD.
    pub fn finish(&mut self) -> Result<String, PromptError> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.ids)?;
        self.ids.clear();
        let rest = text.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = 0;
        let mut released = self.release(&rest);
        released.push_str(&std::mem::take(&mut self.held));
        Ok(released)
    }

    /// Adds `new` to the held text and returns what cannot be a part of a stop string any more.
    fn release(&mut self, new: &str) -> String {
        let before = self.held.len();
        self.held.push_str(new);
        let begins = |stop: &mut Stop| {
            let end = before + stop.find(new)?;
            end.checked_sub(stop.bytes.len())
        };
        if let Some(at) = self.stops.iter_mut().filter_map(begins).min() {
            self.stopped = true;
            let mut held = std::mem::take(&mut self.held);
            held.truncate(at);
            return held;
        }
        let keep = self.stops.iter().map(|stop| stop.met).max().unwrap_or(0);
        // The first byte of a stop string begins a character, so this is a boundary.
        let rest = self.held.split_off(self.held.len().saturating_sub(keep));
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::bytes_for_tests;
    use super::*;

    /// The pieces of a stream over `ids`, the last one from `finish`.
    fn pieces(ids: &[i64], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut stream = TextStream::new(bytes_for_tests(), &stops);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        (pieces, stream.stopped())
    }

    fn bytes(text: &str) -> Vec<i64> {
        text.bytes().map(i64::from).collect()
    }

    #[test]
    fn text_comes_whole_and_by_characters() {
        let texts = [
            "",
            "plain words",
            "naïve café — “quotes”",
            "日本語のテキスト、中文",
            "👩‍👩‍👧‍👦 family, 🇫🇷 flag, 👍🏽",
            "a\u{fffd}b",
            "\u{fffd}",
            "ends in 👍",
            "e\u{301} combining",
        ];
        for text in texts {
            let (pieces, stopped) = pieces(&bytes(text), &[]);
            assert_eq!(pieces.concat(), text);
            assert!(!stopped);
            for piece in pieces {
                assert!(
                    !piece.contains('\u{fffd}') || text.contains('\u{fffd}'),
                    "half a character of {text:?}"
                );
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_what_the_decoder_writes() {
        let tokenizer = bytes_for_tests();
        let mut random = 1_u64;
        for length in 0..200 {
            let ids: Vec<i64> = (0..length)
                .map(|_| {
                    random = random
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    i64::try_from(random >> 56).unwrap()
                })
                .collect();
            assert_eq!(
                pieces(&ids, &[]).0.concat(),
                tokenizer.decode(&ids).unwrap(),
                "{ids:?}"
            );
        }
        let (pieces, _) = pieces(&[0xe2, 0x82], &[]);
        assert_eq!(pieces, ["", "", "\u{fffd}"]);
    }

    #[test]
    fn special_tokens_are_silent() {
        assert_eq!(pieces(&[257, 0x61, 258, 0x62], &[]).0.concat(), "ab");
        // Half a character waits for its other half, or for the end, however many silent ids come.
        let silent = [258; 40];
        assert_eq!(
            pieces(&[&[0x61, 0xc3][..], &silent, &[0xa9]].concat(), &[])
                .0
                .concat(),
            "aé"
        );
        assert_eq!(
            pieces(&[&[0xc3][..], &silent].concat(), &[]).0.concat(),
            "\u{fffd}"
        );
        assert_eq!(
            pieces(&[&[0xc3][..], &silent, &[0x62]].concat(), &[]).0.concat(),
            "\u{fffd}b"
        );
    }

    #[test]
    fn a_stop_string_is_never_shown_in_part() {
        struct Case {
            text: &'static str,
            stops: &'static [&'static str],
            expected: &'static str,
            stopped: bool,
        }
        let cases = [
            Case {
                text: "one\n\ntwo",
                stops: &["\n\n"],
                expected: "one",
                stopped: true,
            },
            Case {
                text: "one\ntwo",
                stops: &["\n\n"],
                expected: "one\ntwo",
                stopped: false,
            },
            Case {
                text: "one\n",
                stops: &["\n\n"],
                expected: "one\n",
                stopped: false,
            },
            Case {
                text: "aaab",
                stops: &["aab"],
                expected: "a",
                stopped: true,
            },
            Case {
                text: "ababac",
                stops: &["abac"],
                expected: "ab",
                stopped: true,
            },
            Case {
                text: "x STOP y",
                stops: &["", "STOP", " STO"],
                expected: "x",
                stopped: true,
            },
            Case {
                text: "été",
                stops: &["té"],
                expected: "é",
                stopped: true,
            },
            Case {
                text: "日本",
                stops: &["本"],
                expected: "日",
                stopped: true,
            },
            Case {
                text: "日本",
                stops: &["日月"],
                expected: "日本",
                stopped: false,
            },
            Case {
                text: "stop",
                stops: &["stop"],
                expected: "",
                stopped: true,
            },
            Case {
                text: "",
                stops: &["stop"],
                expected: "",
                stopped: false,
            },
        ];
        for case in cases {
            let (pieces, stopped) = pieces(&bytes(case.text), case.stops);
            assert_eq!(
                (pieces.concat().as_str(), stopped),
                (case.expected, case.stopped),
                "{:?}",
                case.text
            );
            let mut shown = String::new();
            for piece in pieces {
                shown.push_str(&piece);
                assert!(
                    case.expected.starts_with(&shown),
                    "{:?} was shown for {:?}",
                    shown,
                    case.text
                );
            }
        }
    }

    /// As it is defined: what comes before the first stop string, of all that the text has.
    #[test]
    fn stop_strings_of_few_letters_are_found_where_they_begin() {
        let mut random = 7_u64;
        let mut text = |most: u64| -> String {
            let mut next = || {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                random >> 40
            };
            (0..next() % most)
                .map(|_| if next() % 3 == 0 { 'b' } else { 'a' })
                .collect()
        };
        for _ in 0..2000 {
            let (said, stop) = (text(30), text(8));
            let (pieces, stopped) = pieces(&bytes(&said), &[stop.as_str()]);
            let at = said.find(&stop).filter(|_| !stop.is_empty());
            assert_eq!(stopped, at.is_some(), "{said} {stop}");
            assert_eq!(pieces.concat(), said[..at.unwrap_or(said.len())], "{said} {stop}");
        }
    }

    /// What is tried for a text grows with its length alone, not with the length of the stop string or with what is held back.
    #[test]
    fn long_stop_strings_cost_what_short_ones_do() {
        let beginnings = ["a", "aa", "ab", "aab", "abacabad"];
        for (beginning, length) in beginnings
            .into_iter()
            .flat_map(|word| [(word, 100), (word, 30_000)])
        {
            let mut stop = Stop::new(&format!("{}!", beginning.repeat(length)));
            assert!(
                stop.tried <= stop.bytes.len(),
                "{beginning}: {} for itself",
                stop.tried
            );
            stop.tried = 0;
            let text = format!(
                "{}x{}",
                beginning.repeat(length - 1),
                beginning.repeat(length + 50)
            );
            assert_eq!(stop.find(&text), None);
            assert!(
                stop.tried <= text.len(),
                "{beginning}: {} for {} bytes",
                stop.tried,
                text.len()
            );
            assert_eq!(stop.find("!"), Some(1));
        }
    }

    #[test]
    fn what_a_long_stop_string_held_back_comes_whole() {
        let stops: Vec<String> = (0..4).map(|_| format!("a{}!", ".".repeat(1 << 20))).collect();
        let mut stream = TextStream::new(bytes_for_tests(), &stops);
        assert_eq!(stream.push(0x61).unwrap(), "");
        for _ in 0..2000 {
            assert_eq!(stream.push(0x2e).unwrap(), "");
        }
        assert_eq!(stream.push(0x62).unwrap(), format!("a{}b", ".".repeat(2000)));
    }

    #[test]
    fn nothing_comes_after_a_stop_string() {
        let mut stream = TextStream::new(bytes_for_tests(), &["b".to_owned()]);
        assert_eq!(stream.push(0x61).unwrap(), "a");
        assert_eq!(stream.push(0x62).unwrap(), "");
        assert!(stream.stopped());
        assert_eq!(stream.push(0x63).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "");
    }
}
