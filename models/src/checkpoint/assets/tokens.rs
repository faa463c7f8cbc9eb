//! Special tokens: in which files do they stand, and which ids do they get?
//!
//! The places are read in the order in which transformers reads them: `added_tokens_decoder` in
//! `tokenizer_config.json`; without that field `special_tokens_map.json` and `added_tokens.json`; the tokens
//! that `tokenizer.json` adds itself; and those that a name (`eos_token`) or a list (`extra_special_tokens`)
//! stands for. As there, an added token has the id that the vocabulary has for it, or the next free one: a
//! file that states another id contradicts what every tokenizer will do, and is refused.

use super::Files;
use crate::checkpoint::error::CheckpointError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The file whose fields name special tokens.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The files of older checkpoints.
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The names that every tokenizer of transformers has, in its order.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
/// Lists of tokens without a name, in both spellings.
const LISTS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// What Qwen2's tokenizer is told when nothing else is said.
const QWEN2_DEFAULT: &str = "<|endoftext|>";

/// For these names.
const QWEN2_NAMES: [&str; 3] = ["eos_token", "unk_token", "pad_token"];
/// Its class.
pub(super) const QWEN2_CLASS: &str = "Qwen2Tokenizer";

/// What the files say about special tokens.
#[derive(Debug, Default)]
pub(super) struct Special {
    /// The tokens that names stand for, in transformers' order.
    pub(super) named: Vec<(String, String)>,
    /// Those of the lists.
    pub(super) listed: Vec<String>,
    /// The file besides `tokenizer.json` that some token was only in.
    pub(super) from: Option<&'static str>,
}

/// A token that is to be added.
struct Wanted {
    content: String,
    /// What its file states.
    id: Option<u64>,
    from: &'static str,
    /// As `tokenizer.json` has them: `special`, `normalized`, `lstrip`, `rstrip`, `single_word`.
    flags: Map<String, Value>,
}

impl Wanted {
    fn special(content: &str, from: &'static str) -> Wanted {
        Wanted {
            content: content.to_owned(),
            id: None,
            from,
            flags: flags(true),
        }
    }
}

/// The flags of a token that no file has flags for: transformers normalizes around those that are not
/// special.
fn flags(special: bool) -> Map<String, Value> {
    let mut flags = Map::new();
    for name in ["single_word", "lstrip", "rstrip"] {
        flags.insert(name.to_owned(), Value::from(false));
    }
    flags.insert("normalized".to_owned(), Value::from(!special));
    flags.insert("special".to_owned(), Value::from(special));
    flags
}

/// An entry of `added_tokens` in `tokenizer.json`.
fn entry(content: &str, id: u64, flags: &Map<String, Value>) -> Value {
    let mut token = Map::new();
    token.insert("id".to_owned(), json!(id));
    token.insert("content".to_owned(), Value::from(content));
    token.extend(flags.clone());
    Value::Object(token)
}

/// Adds to `tokenizer` (the contents of `tokenizer.json`) the tokens that other files have. `qwen2` says that
/// it was made of Qwen2's `vocab.json`; `rows` are those of the embedding table.
///
/// # Errors
/// A file that is not what it is called, ids that contradict each other, an `eos_token` that is no token.
pub(super) fn complete(
    files: &Files<'_>,
    config: &Value,
    tokenizer: &mut Value,
    qwen2: bool,
    rows: u64,
) -> Result<Special, CheckpointError> {
    let decoder = config
        .get("added_tokens_decoder")
        .filter(|field| !field.is_null());
    let map = match decoder {
        Some(_) => None,
        None => files.json(SPECIAL_TOKENS_MAP)?,
    };
    let named = named(config, map.as_ref(), qwen2 || is_qwen2(config));
    let listed = listed(config, map.as_ref());
    let mut wanted = match decoder {
        Some(field) => of_decoder(files, field)?,
        None => of_added_tokens(files, &named, &listed)?,
    };
    wanted.sort_by_key(|token| token.id);

    let mut table = Table::of(files, tokenizer)?;
    for token in &wanted {
        table.add(files, token, u64::MAX)?;
    }
    let from = if table.added.is_empty() {
        None
    } else {
        wanted.first().map(|token| token.from)
    };
    let eos = named.iter().find(|(name, _)| name == "eos_token");
    let adds_default = qwen2 || is_qwen2(config);
    let known = |token: &str| table.id(token).is_some() || adds_default && token == QWEN2_DEFAULT;
    if let Some((_, eos)) = eos.filter(|(_, eos)| !known(eos)) {
        let problem = format!("`eos_token` is `{eos}`, which the tokenizer does not know");
        return Err(files.config(TOKENIZER_CONFIG, problem));
    }
    let silent = |name: &str| {
        let says = |file: &Value| file.get(name).is_some();
        !says(config) && !map.as_ref().is_some_and(says)
    };
    let default = qwen2 && QWEN2_NAMES.into_iter().any(silent);
    let default = default.then_some(QWEN2_DEFAULT);
    let names = named.iter().map(|(_, content)| content.as_str());
    for content in default
        .into_iter()
        .chain(names)
        .chain(listed.iter().map(String::as_str))
    {
        table.add(files, &Wanted::special(content, TOKENIZER_CONFIG), rows)?;
    }
    let from = from.or((!table.added.is_empty()).then_some(TOKENIZER_CONFIG));
    let added = table.added;
    extend(tokenizer, added);
    Ok(Special { named, listed, from })
}

