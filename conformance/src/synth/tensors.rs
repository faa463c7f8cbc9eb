//! Which tensors does a checkpoint hold, under their canonical names and in the order of the file?
//!
//! Canonical here is the transformers layout without `model.` and `timm_model.`; train-time branches have the names
//! that timm gives them.

use super::Layout;
use super::table::Geometry;

/// A canonical name and a shape; no dimensions for a scalar.
pub(super) type Tensor = (String, Vec<u64>);

/// A depthwise or dense kernel and what stands around it in a MobileOne block.
struct Branches {
    identity: bool,
    kernels: usize,
    scale: bool,
}

/// Every tensor of the checkpoint.
pub(super) fn list(geometry: &Geometry, layout: Layout) -> Vec<Tensor> {
    let mut list = List {
        tensors: Vec::new(),
        train: layout == Layout::TransformersTrain,
    };
    list.vision_tower(geometry);
    let features = geometry.features();
    if layout == Layout::Llava {
        list.push("vision_tower.head.proj".to_owned(), &[features, 768]);
    }
    let hidden = geometry.hidden_size;
    for (part, columns) in [("linear_1", features), ("linear_2", hidden)] {
        list.push(format!("multi_modal_projector.{part}.weight"), &[hidden, columns]);
        list.push(format!("multi_modal_projector.{part}.bias"), &[hidden]);
    }
    list.decoder(geometry);
    list.tensors
}

struct List {
    tensors: Vec<Tensor>,
    train: bool,
}

impl List {
    fn push(&mut self, name: String, shape: &[u64]) {
        self.tensors.push((name, shape.to_vec()));
    }

    fn affine(&mut self, name: &str, shape: &[u64]) {
        self.push(format!("{name}.weight"), shape);
        self.push(format!("{name}.bias"), &shape[..1]);
    }

