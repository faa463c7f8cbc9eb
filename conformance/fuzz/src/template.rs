//! `template`: a chat template and messages, as a bundle's template is parsed and rendered.
//!
//! What it writes is the same each time, is bounded, and does not depend on how its lines end.

use crate::words;
use arbitrary::{Result, Unstructured};
use runtime::text::{ChatTemplate, TemplateContent, TemplateMessage, TemplatePart};
use std::collections::BTreeMap;

/// Longest source that is made.
const LONGEST: usize = 1 << 16;
/// Longest text that may be written.
const WRITTEN: usize = 64 << 20;

/// What templates are made of; a byte of the input stands for one each.
const PIECES: [&str; 128] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if ",
    " %}",
    "{% elif ",
    "{% else %}",
    "{% endif %}",
    "{{ ",
    " }}",
    "{{- ",
    " -}}",
    "{%- ",
    " -%}",
    "{# ",
    " #}",
    "{% set x = ",
    "{% set x %}",
    "{% endset %}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(x) }}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% raw %}",
    "{% endraw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{% continue %}",
    "{% set ns = namespace(a=1) %}",
    "{% set ns.a = ",
    "ns.a",
    "{% for k, v in x | items %}",
    "{% call f(1) %}",
    "{% endcall %}",
    "{% include 'chat' %}",
    "{% extends 'chat' %}",
    "{% import 'chat' as c %}",
    "{% block b %}",
    "{% endblock %}",
    "{% with a = x %}",
    "{% endwith %}",
    "{% autoescape true %}",
    "{% endautoescape %}",
    "messages",
    "m",
    "m.role",
    "m['content']",
    "m.content",
    "m.content[0].text",
    "messages[0]",
    "messages[-1]",
    "loop.index",
    "loop.first",
    "loop.previtem",
    "loop.cycle('a', 'b')",
    "loop(m)",
    "x",
    "a",
    "add_generation_prompt",
    "eos_token",
    "bos_token",
    "tools",
    "documents",
    "undefined",
    "none",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "1e308",
    "9223372036854775807",
    "170141183460469231731687303715884105727",
    "0.1",
    "''",
    "'a'",
    "'<image>'",
    "'<|im_start|>'",
    "'\n'",
    "\"\\u0000\"",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    ", ",
    ": ",
    ".",
    " + ",
    " - ",
    " * ",
    " / ",
    " // ",
    " % ",
    " ** ",
    " ~ ",
    " == ",
    " < ",
    " and ",
    " or ",
    "not ",
    "-",
    " in ",
    " is ",
    " is string",
    " is defined",
    " if ",
    " else ",
    "[1:]",
    "[::-1]",
    "[0]",
    " | trim",
    " | tojson",
    " | tojson(indent=2)",
    " | length",
    " | join('x')",
    " | replace('a', 'aa')",
    " | indent(99)",
    " | list",
    " | selectattr('type', 'equalto', 'image')",
    " | map(attribute='text')",
    ".strip()",
    ".split('a')",
    "range(99999)",
    "raise_exception('no')",
    "('x' * 99999)",
];

/// Messages, then a source: as it is, or of pieces.
pub fn run(data: &[u8]) {
    let _ = template(data, &mut Unstructured::new(data));
}

fn template(data: &[u8], u: &mut Unstructured<'_>) -> Result<()> {
    let kind: u8 = u.arbitrary()?;
    let messages = messages(u)?;
    let source = if kind.is_multiple_of(2) {
        let length = u.len();
        String::from_utf8_lossy(u.bytes(length)?).into_owned()
    } else {
        pieces(u)?
    };
    let tokens = BTreeMap::from([("eos_token".to_owned(), "<|im_end|>".to_owned())]);
    let input = [data, source.as_bytes()].concat();
    let parsed = match ChatTemplate::parse("chat.jinja", &source, &tokens) {
        Ok(parsed) => parsed,
        Err(error) => {
            words::check(&error.to_string(), &input);
            return Ok(());
        }
    };
    let prompt = kind & 2 == 0;
    let first = parsed.render(&messages, prompt);
    match &first {
        Ok(text) => assert!(text.len() <= WRITTEN, "{} bytes", text.len()),
        Err(error) => words::check(&error.to_string(), &input),
    }
    // A clock is in no template of this input.
    if !source.contains("strftime") && source.len() < 4096 {
        let again = parsed.render(&messages, prompt);
        if let (Ok(first), Ok(again)) = (&first, &again) {
            assert_eq!(first, again, "rendered twice, not the same");
        }
    }
    Ok(())
}

/// Text of pieces, in which one may be repeated.
fn pieces(u: &mut Unstructured<'_>) -> Result<String> {
    let mut source = String::new();
    while !u.is_empty() && source.len() < LONGEST {
        let byte: u8 = u.arbitrary()?;
        let piece = PIECES[usize::from(byte % 128)];
        // The highest bit says that it is repeated: chains are what a parser follows without end.
        let times = if byte < 128 {
            1
        } else {
            1 << u.int_in_range(1..=13)?
        };
        for _ in 0..times {
            if source.len() < LONGEST {
                source.push_str(piece);
            }
        }
    }
    Ok(source)
}

fn messages(u: &mut Unstructured<'_>) -> Result<Vec<TemplateMessage>> {
    let mut messages = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        let role = *u.choose(&["system", "user", "assistant"])?;
        let text = crate::edit::text(u)?;
        let content = match u.int_in_range(0..=2)? {
            0 => TemplateContent::Text(text),
            1 => TemplateContent::Parts(vec![TemplatePart::Text { text }]),
            _ => TemplateContent::Parts(vec![TemplatePart::Image, TemplatePart::Text { text }]),
        };
        messages.push(TemplateMessage { role, content });
    }
    Ok(messages)
}
