//! Is a model the same model whatever its checkpoint looks like? One set of weights in several layouts, types and
//! files, exported and compared byte for byte; and train-time branches computed one by one against what folding made
//! of them.

use crate::array::{Array, round_to_half};
use crate::compare::{Tolerance, compare};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::subject::Precision;
use crate::setup::workspace::{Workspace, export, synth_options};
use crate::synth::{self, Size, Stored};
use crate::tiny::numbers;
use half::bf16;
use models::bundle::{Alpha, Aspect, Bundle, Content};
use models::checkpoint::{Canonical, Checkpoint, Layout, canonical};
use models::config::{TokenMixer, VisionConfig};
use models::dtype::DType;
use models::weights::Weights;
use ndarray::Array3;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The seed of every checkpoint here.
const SEED: u64 = 3;

const BOTH: [Precision; 2] = [Precision::Fp32, Precision::Fp16];

/// Every claim.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::once(
            "layouts/llava_equals_transformers",
            "the same weights in both layouts give the same graphs and data, byte for byte",
            llava_equals_transformers,
        ),
        Case::once(
            "layouts/branches_leave_no_trace",
            "a checkpoint with train-time branches gives graphs of the same form as a fused one",
            branches_leave_no_trace,
        ),
        Case::once(
            "layouts/folded_equals_unfolded",
            "every folded convolution computes what its branches compute one by one in float64",
            folded_equals_unfolded,
        ),
        Case::once(
            "layouts/twice",
            "the same checkpoint gives the same bundle, byte for byte, wherever it lies",
            twice,
        ),
        Case::once(
            "layouts/sharded",
            "shards give the same graphs and data as one file",
            sharded,
        ),
        Case::once(
            "layouts/forced",
            "a layout that is forced is the one detected, or an error",
            forced,
        ),
    ];
    for layout in ["llava", "transformers", "transformers-train"] {
        for dtype in ["fp16", "bf16"] {
            cases.push(Case::once(
                format!("layouts/storage/{layout}-{dtype}"),
                format!("{dtype} tensors are read as the numbers that they are, and exported"),
                move |workspace| storage(layout, dtype, workspace),
            ));
        }
    }
    cases
}

/// A checkpoint in a new directory `model` below `directory`.
fn checkpoint(
    directory: &Path,
    layout: &str,
    dtype: &str,
    shard_bytes: u64,
) -> Result<(PathBuf, usize), CaseError> {
    let output = directory.join("model");
    let mut options = synth_options(Size::Demo.name(), layout, dtype, SEED, false, &output)?;
    options.shard_bytes = shard_bytes;
    let summary = synth::write(&options, &mut |_, _| ControlFlow::Continue(()))
        .during(|| "writing a synthetic checkpoint".to_owned())?;
    Ok((output, summary.files))
}

/// The directory of a checkpoint in one file of float32.
fn plain(directory: &Path, layout: &str) -> Result<PathBuf, CaseError> {
    Ok(checkpoint(directory, layout, "fp32", synth::DEFAULT_SHARD_BYTES)?.0)
}

/// Path and contents of every file below a directory.
fn files(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, CaseError> {
    let reading = || format!("reading `{}`", directory.display());
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(directory.join(&folder)).during(reading)? {
            let entry = entry.during(reading)?;
            let path = folder.join(entry.file_name());
            if entry.file_type().during(reading)?.is_dir() {
                folders.push(path);
            } else {
                let contents = std::fs::read(entry.path()).during(reading)?;
                files.insert(path.to_string_lossy().replace('\\', "/"), contents);
            }
        }
    }
    Ok(files)
}

/// Requires that the files that `wanted` names are the same in both; returns how many there are.
fn same_files(
    findings: &mut Findings,
    found: &BTreeMap<String, Vec<u8>>,
    expected: &BTreeMap<String, Vec<u8>>,
    wanted: impl Fn(&str) -> bool,
) -> usize {
    let names: std::collections::BTreeSet<&String> = found
        .keys()
        .chain(expected.keys())
        .filter(|name| wanted(name))
        .collect();
    for &name in &names {
        let problem = match (found.get(name), expected.get(name)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => {
                let first = a
                    .iter()
                    .zip(b)
                    .position(|(a, b)| a != b)
                    .unwrap_or(a.len().min(b.len()));
                format!(
                    "`{name}`: {} and {} bytes, which differ from byte {first} on",
                    a.len(),
                    b.len()
                )
            }
            (Some(_), None) => format!("`{name}` is only in the first"),
            (None, _) => format!("`{name}` is only in the second"),
        };
        findings.problems.push(problem);
    }
    names.len()
}