    fn batch_norm(&mut self, name: &str, channels: u64) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.push(format!("{name}.{part}"), &[channels]);
        }
        self.push(format!("{name}.num_batches_tracked"), &[]);
    }

    fn conv_bn(&mut self, name: &str, shape: [u64; 4]) {
        self.push(format!("{name}.conv.weight"), &shape);
        self.batch_norm(&format!("{name}.bn"), shape[0]);
    }

    fn mobile_one(&mut self, name: &str, shape: [u64; 4], branches: &Branches) {
        if !self.train {
            self.affine(&format!("{name}.reparam_conv"), &shape);
            return;
        }
        if branches.identity {
            self.batch_norm(&format!("{name}.identity"), shape[0]);
        }
        for i in 0..branches.kernels {
            self.conv_bn(&format!("{name}.conv_kxk.{i}"), shape);
        }
        if branches.scale {
            self.conv_bn(&format!("{name}.conv_scale"), [shape[0], shape[1], 1, 1]);
        }
    }

    fn feed_forward(&mut self, name: &str, channels: u64) {
        self.conv_bn(&format!("{name}.conv"), [channels, 1, 7, 7]);
        self.affine(&format!("{name}.fc1"), &[4 * channels, channels, 1, 1]);
        self.affine(&format!("{name}.fc2"), &[channels, 4 * channels, 1, 1]);
    }

    fn rep_mixer_block(&mut self, name: &str, channels: u64) {
        let mixer = format!("{name}.token_mixer");
        let kernel = [channels, 1, 3, 3];
        if self.train {
            let norm = Branches {
                identity: true,
                kernels: 0,
                scale: false,
            };
            let branches = Branches {
                identity: true,
                kernels: 1,
                scale: true,
            };
            self.mobile_one(&format!("{mixer}.norm"), kernel, &norm);
            self.mobile_one(&format!("{mixer}.mixer"), kernel, &branches);
            self.push(format!("{mixer}.layer_scale.gamma"), &[channels, 1, 1]);
        } else {
            self.affine(&format!("{mixer}.reparam_conv"), &kernel);
        }
        self.feed_forward(&format!("{name}.mlp"), channels);
        self.push(format!("{name}.layer_scale.gamma"), &[channels, 1, 1]);
    }

    fn attention_block(&mut self, name: &str, channels: u64) {
        self.affine(&format!("{name}.norm"), &[channels]);
        self.push(
            format!("{name}.token_mixer.qkv.weight"),
            &[3 * channels, channels],
        );
        self.affine(&format!("{name}.token_mixer.proj"), &[channels, channels]);
        self.push(format!("{name}.layer_scale_1.gamma"), &[channels, 1, 1]);
        self.feed_forward(&format!("{name}.mlp"), channels);
        self.push(format!("{name}.layer_scale_2.gamma"), &[channels, 1, 1]);
    }

    fn vision_tower(&mut self, geometry: &Geometry) {
        const PLAIN: Branches = Branches {
            identity: false,
            kernels: 1,
            scale: false,
        };
        const SKIP: Branches = Branches {
            identity: true,
            kernels: 1,
            scale: false,
        };
        const SCALE: Branches = Branches {
            identity: false,
            kernels: 1,
            scale: true,
        };
        let first = geometry.embed_dims.first().copied().unwrap_or(0);
        self.mobile_one("vision_tower.stem.0", [first, 3, 3, 3], &PLAIN);
        self.mobile_one("vision_tower.stem.1", [first, 1, 3, 3], &PLAIN);
        self.mobile_one("vision_tower.stem.2", [first, first, 1, 1], &SKIP);
        for (s, (&channels, &depth)) in geometry.embed_dims.iter().zip(&geometry.layers).enumerate() {
            let stage = format!("vision_tower.stages.{s}");
            if s > 0 {
                self.downsampling(&format!("{stage}.downsample.proj"), channels, &SKIP);
            }
            let attention = s >= 3;
            if attention {
                let kernel = if self.train { "pos_enc" } else { "reparam_conv" };
                self.affine(&format!("{stage}.pos_emb.{kernel}"), &[channels, 1, 7, 7]);
            }
            for b in 0..depth {
                let block = format!("{stage}.blocks.{b}");
                if attention {
                    self.attention_block(&block, channels);
                } else {
                    self.rep_mixer_block(&block, channels);
                }
            }
        }
        let last = geometry.features();
        self.mobile_one("vision_tower.final_conv", [last, 1, 3, 3], &SCALE);
        self.affine("vision_tower.final_conv.se.fc1", &[last / 16, last, 1, 1]);
        self.affine("vision_tower.final_conv.se.fc2", &[last, last / 16, 1, 1]);
    }

    fn downsampling(&mut self, name: &str, channels: u64, pointwise: &Branches) {
        if self.train {
            self.conv_bn(&format!("{name}.0.large_conv"), [channels, 1, 7, 7]);
            self.conv_bn(&format!("{name}.0.small_conv"), [channels, 1, 3, 3]);
        } else {
            self.affine(&format!("{name}.0.reparam_conv"), &[channels, 1, 7, 7]);
        }
        self.mobile_one(&format!("{name}.1"), [channels, channels, 1, 1], pointwise);
    }

    fn decoder(&mut self, geometry: &Geometry) {
        let (hidden, inner) = (geometry.hidden_size, geometry.intermediate_size);
        let kv = geometry.num_key_value_heads * geometry.head_dim();
        self.push(
            "language_model.embed_tokens.weight".to_owned(),
            &[geometry.vocab_size, hidden],
        );
        for i in 0..geometry.num_hidden_layers {
            let layer = format!("language_model.layers.{i}");
            self.push(format!("{layer}.input_layernorm.weight"), &[hidden]);
            for (part, rows) in [("q", hidden), ("k", kv), ("v", kv)] {
                self.affine(&format!("{layer}.self_attn.{part}_proj"), &[rows, hidden]);
            }
            self.push(format!("{layer}.self_attn.o_proj.weight"), &[hidden, hidden]);
            self.push(format!("{layer}.post_attention_layernorm.weight"), &[hidden]);
            self.push(format!("{layer}.mlp.gate_proj.weight"), &[inner, hidden]);
            self.push(format!("{layer}.mlp.up_proj.weight"), &[inner, hidden]);
            self.push(format!("{layer}.mlp.down_proj.weight"), &[hidden, inner]);
        }
        self.push("language_model.norm.weight".to_owned(), &[hidden]);
        if !geometry.tied {
            self.push("lm_head.weight".to_owned(), &[geometry.vocab_size, hidden]);
        }
    }
}
