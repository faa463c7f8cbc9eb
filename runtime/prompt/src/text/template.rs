//! How does a chat template turn messages into one text?
//!
//! The environment is the one in which transformers renders chat templates: `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that is Python's `json.dumps`, Python's methods on strings and
//! dicts, Python's words for `true`, `false` and `none`. Different here: `strftime_now` is in UTC, and
//! `{% generation %}` is not known.
//!
//! A template may come from anywhere: it reaches no file, runs a bounded number of steps and writes a bounded text. What
//! it holds in variables on the way is not bounded.

use crate::PromptError;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Steps of one rendering, and those for each message: an ordinary template takes under a hundred a message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 10_000;

/// Longest text in bytes: over a thousand times the context of any model that there is.
const MAX_TEXT: usize = 64 << 20;

const TEMPLATE: &str = "chat";

/// A message as templates see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TemplateMessage {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What is said.
    pub content: TemplateContent,
}

/// A message's content, in the form that the template expects.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TemplateContent {
    /// A string.
    Text(String),
    /// A list of images and texts.
    Parts(Vec<TemplatePart>),
}

/// An entry of [`TemplateContent::Parts`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TemplatePart {
    /// `{"type": "image"}`
    Image,
    /// `{"type": "text", "text": ..}`
    Text {
        /// What is said.
        text: String,
    },
}

/// A chat template, parsed. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    name: String,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Parses `source`. `name` stands in errors; `special_tokens` (`bos_token`, `eos_token`, ...) are variables of it.
    pub fn parse(
        name: &str,
        source: &str,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<ChatTemplate, PromptError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|output, _, value| match value.kind() {
            ValueKind::Bool => Ok(output.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(output.write_str("None")?),
            _ => Ok(std::fmt::Write::write_fmt(output, format_args!("{value}"))?),
        });
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(reason)))
        });
        environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs());
            strftime(format, now)
        });
        environment
            .add_template_owned(TEMPLATE, source.to_owned())
            .map_err(|error| PromptError::Template {
                name: name.to_owned(),
                reason: explain(&error),
            })?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            name: name.to_owned(),
            special_tokens: special_tokens.clone(),
        })
    }

    /// The conversation as text; with `add_generation_prompt`, it ends where the assistant's answer begins.
    pub fn render(
        &self,
        messages: &[TemplateMessage],
        add_generation_prompt: bool,
    ) -> Result<String, PromptError> {
        let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
        let mut environment = Environment::clone(&self.environment);
        environment.set_fuel(Some(FUEL.saturating_add(count.saturating_mul(FUEL_PER_MESSAGE))));
        let mut variables: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        variables.insert("messages", Value::from_serialize(messages));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        let mut text = BoundedText(Vec::new());
        environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render_captured_to(variables, &mut text).map(|_| ()))
            .map_err(|error| self.failed(&error))?;
        String::from_utf8(text.0).map_err(|error| self.wrong(error.to_string()))
    }

    fn failed(&self, error: &Error) -> PromptError {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Refusal>());
        if let Some(Refusal(reason)) = source {
            return PromptError::Refused {
                reason: reason.clone(),
            };
        }
        self.wrong(match error.kind() {
            ErrorKind::OutOfFuel => "it runs too long (does it loop?)".to_owned(),
            ErrorKind::WriteFailure => format!("it writes over {MAX_TEXT} bytes"),
            _ => explain(error),
        })
    }

    fn wrong(&self, reason: String) -> PromptError {
        PromptError::Template {
            name: self.name.clone(),
            reason,
        }
    }
}

/// What a template wrote, at most [`MAX_TEXT`] bytes.
struct BoundedText(Vec<u8>);