/// Graphs and their data.
fn in_onnx(name: &str) -> bool {
    name.starts_with("onnx/")
}

/// Graphs, their data, and whatever an export of both precisions must have.
fn require_graphs(findings: &mut Findings, files: &BTreeMap<String, Vec<u8>>) {
    for (kind, least) in [(".onnx", 6), (".onnx_data", 6)] {
        let count = files
            .keys()
            .filter(|name| in_onnx(name) && name.ends_with(kind))
            .count();
        findings.require(count >= least, || {
            format!("{count} files `onnx/*{kind}`, expected at least {least}")
        });
    }
}

fn bundle(directory: &Path) -> Result<Bundle, CaseError> {
    Bundle::open(directory).during(|| "opening a bundle".to_owned())
}

fn llava_equals_transformers(workspace: &Workspace) -> Result<Findings, CaseError> {
    let (llava, transformers) = (workspace.scratch()?, workspace.scratch()?);
    let mut findings = Findings::default();
    let mut bundles = Vec::new();
    let mut contents = Vec::new();
    for (directory, layout) in [(&llava, "llava"), (&transformers, "transformers")] {
        let output = directory.path().join("bundle");
        export(&plain(directory.path(), layout)?, &output, &BOTH)?;
        let bundle = bundle(&output)?;
        let found = &bundle.model.layout;
        findings.require(found == layout, || {
            format!("the bundle says layout `{found}`, expected `{layout}`")
        });
        bundles.push(bundle);
        contents.push(files(&output)?);
    }
    let [llava, transformers] = &bundles[..] else {
        return Ok(findings);
    };
    same_files(&mut findings, &contents[0], &contents[1], in_onnx);
    require_graphs(&mut findings, &contents[0]);

    // The contracts agree but for what names the layout: recipe, prompt, small files.
    findings.require(llava.image.aspect == Aspect::Pad { color: [0; 3] }, || {
        format!("llava: {:?}", llava.image.aspect)
    });
    findings.require(transformers.image.aspect == Aspect::Crop, || {
        format!("transformers: {:?}", transformers.image.aspect)
    });
    let alphas = (llava.image.alpha, transformers.image.alpha);
    findings.require(alphas == (Alpha::Dropped, Alpha::White), || {
        format!("transparency is {alphas:?}")
    });
    let contents = (llava.prompt.content, transformers.prompt.content);
    findings.require(contents == (Content::Text, Content::Parts), || {
        format!("messages' contents are {contents:?}")
    });
    let mut alike = llava.clone();
    alike.model.layout.clone_from(&transformers.model.layout);
    alike.source.clone_from(&transformers.source);
    alike.image.aspect = transformers.image.aspect;
    alike.image.alpha = transformers.image.alpha;
    alike.prompt.content = transformers.prompt.content;
    alike.prompt.image_token_id = transformers.prompt.image_token_id;
    let small = |bundle: &Bundle| {
        bundle
            .files
            .iter()
            .filter(|file| !in_onnx(&file.path))
            .cloned()
            .collect::<Vec<_>>()
    };
    alike.files.retain(|file| in_onnx(&file.path));
    alike.files.extend(small(transformers));
    alike.files.sort();
    let (found, expected) = (alike.to_json(), transformers.to_json());
    for (found, expected) in found
        .lines()
        .zip(expected.lines())
        .filter(|(a, b)| a != b)
        .take(3)
    {
        findings.problems.push(format!(
            "bundle.json: `{}`, expected `{}`",
            found.trim(),
            expected.trim()
        ));
    }
    findings.require(found.len() == expected.len(), || {
        "bundle.json: the contracts have other lengths".to_owned()
    });
    Ok(findings)
}

