//! Template source before it is parsed: line ends, bounds that keep the parser from the end of its stack, and
//! what is written otherwise for it.

use minijinja::machinery::{Span, Token, WhitespaceConfig, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Longest source in bytes: ten times the longest template that is published.
const MAX_BYTES: usize = 1 << 18;
/// Most tokens of one tag. A chain of operators is parsed, compiled and dropped with a frame of the stack for
/// each of its members, and the parser counts only brackets. Published templates have at most some hundred.
pub(super) const MAX_TOKENS: usize = 2048;
/// Most `elif` in all: each nests in the one before it.
pub(super) const MAX_ELIF: usize = 512;

/// A variable that is 1: see [`prepare`].
pub(super) const ONE: &str = "__one";

/// How white space around tags is treated, as transformers asks Jinja to.
pub(super) const WHITESPACE: WhitespaceConfig = WhitespaceConfig {
    keep_trailing_newline: false,
    lstrip_blocks: true,
    trim_blocks: true,
};

/// The source that is parsed for `template`:
///
/// - line ends are line feeds, as Jinja makes them;
/// - `{% generation %}`, which transformers uses to find what an assistant says, is `{% with %}`: it has a
///   scope of its own and writes what stands inside;
/// - a product has a factor of [`ONE`], so that none is computed while the template is compiled, where
///   nothing bounds it; so has what is divided by `%` and `//`, which minijinja computes otherwise there.
///
/// # Errors
/// A template that is longer, or has more in one tag, than what is parsed. What the lexer does not know is
/// left to the parser, which says the line.
pub(super) fn prepare(template: &str) -> Result<String, String> {
    if template.len() > MAX_BYTES {
        let length = template.len();
        return Err(format!("it is {length} bytes long, at most {MAX_BYTES} are read"));
    }
    let source = template.replace("\r\n", "\n").replace('\r', "\n");
    let edits = edits(&source)?;
    let mut prepared = String::with_capacity(source.len() + 16 * edits.len());
    let mut at = 0;
    for Edit { from, to, text } in edits {
        prepared.push_str(source.get(at..from).unwrap_or_default());
        prepared.push_str(text);
        at = to;
    }
    prepared.push_str(source.get(at..).unwrap_or_default());
    Ok(prepared)
}

/// Bytes of the source that are written otherwise.
struct Edit {
    from: usize,
    to: usize,
    text: &'static str,
}

fn place(span: Span) -> Option<(usize, usize)> {
    Some((
        usize::try_from(span.start_offset).ok()?,
        usize::try_from(span.end_offset).ok()?,
    ))
}

/// Walks over the tokens of the source.
fn edits(source: &str) -> Result<Vec<Edit>, String> {
    let mut edits = Vec::new();
    // Tokens of the tag so far, and whether the last one ends an operand.
    let (mut tokens, mut operand, mut elif, mut block) = (0_usize, false, 0_usize, false);
    for token in tokenize(source, false, SyntaxConfig, WHITESPACE) {
        let Ok((token, span)) = token else {
            break;
        };
        if let Token::TemplateData(_)
        | Token::VariableStart
        | Token::VariableEnd
        | Token::BlockStart
        | Token::BlockEnd = token
        {
            (tokens, operand) = (0, false);
            block = matches!(token, Token::BlockStart);
            continue;
        }
        tokens += 1;
        if tokens > MAX_TOKENS {
            let line = span.start_line;
            return Err(format!(
                "a tag has over {MAX_TOKENS} tokens (line {line}): expressions of that length are not read"
            ));
        }
        match &token {
            Token::Ident("elif") if block && tokens == 1 => {
                elif += 1;
                if elif > MAX_ELIF {
                    let line = span.start_line;
                    return Err(format!("it has over {MAX_ELIF} `elif` (line {line})"));
                }
            }
            Token::Ident("generation") if block && tokens == 1 => edits.extend(edit(span, "with")),
            Token::Ident("endgeneration") if block && tokens == 1 => edits.extend(edit(span, "endwith")),
            // Not that of `f(*arguments)`.
            Token::Mul if operand => edits.extend(edit(span, "* __one *")),
            Token::Mod if operand => edits.extend(edit(span, "* __one %")),
            Token::FloorDiv if operand => edits.extend(edit(span, "* __one //")),
            _ => {}
        }
        operand = matches!(
            token,
            Token::Ident(_)
                | Token::Str(_)
                | Token::String(_)
                | Token::Int(_)
                | Token::Int128(_)
                | Token::Float(_)
                | Token::BracketClose
                | Token::ParenClose
                | Token::BraceClose
        );
    }
    Ok(edits)
}

/// Whether a prepared source needs no more of the stack than any thread has: few tags, none of them long, and
/// nothing that calls itself. Published templates are so, or nearly so.
pub(super) fn is_plain(source: &str) -> bool {
    const MOST: usize = 64;
    let (mut tokens, mut blocks) = (0_usize, 0_usize);
    for token in tokenize(source, false, SyntaxConfig, WHITESPACE) {
        match token {
            Ok((Token::VariableStart | Token::BlockStart, _)) => {
                tokens = 0;
                blocks += 1;
            }
            Ok((Token::Ident("macro" | "call" | "recursive"), _)) | Err(_) => return false,
            Ok(_) => tokens += 1,
        }
        if tokens > MOST || blocks > MOST {
            return false;
        }
    }
    true
}

fn edit(span: Span, text: &'static str) -> Option<Edit> {
    let (from, to) = place(span)?;
    Some(Edit { from, to, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_otherwise() {
        let cases = [
            ("a\r\nb\rc\n", "a\nb\nc\n"),
            (
                "{%- generation -%}x{%generation%}{% endgeneration +%}",
                "{%- with -%}x{%with%}{% endwith +%}",
            ),
            ("{{ generation }} generation", "{{ generation }} generation"),
            ("{{ 'a*b' * 3 }}", "{{ 'a*b' * __one * 3 }}"),
            (
                "{{ 7 % -3 }}{% if a//b %}%{% endif %}",
                "{{ 7 * __one % -3 }}{% if a* __one //b %}%{% endif %}",
            ),
            ("{{ f(*a) }}{{ f(1, *a, **b) }}", "{{ f(*a) }}{{ f(1, *a, **b) }}"),
            (
                "{# 2 * 3 #}{% raw %}{{ 2 * 3 }}{% endraw %}2 * 3",
                "{# 2 * 3 #}{% raw %}{{ 2 * 3 }}{% endraw %}2 * 3",
            ),
            ("é{{ (2)*x[1]*y }}", "é{{ (2)* __one *x[1]* __one *y }}"),
        ];
        for (template, expected) in cases {
            assert_eq!(prepare(template).unwrap(), expected);
        }
    }

    #[test]
    fn what_any_stack_can_hold() {
        let demo = include_str!("../../../../../models/demo/checkpoint/chat_template.jinja");
        assert!(is_plain(&prepare(demo).unwrap()));
        for long in [
            &"{% if 1 %}".repeat(65),
            &format!("{{{{ {}1 }}}}", "-".repeat(65)),
            "{% macro a() %}{{ a() }}{% endmacro %}",
            "{% for a in b recursive %}{{ loop(b) }}{% endfor %}",
        ] {
            assert!(!is_plain(long), "{long}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let chain = |count: usize| format!("{{{{ {}1 }}}}", "-".repeat(count));
        assert!(prepare(&chain(MAX_TOKENS - 1)).is_ok());
        assert!(
            prepare(&chain(MAX_TOKENS))
                .unwrap_err()
                .contains("over 2048 tokens (line 1)")
        );
        let elif = |count: usize| format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(count));
        assert!(prepare(&elif(MAX_ELIF)).is_ok());
        assert!(
            prepare(&elif(MAX_ELIF + 1))
                .unwrap_err()
                .contains("over 512 `elif`")
        );
        assert!(prepare(&"x".repeat(MAX_BYTES)).is_ok());
        assert!(
            prepare(&"x".repeat(MAX_BYTES + 1))
                .unwrap_err()
                .contains("at most 262144")
        );
    }
}
