//! The contract of a bundle: `bundle.json`, from the forms that are written.

use crate::forms::{Forms, Lowered, Opened};
use crate::mlpackage::{self, Packages};
use crate::onnx::{self, Prepared};
use crate::plan::Target;
use models::bundle::{
    AdapterEntry, Bundle, CoreMlPackages, EmbeddingRows, FileEntry, FixedDecoder, ImageSpec, KvSpec,
    ModelInfo, Prefill, SCHEMA, SizedEncoder, Variant,
};
use models::config::ModelConfig;

/// What a bundle is made from.
pub(crate) struct Sources {
    /// The checkpoint's files.
    pub(crate) source: Vec<FileEntry>,
    /// What was merged into its weights.
    pub(crate) adapters: Vec<AdapterEntry>,
}

/// The contract of a bundle: of `model` with these `forms`, made from those sources, with these `files`.
pub(crate) fn contract(
    opened: &Opened<'_>,
    model: ModelInfo,
    forms: &Forms,
    Sources { source, adapters }: Sources,
    files: Vec<FileEntry>,
) -> Bundle {
    let decoder = &opened.weights.config().decoder;
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Bundle {
        schema: SCHEMA,
        tool: concat!("fvlm-export ", env!("CARGO_PKG_VERSION")).to_owned(),
        model,
        source,
        adapters,
        kv: KvSpec {
            layers: whole(decoder.layers),
            kv_heads: whole(decoder.kv_heads),
            head_dim: whole(decoder.head_dim),
            max_context: whole(decoder.max_position_embeddings),
        },
        image: opened.assets.image.clone(),
        prompt: opened.assets.prompt.clone(),
        variants: variants(opened, forms),
        packages: forms
            .packages
            .iter()
            .map(|packages| packages_entry(opened, packages))
            .collect(),
        files,
        unknown: Vec::new(),
    }
}

/// The entries of all variants in the contract.
pub(crate) fn variants(opened: &Opened<'_>, forms: &Forms) -> Vec<Variant> {
    let lowered = forms.variants.iter();
    lowered.map(|lowered| variant_entry(opened, lowered)).collect()
}

fn variant_entry(opened: &Opened<'_>, lowered: &Lowered) -> Variant {
    let [vision_encoder, embed_tokens, decoder] = lowered.graphs.each_ref().map(onnx::entry);
    let image = &opened.assets.image;
    let sized = opened.further.iter().zip(&lowered.further);
    let further_encoders = sized.map(|(config, graph)| sized_encoder(image, config, graph));
    Variant {
        target: lowered.variant.target(),
        precision: lowered.variant.precision(),
        opset: models::graph::OPSET,
        kv_dtype: lowered.variant.kv_dtype(),
        vision_encoder,
        further_encoders: further_encoders.collect(),
        embed_tokens,
        decoder,
        fixed: (lowered.variant.target() == Target::OrtCoreMl).then(|| fixed_decoder(opened, lowered)),
    }
}

fn packages_entry(opened: &Opened<'_>, packages: &Packages) -> CoreMlPackages {
    let whole = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    let name = |package: &mlpackage::Package| mlpackage::in_bundle(&package.file_name);
    CoreMlPackages {
        precision: packages.precision,
        vision_encoder: name(&packages.vision_encoder),
        decoder: name(&packages.decoder),
        vision_encoder_ios16: packages.vision_encoder_ios16.as_ref().map(name),
        context: whole(opened.lengths.context),
        prefill: opened.lengths.prefill.iter().map(|new| whole(*new)).collect(),
        embedding: EmbeddingRows {
            path: mlpackage::in_bundle(&packages.embedding.path),
            ..packages.embedding.clone()
        },
    }
}

fn fixed_decoder(opened: &Opened<'_>, lowered: &Lowered) -> FixedDecoder {
    let whole = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    let graphs = opened.lengths.prefill.iter().zip(&lowered.prefill);
    FixedDecoder {
        context: whole(opened.lengths.context),
        prefill: graphs
            .map(|(new, graph)| Prefill {
                new: whole(*new),
                graph: onnx::entry(graph),
            })
            .collect(),
    }
}

/// The entry of an encoder for another image size.
fn sized_encoder(image: &ImageSpec, config: &ModelConfig, graph: &Prepared) -> SizedEncoder {
    let side = config.vision.image_size;
    let pixels = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
    SizedEncoder {
        height: pixels(side),
        width: pixels(side),
        shortest_edge: pixels(image.edge_at(side)),
        tokens: usize::try_from(config.image_tokens()).unwrap_or(usize::MAX),
        graph: onnx::entry(graph),
    }
}
