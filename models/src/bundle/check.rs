//! Is a bundle what its contract says? Numbers, files, and the inputs and outputs of every graph.

#![deny(clippy::as_conversions)]

use super::{
    Bundle, CoreMlPackages, EmbeddingRows, FixedDecoder, GraphEntry, ImageSpec, Io, IoDim, KvSpec, MAX_FIXED,
    MAX_LAYERS, MAX_SIDE, MAX_SIZE, MAX_STOPS, MAX_VOCABULARY, SizedEncoder, Variant,
};
use crate::bundle::BundleError;
use crate::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

impl Bundle {
    /// Whether the contract is sound and the files in `directory` have the lengths that it states. Contents
    /// are not hashed: [`Bundle::open`] and [`Bundle::verify`] do that.
    ///
    /// # Errors
    /// Everything that is wrong, in one error.
    pub fn check(&self, directory: &Path) -> Result<(), BundleError> {
        let mut problems = Vec::new();
        self.check_kv(&mut problems);
        self.check_images(&mut problems);
        self.check_prompt(&mut problems);
        self.check_packages(&mut problems);
        self.check_variants(&mut problems);
        self.check_files(directory, &mut problems);
        if problems.is_empty() {
            for variant in &self.variants {
                if variant.is_adopted() {
                    self.check_adopted(variant, &mut problems);
                } else {
                    self.check_variant(variant, &mut problems);
                }
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(BundleError::Broken {
                path: directory.to_owned(),
                problems,
            })
        }
    }

    fn check_kv(&self, problems: &mut Vec<String>) {
        let KvSpec {
            layers,
            kv_heads,
            head_dim,
            max_context,
        } = self.kv;
        let size = |size: usize| (1..=MAX_SIZE).contains(&size);
        let sizes = [kv_heads, head_dim, max_context].into_iter().all(size);
        // As of a config, which has no more heads times their length either.
        let kv = (1..=MAX_LAYERS).contains(&layers) && sizes && size(kv_heads.saturating_mul(head_dim));
        expect(
            problems,
            kv,
            format!(
                "`kv` has {layers} layers, {kv_heads} heads of length {head_dim} and {max_context} positions, expected \
                 numbers above 0, at most {MAX_LAYERS} layers and {MAX_SIZE} of all else"
            ),
        );
    }

    fn check_images(&self, problems: &mut Vec<String>) {
        let image = &self.image;
        let mut sizes = BTreeMap::from([((image.height, image.width), image.clone())]);
        for encoder in self.variants.iter().flat_map(|variant| &variant.further_encoders) {
            let of_size = image.of(encoder);
            let known = sizes
                .entry((encoder.height, encoder.width))
                .or_insert_with(|| of_size.clone());
            expect(
                problems,
                *known == of_size,
                format!(
                    "images of {} x {} have shortest edge {} and {} tokens in one encoder, {} and {} in another",
                    encoder.width,
                    encoder.height,
                    known.shortest_edge,
                    known.tokens,
                    of_size.shortest_edge,
                    of_size.tokens
                ),
            );
        }
        let side = |length: u32| (1..=MAX_SIDE).contains(&length);
        for image in sizes.values() {
            expect(
                problems,
                side(image.height)
                    && side(image.width)
                    && side(image.shortest_edge)
                    && (1..=MAX_SIZE).contains(&image.tokens),
                format!(
                    "`image` is {} x {} with shortest edge {} and {} tokens, expected sides from 1 to {MAX_SIDE} and \
                     1 to {MAX_SIZE} tokens",
                    image.width, image.height, image.shortest_edge, image.tokens
                ),
            );
        }
        let normal = |number: &f64| number.is_finite();
        expect(
            problems,
            normal(&image.rescale)
                && image.mean.iter().all(normal)
                && image.std.iter().all(|std| std.is_finite() && *std != 0.0),
            "`image` has a scale, mean or deviation that cannot be divided by".to_owned(),
        );
    }

    fn check_prompt(&self, problems: &mut Vec<String>) {
        let prompt = &self.prompt;
        expect(
            problems,
            (1..=MAX_VOCABULARY).contains(&prompt.vocab_size) && (1..=MAX_SIZE).contains(&prompt.hidden_size),
            format!(
                "`prompt` has a vocabulary of {} tokens of length {}, expected 1 to {MAX_VOCABULARY} of 1 to {MAX_SIZE}",
                prompt.vocab_size, prompt.hidden_size
            ),
        );
        let known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < prompt.vocab_size);
        expect(
            problems,
            prompt.stop_ids.iter().all(known) && prompt.image_token_id.as_ref().is_none_or(known),
            format!(
                "`prompt` names ids beyond its vocabulary of {}",
                prompt.vocab_size
            ),
        );
        let stops = |id: &i64| prompt.stop_ids.contains(id);
        if let Some(id) = prompt.image_token_id.filter(stops) {
            problems.push(format!(
                "`image_token_id` is {id}, which is a stop id too: {:?}",
                prompt.stop_ids
            ));
        }
        expect(
            problems,
            !prompt.stop_ids.is_empty(),
            "`stop_ids` is empty: no answer would end".to_owned(),
        );
        expect(
            problems,
            prompt.stop_ids.len() <= MAX_STOPS,
            format!(
                "`stop_ids` has {} ids, expected at most {MAX_STOPS}",
                prompt.stop_ids.len()
            ),
        );
    }

