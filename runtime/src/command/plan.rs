//! What is to be done? The flags, checked against each other; nothing is left open.

use crate::command::captions::CaptionTask;
use crate::command::captions::shard::Shard;
use crate::command::cli::Cli;
use crate::command::newest::Every;
use crate::command::structure;
use crate::image::Limits;
use crate::sample::SampleError;
use crate::{DEFAULT_PROMPT, MAX_TOKENS, Options, Request, Sampling};
use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Most images that are described at once: more than one computation of the decoder takes.
const MAX_BATCH: usize = 64;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file.
    File(PathBuf),
    /// stdin.
    Stdin,
}

impl Source {
    /// What a path on the command line means.
    fn of(path: PathBuf) -> Source {
        if path.as_os_str() == "-" {
            Source::Stdin
        } else {
            Source::File(path)
        }
    }

    /// The name in messages and output.
    pub(crate) fn name(&self) -> Name {
        Name(match self {
            Source::File(path) => path.clone().into_os_string(),
            Source::Stdin => "stdin".into(),
        })
    }
}

/// An image's name, whatever it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) OsString);

impl Name {
    /// As text; what is no Unicode in it is U+FFFD.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        self.0.to_string_lossy()
    }
}

/// About which frames is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FrameTask {
    /// Where they come from.
    pub(crate) source: Source,
    /// How often, at most.
    pub(crate) every: Every,
    /// How much a frame must differ from the last one, from 0 to 1.
    pub(crate) on_change: Option<f32>,
    /// Whether a pipe waits.
    pub(crate) no_drop: bool,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Task {
    /// The question about each image in turn.
    Each(Vec<Source>),
    /// The question about all images at once; without images, about nothing.
    Once(Vec<Source>),
    /// The question about each of many images, whose answers go to a file.
    Captions(CaptionTask),
    /// The question about the frames of a stream.
    Frames(FrameTask),
    /// A chat, which may begin with images and a question.
    Chat(Vec<Source>, Option<String>),
    /// Nothing: the bundle is verified.
    Verify,
}

/// Everything that a run needs to know.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) model: PathBuf,
    /// Whether every file is hashed before anything is answered.
    pub(crate) verify: bool,
    pub(crate) options: Options,
    /// What of the engine's flags is not done as they say.
    pub(crate) notices: Vec<String>,
    pub(crate) request: Request,
    pub(crate) limits: Limits,
    pub(crate) task: Task,
    /// How many images are described at once, where somebody says so.
    pub(crate) batch: Option<usize>,
    /// Whether the oldest turns of a chat may be left out.
    pub(crate) context_shift: bool,
    /// Answers of which the likeliest is given; empty where the model says what it likes.
    pub(crate) choices: Vec<String>,
    pub(crate) prompt: String,
    pub(crate) system: Option<String>,
    pub(crate) stats: bool,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

/// A command that makes no sense, and what would.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlanError {
    pub(crate) problems: Vec<String>,
    pub(crate) hint: Option<String>,
}

