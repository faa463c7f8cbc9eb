//! Groups of sequences that are continued by one computation: who may join, and where each one's cache lies.

use super::KvState;
use crate::backend::session::EngineSession;
use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Most sequences of one computation: for as many rows the kernels of target `cpu` read weights once, and each row has the
/// bits that it has alone.
pub(super) const MOST_TOGETHER: usize = 16;

/// A sequence that is to be continued, and its row among the embeddings.
pub(super) struct Member<'a, S: EngineSession> {
    pub(super) index: usize,
    pub(super) state: &'a mut KvState<S>,
}

/// Which sequences are to be continued together: at most [`MOST_TOGETHER`], and none whose cache would be mostly what it is
/// padded with to the length of the longest. Those of a single one are left out. Sequences that were together stay so.
pub(super) fn sets<S: EngineSession>(mut members: Vec<Member<'_, S>>) -> Vec<Vec<Member<'_, S>>> {
    let order = |member: &Member<'_, S>| match &*lock(&member.state.place) {
        Place::Own(_) => (Reverse(0), 0, 0),
        Place::Shared { group, row, of, .. } => (Reverse(*of), Arc::as_ptr(group).addr(), *row),
    };
    members.sort_by_cached_key(|member| (Reverse(member.state.len), order(member)));
    let mut sets: Vec<Vec<Member<'_, S>>> = Vec::new();
    for member in members {
        let len = member.state.len;
        match sets.last_mut() {
            Some(set) if set.len() < MOST_TOGETHER && longest(set) <= 2 * len + FREE_PADDING => {
                set.push(member)
            }
            _ => sets.push(vec![member]),
        }
    }
    sets.retain(|set| set.len() > 1);
    sets
}

/// Slots of padding that are not worth a computation of their own.
pub(super) const FREE_PADDING: usize = 256;

pub(super) fn longest<S: EngineSession>(set: &[Member<'_, S>]) -> usize {
    set.first().map_or(0, |member| member.state.len)
}

/// Keys and values of as many sequences as the tensors have rows.
#[derive(Debug)]
pub(super) struct Cache<V> {
    /// In the order of the ports: `[sequences, kv_heads, slots, head_dim]`; none while nothing was fed.
    pub(super) tensors: Vec<V>,
    /// Slots that the tensors have.
    pub(super) slots: usize,
    /// Slots that are filled, with positions or with the padding in front of them; behind them there is room.
    pub(super) filled: usize,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Cache {
            tensors: Vec::new(),
            slots: 0,
            filled: 0,
        }
    }
}

/// Where a sequence's cache lies.
pub(super) enum Place<V> {
    /// In tensors of its own.
    Own(Cache<V>),
    /// In a row of common tensors, one `of` so many: the last `len` slots.
    Shared {
        group: Arc<Mutex<Group<V>>>,
        row: usize,
        len: usize,
        of: usize,
    },
}

/// Caches of sequences that are continued together.
pub(super) struct Group<V> {
    /// A shorter sequence is padded in front, so that the next position of all of them has the same slot.
    pub(super) cache: Cache<V>,
    /// Who has which row; nobody where a sequence is gone.
    pub(super) members: Vec<Weak<Mutex<Place<V>>>>,
}

/// The cache of one sequence: its row in tensors, from a slot on.
pub(super) struct Source<'a, V> {
    pub(super) cache: &'a Cache<V>,
    pub(super) row: usize,
    pub(super) from: usize,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
