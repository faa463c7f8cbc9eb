//! Does every engine compute small networks of odd geometries as the interpreter does? What the published sizes have in
//! common (five stages, two attention stages, powers of two, a tied head) must not be what makes a graph right.

use crate::array::{Array, round_to_half};
use crate::compare::{Tolerance, compare};
use crate::setup::case::{Case, Findings};
use crate::setup::error::{CaseError, Context};
use crate::setup::model::{Cache, Decoder, left_pad, run_one};
use crate::setup::subject::{Provider, Subject};
use crate::setup::workspace::Workspace;
use crate::tiny::{Given, numbers, random};
use exporter::Precision;
use models::arch::fused::{self, Encodings};
use models::arch::{self, Network};
use models::bundle::KvSpec;
use models::config::{DecoderConfig, ModelConfig, ProjectorConfig, TokenMixer, VisionConfig};
use models::fused::{Encoding, TableEncoding};
use models::graph::Graph;
use models::weights::Weights;
use ndarray::Axis;
use std::sync::Arc;

/// Every geometry, on every engine, and in fused operators where their kernels are.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tower in towers() {
        let tower = Arc::new(tower);
        for (suffix, form) in forms() {
            let tower = Arc::clone(&tower);
            cases.push(Case::on_each(
                format!("networks/vision/{}{suffix}", tower.name),
                tower.about,
                subjects(form),
                move |subject, workspace| vision(&tower, form, subject, workspace),
            ));
        }
    }
    type Check = fn(&Language, Form, &Subject, &Workspace) -> Result<Findings, CaseError>;
    for language in languages() {
        let language = Arc::new(language);
        for (suffix, form) in forms() {
            let embed: Check = if form.is_none() {
                embed
            } else {
                embed_as_interpreted
            };
            let checks: [(&str, Check); 3] = [("embed", embed), ("decoder", alone), ("decoder_batch", batch)];
            for (part, check) in checks {
                let language = Arc::clone(&language);
                cases.push(Case::on_each(
                    format!("networks/{part}/{}{suffix}", language.name),
                    language.about,
                    subjects(form),
                    move |subject, workspace| check(&language, form, subject, workspace),
                ));
            }
        }
    }
    cases
}

/// A network in the form that a subject is given: `None` is the portable one.
type Form = Option<Encodings>;

/// The portable form, and the variants of target `cpu`, with what their cases' names end in.
fn forms() -> Vec<(String, Form)> {
    let fused = [Precision::Fp32, Precision::Int8, Precision::Q4]
        .into_iter()
        .filter_map(|precision| {
            let variant = exporter::Variant::new(exporter::Target::Cpu, precision)?;
            Some((format!("/cpu_{}", precision.name()), variant.encodings()))
        });
    std::iter::once((String::new(), None)).chain(fused).collect()
}

/// Which subjects are given a form.
fn subjects(form: Form) -> fn(&Subject) -> bool {
    match form {
        None => is_plain_engine,
        Some(_) => has_kernels,
    }
}

/// Rounded weights are compared with recordings, and operator by operator.
fn is_plain_engine(subject: &Subject) -> bool {
    subject.is_engine() && !subject.rounds()
}

/// Fused operators are for the engines that run our kernels, whatever precision they would be given.
fn has_kernels(subject: &Subject) -> bool {
    let engine = matches!(subject.provider, Provider::Cpu | Provider::Tract);
    engine && subject.precision() == Precision::Fp32
}

/// An image encoder with its projector.
struct Tower {
    name: &'static str,
    about: &'static str,
    config: VisionConfig,
    projector: ProjectorConfig,
}

/// A decoder with its embedding, and how many positions it is given.
struct Language {
    name: &'static str,
    about: &'static str,
    config: DecoderConfig,
    prompt: usize,
}