impl Plan {
    /// Checks the flags; all problems at once.
    pub(crate) fn new(cli: Cli) -> Result<Plan, PlanError> {
        let mut problems = Vec::new();
        let mut hint = None;
        let mut range = |flag: &str, found: usize, most: usize| {
            if found == 0 || found > most {
                problems.push(format!("--{flag} is {found}, expected 1 to {most}"));
            }
        };
        range("max-tokens", cli.max_tokens, MAX_TOKENS);
        if let Some(batch) = cli.batch {
            range("batch", batch, MAX_BATCH);
        }
        problems.extend(cli.engine.problem());
        let max_pixels = cli.max_pixels.checked_mul(1_000_000).filter(|&pixels| pixels > 0);
        if max_pixels.is_none() {
            problems.push(format!(
                "--max-pixels is {}, expected megapixels, 1 to {}",
                cli.max_pixels,
                u64::MAX / 1_000_000
            ));
        }
        let sampling = sampling(&cli, &mut problems, &mut hint);
        structure::check(&cli, &mut problems);
        let constraint = structure::constraint(&cli, &mut problems);
        if cli.stop.iter().any(String::is_empty) {
            problems.push("--stop is empty, expected a text".to_owned());
        }
        if cli
            .prompt
            .as_deref()
            .is_some_and(|prompt| prompt.trim().is_empty())
        {
            problems.push("--prompt is empty, expected a question".to_owned());
        }
        if let Some(threshold) = cli.on_change
            && !(0.0..=1.0).contains(&threshold)
        {
            problems.push(format!("--on-change is {threshold}, expected 0 to 1"));
        }
        check_companions(&cli, &mut problems);
        let shard = cli.shard.unwrap_or(Shard::WHOLE);
        let captions = cli.output.map(|output| CaptionTask {
            inputs: cli.images.clone(),
            output,
            shard,
        });
        let images: Vec<Source> = cli.images.into_iter().map(Source::of).collect();
        let frames = cli.frames.map(|path| FrameTask {
            source: Source::of(path),
            every: cli.every.unwrap_or(Every::Frames(1)),
            on_change: cli.on_change,
            no_drop: cli.no_drop,
        });
        match images.iter().filter(|source| **source == Source::Stdin).count() {
            0 => {}
            1 if cli.interactive => problems.push("stdin cannot be an image and the chat".to_owned()),
            1 => {}
            count => problems.push(format!("stdin is given as an image {count} times, expected once")),
        }
        if cli.together && images.is_empty() {
            problems.push("--together needs images".to_owned());
        }
        let nothing = images.is_empty() && frames.is_none() && cli.prompt.is_none() && !cli.interactive;
        if nothing && !cli.verify && problems.is_empty() {
            problems.push("no image and no question".to_owned());
            hint = Some("fvlm-run IMAGE, or --prompt TEXT for a question without an image".to_owned());
        }
        if !problems.is_empty() {
            return Err(PlanError { problems, hint });
        }
        let task = if nothing {
            Task::Verify
        } else if let Some(captions) = captions {
            Task::Captions(captions)
        } else if let Some(frames) = frames {
            Task::Frames(frames)
        } else if cli.interactive {
            Task::Chat(images, cli.prompt.clone())
        } else if cli.together || images.is_empty() {
            Task::Once(images)
        } else {
            Task::Each(images)
        };
        let mut request = Request::default()
            .with_sampling(sampling)
            .with_max_tokens(cli.max_tokens)
            .with_stops(cli.stop);
        request.logprobs = cli.logprobs;
        request.constraint = constraint;
        Ok(Plan {
            model: cli.model,
            verify: cli.verify,
            options: cli.engine.options(),
            notices: cli.engine.notices(),
            request,
            limits: Limits {
                max_pixels: max_pixels.unwrap_or(u64::MAX),
            },
            task,
            batch: cli.batch,
            context_shift: cli.context_shift,
            choices: structure::choices(&cli.choices),
            prompt: cli.prompt.unwrap_or_else(|| DEFAULT_PROMPT.to_owned()),
            system: cli.system,
            stats: cli.stats,
            json: cli.json,
            quiet: cli.quiet,
        })
    }
}

/// How tokens are chosen.
fn sampling(cli: &Cli, problems: &mut Vec<String>, hint: &mut Option<String>) -> Sampling {
    let sampling = Sampling {
        temperature: cli.temperature,
        top_k: cli.top_k,
        top_p: cli.top_p,
        repetition_penalty: cli.repetition_penalty,
        presence_penalty: cli.presence_penalty,
        frequency_penalty: cli.frequency_penalty,
        seed: cli.seed.unwrap_or_default(),
    };
    if let Err(error) = sampling.check() {
        match error {
            SampleError::Parameters { problems: own } => problems.extend(own.iter().map(|own| flagged(own))),
            other => problems.push(other.to_string()),
        }
    } else if sampling.temperature == 0.0 {
        let unused = [
            ("top-k", cli.top_k != 0),
            ("top-p", cli.top_p != 1.0),
            ("seed", cli.seed.is_some()),
        ];
        for (flag, _) in unused.iter().filter(|(_, given)| *given) {
            problems.push(format!("--{flag} has no effect at temperature 0"));
            *hint = Some("add --temperature, for example 0.7".to_owned());
        }
    }
    sampling
}

