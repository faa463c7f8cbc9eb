//! Slots: what a job has while it is prepared and answered, and gives back however it ends.

use super::{Conversation, Entry, Shared};
use std::sync::Arc;
use std::time::Instant;

/// A slot, and the memory that is reserved for its job. Dropping it gives both back.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    /// Cache positions.
    reserved: usize,
    begun: Instant,
}

impl Slot {
    /// A slot that was counted already.
    pub(super) fn new(shared: &Arc<Shared>) -> Slot {
        Slot {
            shared: Arc::clone(shared),
            reserved: 0,
            begun: Instant::now(),
        }
    }

    /// Takes note that cache positions were reserved for it.
    pub(super) fn reserved(&mut self, positions: usize) {
        self.reserved += positions;
    }

    /// Gives it back and keeps the conversation for a next turn, in memory that was reserved for the job. `whole`: a cache
    /// takes all that was reserved, however much of it is used.
    pub(super) fn keep(mut self, conversation: Conversation, whole: bool) {
        self.store(conversation, whole);
    }

    /// Keeps what is left of a conversation that a job was to go on with, and did not begin. One that takes more than was
    /// reserved for the job goes.
    pub(super) fn put_back(&mut self, conversation: Conversation) {
        if (1..=self.reserved).contains(&conversation.positions()) {
            let whole = self.shared.takes_whole_context().unwrap_or(true);
            self.store(conversation, whole);
        }
    }

    fn store(&mut self, mut conversation: Conversation, whole: bool) {
        conversation.forget_images();
        let used = conversation.positions().min(self.reserved);
        let positions = if whole { self.reserved } else { used };
        let bytes = conversation.cache_bytes();
        let gone = {
            let mut state = self.shared.state();
            state.reserved -= self.reserved;
            self.reserved = 0;
            state.kept.put(Entry {
                conversation,
                positions,
                used,
                bytes,
            })
        };
        // Caches are freed when others may look at the state.
        drop(gone);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.running -= 1;
        state.reserved -= self.reserved;
        let spent = self.begun.elapsed();
        // A moving average.
        let before = state.service.unwrap_or(spent);
        state.service = Some((before * 7 + spent) / 8);
        drop(state);
        self.shared.changed.notify_all();
    }
}