fn towers() -> Vec<Tower> {
    use TokenMixer::{Attention, RepMixer};
    let plain = |dims: &[u64], layers: &[u64], mixers: &[TokenMixer], image_size| VisionConfig {
        image_size,
        embed_dims: dims.to_vec(),
        layers: layers.to_vec(),
        mlp_ratios: vec![4.0; dims.len()],
        token_mixers: mixers.to_vec(),
        downsamples: (0..dims.len()).map(|stage| stage > 0).collect(),
        pos_embs: mixers
            .iter()
            .map(|mixer| (*mixer == Attention).then_some(7))
            .collect(),
        repmixer_kernel_size: 3,
        down_patch_size: 7,
        down_stride: 2,
        lkc_use_act: true,
        final_channels: 2 * dims.last().copied().unwrap_or(1),
        layer_scale: true,
        norm_epsilon: 1e-5,
        head_dim: 32,
    };
    let tower = |name, about, config: VisionConfig, hidden, bias| {
        let projector = ProjectorConfig {
            input: config.final_channels,
            hidden,
            bias,
        };
        Tower {
            name,
            about,
            config,
            projector,
        }
    };
    vec![
        tower(
            "published_form",
            "five stages, of which two attend, on an image of 3 x 3 tokens",
            plain(
                &[8, 16, 16, 32, 64],
                &[1, 1, 2, 1, 1],
                &[RepMixer, RepMixer, RepMixer, Attention, Attention],
                192,
            ),
            20,
            true,
        ),
        tower(
            "one_token",
            "the smallest image: every kernel is larger than the last maps",
            plain(
                &[8, 8, 16, 32, 32],
                &[1; 5],
                &[RepMixer, RepMixer, RepMixer, Attention, Attention],
                64,
            ),
            9,
            true,
        ),
        tower(
            "no_attention",
            "two stages of convolutions, without positional encoding",
            plain(&[12, 36], &[2, 3], &[RepMixer, RepMixer], 40),
            7,
            false,
        ),
        tower(
            "attention_first",
            "attention over 15 x 15 positions in the first stage and after a stage that does not downsample",
            VisionConfig {
                pos_embs: vec![Some(3), None, Some(5)],
                downsamples: vec![false, false, true],
                ..plain(&[32, 32, 96], &[1, 1, 2], &[Attention, RepMixer, Attention], 60)
            },
            13,
            true,
        ),
        tower(
            "stride_3",
            "downsampling by three, in the first stage too, to odd maps",
            VisionConfig {
                downsamples: vec![true, true, true],
                down_stride: 3,
                down_patch_size: 5,
                repmixer_kernel_size: 5,
                ..plain(&[8, 16, 32], &[1, 1, 1], &[RepMixer, RepMixer, Attention], 216)
            },
            16,
            true,
        ),
        tower(
            "no_layer_scale",
            "no layer scale, no activation after large kernels, uneven MLP ratios, three channels out for one in",
            VisionConfig {
                layer_scale: false,
                lkc_use_act: false,
                mlp_ratios: vec![1.0, 2.5, 3.0],
                final_channels: 96,
                norm_epsilon: 1e-3,
                ..plain(&[8, 8, 32], &[1, 2, 1], &[RepMixer, RepMixer, Attention], 48)
            },
            11,
            false,
        ),
        tower(
            "short_heads",
            "attention heads of 8, a positional encoding of one tap, as many channels out as in",
            VisionConfig {
                head_dim: 8,
                pos_embs: vec![None, Some(1)],
                final_channels: 24,
                ..plain(&[12, 24], &[1, 2], &[RepMixer, Attention], 56)
            },
            24,
            true,
        ),
    ]
}

fn languages() -> Vec<Language> {
    let plain = |hidden, [heads, kv_heads]: [u64; 2], head_dim, layers| DecoderConfig {
        hidden_size: hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: 3 * hidden,
        vocab_size: 50,
        rms_norm_epsilon: 1e-6,
        rope_theta: 1e6,
        max_position_embeddings: 128,
        tie_word_embeddings: true,
    };
    vec![
        Language {
            name: "ratio_1",
            about: "as many key as query heads, a tied head",
            config: plain(24, [3, 3], 8, 2),
            prompt: 5,
        },
        Language {
            name: "ratio_3",
            about: "three query heads a key head, an untied head, an MLP narrower than the model",
            config: DecoderConfig {
                tie_word_embeddings: false,
                intermediate_size: 37,
                vocab_size: 131,
                ..plain(60, [6, 2], 10, 3)
            },
            prompt: 7,
        },
        Language {
            name: "ratio_7",
            about: "one key head for seven query heads, another base of the rotary angles, 70 positions",
            config: DecoderConfig {
                rope_theta: 1e4,
                rms_norm_epsilon: 1e-5,
                ..plain(56, [7, 1], 8, 2)
            },
            prompt: 70,
        },
        Language {
            name: "wide_heads",
            about: "heads that together are wider than the model, an untied head",
            config: DecoderConfig {
                tie_word_embeddings: false,
                ..plain(20, [6, 3], 14, 2)
            },
            prompt: 6,
        },
        Language {
            name: "least",
            about: "one layer, one head of two, a vocabulary of five",
            config: DecoderConfig {
                vocab_size: 5,
                intermediate_size: 1,
                ..plain(6, [1, 1], 2, 1)
            },
            prompt: 3,
        },
    ]
}

