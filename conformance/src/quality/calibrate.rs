//! What are the vectors like that a model's matrices are multiplied with? Second moments over images, prompts
//! and the model's own answers, for an export that rounds weights by them ([`models::checkpoint::Statistics`]
//! has the file).
//!
//! The portable fp32 networks run with the inputs of their products as further outputs, some at a time, so
//! that those of one pass stay below `PASS` bytes.

use crate::array::Array;
use crate::loaded::{self, Combination, Loaded};
use crate::safetensors::{self, View};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::Cache;
use crate::setup::subject::{Precision, Session, Subject, Target, Variant};
use crate::setup::workspace;
use models::arch::{self, Network};
use models::bundle::Bundle;
use models::checkpoint::{Canonical, Checkpoint, FINGERPRINT, canonical, moments_name, peaks_name};
use models::graph::{Dim, Graph, Op, Source, ValueId};
use models::weights::MOMENTS;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use runtime::image::PixelValues;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of further outputs of one pass.
const PASS: usize = 256 << 20;

/// Most vectors of one pass that count: those of an image's first stages are many and alike.
const VECTORS: usize = 4096;

/// What is run, and how far.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Image files.
    pub images: Vec<PathBuf>,
    /// What is asked about each.
    pub prompts: Vec<String>,
    /// Most tokens of an answer.
    pub answer_tokens: usize,
    /// Who computes.
    pub provider: crate::setup::subject::Provider,
    /// How engines are opened.
    pub options: runtime::Options,
    /// A directory for what is made meanwhile: graphs in fp32.
    pub scratch: PathBuf,
}

/// What was seen of the inputs of one product.
#[derive(Debug)]
struct Seen {
    /// Sums of `x x^T`, run by run.
    moments: Vec<Array2<f32>>,
    /// Sums of `x^4`.
    peaks: Array1<f64>,
    vectors: usize,
}

impl Seen {
    fn new(inputs: usize) -> Seen {
        let widths = (0..inputs)
            .step_by(MOMENTS)
            .map(|start| MOMENTS.min(inputs - start));
        Seen {
            moments: widths.map(|width| Array2::zeros((width, width))).collect(),
            peaks: Array1::zeros(inputs),
            vectors: 0,
        }
    }

    /// Adds vectors `[n, inputs]`; of many only every so many-th.
    fn add(&mut self, vectors: ArrayView2<'_, f32>) {
        let step = vectors.nrows().div_ceil(VECTORS).max(1);
        let kept = vectors.slice(s![..;step, ..]).as_standard_layout().into_owned();
        for (run, moments) in self.moments.iter_mut().enumerate() {
            let start = run * MOMENTS;
            let part = kept.slice(s![.., start..start + moments.nrows()]);
            *moments += &part.t().dot(&part);
        }
        for row in kept.rows() {
            for (sum, value) in self.peaks.iter_mut().zip(row) {
                *sum += f64::from(*value).powi(4);
            }
        }
        self.vectors += kept.nrows();
    }
}

/// The statistics of a checkpoint.
#[derive(Debug)]
pub struct Calibrated {
    fingerprint: [u8; 32],
    seen: BTreeMap<String, Seen>,
    /// Images that were looked at.
    pub images: usize,
    /// Positions that were fed to the decoder.
    pub positions: usize,
}

/// A product's input inside a graph.
struct Watched {
    value: ValueId,
    name: String,
    inputs: usize,
    /// Whether channels come before places: `[1, C, H, W]`.
    channels_first: bool,
    /// Bytes of an output, as far as its shape is known.
    bytes: usize,
}

