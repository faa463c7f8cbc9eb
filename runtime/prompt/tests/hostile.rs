//! Hostile templates: whatever one says, there is an answer or an error, soon, in bounded memory, and the
//! process of the host goes on, on threads with small stacks too.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use prompt::PromptError;
use prompt::text::{ChatTemplate, TemplateContent, TemplateMessage, TemplatePart};
use std::collections::BTreeMap;

/// A host's thread: too small for the chains below, parsed as they stand.
const SMALL_STACK: usize = 512 << 10;

fn messages() -> Vec<TemplateMessage> {
    let text = "What is it?".to_owned();
    let content = TemplateContent::Parts(vec![TemplatePart::Image, TemplatePart::Text { text }]);
    vec![TemplateMessage {
        role: "user",
        content,
    }]
}

/// Rendered on a thread with a small stack: the length of the text, or the words of the error.
fn render(source: &str) -> Result<usize, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(SMALL_STACK);
        let rendered = thread.spawn_scoped(scope, || {
            let template = ChatTemplate::parse("chat_template.jinja", source, &BTreeMap::new())?;
            template.render(&messages(), true).map(|text| text.len())
        });
        let rendered: Result<usize, PromptError> = rendered.unwrap().join().unwrap();
        rendered.map_err(|error| error.to_string())
    })
}

/// Chains that a parser follows with its stack, some longer than what is read and some just not.
fn chains() -> Vec<String> {
    let mut all = Vec::new();
    for count in [100, 340, 500, 680, 1000, 2000, 100_000] {
        for (before, link, after) in [
            ("{{ ", "-", "1 }}"),
            ("{{ ", "not ", "1 }}"),
            ("{{ 1", "**1", " }}"),
            ("{{ 1", "~1", " }}"),
            ("{{ x", "~x", " }}"),
            ("{{ 1", "+1", " }}"),
            ("{{ x", "*1", " }}"),
            ("{{ 1", " and 1", " }}"),
            ("{{ x", " or x", " }}"),
            ("{{ x", ".a", " }}"),
            ("{{ x", "|list", " }}"),
            ("{{ x", " is none", " }}"),
            ("{{ x", "[0]", " }}"),
            ("{{ x", "[0:]", " }}"),
            ("{{ x", "()", " }}"),
            ("{{ x", ".a()", " }}"),
            ("{{ 1", " < 1", " }}"),
            ("{{ 1", " in x", " }}"),
            ("{{ 1", " if 1 else 1", " }}"),
            ("{% if 0 %}", "{% elif 1 %}", "{% endif %}"),
            ("{{ ", "[", "1 }}"),
            ("{{ ", "(", "1 }}"),
            ("{{ ", "{'a':", "1 }}"),
            ("{{ x(", "*x,", "1) }}"),
            ("{{ [", "1,", "1] }}"),
            ("", "{% if 1 %}", ""),
            ("", "{% for i in [1] %}", ""),
            ("", "{% macro a() %}", ""),
            ("", "{% set x %}", ""),
            ("{% set x = 1", " if x else x", " %}"),
            ("{{ x", "|map('", "a') }}"),
        ] {
            all.push(format!("{before}{}{after}", link.repeat(count)));
        }
        let (open, close) = ("{% if 1 %}".repeat(count), "{% endif %}".repeat(count));
        all.push(format!("{open}{close}"));
        all.push(format!(
            "{}1{}",
            "{{ [".to_owned() + &"[".repeat(count),
            "]".repeat(count) + "] }}"
        ));
    }
    all
}

