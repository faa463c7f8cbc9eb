//! What of a repository is needed? Not the other formats of the weights, nor the pictures.

use super::Sibling;
use crate::error::HubProblem;
use models::checkpoint::{self, MAX_INDEX, adapter_files};
use models::regular;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What a repository is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A model.
    Checkpoint,
    /// A fine-tune of one.
    Adapter,
}

impl Wanted {
    /// The small files, the config first, and the index of shards if weights are sharded.
    pub(super) fn small(self, siblings: &[Sibling]) -> Vec<&Sibling> {
        let mut wanted = small(siblings);
        if self == Wanted::Adapter {
            let read =
                |name: &str| CONFIGS.contains(&name) || checkpoint::input_files().any(|one| one == name);
            wanted.retain(|sibling| read(&sibling.name));
        }
        wanted
    }

    /// The files of tensors, as far as can be told: see [`weights`]. Of an adapter that which is missing where a program was
    /// killed, its LoRA, comes last.
    ///
    /// # Errors
    /// An index that cannot be read, or names what the repository does not have; a repository without an adapter.
    pub(super) fn weights<'a>(
        self,
        siblings: &'a [Sibling],
        directory: &Path,
    ) -> Result<Vec<&'a Sibling>, HubProblem> {
        match self {
            Wanted::Checkpoint => weights(siblings, directory).map_err(|what| HubProblem::Protocol { what }),
            Wanted::Adapter => {
                let files = adapter_files(&|name| has(siblings, name));
                let files = files.map_err(|problem| HubProblem::NoAdapter { problem })?;
                let find = |name: &&str| siblings.iter().find(|sibling| sibling.name == **name);
                Ok(files.iter().rev().filter_map(find).collect())
            }
        }
    }

    /// Whether a snapshot has all that an export cannot do without.
    pub(super) fn is_whole(self, directory: &Path) -> bool {
        match self {
            Wanted::Checkpoint => is_whole(directory),
            Wanted::Adapter => adapter_files(&|name| directory.join(name).is_file()).is_ok(),
        }
    }

    /// What nobody knows without the hub of a snapshot that is whole: PEFT brings LoRA into the cache and nothing beside it.
    pub(super) fn unknown(self, directory: &Path, id: &str) -> Option<String> {
        let files = adapter_files(&|name| directory.join(name).is_file()).ok()?;
        let [lora] = files[..] else {
            return None;
        };
        let known = self == Wanted::Checkpoint || !directory.join(CONFIGS[0]).is_file();
        (!known).then(|| {
            format!(
                "of the adapter `{id}` the cache has `{lora}`; whether the hub has `non_lora_trainables.bin` or \
                 `mm_projector.bin` beside it was not asked"
            )
        })
    }
}

/// What says of which kind an adapter is, and of which model.
const CONFIGS: [&str; 2] = ["adapter_config.json", "config.json"];

/// A format of weights.
struct Form {
    /// Weights in one file.
    single: &'static str,
    /// Which shard has which tensor.
    index: &'static str,
    /// How names of shards end.
    ending: &'static str,
}

/// What a checkpoint is read from: the first of which there is a file.
const FORMS: [Form; 2] = [
    Form {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        ending: ".safetensors",
    },
    Form {
        single: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        ending: ".bin",
    },
];

/// The small files, the config first, and the index of shards if the weights are sharded.
fn small(siblings: &[Sibling]) -> Vec<&Sibling> {
    let form = form(siblings);
    let index = form
        .filter(|form| !has(siblings, form.single))
        .map(|form| form.index);
    let spelled = has(siblings, "tokenizer.json");
    let mut wanted: Vec<&Sibling> = siblings
        .iter()
        .filter(|sibling| match sibling.name.as_str() {
            name if FORMS.iter().any(|form| form.index == name) => index == Some(name),
            // A tokenizer.json says the same in one file; added tokens are read beside it.
            "vocab.json" | "merges.txt" => !spelled,
            name => {
                checkpoint::SMALL_FILES.contains(&name)
                    || checkpoint::is_license(name)
                    || checkpoint::is_named_template(name)
            }
        })
        .collect();
    wanted.sort_by_key(|sibling| sibling.name != "config.json");
    wanted
}

