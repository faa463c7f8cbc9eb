//! How does a graph with `past_key_values.*` and `present.*` become a decoder with a state?

use super::session::{EngineSession, Input, Placement, Positions, Tensor};
use super::{Decoder, DecoderState};
use crate::error::BackendError;
use models::bundle::{GraphEntry, IoDim, KvSpec};
use models::dtype::DType;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};
use std::any::Any;
use std::cmp::Reverse;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The axis of a cache tensor `[batch, kv_heads, past, head_dim]` along which positions follow each other.
const POSITIONS: usize = 2;

/// What the inputs and outputs of a decoder's graph are.
#[derive(Debug)]
pub(super) struct Ports {
    /// Length of an embedding.
    pub(super) hidden: usize,
    /// Names of the inputs `past_key_values.*`.
    pub(super) past: Vec<String>,
    /// For each of them: which output, `present.*`, has what was computed of the new positions.
    pub(super) present: Vec<usize>,
    /// Which output has the logits.
    logits: usize,
    /// Values of one position in one tensor of the cache.
    width: usize,
}

impl Ports {
    /// Of a graph that keeps its contract `entry`.
    ///
    /// # Errors
    /// A contract without the inputs and outputs of a decoder with a cache.
    pub(super) fn of(
        session: &impl EngineSession,
        entry: &GraphEntry,
        kv: &KvSpec,
    ) -> Result<Ports, BackendError> {
        let output = |name: &str| {
            let mut ports = session.description().outputs.iter();
            let found = ports.position(|port| port.name == name);
            found.ok_or_else(|| broken(session, format!("output `{name}` is missing")))
        };
        let (mut past, mut present) = (Vec::new(), Vec::new());
        for layer in 0..kv.layers {
            for part in ["key", "value"] {
                past.push(format!("past_key_values.{layer}.{part}"));
                present.push(output(&format!("present.{layer}.{part}"))?);
            }
        }
        let embeds = entry.inputs.iter().find(|io| io.name == "inputs_embeds");
        let hidden = embeds.and_then(|io| match io.dims.last() {
            Some(IoDim::Fixed(hidden)) => usize::try_from(*hidden).ok(),
            _ => None,
        });
        let nameless = || {
            broken(
                session,
                "input `inputs_embeds` has no fixed last dimension".to_owned(),
            )
        };
        Ok(Ports {
            logits: output("logits")?,
            hidden: hidden.filter(|&hidden| hidden > 0).ok_or_else(nameless)?,
            past,
            present,
            width: kv.kv_heads * kv.head_dim,
        })
    }

    /// How many positions `embeds` are: at least one.
    pub(super) fn positions(
        &self,
        session: &impl EngineSession,
        embeds: &ArrayView2<'_, f32>,
    ) -> Result<usize, BackendError> {
        count_positions(&session.description().path, embeds, self.hidden)
    }

    /// Bytes of a cache of so many positions.
    pub(super) fn cache_bytes(&self, dtype: DType, positions: usize) -> usize {
        positions * self.past.len() * self.width * dtype.size()
    }

    /// The logits among the outputs.
    pub(super) fn logits<S: EngineSession>(
        &self,
        session: &S,
        outputs: &[S::Value],
    ) -> Result<Array1<f32>, BackendError> {
        let logits = session.download(given(session, outputs, self.logits)?)?;
        let found = logits.dtype();
        let logits = logits.into_f32().ok_or_else(|| BackendError::Run {
            path: session.description().path.clone(),
            reason: format!("`logits` is {found}, expected real numbers"),
        })?;
        Ok(logits.into_flat())
    }