    fn check_packages(&self, problems: &mut Vec<String>) {
        let unknown: Vec<String> = self.unknown.iter().map(ToString::to_string).collect();
        expect(
            problems,
            !(self.variants.is_empty() && self.packages.is_empty()),
            if unknown.is_empty() {
                "there is neither a variant nor a package".to_owned()
            } else {
                format!("there is no form that this build knows: {}", unknown.join("; "))
            },
        );
        let max_context = self.kv.max_context;
        let mut stored = BTreeSet::new();
        for packages in &self.packages {
            let CoreMlPackages {
                precision,
                context,
                prefill,
                ..
            } = packages;
            expect(
                problems,
                stored.insert(precision),
                format!("packages of precision {precision} stand there twice"),
            );
            expect(
                problems,
                lengths_fit(*context, prefill, max_context),
                format!(
                    "packages of precision {precision} have a cache of {context} slots and functions for {prefill:?} new \
                     ones, expected up to {max_context} slots and ascending lengths from 2 to those"
                ),
            );
            expect(
                problems,
                self.embedding_fits(&packages.embedding),
                format!("the embedding of precision {precision} lies beyond the end of its file"),
            );
        }
    }

    fn check_variants(&self, problems: &mut Vec<String>) {
        let KvSpec {
            kv_heads,
            head_dim,
            max_context,
            ..
        } = self.kv;
        let mut seen = BTreeSet::new();
        for Variant {
            target,
            precision,
            further_encoders,
            fixed,
            ..
        } in &self.variants
        {
            if let Some(FixedDecoder { context, prefill }) = fixed {
                let lengths: Vec<usize> = prefill.iter().map(|one| one.new).collect();
                expect(
                    problems,
                    lengths_fit(*context, &lengths, max_context),
                    format!(
                        "variant {target} {precision} has a cache of {context} slots and graphs for {lengths:?} new ones, \
                         expected up to {max_context} slots and ascending lengths from 2 to those"
                    ),
                );
                let most = lengths.iter().copied().fold(1, usize::max);
                let cache = [kv_heads, head_dim, *context]
                    .into_iter()
                    .fold(1, usize::saturating_mul);
                let bias = context.saturating_add(most).saturating_mul(most);
                expect(
                    problems,
                    cache.max(bias) <= MAX_FIXED,
                    format!(
                        "variant {target} {precision} has a cache of {context} slots and graphs for up to {most} new ones: \
                         {} numbers at once, expected at most {MAX_FIXED}",
                        cache.max(bias)
                    ),
                );
            }
            expect(
                problems,
                seen.insert((target, precision)),
                format!("variant {target} {precision} stands there twice"),
            );
            let mut sizes = BTreeSet::from([(self.image.height, self.image.width)]);
            for SizedEncoder { height, width, .. } in further_encoders {
                expect(
                    problems,
                    sizes.insert((*height, *width)),
                    format!("variant {target} {precision} has two encoders of images of {width} x {height}"),
                );
            }
        }
    }

    /// Whether the rows, and their scales, end inside their file.
    fn embedding_fits(&self, embedding: &EmbeddingRows) -> bool {
        let EmbeddingRows {
            path,
            dtype,
            offset,
            scales,
        } = embedding;
        let whole = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let (rows, width) = (whole(self.prompt.vocab_size), whole(self.prompt.hidden_size));
        let element = if scales.is_some() { 1 } else { whole(dtype.size()) };
        let end = |offset: u64, count: u64, size: u64| {
            count
                .checked_mul(size)
                .and_then(|bytes| bytes.checked_add(offset))
        };
        let file = self.files.iter().find(|file| file.path == *path);
        let inside = |end: Option<u64>| file.zip(end).is_some_and(|(file, end)| end <= file.bytes);
        dtype.is_float()
            && inside(
                rows.checked_mul(width)
                    .and_then(|count| end(*offset, count, element)),
            )
            && scales.is_none_or(|scales| inside(end(scales, rows, whole(dtype.size()))))
    }

