//! How the parameters of a fused operator stand in a node: attributes written, and read again.

use super::{Encoding, Fused, Kind, Norm, TableEncoding};

/// The largest size that is read.
pub const LARGEST: u64 = 1 << 24;

/// The largest side of a kernel; a step is no longer than its kernel, so that every input is looked at.
pub const LARGEST_KERNEL: u64 = 64;

/// The value of an attribute. Flags are 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attribute {
    /// ONNX's `INT`.
    Int(u64),
    /// ONNX's `FLOAT`.
    Float(f32),
}

/// The attributes of a node, in whatever form an engine has them.
pub trait Attributes {
    /// The `INT` of this name, if there is one.
    fn int(&self, name: &str) -> Option<i64>;
    /// The `FLOAT` of this name, if there is one.
    fn float(&self, name: &str) -> Option<f32>;
}

impl Fused {
    /// Name and value of each attribute, in the order in which they are written.
    pub fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let int = Attribute::Int;
        let flag = |value: bool| Attribute::Int(u64::from(value));
        match *self {
            Fused::Stem {
                kernel,
                stride,
                depthwise_kernel,
                depthwise_stride,
            } => vec![
                ("kernel", int(kernel)),
                ("stride", int(stride)),
                ("depthwise_kernel", int(depthwise_kernel)),
                ("depthwise_stride", int(depthwise_stride)),
            ],
            Fused::DepthwiseConv { kernel, stride, gelu } => vec![
                ("kernel", int(kernel)),
                ("stride", int(stride)),
                ("gelu", flag(gelu)),
            ],
            Fused::Linear {
                inputs,
                outputs,
                norm,
                encoding,
                bias,
                gelu,
                residual,
            } => {
                let [norm, epsilon] = norm.attributes();
                vec![
                    ("inputs", int(inputs)),
                    ("outputs", int(outputs)),
                    norm,
                    epsilon,
                    ("bits", int(encoding.bits())),
                    ("bias", flag(bias)),
                    ("gelu", flag(gelu)),
                    ("residual", flag(residual)),
                ]
            }
            Fused::FeedForward {
                inputs,
                hidden,
                outputs,
                norm,
                encoding,
                bias,
                gated,
                residual,
            } => {
                let [norm, epsilon] = norm.attributes();
                vec![
                    ("inputs", int(inputs)),
                    ("hidden", int(hidden)),
                    ("outputs", int(outputs)),
                    norm,
                    epsilon,
                    ("bits", int(encoding.bits())),
                    ("bias", flag(bias)),
                    ("gated", flag(gated)),
                    ("residual", flag(residual)),
                ]
            }
            Fused::SelfAttention { heads, head_dim } => {
                vec![("heads", int(heads)), ("head_dim", int(head_dim))]
            }
            Fused::DecoderAttention {
                heads,
                kv_heads,
                head_dim,
            } => vec![
                ("heads", int(heads)),
                ("kv_heads", int(kv_heads)),
                ("head_dim", int(head_dim)),
            ],
            Fused::Embedding { width, encoding } => {
                let [bits, planes] = encoding.attributes();
                vec![("width", int(width)), bits, planes]
            }
            Fused::Logits { encoding } => encoding.attributes().into(),
        }
    }

    /// Reads a node's parameters.
    ///
    /// # Errors
    /// An attribute that is not there or out of range, by its name, with what was found and expected. Sizes
    /// are 1 to [`LARGEST`], sides of kernels 1 to [`LARGEST_KERNEL`], steps 1 to the side of their kernel, flags
    /// 0 or 1, and `epsilon` is from 0 to 1. So nothing that a node says alone makes a kernel allocate much.
    pub fn read(kind: Kind, attributes: &dyn Attributes) -> Result<Fused, String> {
        let read = Read(attributes);
        Ok(match kind {
            Kind::Stem => {
                let (kernel, stride) = read.window("kernel", "stride")?;
                let (depthwise_kernel, depthwise_stride) =
                    read.window("depthwise_kernel", "depthwise_stride")?;
                Fused::Stem {
                    kernel,
                    stride,
                    depthwise_kernel,
                    depthwise_stride,
                }
            }
            Kind::DepthwiseConv => {
                let (kernel, stride) = read.window("kernel", "stride")?;
                let gelu = read.flag("gelu")?;
                Fused::DepthwiseConv { kernel, stride, gelu }
            }
            Kind::Linear => Fused::Linear {
                inputs: read.size("inputs")?,
                outputs: read.size("outputs")?,
                norm: read.norm()?,
                encoding: read.encoding()?,
                bias: read.flag("bias")?,
                gelu: read.flag("gelu")?,
                residual: read.flag("residual")?,
            },
            Kind::FeedForward => Fused::FeedForward {
                inputs: read.size("inputs")?,
                hidden: read.size("hidden")?,
                outputs: read.size("outputs")?,
                norm: read.norm()?,
                encoding: read.encoding()?,
                bias: read.flag("bias")?,
                gated: read.flag("gated")?,
                residual: read.flag("residual")?,
            },
            Kind::SelfAttention => Fused::SelfAttention {
                heads: read.size("heads")?,
                head_dim: read.size("head_dim")?,
            },
            Kind::DecoderAttention => Fused::DecoderAttention {
                heads: read.size("heads")?,
                kv_heads: read.size("kv_heads")?,
                head_dim: read.size("head_dim")?,
            },
            Kind::Embedding => Fused::Embedding {
                width: read.size("width")?,
                encoding: read.table()?,
            },
            Kind::Logits => Fused::Logits {
                encoding: read.table()?,
            },
        })
    }
}

