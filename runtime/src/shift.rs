//! Context shift: which messages are left out when the context is full? The oldest turns, never instructions nor images.

use crate::error::EngineError;
use crate::image::ImageId;
use crate::prompt::{Message, Prompt, Role};

/// What is left out of the beginning of one conversation.
#[derive(Debug, Default)]
pub(crate) struct Shift {
    /// Whether turns may be left out.
    pub(crate) allowed: bool,
    /// The messages after the instructions that were left out last: the next prompt begins where this one did, so that what
    /// is computed stays useful.
    dropped: Vec<Message>,
}

/// The room that a prompt must leave, in positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Positions that the decoder holds.
    pub(crate) context: usize,
    /// Positions that the answer may want.
    pub(crate) answer: usize,
}

impl Room {
    fn is_in(self, prompt: &Prompt) -> bool {
        // An answer that would take all of the context leaves three quarters of it to the prompt.
        let answer = self.answer.min(self.context / 4).max(1);
        prompt.len().saturating_add(answer) <= self.context
    }

    /// The same with a quarter of the context to spare, so that not every turn leaves out another.
    fn to_spare(self) -> Room {
        Room {
            context: self.context - self.context / 4,
            ..self
        }
    }
}

impl Shift {
    /// Forgets what was left out.
    pub(crate) fn reset(&mut self) {
        self.dropped.clear();
    }

    /// How many of `messages` were left out last, behind the instructions: what is read next is without them, if it leaves room
    /// enough.
    pub(crate) fn remembered(&self, messages: &[Message]) -> usize {
        let (_, rest) = split(messages);
        let begins = begins(rest);
        begins.get(self.known(rest, &begins)).copied().unwrap_or(0)
    }

    /// The turn that the prompt begins with where all after it fits: the first, or as before of a conversation that goes on.
    fn known(&self, rest: &[Message], begins: &[usize]) -> usize {
        let known = begins.iter().position(|&begin| begin == self.dropped.len());
        known.filter(|_| rest.starts_with(&self.dropped)).unwrap_or(0)
    }

