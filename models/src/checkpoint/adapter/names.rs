//! What do the tensors of an adapter belong to? PEFT's names (`base_model.model.M.lora_A.weight`) and those
//! of LLaVA's training script, taken apart: the tensor of the base that is meant, and what is done to it.

/// What a tensor is for the tensor of the base that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// `lora_A`: `[rank, inputs]`, of a convolution `[rank, inputs, height, width]`.
    A,
    /// `lora_B`: `[outputs, rank]`, of a convolution `[outputs, rank, 1, 1]`.
    B,
    /// `lora_embedding_A`: `[rank, rows]`.
    EmbeddingA,
    /// `lora_embedding_B`: `[columns, rank]`.
    EmbeddingB,
    /// DoRA's `lora_magnitude_vector`: a number for each output, of an embedding for each column.
    Magnitude,
    /// The bias of `lora_B`: added to the base's.
    BiasOfB,
    /// Takes the place of the base's tensor.
    Instead,
}

impl Role {
    /// How PEFT calls it, for messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Role::A => "lora_A",
            Role::B => "lora_B",
            Role::EmbeddingA => "lora_embedding_A",
            Role::EmbeddingB => "lora_embedding_B",
            Role::Magnitude => "lora_magnitude_vector",
            Role::BiasOfB => "the bias of lora_B",
            Role::Instead => "the whole tensor",
        }
    }
}

/// A tensor's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// The module, as the base model's code calls it: what patterns of `adapter_config.json` are matched
    /// with.
    pub(super) module: String,
    /// The base's tensor.
    pub(super) target: String,
    pub(super) role: Role,
}

/// What a model in a `PeftModel` is called there.
const WRAPPED: &str = "base_model.model.";
/// What PEFT puts around a module.
const BASE_LAYER: &str = "base_layer";
const TO_SAVE: &str = "modules_to_save";
/// The name that an adapter has in memory unless it is given another.
const DEFAULT: &str = "default";
/// Names that compiling, sharding and saving activations put around modules.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Takes a name apart.
///
/// # Errors
/// What is wrong with it: a `lora_` tensor that is none of those above.
pub(super) fn parse(name: &str) -> Result<Named, String> {
    let inner = name.strip_prefix(WRAPPED).unwrap_or(name);
    let around = |segment: &&str| *segment != BASE_LAYER && !WRAPPERS.contains(segment);
    let mut segments: Vec<&str> = inner.split('.').filter(around).collect();
    let Some(at) = segments.iter().position(|segment| segment.starts_with("lora_")) else {
        if let Some(at) = segments.iter().position(|segment| *segment == TO_SAVE) {
            segments.remove(at);
            if segments.get(at) == Some(&DEFAULT) {
                segments.remove(at);
            }
        }
        let target = segments.join(".");
        let module = target
            .rsplit_once('.')
            .map_or("", |(module, _)| module)
            .to_owned();
        return Ok(Named {
            module,
            target,
            role: Role::Instead,
        });
    };
    // In a state that was saved as it was in memory, the adapter's name follows.
    let role = match (segments[at], &segments[at + 1..]) {
        ("lora_A", ["weight"] | [_, "weight"]) => Role::A,
        ("lora_B", ["weight"] | [_, "weight"]) => Role::B,
        ("lora_B", ["bias"] | [_, "bias"]) => Role::BiasOfB,
        ("lora_embedding_A", [] | [_]) => Role::EmbeddingA,
        ("lora_embedding_B", [] | [_]) => Role::EmbeddingB,
        ("lora_magnitude_vector", [] | [_] | [_, "weight"]) => Role::Magnitude,
        _ => {
            return Err(format!(
                "`{name}` is not a part of LoRA or DoRA that is merged here"
            ));
        }
    };
    let module = segments[..at].join(".");
    let part = if role == Role::BiasOfB { "bias" } else { "weight" };
    Ok(Named {
        target: format!("{module}.{part}"),
        module,
        role,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_versions() {
        let q = "model.language_model.layers.0.self_attn.q_proj";
        let old = "language_model.model.layers.0.self_attn.q_proj";
        let llava = "model.layers.0.self_attn.q_proj";
        for module in [q, old, llava] {
            for (end, part, role) in [
                ("lora_A.weight", "weight", Role::A),
                ("lora_A.default.weight", "weight", Role::A),
                ("lora_B.weight", "weight", Role::B),
                ("lora_B.mine.weight", "weight", Role::B),
                ("lora_B.bias", "bias", Role::BiasOfB),
                ("lora_embedding_A", "weight", Role::EmbeddingA),
                ("lora_embedding_B.default", "weight", Role::EmbeddingB),
                ("lora_magnitude_vector", "weight", Role::Magnitude),
                ("lora_magnitude_vector.weight", "weight", Role::Magnitude),
                ("lora_magnitude_vector.default.weight", "weight", Role::Magnitude),
                ("base_layer.bias", "bias", Role::Instead),
                ("modules_to_save.weight", "weight", Role::Instead),
                ("modules_to_save.default.weight", "weight", Role::Instead),
                ("weight", "weight", Role::Instead),
            ] {
                for prefix in ["base_model.model.", ""] {
                    let expected = Named {
                        module: module.to_owned(),
                        target: format!("{module}.{part}"),
                        role,
                    };
                    assert_eq!(parse(&format!("{prefix}{module}.{end}")), Ok(expected), "{end}");
                }
            }
        }
        for name in [
            "base_model.model.x.lora_diag.weight",
            "base_model.model.x.lora_E",
            "base_model.model.x.lora_A",
            "base_model.model.x.lora_A.a.b.weight",
            "base_model.model.x.lora_A.bias",
        ] {
            assert!(parse(name).unwrap_err().contains(name));
        }
        // Nothing to take apart, nothing to fall over.
        for name in [
            "",
            ".",
            "lora_A.weight",
            "modules_to_save",
            "base_layer",
            "base_model.model.",
        ] {
            drop(parse(name));
        }
    }
}
