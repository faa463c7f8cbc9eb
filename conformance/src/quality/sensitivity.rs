//! Which operators lose what a precision loses? Each in turn alone rounded, and alone not; once with its
//! weights and its activations rounded, as the kernels do it, and once with its weights alone, multiplied in
//! float32.
//!
//! Greedy answers of fp32 to descriptions of scenes are fed token by token; the logits of every position are
//! compared with those of fp32.

use super::agreement::{QUESTIONS, scenes};
use super::metrics::{LogitsError, Tally};
use crate::array::Array;
use crate::loaded::{self, Combination, Loaded};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::{Cache, Decoder, run_one};
use crate::setup::subject::{Precision, Provider, Session, Subject, Target, Variant};
use crate::setup::workspace;
use crate::table;
use exporter::calibration::Calibration;
use exporter::onnx::pack;
use half::f16;
use models::arch::Network;
use models::arch::fused::{Encodings, Exceptions, build_with, products};
use models::bundle::KvSpec;
use models::checkpoint::{Canonical, Checkpoint, CheckpointError, canonical};
use models::fused::{Encoding, TableEncoding};
use models::graph::{Rows, WeightForm, WeightRef};
use models::weights::{WeightSpec, Weights};
use ndarray::{Array2, ArrayView2, Axis};
use runtime::prompt::{Prompt, Span, token_ids};
use runtime::splice::splice;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most tokens of an answer.
const ANSWER: usize = 40;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Statistics by which weights are rounded.
    pub calibration: Option<PathBuf>,
    /// `int8` or `q4`.
    pub precision: Precision,
    /// Scenes that are described, at most all.
    pub scenes: usize,
    /// Who computes.
    pub provider: Provider,
    /// How engines are opened.
    pub options: runtime::Options,
    /// A directory for what is made meanwhile: graphs in fp32.
    pub scratch: PathBuf,
}

/// What an operator, or several, lose.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The first weight of the operator, or what several are.
    pub name: String,
    /// How its weights are stored.
    pub stored: String,
    /// It alone is rounded, its weights and its activations.
    pub alone: LogitsError,
    /// Its weights alone are.
    pub weights: Option<LogitsError>,
    /// All but it is rounded.
    pub others: Option<LogitsError>,
}

/// A question that fp32 has answered.
struct Asked {
    /// Number of the scene.
    scene: usize,
    prompt: Prompt,
    ids: Vec<i64>,
    /// After the prompt, and after each token but the last.
    logits: Vec<Vec<f32>>,
}

/// The networks in one form, but the encoder, of which there are features.
struct Rest<'a> {
    embed: Box<dyn Session + 'a>,
    decoder: Decoder<'a>,
}

/// Everything that is needed again and again.
struct Bench<'a> {
    settings: &'a Settings,
    weights: &'a dyn Weights,
    config: &'a models::config::ModelConfig,
    kv: KvSpec,
    hidden: usize,
    pixels: Vec<Array>,
    asked: Vec<Asked>,
    scratch: &'a Path,
}

/// All in float32.
const PLAIN: Encodings = Encodings {
    vision: Encoding::Float32,
    decoder: Encoding::Float32,
    table: TableEncoding::Float32,
};