impl std::io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > MAX_TEXT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The words of a template that refuses its messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// What went wrong and where, without the inner name of the template.
fn explain(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=.., sort_keys=..)`.
fn to_json(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let wrong = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}")));
    if !positional.is_empty() {
        return wrong("expected its arguments by name");
    }
    if named.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return wrong("`ensure_ascii` is not supported");
    }
    if named
        .get::<Option<Value>>("separators")?
        .is_some_and(|separators| !separators.is_none())
    {
        return wrong("`separators` is not supported");
    }
    let indent = named.get::<Option<usize>>("indent")?;
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 64) {
        return wrong("expected an `indent` of at most 64");
    }
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    write_json(&json, indent, sort_keys, 0, &mut text);
    Ok(Value::from(text))
}

fn write_json(
    value: &serde_json::Value,
    indent: Option<usize>,
    sort_keys: bool,
    depth: usize,
    text: &mut String,
) {
    use serde_json::Value as Json;
    let separate = |first: bool, text: &mut String| match indent {
        Some(width) => {
            text.push_str(if first { "\n" } else { ",\n" });
            text.extend(std::iter::repeat_n(' ', width * (depth + 1)));
        }
        None if first => {}
        None => text.push_str(", "),
    };
    let end = |text: &mut String| {
        if let Some(width) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    match value {
        Json::Array(values) if !values.is_empty() => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                separate(index == 0, text);
                write_json(value, indent, sort_keys, depth + 1, text);
            }
            end(text);
            text.push(']');
        }
        Json::Object(entries) if !entries.is_empty() => {
            let mut entries: Vec<_> = entries.iter().collect();
            if sort_keys {
                entries.sort_by_key(|(name, _)| *name);
            }
            text.push('{');
            for (index, (name, value)) in entries.into_iter().enumerate() {
                separate(index == 0, text);
                text.push_str(&Json::String(name.clone()).to_string());
                text.push_str(": ");
                write_json(value, indent, sort_keys, depth + 1, text);
            }
            end(text);
            text.push('}');
        }
        value => text.push_str(&value.to_string()),
    }
}

/// The directives that dates in prompts use, for `seconds` since 1970, in UTC.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (mut year, mut day) = (1970, seconds / 86_400);
    let weekday = DAYS
        .iter()
        .cycle()
        .nth(usize::try_from(day % 7).unwrap_or(0))
        .copied()
        .unwrap_or_default();
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let mut month = 0;
    for length in [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let month_name = MONTHS.get(month).copied().unwrap_or_default();
    let time = seconds % 86_400;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text.push_str(&match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{:02}", month + 1),
            Some('d') => format!("{:02}", day + 1),
            Some('e') => format!("{:2}", day + 1),
            Some('j') => format!("{day_of_year:03}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name.chars().take(3).collect(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday.chars().take(3).collect(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{:02}-{:02}", month + 1, day + 1),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            directive => {
                let directive = directive.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now: directive `%{directive}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[TemplateMessage]) -> Result<String, PromptError> {
        let special = BTreeMap::from([("eos_token".to_owned(), "<|im_end|>".to_owned())]);
        ChatTemplate::parse("chat_template.jinja", source, &special)?.render(messages, true)
    }

    fn said(role: &'static str, text: &str) -> TemplateMessage {
        TemplateMessage {
            role,
            content: TemplateContent::Text(text.to_owned()),
        }
    }

    fn asked() -> TemplateMessage {
        let text = TemplatePart::Text {
            text: "What <b>& 'this'?".to_owned(),
        };
        TemplateMessage {
            role: "user",
            content: TemplateContent::Parts(vec![TemplatePart::Image, text]),
        }
    }

    /// Every expected text was rendered by transformers 5.24.
    #[test]
    fn templates_render_as_in_transformers() {
        struct Case {
            source: &'static str,
            expected: &'static str,
        }
        let cases = [
            Case {
                source: "{% for m in messages %}\n  {% if m.role == 'user' %}\nU{{ m['role'] }}\n{% endif %}\n{% endfor %}\nend\n",
                expected: "Uuser\nend",
            },
            Case {
                source: "{% for c in messages[0]['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}{% for c in messages[0].content %}{% if c.type == 'text' %}{{ '\\n' + c.text }}{% endif %}{% endfor %}",
                expected: "<image>\nWhat <b>& 'this'?",
            },
            Case {
                source: "{{ eos_token }}{{ bos_token }}|{{ pad_token is defined }}",
                expected: "<|im_end|>|False",
            },
            Case {
                source: "{{ messages[0] | tojson }}",
                expected: "{\"role\": \"user\", \"content\": [{\"type\": \"image\"}, {\"type\": \"text\", \"text\": \"What <b>& 'this'?\"}]}",
            },
            Case {
                source: "{{ {'b': [1, 2.5, none], 'a': {}} | tojson(indent=2, sort_keys=true) }}",
                expected: "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2.5,\n    null\n  ]\n}",
            },
            Case {
                source: "{{ 'é\"<\\n' | tojson }}",
                expected: "\"é\\\"<\\n\"",
            },
            Case {
                source: "{{ true }} {{ none }} {{ false }} {{ 1.0 }} {{ tools }} {{ add_generation_prompt }}",
                expected: "True None False 1.0 None True",
            },
            Case {
                source: "{% set ns = namespace(found=false) %}{% for i in range(5) %}{% if i == 3 %}{% set ns.found = true %}{% break %}{% endif %}{{ i }}{% endfor %}{{ ns.found }}",
                expected: "012True",
            },
            Case {
                source: "{{ ' a '.strip() }}|{{ 'a,b'.split(',')[1] }}|{{ messages[0].get('name', 'x') }}|{{ 'ab'.startswith('a') }}",
                expected: "a|b|x|True",
            },
            Case {
                source: "{{ messages[0]['content'] is string }}{{ messages | length }}",
                expected: "False1",
            },
        ];
        for case in cases {
            assert_eq!(
                render(case.source, &[asked()]).unwrap(),
                case.expected,
                "{}",
                case.source
            );
        }
    }

    #[test]
    fn a_template_can_refuse() {
        let source = "{% if messages[0].role != 'user' %}\n{{ raise_exception('user first, ' ~ messages[0].role ~ ' found') }}{% endif %}";
        let error = render(source, &[said("assistant", "hello")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the chat template refuses these messages: user first, assistant found"
        );
        assert_eq!(render(source, &[said("user", "hello")]).unwrap(), "");
    }

    #[test]
    fn wrong_templates_are_named_with_the_line() {
        let cases = [
            ("{% if %}", "line 1"),
            ("a\n{{ messages[0].nothing.more }}", "line 2"),
            ("{{ missing_function() }}", "missing_function"),
            ("{{ messages | missing_filter }}", "missing_filter"),
            ("{% include 'other' %}", "other"),
            ("{{ 1 | tojson(separators=[',', ':']) }}", "separators"),
            ("{{ strftime_now('%Q') }}", "%Q"),
        ];
        for (source, part) in cases {
            let error = render(source, &[said("user", "hello")]).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("chat_template.jinja"),
                "{source}: {error}"
            );
        }
    }

    #[test]
    fn a_template_that_loops_is_stopped() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        for source in [nested, recursive] {
            let error = render(source, &[]).unwrap_err();
            assert!(matches!(error, PromptError::Template { .. }), "{error}");
        }
        let wide = "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
        let error = render(wide, &[]).map(|text| text.len()).unwrap_err();
        assert!(
            error.to_string().contains("it writes over 67108864 bytes"),
            "{error}"
        );
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(matches!(render(&deep, &[]), Err(PromptError::Template { .. })));
    }

    #[test]
    fn long_conversations_have_fuel() {
        let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + eos_token }}{% endfor %}";
        let messages = vec![said("user", "hello"); 20_000];
        assert!(render(source, &messages).is_ok());
    }

    #[test]
    fn dates() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %B %Y, %a", "29 February 2000, Tue"),
            (
                1_795_521_599,
                "%F %T %I %p %b %y%%",
                "2026-11-24 11:59:59 11 AM Nov 26%",
            ),
            (4_102_444_800, "%e.%m.%Y", " 1.01.2100"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
    }
}
