//! What does a bundle say about itself to people? A model card, ready for a hub: the README.md of the bundle.
//!
//! Everything in it is in the contract; nothing is claimed that was not read or written by this export.

use super::transformers_js::dtype;
use super::{found_by_others, own_data};
use crate::summary::{FileOrigin, FileSummary};
use indicatif::HumanBytes;
use models::bundle::{Bundle, CoreMlPackages, FileEntry, GraphEntry, Precision, Target, Variant};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// File name of the card in a bundle.
pub(crate) const FILE_NAME: &str = "README.md";

/// Licenses that the hub knows by these names; any other is `other` there.
const KNOWN: [&str; 22] = [
    "agpl-3.0",
    "apache-2.0",
    "apple-amlr",
    "apple-ascl",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "gpl-2.0",
    "gpl-3.0",
    "isc",
    "lgpl-3.0",
    "mit",
    "mpl-2.0",
    "openrail",
    "unlicense",
    "zlib",
];

/// The card of a bundle whose other files are listed in it already. `base` is the model of the hub that it was made from.
pub(crate) fn render(bundle: &Bundle, base: Option<&str>, files: &[FileSummary]) -> String {
    let mut text = String::new();
    lines(&mut text, bundle, base, files).unwrap_or_default();
    text
}

fn lines(text: &mut String, bundle: &Bundle, base: Option<&str>, files: &[FileSummary]) -> std::fmt::Result {
    let name = plain(&bundle.model.name);
    front_matter(text, bundle, base)?;
    let forms: Vec<&str> = [
        (!bundle.variants.is_empty()).then_some("ONNX"),
        (!bundle.packages.is_empty()).then_some("Core ML"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let forms = forms.join(" and ");
    writeln!(text, "# {name}, {forms}\n")?;
    let count = &bundle.model.parameters;
    let total = count.vision + count.projector + count.embed + count.decoder;
    writeln!(
        text,
        "A derivative of {}: the same FastVLM (vision encoder FastViTHD, decoder Qwen2, {total} parameters) converted to {forms} by {}. \
         {}\n",
        base.map_or_else(
            || format!("`{name}`"),
            |base| format!("[{base}](https://huggingface.co/{base})")
        ),
        bundle.tool,
        if bundle.adapters.is_empty() {
            "Nothing was trained; what a precision below rounds is all that differs."
        } else {
            "The fine-tunes below were merged into its weights; else what a precision below rounds is all that differs."
        },
    )?;
    let image = &bundle.image;
    let further = bundle
        .variants
        .iter()
        .flat_map(|variant| &variant.further_encoders);
    let further: BTreeSet<_> = further.map(|one| (one.width, one.height, one.tokens)).collect();
    write!(
        text,
        "Images of {} x {} pixels become {} tokens",
        image.width, image.height, image.tokens
    )?;
    for (width, height, tokens) in further {
        write!(text, ", those of {width} x {height} {tokens}")?;
    }
    writeln!(text, "; the context has {} positions.\n", bundle.kv.max_context)?;
    precisions(text, bundle)?;
    clients(text, bundle)?;
    source(text, bundle, files)?;
    license(text, bundle)
}

fn front_matter(text: &mut String, bundle: &Bundle, base: Option<&str>) -> std::fmt::Result {
    writeln!(text, "---")?;
    let name = bundle.model.license.as_deref().unwrap_or_default();
    let file = terms(bundle).next();
    let known = name.to_ascii_lowercase();
    if KNOWN.contains(&known.as_str()) {
        writeln!(text, "license: {known}")?;
    } else if !name.is_empty() || file.is_some() {
        writeln!(text, "license: other")?;
        // Quoted: a name may be a number or a word that means something in YAML.
        let name = slug(name);
        if !name.is_empty() {
            writeln!(text, "license_name: \"{name}\"")?;
        }
        if let Some(file) = file {
            writeln!(text, "license_link: \"{}\"", file.path.replace('"', "%22"))?;
        }
    }
    if let Some(base) = base {
        writeln!(text, "base_model: {base}")?;
    }
    writeln!(text, "pipeline_tag: image-text-to-text")?;
    if shows_images(bundle) && bundle.variants.iter().any(|variant| dtype(variant).is_some()) {
        writeln!(text, "library_name: transformers.js")?;
    }
    writeln!(text, "tags:\n- fastvlm")?;
    for (there, tag) in [
        (!bundle.variants.is_empty(), "onnx"),
        (!bundle.packages.is_empty(), "coreml"),
    ] {
        if there {
            writeln!(text, "- {tag}")?;
        }
    }
    writeln!(text, "---\n")
}

fn precisions(text: &mut String, bundle: &Bundle) -> std::fmt::Result {
    writeln!(
        text,
        "## Precisions\n\n| for | precision | weights | KV cache | vision encoder | embedding | decoder |\n|---|---|---|---|---|---|---|"
    )?;
    for variant in &bundle.variants {
        let graphs = [&variant.vision_encoder, &variant.embed_tokens, &variant.decoder];
        let [encoder, embedding, decoder] = graphs.map(|graph| HumanBytes(own_bytes(bundle, graph)));
        writeln!(
            text,
            "| ONNX, target `{}` | {} | {} | {} | {encoder} | {embedding} | {decoder} |",
            variant.target,
            variant.precision,
            stored(variant.precision),
            variant.kv_dtype.name(),
        )?;
    }
    for packages in &bundle.packages {
        let [encoder, decoder] =
            [&packages.vision_encoder, &packages.decoder].map(|path| HumanBytes(bytes_below(bundle, path)));
        writeln!(
            text,
            "| Core ML | {} | {} | float16 | {encoder} | in the decoder | {decoder} |",
            packages.precision,
            stored(packages.precision),
        )?;
    }
    writeln!(
        text,
        "\n{}What a precision loses on this model was not measured by the export: \
         `fvlm-conform quality` does.\n",
        if bundle.variants.iter().all(self_contained) {
            ""
        } else {
            "A weight that two graphs read counts once, where it lies. "
        }
    )
}

/// Whether each graph reads its own data file and no other.
fn self_contained(variant: &Variant) -> bool {
    let graphs = [&variant.vision_encoder, &variant.embed_tokens, &variant.decoder];
    let alone = |graph: &GraphEntry| graph.data.iter().all(|file| *file == own_data(graph));
    graphs.into_iter().all(alone)
}

fn stored(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "float32",
        Precision::Fp16 => "float16",
        Precision::Int8 => "8 bits, a scale for each output",
        Precision::Q8 => "8 bits, a scale for each 128 or fewer, in the encoder for each output",
        Precision::Q4 => "decoder 4 bits, a scale for each 32; the rest 8 bits",
        Precision::Q4F16 => "decoder 4 bits, a scale for each 32; embedding 8 bits; encoder float16",
    }
}

/// Where a card says how to run the bundle: its own address, which only whoever uploads it knows.
const ID: &str = "ORG/NAME";

/// Whether others can put an image into a prompt: where the tokenizer has a token for it.
fn shows_images(bundle: &Bundle) -> bool {
    bundle.prompt.image_token_id.is_some()
}

fn clients(text: &mut String, bundle: &Bundle) -> std::fmt::Result {
    writeln!(text, "## How to run it\n\n`{ID}` is this repository.\n")?;
    let name = directory(&bundle.model.name);
    let (built, provider) = if bundle.variants.is_empty() {
        (
            " on macOS 15, built with `--features coreml-native`",
            " --provider coreml-native",
        )
    } else {
        ("", "")
    };
    writeln!(
        text,
        "With `fvlm-run`{built}, which needs no Python:\n\n```\nhf download {ID} --local-dir {name}\nfvlm-run --model {name}{provider} --prompt \"Describe the image.\" image.png\n```\n"
    )?;
    let mut variants = found_by_others(&bundle.variants);
    let opened = variants.find_map(|variant| Some((variant, dtype(variant)?)));
    if let Some((variant, dtype)) = opened.filter(|_| shows_images(bundle)) {
        let content = match bundle.prompt.content {
            models::bundle::Content::Parts => {
                "[{ type: 'image' }, { type: 'text', text: 'Describe the image.' }]"
            }
            models::bundle::Content::Text => "'<image>\\nDescribe the image.'",
        };
        // In a browser it gives each graph its own data file and no other.
        let place = if self_contained(variant) {
            "in Node.js or a browser"
        } else {
            "in Node.js (a browser needs graphs that were exported with `--self-contained`)"
        };
        writeln!(
            text,
            "With transformers.js, {place}:\n\n```js\n\
             import {{ AutoModelForImageTextToText, AutoProcessor, RawImage }} from '@huggingface/transformers';\n\n\
             const id = '{ID}';\n\
             const processor = await AutoProcessor.from_pretrained(id);\n\
             const model = await AutoModelForImageTextToText.from_pretrained(id, {{ dtype: '{dtype}' }});\n\
             const messages = [{{ role: 'user', content: {content} }}];\n\
             const prompt = processor.apply_chat_template(messages, {{ add_generation_prompt: true }});\n\
             const inputs = await processor(await RawImage.read('image.png'), prompt, {{ add_special_tokens: false }});\n\
             const output = await model.generate({{ ...inputs, max_new_tokens: 128, do_sample: false }});\n\
             const answer = output.slice(null, [inputs.input_ids.dims.at(-1), null]);\n\
             console.log(processor.batch_decode(answer, {{ skip_special_tokens: true }})[0]);\n```\n"
        )?;
    }
    if let Some((variant, _)) = opened {
        writeln!(
            text,
            "With ONNX Runtime in any language{}, three graphs: `{}` (`pixel_values` to `image_features`), `{}` (`input_ids` to \
             `inputs_embeds`, into which the features go at the places of `{}`), and `{}`, which takes `past_key_values.*` and \
             gives `logits` of the last position and `present.*`. `bundle.json` has every input and output.\n",
            if variant.target == Target::Portable {
                ", or OpenVINO"
            } else {
                ""
            },
            variant.vision_encoder.path,
            variant.embed_tokens.path,
            bundle.prompt.image_token,
            variant.decoder.path,
        )?;
    }
    if let Some(packages) = bundle.packages.first() {
        core_ml(text, packages)?;
    }
    Ok(())
}

fn core_ml(text: &mut String, packages: &CoreMlPackages) -> std::fmt::Result {
    let CoreMlPackages {
        vision_encoder,
        decoder,
        context,
        prefill,
        ..
    } = packages;
    let functions: Vec<String> = prefill.iter().map(|new| format!("`prefill_{new}`")).collect();
    writeln!(
        text,
        "With Core ML (iOS 18, macOS 15): `{vision_encoder}` and `{decoder}`, whose functions {} and `step` share the states `key_cache` and \
         `value_cache` of {context} positions. Rows of the token embedding are read from the decoder's weight file, where `bundle.json` \
         says.\n",
        functions.join(", "),
    )
}

fn source(text: &mut String, bundle: &Bundle, files: &[FileSummary]) -> std::fmt::Result {
    writeln!(
        text,
        "## Where it comes from\n\nThe {} layout, weights stored as {}:\n\n| file | bytes | SHA-256 |\n|---|---|---|",
        bundle.model.layout,
        bundle.model.stored.name()
    )?;
    for file in &bundle.source {
        writeln!(
            text,
            "| `{}` | {} | `{}` |",
            plain(&file.path),
            file.bytes,
            file.sha256
        )?;
    }
    for adapter in &bundle.adapters {
        writeln!(
            text,
            "\nMerged into its weights, times {}: `{}`\n\n| file | bytes | SHA-256 |\n|---|---|---|",
            adapter.weight,
            plain(&adapter.name)
        )?;
        for file in &adapter.files {
            let (path, hash) = (plain(&file.path), &file.sha256);
            writeln!(text, "| `{path}` | {} | `{hash}` |", file.bytes)?;
        }
    }
    let derived = files.iter().filter(|file| file.origin == FileOrigin::Derived);
    let derived: Vec<String> = derived
        .map(|file| format!("`{}` ({})", file.path, file.how))
        .collect();
    if !derived.is_empty() {
        writeln!(
            text,
            "\nThe checkpoint has none of these, which were derived: {}.",
            derived.join(", ")
        )?;
    }
    writeln!(text)
}

fn license(text: &mut String, bundle: &Bundle) -> std::fmt::Result {
    writeln!(text, "## License\n")?;
    let name = bundle.model.license.as_deref().map(plain);
    match &name {
        Some(name) => write!(
            text,
            "The weights come under their license, {name}, and so does this derivative"
        )?,
        None => write!(
            text,
            "The checkpoint declares no license; that of the model it was made from holds for this derivative too"
        )?,
    }
    let terms: Vec<String> = terms(bundle)
        .map(|file| format!("[`{0}`](<{0}>)", plain(&file.path)))
        .collect();
    if terms.is_empty() {
        writeln!(text, ".")
    } else {
        writeln!(text, ": {}.", terms.join(", "))
    }
}

/// The files with terms of use.
fn terms(bundle: &Bundle) -> impl Iterator<Item = &FileEntry> {
    let files = bundle.files.iter();
    files.filter(|file| models::checkpoint::is_license(&file.path))
}

/// Bytes of a graph and of the data file that is its own.
fn own_bytes(bundle: &Bundle, graph: &GraphEntry) -> u64 {
    let own: BTreeSet<String> = [graph.path.clone(), own_data(graph)].into();
    let files = bundle.files.iter().filter(|file| own.contains(&file.path));
    files.map(|file| file.bytes).sum()
}

fn bytes_below(bundle: &Bundle, directory: &str) -> u64 {
    let below = |file: &&FileEntry| {
        file.path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    bundle.files.iter().filter(below).map(|file| file.bytes).sum()
}

/// Names of others, without what would mean something in Markdown.
fn plain(name: &str) -> String {
    let quiet = |c: char| !c.is_control() && !matches!(c, '`' | '|' | '<' | '>' | '[' | ']' | '\\');
    name.chars().filter(|c| quiet(*c)).collect()
}

/// A name as the hub wants it: lower case, digits, dots and dashes.
fn slug(name: &str) -> String {
    let dashed: String = name
        .to_ascii_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let words: Vec<&str> = dashed.split('-').filter(|word| !word.is_empty()).collect();
    words.join("-")
}

/// The last part of a model's name, fit for a shell.
fn directory(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let fit: String = last
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .collect();
    if fit.is_empty() || fit.starts_with(['.', '-']) {
        "bundle".to_owned()
    } else {
        fit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_harmless() {
        assert_eq!(plain("a|b`[c](d)\n"), "abc(d)");
        assert_eq!(slug("MIT OR Apache-2.0"), "mit-or-apache-2.0");
        assert_eq!(slug("Apple: model \"x\"\n"), "apple-model-x");
        assert_eq!(directory("apple/FastVLM-0.5B"), "FastVLM-0.5B");
        assert_eq!(directory("a; rm -r ~"), "arm-r");
        assert_eq!(directory("-rf"), "bundle");
    }
}