/// Measures every operator; `tell` hears of each.
///
/// # Errors
/// A checkpoint that cannot be read, or an engine that gives up.
pub fn measure(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Result<Vec<Row>, CaseError> {
    let opening = || "opening the checkpoint".to_owned();
    let checkpoint = Checkpoint::open(&settings.checkpoint).during(opening)?;
    let (weights, _) = canonical(&checkpoint, None).during(opening)?;
    let calibration = settings.calibration.as_ref();
    let calibration = calibration.map(|path| Calibration::open(path, &checkpoint, &weights));
    let calibration = calibration
        .transpose()
        .during(|| "opening the statistics".to_owned())?;
    let scratch =
        tempfile::tempdir_in(&settings.scratch).during(|| "making a temporary directory".to_owned())?;
    let bundle = scratch.path().join("bundle");
    workspace::export(&settings.checkpoint, &bundle, &[Precision::Fp32])?;
    tell("answering in fp32");
    let (pixels, asked, kv, hidden) = answer(&bundle, settings)?;
    let form = Variant::new(Target::Cpu, settings.precision).and_then(Variant::encodings);
    let form = form.ok_or_else(|| failed(format!("{} rounds nothing", settings.precision)))?;
    let informed = calibration
        .as_ref()
        .map(|calibration| calibration.over(&weights, form));
    let informed = informed.transpose().during(opening)?;
    let bench = Bench {
        settings,
        weights: match &informed {
            Some(informed) => informed,
            None => &weights,
        },
        config: weights.config(),
        kv,
        hidden,
        pixels,
        asked,
        scratch: scratch.path(),
    };
    bench.rows(&weights, tell)
}

/// What fp32 answers.
fn answer(bundle: &Path, settings: &Settings) -> Result<(Vec<Array>, Vec<Asked>, KvSpec, usize), CaseError> {
    let combination = Combination {
        provider: settings.provider.engine().unwrap_or_default(),
        target: Target::Portable,
        precision: Precision::Fp32,
    };
    let mut loaded = Loaded::open(bundle, &combination, &settings.options)?;
    let (mut pixels, mut asked) = (Vec::new(), Vec::new());
    for (scene, shown) in scenes()?.into_iter().take(settings.scenes).enumerate() {
        let image = loaded.model.preprocess(&shown.picture);
        let image = image.during(|| format!("preparing `{}`", shown.name))?;
        let features = loaded.encode(&image)?;
        for question in QUESTIONS {
            let prompt = loaded::prompt(&loaded.model, Some(image.id), question, ANSWER)?;
            let ids = loaded.greedy(&prompt, features.view(), ANSWER)?;
            let mut logits = vec![loaded.prefill(&prompt, features.view())?.to_vec()];
            for id in &ids {
                logits.push(loaded.step(*id)?.to_vec());
            }
            asked.push(Asked {
                scene,
                prompt,
                ids,
                logits,
            });
        }
        pixels.push(Array::from(image.values));
    }
    let bundle = loaded.bundle();
    Ok((pixels, asked, bundle.kv.clone(), bundle.prompt.hidden_size))
}

impl Bench<'_> {
    fn session<'s>(
        &'s self,
        network: Network,
        encodings: Encodings,
        exceptions: &Exceptions,
        weights: &dyn Weights,
    ) -> Result<Box<dyn Session + 's>, CaseError> {
        let building = || "building a network".to_owned();
        let graph = build_with(network, self.config, encodings, exceptions).during(building)?;
        let form = Variant::new(Target::Cpu, self.settings.precision);
        let subject = Subject {
            provider: self.settings.provider,
            form: form.ok_or_else(|| failed("there is no such form".to_owned()))?,
            options: self.settings.options.clone(),
        };
        let directory = tempfile::TempDir::new_in(self.scratch).during(building)?;
        let path = exporter::onnx::write_graph(&graph, weights, subject.form, directory.path());
        let session: Box<dyn Session + 's> = subject.open(&path.during(building)?)?;
        Ok(session)
    }

    fn features(&self, session: &mut dyn Session) -> Result<Vec<Array2<f32>>, CaseError> {
        let mut all = Vec::new();
        for pixels in &self.pixels {
            let features = run_one(session, "pixel_values", pixels.clone())?;
            let features = features.to_float().into_owned();
            let rows = features.len() / self.hidden.max(1);
            let features = features.into_shape_with_order((rows, self.hidden));
            all.push(features.during(|| "reading image features".to_owned())?);
        }
        Ok(all)
    }

    fn rest<'s>(
        &'s self,
        embed: TableEncoding,
        decoder: Encodings,
        exceptions: &Exceptions,
        weights: &dyn Weights,
    ) -> Result<Rest<'s>, CaseError> {
        let table = Encodings {
            table: embed,
            ..PLAIN
        };
        let embed = self.session(Network::EmbedTokens, table, &Exceptions::new(), weights)?;
        let decoder = self.session(Network::Decoder, decoder, exceptions, weights)?;
        Ok(Rest {
            embed,
            decoder: Decoder::over(decoder, self.kv.clone()),
        })
    }

    /// Feeds all answers.
    fn compare(&self, features: &[Array2<f32>], rest: &mut Rest<'_>) -> Result<LogitsError, CaseError> {
        let mut tally = Tally::default();
        for asked in &self.asked {
            let features = features
                .get(asked.scene)
                .ok_or_else(|| failed("there is no such scene".to_owned()))?;
            let embeds = self.embeds(&mut *rest.embed, &asked.prompt, features.view())?;
            let mut cache = Cache::empty(&self.kv, 1);
            let mut feed = |embeds: Array2<f32>| {
                let real = vec![vec![1; embeds.nrows()]];
                rest.decoder
                    .feed(&mut cache, &Array::from(embeds.insert_axis(Axis(0))), &real)
            };
            let mut logits = vec![feed(embeds)?];
            for id in &asked.ids {
                logits.push(feed(embed(&mut *rest.embed, &[*id])?)?);
            }
            for (found, expected) in logits.iter().zip(&asked.logits) {
                tally.add(found.to_float().as_slice().unwrap_or_default(), expected);
            }
        }
        tally
            .error()
            .ok_or_else(|| failed("nothing was asked".to_owned()))
    }

    fn embeds(
        &self,
        session: &mut dyn Session,
        prompt: &Prompt,
        features: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, CaseError> {
        let spans = prompt.spans(0);
        let text = embed(session, &token_ids(&spans))?;
        let images = spans.iter().filter(|span| matches!(span, Span::Image { .. }));
        let images: Vec<ArrayView2<'_, f32>> = images.map(|_| features).collect();
        splice(&spans, text.view(), &images, self.hidden).during(|| "joining a prompt".to_owned())
    }

    fn rows(&self, canonical: &Canonical, tell: &mut dyn FnMut(&str)) -> Result<Vec<Row>, CaseError> {
        let form = Variant::new(Target::Cpu, self.settings.precision).and_then(Variant::encodings);
        let rounded = form.ok_or_else(|| failed(format!("{} rounds nothing", self.settings.precision)))?;
        let none = Exceptions::new();
        let names = |network| -> Result<Vec<String>, CaseError> {
            let graph = build_with(network, self.config, rounded, &none);
            let graph = graph.during(|| "building a network".to_owned())?;
            Ok(products(&graph).into_iter().map(str::to_owned).collect())
        };
        let (vision, decoder) = (names(Network::VisionEncoder)?, names(Network::Decoder)?);
        let (table, decoder_form) = (rounded.table, rounded.decoder);
        let mut exact = self.rest(TableEncoding::Float32, PLAIN, &none, self.weights)?;
        let mut all = self.rest(table, rounded, &none, self.weights)?;
        let plain =
            self.features(&mut *self.session(Network::VisionEncoder, PLAIN, &none, self.weights)?)?;
        let coarse =
            self.features(&mut *self.session(Network::VisionEncoder, rounded, &none, self.weights)?)?;

        let mut rows = Vec::new();
        let of = |names: &[String], encoding| Rounded::of(self.weights, canonical, names, encoding);
        tell("everything");
        let whole_vision = of(&vision, rounded.vision)?;
        let whole_decoder = of(&decoder, decoder_form)?;
        let smooth = self.session(Network::VisionEncoder, PLAIN, &none, &whole_vision)?;
        let smooth = {
            let mut smooth = smooth;
            self.features(&mut *smooth)?
        };
        let mut smooth_rest = self.rest(table, Encodings { table, ..PLAIN }, &none, &whole_decoder)?;
        rows.push(Row {
            name: "everything".to_owned(),
            stored: self.settings.precision.to_string(),
            alone: self.compare(&coarse, &mut all)?,
            weights: Some(self.compare(&smooth, &mut smooth_rest)?),
            others: None,
        });
        tell("encoder and projector");
        rows.push(Row {
            name: "encoder and projector".to_owned(),
            stored: said(rounded.vision),
            alone: self.compare(&coarse, &mut exact)?,
            weights: Some(self.compare(&smooth, &mut exact)?),
            others: Some(self.compare(&plain, &mut all)?),
        });
        tell("products of the decoder");
        let products_of_decoder = Encodings {
            table: TableEncoding::Float32,
            ..rounded
        };
        let mut only = self.rest(TableEncoding::Float32, products_of_decoder, &none, self.weights)?;
        let mut smooth_only = self.rest(TableEncoding::Float32, PLAIN, &none, &whole_decoder)?;
        let mut but = self.rest(table, Encodings { table, ..PLAIN }, &none, self.weights)?;
        rows.push(Row {
            name: "products of the decoder".to_owned(),
            stored: said(decoder_form),
            alone: self.compare(&plain, &mut only)?,
            weights: Some(self.compare(&plain, &mut smooth_only)?),
            others: Some(self.compare(&coarse, &mut but)?),
        });
        for (name, embedding, head) in [
            ("token embedding", table, TableEncoding::Float32),
            ("head", TableEncoding::Float32, table),
        ] {
            tell(name);
            let mut only = self.rest(embedding, Encodings { table: head, ..PLAIN }, &none, self.weights)?;
            let other = |rounded| match rounded {
                TableEncoding::Float32 => table,
                _ => TableEncoding::Float32,
            };
            let others = Encodings {
                table: other(head),
                ..rounded
            };
            let mut but = self.rest(other(embedding), others, &none, self.weights)?;
            rows.push(Row {
                name: name.to_owned(),
                stored: said(Encoding::Int8),
                alone: self.compare(&plain, &mut only)?,
                weights: None,
                others: Some(self.compare(&coarse, &mut but)?),
            });
        }
        for name in &vision {
            tell(name);
            let one = Exceptions::from([(name.clone(), rounded.vision)]);
            let but = Exceptions::from([(name.clone(), Encoding::Float32)]);
            let its = of(&together(canonical, name), rounded.vision)?;
            let session = |encodings, exceptions: &Exceptions, weights: &dyn Weights| {
                self.features(&mut *self.session(Network::VisionEncoder, encodings, exceptions, weights)?)
            };
            rows.push(Row {
                name: name.clone(),
                stored: said(rounded.vision),
                alone: self.compare(&session(PLAIN, &one, self.weights)?, &mut exact)?,
                weights: Some(self.compare(&session(PLAIN, &none, &its)?, &mut exact)?),
                others: Some(self.compare(&session(rounded, &but, self.weights)?, &mut all)?),
            });
        }
        for name in &decoder {
            tell(name);
            let one = Exceptions::from([(name.clone(), decoder_form)]);
            let but = Exceptions::from([(name.clone(), Encoding::Float32)]);
            let its = of(&together(canonical, name), decoder_form)?;
            let mut only = self.rest(TableEncoding::Float32, PLAIN, &one, self.weights)?;
            let mut smooth = self.rest(TableEncoding::Float32, PLAIN, &none, &its)?;
            let mut others = self.rest(table, rounded, &but, self.weights)?;
            rows.push(Row {
                name: name.clone(),
                stored: said(decoder_form),
                alone: self.compare(&plain, &mut only)?,
                weights: Some(self.compare(&plain, &mut smooth)?),
                others: Some(self.compare(&coarse, &mut others)?),
            });
        }
        Ok(rows)
    }
}