fn branches_leave_no_trace(workspace: &Workspace) -> Result<Findings, CaseError> {
    let (fused, train) = (workspace.scratch()?, workspace.scratch()?);
    let mut findings = Findings::default();
    let mut bundles = Vec::new();
    for (directory, layout) in [(&fused, "transformers"), (&train, "transformers-train")] {
        let output = directory.path().join("bundle");
        export(&plain(directory.path(), layout)?, &output, &BOTH)?;
        bundles.push(bundle(&output)?);
    }
    let [fused, train] = &bundles[..] else {
        return Ok(findings);
    };
    findings.require(fused.variants == train.variants, || {
        "the graphs' contracts differ".to_owned()
    });
    findings.require(fused.model == train.model, || {
        format!("{:?}, expected {:?}", train.model, fused.model)
    });
    let lengths = |bundle: &Bundle| -> BTreeMap<String, u64> {
        let graphs = bundle.files.iter().filter(|file| in_onnx(&file.path));
        graphs.map(|file| (file.path.clone(), file.bytes)).collect()
    };
    let (found, expected) = (lengths(train), lengths(fused));
    findings.require(found == expected, || {
        format!("files have lengths {found:?}, expected {expected:?}")
    });
    // Other weights: were the contents the same, the branches would have been left out.
    let contents = |bundle: &Bundle| {
        bundle
            .files
            .iter()
            .filter(|file| in_onnx(&file.path))
            .cloned()
            .collect::<Vec<_>>()
    };
    findings.require(contents(fused) != contents(train), || {
        "other weights gave the same files".to_owned()
    });
    Ok(findings)
}

fn twice(workspace: &Workspace) -> Result<Findings, CaseError> {
    let (here, there) = (workspace.scratch()?, workspace.scratch()?);
    let mut findings = Findings::default();
    let model = plain(here.path(), "transformers-train")?;
    let (first, second) = (here.path().join("bundle"), here.path().join("another name"));
    export(&model, &first, &BOTH)?;
    export(&model, &second, &BOTH)?;
    let elsewhere = there.path().join("deep/er");
    std::fs::create_dir_all(&elsewhere).during(|| "making a directory".to_owned())?;
    let third = elsewhere.join("bundle");
    export(&plain(&elsewhere, "transformers-train")?, &third, &BOTH)?;
    let expected = files(&first)?;
    require_graphs(&mut findings, &expected);
    findings.require(expected.contains_key("bundle.json"), || {
        "there is no `bundle.json`".to_owned()
    });
    for found in [second, third] {
        same_files(&mut findings, &files(&found)?, &expected, |_| true);
    }
    Ok(findings)
}

fn sharded(workspace: &Workspace) -> Result<Findings, CaseError> {
    let (one, many) = (workspace.scratch()?, workspace.scratch()?);
    let mut findings = Findings::default();
    let (first, second) = (one.path().join("bundle"), many.path().join("bundle"));
    export(&plain(one.path(), "llava")?, &first, &BOTH)?;
    let (model, shards) = checkpoint(many.path(), "llava", "fp32", 2_000_000)?;
    findings.require(shards > 2, || {
        format!("the checkpoint has {shards} files, expected several")
    });
    export(&model, &second, &BOTH)?;
    let sources = bundle(&second)?.source.len();
    // And the index and the config.
    findings.require(sources == shards + 2, || {
        format!("the bundle names {sources} sources, expected {shards} + 2")
    });
    let (found, expected) = (files(&second)?, files(&first)?);
    same_files(&mut findings, &found, &expected, |name| name != "bundle.json");
    require_graphs(&mut findings, &expected);
    Ok(findings)
}

fn forced(workspace: &Workspace) -> Result<Findings, CaseError> {
    let mut findings = Findings::default();
    for (name, own, other) in [
        ("llava", Layout::Llava, Layout::Transformers),
        ("transformers", Layout::Transformers, Layout::Llava),
        ("transformers-train", Layout::Transformers, Layout::Llava),
    ] {
        let directory = workspace.scratch()?;
        let opening = || "opening the checkpoint".to_owned();
        let checkpoint = Checkpoint::open(&plain(directory.path(), name)?).during(opening)?;
        let (detected, accounting) = canonical(&checkpoint, None).during(opening)?;
        let (forced, same) = canonical(&checkpoint, Some(own)).during(opening)?;
        findings.require(detected.layout() == own, || {
            format!("{name}: detected {:?}", detected.layout())
        });
        findings.require(detected.specs() == forced.specs(), || {
            format!("{name}: forcing changes the weights")
        });
        findings.require(accounting == same, || {
            format!("{name}: forcing changes the accounting")
        });
        findings.require(canonical(&checkpoint, Some(other)).is_err(), || {
            format!("{name} was read as {other:?}")
        });
    }
    Ok(findings)
}