impl Norm {
    fn attributes(self) -> [(&'static str, Attribute); 2] {
        let (kind, epsilon) = match self {
            Norm::None => (0, 0.0),
            Norm::Rms { epsilon } => (1, epsilon),
            Norm::Layer { epsilon } => (2, epsilon),
        };
        [
            ("norm", Attribute::Int(kind)),
            ("epsilon", Attribute::Float(epsilon)),
        ]
    }
}

impl TableEncoding {
    fn attributes(self) -> [(&'static str, Attribute); 2] {
        [
            ("bits", Attribute::Int(self.bits())),
            ("planes", Attribute::Int(self.planes())),
        ]
    }
}

/// What is read of a node's attributes; errors name the attribute.
struct Read<'a>(&'a dyn Attributes);

impl Read<'_> {
    fn int(&self, name: &str) -> Result<i64, String> {
        self.0
            .int(name)
            .ok_or_else(|| format!("a fused operator has no attribute `{name}`"))
    }

    fn size(&self, name: &str) -> Result<u64, String> {
        let value = self.int(name)?;
        let size = u64::try_from(value)
            .ok()
            .filter(|size| (1..=LARGEST).contains(size));
        size.ok_or_else(|| format!("attribute `{name}` is {value}, expected 1 to 2^24"))
    }

