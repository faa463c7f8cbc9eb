//! How does a graph with `past_key_values.*` and `present.*` become a decoder with a state?

mod group;
pub(super) mod ports;

use super::session::{EngineSession, Input, Placement, Positions, Tensor};
use super::{Decoder, DecoderState};
use crate::error::BackendError;
use group::{Cache, Group, Member, Place, Source, lock, sets};
use models::bundle::{Adopted, GraphEntry, IoDim, KvSpec};
use models::dtype::DType;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};
use ports::{POSITIONS, Ports};
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Slots that tensors have beyond what is filled, at least.
const LEAST_ROOM: usize = 64;

/// Slots that a cache keeps, however few of them are filled; of more, room for twice as many as are filled at most.
const ROOM_KEPT: usize = 2048;

/// A decoder over a session: the outputs `present.*` of a step are the inputs `past_key_values.*` of the next, and stay
/// in the engine's own form. Where the engine [can](EngineSession::writes_caches), they are the same tensors, which have
/// room for more positions and are copied only when it is used up.
///
/// Sequences that are stepped together have their caches in common tensors (`Group`), from the first such step until one
/// of them is fed otherwise, or not with the others. Then, and only then, caches are copied.
#[derive(Debug)]
pub struct KvDecoder<S: EngineSession> {
    session: S,
    ports: Ports,
    dtype: DType,
    heads: usize,
    head_dim: usize,
    /// Positions that the model was made for.
    max_context: usize,
    /// Whether several sequences can be continued by one computation.
    together: AtomicBool,
    /// Whether the engine writes new positions into the caches that it is given.
    in_place: bool,
    /// Whether, with a cache, one position is fed in a computation: a graph that was adopted may be made so.
    steps: bool,
    /// Held by who changes what is in groups. Whoever holds this may wait for a sequence's [`Place`], not the other way.
    groups: Mutex<()>,
}

impl<S: EngineSession> KvDecoder<S> {
    /// `entry`: the decoder's contract, which the session's graph keeps. `together`: whether the session takes several
    /// sequences at once, where its contract says so.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of a decoder with a cache.
    pub fn new(
        session: S,
        entry: &GraphEntry,
        kv: &KvSpec,
        dtype: DType,
        together: bool,
    ) -> Result<KvDecoder<S>, BackendError> {
        let ports = Ports::of(&session, entry, kv)?;
        let mut inputs = entry.inputs.iter();
        let embeds = inputs.find(|io| io.name == "inputs_embeds");
        let varies = embeds.is_some_and(|io| matches!(io.dims.first(), Some(IoDim::Symbol(_))));
        Ok(KvDecoder {
            in_place: dtype == DType::Float32 && session.writes_caches(ports.past.len()),
            session,
            ports,
            dtype,
            heads: kv.kv_heads,
            head_dim: kv.head_dim,
            max_context: kv.max_context,
            together: AtomicBool::new(together && varies),
            steps: entry.adopted.as_ref().is_some_and(Adopted::steps),
            groups: Mutex::new(()),
        })
    }

    /// The tensors `present.*` among the outputs, in the order of the ports.
    fn present(&self, outputs: Vec<S::Value>) -> Result<Vec<S::Value>, BackendError> {
        let mut outputs: Vec<Option<S::Value>> = outputs.into_iter().map(Some).collect();
        let ports = self.ports.present.iter().zip(&self.ports.past);
        let taken = ports.map(|(&index, name)| {
            let value = outputs.get_mut(index).and_then(Option::take);
            value.ok_or_else(|| self.failed(format!("the engine gave no `{name}`")))
        });
        taken.collect()
    }

    fn failed(&self, reason: String) -> BackendError {
        BackendError::Run {
            path: self.session.description().path.clone(),
            reason,
        }
    }

    /// Slots of tensors for so many positions.
    fn slots(&self, positions: usize) -> usize {
        if self.in_place {
            let room = (positions + positions / 8 + LEAST_ROOM).next_multiple_of(LEAST_ROOM);
            room.min(self.max_context).max(positions)
        } else {
            positions
        }
    }

