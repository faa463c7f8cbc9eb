//! What does an ONNX file of another program say of itself? Inputs, outputs, operators' domains and where weights lie,
//! read without the weights.

use super::wire::{Problem, Value, Wire};
use crate::error::ExportError;
use crate::onnx::proto::{StringStringEntryProto, ValueInfoProto};
use models::bundle::inside;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Longest name, shape or reference that is read, in bytes.
const MOST_TEXT: u64 = 1 << 20;
/// Most inputs, outputs, tensors, data files or domains of a graph.
const MOST_NAMES: usize = 1 << 17;
/// Most graphs inside each other: a loop in a branch in a function is three.
const MOST_DEPTH: usize = 16;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Scanned {
    /// Operator sets by domain; empty is ONNX's own.
    pub(super) opsets: BTreeMap<String, i64>,
    /// Inputs that are no stored tensor, in the file's order.
    pub(super) inputs: Vec<ValueInfoProto>,
    /// Outputs, in the file's order.
    pub(super) outputs: Vec<ValueInfoProto>,
    /// Each domain of operators, with one that the graph uses.
    pub(super) domains: BTreeMap<String, String>,
    /// Domains that the file has functions of.
    pub(super) functions: BTreeSet<String>,
    /// Data files as tensors name them, with the tensor whose bytes end last, and where.
    pub(super) data: BTreeMap<String, (String, u64)>,
    /// Nodes, those of branches and functions too.
    pub(super) nodes: usize,
    /// Bytes of stored tensors by element type.
    pub(super) weights: BTreeMap<u64, u64>,
}

/// Reads the file at `path`.
///
/// # Errors
/// A file that cannot be read or is no ONNX model.
pub(super) fn scan(path: &Path) -> Result<Scanned, ExportError> {
    let file = models::regular::open(path).map_err(ExportError::io("open", path))?;
    let length = file.metadata().map_err(ExportError::io("read", path))?.len();
    let mut scan = Scan {
        wire: Wire::new(file),
        found: Scanned::default(),
        stored: BTreeSet::new(),
    };
    scan.model(length).map_err(|problem| ExportError::NotAModel {
        path: path.to_owned(),
        problem,
    })?;
    let Scan {
        mut found, stored, ..
    } = scan;
    let name = |input: &ValueInfoProto| input.name.clone().unwrap_or_default();
    found.inputs.retain(|input| !stored.contains(&name(input)));
    Ok(found)
}

struct Scan {
    wire: Wire,
    found: Scanned,
    /// Names of the main graph's stored tensors: older files list them as inputs too.
    stored: BTreeSet<String>,
}

/// A stored tensor.
#[derive(Default)]
struct Tensor {
    name: String,
    elements: Option<u64>,
    kind: u64,
    outside: bool,
    place: BTreeMap<String, String>,
}