#[test]
fn chains_do_not_reach_the_end_of_the_stack() {
    let mut refused = 0;
    for source in chains() {
        // Some are legal and short. What matters is that the process goes on.
        if let Err(message) = render(&source) {
            assert!(message.contains("chat_template.jinja"), "{message}");
            assert!(message.len() < 10_000, "{} bytes", message.len());
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused}");
}

/// Loops that would nest, grow or go on, and what is said of each.
const GREEDY: &[(&str, &str)] = &[
    // Nesting.
    (
        "{% set ns = namespace(l=[]) %}{% for i in range(30000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l=[]) %}{% for i in range(30000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l|tojson }}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l={}) %}{% for i in range(30000) %}{% set ns.l = {'a': ns.l} %}{% endfor %}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l={}) %}{% for i in range(30000) %}{% set ns.l = dict(a=ns.l) %}{% endfor %}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(30000) %}{% set ns.l = ns.l|batch(1)|list %}{% endfor %}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(30000) %}{% set ns.l = ns.l|zip %}{% endfor %}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(30000) %}{% set ns.l = ns.l|slice(1) %}{% endfor %}",
        "nested too deeply",
    ),
    (
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "a namespace",
    ),
    (
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
        "a namespace",
    ),
    (
        "{% set ns = namespace() %}{% macro m() %}{{ ns }}{% endmacro %}{% set ns.m = m %}{{ ns }}",
        "",
    ),
    // Growing strings.
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s * 2 %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('x', 'xxxx') %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('', 'xxxx') %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s]|join(ns.s) %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s|join('xxxx') %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s.join([1, 2, 3]) %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='x\n') %}{% for i in range(99) %}{% set ns.s = (ns.s ~ '\n' ~ ns.s)|indent(60000) %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "",
    ),
    (
        "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = '%s%s%s' | format(ns.s, ns.s, ns.s) %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = '{0}{0}{0}'.format(ns.s) %}{% endfor %}",
        "too much time or memory",
    ),
    ("{{ '%999999999d' | format(1) }}", "a width of 999999999"),
    ("{{ '{:>999999999}'.format(1) }}", "a width of 999999999"),
    ("{{ '%*d' | format(999999999, 1) }}", ""),
    ("{{ 'x'|indent(99999999999) }}", "too much time or memory"),
    ("{{ 'x\nx'|indent(width=999999999) }}", "too much time or memory"),
    ("{{ 'x' * 99999999999 }}", ""),
    (
        "{{ ['x' * 99999999, 'x' * 99999999, 'x' * 99999999, 'x' * 99999999, 'x' * 99999999] }}",
        "too much time or memory",
    ),
    (
        "{{ ('x' * 99999999 ~ ('x' * 99999999 ~ ('x' * 99999999 ~ ('x' * 99999999 ~ x)))) }}",
        "too much time or memory",
    ),
    (
        "{{ [1] * 999999999 == [2] * 999999999 }}",
        "too much time or memory",
    ),
    ("{{ 3 in [1] * 99999999999 }}", "too much time or memory"),
    // Growing lists.
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l * 2 %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(l=[1]) %}{% for i in range(50) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l == ns.l }}",
        "too much time or memory",
    ),
    (
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [range(99999)] %}{% endfor %}",
        "too much time or memory",
    ),
    ("{{ ([1] * 999999999)[5:] }}", "too much time or memory"),
    ("{{ [1]|batch(9999999999, 0) }}", "too much time or memory"),
    ("{{ [1]|slice(9999999999) }}", "too much time or memory"),
    ("{{ range(99999999999) }}", ""),
    (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "it runs too long",
    ),
    // Much work in a step.
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s[1:2] }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s[i] }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s|length }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s == 'y' ~ s }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ 'y' in s }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s.find('y') }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s is startingwith(s) }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s|trim|title|upper }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for c in s %}{% break %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x ' * 15000000 %}{{ s.split() }}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x\n' * 15000000 %}{{ s.splitlines() }}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{{ s|list|length }}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for x in [s] recursive %}{{ loop(x) }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ loop.changed(s) }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set l = range(99999)|list %}{{ l|select('in', l)|list|length }}",
        "too much time or memory",
    ),
    (
        "{% set l = range(99999)|list %}{{ l|sort|unique|sort|unique|sort|unique|list|length }}",
        "too much time or memory",
    ),
    ("{{ 'abc'.count('') }}", ""),
    // Letters at the ends, looked for among many.
    (
        "{{ ('ab' * 9999999).strip('cdefghijklmnopqrstuvwxyz' * 40000 + 'ab') }}",
        "",
    ),
    (
        "{{ ('ab' * 9999999)|trim('cdefghijklmnopqrstuvwxyz' * 40000 + 'ab') }}",
        "",
    ),
    (
        "{% set s = '\u{3a3}' * 999999 %}{% for i in range(9999) %}{{ s.lower()|length }}{% endfor %}",
        "too much time or memory",
    ),
    // Hashes of long keys.
    (
        "{% set s = 'a' * 4000000 %}{% for i in range(20000) %}{% set d = {s: 1} %}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'a' * 9999999 %}{% set d = {'a': 1} %}{% for i in range(90000) %}{{ d[s] }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'a' * 9999999 %}{% set d = {'a': 1} %}{% for i in range(90000) %}{{ d.get(s) }}{% endfor %}",
        "too much time or memory",
    ),
    (
        "{% set s = 'a' * 9999999 %}{% set d = {'a': 1} %}{% for i in range(90000) %}{{ d|attr(s) }}{{ s in d }}{% endfor %}",
        "too much time or memory",
    ),
    // Writing.
    (
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "it writes over 67108864 bytes",
    ),
    // Steps.
    (
        "{% for a in range(9999) %}{% for b in [1, 2, 3, 4, 5, 6, 7, 8, 9] %}{% for c in [1, 2, 3, 4, 5, 6, 7, 8, 9] %}{% endfor %}{% endfor %}{% endfor %}",
        "it runs too long",
    ),
    (
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "recursion limit",
    ),
    (
        "{% macro again() %}{{ again() ~ again() }}{% endmacro %}{{ again() }}",
        "recursion limit",
    ),
    (
        "{{ raise_exception('x' * 9999999) }}",
        "refuses these messages: xxx",
    ),
    ("{{ strftime_now('x' * 99999999)|length }}", ""),
    ("{% include 'chat' %}", "chat"),
    ("{% extends 'chat' %}", "chat"),
    ("{{ debug() }}", "debug is unknown"),
];

#[test]
fn greedy_templates_are_stopped() {
    let mut failures = Vec::new();
    for (source, expected) in GREEDY {
        match (render(source), *expected) {
            (Ok(_), "") => {}
            (Err(message), expected) if message.contains(expected) && message.len() < 10_000 => {}
            (found, expected) => failures.push(format!("{source}: {found:?}, expected {expected:?}")),
        }
    }
    // One step writes a text as long as the file.
    let raw = "x".repeat(200_000);
    let loops = format!("{{% for i in range(9999) %}}{raw}{{% endfor %}}");
    for source in [
        format!("{{% set s %}}{loops}{{% endset %}}{{{{ s|length }}}}"),
        loops,
    ] {
        let message = render(&source).unwrap_err();
        assert!(message.contains("it writes over 67108864 bytes"), "{message}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(render("{{ 'abc'.count('') }}"), Ok(1));
    #[cfg(target_os = "linux")]
    assert!(most_memory() < 500 << 20, "{}", most_memory());
}

/// The most memory that this process ever had, in bytes.
#[cfg(target_os = "linux")]
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    kilobytes * 1024
}