/// Runs the model over the images.
///
/// # Errors
/// A checkpoint, an image or a question that cannot be prepared, or an engine that gives up.
pub fn calibrate(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Result<Calibrated, CaseError> {
    let opening = || "opening the checkpoint".to_owned();
    let checkpoint = Checkpoint::open(&settings.checkpoint).during(opening)?;
    let (weights, _) = canonical(&checkpoint, None).during(opening)?;
    let known = exporter::calibration::known_inputs(&weights).during(opening)?;
    let scratch =
        tempfile::tempdir_in(&settings.scratch).during(|| "making a temporary directory".to_owned())?;
    let bundle = scratch.path().join("bundle");
    workspace::export(&settings.checkpoint, &bundle, &[Precision::Fp32])?;
    let subject = Subject {
        provider: settings.provider,
        form: Variant::PORTABLE,
        options: settings.options.clone(),
    };
    let combination = Combination {
        provider: settings.provider.engine().unwrap_or_default(),
        target: Target::Portable,
        precision: Precision::Fp32,
    };
    let mut loaded = Loaded::open(&bundle, &combination, &settings.options)?;
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut pixels: Vec<PixelValues> = Vec::new();
    let mut fed: Vec<Array2<f32>> = Vec::new();
    for path in &settings.images {
        tell(&format!("answering about {}", path.display()));
        let picture = loaded::picture(Some(path))?;
        let image = loaded
            .model
            .preprocess(&picture)
            .during(|| format!("preparing `{}`", path.display()))?;
        let features = loaded.encode(&image)?;
        for question in &settings.prompts {
            let prompt = loaded::prompt(&loaded.model, Some(image.id), question, settings.answer_tokens)?;
            let answer = loaded.greedy(&prompt, features.view(), settings.answer_tokens)?;
            let prompt = loaded.embeds(&prompt, features.view())?;
            let answer = loaded.embed(&answer)?;
            let parts = ndarray::concatenate(Axis(0), &[prompt.view(), answer.view()]);
            fed.push(parts.during(|| "joining prompt and answer".to_owned())?);
        }
        pixels.push(image);
    }
    let run = Run {
        subject: &subject,
        weights: &weights,
        known: &known,
        scratch: scratch.path(),
    };
    run.network(Network::VisionEncoder, 1, &mut seen, &mut |session, see| {
        for (image, path) in pixels.iter().zip(&settings.images) {
            tell(&format!("encoding {}", path.display()));
            see(session.run(&[("pixel_values", Array::from(image.values.clone()))])?)?;
        }
        Ok(())
    })?;
    let contract = loaded.bundle().clone();
    let longest = fed.iter().map(Array2::nrows).max().unwrap_or(1);
    run.network(Network::Decoder, longest, &mut seen, &mut |session, see| {
        for (number, embeds) in fed.iter().enumerate() {
            tell(&format!("decoding answer {} of {}", number + 1, fed.len()));
            see(decode(session, &contract, embeds)?)?;
        }
        Ok(())
    })?;
    Ok(Calibrated {
        fingerprint: checkpoint.fingerprint(),
        seen,
        images: pixels.len(),
        positions: fed.iter().map(Array2::nrows).sum(),
    })
}

/// Outputs of a session by name, seen.
type See<'a> = dyn FnMut(Vec<(String, Array)>) -> Result<(), CaseError> + 'a;

/// Runs a session over everything.
type Passes<'a> = dyn FnMut(&mut dyn Session, &mut See<'_>) -> Result<(), CaseError> + 'a;

struct Run<'a> {
    subject: &'a Subject,
    weights: &'a Canonical,
    known: &'a [(String, usize)],
    scratch: &'a Path,
}