    /// Copies of the caches of some sequences, in tensors of as many rows, up to slot `filled`; there are slots for `wanted`.
    fn copy(
        &self,
        rows: &[Source<'_, S::Value>],
        filled: usize,
        wanted: usize,
    ) -> Result<Cache<S::Value>, BackendError> {
        let slots = self.slots(wanted);
        let shape = [self.heads, slots, self.head_dim];
        let tensor = |index: usize| {
            let rows = rows.iter().map(|source| Positions {
                cache: source.cache.tensors.get(index),
                row: source.row,
                from: source.from,
                to: source.cache.filled,
            });
            self.session
                .gather(&rows.collect::<Vec<_>>(), self.dtype, shape, filled)
        };
        Ok(Cache {
            tensors: (0..self.ports.past.len()).map(tensor).collect::<Result<_, _>>()?,
            slots,
            filled,
        })
    }

    /// Sees to it that a cache of `rows` sequences can be computed with, and takes so many more positions.
    fn make_room(&self, cache: &mut Cache<S::Value>, rows: usize, new: usize) -> Result<(), BackendError> {
        let wanted = cache.filled + new;
        if cache.tensors.is_empty() {
            let slots = if self.in_place { self.slots(wanted) } else { 0 };
            let shape = [rows, self.heads, slots, self.head_dim];
            *cache = Cache {
                tensors: self.ports.cache(&self.session, self.dtype, &shape)?,
                slots,
                filled: 0,
            };
        } else if self.in_place && cache.slots < wanted {
            let sources: Vec<_> = (0..rows)
                .map(|row| Source {
                    cache: &*cache,
                    row,
                    from: 0,
                })
                .collect();
            *cache = self.copy(&sources, cache.filled, wanted)?;
        }
        Ok(())
    }

    /// The inputs that are a cache.
    fn past<'c>(
        &'c self,
        cache: &'c mut Cache<S::Value>,
    ) -> impl Iterator<Item = (&'c str, Input<'c, S::Value>)> {
        let names = self.ports.past.iter().map(String::as_str);
        let tensors = cache.tensors.iter_mut();
        names.zip(tensors.map(|tensor| {
            if self.in_place {
                Input::Open(tensor)
            } else {
                Input::Held(tensor)
            }
        }))
    }

    /// What a computation made of a cache with `new` more positions.
    fn keep(
        &self,
        cache: &mut Cache<S::Value>,
        new: usize,
        outputs: Vec<S::Value>,
    ) -> Result<(), BackendError> {
        if !self.in_place {
            cache.tensors = self.present(outputs)?;
            cache.slots += new;
        }
        cache.filled += new;
        Ok(())
    }

    /// Gives a sequence tensors of its own. Only for who holds `groups`.
    fn detach(&self, place: &mut Place<S::Value>) -> Result<(), BackendError> {
        let Place::Shared { group, row, len, .. } = place else {
            return Ok(());
        };
        let own = {
            let mut group = lock(group);
            let source = Source {
                cache: &group.cache,
                row: *row,
                from: group.cache.filled.saturating_sub(*len),
            };
            let own = self.copy(&[source], *len, *len)?;
            if let Some(member) = group.members.get_mut(*row) {
                *member = Weak::new();
            }
            own
        };
        *place = Place::Own(own);
        Ok(())
    }