    fn check_files(&self, directory: &Path, problems: &mut Vec<String>) {
        let mut listed = BTreeSet::new();
        for entry in &self.files {
            let Some(relative) = inside(&entry.path) else {
                problems.push(format!("`{}` is not a plain relative path", entry.path));
                continue;
            };
            if !listed.insert(entry.path.as_str()) {
                problems.push(format!("`{}` is listed twice", entry.path));
            }
            match std::fs::metadata(directory.join(relative)) {
                Ok(found) if !found.is_file() => problems.push(format!("`{}` is not a file", entry.path)),
                Ok(found) if found.len() != entry.bytes => {
                    let (found, expected) = (found.len(), entry.bytes);
                    problems.push(format!("`{}` has {found} bytes, expected {expected}", entry.path));
                }
                Ok(_) => {}
                Err(error) => problems.push(format!("`{}`: {error}", entry.path)),
            }
        }
        let graphs: Vec<&GraphEntry> = self.variants.iter().flat_map(Variant::graphs).collect();
        // Weights are hashed only when somebody asks.
        let read = |path: &String| {
            super::agree::FILES.contains(&path.as_str())
                || [&self.prompt.tokenizer, &self.prompt.chat_template].contains(&path)
                || graphs.iter().any(|graph| graph.path == *path)
        };
        for graph in &graphs {
            for path in graph.data.iter().filter(|path| read(path)) {
                let graph = &graph.path;
                problems.push(format!(
                    "`{path}` is named as weights of `{graph}`, expected a file that is nothing else"
                ));
            }
        }
        let graphs = graphs
            .iter()
            .flat_map(|graph| std::iter::once(&graph.path).chain(&graph.data));
        let used: BTreeSet<&str> = graphs
            .chain([&self.prompt.tokenizer, &self.prompt.chat_template])
            .map(String::as_str)
            .collect();
        for directory in self.packages.iter().flat_map(CoreMlPackages::directories) {
            for part in PACKAGE {
                let path = format!("{directory}/{part}");
                if !listed.contains(path.as_str()) {
                    problems.push(format!("`{path}` is used and not listed in `files`"));
                }
            }
        }
        for path in used.difference(&listed) {
            problems.push(format!("`{path}` is used and not listed in `files`"));
        }
    }