    /// A cache tensor of this shape for each of the names.
    pub(super) fn cache<S: EngineSession>(
        &self,
        session: &S,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Vec<S::Value>, BackendError> {
        let fresh = || {
            let found = Tensor::zeros(dtype, shape);
            found.ok_or_else(|| {
                broken(
                    session,
                    format!("the cache is {dtype}, expected float32 or float16"),
                )
            })
        };
        self.past.iter().map(|_| session.upload(fresh()?)).collect()
    }
}

/// How many positions of length `hidden` `embeds` are: at least one. `path` is for the error.
pub(super) fn count_positions(
    path: &Path,
    embeds: &ArrayView2<'_, f32>,
    hidden: usize,
) -> Result<usize, BackendError> {
    let (count, width) = embeds.dim();
    if count > 0 && width == hidden {
        return Ok(count);
    }
    Err(BackendError::Inputs {
        path: path.to_owned(),
        problems: vec![format!(
            "`inputs_embeds` is {count} x {width}, expected at least 1 x {hidden}"
        )],
    })
}

/// An output by its number.
pub(super) fn given<'o, S: EngineSession>(
    session: &S,
    outputs: &'o [S::Value],
    index: usize,
) -> Result<&'o S::Value, BackendError> {
    outputs.get(index).ok_or_else(|| BackendError::Run {
        path: session.description().path.clone(),
        reason: format!(
            "the engine gave {} outputs, expected more than {index}",
            outputs.len()
        ),
    })
}

fn broken(session: &impl EngineSession, problem: String) -> BackendError {
    BackendError::Contract {
        path: session.description().path.clone(),
        problems: vec![problem],
    }
}

/// Most sequences of one computation: for as many rows the kernels of target `cpu` read weights once, and each row has the
/// bits that it has alone.
const MOST_TOGETHER: usize = 16;