impl Run<'_> {
    /// Runs a network as often as it takes to see the inputs of all its products; `rows` is the length of
    /// what is not fixed.
    fn network(
        &self,
        network: Network,
        rows: usize,
        seen: &mut BTreeMap<String, Seen>,
        passes: &mut Passes<'_>,
    ) -> Result<(), CaseError> {
        let building = || "building a network".to_owned();
        let graph = arch::build(network, self.weights.config()).during(building)?;
        let mut watched = self.watched(&graph, rows);
        while !watched.is_empty() {
            let mut bytes = 0;
            let count = watched.iter().take_while(|watched| {
                bytes += watched.bytes;
                bytes <= PASS
            });
            let rest = watched.split_off(count.count().max(1).min(watched.len()));
            let part = std::mem::replace(&mut watched, rest);
            let mut graph = graph.clone();
            let own = graph.outputs.clone();
            let further = part.iter().map(|watched| watched.value);
            graph.outputs.extend(further.filter(|value| !own.contains(value)));
            let mut session = self.subject.session(&graph, self.weights, self.scratch)?;
            passes(&mut *session, &mut |outputs| {
                for watched in &part {
                    let name = &graph.value(watched.value).name;
                    let output = outputs.iter().find(|(found, _)| found == name);
                    let output = output.ok_or_else(|| failed(format!("there is no output `{name}`")))?;
                    let seen = seen
                        .entry(watched.name.clone())
                        .or_insert_with(|| Seen::new(watched.inputs));
                    seen.add(vectors(&output.1, watched)?.view());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The inputs of a graph's products that are asked for, in order.
    fn watched(&self, graph: &Graph, rows: usize) -> Vec<Watched> {
        let mut found: Vec<Watched> = Vec::new();
        for node in &graph.nodes {
            let weight = node.inputs.iter().find_map(|id| match &graph.value(*id).source {
                Source::Weight(weight) => self.known.iter().find(|(name, _)| *name == weight.name),
                Source::Input | Source::Node | Source::Constant(_) => None,
            });
            if let (Some((name, inputs)), Some(&value)) = (weight, node.inputs.first()) {
                let lengths = graph.value(value).shape.iter().map(|dim| {
                    let fixed = dim.fixed().and_then(|length| usize::try_from(length).ok());
                    // One sequence at a time.
                    let batch = matches!(dim, Dim::Batch);
                    fixed.unwrap_or(if batch { 1 } else { rows })
                });
                found.push(Watched {
                    value,
                    name: name.clone(),
                    inputs: *inputs,
                    channels_first: matches!(node.op, Op::Conv { .. }),
                    bytes: 4 * lengths.product::<usize>(),
                });
            }
        }
        found
    }
}

/// The vectors of a product's input, `[n, inputs]`.
fn vectors(output: &Array, watched: &Watched) -> Result<Array2<f32>, CaseError> {
    let shape = output.shape().to_vec();
    let wrong = || {
        failed(format!(
            "the inputs of `{}` have shape {shape:?}, expected vectors of length {}",
            watched.name, watched.inputs
        ))
    };
    let values = output.as_float().ok_or_else(wrong)?.view();
    let values = if watched.channels_first && shape.len() == 4 {
        values.permuted_axes(ndarray::IxDyn(&[0, 2, 3, 1]))
    } else {
        values
    };
    if values.shape().last() != Some(&watched.inputs) {
        return Err(wrong());
    }
    let count = values.len() / watched.inputs.max(1);
    let rows = values
        .as_standard_layout()
        .into_owned()
        .into_shape_with_order((count, watched.inputs));
    rows.map_err(|_| wrong())
}

/// Feeds `embeds [positions, hidden]` to a decoder that holds nothing.
fn decode(
    session: &mut dyn Session,
    bundle: &Bundle,
    embeds: &Array2<f32>,
) -> Result<Vec<(String, Array)>, CaseError> {
    let count = embeds.nrows();
    let embeds = embeds.clone().insert_axis(Axis(0));
    let positions = (0..count)
        .filter_map(|position| i64::try_from(position).ok())
        .collect();
    let mut inputs = vec![
        ("inputs_embeds".to_owned(), Array::from(embeds)),
        (
            "attention_mask".to_owned(),
            Array::int(&[1, count], vec![1; count]),
        ),
        ("position_ids".to_owned(), Array::int(&[1, count], positions)),
    ];
    for (layer, [key, value]) in Cache::empty(&bundle.kv, 1).layers.into_iter().enumerate() {
        inputs.push((format!("past_key_values.{layer}.key"), key));
        inputs.push((format!("past_key_values.{layer}.value"), value));
    }
    let inputs: Vec<(&str, Array)> = inputs
        .iter()
        .map(|(name, array)| (name.as_str(), array.clone()))
        .collect();
    session.run(&inputs)
}

fn failed(message: String) -> CaseError {
    CaseError::Failed {
        context: "looking at activations".to_owned(),
        message,
    }
}

impl Calibrated {
    /// Writes them.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CaseError> {
        let mut tensors: Vec<(String, ndarray::ArrayD<f32>)> = Vec::new();
        for (name, seen) in &self.seen {
            let count = seen.vectors.max(1) as f32;
            for (run, moments) in seen.moments.iter().enumerate() {
                tensors.push((moments_name(name, run), (moments / count).into_dyn()));
            }
            let peaks = seen.peaks.mapv(|sum| (sum / f64::from(count)) as f32);
            tensors.push((peaks_name(name), peaks.into_dyn()));
        }
        let fingerprint = ArrayView1::from(&self.fingerprint).into_dyn();
        let mut views = vec![(FINGERPRINT, View::Bytes(fingerprint))];
        views.extend(
            tensors
                .iter()
                .map(|(name, data)| (name.as_str(), View::Float(data.view()))),
        );
        let images = self.images.to_string();
        let positions = self.positions.to_string();
        let metadata = [("images", images.as_str()), ("positions", positions.as_str())];
        safetensors::write(path, &metadata, &views)
            .map_err(|error| CaseError::failed("writing the statistics", &error))
    }
}
