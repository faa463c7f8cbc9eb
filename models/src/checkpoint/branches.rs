//! Which stored tensors make a folded convolution? One function for each kind of module, in timm's words.

use super::tensor_file::TensorId;
use crate::config::VisionConfig;

/// A branch of a convolution by its tensors; [`super::fold::BranchValues`] once they are read.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// The kernel and its side; `None` is the identity.
    pub(super) kernel: Option<(TensorId, u64)>,
    pub(super) bias: Option<TensorId>,
    /// gamma, beta, mean, variance.
    pub(super) norm: Option<[TensorId; 4]>,
    pub(super) factor: Option<TensorId>,
    pub(super) negative: bool,
}

/// Kinds of convolutions that have a train-time form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// k x k branches, a 1x1 scale branch and an identity, each with a norm. timm `MobileOneBlock`.
    MobileOne { scale: bool, identity: bool },
    /// timm `RepMixer`.
    RepMixer,
    /// A large kernel and a small one. timm `ReparamLargeKernelConv`.
    LargeKernel,
    /// A convolution and the identity. timm `RepConditionalPosEnc`.
    PositionalEncoding,
    /// A convolution and a norm, in published fused checkpoints too. timm `ConvMlp.conv`.
    ConvNorm,
}

impl Kind {
    /// The kind of the convolution with this canonical name (without `.weight` or `.bias`).
    pub(super) fn of(base: &str, tower: &VisionConfig) -> Option<Kind> {
        let base = base.strip_prefix("vision_tower.")?;
        Some(match base {
            // `stem_use_scale_branch=False`; identities need equal widths and stride 1.
            "stem.0" | "stem.1" => Kind::MobileOne {
                scale: false,
                identity: false,
            },
            "stem.2" => Kind::MobileOne {
                scale: false,
                identity: true,
            },
            "final_conv" => Kind::MobileOne {
                scale: true,
                identity: tower.embed_dims.last() == Some(&tower.final_channels),
            },
            // 1x1: no scale branch.
            _ if base.ends_with(".downsample.proj.1") => Kind::MobileOne {
                scale: false,
                identity: true,
            },
            _ if base.ends_with(".downsample.proj.0") => Kind::LargeKernel,
            _ if base.ends_with(".pos_emb") => Kind::PositionalEncoding,
            _ if base.ends_with(".token_mixer") => Kind::RepMixer,
            _ if base.ends_with(".mlp.conv") => Kind::ConvNorm,
            _ => return None,
        })
    }

    /// What train-time forms of the kind contain and fused ones do not.
    pub(super) const fn markers(self) -> &'static [&'static str] {
        match self {
            Kind::MobileOne { .. } => &[".conv_kxk.", ".conv_scale.", ".identity."],
            Kind::RepMixer => &[".mixer.", ".norm."],
            Kind::LargeKernel => &[".large_conv.", ".small_conv."],
            Kind::PositionalEncoding => &[".pos_enc."],
            Kind::ConvNorm => &[".conv.", ".bn."],
        }
    }
}

/// What branches are made from: looks a unified name up, checks its shape and notes what is missing.
pub(super) trait Take {
    /// The tensor of that name and shape.
    fn take(&mut self, name: &str, shape: &[u64]) -> Option<TensorId>;
    /// Whether there is a tensor whose name begins so.
    fn any(&self, prefix: &str) -> bool;
}

/// The branches of a train-time convolution `[output, per_group, side, side]`; `None` where tensors are
/// missing.
pub(super) fn branches(
    source: &mut dyn Take,
    kind: Kind,
    base: &str,
    [output, per_group, side]: [u64; 3],
    layer_scale: bool,
) -> Option<Vec<Branch>> {
    let mut site = Site {
        source,
        output,
        per_group,
        complete: true,
        branches: Vec::new(),
    };
    match kind {
        Kind::MobileOne { scale, identity } => site.mobile_one(base, side, scale, identity, None),
        Kind::RepMixer => {
            // x + s * (mixer(x) - norm(x))
            let gamma = format!("{base}.layer_scale.gamma");
            let factor = if layer_scale {
                site.take(&gamma, &[output, 1, 1])
            } else {
                None
            };
            site.branches.push(PLAIN);
            site.mobile_one(&format!("{base}.mixer"), side, true, true, factor);
            let norm = site.norm(&format!("{base}.norm.identity"));
            site.branches.push(Branch {
                norm,
                factor,
                negative: true,
                ..PLAIN
            });
        }
        Kind::LargeKernel => {
            site.conv_norm(&format!("{base}.large_conv"), side, None);
            // `small_kernel=3` in timm's `PatchEmbed`.
            site.conv_norm(&format!("{base}.small_conv"), 3, None);
        }
        Kind::PositionalEncoding => {
            let kernel = site.kernel(&format!("{base}.pos_enc.weight"), side);
            let bias = site.take(&format!("{base}.pos_enc.bias"), &[output]);
            site.branches.extend([
                Branch {
                    kernel,
                    bias,
                    ..PLAIN
                },
                PLAIN,
            ]);
        }
        Kind::ConvNorm => site.conv_norm(base, side, None),
    }
    site.complete.then_some(site.branches)
}

const PLAIN: Branch = Branch {
    kernel: None,
    bias: None,
    norm: None,
    factor: None,
    negative: false,
};

struct Site<'a> {
    source: &'a mut dyn Take,
    output: u64,
    per_group: u64,
    complete: bool,
    branches: Vec<Branch>,
}

impl Site<'_> {
    fn take(&mut self, name: &str, shape: &[u64]) -> Option<TensorId> {
        let found = self.source.take(name, shape);
        self.complete &= found.is_some();
        found
    }

    fn kernel(&mut self, name: &str, side: u64) -> Option<(TensorId, u64)> {
        let shape = [self.output, self.per_group, side, side];
        self.take(name, &shape).map(|id| (id, side))
    }

    fn norm(&mut self, name: &str) -> Option<[TensorId; 4]> {
        let output = self.output;
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.take(&format!("{name}.{part}"), &[output]));
        Some([gamma?, beta?, mean?, variance?])
    }

    fn conv_norm(&mut self, base: &str, side: u64, factor: Option<TensorId>) {
        let kernel = self.kernel(&format!("{base}.conv.weight"), side);
        let norm = self.norm(&format!("{base}.bn"));
        self.branches.push(Branch {
            kernel,
            norm,
            factor,
            ..PLAIN
        });
    }

    fn mobile_one(&mut self, base: &str, side: u64, scale: bool, identity: bool, factor: Option<TensorId>) {
        // As many as there are, at least one: `num_conv_branches` is not in the config.
        let mut index = 0;
        while index == 0 || self.source.any(&format!("{base}.conv_kxk.{index}.")) {
            self.conv_norm(&format!("{base}.conv_kxk.{index}"), side, factor);
            index += 1;
        }
        if scale && side > 1 {
            self.conv_norm(&format!("{base}.conv_scale"), 1, factor);
        }
        if identity {
            let norm = self.norm(&format!("{base}.identity"));
            self.branches.push(Branch {
                norm,
                factor,
                ..PLAIN
            });
        }
    }
}