impl Scan {
    fn model(&mut self, end: u64) -> Result<(), Problem> {
        let mut graphs = 0;
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (7, Value::Bytes(end)) => {
                    graphs += 1;
                    self.graph(end, 0)?;
                }
                (8, Value::Bytes(end)) => {
                    let (domain, version) = self.opset(end)?;
                    self.found.opsets.insert(domain, version);
                    bounded(self.found.opsets.len())?;
                }
                (25, Value::Bytes(end)) => self.function(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        if graphs == 1 && self.found.nodes > 0 {
            return Ok(());
        }
        Err(format!(
            "it has {graphs} graphs with {} nodes, expected one with some",
            self.found.nodes
        ))
    }

    fn graph(&mut self, end: u64, depth: usize) -> Result<(), Problem> {
        if depth > MOST_DEPTH {
            return Err(format!("more than {MOST_DEPTH} graphs lie in each other"));
        }
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (1, Value::Bytes(end)) => self.node(end, depth)?,
                (5, Value::Bytes(end)) => {
                    let name = self.tensor(end)?;
                    if depth == 0 {
                        self.stored.insert(name);
                        bounded(self.stored.len())?;
                    }
                }
                (11 | 12, Value::Bytes(end)) if depth == 0 => {
                    let bytes = self.wire.bytes(end, MOST_TEXT)?;
                    let port = ValueInfoProto::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
                    let list = if field == 11 {
                        &mut self.found.inputs
                    } else {
                        &mut self.found.outputs
                    };
                    list.push(port);
                    bounded(list.len())?;
                }
                (_, value) => self.skip(value)?,
            }
        }
        Ok(())
    }

    fn function(&mut self, end: u64) -> Result<(), Problem> {
        let mut domain = String::new();
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (7, Value::Bytes(end)) => self.node(end, 0)?,
                (10, Value::Bytes(end)) => domain = self.text(end)?,
                (_, value) => self.skip(value)?,
            }
        }
        self.found.functions.insert(domain);
        bounded(self.found.functions.len())
    }

    fn node(&mut self, end: u64, depth: usize) -> Result<(), Problem> {
        let (mut domain, mut operator) = (String::new(), String::new());
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (4, Value::Bytes(end)) => operator = self.text(end)?,
                (7, Value::Bytes(end)) => domain = self.text(end)?,
                (5, Value::Bytes(end)) => self.attribute(end, depth)?,
                (_, value) => self.skip(value)?,
            }
        }
        self.found.nodes += 1;
        self.found.domains.entry(domain).or_insert(operator);
        bounded(self.found.domains.len())
    }

    /// Tensors and graphs in an attribute of a node.
    fn attribute(&mut self, end: u64, depth: usize) -> Result<(), Problem> {
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (5 | 10, Value::Bytes(end)) => {
                    self.tensor(end)?;
                }
                (6 | 11, Value::Bytes(end)) => self.graph(end, depth + 1)?,
                (_, value) => self.skip(value)?,
            }
        }
        Ok(())
    }

    /// A tensor's name; where its elements lie is noted.
    fn tensor(&mut self, end: u64) -> Result<String, Problem> {
        let mut tensor = Tensor {
            elements: Some(1),
            ..Tensor::default()
        };
        let multiply = |count: &mut Option<u64>, side: u64| {
            *count = count.and_then(|count| count.checked_mul(side));
        };
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (1, Value::Number(side)) => multiply(&mut tensor.elements, side),
                // Other writers pack them.
                (1, Value::Bytes(end)) => {
                    while self.wire.at() < end {
                        let side = self.wire.number(end)?;
                        multiply(&mut tensor.elements, side);
                    }
                }
                (2, Value::Number(kind)) => tensor.kind = kind,
                (8, Value::Bytes(end)) => tensor.name = self.text(end)?,
                (13, Value::Bytes(end)) => {
                    let bytes = self.wire.bytes(end, MOST_TEXT)?;
                    let entry = StringStringEntryProto::decode(bytes.as_slice());
                    let entry = entry.map_err(|error| error.to_string())?;
                    let (key, value) = (entry.key.unwrap_or_default(), entry.value.unwrap_or_default());
                    tensor.place.insert(key, value);
                    bounded(tensor.place.len())?;
                }
                (14, Value::Number(place)) => tensor.outside = place == 1,
                (_, value) => self.skip(value)?,
            }
        }
        let bytes = tensor.bytes();
        let known = self.found.weights.entry(tensor.kind).or_default();
        *known = known.saturating_add(bytes.unwrap_or(0));
        bounded(self.found.weights.len())?;
        if tensor.outside {
            self.outside(&tensor, bytes)?;
        }
        Ok(tensor.name)
    }

    /// Notes where the elements of a tensor end that lie in another file.
    fn outside(&mut self, tensor: &Tensor, bytes: Option<u64>) -> Result<(), Problem> {
        let name = &tensor.name;
        let Some(location) = tensor.place.get("location") else {
            return Err(format!(
                "tensor `{name}` lies in another file and does not say which"
            ));
        };
        if inside(location).is_none() {
            return Err(format!(
                "tensor `{name}` lies in `{location}`, expected a file beside the graph or below it"
            ));
        }
        let number = |key: &str| match tensor.place.get(key) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!(
                    "tensor `{name}` has {key} `{text}`, expected a number of bytes"
                )),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if let (Some(length), Some(bytes)) = (length, bytes)
            && length != bytes
        {
            return Err(format!(
                "tensor `{name}` has {length} bytes, expected {bytes} by its shape and type"
            ));
        }
        let end = length.or(bytes).and_then(|length| offset.checked_add(length));
        let Some(end) = end else {
            return Err(format!(
                "tensor `{name}` lies in `{location}` and does not say how far"
            ));
        };
        let known = self.found.data.entry(location.clone()).or_default();
        if known.1 <= end {
            *known = (name.clone(), end);
        }
        bounded(self.found.data.len())
    }

    fn opset(&mut self, end: u64) -> Result<(String, i64), Problem> {
        let (mut domain, mut version) = (String::new(), 0);
        while let Some((field, value)) = self.wire.field(end)? {
            match (field, value) {
                (1, Value::Bytes(end)) => domain = self.text(end)?,
                (2, Value::Number(number)) => version = i64::try_from(number).unwrap_or(0),
                (_, value) => self.skip(value)?,
            }
        }
        // Two names of one domain.
        if domain == "ai.onnx" {
            domain.clear();
        }
        Ok((domain, version))
    }

    fn skip(&mut self, value: Value) -> Result<(), Problem> {
        match value {
            Value::Bytes(end) => self.wire.jump(end),
            Value::Number(_) | Value::Fixed => Ok(()),
        }
    }

    fn text(&mut self, end: u64) -> Result<String, Problem> {
        let bytes = self.wire.bytes(end, MOST_TEXT)?;
        String::from_utf8(bytes).map_err(|error| error.to_string())
    }
}

