//! Which names may a pickle of `torch.save` ask for? A closed list: what torch rebuilds tensors with.

use super::super::tensor_file::StoredType;
use crate::dtype::DType;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor`: storage, offset, shape, strides.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v2`: as before, and whether it is trained, hooks, metadata.
    RebuildTensorV2,
    /// `torch._utils._rebuild_tensor_v3`: as before, with the type of the elements after the hooks.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`: a tensor and what a parameter
    /// has.
    RebuildParameter,
    /// `torch.FloatStorage`: elements of a type; without one, bytes.
    Storage(Option<StoredType>),
    /// `torch.float32`
    DType(StoredType),
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
}

const fn other(name: &'static str, bits: u64) -> StoredType {
    StoredType::Other(name, bits)
}

const F32: StoredType = StoredType::Float(DType::Float32);
const F16: StoredType = StoredType::Float(DType::Float16);
const BF16: StoredType = StoredType::Float(DType::BFloat16);

/// Storages of a type and the type.
const STORAGES: [(&str, StoredType); 12] = [
    ("FloatStorage", F32),
    ("HalfStorage", F16),
    ("BFloat16Storage", BF16),
    ("DoubleStorage", other("F64", 64)),
    ("LongStorage", other("I64", 64)),
    ("IntStorage", other("I32", 32)),
    ("ShortStorage", other("I16", 16)),
    ("CharStorage", other("I8", 8)),
    ("ByteStorage", other("U8", 8)),
    ("BoolStorage", other("BOOL", 8)),
    ("ComplexFloatStorage", other("C64", 64)),
    ("ComplexDoubleStorage", other("C128", 128)),
];

/// Types as torch names them.
const DTYPES: [(&str, StoredType); 20] = [
    ("float32", F32),
    ("float16", F16),
    ("bfloat16", BF16),
    ("float64", other("F64", 64)),
    ("int64", other("I64", 64)),
    ("int32", other("I32", 32)),
    ("int16", other("I16", 16)),
    ("int8", other("I8", 8)),
    ("uint64", other("U64", 64)),
    ("uint32", other("U32", 32)),
    ("uint16", other("U16", 16)),
    ("uint8", other("U8", 8)),
    ("bool", other("BOOL", 8)),
    ("complex64", other("C64", 64)),
    ("complex128", other("C128", 128)),
    ("float8_e4m3fn", other("F8_E4M3", 8)),
    ("float8_e5m2", other("F8_E5M2", 8)),
    ("float8_e4m3fnuz", other("F8_E4M3FNUZ", 8)),
    ("float8_e5m2fnuz", other("F8_E5M2FNUZ", 8)),
    ("float8_e8m0fnu", other("F8_E8M0", 8)),
];

/// What a name stands for, if it is in the list.
///
/// # Errors
/// A sentence that names what was asked for and what is expected.
pub(super) fn find(module: &str, name: &str) -> Result<Global, String> {
    let typed = |table: &[(&str, StoredType)]| {
        let found = table.iter().find(|(known, _)| *known == name);
        found.map(|(_, dtype)| *dtype)
    };
    let found = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Some(Global::RebuildParameter)
        }
        ("torch" | "torch.storage", "UntypedStorage") => Some(Global::Storage(None)),
        ("torch", "Size") => Some(Global::Size),
        ("torch", "device") => Some(Global::Device),
        ("torch", _) => {
            let storage = typed(&STORAGES).map(|dtype| Global::Storage(Some(dtype)));
            storage.or_else(|| typed(&DTYPES).map(Global::DType))
        }
        _ => None,
    };
    found.ok_or_else(|| {
        format!(
            "asks for the global `{module}.{name}`, expected only what tensors are rebuilt with \
             (`torch._utils._rebuild_tensor_v2`, `torch.FloatStorage`, `collections.OrderedDict`): save the \
             model's `state_dict()` alone"
        )
    })
}
