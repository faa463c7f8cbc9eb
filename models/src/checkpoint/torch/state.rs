//! Which tensors does a torch file hold, under which names? A dict of tensors by name (a state dict), itself
//! or in a dict around it.

use super::pickle::Loaded;
use super::values::{Id, Value, Values, View};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// What programs call the state dict where they save it with other things: PyTorch Lightning, timm,
/// DeepSpeed.
const AROUND: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Most entries that a message names.
const SHOWN: usize = 8;

/// The tensors of a pickle by name.
#[derive(Debug)]
pub(super) struct State<'v, 'a> {
    pub(super) tensors: Vec<(&'a str, &'v View<'a>)>,
    /// Entries that are no tensors of the model, sorted.
    pub(super) skipped: Vec<String>,
}

/// Finds the tensors.
///
/// # Errors
/// What is no dict of tensors, keys that are no names, or a name that stands twice.
pub(super) fn read<'v, 'a>(loaded: &'v Loaded<'a>) -> Result<State<'v, 'a>, String> {
    let values = &loaded.values;
    // A name once: together they are not longer than the pickle.
    let mut skipped = BTreeSet::new();
    let mut entries = dict(values, loaded.root)?;
    let around = |key: Id| values.text(key).is_some_and(|key| AROUND.contains(&key));
    let mut inner = entries
        .iter()
        .filter(|(key, value)| around(*key) && matches!(values.get(*value), Value::Dict(_)));
    if let Some((key, value)) = inner.next() {
        if let Some((other, _)) = inner.next() {
            let name = |key: Id| values.text(key).unwrap_or_default();
            return Err(format!(
                "holds tensors under `{}` and under `{}`, expected one of them: save that one alone",
                name(*key),
                name(*other)
            ));
        }
        for (other, _) in entries.iter().filter(|(other, _)| other != key) {
            skipped.insert(label(values, *other));
        }
        entries = dict(values, *value)?;
    }
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for (key, value) in entries {
        match (values.get(*value), values.text(*key)) {
            (Value::Tensor(view), Some(name)) => {
                if !names.insert(name) {
                    return Err(format!("has tensor `{name}` twice"));
                }
                tensors.push((name, &**view));
            }
            (Value::Tensor(_), None) => {
                let key = label(values, *key);
                return Err(format!("has a tensor whose key is {key}, expected a name"));
            }
            _ => drop(skipped.insert(label(values, *key))),
        }
    }
    let skipped: Vec<String> = skipped.into_iter().map(Cow::into_owned).collect();
    if tensors.is_empty() && !skipped.is_empty() {
        return Err(empty(&skipped));
    }
    Ok(State { tensors, skipped })
}

fn dict<'v>(values: &'v Values<'_>, id: Id) -> Result<&'v [(Id, Id)], String> {
    match values.get(id) {
        Value::Dict(entries) => Ok(entries),
        other => {
            let found = other.kind();
            Err(format!(
                "holds {found}, expected a dict of tensors by name (a `state_dict()`)"
            ))
        }
    }
}

/// A key for messages.
fn label<'a>(values: &Values<'a>, key: Id) -> Cow<'a, str> {
    match values.get(key) {
        Value::Text(text) => Cow::Borrowed(text),
        Value::Int(number) => Cow::Owned(number.to_string()),
        other => Cow::Borrowed(other.kind()),
    }
}

/// What a file without tensors holds.
pub(super) fn empty(skipped: &[String]) -> String {
    let shown: Vec<String> = skipped
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    let found = match (skipped.len(), shown.len()) {
        (0, _) => "an empty dict".to_owned(),
        (all, shown_count) if all > shown_count => {
            format!("{} and {} more", shown.join(", "), all - shown_count)
        }
        _ => shown.join(", "),
    };
    format!("holds {found} and no tensor, expected a dict of tensors by name (a `state_dict()`)")
}
