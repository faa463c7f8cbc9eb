use super::*;
use serde_json::{Value, json};

/// Ids of the special tokens, and of the first merged one.
const ENDS: [i64; 2] = [256, 258];
const FIRST_MERGED: usize = 260;

/// A byte-level tokenizer as Qwen2's, but small: every byte, four special tokens, and a few words of JSON.
fn tokenizer() -> Tokenizer {
    let mut next = 0x100;
    let letters: Vec<String> = (0..256_u32)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
            _ => {
                next += 1;
                next - 1
            }
        })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    let mut vocabulary: serde_json::Map<String, Value> = (0_usize..)
        .zip(&letters)
        .map(|(id, letter)| (letter.clone(), id.into()))
        .collect();
    let words = [
        ("t", "r"),
        ("u", "e"),
        ("tr", "ue"),
        ("{", "\""),
        ("\"", ":"),
        ("\":", "Ġ"),
        ("\"", "}"),
        ("a", "b"),
        ("<", "|"),
    ];
    for (id, (a, b)) in (FIRST_MERGED..).zip(words) {
        vocabulary.insert(format!("{a}{b}"), id.into());
    }
    let merges: Vec<String> = words.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"];
    let added: Vec<Value> = (256..)
        .zip(special)
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": merges}
    });
    Tokenizer::read("tokenizer.json".as_ref(), json.to_string().as_bytes()).unwrap()
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new(&tokenizer(), &ENDS).unwrap()
}

/// An answer of tokens drawn from those that may come; `None` where it has no end after so many.
fn walk(
    vocabulary: &Vocabulary,
    follower: &mut Follower,
    seed: u64,
    most: usize,
) -> Result<Option<String>, ConstraintError> {
    let trie = vocabulary.factory.tok_env().tok_trie();
    let mut random = seed.wrapping_mul(2) + 1;
    let mut bytes = Vec::new();
    for _ in 0..most {
        let allowed = follower.allowed()?;
        let may: Vec<u32> = (0..u32::try_from(trie.vocab_size()).unwrap())
            .filter(|&id| allowed[usize::try_from(id / 32).unwrap()] >> (id % 32) & 1 == 1)
            .collect();
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let place = usize::try_from(random >> 33).unwrap() % may.len();
        let id = may[place];
        if ENDS.contains(&i64::from(id)) {
            return Ok(Some(String::from_utf8(bytes).unwrap()));
        }
        assert!(!trie.is_special_token(id), "{id} is no text");
        bytes.extend_from_slice(trie.token(id));
        if follower.take(i64::from(id))? {
            return Ok(Some(String::from_utf8(bytes).unwrap()));
        }
    }
    Ok(None)
}

fn walks(vocabulary: &Vocabulary, constraint: &Constraint) -> Vec<String> {
    let walk = |seed| walk(vocabulary, &mut vocabulary.follow(constraint).unwrap(), seed, 400).unwrap();
    let found: Vec<String> = (0..20).filter_map(walk).collect();
    assert!(!found.is_empty(), "{constraint:?}");
    found
}

/// JSON, unless it has a number beyond float64, which is JSON too.
fn parsed(answer: &str) -> Option<Value> {
    match serde_json::from_str(answer) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().contains("number out of range") => None,
        Err(error) => panic!("{answer}: {error}"),
    }
}

fn schema_error(vocabulary: &Vocabulary, schema: Value) -> String {
    match vocabulary.follow(&Constraint::JsonSchema(schema.clone())) {
        Err(error @ (ConstraintError::Schema { .. } | ConstraintError::TooLarge { .. })) => error.to_string(),
        other => panic!("{schema}: {other:?}"),
    }
}