impl Tensor {
    /// Bytes by shape and type; `None` where they do not say.
    fn bytes(&self) -> Option<u64> {
        // The numbers of `TensorProto.DataType`.
        let bits = match self.kind {
            2 | 3 | 9 | 17..=20 | 24 => 8,
            1 | 6 | 12 => 32,
            4 | 5 | 10 | 16 => 16,
            7 | 11 | 13 => 64,
            21..=23 => 4,
            25 | 26 => 2,
            _ => return None,
        };
        Some(self.elements?.checked_mul(bits)?.div_ceil(8))
    }
}

fn bounded(count: usize) -> Result<(), Problem> {
    if count <= MOST_NAMES {
        return Ok(());
    }
    Err(format!("it names more than {MOST_NAMES} things of a kind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny.onnx")).unwrap()
    }

    fn scan_bytes(folder: &Path, bytes: &[u8]) -> Result<Scanned, ExportError> {
        let path = folder.join("graph.onnx");
        std::fs::write(&path, bytes).unwrap();
        scan(&path)
    }

    #[test]
    fn a_graph_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let found = scan_bytes(folder.path(), &golden()).unwrap();
        let names = |ports: &[ValueInfoProto]| -> Vec<String> {
            ports.iter().filter_map(|port| port.name.clone()).collect()
        };
        assert_eq!(
            (names(&found.inputs), names(&found.outputs)),
            (vec!["x".to_owned()], vec!["y".to_owned()])
        );
        assert_eq!(found.opsets, BTreeMap::from([(String::new(), 20)]));
        assert_eq!(found.domains.keys().collect::<Vec<_>>(), [""]);
        assert!(found.nodes > 2, "{found:?}");
    }

    /// Whatever stands in a file, it is read or refused.
    #[test]
    fn no_cut_and_no_byte_is_too_odd() {
        let folder = tempfile::tempdir().unwrap();
        let golden = golden();
        let whole = scan_bytes(folder.path(), &golden).unwrap();
        for end in 0..golden.len() {
            if let Ok(cut) = scan_bytes(folder.path(), &golden[..end]) {
                assert!(cut.nodes <= whole.nodes);
            }
        }
        let mut refused = 0;
        for index in 0..golden.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut changed = golden.clone();
                changed[index] = byte;
                refused += usize::from(scan_bytes(folder.path(), &changed).is_err());
            }
        }
        assert!(refused > 0);
    }
}