/// Adds one special token to `tokenizer` and says its id; `None` where it would be beyond `rows`.
///
/// # Errors
/// A `tokenizer.json` whose ids contradict each other.
pub(super) fn append(
    files: &Files<'_>,
    content: &str,
    tokenizer: &mut Value,
    rows: u64,
) -> Result<Option<i64>, CheckpointError> {
    let mut table = Table::of(files, tokenizer)?;
    table.add(files, &Wanted::special(content, TOKENIZER), rows)?;
    let id = table.tokens.get(content).copied();
    let added = table.added;
    extend(tokenizer, added);
    Ok(id.and_then(|id| i64::try_from(id).ok()))
}

/// Which ids a tokenizer gives, found as the tokenizers library finds them.
struct Table<'a> {
    vocabulary: HashMap<&'a str, u64>,
    /// Its ids.
    ids: HashSet<u64>,
    tokens: BTreeMap<String, u64>,
    /// The largest id of `tokens`.
    last: Option<u64>,
    /// Entries that `tokenizer.json` lacks.
    added: Vec<Value>,
}

impl<'a> Table<'a> {
    /// The vocabulary and the added tokens of a `tokenizer.json`, whose ids must be those that they will get.
    fn of(files: &Files<'_>, tokenizer: &'a Value) -> Result<Table<'a>, CheckpointError> {
        let wrong = |problem: String| CheckpointError::malformed(&files.path(TOKENIZER), problem);
        let vocabulary = match tokenizer.pointer("/model/vocab") {
            Some(Value::Object(tokens)) => tokens
                .iter()
                .filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?)))
                .collect(),
            // A list of tokens with their scores, in order of the ids.
            Some(Value::Array(tokens)) => tokens
                .iter()
                .zip(0..)
                .filter_map(|(token, id)| Some((token.get(0)?.as_str()?, id)))
                .collect(),
            _ => HashMap::new(),
        };
        let mut table = Table {
            ids: vocabulary.values().copied().collect(),
            vocabulary,
            tokens: BTreeMap::new(),
            last: None,
            added: Vec::new(),
        };
        // Those of the file are added all at once: only new ones count.
        let length = u64::try_from(table.vocabulary.len()).unwrap_or(u64::MAX);
        let mut fresh = 0;
        let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
        for (index, token) in tokens.into_iter().flatten().enumerate() {
            let content = token.get("content").and_then(Value::as_str);
            let id = token.get("id").and_then(Value::as_u64);
            let (Some(content), Some(id)) = (content, id) else {
                return Err(wrong(format!(
                    "`added_tokens[{index}]` is {token}, expected an object with `id` and `content`"
                )));
            };
            let given = table.id(content).unwrap_or(length.saturating_add(fresh));
            fresh += u64::from(table.id(content).is_none());
            if given != id {
                return Err(wrong(format!(
                    "`added_tokens[{index}]` states id {id} for `{content}`, the tokenizer gives it {given}"
                )));
            }
            table.put(content, id);
        }
        Ok(table)
    }

    fn put(&mut self, content: &str, id: u64) {
        self.tokens.insert(content.to_owned(), id);
        self.last = self.last.max(Some(id));
    }

    fn id(&self, content: &str) -> Option<u64> {
        let id = self.tokens.get(content).or_else(|| self.vocabulary.get(content));
        id.copied()
    }

    /// The next free id, as for a token that is added by itself: behind the vocabulary's length, or behind the
    /// last added token.
    fn next(&self) -> u64 {
        let length = u64::try_from(self.vocabulary.len()).unwrap_or(u64::MAX);
        self.last
            .map_or(length, |last| length.max(last.saturating_add(1)))
    }

    /// Adds a token that is not there; one whose next id is at `rows` or beyond is left out.
    fn add(&mut self, files: &Files<'_>, token: &Wanted, rows: u64) -> Result<(), CheckpointError> {
        let Wanted { content, from, .. } = token;
        if content.is_empty() {
            return Ok(());
        }
        let given = self.id(content).unwrap_or_else(|| self.next());
        if let Some(stated) = token.id.filter(|stated| *stated != given) {
            let problem = format!("states id {stated} for `{content}`, the tokenizer gives it {given}");
            return Err(CheckpointError::malformed(&files.path(from), problem));
        }
        if self.tokens.contains_key(content) {
            return Ok(());
        }
        if !self.vocabulary.contains_key(content.as_str()) {
            if given >= rows {
                return Ok(());
            }
            if self.ids.contains(&given) {
                let problem = format!("`{content}` would get id {given}, which is another token's");
                return Err(CheckpointError::malformed(&files.path(from), problem));
            }
        }
        self.added.push(entry(content, given, &token.flags));
        self.put(content, given);
        Ok(())
    }
}