/// The files of the weights, as far as can be told: the shards that the index in `directory` names, or
/// without it all that look like shards. Empty where there are neither safetensors nor files of torch.
///
/// # Errors
/// An index that cannot be read, or names what the repository does not have.
fn weights<'a>(siblings: &'a [Sibling], directory: &Path) -> Result<Vec<&'a Sibling>, String> {
    let Some(Form {
        single,
        index,
        ending,
    }) = form(siblings)
    else {
        return Ok(Vec::new());
    };
    if let Some(single) = siblings.iter().find(|sibling| sibling.name == *single) {
        return Ok(vec![single]);
    }
    let Ok(text) = regular::text(&directory.join(index), MAX_INDEX) else {
        let shard = |sibling: &&Sibling| sibling.name.ends_with(ending) && !sibling.name.contains('/');
        return Ok(siblings.iter().filter(shard).collect());
    };
    let read: Index = serde_json::from_str(&text).map_err(|error| format!("`{index}`: {error}"))?;
    let names: BTreeSet<&String> = read.weight_map.values().collect();
    let found = |name: &String| {
        let plain = name.ends_with(ending) && !name.contains(['/', '\\']);
        let sibling = siblings.iter().find(|sibling| plain && sibling.name == *name);
        sibling.ok_or_else(|| format!("`{index}` names `{name}`, which the repository does not have"))
    };
    names.into_iter().map(found).collect()
}

/// Whether a snapshot has all that an export cannot do without.
fn is_whole(directory: &Path) -> bool {
    let there = |name: &str| directory.join(name).is_file();
    let shards = |form: &Form| {
        let text = regular::text(&directory.join(form.index), MAX_INDEX).ok()?;
        let index: Index = serde_json::from_str(&text).ok()?;
        Some(!index.weight_map.is_empty() && index.weight_map.values().all(|name| there(name)))
    };
    let whole = |form: &Form| there(form.single) || shards(form).unwrap_or(false);
    there("config.json") && FORMS.iter().any(whole)
}

/// The format that a checkpoint of these files is read in.
fn form(siblings: &[Sibling]) -> Option<&'static Form> {
    let there = |form: &&Form| has(siblings, form.single) || has(siblings, form.index);
    FORMS.iter().find(there)
}