fn embed(session: &mut dyn Session, ids: &[i64]) -> Result<Array2<f32>, CaseError> {
    let embeds = run_one(session, "input_ids", Array::int(&[1, ids.len()], ids.to_vec()))?;
    let embeds = embeds.to_float().into_owned();
    let width = embeds.shape().last().copied().unwrap_or(0);
    let embeds = embeds.into_shape_with_order((ids.len(), width));
    embeds.during(|| "reading embeddings".to_owned())
}

fn said(encoding: Encoding) -> String {
    match encoding {
        Encoding::Float32 => "float32",
        Encoding::Int8 => "int8",
        Encoding::Int4 => "int4",
    }
    .to_owned()
}

fn failed(message: String) -> CaseError {
    CaseError::Failed {
        context: "measuring sensitivity".to_owned(),
        message,
    }
}

/// All matrices of the operator whose first weight is named.
fn together(canonical: &Canonical, first: &str) -> Vec<String> {
    let others: &[(&str, &[&str])] = &[
        ("q_proj", &["q_proj", "k_proj", "v_proj"]),
        ("gate_proj", &["gate_proj", "up_proj", "down_proj"]),
        ("mlp.fc1", &["mlp.fc1", "mlp.fc2"]),
        ("linear_1", &["linear_1", "linear_2"]),
    ];
    let parts = others
        .iter()
        .find(|(part, _)| first.contains(&format!("{part}.weight")));
    let Some((part, names)) = parts else {
        return vec![first.to_owned()];
    };
    let names = names.iter().map(|name| first.replace(part, name));
    names
        .filter(|name| canonical.specs().iter().any(|spec| spec.name == *name))
        .collect()
}