/// Puts entries behind those of `tokenizer.json`. Who reads the file adds all of them at once, and gives those
/// that are not in the vocabulary the ids behind its length: where an entry states another one, they are put
/// into the vocabulary, too.
fn extend(tokenizer: &mut Value, added: Vec<Value>) {
    if added.is_empty() {
        return;
    }
    match tokenizer.get_mut("added_tokens").and_then(Value::as_array_mut) {
        Some(tokens) => tokens.extend(added),
        None => tokenizer["added_tokens"] = Value::Array(added),
    }
    let tokens = tokenizer.get("added_tokens").and_then(Value::as_array);
    let all = tokens.into_iter().flatten();
    let all: Vec<(String, u64)> = all
        .filter_map(|token| Some((content(token)?.to_owned(), token.get("id")?.as_u64()?)))
        .collect();
    let Some(vocabulary) = tokenizer
        .pointer_mut("/model/vocab")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let length = u64::try_from(vocabulary.len()).unwrap_or(u64::MAX);
    let mut fresh = all;
    fresh.retain(|(content, _)| !vocabulary.contains_key(content));
    if fresh.iter().zip(length..).any(|((_, id), given)| *id != given) {
        vocabulary.extend(fresh.into_iter().map(|(content, id)| (content, json!(id))));
    }
}

/// A token in a file: its text, or an object that has it.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Whether transformers would make a `Qwen2Tokenizer`, which takes ids from `tokenizer.json` and has a way of its own to
/// them.
pub(super) fn is_qwen2(config: &Value) -> bool {
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    class.is_some_and(|class| class.strip_suffix("Fast").unwrap_or(class) == QWEN2_CLASS)
}

/// The tokens that names stand for; `special_tokens_map.json`, where it counts, has the last word. `qwen2` says that
/// the class is Qwen2's, which has tokens for names that no file mentions.
fn named(config: &Value, map: Option<&Value>, qwen2: bool) -> Vec<(String, String)> {
    let mut found: BTreeMap<&str, &str> = BTreeMap::new();
    let mut order: Vec<&str> = NAMES.to_vec();
    if qwen2 {
        // Null is said, too: there is none then.
        let silent = |name: &&str| config.get(*name).is_none();
        let defaults = QWEN2_NAMES.into_iter().filter(silent);
        found.extend(defaults.map(|name| (name, QWEN2_DEFAULT)));
    }
    for file in std::iter::once(config).chain(map) {
        let own = file.as_object().into_iter().flatten();
        let own = own.filter(|(name, _)| name.ends_with("_token"));
        let lists = LISTS.iter().filter_map(|name| file.get(*name)?.as_object());
        for (name, value) in own.chain(lists.flatten()) {
            if let Some(token) = content(value) {
                if !order.contains(&name.as_str()) {
                    order.push(name);
                }
                found.insert(name, token);
            }
        }
    }
    let tokens = order.iter().filter_map(|name| Some((*name, *found.get(name)?)));
    tokens
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .collect()
}