#[test]
fn answers_match_the_expression_as_a_whole() {
    let vocabulary = vocabulary();
    for text in walks(&vocabulary, &Constraint::Regex("[a-c]{2,4}(x|/)?".to_owned())) {
        let body = text.trim_end_matches(['x', '/']);
        assert!(
            (2..=4).contains(&body.len()) && text.len() <= body.len() + 1,
            "{text}"
        );
        assert!(body.chars().all(|letter| "abc".contains(letter)), "{text}");
    }
    // Where a text is complete and could go on, the model may end it.
    let mut follower = vocabulary.follow(&Constraint::Regex("a+".to_owned())).unwrap();
    let may_end = |follower: &mut Follower| follower.allowed().unwrap()[8] & 1 == 1;
    assert!(!may_end(&mut follower));
    assert_eq!(follower.take(i64::from(b'a')), Ok(false));
    assert!(may_end(&mut follower));
    // A token that may not come is no end of the process.
    assert!(matches!(
        follower.take(i64::from(b'b')),
        Err(ConstraintError::Stuck { .. })
    ));
    assert!(matches!(follower.allowed(), Err(ConstraintError::Stuck { .. })));
    assert!(matches!(follower.take(-1), Err(ConstraintError::Stuck { .. })));
}

#[test]
fn expressions_that_cannot_be_kept() {
    let vocabulary = vocabulary();
    let long = "a".repeat(MAX_TEXT + 1);
    for pattern in [
        "(",
        "a{2,1}",
        "",
        "()",
        "(?=a)b",
        "a\\",
        "[",
        long.as_str(),
        "(?P<x",
        "\\p{Nothing}",
        "[^\\s\\S]",
    ] {
        let error = vocabulary.follow(&Constraint::Regex(pattern.to_owned()));
        let error = error.map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                ConstraintError::Regex { .. } | ConstraintError::TooLarge { .. }
            ),
            "{pattern:.20}: {error:?}"
        );
        assert!(error.to_string().len() < 500, "{error}");
    }
}

/// Whether a text is an answer.
fn is_answer(vocabulary: &Vocabulary, schema: &Value, text: &str) -> bool {
    accepts(vocabulary, schema, &json!(text).to_string())
}

/// Whether a schema lets a model say this, and end.
fn accepts(vocabulary: &Vocabulary, schema: &Value, answer: &str) -> bool {
    let constraint = Constraint::JsonSchema(schema.clone());
    let mut follower = vocabulary.follow(&constraint).unwrap();
    let mut complete = false;
    for byte in answer.bytes() {
        match follower.take(i64::from(byte)) {
            Ok(now) => complete = now,
            Err(_) => return false,
        }
    }
    complete || follower.allowed().unwrap()[8] & 1 == 1
}

/// Python's datetime takes no second 60 and no 29th of February of other years, and RFC 3339 has them where they were.
#[test]
fn times_and_dates_are_those_of_calendar_and_clock() {
    let vocabulary = vocabulary();
    let cases: [(&str, &[&str], &[&str]); 3] = [
        (
            "time",
            &["23:59:59Z", "00:00:00.60+01:00"],
            &["23:59:60Z", "12:00:60.5Z", "12:60:00Z"],
        ),
        (
            "date",
            &[
                "2024-02-29",
                "2000-02-29",
                "2023-02-28",
                "2023-12-31",
                "1904-02-29",
                "2023-03-29",
            ],
            &[
                "2023-02-29",
                "1900-02-29",
                "2100-02-29",
                "2023-02-30",
                "2023-04-31",
            ],
        ),
        (
            "date-time",
            &["2024-02-29T23:59:59Z", "2023-06-30t23:59:00.60-00:00"],
            &[
                "2016-12-31T23:59:60Z",
                "2023-02-29T00:00:00Z",
                "2023-06-31T00:00:00Z",
            ],
        ),
    ];
    for (format, valid, invalid) in cases {
        let plain = json!({"type": "string", "format": format});
        let beside = json!({"type": "string", "format": format, "pattern": "[0-9]"});
        let referred = json!({"$ref": "#/$defs/x", "$defs": {"x": plain}});
        for schema in [plain, beside, referred] {
            for text in valid {
                assert!(is_answer(&vocabulary, &schema, text), "{schema} {text}");
            }
            for text in invalid {
                assert!(!is_answer(&vocabulary, &schema, text), "{schema} {text}");
            }
        }
    }
    // A pattern beside a format holds, and a property may have the name.
    let pattern = json!({"type": "string", "format": "time", "pattern": "^1"});
    assert!(is_answer(&vocabulary, &pattern, "10:00:00Z"));
    assert!(!is_answer(&vocabulary, &pattern, "20:00:00Z"));
    let named = json!({"type": "object", "properties": {"format": {"const": "time"}}, "required": ["format"],
                       "additionalProperties": false});
    walks(&vocabulary, &Constraint::JsonSchema(named));
    walks(
        &vocabulary,
        &Constraint::JsonSchema(json!({"enum": [{"format": "time"}]})),
    );
}

