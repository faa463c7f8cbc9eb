//! How does a chat template turn messages into one text?
//!
//! The environment is the one in which transformers renders chat templates: `trim_blocks`, `lstrip_blocks`,
//! loop controls, `{% generation %}`, `raise_exception`, `strftime_now`, a `tojson` that is Python's
//! `json.dumps`, Python's methods on strings and dicts, Python's words for `true`, `false` and `none`.
//! Different here: `strftime_now` is in UTC, and `debug` is not known.
//!
//! A template may come from anywhere. It reaches no file, and what it may use is bounded, whatever it says:
//! its length and that of its expressions before it is parsed (`source`), its steps by minijinja's fuel,
//! and what a step may cost in time and memory by a budget (`weigh`, `metered`, `filters`). It is
//! parsed and rendered on a thread whose stack is large enough for what these bounds let through, whatever
//! the stack of the caller; where there is no room for such a thread, what is plain is rendered without.

mod filters;
mod json;
mod metered;
mod numbers;
mod python;
mod source;
mod strftime;
mod weigh;

use crate::PromptError;
use crate::catch::catch;
use minijinja::machinery::{CodeGenerator, Instructions, Vm, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use weigh::{MAX_TEXT, Spent};

/// Steps of one rendering, and those for each message: an ordinary template takes under a hundred a message.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 10_000;

/// Stack of the thread that parses and renders, in bytes. Only what is used of it is memory.
const STACK: usize = 64 << 20;

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

/// A chat template that can be parsed. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// As [`source::prepare`] leaves it.
    source: Arc<str>,
    name: Arc<str>,
    special_tokens: Arc<BTreeMap<String, String>>,
}

/// What all templates are rendered with, but for its fuel.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(environment);

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_formatter(|output, _, value| print(value, &mut Written(output)));
    filters::register(&mut environment);
    metered::register(&mut environment);
    environment.add_global(source::ONE, Value::from(1));
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        let refusal = Refusal(filters::words(&reason).to_owned());
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(refusal))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        strftime::strftime(filters::words(format), now)
    });
    environment
}

/// Writes a value as Python does.
fn print(value: &Value, output: &mut dyn std::fmt::Write) -> Result<(), Error> {
    if value.as_str().is_none() {
        // What is nested too deeply ends here.
        weigh::walk(value)?;
    }
    python::write(value, output)
}

/// What a template writes, at most [`MAX_TEXT`] bytes in all.
struct Written<'a, 'b>(&'a mut minijinja::Output<'b>);

impl std::fmt::Write for Written<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        weigh::write(text.len()).map_err(|_| std::fmt::Error)?;
        self.0.write_str(text)
    }
}

impl ChatTemplate {
    /// Parses `source`. `name` stands in errors; `special_tokens` (`bos_token`, `eos_token`, ...) are
    /// variables of it.
    ///
    /// # Errors
    /// A template that is broken, or longer than what is read; a system that gives no thread.
    pub fn parse(
        name: &str,
        source: &str,
        special_tokens: &BTreeMap<String, String>,
    ) -> Result<ChatTemplate, PromptError> {
        let wrong = |reason: String| PromptError::Template {
            name: name.to_owned(),
            reason,
        };
        let source = source::prepare(source).map_err(wrong)?;
        on_own_stack(&source, || compile(&source).map(|_| ()))
            .map_err(wrong)?
            .map_err(|error| wrong(explain(&error)))?;
        Ok(ChatTemplate {
            source: source.into(),
            name: name.into(),
            special_tokens: Arc::new(special_tokens.clone()),
        })
    }

    /// The conversation as text; with `add_generation_prompt`, it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// A template that refuses these messages, that fails, or that uses more time, memory or text than it
    /// may.
    pub fn render(
        &self,
        messages: &[TemplateMessage],
        add_generation_prompt: bool,
    ) -> Result<String, PromptError> {
        let rendered = on_own_stack(&self.source, || {
            let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
            weigh::begin(count, messages.iter().map(TemplateMessage::bytes).sum());
            let text = self.run(messages, count, add_generation_prompt);
            text.map_err(|error| (weigh::spent(), error))
        });
        let rendered = rendered.map_err(|reason| self.wrong(reason))?;
        rendered.map_err(|(spent, error)| self.failed(spent, &error))
    }

    fn run(&self, messages: &[TemplateMessage], count: u64, prompt: bool) -> Result<String, Error> {
        let (instructions, blocks) = compile(&self.source)?;
        let mut environment: Environment<'_> = ENVIRONMENT.clone();
        environment.set_fuel(Some(FUEL.saturating_add(count.saturating_mul(FUEL_PER_MESSAGE))));
        let mut variables: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        variables.insert("messages", Value::from_serialize(messages));
        variables.insert("add_generation_prompt", Value::from(prompt));
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        let variables = Value::from_serialize(&variables);
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        Vm::new(&environment).eval(&instructions, variables, &blocks, &mut output, AutoEscape::None)?;
        drop(output);
        Ok(text)
    }

    /// The name that stands in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, spent: Option<Spent>, error: &Error) -> PromptError {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Refusal>());
        if let Some(Refusal(reason)) = source {
            return PromptError::Refused {
                name: self.name.to_string(),
                reason: reason.clone(),
            };
        }
        self.wrong(match (spent, error.kind()) {
            (Some(Spent::Work), _) => "it takes too much time or memory (does it loop?)".to_owned(),
            (Some(Spent::Text), _) => format!("it writes over {MAX_TEXT} bytes"),
            (Some(Spent::Depth), _) => "its lists are nested too deeply".to_owned(),
            (None, ErrorKind::OutOfFuel) => "it runs too long (does it loop?)".to_owned(),
            _ => explain(error),
        })
    }

    fn wrong(&self, reason: String) -> PromptError {
        PromptError::Template {
            name: self.name.to_string(),
            reason,
        }
    }
}