/// Weights of which some are rounded as an encoding rounds them, and are numbers again.
struct Rounded<'w> {
    weights: &'w dyn Weights,
    rounded: BTreeMap<String, Vec<f32>>,
}

impl<'w> Rounded<'w> {
    fn of(
        weights: &'w dyn Weights,
        canonical: &Canonical,
        names: &[String],
        encoding: Encoding,
    ) -> Result<Rounded<'w>, CaseError> {
        let all = names.iter().flat_map(|name| together(canonical, name));
        let mut rounded = BTreeMap::new();
        for name in all {
            let spec = canonical.specs().iter().find(|spec| spec.name == name);
            let spec = spec.ok_or_else(|| failed(format!("there is no weight `{name}`")))?;
            let (rows, columns) = spec.matrix();
            let bytes = |form| {
                let weight = WeightRef {
                    name: name.clone(),
                    form,
                };
                pack::bytes(&weight, weights).during(|| format!("rounding `{name}`"))
            };
            let elements = bytes(WeightForm::Panels(encoding, Rows::default()))?;
            let scales = bytes(WeightForm::PanelScales(encoding, Rows::default()))?;
            let values = (0..rows * columns).map(|place| {
                value(
                    &elements,
                    &scales,
                    encoding,
                    columns,
                    [place / columns, place % columns],
                )
            });
            rounded.insert(name, values.collect());
        }
        Ok(Rounded { weights, rounded })
    }
}