/// A decoder over a session: the outputs `present.*` of a step are the inputs `past_key_values.*` of the next, and stay
/// in the engine's own form.
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
    /// Whether several sequences can be continued by one computation.
    together: AtomicBool,
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
            session,
            ports,
            dtype,
            heads: kv.kv_heads,
            head_dim: kv.head_dim,
            together: AtomicBool::new(together && varies),
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

    /// Copies of the caches of some sequences, in tensors of as many rows.
    fn copy(&self, rows: &[Source<'_, S::Value>], slots: usize) -> Result<Vec<S::Value>, BackendError> {
        let shape = [self.heads, slots, self.head_dim];
        let tensor = |index: usize| {
            let rows = rows.iter().map(|source| Positions {
                cache: source.cache.get(index),
                row: source.row,
                from: source.from,
            });
            self.session.gather(&rows.collect::<Vec<_>>(), self.dtype, shape)
        };
        (0..self.ports.past.len()).map(tensor).collect()
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
                from: group.slots.saturating_sub(*len),
            };
            let own = self.copy(&[source], *len)?;
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
                        let (row, from) = (*row, group.slots.saturating_sub(*len));
                        Source {
                            cache: &group.cache,
                            row,
                            from,
                        }
                    }
                });
            }
            self.copy(&sources, slots)?
        };
        let group = Arc::new(Mutex::new(Group {
            cache,
            slots,
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
        let (count, slots) = (members.len(), group.slots);
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
        let past = ports.past.iter().map(String::as_str);
        inputs.extend(past.zip(group.cache.iter().map(Input::Held)));
        let outputs = session.compute(&inputs)?;
        drop(inputs);
        let logits = ports.logits(session, &outputs)?;
        let width = logits.len() / count.max(1);
        let logits = logits
            .into_shape_with_order((count, width))
            .map_err(|error| self.failed(format!("`logits` are not {count} rows: {error}")))?;
        let cache = self.present(outputs)?;
        // Only now: a step that failed leaves all states as they were.
        group.cache = cache;
        group.slots += 1;
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
            place: Arc::new(Mutex::new(Place::Own(Vec::new()))),
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

/// A sequence that is to be continued, and its row among the embeddings.
struct Member<'a, S: EngineSession> {
    index: usize,
    state: &'a mut KvState<S>,
}

/// Which sequences are to be continued together: at most [`MOST_TOGETHER`], and none whose cache would be mostly what it is
/// padded with to the length of the longest. Those of a single one are left out. Sequences that were together stay so.
fn sets<S: EngineSession>(mut members: Vec<Member<'_, S>>) -> Vec<Vec<Member<'_, S>>> {
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
const FREE_PADDING: usize = 256;

fn longest<S: EngineSession>(set: &[Member<'_, S>]) -> usize {
    set.first().map_or(0, |member| member.state.len)
}

/// Where a sequence's cache lies.
enum Place<V> {
    /// In tensors of its own, in the order of the ports; none while nothing was fed.
    Own(Vec<V>),
    /// In a row of common tensors, one `of` so many: the last `len` slots.
    Shared {
        group: Arc<Mutex<Group<V>>>,
        row: usize,
        len: usize,
        of: usize,
    },
}

/// Caches of sequences that are continued together.
struct Group<V> {
    /// In the order of the ports: `[members, kv_heads, slots, head_dim]`. A shorter sequence is padded in front, so that the
    /// next position of all of them has the same slot.
    cache: Vec<V>,
    slots: usize,
    /// Who has which row; nobody where a sequence is gone.
    members: Vec<Weak<Mutex<Place<V>>>>,
}

/// The cache of one sequence: its row in tensors, from a slot on.
struct Source<'a, V> {
    cache: &'a [V],
    row: usize,
    from: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One sequence in a [`KvDecoder`].
struct KvState<S: EngineSession> {
    decoder: Arc<KvDecoder<S>>,
    place: Arc<Mutex<Place<S::Value>>>,
    len: usize,
    beside: usize,
}

impl<S: EngineSession + 'static> DecoderState for KvState<S> {
    fn feed(&mut self, embeds: ArrayView2<'_, f32>) -> Result<Array1<f32>, BackendError> {
        let decoder = &*self.decoder;
        let KvDecoder { session, ports, .. } = decoder;
        let new = ports.positions(session, &embeds)?;
        let mut place = decoder.owned(&self.place)?;
        let Place::Own(cache) = &mut *place else {
            return Err(decoder.failed("a cache is not where it was brought".to_owned()));
        };
        if cache.is_empty() {
            let empty = [1, decoder.heads, 0, decoder.head_dim];
            *cache = ports.cache(session, decoder.dtype, &empty)?;
        }
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
        let past = ports.past.iter().map(String::as_str);
        inputs.extend(past.zip(cache.iter().map(Input::Held)));
        let outputs = session.compute(&inputs)?;
        drop(inputs);
        let logits = ports.logits(session, &outputs)?;
        // Only now: a step that failed leaves the state as it was.
        *cache = decoder.present(outputs)?;
        drop(place);
        self.len = total;
        self.beside = 1;
        Ok(logits)
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
            *cache = if len == 0 {
                Vec::new()
            } else {
                cache.iter().map(kept).collect::<Result<_, BackendError>>()?
            };
        }
        drop(place);
        self.len = len;
        Ok(())
    }

    fn cache_bytes(&self) -> usize {
        self.decoder.ports.cache_bytes(self.decoder.dtype, self.len)
    }

    fn beside(&self) -> usize {
        self.beside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::{Description, Port};
    use models::bundle::Io;
    use ndarray::{Array4, Ix3, Ix4};
    use std::path::PathBuf;
    use std::sync::atomic::AtomicUsize;

    /// Adds up all embeddings: the cache holds them, the logits are the sum of the last position's past.
    #[derive(Debug)]
    struct Sum {
        description: Description,
        fail: AtomicBool,
        /// Refuses more sequences than this at once.
        most: usize,
        /// Computations, and rows that were copied from one cache into another.
        computed: AtomicUsize,
        copied: AtomicUsize,
    }

    impl Sum {
        fn new() -> Sum {
            let port = |name: &str| Port {
                name: name.to_owned(),
                dtype: Some(DType::Float32),
                dims: Vec::new(),
            };
            let outputs = vec![port("present.0.value"), port("logits"), port("present.0.key")];
            let description = Description {
                path: PathBuf::from("decoder.onnx"),
                inputs: Vec::new(),
                outputs,
            };
            Sum {
                description,
                fail: AtomicBool::new(false),
                most: 99,
                computed: AtomicUsize::new(0),
                copied: AtomicUsize::new(0),
            }
        }
    }

    impl EngineSession for Sum {
        type Value = Tensor;

        fn description(&self) -> &Description {
            &self.description
        }

        fn upload(&self, tensor: Tensor) -> Result<Tensor, BackendError> {
            Ok(tensor)
        }

        fn download(&self, value: &Tensor) -> Result<Tensor, BackendError> {
            Ok(value.clone())
        }

        fn compute(&self, inputs: &[(&str, Input<'_, Tensor>)]) -> Result<Vec<Tensor>, BackendError> {
            let failed = |reason: &str| BackendError::Run {
                path: self.description.path.clone(),
                reason: reason.to_owned(),
            };
            if self.fail.load(Ordering::Relaxed) {
                return Err(failed("asked to"));
            }
            let get = |wanted: &str| match &inputs.iter().find(|(name, _)| *name == wanted).unwrap().1 {
                Input::Held(tensor) => (*tensor).clone(),
                Input::Lent(array) => Tensor::F32(array.to_owned()),
            };
            let ints = |wanted: &str| match get(wanted) {
                Tensor::I64(array) => array,
                _ => panic!("{wanted}"),
            };
            let past = get("past_key_values.0.key").into_f32().unwrap();
            let past = past.into_dimensionality::<Ix4>().unwrap();
            let embeds = get("inputs_embeds").into_f32().unwrap();
            let embeds = embeds.into_dimensionality::<Ix3>().unwrap();
            let (positions, mask) = (ints("position_ids"), ints("attention_mask"));
            let (batch, new, width) = embeds.dim();
            let (_, _, slots, _) = past.dim();
            if batch > self.most {
                return Err(failed("too many"));
            }
            self.computed.fetch_add(1, Ordering::Relaxed);
            assert_eq!(mask.shape(), [batch, slots + new]);
            assert_eq!(positions.shape(), [batch, new]);
            let mut cache = Array4::zeros((batch, 1, slots + new, width));
            cache.slice_mut(s![.., .., ..slots, ..]).assign(&past);
            cache.slice_mut(s![.., 0, slots.., ..]).assign(&embeds);
            let mut logits = Array3::zeros((batch, 1, 1));
            for row in 0..batch {
                let seen = mask.slice(s![row, ..slots]).sum();
                assert_eq!(positions[[row, 0]], seen, "row {row}");
                for slot in (0..slots + new).filter(|slot| mask[[row, *slot]] == 1) {
                    logits[[row, 0, 0]] += cache.slice(s![row, 0, slot, ..]).sum();
                }
            }
            let cache = Tensor::F32(cache.into_dyn());
            Ok(vec![cache.clone(), Tensor::F32(logits.into_dyn()), cache])
        }

        fn gather(
            &self,
            rows: &[Positions<'_, Tensor>],
            _dtype: DType,
            [heads, slots, width]: [usize; 3],
        ) -> Result<Tensor, BackendError> {
            self.copied.fetch_add(rows.len(), Ordering::Relaxed);
            let views = rows.iter().map(|row| {
                let cache = row.cache.map(|cache| match cache {
                    Tensor::F32(array) => array.view(),
                    _ => panic!("not float32"),
                });
                (cache, row.row, row.from)
            });
            let all = super::super::session::gather_positions(views, [heads, slots, width], 0.0);
            Ok(Tensor::F32(all.unwrap()))
        }
    }

    fn decoder() -> Arc<KvDecoder<Sum>> {
        decoder_of(Sum::new())
    }

    fn decoder_of(session: Sum) -> Arc<KvDecoder<Sum>> {
        let io = |name: &str, dims| Io {
            name: name.to_owned(),
            dtype: DType::Float32,
            dims,
        };
        let entry = GraphEntry {
            path: "decoder.onnx".to_owned(),
            data: Vec::new(),
            inputs: vec![io(
                "inputs_embeds",
                vec![IoDim::Symbol("batch".to_owned()), IoDim::Fixed(2)],
            )],
            outputs: Vec::new(),
        };
        let kv = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 2,
            max_context: 16,
        };
        Arc::new(KvDecoder::new(session, &entry, &kv, DType::Float32, true).unwrap())
    }

    /// Feeds rows of two.
    fn feed(state: &mut Box<dyn DecoderState>, embeds: &[f32]) -> Result<Vec<f32>, BackendError> {
        let embeds = ArrayView2::from_shape((embeds.len() / 2, 2), embeds).unwrap();
        Ok(state.feed(embeds)?.to_vec())
    }

    #[test]
    fn prefill_equals_steps_and_truncate_equals_fresh() {
        let mut whole = decoder().start().unwrap();
        assert_eq!(feed(&mut whole, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(), [21.0]);
        let mut steps = decoder().start().unwrap();
        feed(&mut steps, &[1.0, 2.0]).unwrap();
        feed(&mut steps, &[3.0, 4.0]).unwrap();
        assert_eq!(feed(&mut steps, &[5.0, 6.0]).unwrap(), [21.0]);
        assert_eq!(steps.len(), 3);
        assert_eq!(steps.cache_bytes(), 3 * 2 * 2 * 4);
        steps.truncate(9).unwrap();
        assert_eq!(steps.len(), 3);
        steps.truncate(1).unwrap();
        assert_eq!(feed(&mut steps, &[0.0, 4.0]).unwrap(), [7.0]);
        steps.truncate(0).unwrap();
        assert_eq!(steps.cache_bytes(), 0);
        assert_eq!(feed(&mut steps, &[1.0, 1.0]).unwrap(), [2.0]);
    }

    #[test]
    fn a_failed_step_changes_nothing() {
        let decoder = decoder();
        let mut state = Arc::clone(&decoder).start().unwrap();
        feed(&mut state, &[1.0, 2.0]).unwrap();
        decoder.session.fail.store(true, Ordering::Relaxed);
        assert!(feed(&mut state, &[1.0, 2.0]).is_err());
        decoder.session.fail.store(false, Ordering::Relaxed);
        assert_eq!(state.len(), 1);
        assert_eq!(feed(&mut state, &[1.0, 1.0]).unwrap(), [5.0]);
        for wrong in [Array2::zeros((0, 2)), Array2::zeros((1, 1))] {
            assert!(state.feed(wrong.view()).is_err());
        }
    }

    #[test]
    fn sequences_of_one_decoder_do_not_know_of_each_other() {
        let decoder = decoder();
        let mut first = Arc::clone(&decoder).start().unwrap();
        let mut second = Arc::clone(&decoder).start().unwrap();
        assert_eq!(feed(&mut first, &[1.0, 2.0]).unwrap(), [3.0]);
        assert_eq!(feed(&mut second, &[10.0, 20.0]).unwrap(), [30.0]);
        assert_eq!(feed(&mut first, &[3.0, 4.0]).unwrap(), [10.0]);
        first.truncate(0).unwrap();
        assert_eq!(feed(&mut second, &[1.0, 1.0]).unwrap(), [32.0]);
        drop((first, second));
        assert_eq!(Arc::strong_count(&decoder), 1);
    }
    /// Feeds a row of two to each of some states together.
    fn feed_each(
        decoder: &Arc<KvDecoder<Sum>>,
        states: &mut [Box<dyn DecoderState>],
        embeds: &[f32],
    ) -> Vec<Result<f32, String>> {
        let embeds = ArrayView2::from_shape((states.len(), 2), embeds).unwrap();
        let mut states: Vec<_> = states.iter_mut().map(|state| &mut **state).collect();
        let fed = Arc::clone(decoder).feed_each(&mut states, embeds);
        fed.into_iter()
            .map(|logits| Ok(logits.map_err(|error| error.to_string())?.sum()))
            .collect()
    }

    fn counts(decoder: &KvDecoder<Sum>) -> [usize; 2] {
        let Sum { computed, copied, .. } = &decoder.session;
        [computed, copied].map(|count| count.swap(0, Ordering::Relaxed))
    }

    #[test]
    fn sequences_of_different_lengths_are_continued_by_one_computation() {
        let decoder = decoder();
        let mut states: Vec<_> = (0..4).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        feed(&mut states[0], &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0]).unwrap();
        feed(&mut states[1], &[10.0, 0.0]).unwrap();
        feed(&mut states[2], &[100.0, 0.0, 200.0, 0.0]).unwrap();
        counts(&decoder);
        let ones = [1.0, 0.0].repeat(4);
        // The fourth is fed its first position.
        assert_eq!(
            feed_each(&decoder, &mut states, &ones),
            [Ok(7.0), Ok(11.0), Ok(301.0), Ok(1.0)]
        );
        // Both tensors of each.
        assert_eq!(counts(&decoder), [1, 8]);
        assert_eq!(
            states.iter().map(|state| state.len()).collect::<Vec<_>>(),
            [4, 2, 3, 1]
        );
        assert!(states.iter().all(|state| state.beside() == 4));
        assert_eq!(
            feed_each(&decoder, &mut states, &ones),
            [Ok(8.0), Ok(12.0), Ok(302.0), Ok(2.0)]
        );
        // In another order, still without a copy.
        states.rotate_left(1);
        let embeds = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0];
        assert_eq!(
            feed_each(&decoder, &mut states, &embeds),
            [Ok(13.0), Ok(304.0), Ok(5.0), Ok(12.0)]
        );
        assert_eq!(counts(&decoder), [2, 0]);
        assert_eq!(states[0].cache_bytes(), 4 * 2 * 2 * 4);
    }

    #[test]
    fn sequences_join_and_leave() {
        let decoder = decoder();
        let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        for (state, value) in states.iter_mut().zip([1.0, 10.0, 100.0]) {
            feed(state, &[value, 0.0]).unwrap();
        }
        let ones = [1.0, 0.0].repeat(4);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..6]),
            [Ok(2.0), Ok(11.0), Ok(101.0)]
        );
        // The first leaves and lives on; it gets its own tensors when the others go on.
        let mut first = states.remove(0);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..4]),
            [Ok(12.0), Ok(102.0)]
        );
        counts(&decoder);
        assert_eq!(feed(&mut first, &[5.0, 0.0]).unwrap(), [7.0]);
        assert_eq!(counts(&decoder), [1, 0]);
        // One that is fed by itself leaves, and comes back.
        assert_eq!(feed(&mut states[0], &[1.0, 0.0, 1.0, 0.0]).unwrap(), [14.0]);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..4]),
            [Ok(15.0), Ok(103.0)]
        );
        states.push(first);
        assert_eq!(
            feed_each(&decoder, &mut states, &ones[..6]),
            [Ok(16.0), Ok(104.0), Ok(8.0)]
        );
        // One that is gone is no burden for who is left, and what is forgotten is forgotten.
        drop(states.remove(0));
        states[0].truncate(1).unwrap();
        assert_eq!(feed_each(&decoder, &mut states, &ones[..4]), [Ok(101.0), Ok(9.0)]);
        states[1].truncate(0).unwrap();
        assert_eq!(feed(&mut states[1], &[3.0, 0.0]).unwrap(), [3.0]);
        assert_eq!(feed_each(&decoder, &mut states, &ones[..4]), [Ok(102.0), Ok(4.0)]);
        drop(states);
        assert_eq!(Arc::strong_count(&decoder), 1);
    }

    #[test]
    fn padding_is_bounded() {
        let decoder = decoder();
        let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        let long = 2 * 10 + FREE_PADDING;
        feed(&mut states[0], &[1.0, 0.0].repeat(long)).unwrap();
        feed(&mut states[1], &[1.0, 0.0].repeat(10)).unwrap();
        feed(&mut states[2], &[1.0, 0.0].repeat(9)).unwrap();
        counts(&decoder);
        let ones = [1.0, 0.0].repeat(3);
        let sums = feed_each(&decoder, &mut states, &ones);
        assert_eq!(sums, [Ok(long as f32 + 1.0), Ok(11.0), Ok(10.0)]);
        // The shortest by itself.
        assert_eq!(counts(&decoder)[0], 2);
        assert_eq!(
            states.iter().map(|state| state.beside()).collect::<Vec<_>>(),
            [2, 2, 1]
        );
        // More than are computed at once.
        let mut states: Vec<_> = (0..MOST_TOGETHER + 2)
            .map(|_| Arc::clone(&decoder).start().unwrap())
            .collect();
        for round in 1..4_u8 {
            let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(MOST_TOGETHER + 2));
            assert!(sums.iter().all(|sum| *sum == Ok(f32::from(round))));
            let [computed, copied] = counts(&decoder);
            assert_eq!((computed, copied > 0), (2, round == 1));
        }
    }

    #[test]
    fn an_error_is_that_of_each_and_changes_nothing() {
        let decoder = decoder();
        let mut states: Vec<_> = (0..2).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        let ones = [1.0, 0.0].repeat(2);
        feed_each(&decoder, &mut states, &ones);
        decoder.session.fail.store(true, Ordering::Relaxed);
        let failed = feed_each(&decoder, &mut states, &ones);
        assert!(
            failed
                .iter()
                .all(|sum| sum.as_ref().is_err_and(|error| error.contains("asked to")))
        );
        decoder.session.fail.store(false, Ordering::Relaxed);
        assert_eq!(feed_each(&decoder, &mut states, &ones), [Ok(2.0), Ok(2.0)]);
        assert!(states.iter().all(|state| state.len() == 2 && state.beside() == 2));
        // A state of another decoder is fed by its own.
        let other = self::decoder();
        states.push(Arc::clone(&other).start().unwrap());
        assert_eq!(
            feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(3)),
            [Ok(3.0), Ok(3.0), Ok(1.0)]
        );
    }

    #[test]
    fn an_engine_that_refuses_is_asked_once() {
        let decoder = decoder_of(Sum {
            most: 1,
            ..Sum::new()
        });
        let mut states: Vec<_> = (0..2).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
        for round in 1..4_u8 {
            let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(2));
            assert_eq!(sums, [Ok(f32::from(round)), Ok(f32::from(round))]);
            assert!(states.iter().all(|state| state.beside() == 1));
        }
        let [computed, copied] = counts(&decoder);
        // To a group and back, once.
        assert_eq!((computed, copied), (6, 8));
    }

    #[test]
    fn sequences_of_several_threads_join_and_leave_at_once() {
        let decoder = decoder();
        std::thread::scope(|scope| {
            let (to, from) = std::sync::mpsc::channel::<Box<dyn DecoderState>>();
            let (back, again) = std::sync::mpsc::channel::<Box<dyn DecoderState>>();
            let other = Arc::clone(&decoder);
            scope.spawn(move || {
                // Half of a group goes on here, beside the other half.
                for mut state in from {
                    let len = state.len() as f32;
                    assert_eq!(feed(&mut state, &[1.0, 0.0]).unwrap(), [len + 1.0]);
                    let mut pair = [state, Arc::clone(&other).start().unwrap()];
                    assert_eq!(
                        feed_each(&other, &mut pair, &[1.0, 0.0].repeat(2)),
                        [Ok(len + 2.0), Ok(1.0)]
                    );
                    let [state, _] = pair;
                    back.send(state).unwrap();
                }
            });
            let mut states: Vec<_> = (0..3).map(|_| Arc::clone(&decoder).start().unwrap()).collect();
            for _ in 0..50 {
                feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(3));
                to.send(states.remove(0)).unwrap();
                for _ in 0..3 {
                    let lens: Vec<f32> = states.iter().map(|state| state.len() as f32).collect();
                    let sums = feed_each(&decoder, &mut states, &[1.0, 0.0].repeat(2));
                    assert_eq!(sums, [Ok(lens[0] + 1.0), Ok(lens[1] + 1.0)]);
                }
                states.push(again.recv().unwrap());
            }
            drop(to);
        });
    }
}