#[test]
fn one_of_different_constants() {
    let vocabulary = vocabulary();
    let options =
        json!([{"const": 1, "title": "low"}, {"enum": [2.5, -3, "x"]}, {"const": null}, {"const": true}]);
    let nested = json!({"type": "array", "minItems": 1, "maxItems": 1, "items": {"oneOf": options}});
    for text in ["1", "2.5", "-3", "\"x\"", "null", "true"] {
        assert!(accepts(&vocabulary, &json!({"oneOf": options}), text), "{text}");
        assert!(accepts(&vocabulary, &nested, &format!("[{text}]")), "{text}");
    }
    for text in ["2", "false", "\"y\"", "{}"] {
        assert!(!accepts(&vocabulary, &json!({"oneOf": options}), text), "{text}");
    }
    // One that is referred to stays where it is.
    let texts = json!([{"const": "x"}, {"const": "y"}]);
    let referred = json!({"type": "object", "additionalProperties": false, "required": ["b"],
                          "properties": {"a": {"oneOf": texts}, "b": {"$ref": "#/properties/a/oneOf/0"}}});
    assert!(accepts(&vocabulary, &referred, r#"{"b":"x"}"#));
    assert!(!accepts(&vocabulary, &referred, r#"{"b":"y"}"#));
}

#[test]
fn a_property_is_written_once() {
    let vocabulary = vocabulary();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    assert!(accepts(&vocabulary, &schema, r#"{"a":1,"b":"x"}"#));
    assert!(!accepts(&vocabulary, &schema, r#"{"a":1,"\u0061":"x"}"#));
    // Also beside patterns with escapes, and notes with anything.
    let schema = json!({"type": "object", "description": "\u{1b}", "required": ["a"],
                        "properties": {"a": {"type": "string", "pattern": "^[A-Z\\u00C0-\\u017F ]+$"}}});
    assert!(accepts(&vocabulary, &schema, r#"{"a":"A","b":1}"#));
    assert!(!accepts(&vocabulary, &schema, r#"{"a":"A","\u0061":1}"#));
    // What has no other spelling.
    assert!(accepts(&vocabulary, &json!({"const": "\u{1}"}), r#""\u0001""#));
}

#[test]
fn one_of_several_choices() {
    let vocabulary = vocabulary();
    let choices = ["yes", "no (never)", "a/b", "\u{1f600}|", "\"x\"\n"].map(str::to_owned);
    for text in walks(&vocabulary, &Constraint::Choices(choices.to_vec())) {
        assert!(choices.contains(&text), "{text:?}");
    }
    for wrong in [vec![], vec![String::new()]] {
        let error = vocabulary
            .follow(&Constraint::Choices(wrong))
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, ConstraintError::Choices { .. }), "{error:?}");
    }
}

/// What is written in a schema stands in the answer, whatever it means to the tokenizer.
#[test]
fn texts_that_the_tokenizer_would_change() {
    let vocabulary = vocabulary();
    for text in [
        "<|im_end|>",
        "e\u{301}",
        "a<image>b",
        "true",
        "\u{1f1eb}\u{1f1f7}",
        "\u{fffd}",
    ] {
        let constraint = Constraint::JsonSchema(json!({"const": text}));
        for answer in walks(&vocabulary, &constraint) {
            assert_eq!(
                serde_json::from_str::<Value>(&answer).unwrap(),
                json!(text),
                "{answer}"
            );
        }
        let constraint = Constraint::Choices(vec![text.to_owned()]);
        assert_eq!(walks(&vocabulary, &constraint)[0], text);
    }
}

#[test]
fn objects_of_a_schema() {
    let vocabulary = vocabulary();
    let schema = json!({
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 1, "maximum": 20},
                       "sure": {"type": "boolean"}},
        "required": ["color", "count"],
        "additionalProperties": false
    });
    for answer in walks(&vocabulary, &Constraint::JsonSchema(schema)) {
        let value: Value = serde_json::from_str(&answer).unwrap();
        assert!(
            ["red", "green"].contains(&value["color"].as_str().unwrap()),
            "{answer}"
        );
        assert!((1..=20).contains(&value["count"].as_i64().unwrap()), "{answer}");
        let most = 2 + usize::from(value.get("sure").is_some_and(Value::is_boolean));
        assert_eq!(value.as_object().unwrap().len(), most, "{answer}");
    }
    for answer in walks(&vocabulary, &Constraint::JsonObject) {
        assert!(parsed(&answer).is_none_or(|value| value.is_object()), "{answer}");
    }
}

/// The library would compile these to something that other answers are valid against.
#[test]
fn schemas_that_would_not_be_kept_are_refused() {
    let vocabulary = vocabulary();
    let cases = [
        (json!(false), "nothing is valid"),
        (json!("x"), "expected an object or a boolean"),
        (json!([1]), "expected an object or a boolean"),
        (json!({"type": "thing"}), "thing"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), ""),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "string", "format": "nonsense"}), "nonsense"),
        (json!({"type": "string", "pattern": "("}), ""),
        (json!({"$ref": "https://example.com/x.json"}), "example.com"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"properties": {"a": {"$id": "x"}}}), "`$id` inside"),
        (json!({"enum": [9_007_199_254_740_993_u64]}), "too large"),
        (
            json!({"type": "array", "maxItems": 1001}),
            "`maxItems` is 1001, expected at most 1000",
        ),
        (json!({"type": "integer", "minimum": 1e300}), "too large"),
        (
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}),
            "`exclusiveMinimum` is 0",
        ),
        (
            json!({"type": "number", "minimum": -2.5, "exclusiveMaximum": -2}),
            "`exclusiveMaximum` is -2",
        ),
        (
            json!({"items": {"exclusiveMinimum": 7, "exclusiveMaximum": 7.5}}),
            "`exclusiveMinimum` is 7",
        ),
        (
            json!({"allOf": [{"type": "number", "exclusiveMinimum": 1}, {"maximum": 1.5}]}),
            "`exclusiveMinimum` is 1",
        ),
        (
            json!({"type": "object", "minProperties": 2}),
            "`minProperties` is 2",
        ),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            "oneOf",
        ),
        (json!({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}), "oneOf"),
        (
            json!({"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 0.5}),
            "`exclusiveMinimum` is 0",
        ),
        (
            json!({"type": "number", "minimum": -0.5, "maximum": 0, "exclusiveMaximum": true}),
            "`exclusiveMaximum` is 0",
        ),
        (
            json!({"type": "object", "properties": {"ab": {"type": "number", "exclusiveMinimum": 0}},
                   "patternProperties": {"^a": {"maximum": 0.5}}}),
            "`exclusiveMinimum` is 0",
        ),
        (
            json!({"properties": {"a": {"multipleOf": 9973}}, "patternProperties": {"^a": {"multipleOf": 9967}}}),
            "`multipleOf`",
        ),
        (
            json!({"$ref": "#/default", "default": {"type": "array", "maxItems": 4_000_000_000_u64}}),
            "`$ref` is `#/default`",
        ),
        (
            json!({"$ref": "#/$defs", "$defs": {"type": "array", "maxItems": 4_000_000_000_u64}}),
            "`$ref` is `#/$defs`",
        ),
        (
            json!({"items": {"$ref": "#/examples/0"}, "examples": [{"type": "string", "format": "date"}]}),
            "`$ref` is `#/examples/0`",
        ),
        (
            json!({"$ref": "#/enum/0", "enum": [{"maxItems": 4_000_000_000_u64}]}),
            "`$ref` is `#/enum/0`",
        ),
        (
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "type": "object"}}, "$ref": "#/$defs/a"}),
            "",
        ),
    ];
    for (schema, words) in cases {
        let error = schema_error(&vocabulary, schema.clone());
        assert!(error.contains(words) && error.len() < 500, "{schema}: {error}");
    }
    // What is near to these is kept.
    for (schema, least, most) in [
        (
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
            0.0,
            1.0,
        ),
        (json!({"type": "number", "minimum": 0, "maximum": 0.5}), -0.1, 0.5),
        (
            json!({"type": "number", "exclusiveMinimum": -3, "exclusiveMaximum": 2}),
            -3.0,
            1.999_999_999,
        ),
    ] {
        for answer in walks(&vocabulary, &Constraint::JsonSchema(schema.clone())) {
            let number = parsed(&answer).unwrap().as_f64().unwrap();
            assert!(least < number && number <= most, "{schema}: {answer}");
        }
    }
    // Annotations, and keywords of the library itself, change nothing.
    let schema =
        json!({"x-guidance": {"lenient": true}, "title": "t", "$id": "urn:x", "type": "boolean", "x": 2});
    for answer in walks(&vocabulary, &Constraint::JsonSchema(schema)) {
        assert!(["true", "false"].contains(&answer.as_str()), "{answer}");
    }
}