fn has(siblings: &[Sibling], name: &str) -> bool {
    siblings.iter().any(|sibling| sibling.name == name)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siblings(names: &[&str]) -> Vec<Sibling> {
        let sibling = |name: &&str| Sibling {
            name: (*name).to_owned(),
            size: None,
        };
        names.iter().map(sibling).collect()
    }

    const INDEX: &str = FORMS[0].index;

    fn names(found: &[&Sibling]) -> Vec<String> {
        found.iter().map(|sibling| sibling.name.clone()).collect()
    }

    #[test]
    fn other_formats_and_pictures_stay_there() {
        let repository = siblings(&[
            ".gitattributes",
            "LICENSE",
            "README.md",
            "acc_vs_latency.png",
            "added_tokens.json",
            "additional_chat_templates/default.jinja",
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/notes.md",
            "config.json",
            "merges.txt",
            "model.gguf",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer_config.json",
            "vocab.json",
        ]);
        let nowhere = Path::new("/nowhere");
        assert_eq!(
            names(&small(&repository)),
            [
                "config.json",
                "LICENSE",
                "README.md",
                "added_tokens.json",
                "additional_chat_templates/default.jinja",
                "additional_chat_templates/rag.jinja",
                "merges.txt",
                "tokenizer_config.json",
                "vocab.json"
            ]
        );
        assert_eq!(
            names(&weights(&repository, nowhere).unwrap()),
            ["model.safetensors"]
        );

        let repository = siblings(&[
            "added_tokens.json",
            "config.json",
            "merges.txt",
            "tokenizer.json",
            "vocab.json",
        ]);
        assert_eq!(
            names(&small(&repository)),
            ["config.json", "added_tokens.json", "tokenizer.json"]
        );
        assert!(weights(&repository, nowhere).unwrap().is_empty());
    }

    #[test]
    fn shards_by_their_index() {
        let repository = siblings(&[
            INDEX,
            "a.safetensors",
            "b.safetensors",
            "c.safetensors",
            "x/d.safetensors",
        ]);
        let directory = tempfile::tempdir().unwrap();
        let weights = |index: &str| {
            std::fs::write(directory.path().join(INDEX), index).unwrap();
            weights(&repository, directory.path()).map(|found| names(&found))
        };
        let all = super::weights(&repository, directory.path()).unwrap();
        assert_eq!(names(&all), ["a.safetensors", "b.safetensors", "c.safetensors"]);
        let two = r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#;
        assert_eq!(weights(two).unwrap(), ["a.safetensors", "b.safetensors"]);
        for (index, says) in [
            (
                r#"{"weight_map": {"x": "x/d.safetensors"}}"#,
                "names `x/d.safetensors`",
            ),
            (
                r#"{"weight_map": {"x": "e.safetensors"}}"#,
                "names `e.safetensors`",
            ),
            ("{", "model.safetensors.index.json`: EOF"),
        ] {
            let error = weights(index).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn files_of_torch_where_there_are_no_safetensors() {
        let nowhere = Path::new("/nowhere");
        let shards = [
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        ];
        let index = "pytorch_model.bin.index.json";
        let others = [
            "config.json",
            "optimizer.pt",
            "tokenizer.json",
            "training_args.bin",
        ];
        let single = siblings(&[&others[..], &["pytorch_model.bin"]].concat());
        assert_eq!(names(&small(&single)), ["config.json", "tokenizer.json"]);
        assert_eq!(names(&weights(&single, nowhere).unwrap()), ["pytorch_model.bin"]);

        let sharded = siblings(&[&others[..], &shards, &[index]].concat());
        assert_eq!(names(&small(&sharded)), ["config.json", "tokenizer.json", index]);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), "{}").unwrap();
        let map = format!(
            r#"{{"weight_map": {{"x": "{}", "y": "{}"}}}}"#,
            shards[1], shards[0]
        );
        std::fs::write(directory.path().join(index), map).unwrap();
        assert_eq!(names(&weights(&sharded, directory.path()).unwrap()), shards);
        assert!(!is_whole(directory.path()));
        for shard in shards {
            std::fs::write(directory.path().join(shard), "").unwrap();
        }
        assert!(is_whole(directory.path()));

        // An index of safetensors is enough.
        let both = siblings(&["a.safetensors", "config.json", INDEX, index, "pytorch_model.bin"]);
        assert_eq!(names(&small(&both)), ["config.json", INDEX]);
        assert_eq!(names(&weights(&both, nowhere).unwrap()), ["a.safetensors"]);
        let neither = siblings(&["config.json", "model.pth"]);
        assert!(weights(&neither, nowhere).unwrap().is_empty());
    }

    #[test]
    fn of_an_adapter_its_tensors_and_what_says_what_they_are() {
        let nowhere = Path::new("/nowhere");
        let repository = siblings(&[
            ".gitattributes",
            "LICENSE",
            "README.md",
            "adapter_config.json",
            "adapter_model.bin",
            "adapter_model.safetensors",
            "config.json",
            "generation_config.json",
            "mm_projector.bin",
            "non_lora_trainables.bin",
            "optimizer.pt",
            "tokenizer_config.json",
            "training_args.bin",
        ]);
        let adapter = Wanted::Adapter;
        assert_eq!(
            names(&adapter.small(&repository)),
            ["config.json", "adapter_config.json", "tokenizer_config.json"]
        );
        assert_eq!(
            names(&adapter.weights(&repository, nowhere).unwrap()),
            [
                "mm_projector.bin",
                "non_lora_trainables.bin",
                "adapter_model.safetensors"
            ]
        );
        let refused = |names: &[&str]| {
            adapter
                .weights(&siblings(names), nowhere)
                .unwrap_err()
                .to_string()
        };
        let message = refused(&["config.json", "model.safetensors"]);
        assert!(
            message.contains("the repository has no `adapter_model.safetensors`"),
            "{message}"
        );
        assert!(
            message.contains("`model.safetensors` is a whole model"),
            "{message}"
        );
        assert!(refused(&["adapter_model.bin"]).contains("without `adapter_config.json`"));
        assert!(refused(&["adapter_config.json", "mm_projector.bin"]).contains("neither"));

        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(directory.path().join(name), "").unwrap();
        write("adapter_config.json");
        assert!(!adapter.is_whole(directory.path()));
        write("adapter_model.bin");
        assert!(adapter.is_whole(directory.path()));
        let said = adapter.unknown(directory.path(), "a/b").unwrap();
        assert!(said.contains("the cache has `adapter_model.bin`"), "{said}");
        write("non_lora_trainables.bin");
        assert_eq!(adapter.unknown(directory.path(), "a/b"), None);
        assert_eq!(Wanted::Checkpoint.unknown(directory.path(), "a/b"), None);
    }
}