    /// The side of a kernel, and its step.
    fn window(&self, kernel: &str, stride: &str) -> Result<(u64, u64), String> {
        let within = |name: &str, most: u64| {
            let value = self.int(name)?;
            let size = u64::try_from(value).ok();
            size.filter(|size| (1..=most).contains(size))
                .ok_or_else(|| format!("attribute `{name}` is {value}, expected 1 to {most}"))
        };
        let side = within(kernel, LARGEST_KERNEL)?;
        Ok((side, within(stride, side)?))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.int(name)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("attribute `{name}` is {other}, expected 0 or 1")),
        }
    }

    fn encoding(&self) -> Result<Encoding, String> {
        let bits = self.int("bits")?;
        let found = Encoding::ALL
            .into_iter()
            .find(|encoding| u64::try_from(bits) == Ok(encoding.bits()));
        found.ok_or_else(|| format!("weights have {bits} bits, expected 32, 8 or 4"))
    }

    fn table(&self) -> Result<TableEncoding, String> {
        let (bits, planes) = (self.int("bits")?, self.int("planes")?);
        let stored = (u64::try_from(bits), u64::try_from(planes));
        let found = TableEncoding::ALL
            .into_iter()
            .find(|encoding| stored == (Ok(encoding.bits()), Ok(encoding.planes())));
        found.ok_or_else(|| {
            format!("a table has {bits} bits in {planes} planes, expected 32 or 8 in one, or 8 in two")
        })
    }

    fn norm(&self) -> Result<Norm, String> {
        let missing = || "a fused operator has no attribute `epsilon`".to_owned();
        let epsilon = self.0.float("epsilon").ok_or_else(missing)?;
        if !(0.0..=1.0).contains(&epsilon) {
            return Err(format!("attribute `epsilon` is {epsilon}, expected 0 to 1"));
        }
        match self.int("norm")? {
            0 => Ok(Norm::None),
            1 => Ok(Norm::Rms { epsilon }),
            2 => Ok(Norm::Layer { epsilon }),
            other => Err(format!("norm is {other}, expected 0, 1 or 2")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, as an engine would hold it.
    struct Written(Vec<(&'static str, Attribute)>);

    impl Attributes for Written {
        fn int(&self, name: &str) -> Option<i64> {
            self.0.iter().find_map(|(known, value)| match value {
                Attribute::Int(value) if *known == name => i64::try_from(*value).ok(),
                _ => None,
            })
        }

        fn float(&self, name: &str) -> Option<f32> {
            self.0.iter().find_map(|(known, value)| match value {
                Attribute::Float(value) if *known == name => Some(*value),
                _ => None,
            })
        }
    }

    /// One or more of each operator; sizes differ, so that none can stand for another.
    fn examples() -> Vec<Fused> {
        let norms = [
            Norm::None,
            Norm::Rms { epsilon: 1e-6 },
            Norm::Layer { epsilon: 1e-5 },
        ];
        let mut examples = vec![
            Fused::Stem {
                kernel: 3,
                stride: 2,
                depthwise_kernel: 5,
                depthwise_stride: 4,
            },
            Fused::SelfAttention {
                heads: 4,
                head_dim: 8,
            },
            Fused::DecoderAttention {
                heads: 6,
                kv_heads: 2,
                head_dim: 16,
            },
        ];
        for (norm, encoding) in norms.into_iter().zip(Encoding::ALL) {
            for flag in [false, true] {
                examples.push(Fused::DepthwiseConv {
                    kernel: 7,
                    stride: 2,
                    gelu: flag,
                });
                examples.push(Fused::Linear {
                    inputs: 5,
                    outputs: 9,
                    norm,
                    encoding,
                    bias: flag,
                    gelu: !flag,
                    residual: flag,
                });
                examples.push(Fused::FeedForward {
                    inputs: 5,
                    hidden: 11,
                    outputs: 9,
                    norm,
                    encoding,
                    bias: flag,
                    gated: !flag,
                    residual: flag,
                });
            }
        }
        for encoding in TableEncoding::ALL {
            examples.push(Fused::Embedding { width: 12, encoding });
            examples.push(Fused::Logits { encoding });
        }
        examples
    }

    #[test]
    fn what_is_written_is_read() {
        let examples = examples();
        for kind in Kind::ALL {
            assert!(examples.iter().any(|fused| fused.kind() == kind), "{kind:?}");
        }
        for fused in examples {
            let written = Written(fused.attributes());
            assert_eq!(Fused::read(fused.kind(), &written), Ok(fused));
            for missing in 0..written.0.len() {
                let mut less = fused.attributes();
                let (name, _) = less.remove(missing);
                let error = Fused::read(fused.kind(), &Written(less)).unwrap_err();
                assert_eq!(error, format!("a fused operator has no attribute `{name}`"));
            }
        }
    }

    #[test]
    fn what_no_operator_has_is_an_error() {
        let linear = examples()
            .into_iter()
            .find(|fused| fused.kind() == Kind::Linear)
            .unwrap();
        let table = Fused::Logits {
            encoding: TableEncoding::Planes,
        };
        for (fused, name, value, words) in [
            (linear, "inputs", 0, "attribute `inputs` is 0, expected 1 to 2^24"),
            (
                linear,
                "outputs",
                LARGEST + 1,
                "attribute `outputs` is 16777217, expected 1 to 2^24",
            ),
            (linear, "bits", 16, "weights have 16 bits, expected 32, 8 or 4"),
            (linear, "norm", 3, "norm is 3, expected 0, 1 or 2"),
            (table, "bits", 32, "a table has 32 bits in 2 planes"),
        ] {
            let mut attributes = fused.attributes();
            for (known, place) in &mut attributes {
                if *known == name {
                    *place = Attribute::Int(value);
                }
            }
            let error = Fused::read(fused.kind(), &Written(attributes)).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    /// Every attribute of every operator, with every value that an attacker would try: an error that names it, or an
    /// operator whose numbers are all in range.
    #[test]
    fn every_attribute_is_in_range_or_named() {
        let ints = [
            0,
            1,
            2,
            -1,
            65,
            1 << 23,
            i64::from(i32::MAX),
            1 << 62,
            i64::MAX,
            i64::MIN,
        ];
        let floats = [
            0.0,
            1.0,
            -1.0,
            1.5,
            f32::MIN_POSITIVE,
            f32::MAX,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let (mut refused, mut read) = (0, 0);
        for fused in examples() {
            for (index, (name, value)) in fused.attributes().into_iter().enumerate() {
                let changes = match value {
                    Attribute::Int(_) => ints.map(Changed::Int).to_vec(),
                    Attribute::Float(_) => floats.map(Changed::Float).to_vec(),
                };
                for change in changes {
                    let attributes = Hostile(fused.attributes(), index, change);
                    match Fused::read(fused.kind(), &attributes) {
                        Err(error) => {
                            refused += 1;
                            let of_norm = name == "norm" && error.starts_with("norm is");
                            let of_bits = ["bits", "planes"].contains(&name) && error.contains(" bits");
                            // A kernel that shrinks is smaller than its step.
                            let of_step = name.ends_with("kernel") && error.contains("stride");
                            assert!(
                                error.contains(&format!("`{name}`")) || of_norm || of_bits || of_step,
                                "{name} {change:?}: {error}"
                            );
                        }
                        Ok(found) => {
                            read += 1;
                            for (name, value) in found.attributes() {
                                let side = name.ends_with("kernel") || name.ends_with("stride");
                                let fits = match value {
                                    Attribute::Int(value) if side => value <= LARGEST_KERNEL,
                                    Attribute::Int(value) => value <= LARGEST,
                                    Attribute::Float(value) => (0.0..=1.0).contains(&value),
                                };
                                assert!(fits, "{name} of {found:?}");
                            }
                        }
                    }
                }
            }
        }
        assert!(refused > 1000 && read > 100, "{refused} refused, {read} read");
    }

    #[derive(Debug, Clone, Copy)]
    enum Changed {
        Int(i64),
        Float(f32),
    }

    /// Attributes of which one has another value, which no writer could have written.
    struct Hostile(Vec<(&'static str, Attribute)>, usize, Changed);

    impl Hostile {
        fn is_changed(&self, name: &str) -> bool {
            self.0.get(self.1).is_some_and(|(changed, _)| *changed == name)
        }
    }

    impl Attributes for Hostile {
        fn int(&self, name: &str) -> Option<i64> {
            match self.2 {
                Changed::Int(value) if self.is_changed(name) => Some(value),
                _ => Written(self.0.clone()).int(name),
            }
        }

        fn float(&self, name: &str) -> Option<f32> {
            match self.2 {
                Changed::Float(value) if self.is_changed(name) => Some(value),
                _ => Written(self.0.clone()).float(name),
            }
        }
    }
}