/// Whether batch normalisation is folded into a weight, which rounds more than its own tensor.
fn is_folded(name: &str, layout: &str) -> bool {
    let tower = name.starts_with("vision_tower.");
    let plain = [
        ".fc1.",
        ".fc2.",
        ".gamma",
        ".norm.",
        ".qkv.",
        ".proj.weight",
        ".proj.bias",
    ];
    match layout {
        "transformers-train" => tower && !plain.iter().any(|part| name.contains(part)),
        _ => name.contains(".mlp.conv."),
    }
}

fn storage(layout: &str, dtype: &str, workspace: &Workspace) -> Result<Findings, CaseError> {
    let (directory, reference) = (workspace.scratch()?, workspace.scratch()?);
    let opening = || "opening the checkpoint".to_owned();
    let open = |path: &Path| -> Result<Canonical, CaseError> {
        Ok(canonical(&Checkpoint::open(path).during(opening)?, None)
            .during(opening)?
            .0)
    };
    let (model, _) = checkpoint(directory.path(), layout, dtype, synth::DEFAULT_SHARD_BYTES)?;
    let found = open(&model)?;
    let expected = open(&plain(reference.path(), layout)?)?;
    let half = dtype == "fp16";
    let round = |value: f32| {
        if half {
            round_to_half(value)
        } else {
            bf16::from_f32(value).to_f32()
        }
    };
    // A folded value has several rounded factors.
    let folded = Tolerance::Custom(if half { 2e-3 } else { 1.6e-2 });
    let mut findings = Findings::default();
    let mut counts = [0, 0];
    findings.require(found.specs() == expected.specs(), || {
        "the canonical weights are others".to_owned()
    });
    for spec in expected.specs() {
        let reading = || format!("reading `{}`", spec.name);
        let shape: Vec<usize> = spec
            .shape
            .iter()
            .map(|&n| usize::try_from(n).unwrap_or(0))
            .collect();
        let found = Array::float(&shape, found.read(&spec.name).during(reading)?);
        let expected = expected.read(&spec.name).during(reading)?;
        let (expected, tolerance) = if is_folded(&spec.name, layout) {
            counts[1] += 1;
            (expected, folded)
        } else {
            counts[0] += 1;
            (expected.into_iter().map(round).collect(), Tolerance::Exact)
        };
        findings.push(compare(
            &spec.name,
            &found,
            &Array::float(&shape, expected),
            tolerance,
        ));
    }
    findings.require(counts[0] > 0 && counts[1] > 0, || {
        format!("{counts:?} weights as stored and folded")
    });
    findings
        .notes
        .push(format!("{} weights as stored, {} folded", counts[0], counts[1]));

    let output = directory.path().join("bundle");
    export(&model, &output, &BOTH)?;
    let stored = bundle(&output)?.model.stored;
    let expected = match synth_options(Size::Demo.name(), layout, dtype, SEED, false, &model)?.dtype {
        Stored::Fp32 => DType::Float32,
        Stored::Fp16 => DType::Float16,
        Stored::Bf16 => DType::BFloat16,
    };
    findings.require(stored == expected, || {
        format!("the bundle says {stored}, expected {expected}")
    });
    require_graphs(&mut findings, &files(&output)?);
    Ok(findings)
}

/// Side of the maps on which convolutions are tried: odd, and larger than most kernels.
const SIDE: usize = 9;

/// timm's `eps` of every `BatchNorm2d`.
const EPSILON: f64 = 1e-5;

/// A map `[channels, side, side]` in float64.
type Map = Array3<f64>;

fn random_map(seed: u64, channels: usize) -> Map {
    let mut numbers = numbers(seed, channels * SIDE * SIDE).into_iter();
    let next = || numbers.next().map_or(0.0, f64::from);
    Map::from_shape_simple_fn((channels, SIDE, SIDE), next)
}

/// Each channel `x -> change(c, x)`.
fn each_channel(mut map: Map, change: impl Fn(usize, f64) -> f64) -> Map {
    for (channel, mut plane) in map.outer_iter_mut().enumerate() {
        plane.mapv_inplace(|x| change(channel, x));
    }
    map
}

/// Rounded, for the comparison only.
fn rounded(map: &Map) -> Array {
    Array::from(map.mapv(|x| x as f32))
}