/// The tokens of the lists.
fn listed(config: &Value, map: Option<&Value>) -> Vec<String> {
    let (mut tokens, mut seen) = (Vec::new(), HashSet::new());
    for file in std::iter::once(config).chain(map) {
        for list in LISTS.iter().filter_map(|name| file.get(*name)?.as_array()) {
            let fresh = list
                .iter()
                .filter_map(content)
                .filter(|token| seen.insert(*token));
            tokens.extend(fresh.map(str::to_owned));
        }
    }
    tokens
}

/// `added_tokens_decoder`: ids, as text, to tokens with flags.
fn of_decoder(files: &Files<'_>, field: &Value) -> Result<Vec<Wanted>, CheckpointError> {
    let wrong = |problem: String| files.config(TOKENIZER_CONFIG, problem);
    let Some(tokens) = field.as_object() else {
        return Err(wrong(format!(
            "`added_tokens_decoder` is {field}, expected an object"
        )));
    };
    let mut wanted = Vec::new();
    for (id, token) in tokens {
        let content = token.get("content").and_then(Value::as_str);
        let (Ok(id), Some(content)) = (id.parse(), content) else {
            return Err(wrong(format!(
                "`added_tokens_decoder` has {token} as `{id}`, expected a number and an object with `content`"
            )));
        };
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let mut own = flags(special);
        for (name, flag) in &mut own {
            if let Some(stated) = token.get(name) {
                *flag = stated.clone();
            }
        }
        wanted.push(Wanted {
            content: content.to_owned(),
            id: Some(id),
            from: TOKENIZER_CONFIG,
            flags: own,
        });
    }
    Ok(wanted)
}

/// `added_tokens.json`: tokens to ids. Those that a name or a list has are special.
fn of_added_tokens(
    files: &Files<'_>,
    named: &[(String, String)],
    listed: &[String],
) -> Result<Vec<Wanted>, CheckpointError> {
    let tokens = files.json(ADDED_TOKENS)?;
    let mut wanted = Vec::new();
    for (content, id) in tokens.iter().filter_map(Value::as_object).flatten() {
        let Some(id) = id.as_u64() else {
            let problem = format!("has {id} as id of `{content}`, expected a whole number");
            return Err(CheckpointError::malformed(&files.path(ADDED_TOKENS), problem));
        };
        let special = content == QWEN2_DEFAULT
            || named.iter().any(|(_, token)| token == content)
            || listed.contains(content);
        wanted.push(Wanted {
            content: content.clone(),
            id: Some(id),
            from: ADDED_TOKENS,
            flags: flags(special),
        });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gives_every_token_the_id_that_its_entry_states() {
        let entries = |tokens: &[(&str, u64)]| -> Vec<Value> {
            let entry = |(content, id): &(&str, u64)| entry(content, *id, &flags(true));
            tokens.iter().map(entry).collect()
        };
        // A vocabulary without gaps stays as it is.
        let mut dense = json!({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": entries(&[("<e>", 2)])});
        extend(&mut dense, entries(&[("<image>", 3)]));
        assert_eq!(dense["model"]["vocab"], json!({"a": 0, "b": 1}));
        assert_eq!(dense["added_tokens"][1]["id"], 3);
        // Special tokens far behind the others: the next one would be the third of all.
        let mut sparse =
            json!({"model": {"vocab": {"a": 0, "<e>": 100}}, "added_tokens": entries(&[("<e>", 100)])});
        extend(&mut sparse, entries(&[("<image>", 101)]));
        assert_eq!(
            sparse["model"]["vocab"],
            json!({"a": 0, "<e>": 100, "<image>": 101})
        );
    }
}