/// Flags that mean nothing without another.
fn check_companions(cli: &Cli, problems: &mut Vec<String>) {
    if cli.frames.is_none() {
        // Not clap's `requires`, which is silent where something else is given that conflicts.
        let given = [
            ("every", cli.every.is_some()),
            ("on-change", cli.on_change.is_some()),
            ("no-drop", cli.no_drop),
        ];
        for (flag, _) in given.iter().filter(|(_, given)| *given) {
            problems.push(format!("--{flag} needs --frames"));
        }
    }
    if cli.output.is_none() && cli.shard.is_some() {
        problems.push("--shard needs --output".to_owned());
    }
    if cli.output.is_some() && cli.images.is_empty() {
        problems.push("--output needs images: folders, files, patterns, lists".to_owned());
    }
    if cli.output.as_deref() == Some(Path::new("-")) {
        problems
            .push("--output is `-`, expected the path of a file; --json writes lines to stdout".to_owned());
    }
}

/// What is wrong with a parameter of sampling, by the name of its flag: `top-p is 2, ..`.
fn flagged(problem: &str) -> String {
    match problem.split_once(" is ") {
        Some((name, rest)) => format!("--{} is {rest}", name.replace(' ', "-")),
        None => problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plan(arguments: &[&str]) -> Result<Plan, PlanError> {
        let arguments = std::iter::once("fvlm-run").chain(arguments.iter().copied());
        Plan::new(Cli::try_parse_from(arguments).unwrap())
    }

    #[test]
    fn what_is_asked() {
        let file = |name: &str| Source::File(PathBuf::from(name));
        let frames = |source, every, on_change, no_drop| {
            Task::Frames(FrameTask {
                source,
                every,
                on_change,
                no_drop,
            })
        };
        let cases: [(&[&str], Task); 12] = [
            (
                &["a.png", "b.png"],
                Task::Each(vec![file("a.png"), file("b.png")]),
            ),
            (&["-"], Task::Each(vec![Source::Stdin])),
            (&["--together", "a.png"], Task::Once(vec![file("a.png")])),
            (&["--prompt", "hello"], Task::Once(Vec::new())),
            (&["--interactive"], Task::Chat(Vec::new(), None)),
            (&["--verify"], Task::Verify),
            (
                &["--frames", "-"],
                frames(Source::Stdin, Every::Frames(1), None, false),
            ),
            (
                &["--frames", "a", "--every", "3", "--no-drop", "-p", "x"],
                frames(file("a"), Every::Frames(3), None, true),
            ),
            (
                &["--frames", "a", "--every", "2s", "--on-change", "0.5"],
                frames(
                    file("a"),
                    Every::Time(std::time::Duration::from_secs(2)),
                    Some(0.5),
                    false,
                ),
            ),
            (&["--verify", "a.png"], Task::Each(vec![file("a.png")])),
            (
                &["--output", "o", "--shard", "2/3", "a", "-"],
                Task::Captions(CaptionTask {
                    inputs: vec!["a".into(), "-".into()],
                    output: "o".into(),
                    shard: "2/3".parse().unwrap(),
                }),
            ),
            (
                &["-i", "-p", "hello", "a.png"],
                Task::Chat(vec![file("a.png")], Some("hello".to_owned())),
            ),
        ];
        for (arguments, expected) in cases {
            assert_eq!(plan(arguments).unwrap().task, expected, "{arguments:?}");
        }
    }

    #[test]
    fn commands_that_make_no_sense() {
        let cases: [(&[&str], &str); 39] = [
            (&[], "no image and no question"),
            (&["--max-tokens", "0", "a"], "--max-tokens is 0"),
            (&["--threads", "0", "a"], "--threads is 0"),
            (&["--threads", "10000", "a"], "--threads is 10000"),
            (&["--batch", "0", "a"], "--batch is 0"),
            (&["--batch", "65", "a"], "--batch is 65, expected 1 to 64"),
            (&["--max-pixels", "0", "a"], "--max-pixels is 0"),
            (&["--max-pixels", "18446744073709551615", "a"], "--max-pixels"),
            (&["--temperature", "-1", "a"], "temperature"),
            (&["--temperature", "NaN", "a"], "temperature"),
            (&["--temperature", "inf", "a"], "temperature"),
            (&["--temperature", "1", "--top-p", "2", "a"], "--top-p is 2"),
            (&["--presence-penalty", "3", "a"], "--presence-penalty is 3"),
            (&["--repetition-penalty", "0", "a"], "--repetition-penalty"),
            (&["--top-k", "5", "a"], "--top-k has no effect"),
            (&["--seed", "5", "a"], "--seed has no effect"),
            (&["--stop", "", "a"], "--stop is empty"),
            (&["-", "-"], "stdin is given"),
            (&["--prompt", " "], "--prompt is empty"),
            (&["--frequency-penalty", "NaN", "a"], "--frequency-penalty is NaN"),
            (
                &["--logprobs=21", "--json", "a"],
                "--logprobs is 21, expected 0 to 20",
            ),
            (&["--choices", "yes,", "a"], "--choices has an empty choice"),
            (&["--choices", "yes", "a"], "--choices has only `yes`"),
            (
                &["--choices", "a,b", "--temperature", "1", "a"],
                "--temperature has no effect with --choices",
            ),
            (
                &["--choices", "a,b", "--stop", "x", "a"],
                "--stop has no effect with --choices",
            ),
            (
                &["--choices", "a,b", "--logprobs", "--json", "a"],
                "--logprobs has no effect with --choices",
            ),
            (
                &["--choices", "a,b", "--repetition-penalty", "2", "a"],
                "--repetition-penalty has no effect",
            ),
            (
                &["--choices", "a,b", "--presence-penalty", "1", "a"],
                "--presence-penalty has no effect",
            ),
            (&["--regex", "", "a"], "--regex is empty"),
            (
                &["--json-schema", "no/such.json", "a"],
                "--json-schema `no/such.json`: cannot read it",
            ),
            (&["--json-schema", "src", "a"], "--json-schema `src`: "),
            (
                &["--frames", "-", "--on-change", "1.5"],
                "--on-change is 1.5, expected 0 to 1",
            ),
            (&["--every", "2", "a"], "--every needs --frames"),
            (&["--on-change", "0.1"], "--on-change needs --frames"),
            (&["--no-drop", "-i"], "--no-drop needs --frames"),
            (&["--shard", "1/2", "a"], "--shard needs --output"),
            (&["--output", "x"], "--output needs images"),
            (&["--frames", "-", "--on-change", "-1"], "--on-change is -1"),
            (&["--frames", "-", "--on-change", "NaN"], "--on-change is NaN"),
        ];
        for (arguments, expected) in cases {
            let error = plan(arguments).unwrap_err();
            let text = error.problems.join("; ").replace("top_p", "top-p");
            assert!(text.contains(expected), "{arguments:?}: {text}");
        }
        let all = plan(&["--max-tokens", "0", "--threads", "0", "--top-p", "2", "a"]).unwrap_err();
        assert_eq!(all.problems.len(), 3, "{all:?}");
        assert!(plan(&["-i", "-"]).is_err());
        assert!(plan(&["--together", "-p", "x"]).is_err());
    }

    #[test]
    fn flags_that_exclude_each_other() {
        for arguments in [
            &["fvlm-run", "--together", "-i", "a"][..],
            &["fvlm-run", "-q", "--stats", "a"],
            &["fvlm-run", "--together", "--batch", "2", "a"],
            &["fvlm-run", "-i", "--batch", "2", "a"],
            &["fvlm-run", "--choices", "a,b", "--regex", "x", "a"],
            &["fvlm-run", "--choices", "a,b", "--json-schema", "x", "a"],
            &["fvlm-run", "--regex", "x", "--json-schema", "x", "a"],
            &["fvlm-run", "--choices", "a,b", "--batch", "2", "a"],
            &["fvlm-run", "--logprobs", "a"],
            &["fvlm-run", "--frames", "-", "a"],
            &["fvlm-run", "--frames", "-", "-i"],
            &["fvlm-run", "--frames", "-", "--together"],
            &["fvlm-run", "--frames", "-", "--batch", "2"],
            &["fvlm-run", "--frames", "-", "--every", "0"],
            &["fvlm-run", "--output", "x", "--together", "a"],
            &["fvlm-run", "--output", "x", "--json", "a"],
            &["fvlm-run", "--output", "x", "--stats", "a"],
            &["fvlm-run", "--output", "x", "--frames", "-"],
            &["fvlm-run", "--output", "x", "-i"],
            &["fvlm-run", "--output", "x", "--shard", "3/2", "a"],
        ] {
            assert!(Cli::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }
}