/// A schema of so many levels, each in the other.
fn nested(levels: usize, inside: Value) -> Value {
    (0..levels).fold(inside, |inner, _| json!({"type": "array", "items": inner}))
}

/// Each ends with an error or a constraint, in bounded time and memory; none ends the process.
#[test]
fn hostile_schemas_come_to_an_end() {
    let vocabulary = vocabulary();
    let chain = |count: usize| {
        let definition = |number: usize| {
            (
                format!("a{number}"),
                json!({"$ref": format!("#/$defs/a{}", number + 1)}),
            )
        };
        let mut definitions: serde_json::Map<String, Value> = (0..count).map(definition).collect();
        definitions.insert(format!("a{count}"), json!({"type": "null"}));
        json!({"$defs": definitions, "$ref": "#/$defs/a0"})
    };
    let doubling = {
        let definition = |number: usize| {
            let next = json!({"$ref": format!("#/$defs/a{}", number + 1)});
            (
                format!("a{number}"),
                json!({"type": "object", "properties": {"x": next, "y": next}, "required": ["x", "y"]}),
            )
        };
        let mut definitions: serde_json::Map<String, Value> = (0..40).map(definition).collect();
        definitions.insert("a40".to_owned(), json!({"type": "null"}));
        json!({"$defs": definitions, "$ref": "#/$defs/a0"})
    };
    let either = |number: usize| {
        json!({"anyOf": [{"properties": {format!("p{number}"): {"type": "string"}}},
                                                  {"properties": {format!("q{number}"): {"type": "integer"}}}]})
    };
    let product = json!({"allOf": (0..24).map(either).collect::<Vec<_>>()});
    let many: serde_json::Map<String, Value> = (0..20_000)
        .map(|number| (format!("p{number}"), json!(true)))
        .collect();
    let words: Vec<String> = (0..40_000).map(|number| format!("word {number}")).collect();
    let schemas = [
        nested(49, json!({"type": "null"})),
        nested(200, json!({"type": "null"})),
        chain(1_900),
        chain(20_000),
        doubling,
        product,
        json!({"type": "object", "properties": many}),
        json!({"enum": words}),
        json!({"type": "array", "items": {"type": "null"}, "minItems": 1_000_000_000}),
        json!({"type": "array", "items": {"type": "null"}, "minItems": 100_000, "maxItems": 200_000}),
        json!({"type": "string", "minLength": 4_000_000_000_u64}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 100_001}),
        json!({"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"}),
        json!({"type": "string", "pattern": "^(.*a.{60}|.*b.{60})$", "maxLength": 1000}),
        json!({"type": "string", "pattern": "(a|b|ab)*c".repeat(500)}),
        json!({"type": "string", "pattern": format!("{}a{}", "(".repeat(5000), ")".repeat(5000))}),
        json!({"type": "number", "multipleOf": 1e-15}),
        json!({"type": "integer", "multipleOf": 9_007_199_254_740_991_u64}),
        json!({"type": "integer", "multipleOf": 9_999_991}),
        json!({"type": "number", "multipleOf": 1.999999}),
        json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}),
        json!({"const": "a".repeat(400_000)}),
        json!({"type": "string", "pattern": "(((a{1000}){1000}){1000})"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"$ref": "#"}),
        json!({"items": {"$ref": "#"}, "type": "array"}),
        json!({"minItems": -1, "maxItems": "x", "required": [1], "properties": [], "type": ["array", 3]}),
        json!({"const": "\u{e9}".repeat(200), "enum": {}}),
        json!({"patternProperties": {"^a.*": {"type": "null"}, ".*b$": {"type": "null"}}}),
        json!({"oneOf": (0..3000).map(|number| json!({"const": number})).collect::<Vec<_>>()}),
    ];
    for schema in schemas {
        let words: String = schema.to_string().chars().take(80).collect();
        match vocabulary.follow(&Constraint::JsonSchema(schema)) {
            // In the middle of an answer it may be too much, and is said.
            Ok(mut follower) => match walk(&vocabulary, &mut follower, 3, 40) {
                Ok(_) | Err(ConstraintError::Stuck { .. }) => {}
                Err(other) => panic!("{other:?}"),
            },
            Err(ConstraintError::Schema { reason }) => {
                assert!(reason.len() <= MAX_REASON + 3, "{words}: {reason}")
            }
            Err(ConstraintError::TooLarge { .. }) => {}
            Err(other) => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn hostile_expressions_come_to_an_end() {
    let vocabulary = vocabulary();
    let patterns = [
        "((a{1,100}){1,100}){1,100}".to_owned(),
        "(.*a.{200}|.*b.{200}|.*c.{200})".to_owned(),
        "(a|b|ab)*c".repeat(2000),
        format!("{}a{}", "(".repeat(5000), ")".repeat(5000)),
        "\\p{L}{1000}".to_owned(),
        "[\\w--\\d]{1,4000000}".to_owned(),
        "(?i)".to_owned() + &"ß".repeat(5000),
        "a{4294967295}".to_owned(),
        "a{99999999999999999999}".to_owned(),
        "((((a*)*)*)*)*b".to_owned(),
        ".{1000000}".to_owned(),
    ];
    for pattern in patterns {
        match vocabulary.follow(&Constraint::Regex(pattern.clone())) {
            // In the middle of an answer it may be too much, and is said.
            Ok(mut follower) => match walk(&vocabulary, &mut follower, 3, 40) {
                Ok(_) | Err(ConstraintError::Stuck { .. }) => {}
                Err(other) => panic!("{other:?}"),
            },
            Err(ConstraintError::Regex { .. } | ConstraintError::TooLarge { .. }) => {}
            Err(other) => panic!("{pattern:.40}: {other:?}"),
        }
    }
}

#[test]
fn a_tokenizer_that_is_not_byte_level_is_said() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
        "post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
    let tokenizer = Tokenizer::read("words.json".as_ref(), json.as_bytes()).unwrap();
    let error = Vocabulary::new(&tokenizer, &[]).map(drop).unwrap_err();
    assert!(
        matches!(&error, ConstraintError::Tokenizer { reason } if reason.contains("words.json")),
        "{error}"
    );
}

/// Schemas from a seed: objects, arrays, enumerations, bounds, lengths, alternatives, each in the other.
struct Maker(u64);

impl Maker {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    fn schema(&mut self, depth: u32) -> Value {
        let kind = self.below(if depth == 0 { 6 } else { 10 });
        match kind {
            0 => {
                let least = self.below(5);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(9)})
            }
            1 => {
                let least = i64::try_from(self.below(200)).unwrap() - 100;
                let most = least + i64::try_from(self.below(1000)).unwrap();
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            2 => json!({"type": "number", "exclusiveMinimum": -2.5, "maximum": self.below(90)}),
            3 => json!({"enum": ["red", "a \"word\"", self.below(9), null, true, "\u{fc}"]}),
            4 => json!({"const": [self.below(3), {"x": "\n"}]}),
            5 => json!({"type": ["boolean", "null"]}),
            6 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            7 => {
                let least = self.below(3);
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": least, "maxItems": least + self.below(3)})
            }
            _ => {
                let names = ["a", "count", "color name", "\u{e9}"];
                let count = usize::try_from(1 + self.below(4)).unwrap();
                let names = &names[..count];
                let properties: serde_json::Map<String, Value> = names
                    .iter()
                    .map(|&name| (name.to_owned(), self.schema(depth - 1)))
                    .collect();
                let required: Vec<&str> = names.iter().copied().filter(|_| self.below(2) == 0).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }
        }
    }
}