    fn check_variant(&self, variant: &Variant, problems: &mut Vec<String>) {
        use DType::{Float32, Int64};
        let (kv, prompt) = (&self.kv, &self.prompt);
        let name = format!("{} {}", variant.target, variant.precision);
        if !variant.kv_dtype.is_float() {
            problems.push(format!("variant {name} keeps its cache in {}", variant.kv_dtype));
        }
        let fixed = |length: usize| IoDim::Fixed(u64::try_from(length).unwrap_or(u64::MAX));
        let symbol = |name: &str| IoDim::Symbol(name.to_owned());
        let images = if variant.fixed.is_some() {
            fixed(1)
        } else {
            symbol("batch")
        };
        let io = |name: String, dtype, dims: Vec<IoDim>| Io { name, dtype, dims };
        let hidden = fixed(prompt.hidden_size);
        let sequence = || vec![symbol("batch"), symbol("new")];
        let embeds = || {
            io(
                "inputs_embeds".to_owned(),
                Float32,
                vec![symbol("batch"), symbol("new"), hidden.clone()],
            )
        };
        let cache = |prefix: &str, length: IoDim| -> Vec<Io> {
            (0..kv.layers)
                .flat_map(|layer| ["key", "value"].map(|part| format!("{prefix}.{layer}.{part}")))
                .map(|name| {
                    let dims = vec![
                        images.clone(),
                        fixed(kv.kv_heads),
                        length.clone(),
                        fixed(kv.head_dim),
                    ];
                    io(name, variant.kv_dtype, dims)
                })
                .collect()
        };
        let pixels = |image: &ImageSpec| {
            let sides = [3, image.height, image.width].map(|side| IoDim::Fixed(side.into()));
            vec![io(
                "pixel_values".to_owned(),
                Float32,
                std::iter::once(images.clone()).chain(sides).collect(),
            )]
        };
        let features = |image: &ImageSpec| {
            let dims = vec![images.clone(), fixed(image.tokens), hidden.clone()];
            vec![io("image_features".to_owned(), Float32, dims)]
        };
        let further = variant.further_encoders.iter().map(|encoder| {
            let image = self.image.of(encoder);
            (&encoder.graph, pixels(&image), features(&image))
        });
        let real = |name: &str, dims| io(name.to_owned(), Float32, dims);
        let decoder = |new: usize| -> (Vec<Io>, Vec<Io>) {
            let (mut inputs, past, present) = match &variant.fixed {
                None => {
                    let mask = vec![symbol("batch"), symbol("total")];
                    let inputs = vec![
                        embeds(),
                        io("attention_mask".to_owned(), Int64, mask),
                        io("position_ids".to_owned(), Int64, sequence()),
                    ];
                    (inputs, symbol("past"), symbol("total"))
                }
                Some(lengths) => {
                    let slots = fixed(lengths.context.saturating_add(new));
                    let inputs = vec![
                        real("inputs_embeds", vec![fixed(1), fixed(new), hidden.clone()]),
                        real("attention_bias", vec![fixed(1), fixed(1), fixed(new), slots]),
                        real("positions", vec![fixed(1), fixed(new)]),
                    ];
                    (inputs, fixed(lengths.context), fixed(new))
                }
            };
            inputs.extend(cache("past_key_values", past));
            let logits = vec![images.clone(), IoDim::Fixed(1), fixed(prompt.vocab_size)];
            let mut outputs = vec![real("logits", logits)];
            outputs.extend(cache("present", present));
            (inputs, outputs)
        };
        let (decoder_inputs, decoder_outputs) = decoder(1);
        let prefill = variant
            .fixed
            .iter()
            .flat_map(|fixed| &fixed.prefill)
            .map(|prefill| {
                let (inputs, outputs) = decoder(prefill.new);
                (&prefill.graph, inputs, outputs)
            });
        for (graph, inputs, outputs) in [
            (
                &variant.vision_encoder,
                pixels(&self.image),
                features(&self.image),
            ),
            (
                &variant.embed_tokens,
                vec![io("input_ids".to_owned(), Int64, sequence())],
                vec![embeds()],
            ),
            (&variant.decoder, decoder_inputs, decoder_outputs),
        ]
        .into_iter()
        .chain(further)
        .chain(prefill)
        {
            compare(&graph.path, "input", &graph.inputs, &inputs, problems);
            compare(&graph.path, "output", &graph.outputs, &outputs, problems);
        }
    }
}

/// Files without which a directory is no package.
const PACKAGE: [&str; 3] = [
    "Manifest.json",
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
];

/// Takes note of a problem where something does not hold.
fn expect(problems: &mut Vec<String>, holds: bool, problem: String) {
    if !holds {
        problems.push(problem);
    }
}

/// Whether a cache has a length that the model knows, and prefill lengths ascend inside it.
fn lengths_fit(context: usize, prefill: &[usize], max_context: usize) -> bool {
    let ascending = prefill.windows(2).all(|two| two.first() < two.last());
    let inside = prefill.iter().all(|new| (2..=context).contains(new));
    (1..=max_context).contains(&context) && ascending && inside
}

/// The path, if it stays inside the bundle on every system.
pub fn inside(path: &str) -> Option<PathBuf> {
    let plain = !path.is_empty() && !path.contains(['\\', ':', '\0']) && !path.split('/').any(str::is_empty);
    let relative = Path::new(path);
    let normal = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    // Components swallow a `.` in the middle; the text must not have it either.
    let dots = path.split('/').any(|part| part == "." || part == "..");
    (plain && normal && !dots).then(|| relative.to_owned())
}

/// Compares the inputs or outputs of a graph with what the rest of the contract implies; the first
/// difference.
fn compare(graph: &str, kind: &str, found: &[Io], expected: &[Io], problems: &mut Vec<String>) {
    if found.len() != expected.len() {
        problems.push(format!(
            "`{graph}` has {} {kind}s, expected {}",
            found.len(),
            expected.len()
        ));
    }
    if let Some((found, expected)) = found
        .iter()
        .zip(expected)
        .find(|(found, expected)| found != expected)
    {
        problems.push(format!("`{graph}` has the {kind} {found}, expected {expected}"));
    }
}