/// The networks without noise of their own: what the other half of a config says plays no role.
fn graph(
    network: Network,
    tower: Option<&Tower>,
    language: Option<&Language>,
    form: Form,
) -> Result<Graph, CaseError> {
    let (towers, languages) = (towers(), languages());
    let (Some(tower), Some(language)) = (tower.or(towers.first()), language.or(languages.first())) else {
        return Err(CaseError::Skip("there is no geometry".to_owned()));
    };
    let config = ModelConfig {
        vision: tower.config.clone(),
        projector: tower.projector.clone(),
        decoder: language.config.clone(),
    };
    match form {
        None => arch::build(network, &config),
        Some(encodings) => fused::build(network, &config, encodings),
    }
    .during(|| format!("building `{}`", network.name()))
}

fn tolerance(subject: &Subject, form: Form, fp32: Tolerance) -> Tolerance {
    // The interpreter reads the same bytes; what is left is that kernels round activations to bytes.
    if form.is_some_and(|encodings| encodings.decoder != Encoding::Float32) {
        return Tolerance::Bytes;
    }
    match subject.precision() {
        Precision::Fp32 => fp32,
        Precision::Fp16 | Precision::Int8 | Precision::Q8 | Precision::Q4 | Precision::Q4F16 => {
            Tolerance::Half
        }
    }
}

/// Two images at once.
fn vision(
    tower: &Tower,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
) -> Result<Findings, CaseError> {
    let of = |form| graph(Network::VisionEncoder, Some(tower), None, form);
    let (weights, graph) = (Given::random(&of(None)?, 11), of(form)?);
    let side = usize::try_from(tower.config.image_size).unwrap_or(0);
    // Pixels lie between 0 and 1.
    let pixels = numbers(12, 2 * 3 * side * side)
        .into_iter()
        .map(|n| (n + 1.0) / 2.0)
        .collect();
    let pixels = Array::float(&[2, 3, side, side], pixels);
    let expected = run_one(
        &mut *subject.interpret(&graph, &weights),
        "pixel_values",
        pixels.clone(),
    )?;
    let found = run_one(
        &mut *subject.session(&graph, &weights, workspace.root())?,
        "pixel_values",
        pixels,
    )?;
    let mut findings = Findings::default();
    findings.push(compare(
        "image_features",
        &found,
        &expected,
        tolerance(subject, form, Tolerance::Close),
    ));
    Ok(findings)
}

/// A lookup computes nothing: it is exact, up to the type in which the table is stored.
fn embed(
    language: &Language,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
) -> Result<Findings, CaseError> {
    let graph = graph(Network::EmbedTokens, None, Some(language), form)?;
    let weights = Given::random(&graph, 21);
    let table = weights
        .specs()
        .first()
        .map(|spec| (spec.name.clone(), spec.shape.clone()));
    let Some((name, shape)) = table else {
        return Err(CaseError::Skip("the graph has no table".to_owned()));
    };
    let table = weights.read(&name).during(|| "reading the table".to_owned())?;
    let width = usize::try_from(shape[1]).unwrap_or(0);
    let last = i64::try_from(shape[0]).unwrap_or(1) - 1;
    let ids = vec![last, 0, 2, 1, last - 1, last];
    let rows = ids
        .iter()
        .map(|&id| usize::try_from(id).unwrap_or(0))
        .collect::<Vec<_>>();
    let shape = [table.len() / width.max(1), width];
    let mut expected = Array::float(&shape, table).select(0, &rows);
    if let (Array::Float(values), Precision::Fp16) = (&mut expected, subject.precision()) {
        values.mapv_inplace(round_to_half);
    }
    let expected = expected
        .reshaped(&[2, 3, width])
        .during(|| "looking up".to_owned())?;
    let mut session = subject.session(&graph, &weights, workspace.root())?;
    let found = run_one(&mut *session, "input_ids", Array::int(&[2, 3], ids))?;
    let mut findings = Findings::default();
    findings.push(compare("inputs_embeds", &found, &expected, Tolerance::Exact));
    Ok(findings)
}