/// A convolution of `[output, input / groups, kernel, kernel]`, padded by half its kernel.
#[derive(Clone, Copy)]
struct Shape {
    input: usize,
    output: usize,
    groups: usize,
    kernel: usize,
    stride: usize,
}

impl Shape {
    fn with(self, kernel: usize) -> Shape {
        Shape { kernel, ..self }
    }

    fn dims(self) -> [u64; 4] {
        [self.output, self.input / self.groups, self.kernel, self.kernel].map(|n| n as u64)
    }

    fn run(self, x: &Map, weight: &[f32]) -> Map {
        let Shape {
            input,
            output,
            groups,
            kernel,
            stride,
        } = self;
        let (height, width) = (x.dim().1, x.dim().2);
        let (side, pad) = (height.div_ceil(stride), kernel / 2);
        let (inputs, outputs) = (input / groups, output / groups);
        Map::from_shape_fn((output, side, side), |(channel, row, column)| {
            let first = channel / outputs * inputs;
            let mut sum = 0.0;
            for (i, u, v) in ndarray::indices((inputs, kernel, kernel)) {
                let (Some(y), Some(z)) = (
                    (row * stride + u).checked_sub(pad),
                    (column * stride + v).checked_sub(pad),
                ) else {
                    continue;
                };
                if y < height && z < width {
                    let weight = weight[((channel * inputs + i) * kernel + u) * kernel + v];
                    sum += f64::from(weight) * x[[first + i, y, z]];
                }
            }
            sum
        })
    }
}

/// The tensors of a train-time checkpoint, from the generator: not through any reader.
fn stored(name: &str, shape: &[u64]) -> Result<Vec<f32>, CaseError> {
    synth::values(SEED, name, shape, Size::Demo, false).during(|| format!("making `{name}`"))
}

/// timm's `BatchNorm2d` in evaluation.
fn batch_norm(name: &str, x: Map) -> Result<Map, CaseError> {
    let channels = [x.dim().0 as u64];
    let part = |part: &str| stored(&format!("{name}.{part}"), &channels);
    let (gamma, beta) = (part("weight")?, part("bias")?);
    let (mean, variance) = (part("running_mean")?, part("running_var")?);
    Ok(each_channel(x, |channel, x| {
        let deviation = (f64::from(variance[channel]) + EPSILON).sqrt();
        (x - f64::from(mean[channel])) / deviation * f64::from(gamma[channel]) + f64::from(beta[channel])
    }))
}

/// timm's `ConvNormAct` without activation: `conv`, then `bn`.
fn conv_norm(name: &str, shape: Shape, x: &Map) -> Result<Map, CaseError> {
    let weight = stored(&format!("{name}.conv.weight"), &shape.dims())?;
    batch_norm(&format!("{name}.bn"), shape.run(x, &weight))
}

/// timm's `MobileOneBlock` up to its activation: one k x k branch, a 1x1 scale branch and an identity where it has them.
fn mobile_one(name: &str, shape: Shape, scale: bool, identity: bool, x: &Map) -> Result<Map, CaseError> {
    let mut y = conv_norm(&format!("{name}.conv_kxk.0"), shape, x)?;
    if scale {
        y += &conv_norm(&format!("{name}.conv_scale"), shape.with(1), x)?;
    }
    if identity {
        y += &batch_norm(&format!("{name}.identity"), x.clone())?;
    }
    Ok(y)
}

/// timm's `RepMixer`: `x + gamma * (mixer(x) - norm(x))`.
fn rep_mixer(name: &str, shape: Shape, x: &Map) -> Result<Map, CaseError> {
    let mixed = mobile_one(&format!("{name}.mixer"), shape, true, true, x)?;
    let normed = batch_norm(&format!("{name}.norm.identity"), x.clone())?;
    let gamma = stored(&format!("{name}.layer_scale.gamma"), &[x.dim().0 as u64, 1, 1])?;
    Ok(each_channel(mixed - normed, |channel, x| x * f64::from(gamma[channel])) + x)
}

/// What a train-time module computes.
type Unfolded = fn(&str, Shape, &Map) -> Result<Map, CaseError>;