    /// A sequence's place, which then is its own.
    fn owned<'p>(
        &self,
        place: &'p Mutex<Place<S::Value>>,
    ) -> Result<MutexGuard<'p, Place<S::Value>>, BackendError> {
        let found = lock(place);
        if matches!(*found, Place::Own(_)) {
            return Ok(found);
        }
        drop(found);
        let _groups = lock(&self.groups);
        let mut found = lock(place);
        self.detach(&mut found)?;
        Ok(found)
    }

    /// Brings the caches of some sequences into common tensors, unless they are: these and no others. Only for who holds
    /// `groups`.
    fn group(&self, members: &[Member<'_, S>]) -> Result<Arc<Mutex<Group<S::Value>>>, BackendError> {
        let mut places: Vec<_> = members.iter().map(|member| lock(&member.state.place)).collect();
        let mut groups: Vec<Arc<Mutex<Group<S::Value>>>> = Vec::new();
        for place in &places {
            if let Place::Shared { group, .. } = &**place
                && !groups.iter().any(|known| Arc::ptr_eq(known, group))
            {
                groups.push(Arc::clone(group));
            }
        }
        let shared = |place: &MutexGuard<'_, Place<_>>| matches!(**place, Place::Shared { .. });
        if let [group] = groups.as_slice()
            && lock(group).members.len() == members.len()
            && places.iter().all(shared)
        {
            return Ok(Arc::clone(group));
        }
        // Who is in one of these groups and not among the members gets tensors of its own.
        for group in &groups {
            let others: Vec<_> = lock(group).members.iter().filter_map(Weak::upgrade).collect();
            for other in others {
                if !members
                    .iter()
                    .any(|member| Arc::ptr_eq(&member.state.place, &other))
                {
                    self.detach(&mut lock(&other))?;
                }
            }
        }
        let slots = members.iter().map(|member| member.state.len).max().unwrap_or(0);
        let cache = {
            let groups: Vec<_> = groups
                .iter()
                .map(|group| (Arc::as_ptr(group), lock(group)))
                .collect();
            let mut sources = Vec::with_capacity(places.len());
            for place in &places {
                sources.push(match &**place {
                    Place::Own(cache) => Source {
                        cache,
                        row: 0,
                        from: 0,
                    },
                    Place::Shared { group, row, len, .. } => {
                        let known = groups.iter().find(|(known, _)| *known == Arc::as_ptr(group));
                        let (_, group) = known.ok_or_else(|| self.failed("a cache is nowhere".to_owned()))?;
                        let (row, from) = (*row, group.cache.filled.saturating_sub(*len));
                        Source {
                            cache: &group.cache,
                            row,
                            from,
                        }
                    }
                });
            }
            self.copy(&sources, slots, slots)?
        };
        let group = Arc::new(Mutex::new(Group {
            cache,
            members: members
                .iter()
                .map(|member| Arc::downgrade(&member.state.place))
                .collect(),
        }));
        for ((row, place), member) in places.iter_mut().enumerate().zip(members) {
            **place = Place::Shared {
                group: Arc::clone(&group),
                row,
                len: member.state.len,
                of: members.len(),
            };
        }
        Ok(group)
    }

    /// Continues some sequences by one position each, in one computation. After an error they are as they were.
    fn step(
        &self,
        members: &mut [Member<'_, S>],
        embeds: ArrayView2<'_, f32>,
    ) -> Result<Vec<Array1<f32>>, BackendError> {
        let KvDecoder { session, ports, .. } = self;
        let _groups = lock(&self.groups);
        let group = self.group(members)?;
        let mut group = lock(&group);
        let cache = &mut group.cache;
        let (count, slots) = (members.len(), cache.filled);
        self.make_room(cache, count, 1)?;
        let mut own = Array3::zeros((count, 1, ports.hidden));
        let mut mask = Array2::<i64>::zeros((count, slots + 1));
        let mut positions = Array2::<i64>::zeros((count, 1));
        let mut rows = Vec::with_capacity(count);
        for member in &*members {
            let Place::Shared { row, len, .. } = *lock(&member.state.place) else {
                return Err(self.failed("a cache is not where it was brought".to_owned()));
            };
            own.slice_mut(s![row, 0, ..]).assign(&embeds.row(member.index));
            mask.slice_mut(s![row, slots.saturating_sub(len)..]).fill(1);
            positions[[row, 0]] = i64::try_from(len).unwrap_or(i64::MAX);
            rows.push(row);
        }
        let positions = session.upload(Tensor::I64(positions.into_dyn()))?;
        let mask = session.upload(Tensor::I64(mask.into_dyn()))?;
        let mut inputs: Vec<(&str, Input<'_, S::Value>)> = vec![
            ("inputs_embeds", Input::Lent(own.view().into_dyn())),
            ("attention_mask", Input::Held(&mask)),
            ("position_ids", Input::Held(&positions)),
        ];
        inputs.extend(self.past(cache));
        let outputs = session.compute(&mut inputs)?;
        drop(inputs);
        let logits = ports.logits(session, &outputs)?;
        let width = logits.len() / count.max(1);
        let logits = logits
            .into_shape_with_order((count, width))
            .map_err(|error| self.failed(format!("`logits` are not {count} rows: {error}")))?;
        // Only now: a step that failed leaves all states as they were.
        self.keep(cache, 1, outputs)?;
        for member in &mut *members {
            if let Place::Shared { len, .. } = &mut *lock(&member.state.place) {
                *len += 1;
            }
            member.state.len += 1;
            member.state.beside = count;
        }
        Ok(rows.into_iter().map(|row| logits.row(row).to_owned()).collect())
    }
}

impl<S: EngineSession + 'static> Decoder for KvDecoder<S> {
    fn start(self: Arc<Self>) -> Result<Box<dyn DecoderState>, BackendError> {
        Ok(Box::new(KvState {
            decoder: self,
            place: Arc::new(Mutex::new(Place::Own(Cache::default()))),
            len: 0,
            beside: 1,
        }))
    }

    fn feed_each(
        self: Arc<Self>,
        states: &mut [&mut (dyn DecoderState + 'static)],
        embeds: ArrayView2<'_, f32>,
    ) -> Vec<Result<Array1<f32>, BackendError>> {
        let mut results: Vec<Option<Result<Array1<f32>, BackendError>>> = Vec::new();
        results.resize_with(states.len(), || None);
        let fits = embeds.dim() == (states.len(), self.ports.hidden);
        if fits && self.together.load(Ordering::Relaxed) {
            let mut members = Vec::new();
            for (index, state) in states.iter_mut().enumerate() {
                let state: &mut dyn Any = &mut **state;
                if let Some(state) = state.downcast_mut::<KvState<S>>()
                    && Arc::ptr_eq(&state.decoder, &self)
                {
                    members.push(Member { index, state });
                }
            }
            for mut set in sets(members) {
                let indices: Vec<usize> = set.iter().map(|member| member.index).collect();
                match self.step(&mut set, embeds) {
                    Ok(logits) => {
                        for (index, logits) in indices.into_iter().zip(logits) {
                            if let Some(result) = results.get_mut(index) {
                                *result = Some(Ok(logits));
                            }
                        }
                    }
                    Err(_) => {
                        // One after the other: each has its own error, and an engine that cannot do it together is not
                        // asked again.
                        let mut all = true;
                        for Member { index, state } in set {
                            let fed = state.feed(embeds.slice(s![index..=index, ..]));
                            all &= fed.is_ok();
                            if let Some(result) = results.get_mut(index) {
                                *result = Some(fed);
                            }
                        }
                        if all {
                            self.together.store(false, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
        let rows = embeds.axis_chunks_iter(Axis(0), 1);
        let singly = results.into_iter().zip(states).zip(rows);
        singly
            .map(|((result, state), row)| result.unwrap_or_else(|| state.feed(row)))
            .collect()
    }

    fn placement(&self) -> Option<Placement> {
        self.session.placement()
    }
}

/// One sequence in a [`KvDecoder`].
struct KvState<S: EngineSession> {
    decoder: Arc<KvDecoder<S>>,
    place: Arc<Mutex<Place<S::Value>>>,
    len: usize,
    beside: usize,
}

impl<S: EngineSession + 'static> KvState<S> {
    /// Feeds positions in one computation.
    fn feed_at_once(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let decoder = &*self.decoder;
        let KvDecoder { session, ports, .. } = decoder;
        let new = ports.positions(session, &embeds)?;
        let mut place = decoder.owned(&self.place)?;
        let Place::Own(cache) = &mut *place else {
            return Err(decoder.failed("a cache is not where it was brought".to_owned()));
        };
        decoder.make_room(cache, 1, new)?;
        let total = self.len + new;
        let positions = (self.len..total).map(|position| i64::try_from(position).unwrap_or(i64::MAX));
        let positions = Array1::from_iter(positions).insert_axis(Axis(0));
        let positions = session.upload(Tensor::I64(positions.into_dyn()))?;
        let mask = session.upload(Tensor::I64(Array2::ones((1, total)).into_dyn()))?;
        let mut inputs: Vec<(&str, Input<'_, S::Value>)> = vec![
            (
                "inputs_embeds",
                Input::Lent(embeds.insert_axis(Axis(0)).into_dyn()),
            ),
            ("attention_mask", Input::Held(&mask)),
            ("position_ids", Input::Held(&positions)),
        ];
        inputs.extend(decoder.past(cache));
        let outputs = session.compute(&mut inputs)?;
        drop(inputs);
        let logits = ports.of_last(ports.logits(session, &outputs)?);
        // Only now: a step that failed leaves the state as it was.
        decoder.keep(cache, new, outputs)?;
        drop(place);
        self.len = total;
        self.beside = 1;
        Ok(logits)
    }
}

impl<S: EngineSession + 'static> DecoderState for KvState<S> {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        if !self.decoder.steps || self.len == 0 {
            return self.feed_at_once(embeds);
        }
        let before = self.len;
        let mut rows = embeds.axis_chunks_iter(Axis(0), 1);
        // No rows at all are for the engine's own complaint.
        let mut fed = self.feed_at_once(rows.next().unwrap_or(embeds));
        for row in rows {
            if fed.is_ok() {
                fed = self.feed_at_once(row);
            }
        }
        if fed.is_err() {
            self.truncate(before)?;
        }
        fed
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), BackendError> {
        if len >= self.len {
            return Ok(());
        }
        let decoder = &*self.decoder;
        let mut place = decoder.owned(&self.place)?;
        if let Place::Own(cache) = &mut *place {
            let session = &decoder.session;
            let kept = |value| session.upload(session.download(value)?.keep(POSITIONS, len));
            if len == 0 {
                *cache = Cache::default();
            } else if !decoder.in_place {
                let tensors = cache.tensors.iter().map(kept);
                cache.tensors = tensors.collect::<Result<_, BackendError>>()?;
                cache.slots = len;
            } else if cache.slots > ROOM_KEPT && cache.slots / 2 > decoder.slots(len) {
                // Who counts positions counts memory.
                let before = std::mem::replace(&mut cache.filled, len);
                let all = Source {
                    cache: &*cache,
                    row: 0,
                    from: 0,
                };
                match decoder.copy(&[all], len, len) {
                    Ok(smaller) => *cache = smaller,
                    Err(error) => {
                        cache.filled = before;
                        return Err(error);
                    }
                }
            }
            cache.filled = len;
        }
        drop(place);
        self.len = len;
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        let slots = match &*lock(&self.place) {
            Place::Own(cache) => cache.slots,
            Place::Shared { len, .. } => *len,
        };
        self.decoder.ports.cache_bytes(self.decoder.dtype, slots)
    }

    fn beside(&self) -> usize {
        self.beside
    }
}

#[cfg(test)]
mod tests;
