//! Many images, a line each in a file: what is still to do, and what was done.

use super::Failure;
use crate::command::captions::CaptionTask;
use crate::command::captions::file::{Captions, Outcome};
use crate::command::captions::inputs;
use crate::command::output::{self, Bar};
use crate::command::plan::{Name, Plan, Source};
use crate::{Choice, Finish};

/// The lines of this run.
pub(super) struct CaptionRun {
    file: Captions,
    output: String,
    bar: Option<Bar>,
    /// Lines that were there already.
    before: usize,
    written: usize,
    first_error: Option<String>,
    /// Whether an answer was cut off: those behind it have no line either, so that lines stay in order.
    cut: bool,
}

impl CaptionRun {
    /// The images that have no line yet, of all that are to be asked by `prompt` and answered by one of the `choices`, if any.
    ///
    /// # Errors
    /// What names no image, and a file that cannot be gone on with.
    pub(super) fn begin(
        task: &CaptionTask,
        prompt: &str,
        choices: &[String],
    ) -> Result<(Vec<Source>, CaptionRun), String> {
        let images = inputs::images(&task.inputs)?;
        let file = Captions::open(&task.output, prompt, choices)?;
        let named = images.into_iter().map(|path| (inputs::name(&path), path));
        let mine: Vec<_> = named.filter(|(name, _)| task.shard.has(&name.0)).collect();
        let count = mine.len();
        let todo = mine.into_iter().filter(|(name, _)| !file.has(name));
        let todo: Vec<Source> = todo.map(|(_, path)| Source::File(path)).collect();
        let run = CaptionRun {
            file,
            output: task.output.display().to_string(),
            bar: None,
            before: count - todo.len(),
            written: 0,
            first_error: None,
            cut: false,
        };
        Ok((todo, run))
    }

    /// Shows how far it is, from now on.
    pub(super) fn show(&mut self, plan: &Plan, count: usize) {
        self.bar = Some(Bar::images(plan.quiet, count));
    }

    /// The line of an answer. One that was cut off by Ctrl-C has none: a later run asks again.
    pub(super) fn answer(&mut self, name: &Name, text: &str, finish: Option<Finish>) -> Result<(), Failure> {
        let finish = finish.unwrap_or(Finish::Stop);
        self.cut |= finish == Finish::Cancelled;
        self.line(name, Outcome::Answer { text, finish })
    }

    /// The line of a choice.
    pub(super) fn choice(&mut self, name: &Name, text: &str, choices: &[Choice]) -> Result<(), Failure> {
        self.line(name, Outcome::Choice { text, choices })
    }

    /// The line of an image that has no answer.
    pub(super) fn error(&mut self, name: &Name, error: &str) -> Result<(), Failure> {
        self.first_error.get_or_insert_with(|| error.to_owned());
        self.line(name, Outcome::Error { error })
    }

    fn line(&mut self, name: &Name, outcome: Outcome<'_>) -> Result<(), Failure> {
        if self.cut {
            return Ok(());
        }
        self.file.append(name, outcome).map_err(Failure::Captions)?;
        self.written += 1;
        if let Some(bar) = &self.bar {
            bar.advance(1);
        }
        Ok(())
    }

    /// Says what there is now; whether every line has an answer.
    pub(super) fn end(&mut self, plan: &Plan) -> bool {
        self.bar = None;
        let failed = self.file.failed();
        if failed > 0 {
            let first = self.first_error.as_ref();
            let first = first.map_or_else(String::new, |error| format!("; the first of this run: {error}"));
            output::complain(
                &format!(
                    "`{}`: {failed} images have an error in the place of an answer{first}",
                    self.output
                ),
                Some("a line that is taken out of the file is asked again by the next run"),
            );
        }
        if !plan.quiet {
            let before = match self.before {
                0 => String::new(),
                before => format!(", {before} were there already"),
            };
            output::tell(&format!("{}: {} images{before}", self.output, self.written));
        }
        failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::captions::shard::Shard;

    #[test]
    fn nothing_behind_an_answer_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let task = CaptionTask {
            inputs: ["a.png", "b.png", "c.png"].map(Into::into).into(),
            output: folder.path().join("o.jsonl"),
            shard: Shard::WHOLE,
        };
        let (todo, mut run) = CaptionRun::begin(&task, "What is it?", &[]).ok().unwrap();
        let names: Vec<Name> = todo.iter().map(Source::name).collect();
        // Computed together, the third was complete when Ctrl-C came.
        for (name, finish) in names.iter().zip([Finish::Stop, Finish::Cancelled, Finish::Stop]) {
            assert!(run.answer(name, "A fox.", Some(finish)).is_ok());
        }
        drop(run);
        let (left, _) = CaptionRun::begin(&task, "What is it?", &[]).ok().unwrap();
        assert_eq!(left, todo[1..]);
    }
}