/// Every convolution of the tower that has branches or a norm: its name, its shape and its module.
fn sites(tower: &VisionConfig) -> Vec<(String, Shape, Unfolded)> {
    let whole = |n: u64| usize::try_from(n).unwrap_or(0);
    let dense = |input, output, kernel, stride| Shape {
        input,
        output,
        groups: 1,
        kernel,
        stride,
    };
    let depthwise = |channels, kernel, stride| Shape {
        input: channels,
        output: channels,
        groups: channels,
        kernel,
        stride,
    };
    let plain: Unfolded = |name, shape, x| mobile_one(name, shape, false, false, x);
    let skip: Unfolded = |name, shape, x| mobile_one(name, shape, false, true, x);
    let scale: Unfolded = |name, shape, x| mobile_one(name, shape, true, false, x);
    let large: Unfolded = |name, shape, x| {
        let large = conv_norm(&format!("{name}.large_conv"), shape, x)?;
        Ok(large + conv_norm(&format!("{name}.small_conv"), shape.with(3), x)?)
    };
    let position: Unfolded = |name, shape, x| {
        let weight = stored(&format!("{name}.pos_enc.weight"), &shape.dims())?;
        let bias = stored(&format!("{name}.pos_enc.bias"), &[x.dim().0 as u64])?;
        Ok(each_channel(shape.run(x, &weight), |channel, y| y + f64::from(bias[channel])) + x)
    };

    let widths: Vec<usize> = tower.embed_dims.iter().map(|&n| whole(n)).collect();
    let first = widths[0];
    let mut sites: Vec<(String, Shape, Unfolded)> = vec![
        ("stem.0".to_owned(), dense(3, first, 3, 2), plain),
        ("stem.1".to_owned(), depthwise(first, 3, 2), plain),
        ("stem.2".to_owned(), dense(first, first, 1, 1), skip),
    ];
    for (s, &width) in widths.iter().enumerate() {
        let stage = format!("stages.{s}");
        if s > 0 {
            let shape = Shape {
                output: width,
                ..depthwise(widths[s - 1], 7, 2)
            };
            sites.push((format!("{stage}.downsample.proj.0"), shape, large));
            sites.push((
                format!("{stage}.downsample.proj.1"),
                dense(width, width, 1, 1),
                skip,
            ));
        }
        if tower.pos_embs[s].is_some() {
            sites.push((format!("{stage}.pos_emb"), depthwise(width, 7, 1), position));
        }
        for b in 0..tower.layers[s] {
            let block = format!("{stage}.blocks.{b}");
            if tower.token_mixers[s] == TokenMixer::RepMixer {
                sites.push((format!("{block}.token_mixer"), depthwise(width, 3, 1), rep_mixer));
            }
            sites.push((format!("{block}.mlp.conv"), depthwise(width, 7, 1), conv_norm));
        }
    }
    let last = widths[widths.len() - 1];
    let shape = Shape {
        output: whole(tower.final_channels),
        ..depthwise(last, 3, 1)
    };
    sites.push(("final_conv".to_owned(), shape, scale));
    sites
}

fn folded_equals_unfolded(workspace: &Workspace) -> Result<Findings, CaseError> {
    let directory = workspace.scratch()?;
    let opening = || "opening the checkpoint".to_owned();
    let checkpoint = Checkpoint::open(&plain(directory.path(), "transformers-train")?).during(opening)?;
    let (weights, _) = canonical(&checkpoint, None).during(opening)?;
    let sites = sites(&weights.config().vision);
    let mut findings = Findings::default();
    for (seed, (name, shape, unfolded)) in (100..).zip(&sites) {
        let name = format!("vision_tower.{name}");
        let reading = || format!("reading `{name}`");
        let weight = weights.read(&format!("{name}.weight")).during(reading)?;
        let bias = weights.read(&format!("{name}.bias")).during(reading)?;
        let x = random_map(seed, shape.input);
        let found = each_channel(shape.run(&x, &weight), |channel, y| y + f64::from(bias[channel]));
        let expected = unfolded(&name, *shape, &x)?;
        // The folded weights are rounded to float32 once.
        let once = Tolerance::Custom(3e-7);
        findings.push(compare(&name, &rounded(&found), &rounded(&expected), once));
    }
    let names = weights.specs().iter().map(|spec| spec.name.as_str());
    let folded = names
        .filter(|name| name.ends_with(".weight") && is_folded(name, "transformers-train"))
        .count();
    findings.require(folded == sites.len(), || {
        format!("{} of {folded} folded convolutions were tried", sites.len())
    });
    findings.notes.push(format!("{} convolutions", sites.len()));
    Ok(findings)
}
