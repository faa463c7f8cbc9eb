//! Writes files as `torch.save` does, for tests: pickles, zip archives and the older form.

/// Tensors, the storages that they are views of, and what else a file holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saved {
    /// torch's name of the type (`FloatStorage`) and the bytes.
    pub(crate) storages: Vec<(String, Vec<u8>)>,
    /// The views, in order.
    pub(crate) tensors: Vec<Saving>,
    /// The name under which the tensors stand in a dict around theirs.
    pub(crate) around: Option<String>,
    /// Opcodes of further keys and values of the outermost dict.
    pub(crate) more: Vec<u8>,
}

/// A view of a storage.
#[derive(Debug, Clone)]
pub(crate) struct Saving {
    pub(crate) name: String,
    /// Index of the storage.
    pub(crate) storage: usize,
    /// Elements before the first.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

impl Saved {
    /// Adds a tensor with a storage of its own, row-major.
    pub(crate) fn add(&mut self, name: &str, kind: &str, shape: &[u64], bytes: Vec<u8>) {
        self.storages.push((kind.to_owned(), bytes));
        self.view(name, self.storages.len() - 1, 0, shape, &row_major(shape));
    }

    /// Adds a view of a storage that is there.
    pub(crate) fn view(&mut self, name: &str, storage: usize, offset: u64, shape: &[u64], strides: &[u64]) {
        self.tensors.push(Saving {
            name: name.to_owned(),
            storage,
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        });
    }

    /// The file of torch since 1.6.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut files = vec![("x/data.pkl".to_owned(), self.pickle(false))];
        files.push(("x/byteorder".to_owned(), b"little".to_vec()));
        let storages = self.storages.iter().enumerate();
        files.extend(storages.map(|(key, (_, bytes))| (format!("x/data/{key}"), bytes.clone())));
        files.push(("x/version".to_owned(), b"3\n".to_vec()));
        zip(&files)
    }

    /// The file of torch before 1.6.
    pub(crate) fn legacy(&self) -> Vec<u8> {
        let mut file = before(true);
        file.extend(self.pickle(true));
        file.extend(b"\x80\x02](");
        // Of storages without a tensor torch does not know.
        let used = |key: &usize| self.tensors.iter().any(|tensor| tensor.storage == *key);
        let keys: Vec<usize> = (0..self.storages.len()).filter(used).collect();
        for key in &keys {
            text(&mut file, &key.to_string());
        }
        file.extend(b"e.");
        for key in keys {
            let (kind, bytes) = &self.storages[key];
            let count = bytes.len() / size(kind);
            file.extend(le64(count));
            file.extend(bytes);
        }
        file
    }

    /// The pickle of the dict.
    pub(crate) fn pickle(&self, parts: bool) -> Vec<u8> {
        let mut out = b"\x80\x02".to_vec();
        if let Some(around) = &self.around {
            out.extend(b"}(");
            text(&mut out, around);
        }
        out.extend(b"ccollections\nOrderedDict\n)R(");
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            let (kind, bytes) = &self.storages[tensor.storage];
            let count = bytes.len() / size(kind);
            rebuild(&mut out, tensor, kind, count, parts);
        }
        if self.around.is_some() {
            out.extend(b"u");
        }
        out.extend(&self.more);
        out.extend(b"u.");
        out
    }
}

/// What stands in an older file before its object: the magic number, the version, facts of the machine.
pub(crate) fn before(little_endian: bool) -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
    text(&mut out, "little_endian");
    out.extend(if little_endian { b"\x88s." } else { b"\x89s." });
    out
}

/// Opcodes of a tensor.
fn rebuild(out: &mut Vec<u8>, tensor: &Saving, kind: &str, count: usize, part: bool) {
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(format!("ctorch\n{kind}\n").as_bytes());
    text(out, &tensor.storage.to_string());
    text(out, "cpu");
    number(out, u64::from_le_bytes(le64(count)));
    // The older form has a place for parts of storages.
    out.extend(if part { &b"NtQ"[..] } else { b"tQ" });
    number(out, tensor.offset);
    for numbers in [&tensor.shape, &tensor.strides] {
        out.extend(b"(");
        numbers.iter().for_each(|n| number(out, *n));
        out.extend(b"t");
    }
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// Opcodes of a text.
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(b"X");
    out.extend(le32(text.len()));
    out.extend(text.as_bytes());
}

/// Opcodes of a number.
pub(crate) fn number(out: &mut Vec<u8>, number: u64) {
    out.extend(b"\x8a\x08");
    out.extend(number.to_le_bytes());
}

/// Strides of elements that lie one after the other.
pub(crate) fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for k in (1..shape.len()).rev() {
        strides[k - 1] = strides[k] * shape[k].max(1);
    }
    strides
}

fn size(kind: &str) -> usize {
    match kind {
        "DoubleStorage" | "LongStorage" => 8,
        "FloatStorage" | "IntStorage" => 4,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        _ => 1,
    }
}

/// A zip archive of files that are stored as they are.
pub(crate) fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, bytes) in files {
        let at = le32(out.len());
        // Versions, flags, method, time, date, CRC-32, both lengths, lengths of the name and of extra fields.
        let mut facts = vec![0; 14];
        facts.extend([le32(bytes.len()); 2].concat());
        facts.extend(&le32(name.len())[..2]);
        facts.extend([0, 0]);
        out.extend(b"PK\x03\x04\x14\0");
        out.extend(&facts[2..]);
        out.extend(name.as_bytes());
        out.extend(bytes);
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend(&facts[2..]);
        directory.extend([0; 10]);
        directory.extend(at);
        directory.extend(name.as_bytes());
    }
    let at = le32(out.len());
    let count = &le32(files.len())[..2];
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend(le32(directory.len()));
    out.extend(at);
    out.extend([0, 0]);
    out
}

fn le32(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn le64(number: usize) -> [u8; 8] {
    u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes()
}