/// A lookup in a table of any form.
fn embed_as_interpreted(
    language: &Language,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
) -> Result<Findings, CaseError> {
    let of = |form| graph(Network::EmbedTokens, None, Some(language), form);
    let (weights, graph) = (Given::random(&of(None)?, 21), of(form)?);
    let last = i64::try_from(language.config.vocab_size).unwrap_or(1) - 1;
    let ids = Array::int(&[2, 2], vec![last, 0, 1, last]);
    let expected = run_one(
        &mut *subject.interpret(&graph, &weights),
        "input_ids",
        ids.clone(),
    )?;
    let found = run_one(
        &mut *subject.session(&graph, &weights, workspace.root())?,
        "input_ids",
        ids,
    )?;
    let mut findings = Findings::default();
    findings.push(compare("inputs_embeds", &found, &expected, Tolerance::Close));
    Ok(findings)
}

/// A prompt into an empty cache, a step, and a chunk.
fn alone(
    language: &Language,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
) -> Result<Findings, CaseError> {
    let row = |seed, length| left_pad(&[random(seed, &[length, hidden(language)])]);
    let feeds = [
        ("prefill", row(31, language.prompt)),
        ("step", row(32, 1)),
        ("chunk", row(33, 4)),
    ];
    follow(language, form, subject, workspace, 1, &feeds)
}

/// Two prompts of different lengths, then two steps of both.
fn batch(
    language: &Language,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
) -> Result<Findings, CaseError> {
    let row = |seed, length| random(seed, &[length, hidden(language)]);
    let feeds = [
        (
            "prefill",
            left_pad(&[row(41, language.prompt), row(42, language.prompt.div_ceil(2))]),
        ),
        ("first step", left_pad(&[row(43, 1), row(44, 1)])),
        ("second step", left_pad(&[row(45, 1), row(46, 1)])),
    ];
    follow(language, form, subject, workspace, 2, &feeds)
}

fn hidden(language: &Language) -> usize {
    usize::try_from(language.config.hidden_size).unwrap_or(0)
}

type Feed = (&'static str, (Array, Vec<Vec<i64>>));

/// Feeds the engine and the interpreter alike. Before each feed the engine gets the interpreter's cache, so that each
/// is judged by itself.
fn follow(
    language: &Language,
    form: Form,
    subject: &Subject,
    workspace: &Workspace,
    batch: usize,
    feeds: &[Feed],
) -> Result<Findings, CaseError> {
    let of = |form| graph(Network::Decoder, None, Some(language), form);
    let (weights, graph) = (Given::random(&of(None)?, 51), of(form)?);
    let whole = |number| usize::try_from(number).unwrap_or(0);
    let config = &language.config;
    let kv = KvSpec {
        layers: whole(config.layers),
        kv_heads: whole(config.kv_heads),
        head_dim: whole(config.head_dim),
        max_context: whole(config.max_position_embeddings),
    };
    let mut referee = Decoder::over(subject.interpret(&graph, &weights), kv.clone());
    let mut engine = Decoder::over(subject.session(&graph, &weights, workspace.root())?, kv);
    let mut expected_cache = referee.empty(batch);
    let mut findings = Findings::default();
    for (name, (embeds, real)) in feeds {
        let mut found_cache = expected_cache.clone();
        let found = engine.feed(&mut found_cache, embeds, real)?;
        let expected = referee.feed(&mut expected_cache, embeds, real)?;
        for (layer, (found, expected)) in found_cache.layers.iter().zip(&expected_cache.layers).enumerate() {
            for (part, (found, expected)) in ["key", "value"].iter().zip(found.iter().zip(expected)) {
                findings.push(compare(
                    &format!("{name}: present.{layer}.{part}"),
                    &without_padding(found, &found_cache),
                    &without_padding(expected, &expected_cache),
                    tolerance(subject, form, Tolerance::Close),
                ));
            }
        }
        let planes = form.is_some_and(|encodings| encodings.table == TableEncoding::Planes);
        let tolerance = if planes {
            Tolerance::Planes
        } else {
            tolerance(subject, form, Tolerance::Logits)
        };
        findings.push(compare(&format!("{name}: logits"), &found, &expected, tolerance));
    }
    Ok(findings)
}

/// A cache tensor `[batch, kv_heads, slots, head_dim]` with zeros where the mask hides a slot: nobody reads what stands
/// there.
fn without_padding(tensor: &Array, cache: &Cache) -> Array {
    let mut tensor = tensor.clone();
    let (&[_, _, slots, _], Array::Float(values)) = (&*tensor.shape().to_vec(), &mut tensor) else {
        return tensor;
    };
    for (mut sequence, mask) in values.outer_iter_mut().zip(&cache.mask) {
        let hidden = mask
            .iter()
            .take(slots)
            .enumerate()
            .filter(|(_, real)| **real == 0);
        for (slot, _) in hidden {
            sequence.index_axis_mut(Axis(1), slot).fill(0.0);
        }
    }
    tensor
}
