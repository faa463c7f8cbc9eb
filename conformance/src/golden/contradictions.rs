//! Does a recorded reference contradict itself? What its parts say of each other, before anything is compared.

use super::{Check, Reference, Segment};

impl Reference {
    /// Everything that does not fit; nothing where the reference can be used.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.cases.is_empty() {
            problems.push("it has no cases: there is nothing to compare".to_owned());
        }
        for (name, limits) in &self.tolerances {
            for (precision, limit) in limits {
                let mut bounds = [limit.relative_l2, limit.max_abs]
                    .into_iter()
                    .flatten()
                    .peekable();
                if bounds.peek().is_none() || bounds.any(|bound| bound < 0.0) {
                    problems.push(format!(
                        "tolerance `{name}` for {precision} has no `relative_l2` and `max_abs` of 0 or more: nothing could differ"
                    ));
                }
            }
        }
        for case in &self.cases {
            if case.checks.is_empty() && case.rows.iter().all(|row| row.greedy.is_empty()) {
                problems.push(format!(
                    "case `{}`: no `checks` and no `greedy`: there is nothing to compare",
                    case.name
                ));
            }
            for check in &case.checks {
                let place = format!("case `{}`, `{}`", case.name, check.value);
                let Some(count) = check
                    .shape
                    .iter()
                    .try_fold(1_usize, |count, &n| count.checked_mul(n))
                else {
                    problems.push(format!("{place}: shape {:?} is too large", check.shape));
                    continue;
                };
                problems.extend(check.shape_problem().map(|problem| format!("{place}: {problem}")));
                match (
                    self.data.get(&check.tensor),
                    check.indices.as_ref().map(|name| self.data.get(name)),
                ) {
                    (None, _) => problems.push(format!("{place}: no tensor `{}`", check.tensor)),
                    (_, Some(None)) => problems.push(format!("{place}: no indices")),
                    (Some(tensor), None) if tensor.len() != count => {
                        problems.push(format!("{place}: {} elements, expected {count}", tensor.len()));
                    }
                    (Some(tensor), Some(Some(indices))) => {
                        let legal = |&i: &i64| usize::try_from(i).is_ok_and(|i| i < count);
                        if !indices
                            .as_int()
                            .is_some_and(|i| i.len() == tensor.len() && i.iter().all(legal))
                        {
                            problems.push(format!("{place}: the indices do not fit"));
                        }
                    }
                    (Some(_), None) => {}
                }
                if !self.tolerances.contains_key(&check.tolerance) {
                    problems.push(format!("{place}: no tolerance `{}`", check.tolerance));
                }
            }
            if case.rows.is_empty() || case.rows.iter().any(|row| row.segments.is_empty()) {
                problems.push(format!("case `{}`: there is nothing to feed", case.name));
            }
            let images = case.images.len();
            for segment in case.rows.iter().flat_map(|row| &row.segments) {
                if matches!(segment, Segment::Image { image } if *image >= images) {
                    problems.push(format!(
                        "case `{}`: a segment names an image that is not there",
                        case.name
                    ));
                }
            }
            if case.rows.iter().any(|row| row.margins.len() != row.greedy.len()) {
                problems.push(format!(
                    "case `{}`: a row does not have one margin per greedy id",
                    case.name
                ));
            }
            if case.feed.iter().any(|ids| ids.len() != case.rows.len()) {
                problems.push(format!(
                    "case `{}`: `feed` does not have one id per row",
                    case.name
                ));
            }
        }
        problems
    }
}

impl Check {
    /// Whether what hangs on the shape fits it.
    fn shape_problem(&self) -> Option<String> {
        let shape = &self.shape;
        if let Some(padding) = &self.padding
            && (shape.len() != 4 || padding.len() != shape[0])
        {
            return Some(format!("padding of {} rows for shape {shape:?}", padding.len()));
        }
        if let Some(top) = &self.top
            && (shape.len() != 2
                || top.ids.len() != shape[0]
                || top.logits.len() != shape[0]
                || top
                    .ids
                    .iter()
                    .zip(&top.logits)
                    .any(|(ids, logits)| ids.is_empty() || ids.len() != logits.len()))
        {
            return Some(format!("`top` does not fit shape {shape:?}"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::golden::tests::parse;

    #[test]
    fn references_that_contradict_themselves_are_refused() {
        type Edit = fn(&mut serde_json::Value);
        let logits = "check 9";
        assert_eq!(
            parse(|_| {}).unwrap().cases[0].checks[9].value,
            "prefill.logits",
            "{logits} is another check"
        );
        let cases: [(&str, Edit); 12] = [
            ("schema 3, expected 1", |json| json["schema"] = 3.into()),
            ("expected the same stem", |json| {
                json["tensors"] = "other.safetensors".into()
            }),
            ("no tensor `nothing`", |json| {
                json["cases"][0]["checks"][9]["tensor"] = "nothing".into()
            }),
            ("no indices", |json| {
                json["cases"][0]["checks"][0]["indices"] = "nothing".into()
            }),
            ("1024 elements, expected 1023", |json| {
                json["cases"][0]["checks"][9]["shape"] = serde_json::json!([1, 1023])
            }),
            ("is too large", |json| {
                json["cases"][0]["checks"][9]["shape"] = serde_json::json!([u64::MAX, 2])
            }),
            ("the indices do not fit", |json| {
                json["cases"][0]["checks"][0]["shape"] = serde_json::json!([1])
            }),
            ("no tolerance `loose`", |json| {
                json["cases"][0]["checks"][9]["tolerance"] = "loose".into()
            }),
            ("padding of 3 rows", |json| {
                json["cases"][0]["checks"][9]["padding"] = serde_json::json!([0, 0, 0])
            }),
            ("`top` does not fit", |json| {
                json["cases"][0]["checks"][9]["top"]["ids"][0] = serde_json::json!([])
            }),
            ("an image that is not there", |json| {
                json["cases"][0]["rows"][0]["segments"][1]["image"] = 7.into()
            }),
            ("nothing to feed", |json| {
                json["cases"][0]["rows"][0]["segments"] = serde_json::json!([])
            }),
        ];
        for (expected, edit) in cases {
            let message = parse(edit).unwrap_err().to_string();
            assert!(message.contains(expected), "expected `{expected}` in {message}");
        }
    }
}
