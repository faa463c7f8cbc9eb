//! Adapters over checkpoints: what tests of them share, adapters of noise and sums in float64.

use super::*;

mod beside;
mod merged;
mod refused;

/// Numbers that look random and are the same everywhere, between -1 and 1.
fn noise(seed: u64, count: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn lora(rank: u64, alpha: f64) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ".*", "bias": "none"})
}

/// The directory of an adapter, as PEFT writes it.
fn adapter(config: &Value, stored: &Stored) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    write_file(&directory.path().join("adapter_model.safetensors"), stored);
    directory
}

/// Puts tensors of noise into a file to be.
fn put(stored: &mut Stored, name: &str, shape: &[u64]) {
    let seed = name
        .bytes()
        .fold(3u64, |sum, byte| sum.wrapping_mul(131) + u64::from(byte));
    stored.insert(
        name.to_owned(),
        (shape.to_vec(), noise(seed, shape.iter().product())),
    );
}

/// A pair for a linear layer `[outputs, inputs]`.
fn pair(stored: &mut Stored, module: &str, [outputs, inputs]: [u64; 2], rank: u64) {
    put(
        stored,
        &format!("base_model.model.{module}.lora_A.weight"),
        &[rank, inputs],
    );
    put(
        stored,
        &format!("base_model.model.{module}.lora_B.weight"),
        &[outputs, rank],
    );
}

fn values<'a>(stored: &'a Stored, module: &str, part: &str) -> &'a [f32] {
    &stored[&format!("base_model.model.{module}.{part}")].1
}

/// `B A` of a pair in float64, row-major.
fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f64> {
    let width = a.len() / rank;
    let at = |row: usize, column: usize| -> f64 {
        (0..rank)
            .map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * width + column]))
            .sum()
    };
    (0..b.len() / rank)
        .flat_map(|row| (0..width).map(move |column| (row, column)))
        .map(|(row, column)| at(row, column))
        .collect()
}

/// Whether two are alike but for roundings.
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(
            off <= 1e-6 * expected.abs().max(1.0),
            "{what} at {at}: {found}, expected {expected}"
        );
    }
}

fn merge(base: &Path, adapters: &[(&Path, f64)]) -> Result<(Canonical, Accounting), String> {
    let merged = || -> Result<(Canonical, Accounting), CheckpointError> {
        let mut opened = Checkpoint::open(base)?;
        let adapters = adapters.iter().map(|(path, weight)| Adapter::open(path, *weight));
        let adapters: Vec<Adapter> = adapters.collect::<Result<_, _>>()?;
        let beside = opened.adapt(&adapters)?;
        let (weights, mut accounting) = canonical_with(&opened, None, adapters.into())?;
        accounting.warnings.extend(beside);
        Ok((weights, accounting))
    };
    merged().map_err(|error| error.to_string())
}

/// All weights by name.
fn read(canonical: &Canonical) -> BTreeMap<String, Vec<f32>> {
    let specs = canonical.specs().iter();
    specs
        .map(|spec| (spec.name.clone(), canonical.read(&spec.name).unwrap()))
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn plus(base: &[f32], factor: f64, delta: &[f64]) -> Vec<f64> {
    base.iter()
        .zip(delta)
        .map(|(base, delta)| f64::from(*base) + factor * delta)
        .collect()
}

/// A base without train-time branches.
fn base(layout: Layout, tied: bool) -> tempfile::TempDir {
    let config = config(layout, tied);
    directory(&config, &tensors(&config, layout, false))
}

/// Every block of a weight is a part of the whole.
fn assert_blocks(canonical: &Canonical, name: &str) {
    let whole = canonical.read(name).unwrap();
    let spec = canonical.specs().iter().find(|spec| spec.name == name).unwrap();
    let (height, width) = spec.matrix();
    for (rows, columns) in [
        (1..height, 0..width),
        (0..height, width / 2..width),
        (height / 2..height, 1..width.max(2) - 1),
        (0..1, 0..1),
    ] {
        let mut block = vec![0.0; rows.len() * columns.len()];
        canonical
            .read_block(name, rows.clone(), columns.clone(), &mut block)
            .unwrap();
        let place = |row| columns.clone().map(move |column| row * width + column);
        let expected: Vec<f32> = rows.flat_map(place).map(|at| whole[at]).collect();
        assert_eq!(block, expected, "{name}");
    }
}

const Q: &str = "language_model.layers.0.self_attn.q_proj.weight";
