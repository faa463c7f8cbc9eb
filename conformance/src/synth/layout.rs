//! How does a layout spell a canonical name?

use super::Layout;

/// Index in Apple's `network` list of each stage's blocks, of the downsampling into it and of its positional encoding.
const BLOCKS: [&str; 5] = ["0", "2", "4", "7", "10"];
const DOWNSAMPLING: [&str; 5] = ["", "1", "3", "5", "8"];
const POSITION: [&str; 5] = ["", "", "", "6", "9"];

/// The name of a tensor in the file.
pub(super) fn file_name(name: &str, layout: Layout) -> String {
    match layout {
        Layout::Llava => llava(name),
        Layout::Transformers | Layout::TransformersTrain => match name.strip_prefix("vision_tower.") {
            Some(rest) => format!("model.vision_tower.timm_model.{rest}"),
            None if name.starts_with("lm_head.") => name.to_owned(),
            None => format!("model.{name}"),
        },
    }
}

fn llava(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("vision_tower.") {
        return format!("model.vision_tower.vision_tower.model.{}", llava_tower(rest));
    }
    if let Some(rest) = name.strip_prefix("multi_modal_projector.") {
        let rest = rest.replace("linear_1", "0").replace("linear_2", "2");
        return format!("model.mm_projector.{rest}");
    }
    match name.strip_prefix("language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => name.to_owned(),
    }
}

fn llava_tower(name: &str) -> String {
    let mut name = match name.split_once('.') {
        Some(("stem", rest)) => format!("patch_embed.{rest}"),
        Some(("final_conv", rest)) => format!("conv_exp.{rest}"),
        Some(("stages", rest)) => stage(rest),
        _ => name.to_owned(),
    };
    for (canonical, apple) in [
        (".se.fc1.", ".se.reduce."),
        (".se.fc2.", ".se.expand."),
        (".mlp.", ".convffn."),
    ] {
        name = name.replace(canonical, apple);
    }
    match name.strip_suffix(".gamma") {
        Some(stem) => stem.to_owned(),
        None => name,
    }
}

/// `3.blocks.0.norm.weight` and its like.
fn stage(rest: &str) -> String {
    let mut parts = rest.splitn(3, '.');
    let index: usize = parts.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let place = |list: &[&'static str; 5]| list.get(index).copied().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (Some("blocks"), Some(tail)) => format!("network.{}.{tail}", place(&BLOCKS)),
        (Some("downsample"), Some(tail)) => {
            format!(
                "network.{}.{}",
                place(&DOWNSAMPLING),
                tail.replace("proj.0.reparam_conv", "proj.0.lkb_reparam")
            )
        }
        (Some("pos_emb"), Some(tail)) => format!("network.{}.{tail}", place(&POSITION)),
        _ => format!("stages.{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_as_published() {
        struct Case {
            canonical: &'static str,
            llava: &'static str,
            transformers: &'static str,
        }
        let cases = [
            Case {
                canonical: "vision_tower.stem.0.reparam_conv.weight",
                llava: "model.vision_tower.vision_tower.model.patch_embed.0.reparam_conv.weight",
                transformers: "model.vision_tower.timm_model.stem.0.reparam_conv.weight",
            },
            Case {
                canonical: "vision_tower.stages.3.downsample.proj.0.reparam_conv.bias",
                llava: "model.vision_tower.vision_tower.model.network.5.proj.0.lkb_reparam.bias",
                transformers: "model.vision_tower.timm_model.stages.3.downsample.proj.0.reparam_conv.bias",
            },
            Case {
                canonical: "vision_tower.stages.4.pos_emb.reparam_conv.weight",
                llava: "model.vision_tower.vision_tower.model.network.9.reparam_conv.weight",
                transformers: "model.vision_tower.timm_model.stages.4.pos_emb.reparam_conv.weight",
            },
            Case {
                canonical: "vision_tower.stages.4.blocks.1.layer_scale_2.gamma",
                llava: "model.vision_tower.vision_tower.model.network.10.1.layer_scale_2",
                transformers: "model.vision_tower.timm_model.stages.4.blocks.1.layer_scale_2.gamma",
            },
            Case {
                canonical: "vision_tower.stages.1.blocks.11.mlp.conv.bn.running_var",
                llava: "model.vision_tower.vision_tower.model.network.2.11.convffn.conv.bn.running_var",
                transformers: "model.vision_tower.timm_model.stages.1.blocks.11.mlp.conv.bn.running_var",
            },
            Case {
                canonical: "vision_tower.final_conv.se.fc2.bias",
                llava: "model.vision_tower.vision_tower.model.conv_exp.se.expand.bias",
                transformers: "model.vision_tower.timm_model.final_conv.se.fc2.bias",
            },
            Case {
                canonical: "multi_modal_projector.linear_2.weight",
                llava: "model.mm_projector.2.weight",
                transformers: "model.multi_modal_projector.linear_2.weight",
            },
            Case {
                canonical: "language_model.layers.3.self_attn.q_proj.bias",
                llava: "model.layers.3.self_attn.q_proj.bias",
                transformers: "model.language_model.layers.3.self_attn.q_proj.bias",
            },
            Case {
                canonical: "lm_head.weight",
                llava: "lm_head.weight",
                transformers: "lm_head.weight",
            },
        ];
        let mut wrong = Vec::new();
        for case in cases {
            for (layout, expected) in [
                (Layout::Llava, case.llava),
                (Layout::Transformers, case.transformers),
            ] {
                let found = file_name(case.canonical, layout);
                if found != expected {
                    wrong.push((found, expected));
                }
            }
        }
        assert!(wrong.is_empty(), "(found, expected): {wrong:#?}");
    }
}