/// An element of a matrix in panels, by the layout of [`models::fused`].
fn value(
    elements: &[u8],
    scales: &[u8],
    encoding: Encoding,
    columns: usize,
    [row, column]: [usize; 2],
) -> f32 {
    let (panel, lane) = (row / 16, row % 16);
    let byte = |place: usize| elements.get(place).copied().unwrap_or(0);
    match encoding {
        Encoding::Float32 => f32::NAN,
        Encoding::Int8 => {
            let groups = columns.div_ceil(4);
            let byte = byte(((panel * groups + column / 4) * 16 + lane) * 4 + column % 4);
            let scale = scales.as_chunks::<4>().0.get(row).copied().unwrap_or_default();
            f32::from_le_bytes(scale) * (f32::from(byte) - 128.0)
        }
        Encoding::Int4 => {
            let block = panel * columns.div_ceil(32) + column / 32;
            let within = column % 32;
            let byte = byte(block * 256 + within / 8 * 64 + lane * 4 + within % 4);
            let nibble = if within % 8 < 4 { byte & 15 } else { byte >> 4 };
            let scale = scales
                .as_chunks::<2>()
                .0
                .get(block * 16 + lane)
                .copied()
                .unwrap_or_default();
            f16::from_le_bytes(scale).to_f32() * (f32::from(nibble) - 8.0)
        }
    }
}

impl Weights for Rounded<'_> {
    fn specs(&self) -> &[WeightSpec] {
        self.weights.specs()
    }

    fn read_block(
        &self,
        name: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let Some(values) = self.rounded.get(name) else {
            return self.weights.read_block(name, rows, columns, out);
        };
        let width = self
            .specs()
            .iter()
            .find(|spec| spec.name == name)
            .map_or(0, |spec| spec.matrix().1);
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len().max(1))) {
            let line = values.get(row * width..(row + 1) * width).unwrap_or(&[]);
            out.copy_from_slice(line.get(columns.clone()).unwrap_or_default());
        }
        Ok(())
    }
}

/// The table in Markdown, or aligned.
pub fn table(rows: &[Row], markdown: bool) -> String {
    let titles = [
        "operator",
        "stored",
        "alone: KL",
        "its weights: KL",
        "alone: top-1",
        "all others: KL",
        "all others: top-1",
    ];
    let number = |error: &LogitsError| format!("{:.1e}", error.kl_mean);
    let share = |error: &LogitsError| format!("{:.1} %", 100.0 * error.top1);
    let or = |error: &Option<LogitsError>, cell: &dyn Fn(&LogitsError) -> String| {
        error.as_ref().map_or_else(|| "–".to_owned(), cell)
    };
    let mut cells = vec![titles.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.stored.clone(),
            number(&row.alone),
            or(&row.weights, &number),
            share(&row.alone),
            or(&row.others, &number),
            or(&row.others, &share),
        ]
    }));
    if markdown {
        table::markdown(&cells)
    } else {
        table::plain(&cells)
    }
}
