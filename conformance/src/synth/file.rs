//! How do the tensors get into safetensors files, fast and in pieces?

use super::layout::file_name;
use super::noise::Noise;
use super::table::{Geometry, Table};
use super::tensors::Tensor;
use super::{Options, Progress, Stored, Summary, SynthError};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

/// Elements that are made before they are written, and those that one thread makes at a time.
const BLOCK: u64 = 1 << 24;
const CHUNK: usize = 1 << 16;

/// The constant that stands in `num_batches_tracked`.
const BATCHES: u64 = 1000;

/// Writes all tensors, sharded where they are too many for one file.
pub(super) fn write(
    options: &Options,
    table: &Table,
    geometry: &Geometry,
    tensors: &[Tensor],
    progress: &mut Progress<'_>,
) -> Result<Summary, SynthError> {
    let shards = shards(tensors, options);
    let total: u64 = tensors.iter().map(|tensor| bytes_of(tensor, options.dtype)).sum();
    let mut done = 0;
    let mut summary = Summary {
        tensors: tensors.len(),
        parameters: 0,
        files: shards.len(),
        bytes: 0,
    };
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let mut note = |bytes: u64| {
            done += bytes;
            match progress(done, total) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(SynthError::Interrupted),
            }
        };
        let path = options.output.join(&name);
        summary.bytes += write_shard(&path, shard, options, table, geometry, &mut note)?;
        for (tensor, shape) in shard {
            weight_map.insert(file_name(tensor, options.layout), Value::from(name.as_str()));
            if !is_count(tensor) {
                summary.parameters += shape.iter().product::<u64>();
            }
        }
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        super::text_files::write_json(&options.output.join("model.safetensors.index.json"), &index)?;
    }
    Ok(summary)
}

/// Whether the tensor counts batches: an int64 scalar.
fn is_count(name: &str) -> bool {
    name.ends_with("num_batches_tracked")
}

fn element(name: &str, dtype: Stored) -> (&'static str, u64) {
    match dtype {
        _ if is_count(name) => ("I64", 8),
        Stored::Fp32 => ("F32", 4),
        Stored::Fp16 => ("F16", 2),
        Stored::Bf16 => ("BF16", 2),
    }
}

fn bytes_of((name, shape): &Tensor, dtype: Stored) -> u64 {
    shape.iter().product::<u64>() * element(name, dtype).1
}

/// The tensors in order, split where the next one would not fit.
fn shards<'a>(tensors: &'a [Tensor], options: &Options) -> Vec<Vec<&'a Tensor>> {
    let mut shards: Vec<Vec<&Tensor>> = vec![Vec::new()];
    let mut used = 0;
    for tensor in tensors {
        let bytes = bytes_of(tensor, options.dtype);
        let full = used + bytes > options.shard_bytes;
        match shards.last_mut() {
            Some(shard) if shard.is_empty() || !full => shard.push(tensor),
            _ => {
                shards.push(vec![tensor]);
                used = 0;
            }
        }
        used += bytes;
    }
    shards
}

fn write_shard(
    path: &Path,
    shard: &[&Tensor],
    options: &Options,
    table: &Table,
    geometry: &Geometry,
    note: &mut dyn FnMut(u64) -> Result<(), SynthError>,
) -> Result<u64, SynthError> {
    // 8-byte elements first: every tensor is then aligned to its element.
    let (mut ordered, rest): (Vec<&Tensor>, Vec<&Tensor>) =
        shard.iter().partition(|(name, _)| is_count(name));
    ordered.extend(rest);
    let header = header(&ordered, options);
    let mut out = BufWriter::new(File::create(path).map_err(SynthError::io(path))?);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(SynthError::io(path));
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    let mut written = 8 + header.len() as u64;
    for tensor @ (name, shape) in ordered {
        if is_count(name) {
            put(&BATCHES.to_le_bytes())?;
            note(8)?;
        } else {
            let noise = Noise::new(table, geometry, options.seed, name, shape, options.outliers)?;
            let count: u64 = shape.iter().product();
            let mut start = 0;
            while start < count {
                let end = count.min(start + BLOCK);
                let bytes = encode(&noise, start, end, options.dtype);
                put(&bytes)?;
                note(bytes.len() as u64)?;
                start = end;
            }
        }
        written += bytes_of(tensor, options.dtype);
    }
    out.flush().map_err(SynthError::io(path))?;
    Ok(written)
}

/// The JSON header, padded with spaces to a multiple of eight bytes.
fn header(tensors: &[&Tensor], options: &Options) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor @ (name, shape) in tensors {
        let end = offset + bytes_of(tensor, options.dtype);
        let dtype = element(name, options.dtype).0;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        entries.insert(file_name(name, options.layout), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    text
}

/// Elements `start..end` as they stand in the file.
fn encode(noise: &Noise, start: u64, end: u64, dtype: Stored) -> Vec<u8> {
    match dtype {
        Stored::Fp32 => encode_as(noise, start, end, f32::to_le_bytes),
        Stored::Fp16 => encode_as(noise, start, end, |value| f16::from_f32(value).to_le_bytes()),
        Stored::Bf16 => encode_as(noise, start, end, |value| bf16::from_f32(value).to_le_bytes()),
    }
}

fn encode_as<const N: usize>(
    noise: &Noise,
    start: u64,
    end: u64,
    convert: impl Fn(f32) -> [u8; N] + Sync,
) -> Vec<u8> {
    let count = usize::try_from(end - start).unwrap_or(0);
    let mut bytes = vec![0; count * N];
    bytes
        .par_chunks_mut(CHUNK * N)
        .enumerate()
        .for_each(|(k, chunk)| {
            let first = start + (k * CHUNK) as u64;
            for (element, i) in chunk.chunks_exact_mut(N).zip(first..) {
                element.copy_from_slice(&convert(noise.value(i)));
            }
        });
    bytes
}