    /// The prompt of `messages`, without the oldest turns where it would not leave `room`; and how many turns are left out.
    /// The last turn stays, whether it fits or not. `image_token` marks the place of an image in a text.
    pub(crate) fn fit(
        &mut self,
        messages: &[Message],
        image_token: &str,
        room: Room,
        build: &dyn Fn(&[Message]) -> Result<Prompt, EngineError>,
    ) -> Result<(Prompt, usize), EngineError> {
        let (head, rest) = split(messages);
        let begins = begins(rest);
        if begins.is_empty() {
            return Ok((build(messages)?, 0));
        }
        let prompt_from = |turn: usize| build(&without(head, rest, begins[turn], image_token));
        let mut turn = self.known(rest, &begins);
        let mut prompt = prompt_from(turn)?;
        if !room.is_in(&prompt) {
            // The first turn from which on it fits, by halves: a prompt is shorter the later it begins.
            let (mut low, mut high) = (turn, begins.len() - 1);
            while low < high {
                let middle = low.midpoint(high);
                if room.to_spare().is_in(&prompt_from(middle)?) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            turn = low;
            prompt = prompt_from(turn)?;
        }
        // A prompt that is refused leaves nothing out of the next one.
        if prompt.len() < room.context {
            self.dropped = rest[..begins[turn]].to_vec();
        }
        Ok((prompt, turn))
    }
}

/// Instructions, and what follows them.
fn split(messages: &[Message]) -> (&[Message], &[Message]) {
    let head = messages.iter().take_while(|one| one.role == Role::System).count();
    messages.split_at(head)
}

/// Where turns begin in the messages after the instructions; all before the last may go.
fn begins(rest: &[Message]) -> Vec<usize> {
    (0..rest.len())
        .filter(|&index| index == 0 || rest[index].role == Role::User)
        .collect()
}

/// The messages without the first `count` behind the instructions, whose images the next one has.
pub(crate) fn without_first(messages: &[Message], count: usize, image_token: &str) -> Vec<Message> {
    let (head, rest) = split(messages);
    without(head, rest, count.min(rest.len()), image_token)
}

/// The messages without the first `count` after the instructions, whose images the next one has.
fn without(head: &[Message], rest: &[Message], count: usize, image_token: &str) -> Vec<Message> {
    let (dropped, kept) = rest.split_at(count);
    let mut messages = [head, kept].concat();
    let images: Vec<ImageId> = dropped
        .iter()
        .flat_map(|one| one.images.iter().copied())
        .collect();
    if let Some(first) = messages.get_mut(head.len())
        && !images.is_empty()
    {
        if first.text.contains(image_token) {
            let places = image_token.repeat(images.len());
            first.text = format!("{places}\n{}", first.text);
        }
        first.images.splice(0..0, images);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Piece;

    /// Ten positions an image, one a byte of text.
    fn build(messages: &[Message]) -> Result<Prompt, EngineError> {
        let pieces = messages.iter().flat_map(|message| {
            let images = message.images.iter();
            let images = images.map(|&id| Piece::Image { id, tokens: 10 });
            let text = message.text.bytes().map(i64::from).collect();
            images.chain([Piece::Tokens(text)])
        });
        Ok(Prompt::new(pieces.collect()))
    }

    fn user(text: &str) -> Message {
        Message::user([], text)
    }

    fn assistant(text: &str) -> Message {
        Message::new(Role::Assistant, text)
    }

    fn fit(shift: &mut Shift, messages: &[Message], context: usize) -> (Prompt, usize) {
        let room = Room { context, answer: 4 };
        shift.fit(messages, "<image>", room, &build).unwrap()
    }

    #[test]
    fn the_oldest_turns_go_and_instructions_and_images_stay() {
        let mut shift = Shift::default();
        let mut messages = vec![
            Message::new(Role::System, "be brief"),
            Message::user([ImageId(7)], "what is it"),
            assistant("a cat"),
            user("which colour"),
            assistant("black"),
            user("how old"),
        ];
        // All of it takes 8 + 10 + 10 + 5 + 12 + 5 + 7 positions.
        assert_eq!(fit(&mut shift, &messages, 61), (build(&messages).unwrap(), 0));
        let (prompt, left_out) = fit(&mut shift, &messages, 60);
        let expected = [messages[0].clone(), Message::user([ImageId(7)], "how old")];
        assert_eq!((prompt, left_out), (build(&expected).unwrap(), 2));
        // The next prompt begins with the same.
        messages.extend([assistant("four"), user("really")]);
        let (prompt, left_out) = fit(&mut shift, &messages, 60);
        let expected = [&expected[..], &messages[6..]].concat();
        assert_eq!((prompt, left_out), (build(&expected).unwrap(), 2));
        assert_eq!(shift.remembered(&messages), 4);
        assert_eq!(without_first(&messages, 4, "<image>"), expected);
        // Another conversation is not this one, and nothing of it is left out.
        let other = [user("hello")];
        assert_eq!(shift.remembered(&other), 0);
        assert_eq!(shift.remembered(&[]), 0);
        assert_eq!(fit(&mut shift, &other, 60), (build(&other).unwrap(), 0));
    }

    #[test]
    fn the_last_turn_stays_even_if_it_does_not_fit() {
        let mut shift = Shift::default();
        let messages = [user("one"), assistant("two"), user("something long")];
        let (prompt, left_out) = fit(&mut shift, &messages, 8);
        assert_eq!((prompt, left_out), (build(&messages[2..]).unwrap(), 1));
        assert_eq!(fit(&mut shift, &[], 8), (Prompt::default(), 0));
        let system = [Message::new(Role::System, "alone and too long")];
        assert_eq!(fit(&mut shift, &system, 8), (build(&system).unwrap(), 0));
    }

    #[test]
    fn images_of_turns_that_went_have_places_where_the_text_has_some() {
        let rest = [
            Message::user([ImageId(1), ImageId(2)], "first"),
            Message::user([ImageId(3)], "here <image> it is"),
        ];
        let messages = without(&[], &rest, 1, "<image>");
        let images = [1, 2, 3].map(ImageId);
        let expected = Message::user(images, "<image><image>\nhere <image> it is");
        assert_eq!(messages, [expected]);
    }
}
