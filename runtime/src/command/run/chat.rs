//! `--interactive`: a chat, a line a question.

use super::{Failure, Run};
use crate::command::lines::{Lines, MAX_LINE, Problem};
use crate::command::plan::{Name, Source};
use crate::image::ImageId;
use crate::{Finish, Message, Role};
use std::io::{self, IsTerminal as _};

impl Run<'_> {
    /// A chat, a line a question.
    pub(super) fn chat(&mut self, images: &[Source], first: Option<&str>) -> Result<Finish, Failure> {
        let mut given: Vec<(ImageId, Name)> = Vec::new();
        for source in images {
            match self.add(source) {
                Ok(id) => given.push((id, source.name())),
                Err(Failure::Engine(error)) if !error.is_about_model() => {
                    self.no_answer(&[source.name()], &error)?;
                    return Ok(Finish::Stop);
                }
                Err(fatal) => return Err(fatal),
            }
        }
        let mut messages = self.beginning();
        let mut pending = given.clone();
        if let Some(question) = first {
            self.turn(&mut messages, &mut pending, question)?;
        }
        let terminal = io::stdin().is_terminal() && !self.plan.quiet;
        let mut lines = Lines::new(io::stdin().lock());
        loop {
            if terminal {
                let _ = io::Write::write_all(&mut io::stderr(), b"> ");
            }
            let Some(line) = lines.next() else { break };
            let line = match line {
                Ok(line) => line,
                Err(Problem::NotText) => {
                    let problem = "a line of the chat is not UTF-8";
                    self.report(problem);
                    self.note_failure(&[], problem)?;
                    continue;
                }
                Err(Problem::TooLong) => {
                    self.report(&format!("a line of the chat is longer than {MAX_LINE} bytes"));
                    break;
                }
                Err(Problem::Read(error)) => {
                    self.report(&format!("cannot read the chat: {error}"));
                    break;
                }
            };
            let line = line.trim();
            let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match command {
                "" => {}
                "/quit" if argument.is_empty() => break,
                "/reset" if argument.is_empty() => {
                    // What is computed stays: the next prompt takes from it what fits.
                    messages = self.beginning();
                    pending.clone_from(&given);
                }
                "/image" if argument.trim().is_empty() => {
                    self.report("/image has no path, expected that of an image file");
                }
                "/image" => {
                    let source = Source::File(argument.trim().into());
                    match self.add(&source) {
                        Ok(id) => pending.push((id, source.name())),
                        Err(Failure::Engine(error)) if !error.is_about_model() => {
                            self.complain(&error);
                            self.failed = true;
                        }
                        Err(fatal) => return Err(fatal),
                    }
                }
                // A path or a fraction may begin a question; a single word after a slash is a mistyped command.
                _ if command.starts_with('/') && command[1..].chars().all(|c| c.is_ascii_alphabetic()) => {
                    self.report(&format!("`{line}` is not a command: /image PATH, /reset, /quit"));
                }
                _ => self.turn(&mut messages, &mut pending, line)?,
            }
        }
        Ok(Finish::Stop)
    }

    /// One question of a chat. One that fails is as if it had not been asked.
    fn turn(
        &mut self,
        messages: &mut Vec<Message>,
        pending: &mut Vec<(ImageId, Name)>,
        question: &str,
    ) -> Result<(), Failure> {
        let (ids, names): (Vec<ImageId>, Vec<Name>) = pending.iter().cloned().unzip();
        messages.push(Message::user(ids, question));
        match self.answer(messages, &names, question) {
            Ok((text, _)) => {
                messages.push(Message::new(Role::Assistant, text));
                pending.clear();
                Ok(())
            }
            Err(Failure::Engine(error)) if !error.is_about_model() => {
                messages.pop();
                self.no_answer(&names, &error)
            }
            Err(fatal) => Err(fatal),
        }
    }
}