impl TemplateMessage {
    /// Bytes of its texts.
    fn bytes(&self) -> u64 {
        let length = |text: &String| u64::try_from(text.len()).unwrap_or(u64::MAX);
        match &self.content {
            TemplateContent::Text(text) => length(text),
            TemplateContent::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    TemplatePart::Image => 0,
                    TemplatePart::Text { text } => length(text),
                })
                .sum(),
        }
    }
}

/// A template's blocks by name.
type Blocks<'source> = BTreeMap<&'source str, Instructions<'source>>;

/// Metered instructions of a prepared source: all of it, and its blocks.
fn compile(source: &str) -> Result<(Instructions<'_>, Blocks<'_>), Error> {
    let statements = parse(source, TEMPLATE, SyntaxConfig, source::WHITESPACE)?;
    let mut generator = CodeGenerator::new(TEMPLATE, source);
    generator.compile_stmt(&statements);
    let (instructions, blocks) = generator.finish();
    let blocks = blocks
        .iter()
        .map(|(name, instructions)| (*name, metered::meter(instructions)))
        .collect();
    Ok((metered::meter(&instructions), blocks))
}

/// Does `work` on a template's `source` where the stack is as large as the bounds of templates need. Where no
/// such thread can be had, a plain template is content with the caller's.
fn on_own_stack<T: Send>(source: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    on_stack(STACK, source, work)
}

fn on_stack<T: Send>(stack: usize, source: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    // A thread that cannot be started drops what it would have done.
    let work = Mutex::new(Some(work));
    let run = || {
        let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It is taken once: by the thread, or without one.
        let missing = || "its work was done before".to_owned();
        let work = work.ok_or_else(missing)?;
        catch(work).map_err(|_| "the template engine failed on it".to_owned())
    };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("template".to_owned());
        match builder.stack_size(stack).spawn_scoped(scope, run) {
            Ok(thread) => {
                let failed = |_| Err("the template engine failed on it".to_owned());
                thread.join().unwrap_or_else(failed)
            }
            Err(_) if source::is_plain(source) => run(),
            Err(error) => Err(format!("no thread to render it on: {error}")),
        }
    })
}

/// The words of a template that refuses its messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// What went wrong and where, without the inner name of the template.
fn explain(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {}", error.kind(), filters::words(detail)),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_template_is_rendered_where_no_thread_can_be_had() {
        // No system has such a stack.
        let none = usize::MAX / 2;
        assert_eq!(on_stack(none, "{{ 1 }}", || 7), Ok(7));
        let error = on_stack(none, "{% macro a() %}{{ a() }}{% endmacro %}", || 7);
        assert!(error.is_err_and(|error| error.starts_with("no thread to render it on")));
        assert_eq!(on_stack(STACK, "{{ 1 }}", || 7), Ok(7));
    }

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
            // As Python writes what is no text: recorded from Jinja 3.1.
            Case {
                source: "{{ messages[0].content }}",
                expected: "[{'type': 'image'}, {'type': 'text', 'text': \"What <b>& 'this'?\"}]",
            },
            Case {
                source: "{{ [1, 2.0, none, true, 'a\\n', {'b': []}] }}|{{ 1e16 }}|{{ 1.5e-7 }}|{{ 7 / 2 }}|{{ 4 / 2 }}",
                expected: "[1, 2.0, None, True, 'a\\n', {'b': []}]|1e+16|1.5e-07|3.5|2.0",
            },
            Case {
                source: "{{ [true, 1.0, none, ['x']] | join('|') }} {{ [[1], 'a'] | string }} {% set far = 1e16 %}{{ 'a' ~ messages[0].content[:1] ~ far }}",
                expected: "True|1.0|None|['x'] [[1], 'a'] a[{'type': 'image'}]1e+16",
            },
            // Recorded from Jinja 3.1.
            Case {
                source: "{{ messages[0].role is sequence }} {{ {} is sequence }} {{ [] is sequence }} {{ nothing is sequence }} {{ 3 is sequence }} {{ none is sequence }} {{ namespace(a=1) is sequence }}",
                expected: "True True True True False False False",
            },
            Case {
                source: "{{ 2.5 | round }} {{ 2.675 | round(2) }} {{ 5 | round }} {{ 2.1 | round(method='ceil') }} {{ 2.15 | round(1, 'floor') }} {{ 2.5 | round(precision=0) }}",
                expected: "2.0 2.67 5 3.0 2.1 2.0",
            },
            Case {
                source: "{{ 7 % -3 }} {{ -7.5 % 2 }} {{ 7 // -3 }} {{ 7.5 // -2 }} {{ 2 * 7 % 4 }} {{ 10 ** 2 % 7 }} {% set n = messages | length %}{{ -n % 2 }}",
                expected: "-2 0.5 -3 -4.0 2 2 1",
            },
            Case {
                source: "{{ \"they're a-b (c [d <e {f a_b x.y \u{e9}\" | title }}|{{ 5 | title }}|{{ '' | title }}",
                expected: "They're A-B (C [D <E {F A_b X.y \u{c9}|5|",
            },
            Case {
                source: "{{ [1e16, 0.00001, 2.0] | tojson }}{{ [1, none] | map('string') | join }}{{ 'ab' | join('-') }}",
                expected: "[1e+16, 1e-05, 2.0]1Nonea-b",
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
            "chat template `chat_template.jinja` refuses these messages: user first, assistant found"
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
}