/// Whether a value is valid against a schema of [`Maker`], which says all that there is to check.
fn valid(schema: &Value, value: &Value) -> bool {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(options) = schema.get("anyOf") {
        return options
            .as_array()
            .unwrap()
            .iter()
            .any(|option| valid(option, value));
    }
    if let Some(values) = schema.get("enum") {
        return values.as_array().unwrap().contains(value);
    }
    if let Some(expected) = schema.get("const") {
        return expected == value;
    }
    match (schema["type"].as_str(), value) {
        (Some("string"), Value::String(text)) => {
            let length = text.chars().count().to_string().parse().unwrap();
            bound("minLength").unwrap() <= length && length <= bound("maxLength").unwrap()
        }
        (Some("integer"), Value::Number(number)) => {
            number.is_i64()
                && bound("minimum").unwrap() <= number.as_f64().unwrap()
                && number.as_f64().unwrap() <= bound("maximum").unwrap()
        }
        (Some("number"), Value::Number(number)) => {
            let number = number.as_f64().unwrap();
            bound("exclusiveMinimum").unwrap() < number && number <= bound("maximum").unwrap()
        }
        (Some("array"), Value::Array(items)) => {
            let length: f64 = items.len().to_string().parse().unwrap();
            let counts = bound("minItems").unwrap() <= length && length <= bound("maxItems").unwrap();
            counts && items.iter().all(|item| valid(&schema["items"], item))
        }
        (Some("object"), Value::Object(members)) => {
            let required = schema["required"].as_array().unwrap();
            required
                .iter()
                .all(|name| members.contains_key(name.as_str().unwrap()))
                && members.iter().all(|(name, member)| {
                    schema["properties"]
                        .get(name)
                        .is_some_and(|schema| valid(schema, member))
                })
        }
        (None, Value::Bool(_) | Value::Null) => true,
        _other => false,
    }
}

#[test]
fn finished_answers_are_valid_against_random_schemas() {
    let vocabulary = vocabulary();
    let mut finished = 0;
    for seed in 0..100 {
        let schema = Maker(seed).schema(3);
        let constraint = Constraint::JsonSchema(schema.clone());
        let mut follower = vocabulary
            .follow(&constraint)
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
        if let Some(answer) = walk(&vocabulary, &mut follower, seed, 600).unwrap()
            && let Some(value) = parsed(&answer)
        {
            assert!(valid(&schema, &value), "{schema}: {answer}");
            finished += 1;
        }
    }
    assert!(finished > 50, "{finished}");
}
