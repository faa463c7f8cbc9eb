//! Answers that programs read: choices, schemas, expressions, log-probabilities.

use super::Folder;
use serde_json::{Value, json};

#[test]
fn the_likeliest_choice_is_the_answer() {
    let folder = Folder::new();
    folder.run(&["--choices", "R,G,B", "red.png"]).success("R\n");
    folder
        .run(&["--choices", " G , B.", "--choices", "?", "green.png"])
        .success("G\n");
    folder
        .run(&["--choices", "R,G", "red.png", "green.png"])
        .success("==> red.png <==\nR\n\n==> green.png <==\nG\n");
    folder
        .run(&[
            "--choices",
            "R,B",
            "--together",
            "red.png",
            "blue.png",
            "blue.png",
        ])
        .success("B\n");
    let records = folder
        .run(&["--choices", "R,R.,G", "--json", "--stats", "red.png"])
        .records();
    let record = &records[0];
    assert_eq!(record["text"], "R.");
    assert_eq!(record["end_counts"], true);
    let texts: Vec<&Value> = record["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["text"])
        .collect();
    assert_eq!(texts, [&json!("R"), &json!("R."), &json!("G")]);
    let sum: f64 = (0..3)
        .map(|number| record["choices"][number]["probability"].as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-9, "{record}");
    assert!(
        record["choices"][1]["logprob"].as_f64().unwrap() > record["choices"][0]["logprob"].as_f64().unwrap()
    );
    assert_eq!(record["images"][0], "red.png");
    // A chat goes on with what was chosen.
    folder
        .run_with(&["-i", "--choices", "R,G", "red.png"], b"which?\nand now?\n")
        .success("R\nR\n");
}

#[test]
fn choices_that_make_no_sense() {
    let folder = Folder::new();
    folder
        .run(&["--choices", "R,G,R", "red.png"])
        .failure(&["--choices has `R` twice"]);
    folder
        .run(&["--choices", "R,<|im_end|>", "red.png"])
        .failure(&["choice 2", "special token"]);
    folder
        .run(&["--choices", "R,,G", "red.png"])
        .failure(&["--choices has an empty choice"]);
    folder
        .run(&["--choices", "R,G", "--regex", "R", "red.png"])
        .failure(&["--choices", "--regex"]);
    // One that no picture could change ends the run, not each picture.
    let run = folder
        .run(&["--choices", "R,R", "--json", "red.png", "green.png"])
        .failure(&["`R` twice"]);
    assert_eq!(run.stderr.matches("`R` twice").count(), 1, "{run:?}");
    let run = folder
        .run(&["--choices", "R,<|im_end|>", "--json", "red.png", "green.png"])
        .failure(&["special token"]);
    assert_eq!(run.stderr.matches("special token").count(), 1, "{run:?}");
}

#[test]
fn answers_keep_to_an_expression() {
    let folder = Folder::new();
    folder.run(&["--regex", "[GB]\\?", "red.png"]).success("G?\n");
    folder
        .run(&["--regex", "(B|G)\\.?", "blue.png", "green.png"])
        .success("==> blue.png <==\nB.\n\n==> green.png <==\nG.\n");
    let records = folder
        .run(&["--json", "--regex", "R{5}", "--max-tokens", "3", "red.png"])
        .records();
    assert_eq!(
        (&records[0]["text"], &records[0]["finish"]),
        (&json!("RRR"), &json!("max_tokens"))
    );
    let records = folder
        .run(&["--json", "--regex", "R{3}", "--max-tokens", "3", "red.png"])
        .records();
    assert_eq!(
        (&records[0]["text"], &records[0]["finish"]),
        (&json!("RRR"), &json!("stop"))
    );
    let run = folder.run_with(
        &["-i", "--regex", "[GB]", "--temperature", "1", "red.png"],
        b"which?\n",
    );
    assert!(
        ["G\n", "B\n"].contains(&run.stdout.as_str()) && run.code == Some(0),
        "{run:?}"
    );
    folder
        .run(&["--regex", "(", "red.png"])
        .failure(&["regular expression", "hint: --regex"]);
    // No token of this bundle has these letters.
    folder
        .run(&["--regex", "[xyz]", "red.png"])
        .failure(&["regular expression"]);
}

#[test]
fn answers_keep_to_a_schema() {
    let folder = Folder::new();
    let write = |name: &str, text: &str| std::fs::write(folder.path(name), text).unwrap();
    // This bundle has no letters of JSON: all that can be seen is that it is looked at.
    write("null.json", "{\"type\": \"null\"}");
    folder
        .run(&["--json-schema", "null.json", "red.png"])
        .failure(&["JSON schema", "hint: --json-schema"]);
    write("not.json", "{\"not\": {}}");
    let run = folder
        .run(&["--json-schema", "not.json", "red.png", "green.png"])
        .failure(&["keywords", "not"]);
    assert_eq!(run.stderr.matches("cannot keep").count(), 1, "{run:?}");
    write("broken.json", "{\"type\": ");
    folder
        .run(&["--json-schema", "broken.json", "red.png"])
        .failure(&["--json-schema `broken.json`", "no JSON", "line 1"]);
    write("deep.json", &"[".repeat(100_000));
    folder
        .run(&["--json-schema", "deep.json", "red.png"])
        .failure(&["deep.json", "recursion"]);
    folder
        .run(&["--json-schema", "missing.json", "red.png"])
        .failure(&["missing.json", "cannot read"]);
}

#[test]
fn how_likely_each_token_is() {
    let folder = Folder::new();
    let records = folder
        .run(&["--json", "--logprobs=2", "red.png", "green.png"])
        .records();
    for (record, letter) in records.iter().zip(["R", "G"]) {
        let tokens = record["logprobs"].as_array().unwrap();
        assert_eq!(tokens.len(), 2, "{record}");
        assert_eq!(
            (&tokens[0]["token"], &tokens[1]["token"]),
            (&json!(letter), &json!("."))
        );
        assert_eq!(tokens[0]["bytes"], json!(letter.as_bytes()));
        assert_eq!(tokens[0]["id"], record["tokens"][0]);
        let top = tokens[0]["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (2, &json!(letter)));
        assert_eq!(top[0]["logprob"], tokens[0]["logprob"]);
        assert!(top[1]["logprob"].as_f64().unwrap() < top[0]["logprob"].as_f64().unwrap());
        assert!(tokens[0]["logprob"].as_f64().unwrap() <= 0.0);
    }
    let records = folder.run(&["--json", "--logprobs", "red.png"]).records();
    assert_eq!(records[0]["logprobs"][0]["top_logprobs"], json!([]));
    let records = folder.run(&["--json", "red.png"]).records();
    assert_eq!(records[0].get("logprobs"), None);
    folder.run(&["--logprobs", "red.png"]).failure(&["--json"]);
    // Of the model's own distribution, whatever a constraint allows.
    let records = folder
        .run(&["--json", "--logprobs=1", "--regex", "G", "red.png"])
        .records();
    let token = &records[0]["logprobs"][0];
    assert_eq!(
        (&token["token"], &token["top_logprobs"][0]["token"]),
        (&json!("G"), &json!("R"))
    );
}

#[test]
fn penalties_are_those_of_the_answer() {
    let folder = Folder::new();
    // Every logit of the second token is 0 but that of the full stop, 100.
    folder
        .run(&["--frequency-penalty", "2", "--presence-penalty", "-2", "red.png"])
        .success("R.\n");
    folder
        .run(&["--presence-penalty", "2.5", "red.png"])
        .failure(&["--presence-penalty is 2.5"]);
}
